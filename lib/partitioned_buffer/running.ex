defmodule PartitionedBuffer.Running do
  @moduledoc false
  # The task that works on what a partition has handed over. There is one at a time, under the partition's own task
  # supervisor. It is not linked: it goes on when the partition's process dies, and is found there by the next one. At a
  # stop, when no task supervisor is started any more, it may be a process on its own, found by its name.

  alias PartitionedBuffer.{HandOver, Identity, Native, Partition, Telemetry}

  # `kind` is that of the hand-over; `:found` if an earlier process of the partition has started the task. `batch` is nil
  # where nothing is left to be seen of what a found task works on. `from` is where a task has begun to claim, nil for one
  # that may have been found in the middle of it.
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
      %__MODULE__{pid: pid, ref: Process.monitor(pid), kind: :found, batch: pending(identity), from: nil}
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
  Tells of a task that has ended for this reason, if it has failed. Of one that was dead before it was monitored nothing is
  known.
  """
  @spec report(Identity.t(), term()) :: :ok
  def report(_identity, reason) when reason in [:normal, :noproc], do: :ok

  def report(%Identity{} = identity, reason) do
    metadata = identity |> Identity.metadata() |> Map.put(:reason, reason)
    Telemetry.execute([:processing_failed], %{system_time: System.system_time()}, metadata)
  end
end
