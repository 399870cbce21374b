defmodule PartitionedBuffer.Running do
  @moduledoc false
  # The task that works on what a partition has flushed. There is one at a time, under the partition's own task
  # supervisor. It is not linked: it goes on when the partition's process dies, and is found there by the next one. At a
  # stop, when no task supervisor is started any more, it may be a process on its own, found by its name.

  alias PartitionedBuffer.{Flush, Identity, Native, Partition, Telemetry}

  # `kind` is that of the flush; `:found` if an earlier process of the partition has started the task. `flush` is nil
  # where nothing is left to be seen of what a found task works on. `from` is where a task has begun to claim, nil for one
  # that was found in the middle of it.
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
  Starts a process that does the same without a task supervisor.
  """
  @spec start_alone(Identity.t(), :rest | :fresh, reference()) :: t()
  def start_alone(%Identity{} = identity, kind, flush) do
    from = Native.position(flush)
    work = work(identity, flush)

    # It registers itself: whoever has started it may be dead by then.
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
      # In this order: a task that has not begun then has claimed nothing before this position.
      position = if flush, do: Native.position(flush)
      from = if Flush.processing?(pid, identity.buffer), do: nil, else: position
      %__MODULE__{pid: pid, ref: ref, kind: :found, flush: flush, from: from}
    end
  end

  defp tasks(%Identity{} = identity) do
    Task.Supervisor.children(Partition.task_supervisor(identity.buffer, identity.number))
  catch
    # It is gone.
    :exit, _reason -> []
  end

  defp in_flight(%Identity{} = identity) do
    case Native.in_flight(identity.buffer, identity.number) do
      flush when is_reference(flush) -> flush
      nothing when nothing in [:empty, :not_running] -> nil
    end
  end

  @doc """
  When the task has last claimed a flush, which it calls the processor with, by `System.monotonic_time(:nanosecond)`; nil
  where it has claimed none yet.
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
  Whether this is a task that was found and has not begun to work, though there is something to do. Its partition has died
  before it could tell the task to.
  """
  @spec idle?(t()) :: boolean()
  def idle?(%__MODULE__{kind: :found, flush: flush, from: from}) when from != nil do
    {position, last, _claimed_at} = Native.progress(flush)
    position == from and position < last
  end

  def idle?(%__MODULE__{}), do: false

  @doc """
  Tells of a task that has ended for this reason, if it has failed. Of one that was dead before it was monitored nothing is
  known.
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
