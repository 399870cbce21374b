defmodule PartitionedBuffer.Running do
  @moduledoc false
  # The task that processes the flush of a partition. There is one at a time, under the partition's own task supervisor. It
  # is not linked to the partition's process: if that dies, the task goes on, and the next process finds it under the task
  # supervisor. During a stop a dead task supervisor is not restarted; then the task is a process of its own, which is found
  # by its name.

  alias PartitionedBuffer.{Flush, Identity, Native, Partition, Telemetry}

  # `kind` is the kind of the flush, or `:found` if an earlier process of the partition has started the task. `flush` is
  # nil if a found task has no flush in flight. `from` is the position where the task begins to claim, nil if it was
  # found after it had begun.
  @enforce_keys [:pid, :ref, :kind, :flush, :from]
  defstruct @enforce_keys

  @type t() :: %__MODULE__{
          pid: pid(),
          ref: reference(),
          kind: :rest | :fresh | :found,
          flush: reference() | nil,
          from: non_neg_integer() | nil
        }

  @doc """
  Starts the task. It fails while the task supervisor is gone.
  """
  @spec start(Identity.t(), :rest | :fresh, reference()) :: {:ok, t()} | {:error, term()}
  def start(%Identity{} = identity, kind, flush) do
    from = Native.position(flush)
    supervisor = Partition.task_supervisor(identity.buffer, identity.number)
    task = Task.Supervisor.async_nolink(supervisor, work(identity, flush))
    {:ok, %__MODULE__{pid: task.pid, ref: task.ref, kind: kind, flush: flush, from: from}}
  catch
    :exit, reason -> {:error, reason}
  end

  @doc """
  Starts the task without a task supervisor.
  """
  @spec start_alone(Identity.t(), :rest | :fresh, reference()) :: t()
  def start_alone(%Identity{} = identity, kind, flush) do
    from = Native.position(flush)
    work = work(identity, flush)

    # It registers itself, because the process that starts it may die before it could do that.
    {pid, ref} =
      spawn_monitor(fn ->
        Process.register(self(), name_alone(identity))
        work.()
      end)

    %__MODULE__{pid: pid, ref: ref, kind: kind, flush: flush, from: from}
  end

  defp work(%Identity{} = identity, flush) do
    options = Identity.options(identity)
    fn -> Flush.process(flush, options, identity.name) end
  end

  defp name_alone(%Identity{name: name}), do: Module.concat(name, Rest)

  @doc """
  The task that an earlier process of the partition has started, if it is still at work.
  """
  @spec find(Identity.t()) :: t() | nil
  def find(%Identity{} = identity) do
    if pid = Process.whereis(name_alone(identity)) || List.first(tasks(identity)) do
      ref = Process.monitor(pid)
      flush = in_flight(identity)
      # The position is read before the check: if the task has not begun by then, it begins there or later.
      position = if flush, do: Native.position(flush)
      from = if Flush.processing?(pid, identity.buffer), do: nil, else: position
      %__MODULE__{pid: pid, ref: ref, kind: :found, flush: flush, from: from}
    end
  end

  defp tasks(%Identity{} = identity) do
    Task.Supervisor.children(Partition.task_supervisor(identity.buffer, identity.number))
  catch
    # The task supervisor is gone.
    :exit, _reason -> []
  end

  defp in_flight(%Identity{} = identity) do
    case Native.in_flight(identity.buffer, identity.number) do
      flush when is_reference(flush) -> flush
      nothing when nothing in [:empty, :not_running] -> nil
    end
  end

  @doc """
  When the task claimed the batch of its last call of the processor, by `System.monotonic_time(:nanosecond)`; nil if it has
  not claimed a batch yet.
  """
  @spec called_at(t()) :: integer() | nil
  def called_at(%__MODULE__{flush: nil}), do: nil

  def called_at(%__MODULE__{flush: flush, from: from}) do
    case Native.progress(flush) do
      {^from, _end, _claimed_before} -> nil
      {_position, _end, claimed_at} -> claimed_at
    end
  end

  @doc """
  Whether a found task has not begun to work, although entries are left. The process that started it has died before it
  told the task to begin.
  """
  @spec idle?(t()) :: boolean()
  def idle?(%__MODULE__{kind: :found, flush: flush, from: from}) when from != nil do
    {position, last, _claimed_at} = Native.progress(flush)
    position == from and position < last
  end

  def idle?(%__MODULE__{}), do: false

  @doc """
  Emits the event `processing_failed` if the task has failed. The exit reason of a task that was dead before it was monitored
  is unknown, so it has no event.
  """
  @spec report(Identity.t(), t(), term()) :: :ok
  def report(_identity, _running, reason) when reason in [:normal, :noproc], do: :ok

  def report(%Identity{} = identity, %__MODULE__{} = running, reason) do
    metadata = identity |> Identity.metadata() |> Map.put(:reason, reason)

    unless idle?(running),
      do: Telemetry.execute([:processing_failed], %{system_time: System.system_time()}, metadata)

    :ok
  end
end
