defmodule PartitionedBuffer.Conservation do
  @moduledoc """
  Checks that all writes to a buffer come out once and in order, also while its processes die.

  ## A run

  `package/2` starts a buffer of two partitions that flush every millisecond, and four writers. A
  writer makes random calls of all kinds until its share of the writes is done. Another process owns
  the buffer and injects a fault every few milliseconds. At the end the buffer stops, which
  processes the rest, and the ledger compares the writes with the batches of the processor.
  `ets_design/3` does the same writes to an ETS design of `bench/support`, without faults.

  ## What the ledger knows

  The processor sends each batch to the ledger before it does anything else, and then obeys its
  verdict: to return, or to fail in one of several ways. The ledger also gets the telemetry events
  of the buffer, and monitors its tasks.

  Entries reveal the writes that they are made of:

    * In a map the writes to a key follow from the key's number (`History`), and one writer writes
      to a key. So each entry has to be the result of the key's next writes after its last entry.
    * In a counter the additions to a key follow from the key's number as well (`Additions`): sum
      and count of an entry reveal its additions. They have to follow the additions of the key's
      last entry, or a delete.
    * An item of a queue has its stream, its partition, and its number there (`Item`). So the next
      item of a stream in a partition is certain.

  A writer reports at the end which writes were acknowledged, and which ones a call that raised may
  have done.

  A batch is lost with its processor. The ledger saw this batch, so nothing is missing. Only a task
  killed outside of the processor can lose an unseen batch, just after the claim. Such a death is a
  *window*. Missing entries count as `unseen` if a window came since the last entry of their key, or
  of their stream in their partition. Otherwise they are `lost`.

  ## Violations

  | violation | meaning |
  |---|---|
  | `lost` | an acknowledged write did not come, and no window excuses it |
  | `again` | an entry came twice |
  | `wrong` | no writes give this entry, or its term was changed |
  | `out_of_order` | an item came after a later one of its stream |
  | `never_written` | more items came than were pushed |
  | `wrong_partition` | an item came from another partition than its own |
  | `wrong_reads` | a read found another value than the last write |
  | `empty_batch` | a batch was empty |
  | `batch_size` | a batch had a size that was never set, or was short without being the last of its flush |
  | `two_at_a_time` | two tasks of one partition were in the processor |
  | `stop_event`, `exception_event` | a telemetry event does not fit what its task did |
  | `task_end` | a task ended for an unexplained reason |
  | `reports` | failures of tasks and `processing_failed` events are not the same number |

  A result has the violations, the first of each kind with its number; all other counts are figures.

  ## With retries

  With `retries: true` the buffer has `:max_attempts`, so an entry stays in it until the processor
  succeeds. Two thirds of the seeds retry without a limit, half without `:dead_letter`; the others
  give an entry up after its fourth attempt. Another ledger, `Retries`, decides on a verdict when a
  batch comes, by chance: all succeed, all or some fail, some are cancelled, the processor snoozes,
  raises, throws, exits, is killed, or hangs until its time is up. At times the sink is away for
  some batches. For the ledger the sink stores every batch, even a failed one. Writers also use
  `put_new`, `fetch` and `stale: :error`, and flush. With `order: :none` the queue has this option.

  The option `:refuses` adds a way in which the sink refuses:

  | refuses | what fails |
  |---|---|
  | `:by_chance` | a batch with one of a few bad entries |
  | `:keys` | a batch with one of many bad entries |
  | `:size` | a batch of more than 10 entries |
  | `:tenant` | a batch with entries of a tenth of the keys, or only these entries |
  | `:turns` | each batch, for 20 of 60 milliseconds |
  | `:mixed` | some entries of each third batch; others are cancelled, and others succeed |

  A bad entry is bad until it failed some times. After the writers have ended it is bad for good,
  and the sink fails by nothing else. Then flushes have to store all good entries, except in a
  queue with an order.

  The ledger computes the isolation of each partition from the verdicts (`Isolation`).

  The writers note each write after the return of its call, and the ledger notes each batch before
  its processor returns (`Accepted`). So both can tell which entries the buffer must have, which it
  may have released, and which must not come again.

  In a counter a failed entry is added to the waiting one. So the next entry of its key has to begin
  with the same addition, also after a death if the batch was not settled. While the order is lost,
  sums and counts are added up: at the end the entries of each key are all its additions, whether a
  batch of a dead task counts or not.

  Windows do not exist here: whatever dies, no entry may be missing. The death of a task may leave
  its batch unsettled, so only this batch may come again. After a start with another partition count
  the order is not promised until all leftovers are through: the sink is healthy and the buffer is
  flushed until then, and entries out of order are only counted.

  | violation | meaning |
  |---|---|
  | `lost` | at the end a write neither succeeded nor was it replaced, deleted or given up |
  | `falls` | an entry came after a later one of its key |
  | `again` | an entry came again after its success or after it was given up, though its task lived to settle it |
  | `retried` | a failed entry came again that was replaced or deleted before the processor returned |
  | `deleted`, `replaced` | an entry came in its first batch after that, though it was not in a batch yet |
  | `out_of_order`, `again` | of a queue: a batch is not the failed items, in their order, and then the next new items |
  | `wrong`, `never_written`, `wrong_partition`, `empty_batch` | as above |
  | `wrong_reads` | a read missed the last write, which neither succeeded nor was given up; or found another one |
  | `wrong_results` | `put_new` or a stale `put_newer` was done for a key with an entry, or refused for a key without one |
  | `flush_is_not_through` | a flush returned `:ok`, and an earlier write of its caller is not through |
  | `flush_hangs` | a flush did not return in time |
  | `batch_size` | a batch has more entries than the batch size, or than the limit of the partition |
  | `split` | an event has another count or limit than those of the failed batch, or the entries of a split batch do not come again at once |
  | `not_isolated` | bad entries keep a good one from the sink |
  | `too_often` | an entry came again after its last attempt |
  | `given_up_early`, `not_given_up` | `:dead_letter` gets other entries than those exhausted or cancelled |
  | `pause` | a batch came before the end of a pause, which only a flush or a stop ends; or a pause is too short or too long; or a failure began none that had to, or one though some entries succeeded |
  | `info` | at the end the totals of `info/1` do not add up, or the bound counts missing entries |
  | `time_limit` | a hanging processor was not killed when its time was up |
  | `two_at_a_time` | two tasks of a partition, or two with the same entry, were in the processor |
  | `task_outlives_its_entries` | a task of a killed tree is alive after another task got its entries |
  | `batch_event`, `retry_event`, `stop_event`, `exception_event`, `reports` | the telemetry events of a task do not match its verdicts |
  | `task_end` | as above |

  ## Faults

  `Faults.in_processor/0` are the first two rows, `Faults.all/0` are all but the last two, which
  need retries.

  | fault | what happens |
  |---|---|
  | `raise`, `throw`, `exit`, `kill` | the processor fails in this way |
  | `slow`, `hang` | the processor takes some milliseconds, or hangs and is killed |
  | `kill_task`, `kill_partition`, `kill_task_supervisor` | this process is killed |
  | `kill_supervisor`, `kill_tree` | the supervisor is killed, alone or with all its children |
  | `owner_dies` | the process that started the buffer is killed |
  | `stop`, `stop_while_hanging` | the buffer is stopped, perhaps while its processor hangs |
  | `kill_at_stop` | processes of the buffer are killed while it stops |
  | `change_partitions` | the buffer is stopped, and starts with another partition count |
  | `write_list`, `kill_writer` | a process writes a long list, and is perhaps killed |
  | `update_options` | the batch size, the interval or the timeout changes |
  | `collect_garbage` | garbage is collected in the processes of the buffer |
  | `purge_code` | a value refers to code that is purged while the value waits |
  | `kill_tree_at_work`, `change_partitions_at_work` | the tree is killed during the work of a task that traps exits; the next one has the same or another partition count |
  | `flush` | a process requests a flush, and perhaps does not wait |

  ## To run a seed again

      mix run bench/conservation.exs --seed 3 --queue --faults --writes 1000000
      mix run bench/conservation.exs --seed 3 --retries --faults --writes 1000000
      mix run bench/conservation.exs --seed 3 --counter --retries --faults --writes 1000000
      mix run bench/conservation.exs --seed 3 --retries --faults --max-size 8000
      mix run bench/conservation.exs --seed 3 --queue --order none --retries --refuses tenant
      CONSERVATION_SEED=3 mix test test/partitioned_buffer/conservation_test.exs

  The seed decides the calls of the writers and the faults, but not the scheduling. So a violation
  may need several runs of its seed.

  ## The modules

  | module | its part |
  |---|---|
  | `Conservation` | a run from beginning to end |
  | `Writer` | a process that writes |
  | `Faults` | the process that owns the buffer and injects the faults |
  | `Ledger` | the process that compares the batches with the writes |
  | `Kind` | the behaviour for everything that differs between the kinds of buffers |
  | `Maps`, `History` | maps, and the writes to a key |
  | `Counters`, `Additions` | counters, and the additions to a key |
  | `Slots`, `Lists` | the keys of both, and the lists of faults |
  | `Queues`, `Item` | queues, and their items |
  | `Retries` | the ledger of a buffer with retries |
  | `Verdict` | the behaviour of the processor of such a buffer with a batch |
  | `Isolation` | the limit of a partition, and whether its next failure begins a pause |
  | `Accepted` | the notes of the writers and this ledger on the keys of a map |
  | `Checks` | the behaviour for the differences between the kinds in this ledger |
  | `RetriedMaps`, `RetriedCounters`, `RetriedQueues`, `RetriedItems` | its modules; the last is for queues without an order |
  | `Code` | values that refer to purged code |
  """

  alias PartitionedBuffer.Conservation.{Accepted, Faults, Kind, Ledger, RetriedItems, Retries, Writer}

  @batch_sizes [1, 7, 100, 1_000]

  @refuses [:by_chance, :keys, :size, :tenant, :turns, :mixed]

  @type result() :: %{
          calls: map(),
          counts: map(),
          faults: map(),
          violations: map(),
          seconds: float()
        }

  @doc "The ways in which the sink of a buffer with retries may refuse."
  @spec refuses() :: [atom()]
  def refuses, do: @refuses

  @doc """
  Writes to a buffer of this package.

  Options: `:writes`, `:seed`, `:writers` (4), `:retries` (false) and `:faults` ([]), the kinds of
  faults. Only with retries: `:max_size` (`:infinity`; not below 6,000), `:refuses` (`:by_chance`)
  and `:order` (`:strict`).
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
    injected = Faults.stop(faults, written)

    ledger
    |> Ledger.finish(written ++ injected.written)
    |> Map.merge(%{figures | faults: injected.counts})
    |> check_reads()
    |> check_reports(injected)
  end

  # The seed also chooses the number of attempts, and whether the buffer has `:dead_letter`.
  defp with_retries(kind, opts) do
    buffer = :"conservation_#{System.unique_integer([:positive])}"

    {max_attempts, dead_letter?} =
      elem({{:infinity, false}, {4, true}, {:infinity, true}}, rem(opts[:seed], 3))

    accepted = Accepted.new(max_attempts, dead_letter?)
    checks = if opts[:order] == :none, do: RetriedItems, else: kind.retried()
    {:ok, ledger} = Retries.start_link(checks, buffer, 100, accepted)
    accepted = %{accepted | ledger: ledger}
    Retries.seed(ledger, opts[:seed], opts[:refuses] || :by_chance)

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

    options = if opts[:order] == :none, do: [order: :none] ++ options, else: options
    options = if dead_letter?, do: [dead_letter: {Retries, :dead_letter, [ledger]}] ++ options, else: options

    faults =
      Faults.start_link(opts[:seed],
        kind: kind,
        options: options,
        ledger: ledger,
        batch_sizes: @batch_sizes,
        faults: Keyword.get(opts, :faults, []),
        accepted: accepted
      )

    target = fn call, opts -> Kind.refusable(fn -> kind.call(buffer, call, opts) end) end
    {written, figures} = write(kind, target, [accepted: accepted] ++ opts)
    injected = Faults.stop(faults, written)
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
    # A flush took the table away, so it is missing, or has no size.
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

  # `processing_failed` reports each failure of a task. Deaths of other processes at the same time
  # may hide some.
  defp check_reports(result, %{unreported: unreported, unseen: unseen}) do
    failed = Map.get(result.counts, :failed, 0)
    reported = Map.get(result.counts, :processing_failed, 0)

    if failed - reported <= unreported and reported - failed <= unseen,
      do: result,
      else: put_in(result.violations[:reports], {failed, reported, unreported, unseen})
  end
end
