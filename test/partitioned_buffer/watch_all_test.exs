defmodule PartitionedBuffer.WatchAllTest do
  # Not async, since `:all` includes the buffers of native tests, which keep other terms than options.
  use PartitionedBuffer.Case, async: false

  alias PartitionedBuffer.Counter
  alias PartitionedBuffer.Test.Cluster.Until

  defp watch(opts) do
    {:ok, device} = StringIO.open("")
    assert PartitionedBuffer.watch(:all, [device: device, ansi: false, interval: 1] ++ opts) == :ok
    {"", output} = StringIO.contents(device)
    output
  end

  defp words(output, buffer) do
    [line | _later] =
      for line <- String.split(output, "\n"), String.starts_with?(line, inspect(buffer)), do: line

    String.split(line)
  end

  test "watch(:all) has a line for each running buffer, and none for a stopped one" do
    map = start_buffer(max_size: 10)
    counter = start_buffer(module: Counter)
    stopped = start_buffer()
    Buffer.put_all(map, %{1 => 1, 2 => 2})
    PartitionedBuffer.pause(counter)
    PartitionedBuffer.stop(stopped)
    output = watch(rounds: 1)
    assert [_name, "idle" | numbers] = words(output, map)
    assert Enum.join(numbers, " ") =~ " 2 of 10 "
    assert [_name, "on", "hold" | _numbers] = words(output, counter)
    refute output =~ inspect(stopped)
    refute output =~ "Enter"
  end

  test "watch(:all) shows the state of a buffer whose processor fails" do
    buffer = start_buffer(processor: fn _batch -> {:error, :away} end, max_attempts: 10)
    Buffer.put(buffer, 1, 1)
    PartitionedBuffer.flush(buffer)
    # The time counts whole milliseconds.
    assert Until.true?(5_000, fn -> PartitionedBuffer.info(buffer).failing_ms > 0 end)
    assert [_name, "failing" | _numbers] = words(watch(rounds: 2), buffer)
  end

  test "watch/2 raises on an unknown option" do
    assert_raise ArgumentError, ~r/:round/, fn -> PartitionedBuffer.watch(:all, round: 1) end
  end
end
