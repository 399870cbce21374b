defmodule PartitionedBuffer.Conservation do
  @moduledoc """
  Checks that all that is written to a buffer comes out once and in order, also while its processes die.

  ## A run

  `package/2` starts a buffer of two partitions that flush every millisecond, and four writers. A writer makes random calls
  of all kinds until it has done its share of the writes. Another process owns the buffer and injects a fault every few
  milliseconds. At the end the buffer stops, which processes the rest, and the ledger compares the writes with the batches of
  the processor. `ets_design/3` does the same writes to an ETS design of `bench/support`, without faults.

  ## What the ledger knows

  The processor sends each batch to the ledger before it does anything else, and then obeys its verdict: to return, or to
  fail in one of several ways. The ledger also gets the telemetry events of the buffer, and monitors its tasks.

  Entries tell by themselves which writes they are made of:

    * In a map the writes to a key follow from the key's number (`History`), and one writer writes to a key. So each entry has
      to be the result of the key's writes that follow those of its last entry.
    * What is added to a key of a counter follows from the key's number as well (`Additions`): sum and count of an entry tell
      which additions it is made of. They have to follow those of the key's last entry, or a delete.
    * An item of a queue has its stream, its partition, and its number there (`Item`). So the next item of a stream in a
      partition is known.

  A writer tells at the end which writes were acknowledged, and which ones may have been done by a call that raised.

  A batch is lost with the processor that had it. The ledger has seen this batch, so nothing is missing. Only a task that is
  killed outside of the processor can lose a batch that nobody has seen: it may just have claimed one. Such a death is a
  *window*. Entries that are missing count as `unseen` if there was a window since the last entry of their key, or of their
  stream in their partition. Otherwise they are `lost`.

  ## Violations

  | violation | meaning |
  |---|---|
  | `lost` | an acknowledged write has not come, and there was no window |
  | `again` | an entry has come twice |
  | `wrong` | no writes give this entry, or its term was changed |
  | `out_of_order` | an item came after a later one of its stream |
  | `never_written` | more items came than were pushed |
  | `wrong_partition` | an item came from another partition than its own |
  | `wrong_reads` | a read found another value than the last write |
  | `empty_batch` | a batch was empty |
  | `batch_size` | a batch had a size that was never set, or was short though it was not the last of its flush |
  | `two_at_a_time` | two tasks of one partition were in the processor |
  | `stop_event`, `exception_event` | a telemetry event does not fit what its task did |
  | `task_end` | a task ended for a reason that nothing explains |
  | `reports` | failures of tasks and `processing_failed` events are not the same number |

  A result has the violations, the first of each kind with its number; all other counts are figures.

  ## With retries

  With `retries: true` the buffer has `:max_attempts`, so an entry is in it until the processor has succeeded. Two thirds of
  the seeds try for ever, of them half without `:dead_letter`; the others give an entry up after its fourth attempt. Another
  ledger, `Retries`, decides on a verdict when a batch comes, by chance: all succeed, all or some fail, some are cancelled,
  the processor snoozes, raises, throws, exits, is killed, or hangs until its time is up. At times the sink is away for some
  batches, and some entries are bad: their batches fail until these are alone. For the ledger the sink has applied every batch,
  also one that fails. Writers also use `put_new`, `fetch` and `stale: :error`, and flush.

  The writers note each write when its call has returned, and the ledger notes each batch before its processor returns
  (`Accepted`). So all of them know what the buffer must have, what it may have let go, and what must not come any more.

  In a counter a failed entry is added to what waits. So the next entry of its key has to begin with the same addition, also
  after a death if the batch was not settled. While the order is lost, sums and counts are added up: at the end those of each
  key are what was added, whether a batch of a dead task counts or not.

  There are no windows: whatever dies, nothing may be missing. A task that dies has perhaps not settled its batch, so only
  this batch may come again. After a start with another number of partitions the order is not promised until all that was
  left is through: the sink is healthy and the buffer is flushed until then, and what comes out of order is only counted.

  | violation | meaning |
  |---|---|
  | `lost` | at the end a write has neither succeeded nor was it replaced, deleted or given up |
  | `falls` | an entry came after a later one of its key |
  | `again` | an entry came that had succeeded or was given up, though its task lived to settle it |
  | `retried` | a failed entry came again that was replaced or deleted before the processor returned |
  | `deleted`, `replaced` | an entry came in its first batch after that, though it was not in a batch yet |
  | `out_of_order`, `again` | of a queue: a batch is not what has failed, in its order, and then the next new items |
  | `wrong`, `never_written`, `wrong_partition`, `empty_batch` | as above |
  | `wrong_reads` | a read has not found the last write, though it has neither succeeded nor was given up; or another one |
  | `wrong_results` | `put_new` or a stale `put_newer` was done although there is an entry, or refused although there is none |
  | `flush_is_not_through` | a flush has returned `:ok`, and something that its caller had written before is not through |
  | `flush_hangs` | a flush has not returned in time |
  | `batch_size` | a batch has more than `batch_size / 4^a` entries, of which one has failed `a` times |
  | `too_often` | an entry came again after its last attempt |
  | `given_up_early`, `not_given_up` | the entries that `:dead_letter` gets are not those whose attempts are used up, or that were cancelled |
  | `pause` | a batch came before the end of a pause, or a pause is too short. Only a flush or a stop ends a pause |
  | `info` | at the end, when all is through, the totals of `info/1` do not add up, or the bound counts entries that are not there |
  | `time_limit` | a processor that hangs was not killed when its time was up |
  | `two_at_a_time` | two tasks of a partition, or two with the same entry, were in the processor |
  | `task_outlives_its_entries` | a task of a killed tree is alive when its entries have been given to another |
  | `batch_event`, `retry_event`, `stop_event`, `exception_event`, `reports` | the telemetry events of a task are not those of its verdicts |
  | `task_end` | as above |

  ## Faults

  `Faults.in_processor/0` are the first two rows, `Faults.all/0` are all but the last two, which need retries.

  | fault | what happens |
  |---|---|
  | `raise`, `throw`, `exit`, `kill` | the processor fails in this way |
  | `slow`, `hang` | the processor takes some milliseconds, or hangs and is killed |
  | `kill_task`, `kill_partition`, `kill_task_supervisor` | one of these processes is killed |
  | `kill_supervisor`, `kill_tree` | the supervisor is killed, alone or with all its children |
  | `owner_dies` | the process is killed that has started the buffer |
  | `stop`, `stop_while_hanging` | the buffer is stopped, perhaps while its processor hangs |
  | `kill_at_stop` | processes of the buffer are killed while it stops |
  | `change_partitions` | the buffer is stopped, and starts with another number of partitions |
  | `write_list`, `kill_writer` | a process writes a long list, and is perhaps killed |
  | `update_options` | the batch size, the interval or the timeout changes |
  | `collect_garbage` | garbage is collected in the processes of the buffer |
  | `purge_code` | a value refers to code that is purged while the value waits |
  | `kill_tree_at_work`, `change_partitions_at_work` | the tree is killed while a task that traps exits is at work; the next one has the same or another number of partitions |
  | `flush` | a process asks for a flush, and perhaps does not wait |

  ## To run a seed again

      mix run bench/conservation.exs --seed 3 --queue --faults --writes 1000000
      mix run bench/conservation.exs --seed 3 --retries --faults --writes 1000000
      mix run bench/conservation.exs --seed 3 --counter --retries --faults --writes 1000000
      mix run bench/conservation.exs --seed 3 --retries --faults --max-size 8000
      CONSERVATION_SEED=3 mix test test/partitioned_buffer/conservation_test.exs

  The seed decides the calls of the writers and the faults, but not when the scheduler runs whom. So a violation may need
  several runs of its seed.

  ## The modules

  | module | its part |
  |---|---|
  | `Conservation` | a run from beginning to end |
  | `Writer` | a process that writes |
  | `Faults` | the process that owns the buffer and injects the faults |
  | `Ledger` | the process that compares the batches with the writes |
  | `Kind` | the behaviour for everything that differs between the kinds of buffers |
  | `Maps`, `History` | maps, and the writes to a key |
  | `Counters`, `Additions` | counters, and what is added to a key |
  | `Slots`, `Lists` | the keys of both, and the lists of faults |
  | `Queues`, `Item` | queues, and their items |
  | `Retries` | the ledger of a buffer with retries |
  | `Verdict` | what the processor of such a buffer does with a batch |
  | `Accepted` | what the writers and this ledger know of the keys of a map |
  | `Checks` | the behaviour for what differs between the kinds in this ledger |
  | `RetriedMaps`, `RetriedCounters`, `RetriedQueues` | these |
  | `Code` | values that refer to code that is purged |
  """

  alias PartitionedBuffer.Conservation.{Accepted, Faults, Kind, Ledger, Retries, Writer}

  @batch_sizes [1, 7, 100, 1_000]

  @type result() :: %{
          calls: map(),
          counts: map(),
          faults: map(),
          violations: map(),
          seconds: float()
        }

  @doc """
  Writes to a buffer of this package.

  Options: `:writes`, `:seed`, `:writers` (4), `:retries` (false), `:max_size` (`:infinity`; only with retries, and not below
  6,000) and `:faults` ([]), the kinds of faults.
  """
  @spec package(module(), keyword()) :: result()
  def package(kind, opts),
    do: if(opts[:retries], do: with_retries(kind, opts), else: without_retries(kind, opts))

  defp without_retries(kind, opts) do
    buffer = :"conservation_#{System.unique_integer([:positive])}"
    faults = Keyword.get(opts, :faults, [])
    batch_sizes = if :update_options in faults, do: [:table | @batch_sizes], else: [100]
    {:ok, ledger} = Ledger.start_link(kind, buffer, batch_sizes)

    options = [
      name: buffer,
      module: kind.buffer(),
      processor: Ledger.processor(ledger, kind),
      partitions: 2,
      processing_interval_ms: 1,
      processing_batch_size: 100
    ]

    faults =
      Faults.start_link(opts[:seed],
        kind: kind,
        options: options,
        ledger: ledger,
        batch_sizes: batch_sizes,
        faults: faults
      )

    target = fn call, opts -> Kind.refusable(fn -> kind.call(buffer, call, opts) end) end
    {written, figures} = write(kind, target, opts)
    injected = Faults.stop(faults)

    ledger
    |> Ledger.finish(written ++ injected.written)
    |> Map.merge(%{figures | faults: injected.counts})
    |> check_reads()
    |> check_reports(injected)
  end

  # The seed also chooses how often entries are tried, and whether there is a function for those that are given up.
  defp with_retries(kind, opts) do
    buffer = :"conservation_#{System.unique_integer([:positive])}"

    {max_attempts, dead_letter?} =
      elem({{:infinity, false}, {4, true}, {:infinity, true}}, rem(opts[:seed], 3))

    accepted = Accepted.new(max_attempts, dead_letter?)
    {:ok, ledger} = Retries.start_link(kind.retried(), buffer, 100, accepted)
    accepted = %{accepted | ledger: ledger}
    Retries.seed(ledger, opts[:seed])

    options = [
      name: buffer,
      module: kind.buffer(),
      processor: {Retries, :process, [ledger]},
      partitions: 2,
      processing_interval_ms: 1,
      processing_batch_size: 100,
      # A busy machine may take some hundred milliseconds for a call that does not hang.
      processing_timeout_ms: 1_000,
      max_attempts: max_attempts,
      retry_backoff_ms: {6, 20},
      max_size: Keyword.get(opts, :max_size, :infinity),
      full_timeout_ms: 600_000
    ]

    faults =
      Faults.start_link(opts[:seed],
        kind: kind,
        options:
          if(dead_letter?, do: [dead_letter: {Retries, :dead_letter, [ledger]}] ++ options, else: options),
        ledger: ledger,
        batch_sizes: @batch_sizes,
        faults: Keyword.get(opts, :faults, []),
        accepted: accepted
      )

    target = fn call, opts -> Kind.refusable(fn -> kind.call(buffer, call, opts) end) end
    {written, figures} = write(kind, target, [accepted: accepted] ++ opts)
    injected = Faults.stop(faults)
    ledger |> Retries.finish(written ++ injected.written) |> Map.merge(%{figures | faults: injected.counts})
  end

  @doc "Does the same writes to the documented ETS design, a `design` of `bench/support`."
  @spec ets_design(module(), module(), keyword()) :: result()
  def ets_design(kind, design, opts) do
    {:ok, ledger} = Ledger.start_link(kind, nil, nil)
    handle = design.new(partitions: 2)
    flusher = Task.async(fn -> flush_design(design, handle, &Ledger.process(&1, ledger, kind)) end)

    {written, figures} = write(kind, fn call, _opts -> call_design(kind, design, handle, call) end, opts)

    send(flusher.pid, :stop)
    Task.await(flusher, :infinity)
    ledger |> Ledger.finish(written) |> Map.merge(figures) |> check_reads()
  end

  defp call_design(kind, design, handle, call) do
    kind.call_design(design, handle, call)
  rescue
    # A flush has taken the table away, so there is none, or it has no size.
    _no_table in [ArgumentError, ArithmeticError] -> :refused
  end

  defp flush_design(design, handle, processor) do
    design.drain(handle, 100, processor)

    receive do
      :stop -> design.drain(handle, 100, processor) && design.free(handle)
    after
      1 -> flush_design(design, handle, processor)
    end
  end

  defp write(kind, target, opts) do
    writers = Keyword.get(opts, :writers, 4)
    started = System.monotonic_time(:millisecond)

    for number <- 0..(writers - 1) do
      Writer.start_link(number, opts[:seed],
        kind: kind,
        writers: writers,
        target: target,
        left: div(opts[:writes], writers),
        accepted: opts[:accepted],
        hibernate: Keyword.get(opts, :faults, []) != []
      )
    end

    results = for _ <- 1..writers, do: receive(do: ({:written, written, calls} -> {written, calls}))
    seconds = (System.monotonic_time(:millisecond) - started) / 1_000

    {written, calls} = Enum.unzip(results)
    calls = Enum.reduce(calls, &Map.merge(&1, &2, fn _call, a, b -> a + b end))
    {Enum.concat(written), %{calls: calls, faults: %{}, seconds: seconds}}
  end

  defp check_reads(result) do
    case result.calls[:wrong_reads] do
      nil -> result
      count -> put_in(result.violations[:wrong_reads], count)
    end
  end

  # Each failure of a task is reported by `processing_failed`. Deaths of other processes at the same time may hide some.
  defp check_reports(result, %{unreported: unreported, unseen: unseen}) do
    failed = Map.get(result.counts, :failed, 0)
    reported = Map.get(result.counts, :processing_failed, 0)

    if failed - reported <= unreported and reported - failed <= unseen,
      do: result,
      else: put_in(result.violations[:reports], {failed, reported, unreported, unseen})
  end
end
