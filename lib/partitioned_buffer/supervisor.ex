defmodule PartitionedBuffer.Supervisor do
  @moduledoc false
  # The processes of one buffer: a task supervisor and a process for each partition, and a drainer as the first and as the
  # last child.
  #
  #     name.Supervisor
  #     ├── PartitionedBuffer.Drainer
  #     ├── name.Room               writers wait here for room
  #     ├── name.0.TaskSupervisor   the processor is called here
  #     ├── name.0                  PartitionedBuffer.Partition
  #     ├── name.1.TaskSupervisor
  #     ├── name.1
  #     └── PartitionedBuffer.Drainer
  #
  # The limit of restarts grows with the partition count, because one cause may make all partitions fail at once: for
  # example, the module of the NIFs is loaded again. The usual limit of three restarts would then end a buffer of four
  # partitions.
  #
  # The native buffer runs as long as this process lives. If all processes crash, the next supervisor of the same name finds
  # the entries that are left.

  use Supervisor

  # The key of the settings in the dictionary of this process.
  @settings :"$partitioned_buffer_settings"

  alias PartitionedBuffer.{Drainer, Identity, Library, Native, Options, Partition, Room, Running}

  @doc """
  The child specification of a buffer that `module.start_link/1` starts. Only that call checks the options.
  """
  @spec child_spec(module(), any()) :: Supervisor.child_spec()
  def child_spec(module, opts),
    do: %{id: Options.name(opts) || module, start: {module, :start_link, [opts]}, type: :supervisor}

  @spec start_link(Options.t()) :: Supervisor.on_start()
  def start_link(%Options{name: buffer} = options) do
    with :ok <- Library.check(),
         {:error, {:already_started, pid}} = error <-
           Supervisor.start_link(__MODULE__, options, name: name(buffer)) do
      if kind(pid) == :foreign, do: {:error, {collision(buffer, pid), []}}, else: error
    end
  end

  @doc """
  Stops a buffer, given by its name or the pid of its supervisor. Exits as `Supervisor.stop/3` does, except if another
  process stops the buffer during the call.
  """
  @spec stop(atom() | pid(), any(), timeout()) :: :ok
  def stop(buffer, reason, timeout) when is_atom(buffer) do
    Running.refuse!(buffer, "stop")

    case whereis(buffer) do
      nil -> exit({:noproc, {GenServer, :stop, [name(buffer), reason, timeout]}})
      pid -> stop(pid, reason, timeout)
    end
  end

  def stop(pid, reason, timeout) when is_pid(pid) do
    if options = node(pid) == node() && options_of(settings_of(pid)),
      do: Running.refuse!(options.name, "stop")

    ref = Process.monitor(pid)

    try do
      Supervisor.stop(pid, reason, timeout)
    catch
      # Another call or its own supervisor has ended it: that is no error if it was a stop.
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
  The supervisor of a buffer; nil if there is none, or if another process has its name.
  """
  @spec whereis(atom()) :: pid() | nil
  def whereis(buffer) do
    pid = buffer |> name() |> Process.whereis()
    if pid && kind(pid) == :own, do: pid
  end

  @doc """
  The table with the options of a running buffer, and with what its partitions keep there; nil if it is not running.
  """
  @spec settings(atom()) :: :ets.tid() | nil
  def settings(buffer) do
    if pid = buffer |> name() |> Process.whereis(), do: settings_of(pid)
  end

  @doc """
  The options of a running buffer; nil if it is not running.
  """
  @spec options(atom()) :: Options.t() | nil
  def options(buffer), do: options_of(settings(buffer))

  @doc """
  The names of all running buffers.
  """
  @spec buffers() :: [atom()]
  def buffers do
    for name <- Process.registered(),
        String.ends_with?(Atom.to_string(name), ".Supervisor"),
        pid = Process.whereis(name),
        options = options_of(settings_of(pid)),
        do: options.name
  end

  defp settings_of(pid) do
    with {:dictionary, dictionary} <- Process.info(pid, :dictionary),
         {@settings, settings} <- List.keyfind(dictionary, @settings, 0) do
      settings
    else
      _not_of_a_buffer -> nil
    end
  end

  defp options_of(nil), do: nil

  defp options_of(settings) do
    :ets.lookup_element(settings, :options, 2)
  rescue
    ArgumentError -> nil
  end

  @doc """
  Waits until a running supervisor has restarted the processes that have died before this call.
  """
  @spec await_restarts(atom()) :: :ok
  def await_restarts(buffer) do
    Supervisor.count_children(name(buffer))
    :ok
  catch
    :exit, _reason -> :ok
  end

  @doc """
  The name of a buffer's supervisor.
  """
  @spec name(atom()) :: atom()
  def name(buffer), do: Module.concat(buffer, Supervisor)

  @impl Supervisor
  def init(%Options{name: buffer, partitions: partition_count} = options) do
    Native.hold()
    if Options.outcomes?(options), do: Running.end_left(buffer)
    Native.open(buffer, Options.kind(options), partition_count, Options.outcomes?(options), options.max_size)
    # The supervisor owns the table, so updated options outlive the processes of the partitions.
    settings = :ets.new(:partitioned_buffer_settings, [:public, read_concurrency: true])
    :ets.insert(settings, {:options, options})
    Process.put(@settings, settings)

    partitions = for partition <- 0..(partition_count - 1)//1, do: Identity.new(buffer, partition, settings)

    children =
      for partition <- partitions, child <- [task_supervisor(partition), {Partition, partition}], do: child

    before = [{Drainer, {:first, partitions}}, {Room, {buffer, settings}}]

    Supervisor.init(before ++ children ++ [{Drainer, {:last, partitions}}],
      strategy: :one_for_one,
      max_restarts: 3 + 3 * partition_count,
      max_seconds: 5
    )
  end

  # The supervisor of a buffer `MyApp` has the name that the application's own supervisor often has.
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
          "but that is the name of #{inspect(pid)}, which is not the supervisor of a buffer: " <>
          "give the buffer another :name"
    }
  end

  defp task_supervisor(%Identity{buffer: buffer, number: partition}) do
    Supervisor.child_spec({Task.Supervisor, name: Partition.task_supervisor(buffer, partition)},
      id: {Task.Supervisor, partition}
    )
  end
end
