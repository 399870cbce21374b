defmodule PartitionedBuffer.Running do
  @moduledoc false
  # The task that works on what a partition has handed over. There is one at a time, under the partition's own task
  # supervisor. It is not linked: it goes on when the partition's process dies, and is found there by the next one. At a
  # stop, when no task supervisor is started any more, it may be a process on its own, found by its name.

  alias PartitionedBuffer.{HandOver, Identity, Native, Partition, Telemetry}

  # `kind` is that of the hand-over; `:found` if an earlier process of the partition has started the task. `batch` is nil
  # where nothing is left to be seen of what a found task works on. `from` is where a task has begun to claim, nil for one
  # that was found in the middle of it.
  @enforce_keys [:pid, :ref, :kind, :batch, :from]
  defstruct @enforce_keys

  @type t() :: %__MODULE__{
          pid: pid(),
          ref: reference(),
          kind: :rest | :fresh | :found,
          batch: reference() | nil,
          from: non_neg_integer() | nil
        }

  @doc """
  Starts the task. It fails while the task supervisor is gone.
  """
  @spec start(Identity.t(), :rest | :fresh, reference()) :: {:ok, t()} | {:error, term()}
  def start(%Identity{} = identity, kind, batch) do
    from = Native.position(batch)
    supervisor = Partition.task_supervisor(identity.buffer, identity.number)
    task = Task.Supervisor.async_nolink(supervisor, work(identity, batch))
    {:ok, %__MODULE__{pid: task.pid, ref: task.ref, kind: kind, batch: batch, from: from}}
  catch
    :exit, reason -> {:error, reason}
  end

  @doc """
  Starts a process that does the same without a task supervisor.
  """
  @spec start_alone(Identity.t(), :rest | :fresh, reference()) :: t()
  def start_alone(%Identity{} = identity, kind, batch) do
    from = Native.position(batch)
    work = work(identity, batch)

    # It registers itself: whoever has started it may be dead by then.
    {pid, ref} =
      spawn_monitor(fn ->
        Process.register(self(), name_alone(identity))
        work.()
      end)

    %__MODULE__{pid: pid, ref: ref, kind: kind, batch: batch, from: from}
  end

  defp work(%Identity{} = identity, batch) do
    options = Identity.options(identity)
    fn -> HandOver.process(batch, options, identity.name) end
  end

  defp name_alone(%Identity{name: name}), do: Module.concat(name, Rest)

  @doc """
  The task that an earlier process of the partition has started, if it is still at work.
  """
  @spec find(Identity.t()) :: t() | nil
  def find(%Identity{} = identity) do
    if pid = Process.whereis(name_alone(identity)) || List.first(tasks(identity)) do
      ref = Process.monitor(pid)
      batch = pending(identity)
      # In this order: a task that has not begun then has claimed nothing before this position.
      position = if batch, do: Native.position(batch)
      from = if HandOver.processing?(pid, identity.buffer), do: nil, else: position
      %__MODULE__{pid: pid, ref: ref, kind: :found, batch: batch, from: from}
    end
  end

  defp tasks(%Identity{} = identity) do
    Task.Supervisor.children(Partition.task_supervisor(identity.buffer, identity.number))
  catch
    # It is gone.
    :exit, _reason -> []
  end

  defp pending(%Identity{} = identity) do
    case Native.pending(identity.buffer, identity.number) do
      batch when is_reference(batch) -> batch
      nothing when nothing in [:empty, :not_running] -> nil
    end
  end

  @doc """
  When the task has last claimed a batch, which it calls the processor with, by `System.monotonic_time(:nanosecond)`; nil
  where it has claimed none yet.
  """
  @spec called_at(t()) :: integer() | nil
  def called_at(%__MODULE__{batch: nil}), do: nil

  def called_at(%__MODULE__{batch: batch, from: from}) do
    case Native.progress(batch) do
      {^from, _end, _claimed_before} -> nil
      {_position, _end, claimed_at} -> claimed_at
    end
  end

  @doc """
  Whether this is a task that was found and has not begun to work, though there is something to do. Its partition has died
  before it could tell the task to.
  """
  @spec idle?(t()) :: boolean()
  def idle?(%__MODULE__{kind: :found, batch: batch, from: from}) when from != nil do
    {position, last, _claimed_at} = Native.progress(batch)
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
