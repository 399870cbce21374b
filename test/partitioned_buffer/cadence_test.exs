defmodule PartitionedBuffer.CadenceTest do
  # When partitions flush: intervals, jitter and missed ticks.
  use PartitionedBuffer.Case, async: true

  @never 86_400_000

  describe "an interval that update_options/2 changes" do
    test "begins at once if it is shorter" do
      buffer = start_buffer()
      Buffer.put(buffer, :key, 1)
      Buffer.update_options(buffer, processing_interval_ms: 1)
      assert_receive {:batch, [{:key, 1, 0, 0}]}
    end

    test "does not postpone the tick that is due, however often it is set" do
      buffer = start_buffer(partitions: 1, processing_interval_ms: 200)
      Buffer.put(buffer, :key, 1)
      started = System.monotonic_time(:millisecond)
      assert [{:key, 1, 0, 0}] = set_until_called(buffer, started + 3_000)
    end

    test "begins after the tick that is due if it is longer" do
      buffer = start_buffer(partitions: 1, processing_interval_ms: 500)
      Buffer.put(buffer, :first, 1)
      Buffer.update_options(buffer, processing_interval_ms: @never)
      assert_receive {:batch, [{:first, 1, 0, 0}]}
      assert %{partitions: [%{next_ms: next_ms}]} = Buffer.info(buffer)
      assert next_ms > div(@never, 2)
    end
  end

  describe "a tick during a flush" do
    for {how, answer} <- [returns: :return, fails: {:exit, :as_told}] do
      @tag :capture_log
      test "is made good when the processor #{how}" do
        buffer = start_buffer(partitions: 1, processor: asking_processor())
        [partition] = partitions(buffer)
        Buffer.put(buffer, :first, 1)
        tick(partition)
        assert_receive {:asked, task, [{:first, 1, 0, 0}]}
        Buffer.put(buffer, :second, 2)
        for _ <- 1..3, do: tick(partition)
        refute_receive {:asked, _pid, _batch}, 50
        send(task, unquote(Macro.escape(answer)))

        assert_receive {:asked, task, [{:second, 2, 0, 0}]}
        # Several ticks make one flush.
        Buffer.put(buffer, :third, 3)
        send(task, :return)
        wait_idle(partition)
        refute_receive {:asked, _pid, _batch}, 50
        tick(partition)
        assert_receive {:asked, task, [{:third, 3, 0, 0}]}
        send(task, :return)
      end
    end
  end

  describe "processing_jitter_ms" do
    # Without it all partitions would flush at the same time.
    test "lengthens intervals at random, so partitions flush at different times" do
      test = self()
      partition_count = 16

      buffer =
        start_buffer(
          partitions: partition_count,
          processing_interval_ms: 50,
          processing_jitter_ms: 1_000,
          processor: fn batch -> send(test, {:batch, System.monotonic_time(:millisecond), batch}) end
        )

      started = System.monotonic_time(:millisecond)

      for n <- 0..(partition_count - 1),
          do: Buffer.put(buffer, n, n, partition_key: partition_key_of(n, partition_count))

      times = for _ <- 1..partition_count, do: assert_receive({:batch, _time, _batch}) |> elem(1)
      assert Enum.max(times) - Enum.min(times) > 100
      assert Enum.max(times) - started < 2_000
    end

    test "takes effect at once if update_options/2 makes the interval shorter" do
      buffer = start_buffer(partitions: 1, processing_interval_ms: 1, processing_jitter_ms: @never)
      Buffer.put(buffer, :key, 1)
      refute_receive {:batch, _batch}, 100
      Buffer.update_options(buffer, processing_jitter_ms: 0)
      assert_receive {:batch, [{:key, 1, 0, 0}]}
    end
  end

  defp set_until_called(buffer, deadline) do
    Buffer.update_options(buffer, processing_interval_ms: 200)

    receive do
      {:batch, batch} -> batch
    after
      20 -> if System.monotonic_time(:millisecond) < deadline, do: set_until_called(buffer, deadline)
    end
  end
end
