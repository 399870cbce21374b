defmodule PartitionedBuffer.Running do
  @moduledoc false
  # The task that processes the flush of a partition. There is one at a time: it registers under a name of its partition, and
  # one that finds the name taken waits for the end of the other. It runs under the partition's task supervisor, but is not
  # linked to the partition's process: if that dies, the task goes on, and the next process finds it by its name. During a stop
  # a dead task supervisor is not restarted; then the task is a process of its own.
  #
  # How the task has ended is in the settings of the buffer, since the process that started it may be dead.

  alias PartitionedBuffer.{Flush, Identity, Native, Options, Outcome, Partition, Telemetry}

  # `kind` is the kind of the flush, or `:found` if an earlier process of the partition has started the task. `flush` is
  # nil if a found task has no flush in flight. `calls` is how many calls of the processor the flush had before. `since` is
  # when it was started or found, by `System.monotonic_time(:nanosecond)`. `reason` is why the last task has died, if this one
  # was started to settle what that one has left.
  @enforce_keys [:pid, :ref, :kind, :flush, :calls, :since]
  defstruct @enforce_keys ++ [:reason]

  @type t() :: %__MODULE__{
          pid: pid(),
          ref: reference(),
          kind: :rest | :fresh | :found,
          flush: reference() | nil,
          calls: non_neg_integer(),
          since: integer(),
          reason: any()
        }

  # The key in the dictionary of a task. Its value is the name of the buffer, and its settings.
  @processing :"$partitioned_buffer"

  @doc """
  Starts the task. It fails while the task supervisor is gone. The option `:callers` is for the dictionary of the task, the
  others are those of `PartitionedBuffer.Flush.process/3`.
  """
  @spec start(Identity.t(), :rest | :fresh, reference(), keyword()) :: {:ok, t()} | {:error, term()}
  def start(%Identity{} = identity, kind, flush, opts) do
    supervisor = Partition.task_supervisor(identity.buffer, identity.number)
    forget_end(identity)
    running = new(kind, flush, opts)
    task = Task.Supervisor.async_nolink(supervisor, work(identity, flush, kind, opts))
    {:ok, %{running | pid: task.pid, ref: task.ref}}
  catch
    :exit, reason -> {:error, reason}
  end

  @doc """
  Starts the task without a task supervisor.
  """
  @spec start_alone(Identity.t(), :rest | :fresh, reference(), keyword()) :: t()
  def start_alone(%Identity{} = identity, kind, flush, opts) do
    forget_end(identity)
    running = new(kind, flush, opts)
    {pid, ref} = spawn_monitor(work(identity, flush, kind, opts))
    %{running | pid: pid, ref: ref}
  end

  @doc """
  Starts a process that does something else with a flush, in the place of a task.
  """
  @spec start_other(Identity.t(), reference(), (() -> any())) :: t()
  def start_other(%Identity{} = identity, flush, fun) do
    running = new(:rest, flush, [])

    {pid, ref} =
      spawn_monitor(fn ->
        register(identity)
        fun.()
      end)

    %{running | pid: pid, ref: ref}
  end

  defp new(kind, flush, opts) do
    %__MODULE__{
      pid: nil,
      ref: nil,
      kind: kind,
      flush: flush,
      calls: calls(flush),
      since: System.monotonic_time(:nanosecond),
      reason: opts[:reason]
    }
  end

  defp calls(nil), do: 0
  defp calls(flush), do: flush |> Native.seen() |> elem(0)

  defp work(%Identity{} = identity, flush, kind, opts) do
    fn ->
      register(identity)
      if callers = opts[:callers], do: Process.put(:"$callers", callers)
      ended = Flush.process(flush, identity, [resumed?: kind == :rest] ++ opts)
      Identity.put(identity, :ended, ended)
      :ok
    end
  end

  # Another task may be at work: one of a killed supervision tree, or one that was started just before the partition's process
  # died.
  defp register(%Identity{} = identity) do
    Process.put(@processing, {identity.buffer, identity.settings})

    try do
      Process.register(self(), name(identity))
    rescue
      ArgumentError ->
        if pid = Process.whereis(name(identity)), do: await_end(pid)
        register(identity)
    end
  end

  defp await_end(pid) do
    ref = Process.monitor(pid)

    receive do
      {:DOWN, ^ref, :process, ^pid, _reason} -> :ok
    end
  end

  defp name(%Identity{name: name}), do: name(name)
  defp name(partition), do: Module.concat(partition, Task)

  @doc """
  Whether the task of the partition of this name is at work.
  """
  @spec at_work?(atom()) :: boolean()
  def at_work?(partition), do: Process.whereis(name(partition)) != nil

  @doc """
  Ends the tasks of a buffer that are still at work although its supervision tree was killed. With outcomes their batches will
  be retried, perhaps by other partitions, so they must not go on. The buffer must not have been started again.
  """
  @spec end_left(atom()) :: :ok
  def end_left(buffer) do
    prefix = "#{Module.concat([buffer])}."

    for name <- Process.registered(),
        String.starts_with?(Atom.to_string(name), prefix),
        pid = Process.whereis(name),
        match?({^buffer, _settings}, processing(pid)) do
      Process.exit(pid, :kill)
      await_end(pid)
    end

    :ok
  end

  @doc """
  The task that an earlier process of the partition has started, if it is still at work.
  """
  @spec find(Identity.t()) :: t() | nil
  def find(%Identity{} = identity) do
    if pid = Process.whereis(name(identity)) do
      ref = Process.monitor(pid)
      %{new(:found, in_flight(identity), []) | pid: pid, ref: ref}
    end
  end

  defp in_flight(%Identity{} = identity) do
    case Native.in_flight(identity.buffer, identity.number) do
      flush when is_reference(flush) -> flush
      nothing when nothing in [:empty, :not_running] -> nil
    end
  end

  @doc """
  How the last task has ended, if it was not killed. It stays known, since the process that asks may die.
  """
  @spec ended(Identity.t()) :: Flush.ended()
  def ended(%Identity{} = identity),
    do: Identity.get(identity, :ended) || %{pause: nil, failures: 0, failed: 0}

  @doc """
  Forgets how the last task has ended.
  """
  @spec forget_end(Identity.t()) :: :ok
  def forget_end(%Identity{} = identity) do
    Identity.take(identity, :ended)
    :ok
  end

  @doc """
  When the last call of the processor, or of `:dead_letter`, began, by `System.monotonic_time(:nanosecond)`. Before the first
  one it is when the task was started or found.
  """
  @spec called_at(t()) :: integer()
  def called_at(%__MODULE__{flush: nil, since: since}), do: since

  def called_at(%__MODULE__{flush: flush, since: since}) do
    {_calls, _called_with, _left, called_at} = Native.seen(flush)
    max(called_at || since, since)
  end

  @doc """
  Kills the task and waits for its end.
  """
  @spec kill(t()) :: :ok
  def kill(%__MODULE__{pid: pid, ref: ref}) do
    Process.exit(pid, :kill)

    receive do
      {:DOWN, ^ref, :process, _pid, _reason} -> :ok
    end
  end

  @doc """
  Whether there are no entries left for the task. Other entries may wait.
  """
  @spec finished?(t()) :: boolean()
  def finished?(%__MODULE__{flush: nil}), do: true
  def finished?(%__MODULE__{flush: flush}), do: flush |> Native.seen() |> elem(2) == 0

  @doc """
  Whether the task has called the processor.
  """
  @spec called?(t()) :: boolean()
  def called?(%__MODULE__{flush: nil}), do: true
  def called?(%__MODULE__{flush: flush, calls: calls}), do: calls(flush) > calls

  @doc """
  How many entries a task without outcomes has lost, if it has died.
  """
  @spec lost(t()) :: non_neg_integer()
  def lost(%__MODULE__{} = running) do
    if running.flush && called?(running), do: running.flush |> Native.seen() |> elem(1), else: 0
  end

  @doc """
  Emits the event `processing_failed` if the task has failed. The exit reason of a task that was dead before it was monitored
  is unknown, so it has no event. With outcomes, the task that settles the batch emits it.
  """
  @spec report(Identity.t(), t(), term()) :: :ok
  def report(_identity, _running, reason) when reason in [:normal, :noproc], do: :ok

  def report(%Identity{} = identity, %__MODULE__{} = running, reason) do
    unless Options.outcomes?(Identity.options(identity)) do
      lost = lost(running)
      Native.failed(identity.buffer, identity.number, lost)
      Identity.put_error(identity, Outcome.summary(reason))
      Telemetry.processing_failed(identity, reason, lost)
    end

    :ok
  end

  @doc """
  Whether the calling process runs a processor of this buffer, or is a task that one has started: `$callers` says so.
  """
  @spec in_processor?(atom()) :: boolean()
  def in_processor?(buffer) do
    match?({^buffer, _settings}, Process.get(@processing)) or
      Enum.any?(Process.get(:"$callers", []), &match?({^buffer, _settings}, processing(&1)))
  end

  @doc """
  Raises in a processor of this buffer, since what it calls would wait for the end of the processor.
  """
  @spec refuse!(atom(), String.t()) :: :ok
  def refuse!(buffer, call) do
    if in_processor?(buffer) do
      raise ArgumentError,
            "a processor of buffer #{inspect(buffer)} cannot #{call} it: the call would wait for the processor itself"
    end

    :ok
  end

  defp processing(pid) when node(pid) == node() do
    with {:dictionary, dictionary} <- Process.info(pid, :dictionary),
         {@processing, value} <- List.keyfind(dictionary, @processing, 0),
         do: value
  end

  defp processing(_on_another_node), do: nil
end
