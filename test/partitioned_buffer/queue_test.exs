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

  defp terms do
    [:atom, 1, 1.0, -(2 ** 70), "binary", <<1::3>>, "", [], {}, %{}, %{a: [1]}, {:nested, [{1}]}] ++
      [:binary.copy("x", 1_000), make_ref(), self(), &String.length/1, fn -> :closure end]
  end

  test "items come in the order in which they were pushed, exactly as they were, in full batches" do
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

  test "equal items are all kept, and a list in a list is an item" do
    queue = start_queue(partitions: 1)
    Queue.push(queue, [:same, :same])
    Queue.push(queue, :same)
    Queue.push(queue, [[1, 2]])
    Queue.push(queue, [])
    flush(queue)
    assert received_entries() == [:same, :same, :same, [1, 2]]
  end

  test "lists longer than a slice and than what is checked at once keep their order in each partition" do
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

  test "partition keys are called with the item" do
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

  def kind({kind, _id}, :argument), do: kind

  test "a function that raises for one item of a list leaves nothing pushed" do
    queue = start_queue()
    partition_key = fn item -> if item == 3, do: raise("no"), else: item end
    assert_raise RuntimeError, "no", fn -> Queue.push(queue, [1, 2, 3], partition_key: partition_key) end
    assert_raise ArgumentError, ~r/partition_keys/, fn -> Queue.push(queue, 1, partition_keys: 1) end
    assert Queue.size(queue) == 0
  end

  test "an improper list pushes nothing" do
    queue = start_queue()

    for list <- [[1 | 2], Enum.to_list(1..5_000) ++ :tail], opts <- [[], [partition_key: 1]] do
      assert_raise ArgumentError, ~r/proper list.*#{inspect(queue)}.*tail: (2|:tail)/, fn ->
        Queue.push(queue, list, opts)
      end
    end

    assert Queue.size(queue) == 0
  end

  test "a queue that is not running refuses items, and says so; a name that is no atom matches nothing" do
    for item <- [1, [1], []] do
      assert_raise ArgumentError, "no partitions available for buffer :no_queue: it is not running", fn ->
        Queue.push(:no_queue, item)
      end
    end

    assert_raise FunctionClauseError, fn -> Queue.push("queue", 1) end
  end

  test "a map refuses items, and says that it is none" do
    map = start_buffer()

    for item <- [1, [1]], opts <- [[], [partition_key: 1]] do
      assert_raise ArgumentError,
                   "no partitions available for buffer #{inspect(map)}: " <>
                     "it is running as a map, and this call is for a queue",
                   fn -> Queue.push(map, item, opts) end
    end

    assert Buffer.size(map) == 0
  end

  test "what a failing processor did not have comes again, in order, before what is new" do
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
    # The rest was processed, and then what had come in since, as after any rest.
    flush(queue)
    assert received_batches() == [[1, 2], [3, 4], [5, 6], [7], [8]]
  end

  test "a table is an ordered set of the items in their order" do
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

  test "stopping processes all items, in order" do
    queue = start_queue(partitions: 1, processing_batch_size: 7)
    Queue.push(queue, Enum.to_list(1..1_000))
    assert Queue.stop(queue) == :ok
    assert received_entries() == Enum.to_list(1..1_000)
  end

  test "items outlive the death of partition and task supervisor" do
    queue = start_queue(partitions: 1)
    Queue.push(queue, Enum.to_list(1..100))
    [partition] = partitions(queue)
    kill_and_await_restart(partition)
    kill_and_await_restart(PartitionedBuffer.Partition.task_supervisor(queue, 0))
    assert Queue.size(queue) == 100
    flush(queue)
    assert received_entries() == Enum.to_list(1..100)
  end

  test "what a map has left under a name is the next map's, not a queue's" do
    name = unique_name()
    test = self()

    options = [
      name: name,
      partitions: 1,
      processing_interval_ms: 86_400_000,
      processor: &send(test, {:batch, &1})
    ]

    die = fn pid -> kill(pid) end
    Process.flag(:trap_exit, true)

    {:ok, map} = Buffer.start_link(options)
    Buffer.put(name, :key, :value)
    die.(map)
    {:ok, queue} = Queue.start_link(options)
    assert Queue.size(name) == 0
    Queue.push(name, :item)
    die.(queue)
    {:ok, _map} = Buffer.start_link(options)
    assert Buffer.get(name, :key) == :value
    :ok = Buffer.stop(name)
    {:ok, _queue} = Queue.start_link(options)
    :ok = Queue.stop(name)
    assert received_batches() == [[{:key, :value, 0, 0}], [:item]]
  end

  # With its children, whose names the next one needs.
  defp kill(supervisor) do
    children = for {_id, pid, _type, _modules} <- Supervisor.which_children(supervisor), do: pid
    refs = for pid <- [supervisor | children], do: Process.monitor(pid)
    Process.exit(supervisor, :kill)
    for ref <- refs, do: assert_receive({:DOWN, ^ref, :process, _pid, _reason}, 5_000)
  end

  test "telemetry tells of the items" do
    queue = start_queue(partitions: 1)
    attach_telemetry(queue)
    Queue.push(queue, [1, 2, 3])
    flush(queue)
    assert_received {[:processing, :stop], %{size: 3}, %{buffer: ^queue}}
  end

  # Each writer's items, by their partition key, must come to the processor in their order and once, whatever dies.
  test "items of several writers come once and in their order, while processes are killed" do
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

    # No more than a supervisor bears.
    kill_and_await_restart(hd(partitions(queue)))
    Task.await_many(tasks, 60_000)
    assert Queue.stop(queue) == :ok

    by_writer = Enum.group_by(received_entries(), &elem(&1, 0), &elem(&1, 1))
    for writer <- 1..writers, do: assert(by_writer[writer] == Enum.to_list(1..items))
  end
end
