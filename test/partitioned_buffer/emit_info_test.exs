defmodule PartitionedBuffer.EmitInfoTest do
  # Not async, since `:all` includes the buffers of native tests, which keep other terms than options.
  use PartitionedBuffer.Case, async: false

  doctest PartitionedBuffer, only: [emit_info: 1]

  describe "emit_info/1" do
    test "emits the numbers of info/1, of one buffer or of all that run" do
      [one, other] = for _ <- 1..2, do: start_buffer()
      test = self()
      id = {__MODULE__, make_ref()}

      forward = fn _event, measurements, metadata, _config ->
        send(test, {metadata.buffer, metadata.kind, measurements})
      end

      :telemetry.attach(id, [:partitioned_buffer, :info], forward, nil)
      on_exit(fn -> :telemetry.detach(id) end)
      Buffer.put(one, :key, 1)
      assert PartitionedBuffer.emit_info(one) == :ok

      assert_received {^one, :map,
                       %{size: 1, in_flight: 0, oldest_ms: _, failing_ms: 0, written: 1, dropped: 0}}

      assert PartitionedBuffer.emit_info(:all) == :ok
      assert_received {^one, :map, %{size: 1}}
      assert_received {^other, :map, %{size: 0}}
    end

    test "does nothing if nothing runs" do
      assert PartitionedBuffer.emit_info(:no_such_buffer) == :ok
    end
  end
end
