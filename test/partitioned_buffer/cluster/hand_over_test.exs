defmodule PartitionedBuffer.Cluster.HandOverTest do
  use PartitionedBuffer.Case, async: true

  alias PartitionedBuffer.Counter

  @moduletag :capture_log

  test "entries that a stop moves to the owning stage are no dead letters" do
    test = self()
    up? = :atomics.new(1, [])

    buffer =
      start_buffer(
        module: Counter,
        processor: fn batch ->
          if :atomics.get(up?, 1) == 1, do: send(test, {:stored, batch}), else: :error
        end,
        dead_letter: &send(test, {:dead, &1, &2}),
        partitions: 1,
        max_attempts: 100,
        max_size: 1,
        drain_timeout_ms: 1_500,
        cluster: true
      )

    attach_telemetry(buffer)
    Counter.add(buffer, :owned)
    assert PartitionedBuffer.flush(buffer) == {:error, {:failed, 1}}
    # The owning stage is full, so this one cannot be forwarded.
    Counter.add(buffer, :collected)
    :atomics.put(up?, 1, 1)
    PartitionedBuffer.pause(buffer)
    PartitionedBuffer.stop(buffer)

    stored = for _ <- 1..2, do: receive(do: ({:stored, batch} -> batch), after: (0 -> []))
    assert stored |> Enum.concat() |> Enum.sort() == [{:collected, 1, 1}, {:owned, 1, 1}]
    refute_received {[:dead_letter], _measurements, _metadata}
    refute_received {:dead, _entries, _reason}
  end
end
