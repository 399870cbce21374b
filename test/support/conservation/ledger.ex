defmodule PartitionedBuffer.Conservation.Ledger do
  @moduledoc false
  # Sees each batch before the processor does anything else, decides what happens to the processor, and compares what it
  # sees with the telemetry events and with the deaths of the tasks.
  #
  # What is counted under `violations` must not be. The rest are figures.
  #
  # A task that is killed while it is not in its processor may have claimed a batch: this is the only loss that nobody
  # sees. Entries that are missing are put down to it (`unseen`) if there was such a death, in any partition since their
  # number may change, since something of their kind, as the same key, was last flushed.
  #
  # A task that is killed with its supervisor is still alive for a moment, and may be in a call of the processor when the one
  # in its place is (`overlapping`). It is dead when its message is read; its batch may come late then, but not twice.

  use GenServer

  @compile {:no_warn_undefined, :telemetry}

  alias PartitionedBuffer.Conservation.Code

  # `returned` is false while the processor has a batch; `sizes` are those of the batches, the last first.
  defmodule Task do
    @moduledoc false
    defstruct [:partition, :among, sizes: [], returned: true, verdict: :ok, excepted: false, stopped: false]
  end

  defstruct [
    :kind,
    :buffer,
    :batch_sizes,
    :seen,
    tasks: %{},
    armed: [],
    windows: 0,
    counts: %{},
    violations: %{},
    finish: nil
  ]

  @type t() :: %__MODULE__{}

  @events for suffix <- [
                [:processing, :start],
                [:processing, :stop],
                [:processing, :exception],
                [:processing_failed]
              ],
              do: [:partitioned_buffer, :partition | suffix]

  ## What the processor does

  @doc "The processor, as an MFA."
  def processor(ledger, kind), do: {__MODULE__, :process, [ledger, kind]}

  def process(batch, ledger, kind) do
    # Before the writers, as the ledger: the more flushes the better.
    Process.flag(:priority, :high)
    send(ledger, {:batch, self(), if(is_list(batch), do: batch, else: kind.entries(batch))})

    receive do
      {:verdict, verdict} -> obey(verdict)
    end

    send(ledger, {:returned, self()})
  end

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

  @doc "Starts it for a buffer of this kind and name; its batches may have these sizes. `nil` for a table with no events."
  def start_link(kind, buffer, batch_sizes) do
    {:ok, ledger} = GenServer.start_link(__MODULE__, {kind, buffer, batch_sizes})
    if buffer, do: :telemetry.attach_many(buffer, @events, &__MODULE__.event/4, {ledger, buffer})
    {:ok, ledger}
  end

  def event([_, _ | suffix], measurements, metadata, {ledger, buffer}) do
    if metadata.buffer == buffer do
      metadata = Map.put(metadata, :among, PartitionedBuffer.Native.partition_count(buffer))
      send(ledger, {:event, suffix, measurements, metadata, self()})
    end
  end

  @doc "The verdict on one of the next batches."
  def arm(ledger, verdict), do: send(ledger, {:arm, verdict})

  @doc "No verdicts but those that have been given."
  def disarm(ledger), do: send(ledger, :disarm)

  @doc "Whether the value with this number that refers to code has come."
  def code_came?(ledger, number), do: GenServer.call(ledger, {:code_came?, number}, :infinity)

  @doc "The counts, when all tasks have ended."
  def finish(ledger, written) do
    result = GenServer.call(ledger, {:finish, written}, :infinity)
    GenServer.stop(ledger)
    result
  end

  ## Callbacks

  @impl GenServer
  def init({kind, buffer, batch_sizes}) do
    Process.flag(:priority, :high)
    {:ok, %__MODULE__{kind: kind, buffer: buffer, batch_sizes: batch_sizes, seen: :ets.new(:seen, [:set])}}
  end

  @impl GenServer
  def handle_call({:code_came?, number}, _from, state),
    do: {:reply, :ets.member(state.seen, {:code, number}), state}

  def handle_call({:finish, written}, from, state) do
    {:noreply, finish_if_idle(%{state | finish: {from, written}, armed: []})}
  end

  @impl GenServer
  def handle_info({:batch, pid, entries}, state) do
    state = known(state, pid)
    overlapping? = others_at_work(state, pid) != [] and not Process.alive?(pid)
    state = if overlapping?, do: count(state, :overlapping), else: check_alone(state, pid)
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

    {:noreply,
     Enum.reduce(entries, state, &state.kind.entry(&1, {task.partition, task.among, overlapping?}, &2))}
  end

  def handle_info({:returned, pid}, state) do
    {:noreply, put_in(state.tasks[pid].returned, true)}
  end

  def handle_info({:arm, verdict}, state), do: {:noreply, %{state | armed: state.armed ++ [verdict]}}

  def handle_info(:disarm, state), do: {:noreply, %{state | armed: []}}

  def handle_info({:event, [:processing, :start], _measurements, metadata, pid}, state) do
    {:noreply, state |> known(pid, number(metadata.partition), metadata.among) |> count(:flushes)}
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

  defp known(state, pid, partition \\ nil, among \\ nil)
  defp known(%{tasks: tasks} = state, pid, _partition, _among) when is_map_key(tasks, pid), do: state

  defp known(state, pid, partition, among) do
    Process.monitor(pid)
    put_in(state.tasks[pid], %Task{partition: partition, among: among})
  end

  defp number(partition), do: partition |> Module.split() |> List.last() |> String.to_integer()

  defp check_alone(state, pid) do
    if others_at_work(state, pid) == [],
      do: state,
      else: violation(state, :two_at_a_time, state.tasks[pid].partition)
  end

  # Of a task that was killed meanwhile the death may not have been told yet.
  defp others_at_work(state, pid) do
    partition = state.tasks[pid].partition

    for {other, %Task{partition: ^partition, returned: false}} <- state.tasks,
        other != pid and Process.alive?(other),
        do: other
  end

  # All batches of a flush but the last are full. A table is one of any size.
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
        state |> count(:failed) |> count(:killed_outside) |> window()

      {%Task{returned: true, excepted: true, sizes: []}, {:badarg, _stack}} ->
        count(state, :failed)

      unexplained ->
        violation(state, :task_end, unexplained)
    end
  end

  defp lost_in_hand(state, task) do
    state |> count(:failed_batches) |> count(:failed_entries, hd(task.sizes))
  end

  defp window(state), do: %{state | windows: state.windows + 1}

  ## Entries

  @doc "What was seen of something, and after how many windows: tasks that may have claimed a batch and died."
  def seen(ledger, what, nothing) do
    case :ets.lookup(ledger.seen, what) do
      [{^what, seen, windows}] -> {seen, windows}
      [] -> {nothing, 0}
    end
  end

  @doc "Notes what is seen of something now."
  def see(ledger, what, seen), do: :ets.insert(ledger.seen, {what, seen, ledger.windows})

  @doc "A value that refers to code, with its number, has come."
  def code(ledger, number, value) do
    cond do
      not Code.intact?(value, number) -> violation(ledger, :wrong, {:code, number})
      :ets.insert_new(ledger.seen, {{:code, number}}) -> count(ledger, :functions)
      true -> violation(ledger, :again, {:code, number})
    end
  end

  ## The end

  defp finish_if_idle(%{finish: {from, written}, tasks: tasks} = state) when tasks == %{} do
    state = Enum.reduce(written, state, &check/2)
    GenServer.reply(from, Map.take(state, [:counts, :violations]))
    if state.buffer, do: :telemetry.detach(state.buffer)
    %{state | finish: nil}
  end

  defp finish_if_idle(state), do: state

  defp check({:code, number}, state) do
    if :ets.member(state.seen, {:code, number}),
      do: state,
      else: missing(state, 1, {:code, number}, state.windows > 0)
  end

  defp check(written, state), do: state.kind.check(written, state)

  @doc "So much is missing; `excused?` if a task may have claimed it, and was killed before it called its processor."
  def missing(state, missing, what, excused?) do
    if excused?, do: count(state, :unseen, missing), else: violation(state, :lost, what, missing)
  end

  @doc "Counts."
  def count(state, what, by \\ 1), do: %{state | counts: Map.update(state.counts, what, by, &(&1 + by))}

  @doc "Counts what must not be, and keeps the first of a sort."
  def violation(state, sort, what, by \\ 1) do
    %{
      state
      | violations: Map.update(state.violations, sort, {by, what}, fn {n, first} -> {n + by, first} end)
    }
  end
end
