defmodule PartitionedBuffer.StopTest do
  use PartitionedBuffer.Case, async: true

  import ExUnit.CaptureLog

  @moduletag :capture_log

  defp keys(entries), do: entries |> Enum.map(&elem(&1, 0)) |> Enum.sort()

  defp never_returns(batch, test) do
    send(test, {:batch, batch})
    receive(do: (:never -> :ok))
  end

  describe "a processor that hangs at a stop" do
    test "is killed after processing_timeout_ms if it was at work when the stop began; the rest is kept" do
      test = self()

      processor = fn [{key, _, _, _}] = batch ->
        if key == :hang, do: never_returns(batch, test), else: send(test, {:batch, batch})
      end

      opts = [partitions: 1, processor: processor, processing_batch_size: 1]
      buffer = start_buffer([processing_timeout_ms: 10] ++ opts)
      Buffer.put(buffer, :hang, 1)
      tick(hd(partitions(buffer)))
      assert_receive {:batch, [{:hang, 1, 0, 0}]}
      for n <- 1..3, do: Buffer.put(buffer, n, n)

      log = capture_log(fn -> assert Buffer.stop(buffer) == :ok end)
      assert log =~ "partition 0 of buffer #{inspect(buffer)} kills its processor"
      assert log =~ "longer than 10 ms"

      assert log =~
               "partition 0 of buffer #{inspect(buffer)} could not process all it had: 3 entries are kept"

      refute_received {:batch, _batch}

      start_buffer([name: buffer] ++ opts)
      assert Buffer.stop(buffer) == :ok
      assert keys(received_entries()) == [1, 2, 3]
    end

    test "is killed five seconds after its call if the stop has made it; what lies behind is not tried" do
      test = self()
      calls = :counters.new(1, [])

      second_hangs = fn batch ->
        :counters.add(calls, 1, 1)
        if :counters.get(calls, 1) == 2, do: never_returns(batch, test), else: send(test, {:batch, batch})
      end

      stops =
        for {processor, size, left} <- [{second_hangs, 10, 15}, {&never_returns(&1, test), :table, 0}] do
          opts = [partitions: 1, processor: processor, processing_batch_size: size, processing_timeout_ms: 50]
          buffer = start_buffer(opts)
          Buffer.put_all(buffer, for(n <- 1..35, do: {n, n}))
          {buffer, left, Task.async(fn -> :timer.tc(fn -> Buffer.stop(buffer) end) end)}
        end

      log =
        capture_log(fn ->
          for {_buffer, _left, stop} <- stops do
            assert {microseconds, :ok} = Task.await(stop, 30_000)
            assert microseconds in 5_000_000..8_000_000
          end
        end)

      for {buffer, left, _stop} <- stops do
        assert log =~
                 "partition 0 of buffer #{inspect(buffer)} kills its processor: a batch has taken longer than 5000 ms"

        kept =
          "partition 0 of buffer #{inspect(buffer)} could not process all it had: #{left} entries are kept"

        assert log =~ kept == left > 0
      end

      assert length(received_batches()) == 3
    end
  end
end
