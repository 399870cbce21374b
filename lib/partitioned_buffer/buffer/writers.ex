defmodule PartitionedBuffer.Buffer.Writers do
  @moduledoc false
  # The process at which writers wait for room in a full buffer.
  #
  # Writers wait in their order. When the buffer has room for the first writer, its turn begins: it
  # writes with a mark, and then reports the end of its turn. During a turn no other writer gets
  # room. Room is therefore never given to a process that may be dead, and a writer that dies gives
  # up its place or its turn.
  #
  # A full buffer drains at once: whenever the first writer finds no room, all partitions flush.

  use GenServer

  alias PartitionedBuffer.{Emitter, Native, Routing}
  alias PartitionedBuffer.Partition.Server

  # `waiters` are the waiting writers by their place, and `places` has the place of each monitor.
  # `last` is the place of the latest writer. `turn` is the monitor of the writer whose turn it is.
  # `since` is the time at which the buffer became full; since that time `waited` counts the writers
  # that waited, and `before` has the earlier refused and dropped writes.
  @enforce_keys [:run, :buffer]
  defstruct @enforce_keys ++
              [:turn, :since, :before, waiters: :gb_trees.empty(), places: %{}, last: 0, waited: 0]

  defmodule Waiter do
    @moduledoc false
    # `ref` monitors the writer, which waits for room for `count` entries until `timer` ends it.
    @enforce_keys [:from, :ref, :count, :timer]
    defstruct @enforce_keys
  end

  ## API

  @spec start_link({Native.run(), atom()}) :: GenServer.on_start()
  def start_link({_run, _buffer} = init), do: GenServer.start_link(__MODULE__, init)

  @doc """
  Waits for room for `count` entries, until a time of the VM in milliseconds. A writer that found no
  room on its turn takes the `:first` place again.
  """
  @spec wait(atom(), pos_integer(), :first | :last, integer()) :: {:next, reference()} | :timeout | :ended
  def wait(buffer, count, place, until), do: call(Native.run(buffer), {:wait, count, place, until})

  @doc """
  Ends the turn of a writer.
  """
  @spec done(atom(), reference()) :: :ok
  def done(buffer, turn) do
    with {:ok, pid} <- process(Native.run(buffer)), do: GenServer.cast(pid, {:done, turn})
    :ok
  end

  @doc """
  Lets the option `:max_size` take effect.
  """
  @spec changed(Native.run()) :: :ok
  def changed(run) do
    set_max_size(run)
    # A new process looks for room by itself. Nobody waits for it here: during a stop the supervisor
    # starts it only when all calls of the processor ended.
    _ended = call(run, :changed)
    :ok
  end

  # The last of concurrent calls to set a size sees the latest options, and sets theirs.
  defp set_max_size(run) do
    with {version, options} <- Native.options(run),
         :ok <- Native.set_max_size(run, options.max_size),
         {newer, _options} when newer != version <- Native.options(run),
         do: set_max_size(run)
  end

  defp call(run, request) do
    with {:ok, pid} <- process(run), do: GenServer.call(pid, request, :infinity)
  catch
    :exit, _reason -> :ended
  end

  defp process(:not_running), do: :ended

  defp process(run) do
    case Native.process(run, :room, :room) do
      pid when is_pid(pid) -> {:ok, pid}
      _none -> :ended
    end
  end

  ## Callbacks

  @impl GenServer
  def init({run, buffer}) do
    # At its end, `terminate/2` answers the waiting writers.
    Process.flag(:trap_exit, true)
    Native.register(run, :room, :room)
    {:ok, change(%__MODULE__{run: run, buffer: buffer})}
  end

  @impl GenServer
  def handle_call({:wait, count, place, until}, {pid, _tag} = from, %__MODULE__{} = state) do
    ref = Process.monitor(pid)
    timer = :erlang.start_timer(until, self(), ref, abs: true)
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

  # The turn began at an earlier process.
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

  # The caller of `update_options/2` may have died before it set the size.
  defp change(%__MODULE__{} = state) do
    set_max_size(state.run)
    serve(state)
  end

  ## Turns

  defp serve(%__MODULE__{turn: turn} = state) when turn != nil, do: publish(state)

  defp serve(%__MODULE__{places: places} = state) when places == %{} do
    Native.set_waiting(state.run, 0, false)
    end_full(state)
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

  # While writers wait, or one has its turn, no other writer gets room.
  defp publish(%__MODULE__{} = state) do
    waiting = map_size(state.places)
    Native.set_waiting(state.run, waiting, waiting > 0 or state.turn != nil)
    state
  end

  defp flush_all(%__MODULE__{buffer: buffer}) do
    with count when is_integer(count) <- Native.partition_count(buffer) do
      for partition <- 0..(count - 1),
          do: Server.flush_full(Routing.partition_name(buffer, partition))
    end
  end

  ## The time in which the buffer is full

  defp begin_full(%__MODULE__{since: nil, buffer: buffer} = state) do
    Emitter.event(state.run, [:full, :start], %{system_time: System.system_time()}, %{buffer: buffer})
    %{state | since: System.monotonic_time(), before: refused(buffer), waited: 0}
  end

  defp begin_full(state), do: state

  # While room is still low, the buffer stays full, and the partitions flush again.
  defp end_full(%__MODULE__{since: nil} = state) do
    Native.clear_full(state.run)
    state
  end

  defp end_full(%__MODULE__{since: since, buffer: buffer} = state) do
    if Native.clear_full(state.run) == true do
      {{refused, dropped}, {refused_before, dropped_before}} = {refused(buffer), state.before}

      measurements = %{
        duration: System.monotonic_time() - since,
        refused: refused - refused_before,
        dropped: dropped - dropped_before,
        waited: state.waited
      }

      Emitter.event(state.run, [:full, :stop], measurements, %{buffer: buffer})
      %{state | since: nil}
    else
      flush_all(state)
      state
    end
  end

  defp refused(buffer) do
    case Native.bound(buffer) do
      {_held, refused, dropped, _waiting} -> {refused, dropped}
      :not_running -> {0, 0}
    end
  end
end
