defmodule PartitionedBuffer.Buffer.Room do
  @moduledoc false
  # Handles a write that found no room in a full buffer. All other writers see only the native
  # bound.

  alias PartitionedBuffer.Buffer.{Lookup, Writers}
  alias PartitionedBuffer.{FullError, Native, Options}
  alias PartitionedBuffer.Partition.Runner

  @doc """
  Waits for room for `count` entries. Calls `attempt`, which returns the result of the write, or
  `:full`; `next?` is true on this writer's turn, while other writers wait. When the time is up,
  `:when_full` decides the result. A processor of the buffer never waits: it would wait for itself.
  """
  @spec wait(atom(), pos_integer(), (next? :: boolean() -> result | :full)) :: result | :ok | {:error, :full}
        when result: any()
  def wait(buffer, count, attempt) do
    options = Lookup.options!(buffer)
    check_count!(options, count)

    # Shards may hold unused room, which `has_room/2` takes back.
    with :full <- if(Native.has_room(buffer, count) == false, do: :full, else: attempt.(false)) do
      now = System.monotonic_time(:millisecond)

      if options.full_timeout_ms == 0 or Runner.in_processor?(buffer),
        do: give_up(options, count, 0),
        else: wait(options, count, attempt, :last, now, now + options.full_timeout_ms)
    end
  end

  defp check_count!(%Options{max_size: max_size, name: buffer}, count)
       when is_integer(max_size) and count > max_size do
    raise ArgumentError,
          "a list of #{count} entries does not fit into buffer #{inspect(buffer)}: " <>
            "its :max_size is #{max_size}"
  end

  defp check_count!(_options, _count), do: :ok

  # A writer that finds no room on its turn takes the first place again.
  defp wait(%Options{name: buffer} = options, count, attempt, place, since, until) do
    case Writers.wait(buffer, count, place, until) do
      {:next, turn} ->
        with :full <- attempt(buffer, turn, attempt), do: wait(options, count, attempt, :first, since, until)

      :timeout ->
        give_up(options, count, System.monotonic_time(:millisecond) - since)

      # The buffer ends, or its supervisor restarts the process of the writers: during a stop only
      # when all calls of the processor ended.
      :ended ->
        case Lookup.await_restarts(buffer, {:abs, until}) do
          :ok -> with :full <- attempt.(false), do: wait(options, count, attempt, place, since, until)
          :timeout -> give_up(options, count, System.monotonic_time(:millisecond) - since)
        end
    end
  end

  defp attempt(buffer, turn, attempt) do
    attempt.(true)
  after
    Writers.done(buffer, turn)
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
end
