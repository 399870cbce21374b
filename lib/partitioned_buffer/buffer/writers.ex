defmodule PartitionedBuffer.Buffer.Writers do
  @moduledoc false
  # Looks after the writers that wait for room in a full buffer: it lets all partitions flush at each
  # news, gives the room of a writer that does not take it to the next one, and reports for how long
  # the buffer was full. Writers wait in the native line and need this process for none of that.

  use GenServer

  alias PartitionedBuffer.{Emitter, Label, Native, Options, Routing}
  alias PartitionedBuffer.Partition.Server

  # While the buffer is full, its partitions flush at each news. In this many milliseconds times the
  # partition count they get one message: a message to each of 4,096 partitions takes a millisecond.
  @flush_ms 0.02

  # `since` is the time at which the buffer became full, and `before` has the counts of the end of
  # the time before. `metadata` is that of its event. `lapse` is the timer that lets grants lapse, `flush` the one of the next flush of
  # all partitions, which got the last message at `flushed_at`.
  @enforce_keys [:run, :buffer]
  defstruct @enforce_keys ++ [:since, :metadata, :before, :lapse, :flush, flushed_at: nil]

  ## API

  @spec start_link({Native.run(), atom()}) :: GenServer.on_start()
  def start_link({_run, _buffer} = init), do: GenServer.start_link(__MODULE__, init)

  @doc """
  Lets the options `:max_size` and `:max_bytes` take effect. The last of concurrent calls sees the
  latest options.
  """
  @spec set_bound(Native.run()) :: :ok
  def set_bound(run) do
    with {version, options} <- Native.options(run),
         :ok <- Native.set_bound(run, Options.bound(options)),
         {newer, _options} when newer != version <- Native.options(run),
         do: set_bound(run),
         else: (_set_or_over -> :ok)
  end

  ## Callbacks

  @impl GenServer
  def init({run, buffer}) do
    Native.register(run, :room, :room)
    Label.set(buffer, :writers)
    # The caller of `update_options/2` may have died before it set the bound.
    set_bound(run)
    state = serve(%__MODULE__{run: run, buffer: buffer, before: counts(buffer)})
    # An earlier process may have died before it let the partitions flush.
    {:ok, if(state.since, do: flush_all(state), else: state)}
  end

  @impl GenServer
  def handle_info(:full, state), do: {:noreply, state |> begin_full() |> flush_all() |> serve()}

  def handle_info(:room, state) do
    state = serve(state)
    {:noreply, if(state.since, do: flush_all(state), else: state)}
  end

  def handle_info({:timeout, timer, :lapse}, %__MODULE__{lapse: timer} = state),
    do: {:noreply, serve(%__MODULE__{state | lapse: nil})}

  def handle_info({:timeout, timer, :flush}, %__MODULE__{flush: timer} = state) do
    state = %__MODULE__{state | flush: nil, flushed_at: nil}
    {:noreply, if(state.since, do: flush_all(state), else: state)}
  end

  def handle_info(_message, state), do: {:noreply, state}

  ## The line of writers

  defp serve(%__MODULE__{} = state) do
    case Native.serve(state.run) do
      :not_running -> state
      {0, _next} -> end_full(state)
      {_waiting, 0} -> serve(state)
      {_waiting, next} -> state |> begin_full() |> look_again(next)
    end
  end

  defp look_again(%__MODULE__{lapse: nil} = state, ms) when is_integer(ms),
    do: %__MODULE__{state | lapse: :erlang.start_timer(ms, self(), :lapse)}

  defp look_again(state, _ms), do: state

  # The next flush is coming.
  defp flush_all(%__MODULE__{flush: timer} = state) when timer != nil, do: state

  defp flush_all(%__MODULE__{buffer: buffer, flushed_at: flushed_at} = state) do
    with count when is_integer(count) <- Native.partition_count(buffer) do
      now = System.monotonic_time(:millisecond)
      due = if flushed_at, do: flushed_at + trunc(count * @flush_ms), else: now

      if now < due do
        %__MODULE__{state | flush: :erlang.start_timer(due, self(), :flush, abs: true)}
      else
        for partition <- 0..(count - 1),
            do: Server.flush_full(Routing.partition_name(buffer, partition))

        %__MODULE__{state | flushed_at: now}
      end
    else
      :not_running -> state
    end
  end

  ## The time in which the buffer is full

  defp begin_full(%__MODULE__{since: nil, buffer: buffer} = state) do
    metadata = metadata(buffer)
    Emitter.event(state.run, [:full, :start], %{system_time: System.system_time()}, metadata)
    %__MODULE__{state | since: System.monotonic_time(), metadata: metadata}
  end

  defp begin_full(state), do: state

  defp metadata(buffer),
    do: if(Native.refuses_writes(buffer), do: %{buffer: buffer, reason: :journal}, else: %{buffer: buffer})

  # While room is still low, the buffer stays full. The process that got the first news may be dead.
  defp end_full(%__MODULE__{since: nil} = state),
    do: if(Native.clear_full(state.run) == false, do: begin_full(state), else: state)

  defp end_full(%__MODULE__{since: since, buffer: buffer} = state) do
    # What is counted after this belongs to the next time.
    now = counts(buffer)

    if Native.clear_full(state.run) == true do
      changes = Map.new(now, fn {key, count} -> {key, count - state.before[key]} end)
      measurements = Map.put(changes, :duration, System.monotonic_time() - since)
      Emitter.event(state.run, [:full, :stop], measurements, state.metadata)
      %__MODULE__{state | since: nil, before: now}
    else
      state
    end
  end

  defp counts(buffer) do
    case Native.bound(buffer) do
      {_held, refused, dropped, _waiting, waited} -> %{refused: refused, dropped: dropped, waited: waited}
      :not_running -> %{refused: 0, dropped: 0, waited: 0}
    end
  end
end
