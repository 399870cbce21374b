defmodule PartitionedBuffer.Emitter do
  @moduledoc false
  # Emits the telemetry events and log lines of a buffer's own processes. Handlers are code of the
  # user: the process that calls them waits for them, and other processes wait for partitions,
  # drainers and supervisors. So these only send, and this process calls the handlers, in the order
  # in which the events arrive.
  #
  # A handler that hangs must not let the mailbox grow, so the native run counts the pending events
  # for the senders. Above a limit they drop all events until none is pending. Then one log line has
  # the number of dropped ones.
  #
  # The emitter is the first child of its supervisor, so a stop ends it last, when all others sent
  # their events. It then has a second for the pending ones.

  use GenServer

  require Logger

  alias PartitionedBuffer.{Label, Native, Routing, Telemetry}

  # How long, in milliseconds, a stop waits for pending handlers.
  @stop_ms 1_000

  # How long, in milliseconds, an emitter waits for the last events after its supervisor was killed.
  @last_ms 50

  # The limit of pending events. A start and a stop of a buffer with 4,096 partitions, the maximum,
  # have four events and log lines for each partition, even if the stop kills all processors.
  @limit 20_000

  # An event has the weight 1, and 1 more for each full kilobyte: the reason of a failure may have a
  # whole batch in its stack trace.
  @heavy 1_024

  @typep item() ::
           {:event, suffix :: [atom()], measurements :: map(), metadata :: map()}
           | {:log, Logger.level(), message :: String.t(), metadata :: keyword()}

  ## API

  @doc """
  Starts the emitter of a run of a buffer.
  """
  @spec start_link({Native.run(), atom()}) :: GenServer.on_start()
  def start_link({_run, _buffer} = init),
    do: GenServer.start_link(__MODULE__, init, hibernate_after: @stop_ms)

  @spec child_spec({Native.run(), atom()}) :: Supervisor.child_spec()
  def child_spec(init), do: Supervisor.child_spec(super(init), shutdown: @stop_ms)

  @doc """
  Starts an emitter without a supervisor, for `stop/1`.
  """
  @spec start({Native.run(), atom()}) :: GenServer.on_start()
  def start({_run, _buffer} = init), do: GenServer.start(__MODULE__, init)

  @doc """
  Ends an emitter as its supervisor does.
  """
  @spec stop(pid()) :: :ok
  def stop(emitter) do
    GenServer.stop(emitter, :shutdown, @stop_ms)
  catch
    :exit, _late_or_dead ->
      Process.exit(emitter, :kill)
      :ok
  end

  @doc """
  Lets an emitter whose supervisor was killed end after its pending events: no others will come.
  """
  @spec finish(pid()) :: :ok
  def finish(emitter) do
    send(emitter, :finish)
    :ok
  end

  @doc """
  Emits the event `[:partitioned_buffer | suffix]`, without a wait for its handlers.
  """
  @spec event(Native.run(), [atom()], map(), map()) :: :ok
  def event(run, suffix, measurements, metadata), do: emit(run, {:event, suffix, measurements, metadata})

  @doc """
  Logs a line with the present time and the calling process, without a wait for the log handlers.
  """
  @spec log(Native.run(), Logger.level(), String.t(), keyword()) :: :ok
  def log(run, level, message, metadata), do: emit(run, {:log, level, message, stamped(metadata)})

  @doc """
  Logs a line without an emitter, and waits for the log handlers, but no longer than a stop.
  """
  @spec log_alone(Logger.level(), String.t(), keyword()) :: :ok
  def log_alone(level, message, metadata), do: alone({:log, level, message, stamped(metadata)})

  @doc """
  Emits an event in the same way.
  """
  @spec event_alone([atom()], map(), map()) :: :ok
  def event_alone(suffix, measurements, metadata), do: alone({:event, suffix, measurements, metadata})

  defp alone(item) do
    {pid, ref} = spawn_monitor(fn -> call_handlers(item) end)

    receive do
      {:DOWN, ^ref, :process, ^pid, _reason} -> :ok
    after
      @stop_ms ->
        Process.demonitor(ref, [:flush])
        Process.exit(pid, :kill)
        :ok
    end
  end

  @doc """
  Waits until all events that the calling process sent or caused are emitted, for tests.
  """
  @spec await(Native.run()) :: :ok
  def await(run), do: run |> Native.process(:events, :events) |> GenServer.call(:await, :infinity)

  @doc """
  Whether a process is an emitter of this buffer.
  """
  @spec emitter_of?(pid(), atom()) :: boolean()
  def emitter_of?(pid, buffer) do
    with {:dictionary, dictionary} <- Process.info(pid, :dictionary) do
      dictionary[:"$initial_call"] == {__MODULE__, :init, 1} and
        match?([_ | _], dictionary[:"$ancestors"]) and
        hd(dictionary[:"$ancestors"]) == Routing.supervisor_name(buffer)
    else
      nil -> false
    end
  end

  @spec emit(Native.run(), item()) :: :ok
  defp emit(run, item) do
    weight = 1 + div(:erlang.external_size(item), @heavy)

    case Native.begin_event(run, weight, @limit) do
      pid when is_pid(pid) -> send(pid, {:emit, weight, item})
      :full -> :dropped
      # The supervisor was killed, and all its processes end.
      nobody when nobody in [nil, :not_running] -> spawn(fn -> call_handlers(item) end)
    end

    :ok
  end

  defp stamped(metadata), do: [pid: self(), time: :logger.timestamp()] ++ metadata

  ## Callbacks

  @impl GenServer
  def init({run, buffer}) do
    # At its end, `terminate/2` emits the pending events.
    Process.flag(:trap_exit, true)
    Native.register(run, :events, :events)
    Label.set(buffer, :emitter)
    {:ok, {run, buffer}, {:continue, :report}}
  end

  # An earlier emitter may have died before its report.
  @impl GenServer
  def handle_continue(:report, state) do
    report_dropped(state, 0)
    {:noreply, state}
  end

  @impl GenServer
  def handle_call(:await, _from, state), do: {:reply, :ok, state}

  @impl GenServer
  def handle_info({:emit, weight, item}, state) do
    emit_here(state, weight, item)
    {:noreply, state}
  end

  # A late reply to a handler, or the exit of a process that a handler linked.
  def handle_info(_message, state), do: {:noreply, state}

  @impl GenServer
  # With a killed supervisor the partitions end at the same time, and still send their last events.
  def terminate(:killed, state), do: emit_pending(state, @last_ms)
  def terminate(_reason, state), do: emit_pending(state, 0)

  defp emit_pending(state, wait_ms) do
    receive do
      {:emit, weight, item} ->
        emit_here(state, weight, item)
        emit_pending(state, wait_ms)

      :finish ->
        emit_pending(state, 0)
    after
      wait_ms -> :ok
    end
  end

  defp emit_here(state, weight, item) do
    call_handlers(item)
    report_dropped(state, weight)
  end

  defp report_dropped({run, buffer}, weight) do
    dropped = Native.end_event(run, weight)

    if is_integer(dropped) and dropped > 0 do
      call_handlers(
        {:log, :warning,
         "buffer #{inspect(buffer)} dropped #{dropped} telemetry events and log lines: " <>
           "their handlers took too long", buffer: buffer}
      )
    end
  end

  # Both libraries remove a handler that raises. A stand-in may not. The line has no terms, which may
  # be entries.
  defp call_handlers({:event, suffix, measurements, metadata}) do
    Telemetry.execute_of_buffer(suffix, measurements, metadata)
  catch
    kind, reason ->
      failure = if kind == :error, do: Exception.normalize(kind, reason).__struct__, else: kind
      text = "the telemetry event #{inspect(suffix)} was not emitted: #{inspect(failure)}"

      call_handlers(
        {:log, :error, text, for({key, name} <- metadata, key in [:buffer, :partition], do: {key, name})}
      )
  end

  # Nobody is left to report a failure of the log.
  defp call_handlers({:log, level, message, metadata}) do
    Logger.log(level, message, metadata)
  catch
    _kind, _reason -> :ok
  end
end
