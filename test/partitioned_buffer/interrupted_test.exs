defmodule PartitionedBuffer.InterruptedTest do
  # What is interrupted between two steps.

  use PartitionedBuffer.Case, async: true

  @moduletag :capture_log

  # A module that does not exist: its call, by the task, ends in `undefined_function/3`.
  @processor PartitionedBuffer.InterruptedTest.NotLoaded

  test "a task that is killed between its claim and the processor's call loses that batch, and tells of it" do
    buffer = start_buffer(partitions: 1, processor: {@processor, :process, [self()]})
    attach_telemetry(buffer)
    id = {__MODULE__, buffer}
    start = [:partitioned_buffer, :partition, :processing, :start]
    :telemetry.attach_many(id, [start], &__MODULE__.handle_calls/4, buffer)
    on_exit(fn -> :telemetry.detach(id) end)

    Buffer.put_all(buffer, for(n <- 1..25, do: {n, n}))
    [partition] = partitions(buffer)
    tick(partition)
    assert_receive {:before_call, task, claimed}
    Process.exit(task, :kill)
    wait_idle(partition)
    assert_receive {[:processing_failed], _measurements, %{reason: :killed}}

    tick(partition)
    rest = for _ <- 1..2, do: assert_receive({:before_call, task, batch}) && send(task, :go) && batch
    assert_receive {[:processing, :stop], %{size: 15}, _metadata}
    refute_received {:before_call, _task, _batch}
    assert Enum.map([claimed | rest], &length/1) == [10, 10, 5]
    assert Enum.sort(for {key, _, _, _} <- Enum.concat([claimed | rest]), do: key) == Enum.to_list(1..25)
  end

  # In the task, before it has claimed anything.
  def handle_calls(_event, _measurements, %{buffer: buffer}, buffer),
    do: Process.flag(:error_handler, __MODULE__)

  def handle_calls(_event, _measurements, _metadata, _buffer), do: :ok

  def undefined_function(@processor, :process, [batch, test]) do
    send(test, {:before_call, self(), batch})
    receive(do: (:go -> :ok))
  end

  def undefined_function(module, function, args),
    do: :error_handler.undefined_function(module, function, args)

  def undefined_lambda(module, function, args), do: :error_handler.undefined_lambda(module, function, args)

  test "what old tasks finish after a restart with fewer partitions does not hold up what is new" do
    test = self()

    processor = fn batch ->
      Process.flag(:trap_exit, true)
      send(test, {:asked, self(), batch})
      receive(do: (:return -> :ok))
    end

    buffer = start_buffer(partitions: 4, processor: processor, processing_batch_size: 1)

    # Two batches in each.
    for n <- 0..3,
        do: Buffer.put_all(buffer, [{n, 1}, {-n - 1, 2}], partition_key: partition_key_of(n, 4))

    partitions = partitions(buffer)
    Enum.each(partitions, &tick/1)
    tasks = for _ <- 1..4, do: assert_receive({:asked, _pid, _batch}) |> elem(1)

    supervisor = Process.whereis(Module.concat(buffer, Supervisor))
    children = for {_id, pid, _type, _modules} <- Supervisor.which_children(supervisor), do: pid
    kill_processes([supervisor | children])
    start_buffer(name: buffer, partitions: 1)
    refs = Enum.map(tasks, &Process.monitor/1)
    for _batch <- 1..2, task <- tasks, do: send(task, :return)
    for ref <- refs, do: assert_receive({:DOWN, ^ref, :process, _pid, :normal})

    Buffer.put(buffer, :new, 1)
    assert Buffer.stop(buffer) == :ok
    assert received_entries() == [{:new, 1, 0, 0}]
  end

  test "a flush whose partition dies before its task has begun starts anew at once, and nothing has failed" do
    buffer = start_buffer(partitions: 1)
    attach_telemetry(buffer)
    Buffer.put(buffer, :key, 1)
    [partition] = partitions(buffer)
    task_supervisor = PartitionedBuffer.Partition.task_supervisor(buffer, 0)
    :sys.suspend(task_supervisor)
    tick(partition)
    assert eventually(fn -> waiting_calls(task_supervisor) == 1 end)
    kill_processes([Process.whereis(partition)])
    # The next process of the partition looks for a task.
    assert eventually(fn -> waiting_calls(task_supervisor) == 2 end)
    :sys.resume(task_supervisor)

    assert_receive {:batch, [{:key, 1, 0, 0}]}
    assert_receive {[:processing, :stop], %{size: 1}, _metadata}
    wait_idle(partition)
    refute_received {[:processing_failed], _measurements, _metadata}
  end

  test "a task that has outlived its partition and fails in the call that it was in is told of" do
    test = self()

    processor = fn batch ->
      send(test, {:asked, self(), batch})
      if length(batch) == 10, do: receive(do: (:return -> exit({:shutdown, :noproc})))
    end

    buffer = start_buffer(partitions: 1, processor: processor)
    attach_telemetry(buffer)
    Buffer.put_all(buffer, for(n <- 1..15, do: {n, n}))
    [partition] = partitions(buffer)
    tick(partition)
    assert_receive {:asked, task, _batch}
    kill_and_await_restart(partition)
    send(task, :return)
    assert_receive {[:processing_failed], _measurements, %{reason: {:shutdown, :noproc}}}
    # What lies behind waits for the next interval.
    wait_idle(partition)
    refute_received {:asked, _pid, _batch}
  end

  test "a process that is killed while it opens a buffer leaves none running" do
    buffer = unique_name()

    for round <- 1..1_000 do
      # So many that it takes a while.
      {pid, ref} = spawn_monitor(fn -> PartitionedBuffer.Native.open(buffer, :map, 4_096) end)
      # Another moment each time.
      for _ <- 1..(round * 13), do: :erlang.phash2(round)
      Process.exit(pid, :kill)
      assert_receive {:DOWN, ^ref, :process, ^pid, _reason}
      assert eventually(fn -> PartitionedBuffer.Native.partition_count(buffer) == :not_running end)
    end
  end

  test "of a list that a stop cuts short, what was written is flushed, in the list's order" do
    # The stop may come when all has been written.
    Enum.find(1..20, fn _attempt -> cut_short?(200_000) end) || flunk("no list was cut short")
  end

  # Those that are written at once, 128, are written in the order of their locks.
  defp cut_short?(size) do
    buffer = start_buffer(processing_batch_size: 1_000)
    list = for n <- 1..size, do: {n, {n}}

    writer =
      Task.async(fn ->
        try do
          Buffer.put_all(buffer, list)
        rescue
          error in ArgumentError -> error.message
        end
      end)

    await_first(buffer)
    Buffer.stop(buffer)
    result = Task.await(writer)
    entries = all_entries()
    keys = Enum.sort(for {key, {key}, 0, 0} <- entries, do: key)
    assert length(keys) == length(entries)
    assert Enum.dedup(keys) == keys

    if result == :ok do
      assert length(keys) == size
      false
    else
      assert result =~ "no partitions available"
      last = List.last(keys)
      complete = max(last - 128, 0)
      assert Enum.take(keys, complete) == Enum.to_list(1..complete//1)
      last < size
    end
  end

  defp waiting_calls(name) do
    {:messages, messages} = name |> Process.whereis() |> Process.info(:messages)
    Enum.count(messages, &match?({:"$gen_call", _from, _call}, &1))
  end

  # What a NIF and the VM do for a process that has died is done soon after its death is told.
  defp eventually(fun, tries \\ 1_000) do
    cond do
      fun.() -> true
      tries == 0 -> false
      true -> Process.sleep(1) && eventually(fun, tries - 1)
    end
  end

  # A term that routes to the partition `number` of so many.
  defp partition_key_of(number, partitions),
    do: Enum.find(1..1_000, &(:erlang.phash2(&1, partitions) == number))

  defp await_first(buffer), do: if(Buffer.size(buffer) == 0, do: await_first(buffer))

  defp all_entries(batches \\ []) do
    receive do
      {:batch, batch} -> all_entries([batch | batches])
    after
      0 -> Enum.concat(batches)
    end
  end
end
