defmodule PartitionedBuffer.Conservation.Ledger do
  @moduledoc false
  # Sees each batch before the processor does anything else, decides what happens to the processor, and compares what it
  # sees with the telemetry events and with the deaths of the tasks.
  #
  # What is counted under `violations` must not be. The rest are figures.
  #
  # A task that is killed while it is not in its processor may have claimed a batch: this is the only loss that nobody
  # sees. Entries that are missing are put down to it (`unseen`) if there was such a death in their partition since their
  # key was last handed over.

  use GenServer

  @compile {:no_warn_undefined, :telemetry}

  alias PartitionedBuffer.Conservation.{Code, History}

  # `returned` is false while the processor has a batch; `sizes` are those of the batches, the last first.
  defmodule Task do
    @moduledoc false
    defstruct [:partition, sizes: [], returned: true, verdict: :ok, excepted: false, stopped: false]
  end

  defstruct [
    :buffer,
    :batch_sizes,
    :seen,
    tasks: %{},
    armed: [],
    lists: %{},
    windows: %{},
    counts: %{},
    violations: %{},
    finish: nil
  ]

  @events for suffix <- [
                [:processing, :start],
                [:processing, :stop],
                [:processing, :exception],
                [:processing_failed]
              ],
              do: [:partitioned_buffer, :partition | suffix]

  ## What the processor does

  @doc "The processor, as an MFA."
  def processor(ledger), do: {__MODULE__, :process, [ledger]}

  def process(batch, ledger) do
    # Before the writers, as the ledger: the more hand-overs the better.
    Process.flag(:priority, :high)
    send(ledger, {:batch, self(), entries(batch)})

    receive do
      {:verdict, verdict} -> obey(verdict)
    end

    send(ledger, {:returned, self()})
  end

  defp entries(batch) when is_list(batch), do: batch
  defp entries(table), do: for({:entry, k, v, n, u} <- :ets.tab2list(table), do: {k, v, n, u})

  defp obey(:ok), do: :ok
  defp obey(:raise), do: raise("as told")
  defp obey(:throw), do: throw(:as_told)
  defp obey(:exit), do: exit(:as_told)
  defp obey(:kill), do: Process.exit(self(), :kill)
  defp obey({:slow, ms}), do: Process.sleep(ms)

  defp obey({:hang, who}) do
    send(who, {:hanging, self()})
    # Long after it should have been killed, if nobody waits for it any more.
    Process.sleep(1_000)
    Process.exit(self(), :kill)
  end

  ## API

  @doc "Starts it for a buffer of this name; its batches may have these sizes. `nil` for a table with no events."
  def start_link(buffer, batch_sizes) do
    {:ok, ledger} = GenServer.start_link(__MODULE__, {buffer, batch_sizes})
    if buffer, do: :telemetry.attach_many(buffer, @events, &__MODULE__.event/4, {ledger, buffer})
    {:ok, ledger}
  end

  def event([_, _ | suffix], measurements, metadata, {ledger, buffer}) do
    if metadata.buffer == buffer, do: send(ledger, {:event, suffix, measurements, metadata, self()})
  end

  @doc "The verdict on one of the next batches."
  def arm(ledger, verdict), do: send(ledger, {:arm, verdict})

  @doc "No verdicts but those that have been given."
  def disarm(ledger), do: send(ledger, :disarm)

  @doc "The counts, when all tasks have ended."
  def finish(ledger, histories, puts) do
    result = GenServer.call(ledger, {:finish, histories, puts}, :infinity)
    GenServer.stop(ledger)
    result
  end

  ## Callbacks

  @impl GenServer
  def init({buffer, batch_sizes}) do
    Process.flag(:priority, :high)
    {:ok, %__MODULE__{buffer: buffer, batch_sizes: batch_sizes, seen: :ets.new(:seen, [:set])}}
  end

  @impl GenServer
  def handle_call({:finish, histories, puts}, from, state) do
    {:noreply, finish_if_idle(%{state | finish: {from, histories, puts}, armed: []})}
  end

  @impl GenServer
  def handle_info({:batch, pid, entries}, state) do
    state = state |> known(pid) |> check_alone(pid)
    %Task{} = task = state.tasks[pid]
    {verdict, armed} = List.pop_at(state.armed, 0, :ok)
    send(pid, {:verdict, verdict})
    size = length(entries)

    task = %{task | sizes: [size | task.sizes], returned: false, verdict: verdict}

    state =
      %{state | armed: armed, tasks: Map.put(state.tasks, pid, task)}
      |> count(:batches)
      |> count(:entries, size)

    state = if size == 0, do: violation(state, :empty_batch, pid), else: state
    {:noreply, Enum.reduce(entries, state, &entry(&1, task.partition, &2))}
  end

  def handle_info({:returned, pid}, state) do
    {:noreply, put_in(state.tasks[pid].returned, true)}
  end

  def handle_info({:arm, verdict}, state), do: {:noreply, %{state | armed: state.armed ++ [verdict]}}

  def handle_info(:disarm, state), do: {:noreply, %{state | armed: []}}

  def handle_info({:event, [:processing, :start], _measurements, metadata, pid}, state) do
    {:noreply, state |> known(pid, metadata.partition) |> count(:hand_overs)}
  end

  def handle_info({:event, [:processing, :stop], measurements, _metadata, pid}, state) do
    task = state.tasks[pid]
    state = put_in(state.tasks[pid].stopped, true)

    if task.returned and measurements.size == Enum.sum(task.sizes),
      do: {:noreply, state},
      else: {:noreply, violation(state, :stop_event, {measurements.size, task})}
  end

  # The exception of a verdict, or nobody's fault but the table's: its name may still be that of a dying task's.
  def handle_info({:event, [:processing, :exception], _measurements, metadata, pid}, state) do
    task = state.tasks[pid]
    state = put_in(state.tasks[pid].excepted, true)

    case {task.returned, task.verdict, metadata.kind, metadata.reason} do
      {false, :raise, :error, %RuntimeError{message: "as told"}} -> {:noreply, count(state, :raised)}
      {false, :throw, :throw, :as_told} -> {:noreply, count(state, :threw)}
      {false, :exit, :exit, :as_told} -> {:noreply, count(state, :exited)}
      {true, _, :error, %ArgumentError{}} when task.sizes == [] -> {:noreply, count(state, :table_name_taken)}
      _ -> {:noreply, violation(state, :exception_event, {metadata, task})}
    end
  end

  def handle_info({:event, [:processing_failed], _measurements, _metadata, _pid}, state),
    do: {:noreply, count(state, :processing_failed)}

  def handle_info({:DOWN, _ref, :process, pid, reason}, state) do
    {task, tasks} = Map.pop(state.tasks, pid)
    state = %{state | tasks: tasks} |> check_sizes(task)
    {:noreply, state |> ended(task, reason) |> finish_if_idle()}
  end

  ## Tasks

  defp known(state, pid, partition \\ nil)
  defp known(%{tasks: tasks} = state, pid, _partition) when is_map_key(tasks, pid), do: state

  defp known(state, pid, partition) do
    Process.monitor(pid)
    put_in(state.tasks[pid], %Task{partition: partition})
  end

  # Of a task that was killed meanwhile the death may not have been told yet.
  defp check_alone(state, pid) do
    partition = state.tasks[pid].partition

    others =
      for {other, %Task{partition: ^partition, returned: false}} <- state.tasks,
          other != pid and Process.alive?(other),
          do: other

    if others == [], do: state, else: violation(state, :two_at_a_time, partition)
  end

  # All batches of a hand-over but the last are full. A table is one of any size.
  defp check_sizes(%{batch_sizes: nil} = state, _task), do: state

  defp check_sizes(state, task) do
    whole? =
      case Enum.reverse(task.sizes) do
        [] -> true
        [size] -> :table in state.batch_sizes or size <= Enum.max(state.batch_sizes)
        [full | rest] -> full in state.batch_sizes and short_last?(rest, full)
      end

    if whole?, do: state, else: violation(state, :batch_size, task)
  end

  defp short_last?([last], full), do: last <= full
  defp short_last?([next | rest], full), do: next == full and short_last?(rest, full)

  # `:noproc`: it was dead when its first message was read.
  defp ended(state, task, reason) do
    case {task, reason} do
      {_task_of_the_design, :normal} when state.buffer == nil ->
        state

      {%Task{stopped: true}, reason} when reason in [:normal, :noproc] ->
        state

      {%Task{returned: false, excepted: true}, {_error, _stack}} ->
        state |> count(:failed) |> lost_in_hand(task)

      {%Task{returned: false, excepted: true, verdict: :exit}, :as_told} ->
        state |> count(:failed) |> lost_in_hand(task)

      # Killed: within the processor, or before it could return from its exception.
      {%Task{returned: false}, reason} when reason in [:killed, :shutdown, :noproc] ->
        state |> count(:failed) |> count(:killed) |> lost_in_hand(task)

      {%Task{returned: true}, reason} when reason in [:killed, :shutdown, :noproc] ->
        state |> count(:failed) |> count(:killed_outside) |> window(task.partition)

      {%Task{returned: true, excepted: true, sizes: []}, {:badarg, _stack}} ->
        count(state, :failed)

      unexplained ->
        violation(state, :task_end, unexplained)
    end
  end

  defp lost_in_hand(state, task) do
    state |> count(:failed_batches) |> count(:failed_entries, hd(task.sizes))
  end

  defp window(state, partition), do: %{state | windows: Map.update(state.windows, partition, 1, &(&1 + 1))}

  ## Entries

  # Of a list that was put by a process that may have been killed: each comes once.
  defp entry({{:list, list, size, place}, value, 0, 0}, _partition, state) do
    state = update_in(state.lists[list], &(&1 || :counters.new(size, [])))
    come = state.lists[list]
    :counters.add(come, place, 1)

    cond do
      value != {list, place} -> violation(state, :wrong, {list, place, value})
      :counters.get(come, place) > 1 -> violation(state, :again, {list, place})
      true -> state
    end
  end

  defp entry({{:code, number}, value, 0, 0}, _partition, state) do
    cond do
      not Code.intact?(value, number) -> violation(state, :wrong, {:code, number})
      :ets.insert_new(state.seen, {{:code, number}}) -> count(state, :functions)
      true -> violation(state, :again, {:code, number})
    end
  end

  defp entry({key, value, version, updates}, partition, state) do
    id = History.id(key)
    {seen, windows} = seen(state, id)

    {outcome, now_seen} = History.hand_over(id, seen, {value, version, updates})
    :ets.insert(state.seen, {id, now_seen, Map.get(state.windows, partition, 0)})

    case outcome do
      :ok ->
        state

      :lost ->
        if Map.get(state.windows, partition, 0) > windows,
          do: count(state, :unseen),
          else: violation(state, :lost, {id, seen, value, version, updates})

      outcome ->
        violation(state, outcome, {id, seen, value, version, updates})
    end
  end

  defp seen(state, id) do
    case :ets.lookup(state.seen, id) do
      [{^id, seen, windows}] -> {seen, windows}
      [] -> {0, 0}
    end
  end

  ## The end

  defp finish_if_idle(%{finish: {from, histories, puts}, tasks: tasks} = state) when tasks == %{} do
    state = Enum.reduce(histories, state, &check_history/2)
    state = Enum.reduce(puts, state, &check_put/2)
    GenServer.reply(from, Map.take(state, [:counts, :violations]))
    if state.buffer, do: :telemetry.detach(state.buffer)
    %{state | finish: nil}
  end

  defp finish_if_idle(state), do: state

  # How often a key was written: a range, because of a call that failed an unknown part was done, the first writes of it.
  defp check_history({id, written}, state) do
    {seen, windows} = seen(state, id)

    cond do
      Enum.any?(written, &History.finished?(id, seen, &1)) -> state
      Enum.any?(Map.values(state.windows), &(&1 > windows)) -> count(state, :unseen)
      true -> violation(state, :lost, {id, seen, written})
    end
  end

  defp check_put({:code, number}, state) do
    if :ets.member(state.seen, {:code, number}), do: state, else: missing(state, 1, {:code, number})
  end

  # What is missing of a list: nothing if it was put, and otherwise what is behind the writes that were done. Those that
  # are done at once, 128, are done lock by lock: among the last that came some may be missing.
  defp check_put({:list, list, size, outcome}, state) do
    come = for place <- 1..size, state.lists[list], :counters.get(state.lists[list], place) > 0, do: place
    complete = if outcome == :put, do: size, else: max(List.last(come, 0) - 128, 0)

    case complete - Enum.count(come, &(&1 <= complete)) do
      0 -> count(state, if(outcome == :put, do: :lists_put, else: :lists_cut_short))
      missing -> missing(state, missing, {:list, list, outcome, missing})
    end
  end

  # Something may have been claimed by a task that was killed before it called its processor.
  defp missing(%{windows: windows} = state, missing, what) do
    if windows == %{}, do: violation(state, :lost, what), else: count(state, :unseen, missing)
  end

  defp count(state, what, by \\ 1), do: %{state | counts: Map.update(state.counts, what, by, &(&1 + by))}

  # How many of a kind, and the first of them.
  defp violation(state, kind, what) do
    %{state | violations: Map.update(state.violations, kind, {1, what}, fn {n, first} -> {n + 1, first} end)}
  end
end
