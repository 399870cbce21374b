defmodule PartitionedBuffer.Buffer.Supervisor do
  @moduledoc false
  # The processes of one buffer: a task supervisor and a process for each partition, a process at
  # which writers wait for room, and a drainer as the first and as the last child.
  #
  #     name.Supervisor
  #     ├── PartitionedBuffer.Buffer.Drainer
  #     ├── PartitionedBuffer.Buffer.Writers
  #     ├── Task.Supervisor         the processor is called here
  #     ├── name.0                  PartitionedBuffer.Partition.Server
  #     ├── Task.Supervisor
  #     ├── name.1
  #     └── PartitionedBuffer.Buffer.Drainer
  #
  # Only the supervisor and the partitions have names; the native run has the pids of the others. A
  # buffer can therefore have any name that leaves these names free.
  #
  # The limit of restarts grows with the partition count, because one cause may make all partitions
  # fail at once: for example, the module of the NIFs is loaded again. The usual limit of three
  # restarts would then end a buffer of four partitions.
  #
  # The native run lasts as long as this process. If all processes crash, the next supervisor of the
  # same name finds the entries, and starts a new run.

  use Supervisor

  alias PartitionedBuffer.Buffer.{Drainer, Lookup, Writers}
  alias PartitionedBuffer.{Library, Native, Options, Ref, Routing}
  alias PartitionedBuffer.Partition.{Runner, Server}

  # The time, in milliseconds, that a start waits for the ending processes of the last run.
  @former_ms 5_000

  @doc """
  The child specification of a buffer that `module.start_link/1` starts. Only that call checks the
  options.
  """
  @spec child_spec(module(), any()) :: Supervisor.child_spec()
  def child_spec(module, opts),
    do: %{id: Options.name(opts) || module, start: {module, :start_link, [opts]}, type: :supervisor}

  @doc """
  Starts a buffer of the kind of `module`, or of the option `:module`.
  """
  @spec start_link(module() | nil, keyword()) :: Supervisor.on_start()
  def start_link(module \\ nil, opts) do
    {%Options{name: buffer}, _functions} = init = Options.start!(opts, module)

    with :ok <- Library.check(),
         {:error, {:already_started, pid}} = error <-
           Supervisor.start_link(__MODULE__, init, name: Routing.supervisor_name(buffer)) do
      if own?(buffer, pid),
        do: error,
        else: {:error, {taken(buffer, "supervisor", Routing.supervisor_name(buffer), pid), []}}
    end
  end

  # A starting or ending supervisor has no run.
  defp own?(buffer, pid) do
    case Lookup.supervisor(buffer) do
      nil -> Lookup.buffer(pid) == nil and initial_call(pid) == {:supervisor, __MODULE__, 1}
      owner -> owner == pid
    end
  end

  defp initial_call(pid) do
    with {:dictionary, dictionary} <- Process.info(pid, :dictionary), do: dictionary[:"$initial_call"]
  end

  @doc """
  Stops a buffer, given by its name or the pid of its supervisor. Exits as `Supervisor.stop/3` does,
  except if another process stops the buffer during the call.
  """
  @spec stop(atom() | pid(), any(), timeout()) :: :ok
  def stop(buffer, reason, timeout) when is_atom(buffer) do
    Runner.refuse!(buffer, "stop")
    Options.timeout!(buffer, timeout)

    case Lookup.supervisor(buffer) do
      nil -> exit({:noproc, {GenServer, :stop, [Routing.supervisor_name(buffer), reason, timeout]}})
      pid -> stop_supervisor(pid, reason, timeout)
    end
  end

  def stop(pid, reason, timeout) when is_pid(pid) do
    buffer = if node(pid) == node(), do: Lookup.buffer(pid)
    if buffer, do: Runner.refuse!(buffer, "stop")
    Options.timeout!(buffer, timeout)
    stop_supervisor(pid, reason, timeout)
  end

  defp stop_supervisor(pid, reason, timeout) do
    ref = Process.monitor(pid)

    try do
      Supervisor.stop(pid, reason, timeout)
    catch
      # Another call or its own supervisor ended it. A stop is no error.
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

  @impl Supervisor
  def init({%Options{name: buffer, partitions: count} = options, functions}) do
    Native.hold()
    end_former_run(buffer, options)
    {outcomes?, strict?} = {Options.outcomes?(options), options.order == :strict}
    run = Native.open(buffer, options.kind, count, outcomes?, strict?, options.max_size)
    Native.put_options(run, 0, options, functions)
    partitions = for number <- 0..(count - 1)//1, do: Ref.new(run, buffer, number)

    children =
      for partition <- partitions,
          child <- [Runner.supervisor_spec(partition), {Server, partition}],
          do: child

    first = [{Drainer, {:first, run, partitions}}, {Writers, {run, buffer}}]

    Supervisor.init(first ++ children ++ [{Drainer, {:last, run, partitions}}],
      strategy: :one_for_one,
      max_restarts: 3 + 3 * count,
      max_seconds: 5
    )
  end

  # Processes of a killed supervisor may still run: the VM frees a name before it reports a death.
  # The new partitions need the names of the old ones. With outcomes, the batch of a task is
  # retried, so the task must end; without outcomes, the task finds no other batch. The VM may have
  # given the pid of a dead process to another one, so a process is also known by its name, or by
  # the buffer of its task.
  defp end_former_run(buffer, %Options{partitions: count} = options) do
    Native.end_run(buffer)
    {outcomes?, left} = Native.left(buffer)
    tasks = for {:task, pid} <- left, Runner.task_of?(pid, buffer), do: pid
    if outcomes? or Options.outcomes?(options), do: await_ends(tasks, 0)
    names = for number <- 0..(count - 1)//1, do: {number, Routing.partition_name(buffer, number)}
    servers = MapSet.new(for {:server, pid} <- left, do: pid)

    await_ends(
      for({_number, name} <- names, pid = Process.whereis(name), pid in servers, do: pid),
      @former_ms
    )

    for {number, name} <- names,
        pid = Process.whereis(name),
        do: exit({taken(buffer, "partition #{number}", name, pid), []})
  end

  # Kills the processes that do not end within `ms` milliseconds.
  defp await_ends(pids, ms) do
    until = System.monotonic_time(:millisecond) + ms
    for {pid, ref} <- Enum.map(pids, &{&1, Process.monitor(&1)}), do: await_end(pid, ref, until)
  end

  defp await_end(pid, ref, until) do
    receive do
      {:DOWN, ^ref, :process, ^pid, _reason} -> :ok
    after
      max(until - System.monotonic_time(:millisecond), 0) ->
        Process.exit(pid, :kill)
        receive do: ({:DOWN, ^ref, :process, ^pid, _reason} -> :ok)
    end
  end

  defp taken(buffer, what, name, pid) do
    %ArgumentError{
      message:
        "buffer #{inspect(buffer)} cannot start: its #{what} would be named #{inspect(name)}, " <>
          "but that is the name of #{inspect(pid)}, which is not the #{what |> String.split() |> hd()} of a buffer: " <>
          "give the buffer another :name"
    }
  end
end
