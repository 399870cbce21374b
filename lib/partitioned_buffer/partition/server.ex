defmodule PartitionedBuffer.Partition.Server do
  @moduledoc false
  # The process of a partition: its timers, and the callers that wait for the end of a flush.
  # `Phase` decides, and this process carries out the actions. Writers never call it: their entries
  # wait in the native partition, which outlives it and also keeps the lessons from failures. A new
  # process rebuilds its state from the native partition.

  use GenServer

  alias PartitionedBuffer.{Emitter, Native, Options, Processing, Ref}
  alias PartitionedBuffer.Partition.{Phase, Runner}

  # `tick` is the timer of the next tick, due at `due` milliseconds. `pause` is the timer that ends
  # a pause. `task` is the running task, and `limit` the timer that checks whether the task's call
  # takes too long: such a task is killed, and `late?` is set.
  @enforce_keys [:ref, :options, :started]
  defstruct [
    :ref,
    :options,
    :started,
    :tick,
    :pause,
    :task,
    :limit,
    due: :infinity,
    late?: false,
    phase: Phase.new()
  ]

  # The pause, in milliseconds, when no task can start: the task supervisor is about to be
  # restarted.
  @no_task_ms 1_000

  ## API

  @doc """
  Starts the process of a partition. It is passive until `activate/1`.
  """
  @spec start_link(Ref.t()) :: GenServer.on_start()
  def start_link(%Ref{} = ref), do: GenServer.start_link(__MODULE__, ref, name: ref.name)

  @spec child_spec(Ref.t()) :: Supervisor.child_spec()
  def child_spec(%Ref{} = ref), do: Supervisor.child_spec(super(ref), id: {__MODULE__, ref.number})

  @doc """
  Lets the partition flush. The drainer calls this when the whole buffer is started.
  """
  @spec activate(Ref.t()) :: :ok
  def activate(%Ref{name: name, run: run}), do: GenServer.cast(name, {:activate, run})

  @doc """
  Makes the partition passive for a stop, and returns its running task. The partition of another run
  goes on.
  """
  @spec drain(Ref.t()) :: Runner.t() | nil
  def drain(%Ref{name: name, run: run}), do: GenServer.call(name, {:drain, run})

  @doc """
  Answers the requests to flush that the passive partition keeps: `failed` entries failed or are
  left.
  """
  @spec passed(Ref.t(), non_neg_integer()) :: :ok
  def passed(%Ref{name: name, run: run}, failed), do: GenServer.cast(name, {:passed, run, failed})

  @doc """
  Lets new options take effect. A new interval begins now, but never postpones the scheduled tick.
  """
  @spec options_changed(atom()) :: :ok
  def options_changed(partition), do: GenServer.cast(partition, :options)

  @doc """
  Requests a flush. While a task is running, the request joins the next round. `callers` are the
  calling process and its own callers. An `async?` request is answered at once.
  """
  @spec request_flush(atom(), [pid()], boolean()) :: :gen_server.request_id()
  def request_flush(partition, callers, async?),
    do: :gen_server.send_request(partition, {:flush, callers, async?})

  @doc """
  The answer to a request: how many entries failed, or `:on_hold`. `until` is a time of the VM in
  milliseconds.
  """
  @spec await_flush(:gen_server.request_id(), {:abs, integer()} | :infinity) ::
          {:ok, non_neg_integer()} | :on_hold | :timeout | :died
  def await_flush(request, until) do
    case :gen_server.receive_response(request, until) do
      {:reply, :on_hold} -> :on_hold
      {:reply, failed} -> {:ok, failed}
      {:error, {_reason, _partition}} -> :died
      :timeout -> :timeout
    end
  end

  @doc """
  Lets the partition flush because the buffer is full. A pause goes on.
  """
  @spec flush_full(atom()) :: :ok
  def flush_full(partition), do: GenServer.cast(partition, {:due, :full})

  @doc """
  Lets the partition flush as if its interval were over, for tests.
  """
  @spec tick(atom()) :: :ok
  def tick(partition), do: GenServer.cast(partition, {:due, :interval})

  @doc """
  The running task, for tests.
  """
  @spec task(atom()) :: pid() | nil
  def task(partition), do: GenServer.call(partition, :task)

  ## Callbacks

  @impl GenServer
  def init(%Ref{run: run, number: number} = ref) do
    Process.flag(:trap_exit, true)

    with :ok <- Native.register(run, number, :server),
         :ok <- Native.reopen(run, number),
         %Options{} = options <- Ref.options(ref) do
      state = %__MODULE__{ref: ref, options: options, started: System.monotonic_time()}
      emit(ref, :start, %{system_time: System.system_time()}, %{})
      # Before the start is complete, the last child of the supervisor activates all partitions.
      {:ok, if(is_pid(Native.process(run, :drainer, :drainer)), do: take_over(state), else: state)}
    else
      # The run is over: the supervisor is dead.
      _over -> :ignore
    end
  end

  @impl GenServer
  def handle_call({:flush, callers, async?}, from, state) do
    if async?, do: GenServer.reply(from, 0)
    {:noreply, handle(state, {:flush, {if(async?, do: nil, else: from), callers}})}
  end

  def handle_call({:drain, run}, _from, %__MODULE__{ref: %Ref{run: run}} = state) do
    {:reply, state.task, state |> handle(:drain) |> forget_task()}
  end

  # The stop of a dead run.
  def handle_call({:drain, _run}, _from, state), do: {:reply, nil, state}

  def handle_call(:task, _from, state), do: {:reply, state.task && state.task.pid, state}

  @impl GenServer
  def handle_cast({:activate, run}, %__MODULE__{ref: %Ref{run: run}, phase: {:passive, _, _}} = state) do
    Native.reopen(run, state.ref.number)
    {:noreply, take_over(state)}
  end

  def handle_cast({:passed, run, failed}, %__MODULE__{ref: %Ref{run: run}} = state),
    do: {:noreply, handle(state, {:passed, failed})}

  def handle_cast({:due, trigger}, state), do: {:noreply, handle(state, {:due, trigger})}

  def handle_cast(:options, %__MODULE__{options: old, ref: ref} = state) do
    case Ref.options(ref) do
      nil -> {:noreply, state}
      new -> {:noreply, %__MODULE__{state | options: new} |> watch() |> reschedule(old) |> set_threshold(old)}
    end
  end

  # A message of a dead run, or to a partition that is active already.
  def handle_cast(_message, state), do: {:noreply, state}

  @impl GenServer
  def handle_info(:enough, state), do: {:noreply, handle(state, {:due, :threshold})}
  def handle_info(:resumed, state), do: {:noreply, handle(state, :resume)}
  # The pause may have ended since.
  def handle_info(:paused, state), do: {:noreply, notice_pause(state)}

  def handle_info({:timeout, timer, :tick}, %__MODULE__{tick: timer} = state),
    do: {:noreply, state |> schedule(next_tick(state.options)) |> handle({:due, :interval})}

  def handle_info({:timeout, timer, :pause}, %__MODULE__{ref: ref, pause: timer} = state) do
    case Native.pass_pause(ref.run, ref.number) do
      left_ms when is_integer(left_ms) -> {:noreply, act(:begin_pause, state)}
      _over -> {:noreply, handle(%__MODULE__{state | pause: nil}, :pause_over)}
    end
  end

  def handle_info({:timeout, timer, :limit}, %__MODULE__{limit: timer} = state),
    do: {:noreply, enforce_limit(state)}

  def handle_info({ref, :done}, %__MODULE__{task: %Runner{monitor: ref}} = state) do
    Process.demonitor(ref, [:flush])
    {:noreply, ended(state, :returned)}
  end

  def handle_info({:DOWN, ref, :process, _pid, reason}, %__MODULE__{task: %Runner{monitor: ref}} = state),
    do: {:noreply, ended(state, if(state.late?, do: :timeout, else: reason))}

  # A message of a replaced timer, the exit of a linked process, or a message of a stranger.
  def handle_info(_message, state), do: {:noreply, state}

  @impl GenServer
  def terminate(reason, state) do
    duration = System.monotonic_time() - state.started
    emit(state.ref, :stop, %{duration: duration}, %{reason: reason})
  end

  defp emit(ref, event, measurements, metadata),
    do: Emitter.event(ref.run, [:partition, event], measurements, Map.merge(Ref.metadata(ref), metadata))

  ## Events and actions

  defp handle(%__MODULE__{} = state, event) do
    {phase, actions} = Phase.handle(state.phase, event)
    Enum.reduce(actions, %__MODULE__{state | phase: phase}, &act/2)
  end

  defp act({:start, trigger, round}, %__MODULE__{ref: ref} = state) do
    case Native.flush(ref.run, ref.number) do
      {kind, flush} -> start_task(state, kind, flush, trigger: trigger, callers: callers(round))
      :empty -> handle(state, {:flushed, :empty})
      :on_hold -> handle(state, {:flushed, :on_hold})
      :not_running -> handle(state, {:flushed, :over})
    end
  end

  defp act({:settle, reason}, %__MODULE__{ref: ref} = state) do
    case Native.in_flight(ref.run, ref.number) do
      flush when is_reference(flush) -> start_task(state, :rest, flush, trigger: :interval, reason: reason)
      _nothing -> handle(state, {:ended, :done, 0})
    end
  end

  # Once the run is over, nothing is known of the entries, and this process is about to end: its
  # callers notice that.
  defp act({:reply, requests, answer}, %__MODULE__{ref: ref} = state) do
    if Native.run(ref.buffer) == ref.run,
      do: for({from, _callers} <- requests, from != nil, do: GenServer.reply(from, answer))

    state
  end

  defp act(:fall_back, %__MODULE__{ref: ref} = state) do
    Native.pause(ref.run, ref.number, @no_task_ms, false)
    state
  end

  defp act(:begin_pause, %__MODULE__{ref: ref} = state) do
    cancel(state.pause)
    {_failures, _failing_ms, pause_ms, _failed} = learned(ref)
    %__MODULE__{state | pause: :erlang.start_timer(pause_ms || 0, self(), :pause)}
  end

  defp act(:end_pause, %__MODULE__{ref: ref} = state) do
    Native.end_pause(ref.run, ref.number)
    cancel(state.pause)
    %__MODULE__{state | pause: nil}
  end

  defp act(:start_timers, state), do: state |> schedule(next_tick(state.options)) |> set_threshold(nil)

  defp act(:stop_timers, %__MODULE__{} = state) do
    for timer <- [state.tick, state.pause, state.limit], do: cancel(timer)
    %__MODULE__{state | tick: nil, pause: nil, limit: nil}
  end

  defp callers(nil), do: nil
  defp callers(round), do: round |> Enum.flat_map(&elem(&1, 1)) |> Enum.uniq()

  # Rebuilds the phase from the native partition, after a start or a death.
  defp take_over(%__MODULE__{ref: ref} = state) do
    # A dead process may have had to flush for a full buffer.
    with true <- Options.bound?(state.options),
         room when is_pid(room) <- Native.process(ref.run, :room, :room),
         do: send(room, :room)

    if task = Runner.find(ref) do
      handle(watch(%__MODULE__{state | task: task}), {:found, :task})
    else
      # The last task died unseen, or it did its work. Its lessons are complete from here on.
      Processing.report_lost(ref, nil)
      {failures, _failing_ms, pause_ms, _failed} = learned(ref)

      cond do
        # A dead process may have had to make good a flush.
        Native.on_hold(ref.run) == true -> handle(state, {:found, :on_hold})
        pause_ms != nil -> handle(state, {:found, :paused})
        # A partition with failures at the end of its last run tries again at once.
        failures > 0 or rest?(ref) -> handle(state, {:found, :rest})
        true -> handle(state, {:found, :nothing})
      end
    end
  end

  defp rest?(%Ref{run: run, number: number}) do
    case Native.in_flight(run, number) do
      flush when is_reference(flush) -> flush |> Native.seen() |> elem(2) > 0
      _nothing -> false
    end
  end

  defp learned(%Ref{run: run, number: number}) do
    with :not_running <- Native.learned(run, number), do: {0, 0, nil, 0}
  end

  ## The task

  defp start_task(%__MODULE__{ref: ref} = state, kind, flush, opts) do
    case Runner.start(ref, flush, [resumed?: kind == :rest] ++ opts) do
      {:ok, task} ->
        watch(handle(%__MODULE__{state | task: task}, {:flushed, kind}))

      {:error, reason} ->
        Emitter.log(
          ref.run,
          :warning,
          "#{Ref.describe(ref)} could not start a task for its processor and tries again in #{@no_task_ms} ms: " <>
            Exception.format_exit(reason),
          Ref.log_metadata(ref)
        )

        handle(state, {:flushed, :no_task, Ref.held(ref)})
    end
  end

  # A task returned, or ended for a reason that its monitor reported.
  defp ended(%__MODULE__{ref: ref, task: task} = state, reason) do
    died? = reason != :returned and Runner.died?(task)
    state = forget_task(state)

    state =
      handle(
        state,
        if(Options.outcomes?(state.options), do: outcome(ref, died?, reason), else: loss(ref, died?, reason))
      )

    # The message about the pause came while the task was running.
    if state.phase == :idle, do: notice_pause(state), else: state
  end

  # A task of another partition may have begun a pause in all of them.
  defp notice_pause(%__MODULE__{ref: ref} = state) do
    {_failures, _failing_ms, pause_ms, _failed} = learned(ref)
    if pause_ms != nil, do: handle(state, :paused), else: state
  end

  defp outcome(ref, true = _died?, reason), do: {:ended, :died, Processing.cause(reason), Ref.held(ref)}

  defp outcome(ref, false = _died?, _reason) do
    case learned(ref) do
      {_failures, _failing_ms, nil, failed} -> done(ref, failed)
      # Nothing failed here: a task of another partition began the pause.
      {0, _failing_ms, _pause_ms, 0} -> with {:ended, :held_up} <- done(ref, 0), do: paused(ref)
      {_failures, _failing_ms, _pause_ms, _failed} -> paused(ref)
    end
  end

  defp paused(ref), do: {:ended, :paused, Ref.held(ref)}

  # A task that returns before the end of its flush was held up.
  defp done(ref, failed), do: if(rest?(ref), do: {:ended, :held_up}, else: {:ended, :done, failed})

  defp loss(ref, false = _died?, _reason), do: done(ref, 0)

  defp loss(ref, true = _died?, reason),
    do: {:ended, :lost, Processing.report_lost(ref, reason), Ref.held(ref)}

  defp forget_task(%__MODULE__{task: nil} = state), do: state

  defp forget_task(%__MODULE__{} = state) do
    Process.demonitor(state.task.monitor, [:flush])
    cancel(state.limit)
    %__MODULE__{state | task: nil, limit: nil, late?: false}
  end

  ## The time limit of a call, which holds while running for buffers with outcomes

  defp watch(%__MODULE__{task: %Runner{} = task, options: options} = state) do
    cancel(state.limit)

    if Options.outcomes?(options) and options.processing_timeout_ms != :infinity do
      called_at = System.convert_time_unit(Runner.called_at(task), :nanosecond, :millisecond)
      due = called_at + options.processing_timeout_ms + 1
      %__MODULE__{state | limit: :erlang.start_timer(due, self(), :limit, abs: true)}
    else
      %__MODULE__{state | limit: nil}
    end
  end

  defp watch(state), do: state

  # When the timer fires, the task may already be in a later call, which still has time.
  defp enforce_limit(%__MODULE__{ref: ref, task: task, options: options} = state) do
    limit = options.processing_timeout_ms
    passed = System.monotonic_time(:nanosecond) - Runner.called_at(task)

    if System.convert_time_unit(passed, :nanosecond, :millisecond) < limit do
      watch(state)
    else
      Emitter.log(
        ref.run,
        :error,
        "#{Ref.describe(ref)} kills its processor: a call took longer than #{limit} ms",
        Ref.log_metadata(ref)
      )

      # Another task for which this one waited leaves it the time of a call.
      if Runner.kill_running(task),
        do: %__MODULE__{state | limit: nil, late?: true},
        else: %__MODULE__{state | limit: :erlang.start_timer(limit, self(), :limit)}
    end
  end

  ## Timers

  # Enough entries may already wait.
  defp set_threshold(%__MODULE__{options: %{processing_threshold: same}} = state, %{
         processing_threshold: same
       }),
       do: state

  defp set_threshold(%__MODULE__{ref: ref, options: options} = state, _old) do
    if Native.set_threshold(ref.run, ref.number, options.processing_threshold) == true,
      do: handle(state, {:due, :threshold}),
      else: state
  end

  defp reschedule(%__MODULE__{phase: {:passive, _requests, _lost}} = state, _old), do: state

  defp reschedule(%__MODULE__{options: new} = state, old) do
    if Map.take(new, [:processing_interval_ms, :processing_jitter_ms]) ==
         Map.take(old, [:processing_interval_ms, :processing_jitter_ms]),
       do: state,
       else: schedule(state, earliest(state.due, next_tick(new)))
  end

  # `:infinity` also cancels an already scheduled tick.
  defp earliest(_due, :infinity), do: :infinity
  defp earliest(due, next), do: min(due, next)

  defp schedule(%__MODULE__{ref: ref} = state, due) do
    cancel(state.tick)
    Native.set_next(ref.run, ref.number, if(due != :infinity, do: due))
    timer = if due != :infinity, do: :erlang.start_timer(due, self(), :tick, abs: true)
    %__MODULE__{state | tick: timer, due: due}
  end

  defp next_tick(%Options{processing_interval_ms: :infinity}), do: :infinity

  defp next_tick(%Options{processing_interval_ms: interval, processing_jitter_ms: longest}),
    do: System.monotonic_time(:millisecond) + interval + :rand.uniform(longest + 1) - 1

  defp cancel(nil), do: :ok
  defp cancel(timer), do: :erlang.cancel_timer(timer)
end
