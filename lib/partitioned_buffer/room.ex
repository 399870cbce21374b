defmodule PartitionedBuffer.Room do
  @moduledoc false
  # The process at which writers wait for room in a full buffer, and what they do there. Only a write that has found no room comes
  # here: all others see just the native bound.
  #
  # Writers wait in their order. When there is room for the first one, it is its turn: it writes by itself, with a mark, and then
  # says that it is done. Until then nobody else gets room. So room is never given to a process that may be dead, and a writer
  # that dies gives up its place or its turn.
  #
  # A full buffer is to drain at once: whenever the first writer finds no room, all partitions are told to flush.

  use GenServer

  alias PartitionedBuffer.{FullError, Native, Options, Partition, Routing, Running, Supervisor, Telemetry}

  # `waiters` are those that wait, by their place, and `places` has the place of each monitor. `last` is the place of the last
  # one that came. `turn` is the monitor of the one whose turn it is. `since` is when the buffer became full; then `waited`
  # counts the writers that have waited since, and `before` is what was refused and dropped before.
  @enforce_keys [:buffer, :settings]
  defstruct @enforce_keys ++
              [:turn, :since, :before, waiters: :gb_trees.empty(), places: %{}, last: 0, waited: 0]

  defmodule Waiter do
    @moduledoc false
    # `ref` monitors the writer, which waits for room for `count` entries until `timer` ends it.
    @enforce_keys [:from, :ref, :count, :timer]
    defstruct @enforce_keys
  end

  ## API

  @spec start_link({atom(), :ets.tid()}) :: GenServer.on_start()
  def start_link({buffer, _settings} = init), do: GenServer.start_link(__MODULE__, init, name: name(buffer))

  defp name(buffer), do: Module.concat(buffer, Room)

  @doc """
  Waits until there is room for so many entries. Then calls `attempt`, which returns the result of the write, or `:full`; with
  true if others wait and it is this writer's turn. If the time is up, the result is what `:when_full` says. A processor of the
  buffer never waits: it would wait for itself.
  """
  @spec wait(atom(), pos_integer(), (next? :: boolean() -> result | :full)) :: result | :ok | {:error, :full}
        when result: any()
  def wait(buffer, count, attempt) do
    options = Supervisor.options(buffer) || Routing.not_running!(buffer)
    check_count!(options, count)

    # Others may have had room that they did not use.
    with :full <- if(Native.has_room(buffer, count) == false, do: :full, else: attempt.(false)) do
      now = System.monotonic_time(:millisecond)

      if options.full_timeout_ms == 0 or Running.in_processor?(buffer),
        do: give_up(options, count, 0),
        else: wait(options, count, attempt, :last, now, now + options.full_timeout_ms)
    end
  end

  defp check_count!(%Options{max_size: max_size, name: buffer}, count)
       when is_integer(max_size) and count > max_size do
    raise ArgumentError,
          "a list of #{count} entries does not fit into buffer #{inspect(buffer)}: expected at most #{max_size}, " <>
            "as its option :max_size says"
  end

  defp check_count!(_options, _count), do: :ok

  # A writer that has found no room although it was its turn is the first one again.
  defp wait(%Options{name: buffer} = options, count, attempt, place, since, until) do
    case call(buffer, {:wait, count, place, until}) do
      {:next, turn} ->
        with :full <- attempt(buffer, turn, attempt), do: wait(options, count, attempt, :first, since, until)

      :timeout ->
        give_up(options, count, System.monotonic_time(:millisecond) - since)

      # The buffer ends, or has just started this process again.
      :ended ->
        Supervisor.await_restarts(buffer)
        with :full <- attempt.(false), do: wait(options, count, attempt, place, since, until)
    end
  end

  defp attempt(buffer, turn, attempt) do
    attempt.(true)
  after
    GenServer.cast(name(buffer), {:done, turn})
  end

  defp call(buffer, request) do
    GenServer.call(name(buffer), request, :infinity)
  catch
    :exit, _reason -> :ended
  end

  defp give_up(%Options{name: buffer, when_full: :drop_newest}, count, _waited_ms) do
    Native.count_refused(buffer, 0, count)
    :ok
  end

  defp give_up(%Options{name: buffer} = options, count, waited_ms) do
    Native.count_refused(buffer, count, 0)

    if options.when_full == :error,
      do: {:error, :full},
      else: raise(FullError, buffer: buffer, max_size: options.max_size, waited_ms: waited_ms)
  end

  @doc """
  Lets the option `:max_size` take effect.
  """
  @spec changed(atom()) :: :ok
  def changed(buffer) do
    # A process that starts begins with the present options.
    if call(buffer, :changed) == :ended, do: Supervisor.await_restarts(buffer)
    :ok
  end

  ## Callbacks

  @impl GenServer
  def init({buffer, settings}) do
    # Writers are told when this process ends with the buffer.
    Process.flag(:trap_exit, true)
    Native.watch(buffer, :room)
    Native.set_queued(buffer, false)
    {:ok, change(%__MODULE__{buffer: buffer, settings: settings})}
  end

  @impl GenServer
  def handle_call({:wait, count, place, until}, {pid, _tag} = from, %__MODULE__{} = state) do
    ref = Process.monitor(pid)
    timer = :erlang.start_timer(until, self(), ref, abs: true)
    Native.set_queued(state.buffer, true)
    state = begin_full(state)

    {number, state} =
      case place do
        :last -> {state.last + 1, %{state | last: state.last + 1, waited: state.waited + 1}}
        :first -> {first_place(state) - 1, state}
      end

    waiter = %Waiter{from: from, ref: ref, count: count, timer: timer}
    waiters = :gb_trees.insert(number, waiter, state.waiters)
    state = %{state | waiters: waiters, places: Map.put(state.places, ref, number)}
    # The others wait for the first one.
    {:noreply, if(first_place(state) == number, do: serve(state), else: publish(state))}
  end

  def handle_call(:changed, _from, %__MODULE__{} = state), do: {:reply, :ok, change(state)}

  @impl GenServer
  def handle_cast({:done, ref}, %__MODULE__{turn: ref} = state) do
    Process.demonitor(ref, [:flush])
    {:noreply, serve(%{state | turn: nil})}
  end

  # It was done for an earlier process of this name.
  def handle_cast({:done, _ref}, state), do: {:noreply, state}

  @impl GenServer
  def handle_info(:full, %__MODULE__{} = state), do: {:noreply, state |> begin_full() |> serve()}

  def handle_info(:room, state), do: {:noreply, serve(state)}

  def handle_info({:timeout, timer, ref}, %__MODULE__{} = state) do
    case pop(state, ref) do
      {%Waiter{timer: ^timer} = waiter, state} ->
        Process.demonitor(ref, [:flush])
        GenServer.reply(waiter.from, :timeout)
        {:noreply, serve(state)}

      _its_turn_has_come ->
        {:noreply, state}
    end
  end

  def handle_info({:DOWN, ref, :process, _pid, _reason}, %__MODULE__{turn: ref} = state),
    do: {:noreply, serve(%{state | turn: nil})}

  def handle_info({:DOWN, ref, :process, _pid, _reason}, %__MODULE__{} = state) do
    case pop(state, ref) do
      {%Waiter{timer: timer}, state} ->
        :erlang.cancel_timer(timer)
        {:noreply, serve(state)}

      {nil, state} ->
        {:noreply, state}
    end
  end

  def handle_info(_message, state), do: {:noreply, state}

  @impl GenServer
  def terminate(_reason, %__MODULE__{} = state), do: send_away(state)

  defp change(%__MODULE__{} = state) do
    [{:options, options}] = :ets.lookup(state.settings, :options)
    Native.set_max_size(state.buffer, options.max_size)
    serve(state)
  end

  ## Turns

  defp serve(%__MODULE__{turn: turn} = state) when turn != nil, do: publish(state)

  defp serve(%__MODULE__{places: places} = state) when places == %{} do
    Native.set_queued(state.buffer, false)
    state |> end_full() |> publish()
  end

  defp serve(%__MODULE__{} = state) do
    {_number, first} = :gb_trees.smallest(state.waiters)

    case Native.has_room(state.buffer, first.count) do
      true ->
        {first, state} = pop(state, first.ref)
        :erlang.cancel_timer(first.timer)
        GenServer.reply(first.from, {:next, first.ref})
        publish(%{state | turn: first.ref})

      false ->
        flush_all(state)
        publish(state)

      :not_running ->
        send_away(state)
        publish(%{state | waiters: :gb_trees.empty(), places: %{}})
    end
  end

  # The buffer ends.
  defp send_away(%__MODULE__{} = state) do
    for waiter <- :gb_trees.values(state.waiters) do
      :erlang.cancel_timer(waiter.timer)
      Process.demonitor(waiter.ref, [:flush])
      GenServer.reply(waiter.from, :ended)
    end
  end

  defp first_place(%__MODULE__{places: places, last: last}) when places == %{}, do: last + 1
  defp first_place(%__MODULE__{waiters: waiters}), do: waiters |> :gb_trees.smallest() |> elem(0)

  defp pop(%__MODULE__{} = state, ref) do
    case Map.pop(state.places, ref) do
      {nil, _places} ->
        {nil, state}

      {number, places} ->
        {waiter, waiters} = :gb_trees.take(number, state.waiters)
        {waiter, %{state | waiters: waiters, places: places}}
    end
  end

  # For `info/1`.
  defp publish(%__MODULE__{} = state) do
    :ets.insert(state.settings, {:waiting_writers, map_size(state.places)})
    state
  end

  defp flush_all(%__MODULE__{buffer: buffer}) do
    with count when is_integer(count) <- Native.partition_count(buffer) do
      for partition <- 0..(count - 1),
          do: Partition.flush_early(Routing.partition_name(buffer, partition), :full)
    end
  end

  ## The time in which the buffer is full

  defp begin_full(%__MODULE__{since: nil, buffer: buffer} = state) do
    Telemetry.execute_of_buffer([:full, :start], %{system_time: System.system_time()}, %{buffer: buffer})
    %{state | since: System.monotonic_time(), before: refused(buffer), waited: 0}
  end

  defp begin_full(state), do: state

  # There may still be little room. Then the partitions go on.
  defp end_full(%__MODULE__{since: nil} = state) do
    Native.clear_full(state.buffer)
    state
  end

  defp end_full(%__MODULE__{since: since, buffer: buffer} = state) do
    if Native.clear_full(buffer) do
      {{refused, dropped}, {refused_before, dropped_before}} = {refused(buffer), state.before}

      measurements = %{
        duration: System.monotonic_time() - since,
        refused: refused - refused_before,
        dropped: dropped - dropped_before,
        waited: state.waited
      }

      Telemetry.execute_of_buffer([:full, :stop], measurements, %{buffer: buffer})
      %{state | since: nil}
    else
      flush_all(state)
      state
    end
  end

  defp refused(buffer) do
    case Native.bound(buffer) do
      {_held, refused, dropped} -> {refused, dropped}
      :not_running -> {0, 0}
    end
  end
end
