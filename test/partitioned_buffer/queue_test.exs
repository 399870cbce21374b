defmodule PartitionedBuffer.QueueTest do
  use PartitionedBuffer.Case, async: true

  alias PartitionedBuffer.Queue

  @moduletag :capture_log

  doctest PartitionedBuffer.Queue

  setup context do
    if context.test_type == :doctest, do: start_queue(name: :doc_queue)
    :ok
  end

  defp start_queue(opts \\ []), do: start_buffer([module: Queue] ++ opts)

  def kind({kind, _id}, :argument), do: kind

  defp terms do
    [:atom, 1, 1.0, -(2 ** 70), "binary", <<1::3>>, "", [], {}, %{}, %{a: [1]}, {:nested, [{1}]}] ++
      [:binary.copy("x", 1_000), make_ref(), self(), &String.length/1, fn -> :closure end]
  end

  describe "push/3" do
    test "keeps equal items, and takes a list in a list as an item" do
      queue = start_queue(partitions: 1)
      Queue.push(queue, [:same, :same])
      Queue.push(queue, :same)
      Queue.push(queue, [[1, 2]])
      Queue.push(queue, [])
      flush(queue)
      assert received_entries() == [:same, :same, :same, [1, 2]]
    end

    test "keeps the order of a list longer than a time slice in each partition" do
      queue = start_queue(partitions: 3, processing_batch_size: 1_000)
      items = Enum.to_list(1..50_000)
      Queue.push(queue, items)
      assert Queue.size(queue) == 50_000

      for {partition, number} <- Enum.with_index(partitions(queue)) do
        tick(partition)
        wait_idle(partition)
        assert received_entries() == Enum.filter(items, &(:erlang.phash2(:erlang.phash2(&1), 3) == number))
      end
    end

    test "calls a partition key with the item" do
      queue = start_queue(partitions: 4)
      Queue.push(queue, {:user, 1}, partition_key: fn {kind, _id} -> kind end)
      Queue.push(queue, [{:user, 2}, {:order, 1}], partition_key: {__MODULE__, :kind, [:argument]})
      Queue.push(queue, {:user, 3}, partition_key: :term)
      Queue.push(queue, {:user, 4}, partition_key: nil)

      expected = %{
        {:user, 1} => :erlang.phash2(:user, 4),
        {:user, 2} => :erlang.phash2(:user, 4),
        {:order, 1} => :erlang.phash2(:order, 4),
        {:user, 3} => :erlang.phash2(:term, 4),
        {:user, 4} => :erlang.phash2(:erlang.phash2({:user, 4}), 4)
      }

      got =
        for {partition, number} <- Enum.with_index(partitions(queue)),
            _ = {tick(partition), wait_idle(partition)},
            item <- received_entries(),
            into: %{},
            do: {item, number}

      assert got == expected
    end

    test "pushes nothing of a list if the partition key raises for one item" do
      queue = start_queue()
      partition_key = fn item -> if item == 3, do: raise("no"), else: item end
      assert_raise RuntimeError, "no", fn -> Queue.push(queue, [1, 2, 3], partition_key: partition_key) end
      assert_raise ArgumentError, ~r/partition_keys/, fn -> Queue.push(queue, 1, partition_keys: 1) end
      assert Queue.size(queue) == 0
    end

    test "raises on an improper list, and pushes nothing" do
      queue = start_queue()

      for list <- [[1 | 2], Enum.to_list(1..5_000) ++ :tail], opts <- [[], [partition_key: 1]] do
        assert_raise ArgumentError, ~r/proper list.*#{inspect(queue)}.*tail: (2|:tail)/, fn ->
          Queue.push(queue, list, opts)
        end
      end

      assert Queue.size(queue) == 0
    end

    test "raises if the queue is not running or its name is no atom" do
      for item <- [1, [1], []] do
        assert_raise ArgumentError, "no partitions available for buffer :no_queue: it is not running", fn ->
          Queue.push(:no_queue, item)
        end
      end

      assert_raise FunctionClauseError, fn -> Queue.push("queue", 1) end
    end

    test "raises if the buffer is a map" do
      map = start_buffer()

      for item <- [1, [1]], opts <- [[], [partition_key: 1]] do
        assert_raise ArgumentError,
                     "no partitions available for buffer #{inspect(map)}: " <>
                       "it is running as a map, and this call is for a queue",
                     fn -> Queue.push(map, item, opts) end
      end

      assert Buffer.size(map) == 0
    end
  end

  describe "a flush of a queue" do
    test "gives the items in order of their pushes, unchanged, in full batches" do
      queue = start_queue(partitions: 1)
      items = Enum.flat_map(1..3, fn n -> [n | terms()] end)
      for item <- items, not is_list(item), do: Queue.push(queue, item)
      Queue.push(queue, items)
      expected = Enum.reject(items, &is_list/1) ++ items
      assert Queue.size(queue) == length(expected)
      flush(queue)
      batches = received_batches()
      assert Enum.concat(batches) === expected
      assert batches == Enum.chunk_every(expected, 10)
      assert Queue.size(queue) == 0
    end

    test "gives an ordered set of items in their order with batch size :table" do
      test = self()

      processor = fn table ->
        send(test, {:table, :ets.info(table, :type), :ets.info(table, :keypos), :ets.tab2list(table)})
      end

      queue = start_queue(partitions: 1, processing_batch_size: :table, processor: processor)
      items = Enum.map(1..2_000, &rem(&1 * 7, 100))
      Queue.push(queue, items)
      flush(queue)
      assert_received {:table, :ordered_set, 2, entries}
      assert for({:entry, {:key, _time, _ref}, item, 0, 0} <- entries, do: item) == items

      assert Enum.all?(entries, fn {:entry, {:key, time, ref}, _, 0, 0} ->
               is_integer(time) and is_reference(ref)
             end)
    end

    test "gives the rest after a failure in order, and before new items" do
      test = self()

      processor = fn batch ->
        send(test, {:batch, batch})
        if 3 in batch, do: raise("failed")
      end

      queue = start_queue(partitions: 1, processing_batch_size: 2, processor: processor)
      Queue.push(queue, Enum.to_list(1..7))
      flush(queue)
      Queue.push(queue, 8)
      flush(queue)
      # The second flush processed the rest. What waited followed at once.
      flush(queue)
      assert received_batches() == [[1, 2], [3, 4], [5, 6], [7], [8]]
    end

    test "tells telemetry how many items it had" do
      queue = start_queue(partitions: 1)
      attach_telemetry(queue)
      Queue.push(queue, [1, 2, 3])
      flush(queue)
      assert_received {[:processing, :stop], %{size: 3}, %{buffer: ^queue}}
    end
  end

  describe "stop/3" do
    test "processes all items in their order" do
      queue = start_queue(partitions: 1, processing_batch_size: 7)
      Queue.push(queue, Enum.to_list(1..1_000))
      assert Queue.stop(queue) == :ok
      assert received_entries() == Enum.to_list(1..1_000)
    end
  end

  describe "a queue whose processes die" do
    test "keeps its items" do
      queue = start_queue(partitions: 1)
      Queue.push(queue, Enum.to_list(1..100))
      [partition] = partitions(queue)
      kill_and_await_restart(partition)
      kill_and_await_restart(task_supervisor(queue, 0))
      assert Queue.size(queue) == 100
      flush(queue)
      assert received_entries() == Enum.to_list(1..100)
    end

    test "gives the items of each writer once and in their order" do
      writers = 4
      items = 20_000
      test = self()

      queue =
        start_queue(
          partitions: 2,
          processing_interval_ms: 1,
          processing_batch_size: 100,
          processor: &send(test, {:batch, &1})
        )

      tasks =
        for writer <- 1..writers do
          Task.async(fn ->
            for n <- 1..items, rem(n, 5) == 1 do
              if rem(n, 2) == 0 do
                for i <- n..(n + 4), do: Queue.push(queue, {writer, i}, partition_key: writer)
              else
                Queue.push(queue, for(i <- n..(n + 4), do: {writer, i}), partition_key: writer)
              end
            end
          end)
        end

      # One death, since a supervisor gives up after too many.
      kill_and_await_restart(hd(partitions(queue)))
      Task.await_many(tasks, 60_000)
      assert Queue.stop(queue) == :ok

      by_writer = Enum.group_by(received_entries(), &elem(&1, 0), &elem(&1, 1))
      for writer <- 1..writers, do: assert(by_writer[writer] == Enum.to_list(1..items))
    end
  end
end
