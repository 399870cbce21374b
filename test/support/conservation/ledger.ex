defmodule PartitionedBuffer.Conservation.Ledger do
  @moduledoc false
  # Compares the batches with each other, with the telemetry events, with the deaths of the tasks,
  # and at the end with the writes. `PartitionedBuffer.Conservation` describes its notes and the
  # violations.
  #
  # A task killed with its supervisor is still alive for a moment. It may be in the processor at the
  # same time as the next task (`overlapping`). It is dead when the ledger reads its message. Its
  # batch may be late, but must not come twice.

  use GenServer

  @compile {:no_warn_undefined, :telemetry}

  alias PartitionedBuffer.Conservation.Code

  # `returned` is false while the processor has a batch. `sizes` are those of its batches, the last
  # first. `excepted` and `stopped` are whether those events came.
  defmodule Task do
    @moduledoc false
    defstruct [
      :partition,
      :partition_count,
      sizes: [],
      returned: true,
      verdict: :ok,
      excepted: false,
      stopped: false
    ]
  end

  # `batch_sizes` are the sizes that batches may have. `seen` is a table of the entries that came.
  # `armed` are the next verdicts. `windows` counts deaths of tasks that may lose an unseen batch.
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

  ## The processor

  @doc "The processor, as an MFA."
  def processor(ledger, kind), do: {__MODULE__, :process, [ledger, kind]}

  def process(batch, ledger, kind) do
    # As the ledger has it: otherwise the writers would leave time for few flushes.
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
    # It is killed long before, unless nobody waits for it.
    Process.sleep(1_000)
    Process.exit(self(), :kill)
  end

  ## API

  @doc """
  Starts a ledger of a buffer. Without a buffer and batch sizes it is for an ETS design, which has
  no events.
  """
  def start_link(kind, buffer, batch_sizes) do
    {:ok, ledger} = GenServer.start_link(__MODULE__, {kind, buffer, batch_sizes})
    if buffer, do: :telemetry.attach_many(buffer, @events, &__MODULE__.event/4, {ledger, buffer})
    {:ok, ledger}
  end

  def event([_, _ | suffix], measurements, metadata, {ledger, buffer}) do
    if metadata.buffer == buffer do
      metadata = Map.put(metadata, :partition_count, PartitionedBuffer.Native.partition_count(buffer))
      send(ledger, {:event, suffix, measurements, metadata, self()})
    end
  end

  @doc "Adds a verdict on one of the next batches."
  def arm(ledger, verdict), do: send(ledger, {:arm, verdict})

  @doc "Takes back all unused verdicts."
  def disarm(ledger), do: send(ledger, :disarm)

  @doc "Whether the value with this number that refers to code came."
  def code_came?(ledger, number), do: GenServer.call(ledger, {:code_came?, number}, :infinity)

  @doc "Waits until all tasks ended; returns counts and violations."
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
  def handle_call({:code_came?, number}, _from, state), do: {:reply, code_seen?(state, number), state}

  def handle_call({:finish, written}, from, state) do
    {:noreply, finish_if_idle(%{state | finish: {from, written}, armed: []})}
  end

  @impl GenServer
  def handle_info({:batch, pid, entries}, state) do
    state = known(state, pid)
    overlapping? = others_at_work(state, pid) != [] and not Process.alive?(pid)
    state = if overlapping?, do: count(state, :overlapping), else: check_alone(state, pid)
    state = state |> give_verdict(pid, length(entries)) |> check_entries(entries, pid, overlapping?)
    {:noreply, state}
  end

  def handle_info({:returned, pid}, state), do: {:noreply, put_in(state.tasks[pid].returned, true)}
  def handle_info({:arm, verdict}, state), do: {:noreply, %{state | armed: state.armed ++ [verdict]}}
  def handle_info(:disarm, state), do: {:noreply, %{state | armed: []}}

  def handle_info({:event, [:processing, :start], _measurements, metadata, pid}, state) do
    {:noreply, state |> known(pid, number(metadata.partition), metadata.partition_count) |> count(:flushes)}
  end

  def handle_info({:event, [:processing, :stop], measurements, _metadata, pid}, state) do
    task = state.tasks[pid]
    state = put_in(state.tasks[pid].stopped, true)

    if task.returned and measurements.size == Enum.sum(task.sizes),
      do: {:noreply, state},
      else: {:noreply, violation(state, :stop_event, {measurements.size, task})}
  end

  def handle_info({:event, [:processing, :exception], _measurements, metadata, pid}, state) do
    task = state.tasks[pid]
    state = put_in(state.tasks[pid].excepted, true)

    case {task.returned, task.verdict, metadata.kind, metadata.reason} do
      {false, :raise, :error, %RuntimeError{message: "as told"}} -> {:noreply, count(state, :raised)}
      {false, :throw, :throw, :as_told} -> {:noreply, count(state, :threw)}
      {false, :exit, :exit, :as_told} -> {:noreply, count(state, :exited)}
      # A dying task still has the table, whose name this one needs.
      {true, _, :error, %ArgumentError{}} when task.sizes == [] -> {:noreply, count(state, :table_name_taken)}
      _ -> {:noreply, violation(state, :exception_event, {metadata, task})}
    end
  end

  def handle_info({:event, [:processing_failed], _measurements, _metadata, _pid}, state),
    do: {:noreply, count(state, :processing_failed)}

  def handle_info({:DOWN, _ref, :process, pid, reason}, state) do
    {task, tasks} = Map.pop(state.tasks, pid)
    {:noreply, %{state | tasks: tasks} |> check_sizes(task) |> check_end(task, reason) |> finish_if_idle()}
  end

  ## Batches

  defp give_verdict(state, pid, size) do
    {verdict, armed} = List.pop_at(state.armed, 0, :ok)
    send(pid, {:verdict, verdict})
    %Task{} = task = state.tasks[pid]
    task = %{task | sizes: [size | task.sizes], returned: false, verdict: verdict}
    %{state | armed: armed, tasks: %{state.tasks | pid => task}} |> count(:batches) |> count(:entries, size)
  end

  defp check_entries(state, [], pid, _overlapping?), do: violation(state, :empty_batch, pid)

  defp check_entries(state, entries, pid, overlapping?) do
    task = state.tasks[pid]

    Enum.reduce(
      entries,
      state,
      &state.kind.entry(&1, {task.partition, task.partition_count, overlapping?}, &2)
    )
  end

  defp check_alone(state, pid) do
    if others_at_work(state, pid) == [],
      do: state,
      else: violation(state, :two_at_a_time, state.tasks[pid].partition)
  end

  # The message of a death may be still on its way.
  defp others_at_work(state, pid) do
    partition = state.tasks[pid].partition

    for {other, %Task{partition: ^partition, returned: false}} <- state.tasks,
        other != pid and Process.alive?(other),
        do: other
  end

  ## Tasks

  defp known(state, pid, partition \\ nil, partition_count \\ nil)
  defp known(%{tasks: tasks} = state, pid, _partition, _count) when is_map_key(tasks, pid), do: state

  defp known(state, pid, partition, partition_count) do
    Process.monitor(pid)
    put_in(state.tasks[pid], %Task{partition: partition, partition_count: partition_count})
  end

  defp number(partition), do: partition |> Module.split() |> List.last() |> String.to_integer()

  # All batches of a flush but the last are full. A table may have any size.
  defp check_sizes(%{batch_sizes: nil} = state, _task), do: state

  defp check_sizes(state, task) do
    full? =
      case Enum.reverse(task.sizes) do
        [] -> true
        [size] -> :table in state.batch_sizes or size <= Enum.max(state.batch_sizes)
        [full | rest] -> full in state.batch_sizes and only_last_short?(rest, full)
      end

    if full?, do: state, else: violation(state, :batch_size, task)
  end

  defp only_last_short?([last], full), do: last <= full
  defp only_last_short?([next | rest], full), do: next == full and only_last_short?(rest, full)

  # The reason is `:noproc` if the task was dead when its first message was read.
  defp check_end(state, task, reason) do
    case {task, reason} do
      {_task_of_the_design, :normal} when state.buffer == nil ->
        state

      {%Task{stopped: true}, reason} when reason in [:normal, :noproc] ->
        state

      {%Task{returned: false, excepted: true}, {_error, _stack}} ->
        failed_with_batch(state, task)

      {%Task{returned: false, excepted: true, verdict: :exit}, :as_told} ->
        failed_with_batch(state, task)

      # Killed in the processor, or after its exception.
      {%Task{returned: false}, reason} when reason in [:killed, :shutdown, :noproc] ->
        state |> count(:killed) |> failed_with_batch(task)

      # It may have an unseen batch.
      {%Task{returned: true}, reason} when reason in [:killed, :shutdown, :noproc] ->
        %{state | windows: state.windows + 1} |> count(:failed) |> count(:killed_outside)

      {%Task{returned: true, excepted: true, sizes: []}, {:badarg, _stack}} ->
        count(state, :failed)

      unexplained ->
        violation(state, :task_end, unexplained)
    end
  end

  defp failed_with_batch(state, task) do
    state |> count(:failed) |> count(:failed_batches) |> count(:failed_entries, hd(task.sizes))
  end

  ## What has come

  @doc """
  The last number of a key or a stream that came, 0 without any, and the number of windows before.
  """
  def seen(ledger, what) do
    case :ets.lookup(ledger.seen, what) do
      [{^what, last, windows}] -> {last, windows}
      [] -> {0, 0}
    end
  end

  @doc "Notes the last number of a key or a stream that came."
  def see(ledger, what, last), do: :ets.insert(ledger.seen, {what, last, ledger.windows})

  @doc "Notes a value that refers to code."
  def code(ledger, number, value) do
    cond do
      not Code.intact?(value, number) -> violation(ledger, :wrong, {:code, number})
      :ets.insert_new(ledger.seen, {{:code, number}}) -> count(ledger, :functions)
      true -> violation(ledger, :again, {:code, number})
    end
  end

  defp code_seen?(ledger, number), do: :ets.member(ledger.seen, {:code, number})

  ## The end

  defp finish_if_idle(%{finish: {from, written}, tasks: tasks} = state) when tasks == %{} do
    state = Enum.reduce(written, state, &check/2)
    GenServer.reply(from, Map.take(state, [:counts, :violations]))
    if state.buffer, do: :telemetry.detach(state.buffer)
    %{state | finish: nil}
  end

  defp finish_if_idle(state), do: state

  defp check({:code, number}, state) do
    if code_seen?(state, number), do: state, else: missing(state, 1, {:code, number}, state.windows > 0)
  end

  defp check(written, state), do: state.kind.check(written, state)

  @doc "Counts missing entries: as unseen if a window excuses them, or as lost."
  def missing(state, missing, what, excused?) do
    if excused?, do: count(state, :unseen, missing), else: violation(state, :lost, what, missing)
  end

  @doc "Counts an event other than a violation."
  def count(state, what, by \\ 1), do: %{state | counts: Map.update(state.counts, what, by, &(&1 + by))}

  @doc "Counts a violation, and keeps the first of its kind."
  def violation(state, kind, what, by \\ 1) do
    violations = Map.update(state.violations, kind, {by, what}, fn {n, first} -> {n + by, first} end)
    %{state | violations: violations}
  end
end
