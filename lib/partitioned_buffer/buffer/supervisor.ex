defmodule PartitionedBuffer.Buffer.Supervisor do
  @moduledoc false
  # The processes of one buffer: a task supervisor and a process for each partition, a process at
  # which writers wait for room, a drainer before and after these, and a process that calls the
  # handlers of events and log lines. That is the first child, since all others send to it until
  # their end.
  #
  #     name.Supervisor
  #     ├── PartitionedBuffer.Emitter
  #     ├── PartitionedBuffer.Buffer.Drainer
  #     ├── PartitionedBuffer.Buffer.Writers
  #     ├── PartitionedBuffer.Buffer.Journaling    with a journal
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

  alias PartitionedBuffer.Buffer.{Drainer, Journaling, Lookup, Run, Writers}
  alias PartitionedBuffer.{Emitter, Library, Native, Options, Routing}
  alias PartitionedBuffer.Partition.{Runner, Server}

  # The time limit, in milliseconds, of the note on another node.
  @note_ms 5_000

  @doc """
  The child specification of a buffer that `module.start_link/1` starts. Only that call checks the
  options.
  """
  @spec child_spec(module(), any()) :: Supervisor.child_spec()
  def child_spec(module, opts),
    do: %{id: Options.name(opts) || module, start: {module, :start_link, [opts]}, type: :supervisor}

  @doc """
  Starts a buffer with checked options.
  """
  @spec start_link({Options.t(), Options.Functions.t()}) :: Supervisor.on_start()
  def start_link({%Options{name: buffer}, _functions} = init) do
    with :ok <- Library.check(),
         {:error, {:already_started, pid}} <-
           Supervisor.start_link(__MODULE__, init, name: Routing.supervisor_name(buffer)) do
      # The owner of a stage is below the supervisor of the whole buffer.
      if own?(buffer, pid),
        do: {:error, {:already_started, Lookup.supervisor(buffer) || pid}},
        else: {:error, {taken(buffer, "supervisor", Routing.supervisor_name(buffer), pid), []}}
    end
  end

  # A starting or ending supervisor has no run.
  defp own?(buffer, pid) do
    case Lookup.owner(buffer) do
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
  @spec stop(atom() | pid(), any(), timeout(), keyword()) :: :ok
  def stop(buffer, reason, timeout, opts) when is_atom(buffer) do
    Runner.refuse!(buffer, "stop")
    {reason, timeout, leftovers} = Options.stop!(buffer, reason, timeout, opts)

    case Lookup.supervisor(buffer) do
      nil ->
        exit({:noproc, {GenServer, :stop, [Routing.supervisor_name(buffer), reason, timeout]}})

      pid ->
        note_stop(pid, leftovers)
        stop_supervisor(pid, reason, timeout)
    end
  end

  def stop(pid, reason, timeout, opts) when is_pid(pid) do
    buffer = if node(pid) == node(), do: Lookup.buffer(pid)
    if buffer, do: Runner.refuse!(buffer, "stop")
    {reason, timeout, leftovers} = Options.stop!(buffer, reason, timeout, opts)
    note_stop(pid, leftovers)
    stop_supervisor(pid, reason, timeout)
  end

  @doc """
  Notes in the run of a supervisor that the application stops it. A stop by a supervisor, which may
  start the buffer again, does not retry.
  """
  @spec note_stop(pid(), :dead_letter | :keep) :: :ok
  def note_stop(pid, leftovers) when node(pid) == node() do
    # The run is read before its owner, so the note is never in a later run.
    with buffer when buffer != nil <- Lookup.buffer(pid),
         run when run != :not_running <- Native.run(buffer),
         true <- Lookup.supervisor(buffer) == pid and pid != self(),
         do: Native.put_stop(run, leftovers)

    :ok
  end

  # If the call fails, the stop fails as well, or it is that of a supervisor.
  def note_stop(pid, leftovers) do
    :erpc.call(node(pid), __MODULE__, :note_stop, [pid, leftovers], @note_ms)
  catch
    _kind, _reason -> :ok
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
    Run.end_former(options)
    refuse_taken_names!(options)
    {run, partitions, replay} = Run.open(options, functions)

    children =
      for partition <- partitions,
          child <- [Runner.supervisor_spec(partition), {Server, partition}],
          do: child

    reports = if options.journal, do: [{Journaling, {run, buffer, replay}}], else: []

    first =
      [{Emitter, {run, buffer}}, {Drainer, {:first, run, partitions}}, {Writers, {run, buffer}}] ++ reports

    Supervisor.init(first ++ children ++ [{Drainer, {:last, run, partitions}}],
      strategy: :one_for_one,
      max_restarts: 3 + 3 * count,
      max_seconds: 5
    )
  end

  defp refuse_taken_names!(%Options{name: buffer, partitions: count}) do
    for number <- 0..(count - 1)//1,
        name = Routing.partition_name(buffer, number),
        pid = Process.whereis(name),
        do: exit({taken(buffer, "partition #{number}", name, pid), []})
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
