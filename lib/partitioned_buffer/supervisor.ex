defmodule PartitionedBuffer.Supervisor do
  @moduledoc false
  # The processes of one buffer. For each partition a task supervisor and the partition itself, and a drainer as the first
  # and as the last:
  #
  #     name.Supervisor
  #     ├── PartitionedBuffer.Drainer
  #     ├── name.0.TaskSupervisor   the processor is called here
  #     ├── name.0                  PartitionedBuffer.Partition
  #     ├── name.1.TaskSupervisor
  #     ├── name.1
  #     └── PartitionedBuffer.Drainer
  #
  # The number of restarts that it bears grows with the number of partitions. Each of them may fail by itself, and what makes
  # one fail may make all fail at once, as where the module of the NIFs is loaded again. The usual three restarts would end a
  # buffer of four partitions then.
  #
  # The native buffer runs as long as this process lives. What a crash of all of it leaves unprocessed is found by the next
  # supervisor of the same name.

  use Supervisor

  alias PartitionedBuffer.{Drainer, Identity, Native, Options, Partition}

  @doc """
  The child specification of a buffer that `module.start_link/1` starts with these options, which are not looked at before.
  """
  @spec child_spec(module(), any()) :: Supervisor.child_spec()
  def child_spec(module, opts),
    do: %{id: Options.name(opts) || module, start: {module, :start_link, [opts]}, type: :supervisor}

  @spec start_link(Options.t()) :: Supervisor.on_start()
  def start_link(%Options{name: buffer} = options) do
    with {:error, {:already_started, pid}} = error <-
           Supervisor.start_link(__MODULE__, options, name: name(buffer)) do
      if kind(pid) == :foreign, do: {:error, {collision(buffer, pid), []}}, else: error
    end
  end

  @doc """
  Stops a buffer, given by its name or its supervisor's pid. Exits as `Supervisor.stop/3` does, but not if somebody else stops
  it meanwhile.
  """
  @spec stop(atom() | pid(), any(), timeout()) :: :ok
  def stop(buffer, reason, timeout) when is_atom(buffer) do
    case whereis(buffer) do
      nil -> exit({:noproc, {GenServer, :stop, [name(buffer), reason, timeout]}})
      pid -> stop(pid, reason, timeout)
    end
  end

  def stop(pid, reason, timeout) when is_pid(pid) do
    ref = Process.monitor(pid)

    try do
      Supervisor.stop(pid, reason, timeout)
    catch
      # It has ended, by another call or by its own supervisor: that is no error if it was a stop.
      :exit, {cause, _call} = caught when cause not in [:timeout, :calling_self] ->
        receive do
          {:DOWN, ^ref, :process, _pid, ended} when ended in [:normal, :shutdown] -> :ok
          {:DOWN, ^ref, :process, _pid, {:shutdown, _why}} -> :ok
          {:DOWN, ^ref, :process, _pid, _other} -> exit(caught)
        end
    after
      Process.demonitor(ref, [:flush])
    end
  end

  @doc """
  The supervisor of a buffer; nil if there is none, or if its name is that of another process.
  """
  @spec whereis(atom()) :: pid() | nil
  def whereis(buffer) do
    pid = buffer |> name() |> Process.whereis()
    if pid && kind(pid) == :own, do: pid
  end

  @doc """
  The name of a buffer's supervisor.
  """
  @spec name(atom()) :: atom()
  def name(buffer), do: Module.concat(buffer, Supervisor)

  @impl Supervisor
  def init(%Options{name: buffer, partitions: partitions} = options) do
    Native.hold()
    Native.open(buffer, Options.kind(options), partitions)
    # Here, not in the partitions, so that updated options outlive a partition.
    settings = :ets.new(:partitioned_buffer_settings, [:public, read_concurrency: true])
    :ets.insert(settings, {:options, options})

    partitions = for number <- 0..(partitions - 1)//1, do: Identity.new(buffer, number, settings)

    children =
      for partition <- partitions, child <- [task_supervisor(partition), {Partition, partition}], do: child

    Supervisor.init([{Drainer, {:first, partitions}}] ++ children ++ [{Drainer, {:last, partitions}}],
      strategy: :one_for_one,
      max_restarts: 3 + 3 * length(partitions),
      max_seconds: 5
    )
  end

  # A buffer `MyApp` has a supervisor of the name that an application's own supervisor often has.
  defp kind(pid) do
    with {:dictionary, dictionary} <- Process.info(pid, :dictionary) do
      own? = {:"$initial_call", {:supervisor, __MODULE__, 1}} in dictionary
      if own?, do: :own, else: :foreign
    end
  end

  defp collision(buffer, pid) do
    %ArgumentError{
      message:
        "buffer #{inspect(buffer)} cannot start: its supervisor would be named #{inspect(name(buffer))}, " <>
          "which is the name of #{inspect(pid)}, and that is none of a buffer: another :name is needed"
    }
  end

  defp task_supervisor(%Identity{buffer: buffer, number: number}) do
    Supervisor.child_spec({Task.Supervisor, name: Partition.task_supervisor(buffer, number)},
      id: {Task.Supervisor, number}
    )
  end
end
