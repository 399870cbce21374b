defmodule PartitionedBuffer.CrashTest do
  # What the death of a process of the buffer loses: at most the batch that a processor has.
  use PartitionedBuffer.Case, async: true

  alias PartitionedBuffer.Buffer.Lookup
  alias PartitionedBuffer.{Counter, Native, Queue}

  @moduletag :capture_log

  # A module that does not exist: a task that calls it ends in `undefined_function/3`.
  @not_loaded PartitionedBuffer.CrashTest.NotLoaded

  describe "a partition process that is killed" do
    test "loses nothing: its task goes on, and new entries wait" do
      buffer = start_buffer(partitions: 1, processor: asking_processor())
      Buffer.put_all(buffer, for(n <- 1..15, do: {n, n}))
      [partition] = partitions(buffer)
      tick(partition)
      assert_receive {:asked, task, first}
      Buffer.put(buffer, :later, 1)
      kill_and_await_restart(partition)
      # The task of the killed process still works.
      tick(partition)
      assert Buffer.get(buffer, :later) == 1
      refute_received {:asked, _pid, _batch}
      send(task, :return)
      {second, _ref} = answer(:return)
      assert keys(first ++ second) == Enum.to_list(1..15)
      # The tick during the flush is made good.
      assert {[{:later, 1, 0, 0}], _ref} = answer(:return)
    end

    test "loses and fails nothing before its task begins; the next one flushes" do
      buffer = start_buffer(partitions: 1)
      attach_telemetry(buffer)
      Buffer.put(buffer, :key, 1)
      [partition] = partitions(buffer)
      task_supervisor = task_supervisor(buffer, 0)
      :erlang.trace(task_supervisor, true, [:receive])
      :erlang.suspend_process(task_supervisor)
      tick(partition)
      assert_receive {:trace, ^task_supervisor, :receive, {:"$gen_call", _from, {:start_task, _, _, _}}}
      kill_processes([Process.whereis(partition)])
      # The next process of the partition finds no task, and starts one.
      assert_receive {:trace, ^task_supervisor, :receive, {:"$gen_call", _from, {:start_task, _, _, _}}}
      :erlang.resume_process(task_supervisor)

      assert_receive {:batch, [{:key, 1, 0, 0}]}
      assert_receive {[:processing, :stop], %{size: 1}, _metadata}
      wait_idle(partition)
      await_events(buffer)
      refute_received {[:processing_failed], _measurements, _metadata}
    end

    test "leaves a task whose failure the next one reports" do
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
      # The rest of the flush waits for the next interval.
      wait_idle(partition)
      refute_received {:asked, _pid, _batch}
    end

    test "ends the buffer only after three restarts plus three per partition" do
      for {partitions, times} <- [{1, 6}, {4, 15}] do
        buffer = start_buffer(partitions: partitions)
        supervisor = Lookup.supervisor(buffer)
        ref = Process.monitor(supervisor)
        [partition | _] = partitions(buffer)
        for _ <- 1..times, do: kill_and_await_restart(partition)
        assert Lookup.supervisor(buffer) == supervisor

        Process.exit(Process.whereis(partition), :kill)
        assert_receive {:DOWN, ^ref, :process, ^supervisor, :shutdown}, 5_000
      end
    end
  end

  describe "a task supervisor that is killed" do
    test "loses only the batch of its task" do
      buffer = start_buffer(partitions: 1, processor: asking_processor())
      Buffer.put_all(buffer, for(n <- 1..15, do: {n, n}))
      [partition] = partitions(buffer)
      supervisor = task_supervisor(buffer, 0)
      tick(partition)
      assert_receive {:asked, task, first}
      ref = Process.monitor(task)
      kill_and_await_restart(supervisor)
      assert_receive {:DOWN, ^ref, :process, _pid, _reason}
      wait_idle(partition)
      tick(partition)
      {rest, _ref} = answer(:return)
      assert length(first) == 10
      assert keys(first ++ rest) == Enum.to_list(1..15)
    end
  end

  describe "a killed supervisor" do
    test "restarts at the first try while tasks are at work" do
      for outcomes <- [[], [max_attempts: 3]] do
        # It gives up at the second restart within an hour.
        owner = start_supervised!({DynamicSupervisor, max_restarts: 1, max_seconds: 3_600}, id: outcomes)
        opts = [processor: asking_processor(), partitions: 4, max_size: 10, drain_timeout_ms: 0]
        {buffer, opts} = {unique_name(), opts ++ outcomes}
        {:ok, killed} = DynamicSupervisor.start_child(owner, {Buffer, buffer_options([name: buffer] ++ opts)})
        for n <- 0..3, do: Buffer.put(buffer, n, n, partition_key: partition_key_of(n, 4))
        Buffer.flush(buffer, async: true)
        for _ <- 1..4, do: assert_receive({:asked, _task, _batch})

        kill_and_await_restart(killed)
        assert [{:undefined, next, :supervisor, _modules}] = DynamicSupervisor.which_children(owner)
        assert Lookup.supervisor(buffer) == next
        assert Buffer.put(buffer, :key, 1) == :ok
      end
    end
  end

  describe "a supervision tree that is killed" do
    test "loses no waiting entry, whatever the next partition count is" do
      for partition_count <- [3, 1, 5] do
        name = start_buffer(processor: asking_processor(), partitions: 3)
        Buffer.put_all(name, for(n <- 1..100, do: {n, n}))
        kill_tree(name)

        start_buffer(name: name, partitions: partition_count, processing_batch_size: 1_000)
        Buffer.put(name, :new, 1)
        # Each flush that was left comes before the new entry, which needs a flush of its own.
        for _ <- 1..4, do: flush(name)
        assert keys(received_entries()) == Enum.to_list(1..100) ++ [:new]
        stop_supervised!(name)
      end
    end

    test "leaves all its flushes as one batch" do
      for {module, write} <- [
            {Buffer, &Buffer.put_all(&1, for(n <- 1..800, do: {n, n}))},
            {Counter, &Counter.add_all(&1, for(n <- 1..800, do: {n, n}))},
            {Queue, &Queue.push(&1, Enum.to_list(1..800))}
          ] do
        outcomes = [module: module, max_attempts: 5, retry_backoff_ms: {60_000, 60_000}]
        buffer = start_buffer([partitions: 8] ++ outcomes)
        write.(buffer)
        for number <- 0..7, do: {:fresh, _flush} = Native.flush(run(buffer), number)
        kill_tree(buffer)

        {:ok, results} = Agent.start_link(fn -> [{:snooze, 60_000}, :ok] end)
        test = self()

        processor = fn batch ->
          send(test, {:batch, batch})
          Agent.get_and_update(results, fn [result | results] -> {result, results} end)
        end

        start_buffer(
          [name: buffer, partitions: 1, processor: processor, processing_batch_size: 10_000] ++ outcomes
        )

        assert %{size: 800, in_flight: 0} = PartitionedBuffer.info(buffer)
        assert PartitionedBuffer.flush(buffer) == {:error, {:failed, 800}}
        assert PartitionedBuffer.flush(buffer) == :ok
        assert [failed, again] = received_batches()

        numbers = fn batch ->
          Enum.sort(if module == Queue, do: batch, else: Enum.map(batch, &elem(&1, 1)))
        end

        assert {numbers.(failed), numbers.(again)} == {Enum.to_list(1..800), Enum.to_list(1..800)}
      end
    end

    test "leaves tasks that do not hold up the entries of the next tree" do
      ask = asking_processor()

      # They outlive their task supervisor.
      processor = fn batch ->
        Process.flag(:trap_exit, true)
        ask.(batch)
      end

      buffer = start_buffer(partitions: 4, processor: processor, processing_batch_size: 1)

      # Two batches for each partition.
      for n <- 0..3,
          do: Buffer.put_all(buffer, [{n, 1}, {-n - 1, 2}], partition_key: partition_key_of(n, 4))

      Enum.each(partitions(buffer), &tick/1)
      tasks = for _ <- 1..4, do: assert_receive({:asked, _pid, _batch}) |> elem(1)

      kill_tree(buffer)
      start_buffer(name: buffer, partitions: 1)
      refs = Enum.map(tasks, &Process.monitor/1)
      for task <- tasks, do: send(task, :return)
      # Each ends after the call that it was in: the rest is the next tree's.
      for ref <- refs, do: assert_receive({:DOWN, ^ref, :process, _pid, :normal})
      refute_received {:asked, _pid, _batch}

      Buffer.put(buffer, :new, 1)
      assert Buffer.stop(buffer) == :ok
      assert length(received_entries()) == 5
      assert Buffer.start_link(buffer_options(name: buffer)) |> elem(0) == :ok
      assert %{processed: 9} = Buffer.info(buffer).totals
    end
  end

  describe "a task that is killed" do
    test "loses its claimed batch, even before it calls the processor" do
      buffer = start_buffer(partitions: 1, processor: {@not_loaded, :process, [self()]})
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
      assert keys(Enum.concat([claimed | rest])) == Enum.to_list(1..25)
    end
  end

  # The event comes in the task, before it has claimed anything.
  def handle_calls(_event, _measurements, %{buffer: buffer}, buffer),
    do: Process.flag(:error_handler, __MODULE__)

  def handle_calls(_event, _measurements, _metadata, _buffer), do: :ok

  def undefined_function(@not_loaded, :process, [batch, test]) do
    send(test, {:before_call, self(), batch})
    receive(do: (:go -> :ok))
  end

  def undefined_function(module, function, args),
    do: :error_handler.undefined_function(module, function, args)

  def undefined_lambda(module, function, args), do: :error_handler.undefined_lambda(module, function, args)
end
