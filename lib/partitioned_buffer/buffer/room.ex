defmodule PartitionedBuffer.Buffer.Room do
  @moduledoc false
  # Handles a write that found no room in a full buffer. All other writers see only the native
  # bound.
  #
  # The writer waits in the native line of the buffer, by itself: no process has to run for it to get
  # room, or to give up in time. Its answer is a message with its place in the line, so it leaves the
  # line before it goes on without an answer.

  alias PartitionedBuffer.Buffer.{Journaling, Lookup}
  alias PartitionedBuffer.{FullError, JournalError, Native, Options, Routing}
  alias PartitionedBuffer.Partition.Runner

  # The first element of the message to a writer that waits.
  @answer :"$partitioned_buffer_room"

  @typedoc "A write with reserved room. `:lapsed` if the room went to another writer since."
  @type write(result) :: (Native.reservation() -> result | :lapsed)

  @doc """
  Waits for room for `count` entries, and writes. When the time is up, `:when_full` decides the
  result. Processes of the buffer never wait, since its entries might wait for them.
  """
  @spec wait(atom(), pos_integer(), write(result)) :: result | :ok | {:error, :full | :journal}
        when result: any()
  def wait(buffer, count, write) do
    options = Lookup.options!(buffer)
    since = System.monotonic_time(:millisecond)
    wait(options, count, write, since)
  end

  # The time at which the journal has all changes is unknown, so nobody waits for that.
  defp wait(%Options{name: buffer} = options, count, write, since) do
    check_count!(options, count)
    behind? = behind?(options)
    waits? = options.full_timeout_ms > 0 and not behind? and not own_process?(buffer)

    case Native.reserve(buffer, count, waits?) do
      :full when behind? -> refuse(options, count)
      answer -> answered(answer, options, count, write, since)
    end
  end

  defp behind?(%Options{name: buffer, journal: journal}),
    do: journal != nil and Native.refuses_writes(buffer)

  defp answered({:wait, reservation, place}, options, count, write, since) do
    reservation
    |> await(place, since + options.full_timeout_ms)
    |> answered(options, count, write, since)
  end

  # The journal may have come to be too far behind since the write began to wait.
  defp answered(:full, options, count, _write, since) do
    if behind?(options),
      do: refuse(options, count),
      else: give_up(options, count, System.monotonic_time(:millisecond) - since)
  end

  defp answered({:ended, reservation}, options, _count, _write, _since) do
    # Others in the line hear of the end then.
    Native.release(reservation)
    Routing.not_running!(options.name)
  end

  defp answered(:not_running, options, _count, _write, _since), do: Routing.not_running!(options.name)

  # The bound was lowered.
  defp answered(:too_long, options, count, write, since),
    do: wait(Lookup.options!(options.name), count, write, since)

  defp answered(reservation, options, count, write, since) do
    with :lapsed <- write.(reservation),
         do: answered(Native.wait_again(reservation), options, count, write, since)
  end

  defp await(reservation, place, until) do
    receive do
      {@answer, ^place, answer} -> answer(answer, reservation)
    after
      max(until - System.monotonic_time(:millisecond), 0) ->
        # The answer may have come in the meantime.
        if Native.leave(reservation),
          do: :full,
          else: receive(do: ({@answer, ^place, answer} -> answer(answer, reservation)))
    end
  end

  defp answer(:granted, reservation), do: reservation
  defp answer(:too_long, _reservation), do: :too_long
  defp answer(:ended, reservation), do: {:ended, reservation}

  defp own_process?(buffer), do: Runner.in_processor?(buffer) or in_tree?(Routing.supervisor_name(buffer))

  defp in_tree?(supervisor),
    do: supervisor in Process.get(:"$ancestors", []) or Process.whereis(supervisor) == self()

  defp check_count!(%Options{max_size: max_size, name: buffer}, count)
       when is_integer(max_size) and count > max_size do
    raise ArgumentError,
          "a list of #{count} entries does not fit into buffer #{inspect(buffer)}: " <>
            "its :max_size is #{max_size}"
  end

  defp check_count!(_options, _count), do: :ok

  defp refuse(%Options{name: buffer, journal: journal} = options, count) do
    no_room(options, count, :journal, fn ->
      lag_ms = Journaling.lag_ms(Lookup.run!(buffer))
      %JournalError{buffer: buffer, lag_ms: lag_ms, max_lag_ms: journal.max_lag_ms}
    end)
  end

  defp give_up(%Options{max_size: max_size, max_bytes: max_bytes} = options, count, waited_ms) do
    no_room(options, count, :full, fn ->
      %FullError{buffer: options.name, max_size: max_size, max_bytes: max_bytes, waited_ms: waited_ms}
    end)
  end

  defp no_room(%Options{name: buffer, when_full: :drop_newest}, count, _reason, _error) do
    Native.count_refused(buffer, 0, count)
    :ok
  end

  defp no_room(%Options{name: buffer, when_full: when_full}, count, reason, error) do
    Native.count_refused(buffer, count, 0)
    if when_full == :error, do: {:error, reason}, else: raise(error.())
  end
end
