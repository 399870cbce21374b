defmodule PartitionedBuffer.Partition.Runner do
  @moduledoc false
  # The task that processes the flush of a partition. It runs under the partition's task supervisor
  # and is not linked to the partition's process: if that dies, the task goes on. The native
  # partition has the task's pid, so only one task runs at a time, and the next process finds it.
  # During a stop a dead task supervisor is not restarted; the task is then a process without a
  # supervisor.

  alias PartitionedBuffer.Buffer.Lookup
  alias PartitionedBuffer.{Label, Native, Processing, Ref, Routing}

  # `since` is the start of the task, or when it was found, in nanoseconds of the VM's monotonic
  # time. A task that `replies?` sends `{monitor, :done}` at its end. The native partition has the
  # pid of any other task until it is done.
  @enforce_keys [:ref, :pid, :monitor, :since, :replies?]
  defstruct @enforce_keys

  @type t() :: %__MODULE__{
          ref: Ref.t(),
          pid: pid(),
          monitor: reference(),
          since: integer(),
          replies?: boolean()
        }

  @typedoc "Options of `PartitionedBuffer.Processing.process/3`, and the `$callers` of the task."
  @type opts() :: [callers: [pid()] | nil, trigger: atom(), resumed?: boolean(), reason: any()]

  # The keys in the dictionary of a task. Their values are the name of the buffer, and the number of
  # the partition.
  @processing :"$partitioned_buffer"
  @partition :"$partitioned_buffer_partition"

  @doc """
  The child specification of the task supervisor of a partition.
  """
  @spec supervisor_spec(Ref.t()) :: Supervisor.child_spec()
  def supervisor_spec(%Ref{} = ref) do
    %{
      id: {Task.Supervisor, ref.number},
      start: {__MODULE__, :start_supervisor, [ref]},
      type: :supervisor
    }
  end

  @doc """
  Starts the task supervisor of a partition. It has no name that another process could take.
  """
  @spec start_supervisor(Ref.t()) :: Supervisor.on_start()
  def start_supervisor(%Ref{run: run, number: number}) do
    with {:ok, pid} <- Task.Supervisor.start_link() do
      Native.set_tasks(run, number, pid)
      {:ok, pid}
    end
  end

  @doc """
  Starts the task. It fails while the task supervisor is dead.
  """
  @spec start(Ref.t(), Native.flush(), opts()) :: {:ok, t()} | {:error, term()}
  def start(%Ref{run: run, number: number} = ref, flush, opts) do
    case Native.process(run, number, :tasks) do
      supervisor when is_pid(supervisor) ->
        task =
          Task.Supervisor.async_nolink(supervisor, fn -> as_task(ref, &process(ref, flush, opts, &1)) end)

        {:ok, new(ref, task.pid, task.ref, true)}

      _none ->
        {:error, :noproc}
    end
  catch
    :exit, reason -> {:error, reason}
  end

  @doc """
  Starts a process that gives up all entries of a flush, without a task supervisor.
  """
  @spec start_give_up(Ref.t(), Native.flush(), any(), death :: any()) :: t()
  def start_give_up(%Ref{} = ref, flush, reason, death),
    do: start_alone(ref, fn _waited? -> Processing.give_up(flush, ref, reason, death) end)

  defp start_alone(ref, work) do
    {pid, monitor} = spawn_monitor(fn -> as_task(ref, work) end)
    new(ref, pid, monitor, false)
  end

  @doc """
  Starts the task, under its supervisor unless that is dead.
  """
  @spec start_anyhow(Ref.t(), Native.flush(), opts()) :: t()
  def start_anyhow(%Ref{} = ref, flush, opts) do
    case start(ref, flush, opts) do
      {:ok, task} -> task
      {:error, _no_supervisor} -> start_alone(ref, &process(ref, flush, opts, &1))
    end
  end

  # Between the decision to start this task and its beginning, a task of an earlier process may have
  # begun a pause. Only a flush by request and a stop go on in a pause. The task for which this one
  # waited may have read from the same flush.
  defp process(ref, flush, opts, waited?) do
    if callers = opts[:callers], do: Process.put(:"$callers", callers)
    opts = if waited?, do: Keyword.merge(opts, resumed?: true, waited?: true), else: opts
    goes_on? = opts[:reason] != nil or Processing.Job.in_pause?(opts[:trigger]) or not paused?(ref)
    if goes_on?, do: Processing.process(flush, ref, opts)
  end

  defp paused?(%Ref{run: run, number: number}),
    do: match?({_failures, _failing_ms, pause_ms, _failed} when pause_ms != nil, Native.learned(run, number))

  defp as_task(%Ref{run: run, number: number} = ref, work) do
    Process.put(@processing, ref.buffer)
    Process.put(@partition, number)
    Label.set(ref.buffer, {:task, number})
    ref |> begin() |> work.()
    Native.end_task(run, number)
    :done
  end

  # Another task may be running: the partition's process started it just before its death, or it
  # belongs to a killed supervision tree. Returns whether this task waited for another one.
  defp begin(%Ref{run: run, number: number} = ref) do
    case Native.begin_task(run, number) do
      :ok ->
        false

      {:busy, pid} ->
        monitor = Process.monitor(pid)
        receive do: ({:DOWN, ^monitor, :process, ^pid, _reason} -> begin(ref))
        true

      :not_running ->
        exit(:shutdown)
    end
  end

  @doc """
  The task that another process of the partition started, if it still runs.
  """
  @spec find(Ref.t()) :: t() | nil
  def find(%Ref{run: run, number: number} = ref) do
    pid = Native.process(run, number, :task)
    if is_pid(pid) and Process.alive?(pid), do: new(ref, pid, Process.monitor(pid), false)
  end

  @doc """
  Monitors a task that another process started.
  """
  @spec monitor(t()) :: t()
  def monitor(%__MODULE__{pid: pid} = task),
    do: %__MODULE__{task | monitor: Process.monitor(pid), replies?: false}

  defp new(ref, pid, monitor, replies?) do
    %__MODULE__{
      ref: ref,
      pid: pid,
      monitor: monitor,
      since: System.monotonic_time(:nanosecond),
      replies?: replies?
    }
  end

  @doc """
  Whether a task ended before its work did. Its monitor must have reported its end.
  """
  @spec died?(t()) :: boolean()
  def died?(%__MODULE__{replies?: true}), do: true
  def died?(%__MODULE__{ref: ref, pid: pid}), do: Native.process(ref.run, ref.number, :task) == pid

  @doc """
  When the last call of the processor or of `:dead_letter` began, or the task later read entries or
  chose a pause; else when the task was started or found. In nanoseconds of the VM's monotonic time.
  """
  @spec called_at(t()) :: integer()
  def called_at(%__MODULE__{ref: ref, since: since}) do
    with flush when is_reference(flush) <- Native.in_flight(ref.run, ref.number),
         {_calls, _length, _left, passed} when passed != nil <- Native.seen(flush) do
      max(System.monotonic_time(:nanosecond) - passed, since)
    else
      _no_call -> since
    end
  end

  @doc """
  Kills the task, or the other task for which it waits. Returns whether it was this one.
  """
  @spec kill_running(t()) :: boolean()
  def kill_running(%__MODULE__{pid: pid} = task) do
    running = running(task)
    Process.exit(running, :kill)
    running == pid
  end

  defp running(%__MODULE__{ref: ref, pid: pid}) do
    with other when is_pid(other) <- Native.process(ref.run, ref.number, :task),
         true <- task_of?(other, ref.buffer) do
      other
    else
      _none_or_dead -> pid
    end
  end

  @doc """
  Kills the task, and another one for which it waits, and waits for its end.
  """
  @spec kill(t()) :: :ok
  def kill(%__MODULE__{pid: pid, monitor: monitor} = task) do
    kill_running(task)
    Process.exit(pid, :kill)
    receive do: ({:DOWN, ^monitor, :process, _pid, _reason} -> :ok)
  end

  @doc """
  Whether the calling process runs a processor of this buffer, or is a task started by one, with the
  processor in its `$callers`. The processor of a buffer of several nodes runs in its other stage.
  """
  @spec in_processor?(atom()) :: boolean()
  def in_processor?(buffer),
    do: in_task?(buffer) or (Lookup.cluster?(buffer) and in_task?(Routing.owning_name(buffer)))

  defp in_task?(buffer) do
    Process.get(@processing) == buffer or
      Enum.any?(Process.get(:"$callers", []), &(processing(&1) == buffer))
  end

  @doc """
  The number of the partition whose processor the calling process runs; nil in any other process.
  """
  @spec partition() :: non_neg_integer() | nil
  def partition, do: Process.get(@partition)

  @doc """
  Raises in a processor of this buffer, since the call would wait for the end of the processor.
  """
  @spec refuse!(atom(), String.t()) :: :ok
  def refuse!(buffer, call) do
    if in_processor?(buffer) do
      raise ArgumentError,
            "a processor of buffer #{inspect(buffer)} cannot #{call} it: the call would wait for the processor itself"
    end

    :ok
  end

  @doc """
  Whether a process is a task of this buffer.
  """
  @spec task_of?(pid(), atom()) :: boolean()
  def task_of?(pid, buffer), do: processing(pid) == buffer

  defp processing(pid) when node(pid) == node() do
    with {:dictionary, dictionary} <- Process.info(pid, :dictionary),
         {@processing, buffer} <- List.keyfind(dictionary, @processing, 0),
         do: buffer
  end

  defp processing(_on_another_node), do: nil
end
