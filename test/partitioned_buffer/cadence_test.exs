defmodule PartitionedBuffer.CadenceTest do
  use PartitionedBuffer.Case, async: true

  @never 86_400_000

  defp asking_processor do
    test = self()

    fn batch ->
      send(test, {:asked, self(), batch})

      receive do
        :return -> :ok
        :fail -> exit(:as_told)
      end
    end
  end

  describe "a new interval" do
    test "begins at once if it is shorter" do
      buffer = start_buffer()
      Buffer.put(buffer, :key, 1)
      Buffer.update_options(buffer, processing_interval_ms: 1)
      assert_receive {:batch, [{:key, 1, 0, 0}]}
    end

    test "does not postpone what is due, however often it is set" do
      buffer = start_buffer(partitions: 1, processing_interval_ms: 200)
      Buffer.put(buffer, :key, 1)
      started = System.monotonic_time(:millisecond)
      assert [{:key, 1, 0, 0}] = set_until_called(buffer, started + 3_000)
    end

    test "comes after the tick that is due if it is longer" do
      buffer = start_buffer(partitions: 1, processing_interval_ms: 100)
      Buffer.put(buffer, :first, 1)
      Buffer.update_options(buffer, processing_interval_ms: @never)
      assert_receive {:batch, [{:first, 1, 0, 0}]}
      Buffer.put(buffer, :second, 1)
      refute_receive {:batch, _batch}, 300
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

  describe "a tick during a flush" do
    for answer <- [:return, :fail] do
      @tag :capture_log
      test "is made good when that has ended (#{answer})" do
        buffer = start_buffer(partitions: 1, processor: asking_processor())
        [partition] = partitions(buffer)
        Buffer.put(buffer, :first, 1)
        tick(partition)
        assert_receive {:asked, task, [{:first, 1, 0, 0}]}
        Buffer.put(buffer, :second, 2)
        for _ <- 1..3, do: tick(partition)
        refute_receive {:asked, _pid, _batch}, 50
        send(task, unquote(answer))

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
end
