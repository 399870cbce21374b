defmodule PartitionedBuffer.RoutingTest do
  use PartitionedBuffer.Case, async: true

  def second({_, second}, add), do: second + add

  # The partitions that have entries, which they flush.
  defp holders(buffer) do
    for partition <- partitions(buffer), tick_and_count(partition) > 0, do: partition
  end

  defp tick_and_count(partition) do
    tick(partition)
    wait_idle(partition)
    length(received_entries())
  end

  describe "a key without a partition key" do
    test "is in the partition of phash2 of its phash2, for any partition count" do
      for partitions <- [1, 2, 3, 7, 16] do
        buffer = start_buffer(partitions: partitions)

        for key <- [:a, "b", {1, 2}, 1.5, [], %{x: 1}, 123_456_789_012_345_678_901_234] do
          Buffer.put(buffer, key, 1)
          expected = Module.concat([buffer, to_string(:erlang.phash2(:erlang.phash2(key), partitions))])
          assert PartitionedBuffer.get_partition(buffer, nil, key) == expected
          assert holders(buffer) == [expected]

          Buffer.put_all(buffer, [{key, 1}], partition_key: &:erlang.phash2/1)
          assert Buffer.get(buffer, key) == 1
          Buffer.delete(buffer, key)
          assert Buffer.size(buffer) == 0
        end
      end
    end
  end

  describe "a partition key" do
    test "chooses the partition as a function, an MFA or any other term" do
      buffer = start_buffer(partitions: 8)
      route = fn routing_key -> Module.concat([buffer, to_string(:erlang.phash2(routing_key, 8))]) end

      for {partition_key, routing_key} <- [
            {fn {_, second} -> second end, 7},
            {{__MODULE__, :second, [100]}, 107},
            {:term, :term},
            {{1, 2, 3}, {1, 2, 3}},
            {"binary", "binary"},
            {false, false}
          ] do
        key = {:key, 7}
        opts = [partition_key: partition_key]
        expected = route.(routing_key)
        assert PartitionedBuffer.get_partition(buffer, partition_key, key) == expected

        for write <- [
              fn -> Buffer.put(buffer, key, 1, opts) end,
              fn -> Buffer.put_newer(buffer, key, 1, 1, opts) end,
              fn -> Buffer.put_all(buffer, [{key, 1}], opts) end,
              fn -> Buffer.put_all(buffer, %{key => 1}, opts) end,
              fn -> Buffer.put_all_newer(buffer, [{key, 1, 1}], opts) end
            ] do
          assert write.() == :ok
          assert Buffer.get(buffer, key, nil, opts) == 1
          assert holders(buffer) == [expected]
        end

        Buffer.put(buffer, key, 1, opts)
        assert Buffer.delete(buffer, key, opts) == :ok
        assert Buffer.size(buffer) == 0
      end
    end

    test "is none if it is nil" do
      buffer = start_buffer(partitions: 4)
      Buffer.put(buffer, :key, 1, partition_key: nil)
      assert Buffer.get(buffer, :key) == 1
      Buffer.put_all(buffer, [{:key, 2}], partition_key: nil)
      assert Buffer.get(buffer, :key) == 2
    end

    test "makes the call raise if it raises, and nothing is written" do
      buffer = start_buffer()
      entries = for n <- 1..500, do: {n, n}
      partition_key = fn key -> if key == 500, do: raise("no route"), else: key end

      for operation <- [
            fn -> Buffer.put_all(buffer, entries, partition_key: partition_key) end,
            fn ->
              Buffer.put_all_newer(buffer, for({k, v} <- entries, do: {k, v, 1}), partition_key: partition_key)
            end,
            fn -> Buffer.put(buffer, 500, 1, partition_key: partition_key) end
          ] do
        assert_raise RuntimeError, "no route", operation
        assert Buffer.size(buffer) == 0
      end
    end
  end

  describe "a partition" do
    test "gets the entries of a call in their order" do
      buffer = start_buffer(partitions: 3)
      entries = for n <- 1..3_000, do: {rem(n, 10), n}
      Buffer.put_all(buffer, entries, partition_key: & &1)

      for key <- 0..9,
          do:
            assert(
              Buffer.get(buffer, key, nil, partition_key: & &1) == if(key == 0, do: 3_000, else: 2_990 + key)
            )
    end

    test "is still routed to after a restart" do
      buffer = start_buffer(partitions: 2)
      partition = PartitionedBuffer.get_partition(buffer, nil, :key)
      kill_and_await_restart(partition)
      Buffer.put(buffer, :key, 1)
      assert holders(buffer) == [partition]
    end
  end

  describe "a restart with another partition count" do
    test "makes a call raise that was routed before, and nothing is written" do
      for {entries, write} <- [
            {[{1, 1}, {2, 2}], &Buffer.put_all/3},
            {%{1 => 1, 2 => 2}, &Buffer.put_all/3},
            {[{1, 1, 1}, {2, 2, 2}], &Buffer.put_all_newer/3}
          ] do
        buffer = start_buffer(partitions: 2)

        partition_key = fn
          1 ->
            1

          2 ->
            stop_supervised!(buffer)
            start_buffer(name: buffer, partitions: 5)
            2
        end

        error = catch_error(write.(buffer, entries, partition_key: partition_key))
        assert Exception.message(error) =~ "no partitions available"
        assert Buffer.size(buffer) == 0
      end
    end
  end
end
