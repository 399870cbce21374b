defmodule PartitionedBuffer.Partition do
  @moduledoc false
  # Flushes a partition at every interval. Writers never talk to this process: their entries wait in the native partition,
  # which outlives it. `Running` is the task that processes a flush, `Drain` a pass of a stop.

  use GenServer, shutdown: :infinity

  require Logger

  alias PartitionedBuffer.{Drain, Identity, Native, Options, Routing, Running, Telemetry}

  defmodule State do
    @moduledoc false
    # `timer` sends the next tick, at the time `due` in milliseconds. `missed` is what would have begun a flush while the task
    # was at work, `trigger` why it was started. `limit` is the timer that looks whether its call takes too long; then it is killed,
    # and `late?`. `pause` is the timer that ends the pause after `failures` in a row. `requests` are those to flush that wait
    # for the end of a task, and `round` those for which the present task was started. `drained` is the outcome of the last
    # pass of a stop.
    @enforce_keys [:identity, :started]
    defstruct [
      :identity,
      :started,
      :timer,
      :due,
      :running,
      :limit,
      :pause,
      :round,
      :drained,
      trigger: :interval,
      failures: 0,
      requests: [],
      missed: nil,
      late?: false
    ]
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
  Changes options, if they are allowed together with the others. A new interval begins now, but never postpones the tick that is due.
  """
  @spec update_options(atom(), keyword()) :: :ok | {:error, Exception.t()}
  def update_options(partition, changes), do: GenServer.call(partition, {:update_options, changes})

  @doc """
  Asks a partition to flush now, and again if it is at work. `callers` are the process that asks, and its own callers. An
  `async?` request is answered when the flush is under way.
  """
  @spec request_flush(atom(), [pid()], boolean()) :: :gen_server.request_id()
  def request_flush(partition, callers, async?),
    do: :gen_server.send_request(partition, {:flush, callers, async?})

  @doc """
  Lets a partition flush as soon as it can, for this reason. During a pause it does nothing.
  """
  @spec flush_early(atom(), :full) :: :ok
  def flush_early(partition, trigger), do: GenServer.cast(partition, {:flush_early, trigger})

  @doc """
  The answer to a request: how many entries have failed. `until` is a time of the VM in milliseconds, or `:infinity`.
  """
  @spec await_flush(:gen_server.request_id(), {:abs, integer()} | :infinity) ::
          {:ok, non_neg_integer()} | :timeout | :died
  def await_flush(request, until) do
    case :gen_server.receive_response(request, until) do
      {:reply, failed} -> {:ok, failed}
      {:error, {_reason, _partition}} -> :died
      :timeout -> :timeout
    end
  end

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
    Native.watch(identity.buffer, identity.number)
    Telemetry.execute([:start], %{system_time: System.system_time()}, Identity.metadata(identity))
    state = state |> find_task() |> restore_pause() |> schedule(next_tick(identity))
    {:ok, set_threshold(state, Identity.options(identity))}
  end

  @impl GenServer
  def handle_call({:update_options, changes}, _from, %State{identity: identity} = state) do
    case identity |> Identity.options() |> Options.update(changes) do
      {:ok, options} ->
        :ets.insert(identity.settings, {:options, options})
        state = state |> update_cadence(changes) |> watch()
        {:reply, :ok, if(changes[:processing_threshold], do: set_threshold(state, options), else: state)}

      {:error, _error} = error ->
        {:reply, error, state}
    end
  end

  def handle_call({:flush, callers, async?}, from, %State{} = state) do
    if async?, do: GenServer.reply(from, 0)
    request = {if(async?, do: nil, else: from), callers}
    {:noreply, serve(%State{state | requests: [request | state.requests]})}
  end

  def handle_call({:drain, began}, _from, %State{} = state) do
    state = pass(state, began)
    {:reply, state.drained, state}
  end

  @impl GenServer
  def handle_cast(:resume, %State{drained: nil} = state), do: {:noreply, state}

  def handle_cast(:resume, %State{identity: identity} = state) do
    Native.reopen(identity.buffer, identity.number)
    {:noreply, schedule(%State{state | drained: nil}, next_tick(identity))}
  end

  def handle_cast({:flush_early, trigger}, %State{} = state), do: {:noreply, flush_early_now(state, trigger)}

  @impl GenServer
  def handle_info(:enough, %State{} = state), do: {:noreply, flush_early_now(state, :threshold)}

  def handle_info({:timeout, timer, :tick}, %State{timer: timer} = state),
    do: {:noreply, state |> tick() |> schedule(next_tick(state.identity))}

  def handle_info({:timeout, timer, :pause}, %State{pause: timer} = state),
    do: {:noreply, start_processing(end_pause(state), state.trigger)}

  def handle_info({:timeout, timer, :limit}, %State{limit: timer} = state), do: {:noreply, limit(state)}

  def handle_info({ref, :ok}, %State{running: %Running{ref: ref}} = state) do
    Process.demonitor(ref, [:flush])
    {:noreply, ended(state, :normal)}
  end

  def handle_info({:DOWN, ref, :process, _pid, reason}, %State{running: %Running{ref: ref}} = state) do
    {:noreply, ended(state, if(state.late?, do: :timeout, else: reason))}
  end

  # A message of a replaced timer, the exit of a linked process, or a message of a stranger.
  def handle_info(_message, %State{} = state), do: {:noreply, state}

  @impl GenServer
  def terminate(reason, %State{} = state) do
    if graceful?(reason), do: pass(state, System.monotonic_time(:nanosecond))
    duration = System.monotonic_time() - state.started
    metadata = state.identity |> Identity.metadata() |> Map.put(:reason, reason)
    Telemetry.execute([:stop], %{duration: duration}, metadata)
  end

  ## Processing

  # After a pause everything is processed, so a tick during it means nothing.
  defp tick(%State{pause: pause} = state) when pause != nil, do: state
  defp tick(%State{running: nil} = state), do: start_processing(state, :interval)
  defp tick(%State{} = state), do: %State{state | missed: :interval}

  # Neither does a threshold, or a full buffer. During a stop, its passes process everything.
  defp flush_early_now(%State{pause: pause, drained: drained} = state, _trigger)
       when pause != nil or drained != nil,
       do: state

  defp flush_early_now(%State{running: nil} = state, trigger), do: start_processing(state, trigger)
  defp flush_early_now(%State{} = state, trigger), do: %State{state | missed: trigger}

  # Enough entries may wait already.
  defp set_threshold(%State{identity: identity} = state, options) do
    if Native.set_threshold(identity.buffer, identity.number, options.processing_threshold) == true,
      do: flush_early_now(state, :threshold),
      else: state
  end

  # A flush that is asked for begins a round: first the rest of earlier flushes, then the entries that wait. Requests during
  # a round wait for the next one, since the entries that wait are in flight already.
  defp serve(%State{running: nil, requests: [_ | _]} = state) do
    %State{state | requests: [], round: Enum.reverse(state.requests)}
    |> end_pause()
    |> start_processing(:flush)
  end

  defp serve(%State{} = state), do: state

  # Then the requests are served that came meanwhile.
  defp end_round(%State{round: nil} = state, _failed), do: serve(state)

  defp end_round(%State{round: round} = state, failed) do
    reply(round, failed)
    serve(%State{state | round: nil})
  end

  # What is left in the buffer has failed as well, since the round was to process all of it.
  defp fail_round(%State{round: nil} = state, _lost), do: serve(state)

  defp fail_round(%State{identity: identity} = state, lost) do
    case Native.held(identity.buffer, identity.number) do
      :not_running -> state
      held -> end_round(state, lost + held)
    end
  end

  defp reply(requests, failed) do
    for {from, _callers} <- requests, from != nil, do: GenServer.reply(from, failed)
  end

  defp start_processing(%State{identity: identity} = state, trigger) do
    case Native.flush(identity.buffer, identity.number) do
      {kind, flush} -> start_task(%State{state | trigger: trigger}, kind, flush, nil)
      :empty -> end_round(state, 0)
      # The supervisor is dead, and this process will end. Nobody may hear from it that all is done.
      :not_running -> state
    end
  end

  # `reason` is why the last task has died, if this one only settles what it has left.
  defp start_task(%State{identity: identity} = state, kind, flush, reason) do
    callers = if state.round, do: state.round |> Enum.flat_map(&elem(&1, 1)) |> Enum.uniq()
    opts = [trigger: state.trigger, failures: state.failures, reason: reason, callers: callers]

    case Running.start(identity, kind, flush, opts) do
      {:ok, running} ->
        watch(%State{state | running: running})

      # The task supervisor has crashed and will be restarted. The next flush gives these entries as a rest.
      {:error, reason} ->
        Logger.warning(
          "#{Identity.describe(identity)} could not start a task for its processor and tries again later: " <>
            Exception.format_exit(reason)
        )

        if Options.outcomes?(Identity.options(identity)),
          do: pause(state),
          else: fail_round(state, 0)
    end
  end

  defp ended(%State{identity: identity, running: running} = state, reason) do
    Running.report(identity, running, reason)
    state = %State{unwatch(state) | running: nil, late?: false}

    cond do
      reason == :normal -> continue(state, running, Running.ended(identity))
      Options.outcomes?(Identity.options(identity)) -> recover(state, running, reason)
      true -> state |> fail_round(Running.lost(running)) |> make_good()
    end
  end

  defp continue(state, _running, %{pause: ms} = ended) when ms != nil, do: pause(state, ms, ended.failures)

  # After the rest of an earlier flush, the entries that wait are due.
  defp continue(state, %Running{kind: :rest}, ended),
    do: state |> count_failures(ended.failures) |> start_processing(state.trigger)

  defp continue(state, _running, ended) do
    state
    |> count_failures(ended.failures)
    |> end_round(ended.failed)
    |> make_good()
    |> retry(ended.failed)
  end

  # What came while the task was at work.
  defp make_good(%State{missed: trigger, running: nil} = state) when trigger != nil,
    do: start_processing(%State{state | missed: nil}, trigger)

  defp make_good(%State{} = state), do: state

  # The task has died with a batch, which has failed then. Another task settles it.
  defp recover(state, %Running{reason: nil, flush: flush}, reason) when flush != nil,
    do: start_task(state, :rest, flush, reason)

  defp recover(%State{} = state, _running, _reason), do: pause(state)

  # What has failed in part waits for the next tick. If there are no ticks, it waits for the end of a pause.
  defp retry(%State{running: nil, due: :infinity} = state, failed) when failed > 0, do: pause(state)
  defp retry(%State{} = state, _failed), do: state

  ## Pauses

  defp pause(%State{identity: identity} = state) do
    failures = state.failures + 1
    pause(state, Options.backoff(Identity.options(identity), failures), failures)
  end

  defp pause(%State{identity: identity} = state, ms, failures) do
    due = System.monotonic_time(:millisecond) + ms
    Identity.put(identity, :pause, {due, failures})
    timer = :erlang.start_timer(due, self(), :pause, abs: true)
    fail_round(%State{count_failures(state, failures) | pause: timer, missed: nil}, 0)
  end

  # `info/1` tells them.
  defp count_failures(%State{failures: failures} = state, failures), do: state

  defp count_failures(%State{} = state, failures) do
    Identity.put(state.identity, :failures, failures)
    %State{state | failures: failures}
  end

  defp end_pause(%State{} = state) do
    cancel(state.pause)
    Running.forget_end(state.identity)
    Identity.take(state.identity, :pause)
    %State{state | pause: nil}
  end

  # A pause outlives this process, and a task may have ended while there was none. What dead processes have left in flight is
  # processed at once.
  defp restore_pause(%State{running: running} = state) when running != nil, do: state

  defp restore_pause(%State{identity: identity} = state) do
    case {left_pause(identity), Running.ended(identity)} do
      {{ms, failures}, _ended} -> pause(state, ms, failures)
      {nil, %{pause: ms, failures: failures}} when ms != nil -> pause(state, ms, failures)
      {nil, _ended} -> if left_in_flight?(identity), do: pause(state, 0, 0), else: state
    end
  end

  # What is left of the pause of an earlier process of the partition. It stays there, since this process may die as well.
  defp left_pause(identity) do
    with {due, failures} <- Identity.get(identity, :pause),
         do: {max(due - System.monotonic_time(:millisecond), 0), failures}
  end

  defp left_in_flight?(identity) do
    case Native.in_flight(identity.buffer, identity.number) do
      flush when is_reference(flush) -> flush |> Native.seen() |> elem(2) > 0
      _nothing -> false
    end
  end

  ## The time limit of a call, which holds while running for buffers with outcomes

  defp watch(%State{running: %Running{} = running} = state) do
    options = Identity.options(state.identity)
    state = unwatch(state)

    if Options.outcomes?(options) and options.processing_timeout_ms != :infinity do
      called_at = System.convert_time_unit(Running.called_at(running), :nanosecond, :millisecond)
      due = called_at + options.processing_timeout_ms + 1
      %State{state | limit: :erlang.start_timer(due, self(), :limit, abs: true)}
    else
      state
    end
  end

  defp watch(%State{} = state), do: state

  defp unwatch(%State{} = state) do
    cancel(state.limit)
    %State{state | limit: nil}
  end

  # When the time of one call is up, the task may be at another call, which has time left.
  defp limit(%State{identity: identity, running: %Running{} = running} = state) do
    limit = Identity.options(identity).processing_timeout_ms
    passed = System.monotonic_time(:nanosecond) - Running.called_at(running)

    if System.convert_time_unit(passed, :nanosecond, :millisecond) < limit do
      watch(state)
    else
      Logger.error("#{Identity.describe(identity)} kills its processor: a call took longer than #{limit} ms")
      Process.exit(running.pid, :kill)
      %State{state | limit: nil, late?: true}
    end
  end

  ## The end

  # `terminate/2` does not try again what the stop has given up.
  defp pass(%State{drained: :given_up} = state, _began), do: state

  defp pass(%State{} = state, began) do
    cancel(state.timer)
    state = state |> unwatch() |> end_pause()
    outcome = Drain.pass(state.identity, state.running, began)
    answer_all(state)

    %State{
      state
      | running: nil,
        round: nil,
        requests: [],
        missed: nil,
        timer: nil,
        drained: outcome
    }
  end

  defp answer_all(%State{round: nil, requests: []}), do: :ok

  defp answer_all(%State{identity: identity} = state) do
    with held when is_integer(held) <- Native.held(identity.buffer, identity.number),
         do: reply(state.requests ++ List.wrap(state.round), held)
  end

  ## Helpers

  defp find_task(%State{identity: identity} = state),
    do: watch(%State{state | running: Running.find(identity)})

  defp update_cadence(%State{drained: nil} = state, changes) do
    if Enum.any?([:processing_interval_ms, :processing_jitter_ms], &Keyword.has_key?(changes, &1)),
      do: schedule(state, earliest(state.due, next_tick(state.identity))),
      else: state
  end

  defp update_cadence(%State{} = state, _changes), do: state

  # `:infinity` means no tick at all, also not the one that was due.
  defp earliest(_due, :infinity), do: :infinity
  defp earliest(due, next), do: min(due, next)

  defp schedule(%State{} = state, due) do
    Identity.put(state.identity, :due, due)
    start_timer(state, due)
  end

  defp start_timer(%State{} = state, :infinity) do
    cancel(state.timer)
    %State{state | timer: nil, due: :infinity}
  end

  defp start_timer(%State{} = state, due) do
    cancel(state.timer)
    %State{state | timer: :erlang.start_timer(due, self(), :tick, abs: true), due: due}
  end

  defp next_tick(%Identity{} = identity) do
    case Identity.options(identity) do
      %Options{processing_interval_ms: :infinity} ->
        :infinity

      %Options{processing_interval_ms: interval, processing_jitter_ms: longest} ->
        System.monotonic_time(:millisecond) + interval + :rand.uniform(longest + 1) - 1
    end
  end

  defp cancel(nil), do: :ok
  defp cancel(timer), do: :erlang.cancel_timer(timer)

  defp graceful?(:normal), do: true
  defp graceful?(:shutdown), do: true
  defp graceful?({:shutdown, _reason}), do: true
  defp graceful?(_reason), do: false
end
