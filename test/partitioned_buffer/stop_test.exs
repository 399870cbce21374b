defmodule PartitionedBuffer.StopTest do
  use PartitionedBuffer.Case, async: true

  import ExUnit.CaptureLog

  alias PartitionedBuffer.Queue

  @moduletag :capture_log

  defp keys(entries), do: entries |> Enum.map(&elem(&1, 0)) |> Enum.sort()

  defp never_returns(batch, test) do
    send(test, {:batch, batch})
    receive(do: (:never -> :ok))
  end

  # A term that routes to the partition `number` of so many.
  defp partition_key_of(number, partitions),
    do: Enum.find(1..1_000, &(:erlang.phash2(&1, partitions) == number))

  defp refused?(write) do
    error = catch_error(write.())
    Exception.message(error) =~ "no partitions available"
  end

  # Calls the test's function once, with the first batch, and tells the test of all.
  defp processor_that(function) do
    test = self()
    calls = :counters.new(1, [])

    fn batch ->
      :counters.add(calls, 1, 1)
      send(test, {:batch, batch})
      if :counters.get(calls, 1) == 1, do: function.()
    end
  end

  # The supervisor learns of deaths only when it stops, so it starts none of the dead again.
  defp suspend_supervisor(buffer), do: :sys.suspend(Module.concat(buffer, Supervisor))

  defp task_supervisor(buffer), do: Process.whereis(PartitionedBuffer.Partition.task_supervisor(buffer, 0))

  # The first to be ended.
  defp drainer(buffer) do
    children = Supervisor.which_children(Module.concat(buffer, Supervisor))

    Enum.find_value(children, fn {id, pid, _type, _modules} ->
      if id == {PartitionedBuffer.Drainer, :last}, do: pid
    end)
  end

  defp asking_processor do
    test = self()

    fn batch ->
      send(test, {:asked, self(), batch})
      receive(do: (:return -> send(test, {:batch, batch})))
    end
  end

  defp await_batch do
    assert_receive {:asked, pid, batch}
    {pid, batch}
  end

  describe "a stop processes everything" do
    for {what, victims} <- [
          partition: [:partition],
          "task supervisor": [:task_supervisor],
          "partition and its task supervisor": [:partition, :task_supervisor],
          drainer: [:drainer],
          "drainer and partition": [:drainer, :partition],
          "drainer, partition and its task supervisor": [:drainer, :partition, :task_supervisor]
        ] do
      test "where the #{what} died just before" do
        for partitions <- [1, 3] do
          buffer = start_buffer(partitions: partitions)
          attach_telemetry(buffer)
          Buffer.put_all(buffer, for(n <- 1..100, do: {n, n}))

          victims = %{
            partition: Process.whereis(hd(partitions(buffer))),
            task_supervisor: task_supervisor(buffer),
            drainer: drainer(buffer)
          }

          suspend_supervisor(buffer)
          kill_processes(for victim <- unquote(victims), do: victims[victim])
          log = capture_log(fn -> assert Buffer.stop(buffer) == :ok end)
          refute log =~ "could not process"
          assert keys(received_entries()) == Enum.to_list(1..100)
          refute_received {[:processing_failed], _measurements, _metadata}
        end
      end
    end

    test "when what a dead partition had in flight is done" do
      buffer = start_buffer(partitions: 1, processor: asking_processor())
      Buffer.put_all(buffer, for(n <- 1..15, do: {n, n}))
      [partition] = partitions(buffer)
      tick(partition)
      {task, first} = await_batch()
      Buffer.put(buffer, :later, 1)
      suspend_supervisor(buffer)
      kill_processes([Process.whereis(partition)])
      stop = Task.async(fn -> Buffer.stop(buffer) end)

      refute_receive {:asked, _pid, _batch}, 100
      send(task, :return)
      {^task, second} = await_batch()
      send(task, :return)
      {last, [{:later, 1, 0, 0}]} = await_batch()
      send(last, :return)
      assert Task.await(stop) == :ok
      assert keys(first ++ second) == Enum.to_list(1..15)
    end

    test "where the partition, its task supervisor and who drains in their place die meanwhile" do
      buffer = start_buffer(partitions: 1, processor: asking_processor(), processing_batch_size: 1)
      Buffer.put_all(buffer, for(n <- 1..4, do: {n, n}))
      {partition, drainer} = {Process.whereis(hd(partitions(buffer))), drainer(buffer)}
      stop = Task.async(fn -> Buffer.stop(buffer) end)

      {task, _batch} = await_batch()
      kill_processes([partition])
      assert Process.alive?(task)
      # With its supervisor the task ends, which has lost the batch in its hand.
      kill_processes([task_supervisor(buffer)])

      {alone, _batch} = await_batch()
      {:monitors, [process: in_its_place]} = Process.info(drainer, :monitors)
      kill_processes([in_its_place])
      # The next waits for what is at work.
      refute_receive {:asked, _pid, _batch}, 100
      send(alone, :return)

      for _ <- 1..2 do
        {pid, _batch} = await_batch()
        send(pid, :return)
      end

      assert Task.await(stop) == :ok
      assert length(received_batches()) == 3
    end
  end

  test "the end of a start that fails processes nothing of a partition that it has not started" do
    buffer = start_buffer(partitions: 2)
    Buffer.put(buffer, :left, 1, partition_key: partition_key_of(1, 2))
    supervisor = Process.whereis(Module.concat(buffer, Supervisor))
    children = for {_id, pid, _type, _modules} <- Supervisor.which_children(supervisor), do: pid
    kill_processes([supervisor | children])

    # Somebody of the tree before may still be at work.
    name_of_second = PartitionedBuffer.Routing.partition_name(buffer, 1)
    Process.register(self(), name_of_second)
    Process.flag(:trap_exit, true)
    test = self()

    opts = [
      name: buffer,
      partitions: 2,
      processor: &send(test, {:batch, &1}),
      processing_interval_ms: 86_400_000
    ]

    assert {:error, {:shutdown, _failed_to_start}} = Buffer.start_link(opts)
    refute_received {:batch, _batch}

    Process.unregister(name_of_second)
    start_buffer(opts)
    assert Buffer.stop(buffer) == :ok
    assert received_entries() == [{:left, 1, 0, 0}]
  end

  describe "the processor of a buffer that stops" do
    for {how, call} <- [
          itself: quote(do: & &1.()),
          "in a task of its own": quote(do: &Task.await(Task.async(&1)))
        ] do
      test "writes to its buffer by every call, #{how}, and all of it is processed" do
        call = unquote(call)

        for {partitions, opts} <- [{1, []}, {3, []}, {3, [partition_key: :all]}, {3, [partition_key: & &1]}] do
          buffer = unique_name()
          # In one chunk of the NIF, and in several.
          pairs = for n <- 1..5_000, do: {{:listed, n}, n}

          writes = fn ->
            :ok = Buffer.put(buffer, :put, 1, opts)
            :ok = Buffer.put_newer(buffer, :newer, 1, 1, opts)
            :ok = Buffer.put_newer(buffer, :newer, 2, 2, opts)
            :ok = Buffer.put_all(buffer, %{in_map: 1}, opts)
            :ok = Buffer.put_all(buffer, [{:in_list, 1}], opts)
            :ok = Buffer.put_all(buffer, pairs, opts)
            :ok = Buffer.put_all_newer(buffer, [{:in_newer, 1, 1}], opts)
          end

          processor = processor_that(fn -> call.(writes) end)

          start_buffer(
            name: buffer,
            partitions: partitions,
            processor: processor,
            processing_batch_size: 10_000
          )

          Buffer.put(buffer, :first, 1)
          assert Buffer.stop(buffer) == :ok
          entries = received_entries()
          assert {:newer, 2, 2, 1} in entries
          others = [:first, :put, :newer, :in_map, :in_list, :in_newer]
          assert keys(entries) == Enum.sort(others ++ for({key, _value} <- pairs, do: key))
        end
      end

      test "pushes to its queue, #{how}, and all of it is processed, in order" do
        call = unquote(call)

        for {partitions, opts} <- [{1, []}, {3, []}, {3, [partition_key: :all]}, {3, [partition_key: & &1]}] do
          queue = unique_name()

          writes = fn ->
            :ok = Queue.push(queue, 1, opts)
            :ok = Queue.push(queue, [2, 3], opts)
            :ok = Queue.push(queue, Enum.to_list(4..5_000), opts)
          end

          processor = processor_that(fn -> call.(writes) end)

          start_buffer(
            module: Queue,
            name: queue,
            partitions: partitions,
            processor: processor,
            processing_batch_size: 10_000
          )

          Queue.push(queue, 0)
          assert Queue.stop(queue) == :ok
          [[0] | batches] = received_batches()
          assert Enum.sort(Enum.concat(batches)) == Enum.to_list(1..5_000)
          assert Enum.all?(batches, &(&1 == Enum.sort(&1)))
        end
      end
    end

    test "writes each entry of a list once while some partitions are in flight and others not any more" do
      test = self()
      queue = unique_name()

      processor = fn
        [:held] ->
          send(test, {:held, self()})
          receive(do: (:write -> Queue.push(queue, Enum.to_list(1..3_000))))

        batch ->
          send(test, {:batch, batch})
      end

      start_buffer(module: Queue, name: queue, processor: processor, processing_batch_size: 10_000)
      Queue.push(queue, :held, partition_key: partition_key_of(0, 2))
      [held | _] = partitions(queue)
      tick(held)
      assert_receive {:held, task}
      Queue.push(queue, :rest, partition_key: partition_key_of(1, 2))
      stop = Task.async(fn -> Queue.stop(queue) end)
      # From now on this partition refuses what is not a processor's, and the other does not.
      assert_receive {:batch, [:rest]}
      assert refused?(fn -> Queue.push(queue, :other, partition_key: partition_key_of(1, 2)) end)
      assert Queue.push(queue, :other, partition_key: partition_key_of(0, 2)) == :ok
      send(task, :write)
      assert Task.await(stop) == :ok
      items = Enum.sort(received_entries())
      assert items == Enum.to_list(1..3_000) ++ [:other]
    end

    test "reads and deletes to the end of the stop, as all others do; only their writes are refused" do
      test = self()

      processor = fn batch ->
        send(test, {:called, self(), batch})
        receive(do: (:return -> :ok))
      end

      buffer = start_buffer(partitions: 2, processor: processor)
      for n <- 0..1, do: Buffer.put(buffer, n, n, partition_key: partition_key_of(n, 2))
      stop = Task.async(fn -> Buffer.stop(buffer) end)
      assert_receive {:called, one, [{n, n, 0, 0}]}
      assert_receive {:called, other, _batch}
      # The partition of the first has nothing left to do.
      send(one, :return)
      ref = Process.monitor(one)
      assert_receive {:DOWN, ^ref, :process, ^one, :normal}

      opts = [partition_key: partition_key_of(n, 2)]
      assert Buffer.get(buffer, n, :none, opts) == :none
      assert Buffer.size(buffer) == 0
      assert Buffer.delete(buffer, n, opts) == :ok
      assert refused?(fn -> Buffer.put(buffer, n, n, opts) end)
      assert refused?(fn -> Buffer.put_all(buffer, [{n, n}], opts) end)
      send(other, :return)
      assert Task.await(stop) == :ok
      assert refused?(fn -> Buffer.get(buffer, n) end)
    end

    test "is called in ten passes if it always writes; what is left is kept, and logged with its count" do
      test = self()
      buffer = unique_name()

      writes_again = fn batch ->
        send(test, {:batch, batch})
        Buffer.put_all(buffer, for({n, n, 0, 0} <- batch, do: {n + 2, n + 2}))
      end

      start_buffer(name: buffer, partitions: 1, processor: writes_again)
      Buffer.put_all(buffer, [{1, 1}, {2, 2}])
      log = capture_log(fn -> assert Buffer.stop(buffer) == :ok end)

      assert log =~
               "partition 0 of buffer #{inspect(buffer)} could not process all its entries: 2 are kept"

      assert keys(received_entries()) == Enum.to_list(1..20)

      start_buffer(name: buffer, partitions: 1)
      assert Buffer.stop(buffer) == :ok
      assert keys(received_entries()) == [21, 22]
    end
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
               "partition 0 of buffer #{inspect(buffer)} could not process all its entries: 3 are kept"

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
                 "partition 0 of buffer #{inspect(buffer)} kills its processor: a call took longer than 5000 ms"

        kept = "partition 0 of buffer #{inspect(buffer)} could not process all its entries: #{left} are kept"

        assert log =~ kept == left > 0
      end

      assert length(received_batches()) == 3
    end
  end
end
