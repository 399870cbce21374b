defmodule PartitionedBuffer.Partition do
  @moduledoc false
  # When a partition hands over: at every interval, and at the end. Writers never talk to this process; what they have
  # written is in the native partition and outlives it.
  #
  # One task at a time works on what was handed over, under the partition's own task supervisor. It is not linked: it goes
  # on when this process dies, and the next one finds it there.

  use GenServer, shutdown: :infinity

  require Logger

  alias PartitionedBuffer.{HandOver, Native, Routing, Telemetry}

  # What a batch may take at the least while the rest is processed at the end: OTP's usual time for a worker's shutdown.
  @min_drain_timeout 5_000

  defmodule Running do
    @moduledoc false
    # The task at work, and what it works on; where an earlier process of this partition has started it, what is handed over
    # next, by which its progress is seen to its last batch.
    @enforce_keys [:pid, :ref]
    defstruct [:pid, :ref, :kind, :batch]
  end

  defmodule State do
    @moduledoc false
    @enforce_keys [:buffer, :number, :name, :settings, :started]
    defstruct [:buffer, :number, :name, :settings, :started, :timer, :running]
  end

  ## API

  @doc """
  Starts the partition with this number. `settings` is the ETS table with the buffer's options.
  """
  @spec start_link({atom(), non_neg_integer(), :ets.tid()}) :: GenServer.on_start()
  def start_link({buffer, number, _settings} = init) do
    GenServer.start_link(__MODULE__, init, name: Routing.partition_name(buffer, number))
  end

  @spec child_spec({atom(), non_neg_integer(), :ets.tid()}) :: Supervisor.child_spec()
  def child_spec({_buffer, number, _settings} = init),
    do: Supervisor.child_spec(super(init), id: {__MODULE__, number})

  @doc """
  The name of the task supervisor of a partition.
  """
  @spec task_supervisor(atom(), non_neg_integer()) :: atom()
  def task_supervisor(buffer, number),
    do: Module.concat(Routing.partition_name(buffer, number), TaskSupervisor)

  @doc """
  Changes options, which must be valid. A new interval begins now.
  """
  @spec update_options(atom(), keyword()) :: :ok
  def update_options(partition, changes), do: GenServer.call(partition, {:update_options, changes})

  @doc """
  Asks the partition to process all that it has and to refuse writes from then on.
  """
  @spec drain_request(atom()) :: :gen_server.request_id()
  def drain_request(partition), do: :gen_server.send_request(partition, :drain)

  ## Callbacks

  @impl GenServer
  def init({buffer, number, settings}) do
    Process.flag(:trap_exit, true)
    name = Routing.partition_name(buffer, number)

    state = %State{
      buffer: buffer,
      number: number,
      name: name,
      settings: settings,
      started: System.monotonic_time()
    }

    Native.reopen(buffer, number)
    Telemetry.execute([:start], %{system_time: System.system_time()}, metadata(state))
    {:ok, state |> find_running() |> schedule()}
  end

  @impl GenServer
  def handle_call({:update_options, changes}, _from, %State{} = state) do
    :ets.insert(state.settings, {:options, struct!(options(state), changes)})
    state = if Keyword.has_key?(changes, :processing_interval_ms), do: schedule(state), else: state
    {:reply, :ok, state}
  end

  def handle_call(:drain, _from, %State{} = state), do: {:reply, :ok, drain(state)}

  @impl GenServer
  def handle_info({:timeout, timer, :tick}, %State{timer: timer, running: nil} = state) do
    {:noreply, state |> start_processing() |> schedule()}
  end

  def handle_info({:timeout, timer, :tick}, %State{timer: timer} = state), do: {:noreply, schedule(state)}

  def handle_info({ref, :ok}, %State{running: %Running{ref: ref}} = state) do
    Process.demonitor(ref, [:flush])
    {:noreply, succeeded(state)}
  end

  def handle_info({:DOWN, ref, :process, _pid, reason}, %State{running: %Running{ref: ref}} = state) do
    {:noreply, ended(state, reason)}
  end

  # A timer that was replaced, the exit of a linked process that is not the supervisor, strangers.
  def handle_info(_message, %State{} = state), do: {:noreply, state}

  @impl GenServer
  def terminate(reason, %State{} = state) do
    if graceful?(reason), do: drain(state)
    duration = System.monotonic_time() - state.started
    Telemetry.execute([:stop], %{duration: duration}, Map.put(metadata(state), :reason, reason))
  end

  ## Processing

  defp start_processing(%State{} = state) do
    case Native.hand_over(state.buffer, state.number) do
      {kind, batch} -> start_task(state, kind, batch)
      nothing when nothing in [:empty, :not_running] -> state
    end
  end

  defp start_task(%State{name: name} = state, kind, batch) do
    options = options(state)
    supervisor = task_supervisor(state.buffer, state.number)
    task = Task.Supervisor.async_nolink(supervisor, fn -> HandOver.process(batch, options, name) end)
    %State{state | running: %Running{pid: task.pid, ref: task.ref, kind: kind, batch: batch}}
  catch
    # The task supervisor has crashed and is about to be back. What was handed over will be a rest.
    :exit, reason ->
      Logger.warning(
        "#{describe(state)} could not start a task, it tries again: #{Exception.format_exit(reason)}"
      )

      state
  end

  defp find_running(%State{} = state) do
    case Task.Supervisor.children(task_supervisor(state.buffer, state.number)) do
      [pid | _none] ->
        %State{state | running: %Running{pid: pid, ref: Process.monitor(pid), batch: pending(state)}}

      [] ->
        state
    end
  end

  defp pending(%State{} = state) do
    case Native.hand_over(state.buffer, state.number) do
      {_kind, batch} -> batch
      nothing when nothing in [:empty, :not_running] -> nil
    end
  end

  # After what an earlier failure had left, what has come in since is due.
  defp succeeded(%State{running: %Running{kind: :rest}} = state),
    do: start_processing(%State{state | running: nil})

  defp succeeded(%State{} = state), do: %State{state | running: nil}

  # A task found at the start may have ended before it was monitored: nothing is known of it then.
  defp ended(%State{} = state, reason) when reason in [:normal, :noproc], do: succeeded(state)

  defp ended(%State{} = state, reason) do
    metadata = Map.put(metadata(state), :reason, reason)
    Telemetry.execute([:processing_failed], %{system_time: System.system_time()}, metadata)
    %State{state | running: nil}
  end

  ## The end

  # First the hand-over in flight, then the rest, in that order. Writes are taken until the hand-over in flight is done.
  defp drain(%State{} = state) do
    options = options(state)
    state = await(state, options.processing_timeout_ms)
    Native.close(state.buffer, state.number)
    drain_rest(state, max(options.processing_timeout_ms, @min_drain_timeout))
  end

  defp drain_rest(%State{} = state, timeout) do
    case Native.hand_over(state.buffer, state.number) do
      {kind, batch} ->
        position = Native.position(batch)
        state = %State{} = state |> start_task(kind, batch) |> await(timeout)

        if Native.position(batch) > position do
          drain_rest(state, timeout)
        else
          Logger.error(
            "#{describe(state)} could not process all it had: the rest is kept until the buffer starts again"
          )

          state
        end

      nothing when nothing in [:empty, :not_running] ->
        state
    end
  end

  # Waits until no task is running. A batch may take `timeout` ms, then the task is killed.
  defp await(%State{running: nil} = state, _timeout), do: state

  defp await(%State{running: %Running{ref: ref} = running} = state, timeout) do
    position = progress(running)

    receive do
      {^ref, :ok} ->
        Process.demonitor(ref, [:flush])
        %State{state | running: nil}

      {:DOWN, ^ref, :process, _pid, reason} ->
        %State{ended(%State{state | running: %Running{running | kind: :fresh}}, reason) | running: nil}
    after
      timeout ->
        if progress(running) == position do
          Logger.error(
            "#{describe(state)} kills its processor: a batch has taken longer than #{timeout} ms at the end"
          )

          Process.exit(running.pid, :kill)
        end

        await(state, if(progress(running) == position, do: :infinity, else: timeout))
    end
  end

  defp progress(%Running{batch: nil}), do: :unknown
  defp progress(%Running{batch: batch}), do: Native.position(batch)

  ## Helpers

  defp schedule(%State{} = state) do
    if state.timer, do: :erlang.cancel_timer(state.timer)
    %State{state | timer: :erlang.start_timer(options(state).processing_interval_ms, self(), :tick)}
  end

  defp options(%State{settings: settings}), do: :ets.lookup_element(settings, :options, 2)

  defp metadata(%State{} = state), do: %{buffer: state.buffer, partition: state.name}

  defp describe(%State{} = state), do: "partition #{state.number} of buffer #{inspect(state.buffer)}"

  defp graceful?(:normal), do: true
  defp graceful?(:shutdown), do: true
  defp graceful?({:shutdown, _reason}), do: true
  defp graceful?(_reason), do: false
end
