defmodule PartitionedBuffer.Partition do
  @moduledoc false
  # Flushes a partition at every interval. Writers never talk to this process: their entries wait in the native partition,
  # which outlives it. `Running` is the task that processes a flush, `Drain` a pass of a stop.

  use GenServer, shutdown: :infinity

  require Logger

  alias PartitionedBuffer.{Drain, Identity, Native, Routing, Running, Telemetry}

  defmodule State do
    @moduledoc false
    # `timer` sends the next tick, at the time `due` in milliseconds. `missed?` says that a tick came while the task was at
    # work. `drained` is the outcome of the last pass of a stop.
    @enforce_keys [:identity, :started]
    defstruct [:identity, :started, :timer, :due, :running, :drained, missed?: false]
  end

  ## API

  @doc """
  Starts the process of a partition.
  """
  @spec start_link(Identity.t()) :: GenServer.on_start()
  def start_link(%Identity{} = identity), do: GenServer.start_link(__MODULE__, identity, name: identity.name)

  @spec child_spec(Identity.t()) :: Supervisor.child_spec()
  def child_spec(%Identity{} = identity),
    do: Supervisor.child_spec(super(identity), id: {__MODULE__, identity.number})

  @doc """
  The name of the task supervisor of a partition.
  """
  @spec task_supervisor(atom(), non_neg_integer()) :: atom()
  def task_supervisor(buffer, partition),
    do: Module.concat(Routing.partition_name(buffer, partition), TaskSupervisor)

  @doc """
  Changes options, which must be valid. A new interval begins now, but never postpones the tick that is due.
  """
  @spec update_options(atom(), keyword()) :: :ok
  def update_options(partition, changes), do: GenServer.call(partition, {:update_options, changes})

  @doc """
  Does a pass of the stop that began at `began`. After that the partition flushes only in passes.
  """
  @spec drain(Identity.t(), integer()) :: Drain.outcome()
  def drain(%Identity{} = identity, began), do: GenServer.call(identity.name, {:drain, began}, :infinity)

  @doc """
  Lets a drained partition flush at intervals again.
  """
  @spec resume(Identity.t()) :: :ok
  def resume(%Identity{} = identity), do: GenServer.cast(identity.name, :resume)

  ## Callbacks

  @impl GenServer
  def init(%Identity{} = identity) do
    Process.flag(:trap_exit, true)
    state = %State{identity: identity, started: System.monotonic_time()}
    Native.reopen(identity.buffer, identity.number)
    Telemetry.execute([:start], %{system_time: System.system_time()}, Identity.metadata(identity))
    state = %State{state | running: Running.find(identity)}
    {:ok, schedule(state, next_tick(state))}
  end

  @impl GenServer
  def handle_call({:update_options, changes}, _from, %State{} = state) do
    options = struct!(Identity.options(state.identity), changes)
    :ets.insert(state.identity.settings, {:options, options})
    cadence? = Enum.any?([:processing_interval_ms, :processing_jitter_ms], &Keyword.has_key?(changes, &1))
    state = if cadence? and state.timer, do: schedule(state, min(state.due, next_tick(state))), else: state
    {:reply, :ok, state}
  end

  def handle_call({:drain, began}, _from, %State{} = state) do
    state = pass(state, began)
    {:reply, state.drained, state}
  end

  @impl GenServer
  def handle_cast(:resume, %State{drained: nil} = state), do: {:noreply, state}

  def handle_cast(:resume, %State{identity: identity} = state) do
    Native.reopen(identity.buffer, identity.number)
    {:noreply, schedule(%State{state | drained: nil}, next_tick(state))}
  end

  @impl GenServer
  def handle_info({:timeout, timer, :tick}, %State{timer: timer, running: nil} = state) do
    {:noreply, state |> start_processing() |> schedule(next_tick(state))}
  end

  def handle_info({:timeout, timer, :tick}, %State{timer: timer} = state),
    do: {:noreply, schedule(%State{state | missed?: true}, next_tick(state))}

  def handle_info({ref, :ok}, %State{running: %Running{ref: ref}} = state) do
    Process.demonitor(ref, [:flush])
    {:noreply, ended(state, :normal)}
  end

  def handle_info({:DOWN, ref, :process, _pid, reason}, %State{running: %Running{ref: ref}} = state) do
    {:noreply, ended(state, reason)}
  end

  # A tick of a replaced timer, the exit of a linked process, or a message of a stranger.
  def handle_info(_message, %State{} = state), do: {:noreply, state}

  @impl GenServer
  def terminate(reason, %State{} = state) do
    if graceful?(reason), do: pass(state, System.monotonic_time(:nanosecond))
    duration = System.monotonic_time() - state.started
    metadata = state.identity |> Identity.metadata() |> Map.put(:reason, reason)
    Telemetry.execute([:stop], %{duration: duration}, metadata)
  end

  ## Processing

  defp start_processing(%State{identity: identity} = state) do
    with {kind, flush} <- Native.flush(identity.buffer, identity.number),
         {:ok, running} <- Running.start(identity, kind, flush) do
      %State{state | running: running}
    else
      nothing when nothing in [:empty, :not_running] ->
        state

      # The task supervisor has crashed and will be restarted. The next flush gives these entries as a rest.
      {:error, reason} ->
        Logger.warning(
          "#{Identity.describe(identity)} could not start a task for its processor and tries again " <>
            "at the next interval: #{Exception.format_exit(reason)}"
        )

        state
    end
  end

  defp ended(%State{running: running} = state, reason) do
    Running.report(state.identity, running, reason)
    # After the rest of a failed flush, the entries that wait are due.
    due? = state.missed? or (running.kind == :rest and reason == :normal) or Running.idle?(running)
    state = %State{state | running: nil, missed?: false}
    if due?, do: start_processing(state), else: state
  end

  ## The end

  # `terminate/2` does not try again what the stop has given up.
  defp pass(%State{drained: :given_up} = state, _began), do: state

  defp pass(%State{} = state, began) do
    cancel_timer(state)
    outcome = Drain.pass(state.identity, state.running, began)
    %State{state | running: nil, missed?: false, timer: nil, drained: outcome}
  end

  ## Helpers

  defp schedule(%State{} = state, due) do
    cancel_timer(state)
    %State{state | timer: :erlang.start_timer(due, self(), :tick, abs: true), due: due}
  end

  defp next_tick(%State{identity: identity}) do
    options = Identity.options(identity)
    jitter = :rand.uniform(options.processing_jitter_ms + 1) - 1
    System.monotonic_time(:millisecond) + options.processing_interval_ms + jitter
  end

  defp cancel_timer(%State{timer: nil}), do: :ok
  defp cancel_timer(%State{timer: timer}), do: :erlang.cancel_timer(timer)

  defp graceful?(:normal), do: true
  defp graceful?(:shutdown), do: true
  defp graceful?({:shutdown, _reason}), do: true
  defp graceful?(_reason), do: false
end
