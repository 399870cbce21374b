defmodule PartitionedBuffer.TelemetryTest do
  use PartitionedBuffer.Case, async: true

  @moduletag :capture_log

  defp start_attached(opts \\ []) do
    name = unique_name()
    attach_telemetry(name)
    start_buffer([name: name, partitions: 1] ++ opts)
  end

  describe "start and stop" do
    test "enclose the life of a partition" do
      buffer = start_attached()
      partition = Module.concat([buffer, "0"])
      assert_receive {[:start], %{system_time: time}, %{buffer: ^buffer, partition: ^partition}}
      assert is_integer(time)
      Buffer.stop(buffer)

      assert_receive {[:stop], %{duration: duration},
                      %{buffer: ^buffer, partition: ^partition, reason: :shutdown}}

      assert duration > 0
    end
  end

  describe "processing start, stop and exception" do
    test "enclose a flush, and stop has its size" do
      buffer = start_attached()
      partition = Module.concat([buffer, "0"])
      Buffer.put_all(buffer, for(n <- 1..25, do: {n, n}))
      flush(buffer)

      assert_receive {[:processing, :start], %{system_time: _, monotonic_time: _},
                      %{buffer: ^buffer, partition: ^partition}}

      assert_receive {[:processing, :stop], %{duration: duration, size: 25},
                      %{buffer: ^buffer, partition: ^partition}}

      assert duration > 0
    end

    test "do not come for an empty partition" do
      buffer = start_attached()
      Buffer.put(buffer, 1, 1)
      Buffer.delete(buffer, 1)
      flush(buffer)
      flush(buffer)
      refute_received {[:processing | _], _measurements, _metadata}
      refute_received {:batch, _batch}
    end

    test "tell of a processor that raises, with the reason of processing_failed" do
      buffer = start_attached(processor: fn _batch -> raise "no" end)
      Buffer.put(buffer, 1, 1)
      tick(hd(partitions(buffer)))
      assert_receive {[:processing, :exception], %{duration: _}, metadata}

      assert %{kind: :error, reason: %RuntimeError{message: "no"}, stacktrace: [_ | _], buffer: ^buffer} =
               metadata

      assert_receive {[:processing_failed], %{system_time: _},
                      %{buffer: ^buffer, partition: _, reason: reason}}

      assert {%RuntimeError{message: "no"}, [_ | _]} = reason
    end
  end

  describe "processing_failed" do
    test "has the reason of a process that throws, exits or is killed" do
      for {processor, expected} <- [
            {fn _ -> throw(:ball) end, &match?({{:nocatch, :ball}, _stacktrace}, &1)},
            {fn _ -> exit(:reason) end, &(&1 == :reason)},
            {fn _ -> Process.exit(self(), :kill) end, &(&1 == :killed)}
          ] do
        buffer = start_attached(processor: processor)
        Buffer.put(buffer, 1, 1)
        tick(hd(partitions(buffer)))
        assert_receive {[:processing_failed], _measurements, %{buffer: ^buffer, reason: reason}}
        assert expected.(reason)
      end
    end
  end
end
