defmodule PartitionedBuffer.Conservation.Retries do
  @moduledoc false
  # The ledger of a buffer with `:max_attempts`. `PartitionedBuffer.Conservation` describes its
  # notes and the violations.
  #
  # The ledger decides on the verdict when a batch comes, and notes its meaning for each entry. The
  # next sign of the task shows that the buffer acted on the verdict: then the batch is *settled*.
  # The death of a task before that may leave its batch unsettled, so all its entries may come
  # again. For the ledger the sink stores each batch, even one with a failure as verdict: the
  # stricter view.

  use GenServer

  @compile {:no_warn_undefined, :telemetry}

  import PartitionedBuffer.Conservation.Ledger, only: [count: 2, count: 3]

  alias PartitionedBuffer.Native
  alias PartitionedBuffer.Conservation.{Accepted, Isolation, Ledger, Verdict}

  # `batch` is the number of the last batch until it is settled, and `verdict` the verdict on it.
  # `failed` is the number of its failed entries, `accounted` the number that events reported, and
  # `reported` the number of failures. `split` are the entries of the last batch if it was split.
  # `entries` are the entries to be retried, and `to_bury` those
  # to be given up. `succeeded` counts the others, of all batches. `other` is a task without events,
  # which gives up the leftovers of a stop. `sent` is the time at which it sent the batch. Entries
  # deleted before `read_after`, or replaced before `flush_after`, are not in the batch: the flush
  # began later.
  defmodule Task do
    @moduledoc false
    defstruct [
      :partition,
      :partition_count,
      :trigger,
      :started,
      :starts,
      :flush_after,
      :read_after,
      :generation,
      :batch,
      :sent,
      :returned,
      :verdict,
      split: [],
      attempts: 0,
      size: 0,
      at_work: false,
      failed: 0,
      accounted: 0,
      to_bury: [],
      entries: [],
      succeeded: 0,
      reported: 0,
      stopped: false,
      other: false
    ]
  end

  # `checks` is the module of the kind, and `state` its state. `batches` is a table of the batches
  # that are settled or whose task died. `sizes` are the times at which the batch size changed, the
  # last first. `generation` is the present start of the buffer, nil while it starts, and `starts` the number of
  # starts. `pauses` has the end of the pause of each partition, and the task that began it;
  # `pauses_by_others` has the begin and the end of a pause that another partition's task began. `last`
  # has the last time of its work, `rests` a time before the flush of which it may have a rest, and
  # `isolations` what is known of its isolation. `faults` are the last ones. `refuses` is the way of the
  # sink, `outage` is the number of batches about to fail, `flushes` that of requested flushes, and `holds`
  # that of holders of the buffer. `deaths?` if a task died: its heir may know of a failure that no
  # batch shows, and may call `:dead_letter` again. `not_given_up` are entries overdue to be given up,
  # unless they were replaced or deleted. `not_again` are the entries of split batches that did not
  # come again at once. `suspects` are entries that somebody missed, unless they were given up.
  defstruct [
    :checks,
    :state,
    :accepted,
    :buffer,
    :batches,
    :sizes,
    generation: nil,
    starts: 0,
    pauses: %{},
    pauses_by_others: %{},
    rests: %{},
    last: %{},
    isolations: %{},
    refuses: :by_chance,
    outage: 0,
    healthy?: false,
    calm?: false,
    disordered?: false,
    tasks: %{},
    next: 1,
    armed: [],
    deaths?: false,
    flushes: 0,
    holds: 0,
    faults: [],
    not_given_up: [],
    not_again: [],
    suspects: [],
    counts: %{},
    violations: %{},
    finish: nil
  ]

  @type t() :: %__MODULE__{}

  # A pause is shorter than in its event by up to this, in milliseconds: the VM's timers are coarse.
  @tolerance 2

  # Half of the least `:retry_backoff_ms` that the faults set, and the most.
  @pauses 3..30

  # The shortest pauses of all `:retry_backoff_ms`, for a snooze; with a function it is a second.
  @shortest_pauses [6, 10, 1_000]

  # The pauses of a stop.
  @pauses_of_stop [6, 7, 10]

  # The sink that refuses by size takes up to this many entries.
  @most_taken 10

  @long_ago Bitwise.bsl(-1, 62)

  @events for suffix <- [
                [:processing, :start],
                [:processing, :stop],
                [:processing, :exception],
                [:batch, :stop],
                [:batch, :exception],
                [:processing_failed],
                [:split],
                [:retry],
                [:dead_letter]
              ],
              do: [:partitioned_buffer, :partition | suffix]

  ## In the processor

  def process(entries, ledger) do
    # As the ledger has it: otherwise the writers would leave time for few flushes.
    Process.flag(:priority, :high)
    ask(ledger, {:batch, self(), System.monotonic_time(), entries})
  end

  def dead_letter(entries, reason, ledger) do
    Process.flag(:priority, :high)
    ask(ledger, {:dead_letter, self(), entries, reason})
  end

  defp ask(ledger, message) do
    send(ledger, message)

    receive do
      {:verdict, verdict} ->
        Verdict.obey(verdict, fn -> send(ledger, {:returning, self(), System.monotonic_time()}) end)
    end
  end

  def event([_, _ | suffix], measurements, metadata, {ledger, buffer}) do
    if metadata.buffer == buffer do
      metadata = Map.put(metadata, :partition_count, Native.partition_count(buffer))
      # Read by the task, since another one may flush before the ledger gets the event.
      metadata = if suffix == [:processing, :stop], do: Map.merge(metadata, left(metadata)), else: metadata
      send(ledger, {:event, suffix, measurements, metadata, System.monotonic_time(), self()})
    end
  end

  # Whether the flush of a partition has a rest, and whether the partition pauses.
  defp left(%{buffer: buffer, partition: partition}) do
    %{partitions: partitions} = PartitionedBuffer.info(buffer)
    number = Enum.find_index(partitions, &(&1.name == partition))
    learned = Native.learned(Native.run(buffer), number)

    %{
      rest?: Enum.at(partitions, number).in_flight > 0,
      pauses?: not match?({_failures, _failing_ms, nil, _failed}, learned)
    }
  rescue
    _not_running in [ArgumentError] -> %{rest?: true, pauses?: true}
  end

  ## API

  @doc "Starts a ledger of a buffer."
  def start_link(checks, buffer, batch_size, accepted) do
    {:ok, ledger} = GenServer.start_link(__MODULE__, {checks, buffer, batch_size, accepted})
    :telemetry.attach_many(buffer, @events, &__MODULE__.event/4, {ledger, buffer})
    {:ok, ledger}
  end

  @doc "The verdicts follow from this seed, and from the way in which the sink refuses."
  def seed(ledger, seed, refuses), do: GenServer.call(ledger, {:seed, seed, refuses})

  @doc "A fault is about to be injected."
  def fault(ledger, kind), do: send(ledger, {:fault, kind})

  @doc """
  Calls a function that requests a flush. The end of a flush without a waiting caller is unknown.
  """
  def flushing(ledger, flush) do
    send(ledger, {:flushes, 1})
    flush.()
  after
    Process.send_after(ledger, {:flushes, -1}, 100)
  end

  @doc "Calls a function that holds the buffer for a while."
  def holding(ledger, hold) do
    send(ledger, {:holds, 1})
    hold.()
  after
    # Until then the tasks learn that the hold is over.
    Process.send_after(ledger, {:holds, -1}, 100)
  end

  @doc "Adds a verdict on one of the next batches."
  def arm(ledger, verdict), do: send(ledger, {:arm, verdict})

  @doc "Waits until all tasks ended; returns counts and violations."
  def finish(ledger, written) do
    result = GenServer.call(ledger, {:finish, written}, :infinity)
    GenServer.stop(ledger)
    result
  end

  @doc "The batch size changes now."
  def batch_size(ledger, size), do: send(ledger, {:batch_size, System.monotonic_time(), size})

  @doc "The buffer is about to start, with this batch size and without earlier pauses."
  def starting(ledger, batch_size) do
    batch_size(ledger, batch_size)
    send(ledger, {:generation, nil})
  end

  @doc "The buffer runs, and all processes of the last one are dead."
  def started(ledger), do: send(ledger, {:generation, make_ref()})

  @doc "Lets the processor fail with batches only if an entry is bad."
  def calm(ledger), do: GenServer.call(ledger, :calm, :infinity)

  @doc "The good ones among the writes that are not through."
  def good_ones_left(ledger, written), do: GenServer.call(ledger, {:good_ones_left, written}, :infinity)

  @doc "Lets the processor succeed with all batches."
  def heal(ledger), do: GenServer.call(ledger, {:heal, true}, :infinity)

  @doc "The order is lost, and the processor succeeds with all batches."
  def disorder(ledger), do: GenServer.call(ledger, {:disorder, true}, :infinity)

  @doc "The order is kept again, and the processor fails again."
  def order(ledger), do: GenServer.call(ledger, {:disorder, false}, :infinity)

  @doc "Whether all earlier writes are through."
  def through?(ledger, what), do: GenServer.call(ledger, {:through?, what}, :infinity)

  @doc """
  A writer missed its entry of a key. Perhaps the entry was given up, and `:dead_letter` is next.
  """
  def suspect(ledger, kind, {id, number}, what), do: send(ledger, {:suspect, kind, {id, number}, what})

  @doc "A writer found a violation."
  def report(ledger, kind, what), do: send(ledger, {:violation, kind, what})

  ## Callbacks

  @impl GenServer
  def init({checks, buffer, batch_size, accepted}) do
    Process.flag(:priority, :high)

    {:ok,
     %__MODULE__{
       checks: checks,
       state: checks.new(),
       accepted: accepted,
       buffer: buffer,
       batches: :ets.new(:batches, [:set]),
       sizes: [{System.monotonic_time(), batch_size}]
     }}
  end

  @impl GenServer
  def handle_call({:seed, seed, refuses}, _from, state) do
    :rand.seed(:exsss, {seed, 1, 1})
    {:reply, :ok, %{state | refuses: refuses}}
  end

  def handle_call(:calm, _from, state), do: {:reply, :ok, %{state | calm?: true, armed: [], outage: 0}}

  def handle_call({:good_ones_left, written}, _from, state) do
    left = Enum.flat_map(written, &state.checks.left(&1, state))
    {:reply, Enum.reject(left, &bad?(state, &1, 0)), state}
  end

  def handle_call({:code_came?, number}, _from, state),
    do: {:reply, state.checks.through?({:code, number}, state), state}

  def handle_call({:through?, what}, _from, state), do: {:reply, state.checks.through?(what, state), state}
  def handle_call({:heal, healthy?}, _from, state), do: {:reply, :ok, heal(state, healthy?)}

  def handle_call({:disorder, disordered?}, _from, state) do
    Accepted.next_phase(state.accepted)
    {:reply, :ok, heal(%{state | disordered?: disordered?}, disordered?)}
  end

  def handle_call({:finish, written}, from, state) do
    {:noreply, finish_if_idle(%{state | finish: {from, written}, armed: []})}
  end

  @impl GenServer
  # The task may be dead since it sent the batch, and the batch given back.
  def handle_info({:batch, pid, time, entries}, state) do
    state = state |> known(pid) |> bury_dead(pid) |> settled(pid)
    state = put_in(state.tasks[pid].sent, time)
    task = state.tasks[pid]
    state = state |> check_alone(pid) |> check_pause(task, time)
    {batch, state} = next(state, pid)
    {known, state} = arrive(state, entries, batch)
    attempts = known |> Enum.map(& &1.attempts) |> Enum.max(fn -> 0 end)
    size = length(entries)
    state = if size == 0, do: violation(state, :empty_batch, pid), else: state
    state = check_size(state, task, size)
    {verdict, state} = verdict(state, entries, known)
    {:noreply, state |> judge(pid, batch, known, verdict, attempts) |> answer(pid, verdict)}
  end

  def handle_info({:dead_letter, pid, entries, reason}, state) do
    state = state |> known(pid) |> bury_dead(pid)
    verdict = dead_letter_verdict(state, reason)
    state = count(state, :dead_letters, length(entries))
    {:noreply, state |> check_alone(pid) |> dead_letter(pid, entries, reason) |> answer(pid, verdict)}
  end

  def handle_info({:returning, pid, time}, state) do
    task = state.tasks[pid]
    state = update_in(state.tasks[pid], &%{&1 | at_work: false, returned: time})
    state = if Verdict.hangs?(task.verdict), do: violation(state, :time_limit, task), else: state

    if task.failed > 0 and task.accounted == 0,
      do: {:noreply, state.checks.returning({task.batch, task}, time, state)},
      else: {:noreply, state}
  end

  def handle_info({:violation, kind, what}, state), do: {:noreply, violation(state, kind, what)}

  def handle_info({:suspect, kind, write, what}, state),
    do: {:noreply, update_in(state.suspects, &[{kind, write, {what, after: state.faults}} | &1])}

  # A partition that dies before its requested flush ends its pause first. The message is sent
  # before the partition is killed, so a pause may begin and end between both: see
  # `being_killed?/1`.
  def handle_info({:fault, :kill_partition}, %{flushes: flushes} = state) when flushes > 0,
    do:
      {:noreply,
       %{state | faults: Enum.take([:kill_partition | state.faults], 3), pauses: %{}, pauses_by_others: %{}}}

  def handle_info({:flushes, by}, state), do: {:noreply, update_in(state.flushes, &(&1 + by))}
  def handle_info({:holds, by}, state), do: {:noreply, update_in(state.holds, &(&1 + by))}

  def handle_info({:fault, kind}, state),
    do: {:noreply, %{state | faults: Enum.take([kind | state.faults], 3)}}

  def handle_info({:arm, verdict}, state), do: {:noreply, %{state | armed: state.armed ++ [verdict]}}
  def handle_info(:disarm, state), do: {:noreply, %{state | armed: []}}

  # A failed start is repeated.
  def handle_info({:batch_size, _time, size}, %{sizes: [{_earlier, size} | _]} = state), do: {:noreply, state}

  def handle_info({:batch_size, time, size}, state),
    do: {:noreply, %{state | sizes: Enum.take([{time, size} | state.sizes], 40)}}

  # A task of a buffer that ended finds no more entries.
  def handle_info({:generation, generation}, state) do
    last? = fn {task, time, _faults} ->
      task.generation == state.generation and state.last[task.partition] == time
    end

    {:noreply,
     %{
       state
       | generation: generation,
         starts: if(generation, do: state.starts, else: state.starts + 1),
         pauses: %{},
         pauses_by_others: %{},
         isolations: %{},
         not_again: Enum.reject(state.not_again, last?)
     }}
  end

  def handle_info({:event, [:processing, :start], measurements, metadata, _time, pid}, state) do
    started = measurements.monotonic_time
    partition = number(metadata.partition)

    task = %Task{
      partition: partition,
      partition_count: metadata.partition_count,
      trigger: metadata.trigger,
      started: started,
      starts: state.starts,
      flush_after: flush_after(state, partition),
      read_after: started,
      generation: state.generation
    }

    state = put_in(state.rests[partition], task.flush_after)

    # A requested flush does not wait, and ends the pause.
    state =
      if task.trigger in [:flush, :stop],
        do: %{
          state
          | pauses: Map.delete(state.pauses, partition),
            pauses_by_others: Map.delete(state.pauses_by_others, partition)
        },
        else: state

    {:noreply, state |> known(pid, task) |> count(:flushes)}
  end

  def handle_info({:event, [:processing, :stop], measurements, metadata, time, pid}, state) do
    state = settled(state, pid)
    %Task{} = task = state.tasks[pid]
    state = if metadata.pauses?, do: state, else: check_again(state, task, time)
    state = put_in(state.tasks[pid].stopped, true)
    state = %{state | last: Map.put(state.last, task.partition, time)} |> end_flush(task, metadata.rest?)

    if not task.at_work and measurements.size == task.succeeded,
      do: {:noreply, state},
      else: {:noreply, violation(state, :stop_event, {measurements.size, task})}
  end

  # `AtLeastOnce` catches every failure of a processor. Only a task of a killed supervisor finds no
  # options.
  def handle_info({:event, [:processing, :exception], _measurements, metadata, _time, _pid}, state) do
    case metadata.reason do
      %ArgumentError{} -> {:noreply, count(state, :no_options)}
      other -> {:noreply, violation(state, :exception_event, other)}
    end
  end

  def handle_info({:event, [:batch, :stop], measurements, metadata, _time, pid}, state) do
    %Task{verdict: verdict} = task = state.tasks[pid]
    outcome = with {:snooze, _ms, _scope} <- verdict.outcome, do: :snooze

    if match?({:return, _term}, verdict.then) and metadata.outcome == outcome,
      do: {:noreply, check_event(state, task, measurements, metadata)},
      else: {:noreply, violation(state, :batch_event, {metadata, task})}
  end

  def handle_info({:event, [:batch, :exception], measurements, metadata, _time, pid}, state) do
    task = state.tasks[pid]

    state =
      case {task.verdict.then, metadata.kind, metadata.reason} do
        {:raise, :error, %RuntimeError{message: "as told"}} -> count(state, :raised)
        {:throw, :throw, :as_told} -> count(state, :threw)
        {:exit, :exit, :as_told} -> count(state, :exited)
        _ -> violation(state, :batch_event, {metadata, task})
      end

    {:noreply, check_event(state, task, measurements, metadata)}
  end

  def handle_info({:event, [:processing_failed], _measurements, _metadata, _time, pid}, state) do
    state = count(state, :processing_failed)
    {:noreply, update_in(state.tasks[pid].reported, &(&1 + 1))}
  end

  # A task without a batch splits the one of a dead task.
  def handle_info({:event, [:split], %{count: count, limit: limit}, _metadata, _time, pid}, state) do
    %Task{} = task = state.tasks[pid]
    fits? = task.batch == nil or (count == task.size and task.split != [])
    fits? = fits? and limit == Isolation.limit(count)
    state = if fits?, do: state, else: violation(state, :split, {{count, limit}, task})
    state = update_in(state.tasks[pid].accounted, &(&1 + count))
    state = state |> close(task.batch, :settled) |> learn(task, &Isolation.split(&1, count))
    {:noreply, state |> count(:splits) |> count(:split, count)}
  end

  def handle_info({:event, [:retry], measurements, metadata, time, pid}, state) do
    accounted = measurements.count + measurements.superseded
    state = update_in(state.tasks[pid].accounted, &(&1 + accounted))
    %Task{} = task = state.tasks[pid]
    state = state |> close(task.batch, :settled) |> check_delay(task, measurements.delay)
    state = state |> count(:retried, measurements.count) |> count(:superseded, measurements.superseded)
    state = learn(state, task, &failed(&1, task))

    if measurements.delay > 0,
      do: {:noreply, pause(state, task, {measurements, metadata, task.trigger}, time, pid)},
      else: {:noreply, state}
  end

  # Given up without a function to call: the entries follow from the verdict.
  def handle_info({:event, [:dead_letter], %{count: count}, metadata, _time, pid}, state) do
    state = count(state, :given_up, count)
    state = if metadata.handled, do: state, else: count(state, :unhandled, count)

    case state.tasks[pid] do
      %Task{} -> {:noreply, update_in(state.tasks[pid].accounted, &(&1 + count))}
      nil -> {:noreply, state}
    end
  end

  def handle_info({:DOWN, _ref, :process, pid, reason}, state) do
    cut_short? = cut_short?(state, pid)
    {task, tasks} = Map.pop(state.tasks, pid)
    state = if cut_short?, do: learn(state, task, fn _isolation -> %Isolation{} end), else: state
    lasts? = fn {_partition, {_until, other, _why}} -> other != pid or not cut_short? end
    state = %{state | tasks: tasks, pauses: Map.filter(state.pauses, lasts?)}
    {:noreply, state |> check_end(task, reason) |> finish_if_idle()}
  end

  ## Isolation

  # A task that gives up the leftovers of a stop has no partition.
  defp isolation(state, %Task{partition: partition}), do: Map.get(state.isolations, partition, %Isolation{})

  defp learn(state, %Task{partition: nil}, _lesson), do: state

  # After `starting/2` a task of a killed tree may still go on, until the start ends it. New
  # partitions of another number do not know its lesson, and their first batches may come before
  # `started/1`.
  defp learn(%{starts: starts} = state, %Task{starts: before}, _lesson) when before < starts, do: state

  defp learn(state, %Task{partition: partition} = task, lesson),
    do: put_in(state.isolations[partition], lesson.(isolation(state, task)))

  # Snoozed and cancelled entries have not failed.
  defp failed(isolation, %Task{batch: nil}), do: Isolation.fail(isolation, 1)
  defp failed(isolation, %Task{verdict: %Verdict{outcome: {:snooze, _ms, _scope}}}), do: isolation

  defp failed(isolation, %Task{size: size} = task) do
    if some_succeeded?(task), do: Isolation.succeed(isolation, size), else: Isolation.fail(isolation, size)
  end

  defp succeeded(isolation, %Task{verdict: %Verdict{outcome: :ok}, size: size}),
    do: Isolation.succeed(isolation, size)

  defp succeeded(isolation, %Task{verdict: %Verdict{outcome: :cancel}, size: size} = task),
    do:
      if(some_succeeded?(task),
        do: Isolation.succeed(isolation, size),
        else: Isolation.cancel(isolation, size)
      )

  defp succeeded(isolation, _failed), do: isolation

  ## Pauses

  # The pause begins when the batch is settled, which is between the return and the event. It ends
  # with the buffer.
  defp pause(state, task, {measurements, _metadata, _trigger} = why, time, pid) do
    state = learn(state, task, &Isolation.pause/1)
    lasts? = task.generation != nil and task.generation == state.generation and not being_killed?(state)
    until = min(time, task.returned || task.started) + native(measurements.delay - @tolerance)

    cond do
      not lasts? ->
        state

      pauses_all?(task) ->
        state |> pause_others(task, {time, until, why}) |> pause_one(task, {until, pid, why})

      true ->
        pause_one(state, task, {until, pid, why})
    end
  end

  defp pause_one(state, task, pause), do: put_in(state.pauses[task.partition], pause)

  defp pauses_all?(%Task{batch: nil}), do: false
  defp pauses_all?(%Task{verdict: verdict}), do: match?({:snooze, _ms, :buffer}, verdict.outcome)

  # The pause of another partition does not become shorter. Its task may have stopped for it before
  # the event.
  defp pause_others(state, task, {began, until, why}) do
    state = update_in(state.not_again, &Enum.reject(&1, fn {_task, time, _} -> time > task.returned end))

    for other <- 0..(task.partition_count - 1), other != task.partition, reduce: state do
      state ->
        {_began, before, _why} = Map.get(state.pauses_by_others, other, {began, until, why})
        put_in(state.pauses_by_others[other], {began, max(until, before), why})
    end
  end

  ## Verdicts

  defp dead_letter_verdict(%{healthy?: true}, _reason), do: Verdict.ok()

  # The entries that a stop gives up count as settled when they come, so they must not come again.
  defp dead_letter_verdict(_state, reason) do
    case :rand.uniform(60) do
      n when n <= 2 -> Verdict.failing(:raise)
      3 when reason != :stopped -> Verdict.failing(:kill)
      _more -> Verdict.ok()
    end
  end

  defp heal(state, healthy?), do: %{state | healthy?: healthy?, armed: [], outage: 0}

  defp verdict(%{healthy?: true} = state, _entries, _known), do: {Verdict.ok(), state}

  defp verdict(%{armed: [ordered | armed]} = state, _entries, _known),
    do: {Verdict.ordered(ordered), %{state | armed: armed}}

  defp verdict(%{calm?: true, refuses: by_chance} = state, _entries, _known)
       when by_chance in [:turns, :mixed],
       do: {Verdict.ok(), state}

  defp verdict(%{calm?: true} = state, entries, known),
    do: {refused(state, entries, known) || Verdict.ok(), state}

  # The sink is away for some batches, or it refuses, or it is chance.
  defp verdict(%{outage: outage} = state, entries, known) do
    cond do
      outage > 0 -> {Verdict.failing(), %{state | outage: outage - 1}}
      :rand.uniform(500) == 1 -> {Verdict.failing(), count(%{state | outage: :rand.uniform(20)}, :outages)}
      refused = refused(state, entries, known) -> {refused, count(state, :refused)}
      true -> {Verdict.draw(entries), state}
    end
  end

  defp refused(%{refuses: :size}, entries, _known),
    do: if(length(entries) > @most_taken, do: Verdict.failing_somehow())

  defp refused(%{refuses: :turns}, _entries, _known),
    do: if(rem(div(System.monotonic_time(:millisecond), 20), 3) == 0, do: Verdict.failing_somehow())

  defp refused(%{refuses: :mixed}, entries, _known),
    do: if(:rand.uniform(3) == 1, do: Verdict.some(entries, [:ok, :failed, :cancelled]))

  # The processor names the bad entries at times.
  defp refused(%{refuses: :tenant}, entries, known) do
    marks = for entry <- known, do: if(entry.bad?, do: :failed, else: :ok)

    cond do
      not Enum.any?(known, & &1.bad?) -> nil
      :rand.uniform(2) == 1 -> Verdict.failing_somehow()
      true -> Verdict.marking(entries, marks)
    end
  end

  defp refused(_state, _entries, known),
    do: if(Enum.any?(known, & &1.bad?), do: Verdict.failing_somehow())

  # Whether the processor refuses an entry, until the entry failed that often.
  defp bad?(%{calm?: false, refuses: :tenant}, _what, attempts) when attempts >= 2, do: false
  defp bad?(%{calm?: false}, _what, attempts) when attempts >= 6, do: false
  defp bad?(%{refuses: :keys}, what, _attempts), do: :erlang.phash2(what, 300) == 0
  defp bad?(%{refuses: :tenant}, what, _attempts), do: :erlang.phash2(what, 10) == 0
  defp bad?(_state, what, _attempts), do: :erlang.phash2(what, 3_000) == 0

  defp judge(state, pid, {number, _task} = batch, known, verdict, attempts) do
    marked = Enum.zip(known, Verdict.marks(verdict, length(known)))
    failed = for {_entry, mark} = marked <- marked, mark not in [:ok, :dead], do: marked
    to_bury = for {entry, mark} <- failed, given_up?(state, entry, mark), do: entry
    now = System.monotonic_time()

    task = %{
      state.tasks[pid]
      | batch: number,
        verdict: verdict,
        split: if(match?([{_entry, :split} | _], marked), do: known, else: []),
        attempts: attempts,
        size: length(known),
        failed: length(failed),
        accounted: 0,
        reported: 0,
        to_bury: to_bury,
        entries: for({entry, mark} <- failed, mark != :cancelled, do: entry.what),
        succeeded: state.tasks[pid].succeeded + length(known) - length(failed),
        read_after: now
    }

    state = %{
      state
      | tasks: %{state.tasks | pid => task},
        last: Map.put(state.last, task.partition, task.sent)
    }

    state = if failed == [], do: state, else: count(state, :failed_batches)
    state.checks.mark(marked, batch, state) |> count(:batches) |> count(:entries, length(known))
  end

  defp arrive(state, entries, batch) do
    {known, state} = state.checks.arrive(entries, batch, state)
    single? = match?([_entry], entries)

    known =
      for entry <- known,
          do: Map.merge(entry, %{single?: single?, bad?: bad?(state, entry.what, entry.attempts)})

    {known, state}
  end

  @doc """
  The least number of failures of an entry since its last batch. A batch of several entries that
  failed as a whole counts for none of them, and so does such a batch of a dead task.
  """
  def failures(ledger, %{attempts: attempts, mark: mark, batch: batch, single?: single?}) do
    failed? =
      case batch_state(ledger, batch) do
        :died -> single? and mark != :snoozed
        _open_or_settled -> mark == :failed
      end

    if failed?, do: attempts + 1, else: attempts
  end

  @doc "Whether the buffer gives up an entry with this mark."
  def given_up?(_ledger, _entry, :cancelled), do: true
  def given_up?(ledger, entry, :failed), do: entry.attempts + 1 >= ledger.accepted.max_attempts
  def given_up?(_ledger, _entry, _mark), do: false

  defp answer(state, pid, verdict) do
    send(pid, {:verdict, verdict})
    put_in(state.tasks[pid].at_work, true)
  end

  ## Dead letters

  # An entry given up by a stop may never come in a batch.
  defp dead_letter(state, pid, entries, :stopped) do
    state = settled(state, pid)
    {batch, state} = next(state, pid)
    {known, state} = arrive(state, entries, batch)
    state = close(state, elem(batch, 0), :settled)
    state.checks.mark(Enum.map(known, &{&1, :dead}), batch, state)
  end

  defp dead_letter(state, pid, entries, _reason) do
    %Task{batch: batch, to_bury: to_bury} = state.tasks[pid]
    state = close(state, batch, :settled)
    state = put_in(state.tasks[pid].to_bury, [])
    state.checks.dead(entries, if(batch, do: to_bury), state)
  end

  ## Batches

  defp next(%{next: number} = state, pid), do: {{number, state.tasks[pid]}, %{state | next: number + 1}}

  @doc "The state of a batch: it is `:open`, `:settled`, or its task `:died`."
  def batch_state(ledger, number) do
    case :ets.lookup(ledger.batches, number) do
      [{_number, what}] -> what
      [] -> :open
    end
  end

  defp close(state, nil, _what), do: state

  defp close(state, number, what) do
    :ets.insert_new(state.batches, {number, what})
    state
  end

  # The task gave a sign that its batch is settled.
  defp settled(state, pid) do
    case state.tasks[pid] do
      %Task{batch: nil} ->
        state

      %Task{} = task ->
        state = state |> close(task.batch, :settled) |> check_settled(task)
        state |> learn(task, &succeeded(&1, task)) |> forget(pid)
    end
  end

  defp forget(state, pid), do: update_in(state.tasks[pid], &%{&1 | batch: nil, to_bury: [], failed: 0})

  # One event reports each failed entry, and another each failure. All entries due were given up.
  defp check_settled(state, %Task{failed: failed} = task) do
    unburied = if state.disordered? or not state.accepted.dead_letter?, do: [], else: task.to_bury
    checks = state.checks
    state = Enum.reduce(unburied, state, &checks.not_given_up/2)
    reported = if task.verdict.outcome in [:error, :partial] and task.split == [], do: 1, else: 0

    # A deleted entry is not given up.
    accounted? =
      if task.verdict.outcome == :cancel, do: task.accounted <= failed, else: task.accounted == failed

    cond do
      not accounted? -> violation(state, :retry_event, task)
      task.reported != reported -> violation(state, :reports, task)
      true -> state
    end
  end

  ## Tasks

  defp known(state, pid, task \\ %Task{other: true})
  defp known(%{tasks: tasks} = state, pid, _task) when is_map_key(tasks, pid), do: state

  defp known(state, pid, task) do
    Process.monitor(pid)
    put_in(state.tasks[pid], task)
  end

  # The message of a death may be still on its way when the next task of the partition sends a batch
  # or a dead letter: a dying process sends its `:DOWN` messages one after the other, and the buffer
  # may get its own before the ledger does. Of another partition even earlier messages may be on
  # their way, so the end of its task may be a normal one.
  defp bury_dead(state, pid) do
    own = state.tasks[pid]

    for {other, %Task{} = task} <- state.tasks,
        other != pid,
        task.partition == own.partition or task.generation != own.generation,
        not Process.alive?(other),
        reduce: state do
      state -> state |> bury_batch(task) |> note_death(task, own)
    end
  end

  defp bury_batch(state, %Task{batch: nil}), do: state

  defp bury_batch(state, %Task{batch: batch} = task),
    do: state |> close(batch, :died) |> learn(task, fn _isolation -> %Isolation{} end)

  # The task of a stop that gives up leftovers has no partition, and no event at its end.
  defp note_death(state, %Task{partition: partition, stopped: false}, %Task{partition: partition})
       when partition != nil,
       do: %{state | deaths?: true}

  defp note_death(state, _task, _own), do: state

  defp check_alone(state, pid) do
    partition = state.tasks[pid].partition

    others =
      for {other, %Task{partition: ^partition, at_work: true}} when partition != nil <- state.tasks,
          other != pid and Process.alive?(other),
          do: other

    if others == [], do: state, else: violation(state, :two_at_a_time, partition)
  end

  # Whether a partition with a requested flush may die or be dead, until the next fault.
  defp being_killed?(state), do: state.flushes > 0 and match?([:kill_partition | _], state.faults)

  # A time before the present flush of a partition began.
  defp flush_after(state, partition) do
    case Map.get(state.rests, partition) do
      nil -> Map.get(state.last, partition, @long_ago)
      began -> began
    end
  end

  # The next task goes on with the rest of the flush, if it has one.
  defp end_flush(state, _task, true = _rest?), do: state

  defp end_flush(state, %Task{partition: partition}, false = _rest?),
    do: %{state | rests: Map.delete(state.rests, partition)}

  defp check_pause(state, task, time) do
    {until, pid, why} = Map.get(state.pauses, task.partition, {nil, nil, nil})

    if until == nil or time >= until or cut_short?(state, pid),
      do: check_pause_by_others(state, task, time),
      else: violation(state, :pause, {until - time, why, task})
  end

  # A requested flush ends the pause, even of a partition without entries, which reports nothing.
  defp check_pause_by_others(%{flushes: flushes} = state, _task, _time) when flushes > 0, do: state

  # A task that began before may have the batch already.
  defp check_pause_by_others(state, task, time) do
    {began, until, why} = Map.get(state.pauses_by_others, task.partition, {nil, nil, nil})

    if until == nil or time >= until or task.started < began,
      do: state,
      else: violation(state, :pause, {until - time, {:of_all, why}, task})
  end

  # The partition missed the pause of a task killed before its end.
  defp cut_short?(state, pid) do
    case state.tasks[pid] do
      %Task{stopped: false} -> not Process.alive?(pid)
      _other -> false
    end
  end

  # Failed entries pause a strict queue. Otherwise they do if none succeeded, and three did in a row,
  # or no other is left. A task that settles the batch of a dead one has no verdict.
  defp check_delay(state, task, delay) do
    # A task that settles the batch of a dead one knows less.
    isolation = if task.batch == nil, do: %Isolation{}, else: isolation(state, task)

    fits? =
      case task.verdict do
        %Verdict{outcome: {:snooze, ms, _scope}} when task.batch != nil ->
          delay in snoozes(task, ms)

        _failure when delay > 0 ->
          delay in @pauses and (state.checks.strict?() or not some_succeeded?(task))

        _failure ->
          not state.checks.strict?() and (some_succeeded?(task) or not Isolation.exhausted?(isolation))
      end

    if fits?, do: state, else: violation(state, :pause, {task, delay, isolation})
  end

  defp snoozes(task, ms) do
    snoozes = for shortest <- @shortest_pauses, do: ceil(max(ms, shortest))

    if task.trigger == :stop,
      do: for(snooze <- snoozes, pause <- @pauses_of_stop, do: min(snooze, pause)),
      else: snoozes
  end

  defp some_succeeded?(%Task{batch: nil}), do: false
  defp some_succeeded?(%Task{verdict: %Verdict{chosen: :all}}), do: false
  defp some_succeeded?(%Task{verdict: %Verdict{chosen: chosen}}), do: :ok in chosen

  # The options of a task are those at its start, or those before if an update was on its way.
  defp check_size(state, task, size) do
    {after_start, before} = Enum.split_while(state.sizes, fn {time, _size} -> time > task.started end)
    largest = (after_start ++ Enum.take(before, 2)) |> Enum.map(&elem(&1, 1)) |> Enum.max()

    # Infinity is above all numbers.
    if size <= min(largest, isolation(state, task).limit),
      do: state,
      else: violation(state, :batch_size, {size, isolation(state, task), task})
  end

  # The entries of a split batch come again at once, unless they were all replaced or deleted, or
  # somebody else lets the partition wait.
  defp check_again(state, %Task{split: []}, _time), do: state

  defp check_again(state, task, time) do
    {_began, until, _why} = Map.get(state.pauses_by_others, task.partition, {nil, nil, nil})
    paused? = until != nil and task.returned < until + native(10 * @tolerance)
    lasts? = task.generation != nil and task.generation == state.generation

    if state.holds > 0 or paused? or not lasts?,
      do: state,
      else: update_in(state.not_again, &[{task, time, state.faults} | &1])
  end

  # Unknown attempts are those of tasks killed just before they called the processor.
  defp check_event(state, task, measurements, metadata) do
    exact? = not state.deaths? and not state.disordered?
    attempts = task.attempts + 1

    if measurements.size == task.size and
         (metadata.attempt == attempts or (metadata.attempt > attempts and not exact?)),
       do: state,
       else: violation(state, :batch_event, {measurements, metadata, task})
  end

  defp check_end(state, %Task{stopped: true}, reason) when reason in [:normal, :noproc], do: state
  defp check_end(state, %Task{other: true}, :normal), do: state

  # It may have an unseen batch.
  defp check_end(state, task, reason) when reason in [:killed, :shutdown, :noproc] do
    state = close(%{state | deaths?: true}, task.batch, :died)
    count(state, if(task.at_work, do: :killed_at_work, else: :killed))
  end

  # Its supervisor is dead, and so are the options.
  defp check_end(state, task, {:badarg, _stack}),
    do: %{state | deaths?: true} |> close(task.batch, :died) |> count(:no_options)

  defp check_end(state, task, reason), do: violation(state, :task_end, {task, reason})

  defp number(partition), do: partition |> Module.split() |> List.last() |> String.to_integer()
  defp native(ms), do: System.convert_time_unit(ms, :millisecond, :native)

  @doc "Counts a violation, and keeps the first of its kind, with the last faults before it."
  def violation(state, kind, what, by \\ 1),
    do: Ledger.violation(state, kind, {what, after: state.faults}, by)

  ## The end

  defp finish_if_idle(%{finish: {from, written}, tasks: tasks} = state) when tasks == %{} do
    checks = state.checks
    state = Enum.reduce(written, state, &checks.check/2)
    state = Enum.reduce(state.not_given_up, state, &check_given_up/2)
    state = Enum.reduce(state.suspects, state, &check_suspect/2)
    state = Enum.reduce(state.not_again, state, &check_came_again/2)
    GenServer.reply(from, Map.take(state, [:counts, :violations]))
    :telemetry.detach(state.buffer)
    %{state | finish: nil}
  end

  defp finish_if_idle(state), do: state

  defp check_suspect({kind, {id, number}, what}, state) do
    if state.checks.dead?(id, number, state), do: state, else: violation(state, kind, what)
  end

  defp check_came_again({task, _time, faults}, state) do
    if Enum.all?(task.split, &state.checks.replaced?(&1, state)),
      do: state,
      else: Ledger.violation(state, :split, {task, after: faults})
  end

  defp check_given_up(entry, state) do
    if state.checks.replaced?(entry, state), do: state, else: violation(state, :not_given_up, entry)
  end
end
