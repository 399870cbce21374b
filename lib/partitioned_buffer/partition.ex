defmodule PartitionedBuffer.Partition do
  @moduledoc false
  # When a partition flushes: at every interval. Writers never talk to this process; what they have written is in the
  # native partition and outlives it. `Running` is what works on what was flushed, `Drain` the end.

  use GenServer, shutdown: :infinity

  require Logger

  alias PartitionedBuffer.{Drain, Identity, Native, Routing, Running, Telemetry}

  defmodule State do
    @moduledoc false
    # `timer` is that of the next tick, `due` its time in milliseconds, and `missed?` whether one came during a flush.
    # `drained` is the outcome of the last pass of a stop.
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
  def task_supervisor(buffer, number),
    do: Module.concat(Routing.partition_name(buffer, number), TaskSupervisor)

  @doc """
  Changes options, which must be valid. A new interval begins now, but never postpones what is due.
  """
  @spec update_options(atom(), keyword()) :: :ok
  def update_options(partition, changes), do: GenServer.call(partition, {:update_options, changes})

  @doc """
  A pass of the stop that began at this time. From then on the partition flushes only when it is asked to.
  """
  @spec drain(Identity.t(), integer()) :: Drain.outcome()
  def drain(%Identity{} = identity, began), do: GenServer.call(identity.name, {:drain, began}, :infinity)

  @doc """
  Lets a partition go on that has been drained.
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

  # A timer that was replaced, the exit of a linked process that is not the supervisor, strangers.
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

      # The task supervisor has crashed and is about to be back. What was flushed will be a rest.
      {:error, reason} ->
        Logger.warning(
          "#{Identity.describe(identity)} could not start a task, it tries again: #{Exception.format_exit(reason)}"
        )

        state
    end
  end

  defp ended(%State{running: running} = state, reason) do
    Running.report(state.identity, running, reason)
    # After what an earlier failure had left, what has come in since is due.
    due? = state.missed? or (running.kind == :rest and reason == :normal) or Running.idle?(running)
    state = %State{state | running: nil, missed?: false}
    if due?, do: start_processing(state), else: state
  end

  ## The end

  # What a stop has given up is not tried again at its end.
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
