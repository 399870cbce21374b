defmodule PartitionedBuffer.AbsorbTest do
  # Entries of other nodes in a buffer with its processes.
  use PartitionedBuffer.Case, async: true

  alias PartitionedBuffer.{Counter, Native}

  @full_timeout_ms 50

  # Entries that come while the buffer flushes and stops. Returns the numbers taken, and the last answer.
  defp send_until_stopped(run, stream, keys, modes) do
    Enum.reduce_while(Stream.iterate(1, &(&1 + 1)), {0, nil}, fn number, {taken, _answer} ->
      entries = for key <- keys, do: {key, 1, 2}

      # Each number comes twice, as after a lost answer.
      case for(_ <- 1..2, do: absorb(run, entries, stream, number, modes)) do
        [:ok, :duplicate] -> {:cont, {taken + 1, :ok}}
        [:ok, :not_running] -> {:halt, {taken + 1, :not_running}}
        [answer, _again] -> {:halt, {taken, answer}}
      end
    end)
  end

  defp absorb(run, entries, stream, number, modes) do
    with :large <- Native.absorb(run, entries, stream, number, modes),
         do: Native.absorb_large(run, entries, stream, number, modes)
  end

  defp sums(entries) do
    Enum.reduce(entries, {0, 0}, fn {_key, sum, count}, {sums, counts} -> {sums + sum, counts + count} end)
  end

  test "reach the processor, and the numbers of the buffer count them as writes" do
    buffer = start_buffer(module: Counter, max_attempts: 3)
    Counter.add(buffer, :a, 1)
    assert absorb(run(buffer), [{:a, 10, 5}, {:b, 1, 1}], {1, 1}, 1, []) == :ok
    assert PartitionedBuffer.info(buffer).totals.written == 3
    assert PartitionedBuffer.flush(buffer) == :ok
    assert Enum.sort(received_entries()) == [{:a, 11, 6}, {:b, 1, 1}]
    assert PartitionedBuffer.info(buffer).totals.processed == 2
  end

  test "flush a full buffer, which has room for them then" do
    buffer = start_buffer(module: Counter, max_attempts: 3, max_size: 3, full_timeout_ms: @full_timeout_ms)
    assert absorb(run(buffer), [{1, 1, 1}, {2, 1, 1}], {1, 1}, 1, []) == :ok
    assert absorb(run(buffer), [{3, 1, 1}, {4, 1, 1}], {1, 1}, 2, []) == :full
    # That makes the partitions flush.
    assert_receive {:batch, _batch}
    assert PartitionedBuffer.flush(buffer) == :ok
    assert absorb(run(buffer), [{3, 1, 1}, {4, 1, 1}], {1, 1}, 2, []) == :ok
  end

  test "are delivered if they are taken while the buffer flushes and stops" do
    for modes <- [[], [:processor]], round <- 1..3 do
      {:ok, sink} = Agent.start_link(fn -> {0, 0} end)

      processor = fn entries ->
        {sum, count} = sums(entries)
        Agent.update(sink, fn {sums, counts} -> {sums + sum, counts + count} end)
      end

      buffer = unique_name()

      options = [
        name: buffer,
        processor: processor,
        partitions: 2,
        processing_interval_ms: 1,
        max_attempts: 3
      ]

      {:ok, _supervisor} = Counter.start_link(options)
      run = run(buffer)

      senders =
        for stream <- 1..3 do
          keys = Enum.to_list(1..(10 * stream * round))
          {length(keys), Task.async(fn -> send_until_stopped(run, {1, stream}, keys, modes) end)}
        end

      await_taken(run, 20)
      Counter.stop(buffer)

      taken =
        for {count, task} <- senders do
          {taken, answer} = Task.await(task, :infinity)
          assert answer in [:stopping, :not_running]
          taken * count
        end

      # A stop makes a limited number of passes over later entries. The next start has the rest.
      if modes == [:processor] do
        {:ok, _supervisor} = Counter.start_link(options)
        Counter.stop(buffer)
      end

      assert Agent.get(sink, & &1) == {Enum.sum(taken), 2 * Enum.sum(taken)}
    end
  end

  # Waits until each of three streams took this number.
  defp await_taken(run, number) do
    streams = Native.streams(run)
    done? = length(streams) == 3 and Enum.all?(streams, fn {_first, _second, last} -> last >= number end)
    done? || await_taken(run, number)
  end
end
