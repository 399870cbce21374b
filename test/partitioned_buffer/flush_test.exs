defmodule PartitionedBuffer.FlushTest do
  use PartitionedBuffer.Case, async: true

  import ExUnit.CaptureLog

  alias PartitionedBuffer.{Counter, Queue}

  @moduletag :capture_log

  defp partition_of(buffer), do: PartitionedBuffer.Routing.partition_name(buffer, 0)

  # Asks for a flush, and waits until the partition has the request.
  defp request_flush(buffer) do
    partition = Process.whereis(partition_of(buffer))
    :erlang.trace(partition, true, [:receive])
    flush = Task.async(fn -> Buffer.flush(buffer) end)
    assert_receive {:trace, ^partition, :receive, {:"$gen_call", _from, {:flush, _callers, false}}}
    flush
  end

  # With outcomes and without.
  @kinds [[], [max_attempts: 3, retry_backoff_ms: {60_000, 60_000}]]

  describe "flush/2" do
    test "gives all entries of all partitions to the processor" do
      for kind <- @kinds do
        buffer = start_buffer([partitions: 4, processing_batch_size: 7] ++ kind)
        Buffer.put_all(buffer, for(n <- 1..100, do: {n, n}))
        assert Buffer.flush(buffer) == :ok
        assert keys(received_entries()) == Enum.to_list(1..100)
        assert Buffer.flush(buffer) == :ok
        assert received_batches() == []
      end
    end

    test "calls the processor, whatever the flush before left of the same entries" do
      [up?, calls] = for _ <- 1..2, do: :atomics.new(1, [])

      processor = fn _batch ->
        :atomics.add(calls, 1, 1)
        if :atomics.get(up?, 1) == 1, do: :ok, else: {:error, :down}
      end

      retries = [max_attempts: :infinity, retry_backoff_ms: {60_000, 60_000}]

      for interval <- [:infinity, 60_000] do
        :atomics.put(up?, 1, 0)
        opts = [module: Counter, partitions: 1, processor: processor, processing_interval_ms: interval]
        buffer = start_buffer(opts ++ retries)

        # At last all entries have failed, those in flight and those that wait.
        for _ <- 1..20 do
          for key <- 1..5, do: Counter.add(buffer, key)
          before = :atomics.get(calls, 1)
          assert {:error, {:failed, _count}} = Counter.flush(buffer)
          assert :atomics.get(calls, 1) > before
        end

        :atomics.put(up?, 1, 1)
        assert Counter.flush(buffer) == :ok
        assert Counter.size(buffer) == 0
      end
    end

    test "needs no interval" do
      for kind <- @kinds do
        buffer = start_buffer([module: Queue, processing_interval_ms: :infinity] ++ kind)
        assert %{partitions: [%{next_ms: nil}, _]} = Buffer.info(buffer)
        Queue.push(buffer, :item)
        assert Queue.flush(buffer) == :ok
        assert received_batches() == [[:item]]
        Queue.update_options(buffer, processing_interval_ms: 1)
        Queue.push(buffer, :next)
        assert_receive {:batch, [:next]}
        Queue.update_options(buffer, processing_interval_ms: :infinity)
        await_options(buffer)
        assert %{partitions: [%{next_ms: nil}, _]} = Buffer.info(buffer)
      end
    end

    test "waits for a flush that is going on, then flushes the writes since" do
      for kind <- @kinds do
        buffer = start_buffer([partitions: 1, processor: asking_processor()] ++ kind)
        Buffer.put(buffer, :first, 1)
        tick(partition_of(buffer))
        assert_receive {:asked, task, [{:first, 1, 0, 0}]}
        Buffer.put(buffer, :second, 2)
        %Task{ref: ref} = Task.async(fn -> Buffer.flush(buffer) end)
        send(task, :return)
        assert_receive {:asked, task, [{:second, 2, 0, 0}]}
        refute_received {^ref, _result}
        send(task, :return)
        assert_receive {^ref, :ok}
      end
    end

    test "is shared by callers that come together" do
      for kind <- @kinds do
        buffer = start_buffer([partitions: 1, processor: asking_processor()] ++ kind)
        Buffer.put(buffer, :first, 1)
        tick(partition_of(buffer))
        assert_receive {:asked, task, [{:first, 1, 0, 0}]}
        Buffer.put(buffer, :second, 2)
        :erlang.trace(Process.whereis(partition_of(buffer)), true, [:receive])
        refs = for _ <- 1..5, do: Task.async(fn -> Buffer.flush(buffer) end).ref
        for _ <- 1..5, do: assert_receive({:trace, _, :receive, {:"$gen_call", _, {:flush, _callers, false}}})
        send(task, :return)
        assert_receive {:asked, task, [{:second, 2, 0, 0}]}
        send(task, :return)
        for ref <- refs, do: assert_receive({^ref, :ok})
        refute_received {:asked, _task, _batch}
      end
    end

    test "retries at once while a task fails, and ends even if nothing is left" do
      for delete? <- [false, true] do
        buffer = start_buffer([partitions: 1, processor: asking_processor()] ++ List.last(@kinds))
        Buffer.put(buffer, :key, 1)
        tick(partition_of(buffer))
        assert_receive {:asked, task, [{:key, 1, 0, 0}]}
        if delete?, do: Buffer.delete(buffer, :key)
        flush = request_flush(buffer)

        capture_log(fn ->
          send(task, {:throw, :failed})
          unless delete?, do: answer(:return)
          assert Task.await(flush) == :ok
        end)
      end
    end

    test "tells that it has failed, and how many entries are lost or left" do
      buffer = start_buffer(partitions: 1, processor: fn _batch -> raise "no" end, processing_batch_size: 3)
      Buffer.put_all(buffer, for(n <- 1..10, do: {n, n}))
      assert {{:error, {:failed, 10}}, _log} = with_log(fn -> Buffer.flush(buffer) end)
      # Without outcomes, the first batch is lost.
      assert {{:error, {:failed, 7}}, _log} = with_log(fn -> Buffer.flush(buffer) end)
    end

    test "tells that the batch in flight is lost, however the call ends" do
      for begin <- [&tick(partition_of(&1)), &Buffer.flush(&1, async: true)],
          answer <- [{:raise, "no"}, {:throw, :no}, {:exit, :no}, {:exit, :normal}, {:exit, :shutdown}, :kill] do
        buffer = start_buffer(partitions: 1, processor: asking_processor())
        Buffer.put_all(buffer, for(n <- 1..5, do: {n, n}))
        begin.(buffer)
        assert_receive {:asked, task, _batch}
        flush = request_flush(buffer)

        capture_log(fn ->
          if answer == :kill, do: Process.exit(task, :kill), else: send(task, answer)
          assert Task.await(flush) == {:error, {:failed, 5}}
        end)

        assert %{processed: 5, failed: 5} = Buffer.info(buffer).totals
      end
    end

    test "tells of a batch that is lost while the partition has no process" do
      buffer = start_buffer(partitions: 1, processor: asking_processor())
      Buffer.put(buffer, :key, 1)
      flush = Task.async(fn -> Buffer.flush(buffer) end)
      assert_receive {:asked, task, _batch}
      supervisor = PartitionedBuffer.Buffer.Lookup.supervisor(buffer)
      :erlang.suspend_process(supervisor)

      capture_log(fn ->
        kill_processes([Process.whereis(partition_of(buffer)), task])
        :erlang.resume_process(supervisor)
        assert Task.await(flush) == {:error, {:failed, 1}}
      end)
    end

    test "gives up waiting after its timeout, and goes on" do
      buffer = start_buffer(partitions: 1, processor: asking_processor())
      Buffer.put(buffer, :key, 1)
      assert Buffer.flush(buffer, timeout: 10) == {:error, :timeout}
      assert {[{:key, 1, 0, 0}], _ref} = answer(:return)
      assert Buffer.flush(buffer, timeout: :infinity) == :ok
      refute_received {_alias, 0}
    end

    test "returns at once if it is asynchronous" do
      buffer = start_buffer(partitions: 1, processor: asking_processor())
      Buffer.put(buffer, :key, 1)
      assert Buffer.flush(buffer, async: true) == :ok
      assert {[{:key, 1, 0, 0}], _ref} = answer(:return)
    end

    test "survives the death of a partition's process, whose task goes on" do
      for kind <- @kinds do
        buffer = start_buffer([partitions: 1, processor: asking_processor()] ++ kind)
        Buffer.put(buffer, :key, 1)
        %Task{ref: ref} = Task.async(fn -> Buffer.flush(buffer) end)
        assert_receive {:asked, task, _batch}
        Buffer.put(buffer, :other, 1)
        kill_and_await_restart(partition_of(buffer))
        send(task, :return)
        assert_receive {:asked, task, [{:other, 1, 0, 0}]}
        send(task, :return)
        assert_receive {^ref, :ok}
      end
    end

    test "goes on after a start with another number of partitions" do
      for kind <- @kinds, partition_count <- [1, 3] do
        buffer = start_buffer([partitions: 2, processor: asking_processor()] ++ kind)
        Buffer.put_all(buffer, for(n <- 1..100, do: {n, n}))
        %Task{ref: ref, pid: pid} = Task.async(fn -> Buffer.flush(buffer) end)
        for _ <- 1..2, do: assert_receive({:asked, _task, _batch})
        Buffer.put_all(buffer, for(n <- 101..200, do: {n, n}))
        :erlang.suspend_process(pid)
        kill_tree(buffer)
        start_buffer([name: buffer, partitions: partition_count, processing_batch_size: 1_000] ++ kind)
        :erlang.resume_process(pid)
        assert_receive {^ref, result}, 5_000
        # Without outcomes, the two batches of the killed tree are lost, and all else came through.
        if kind == [], do: assert(result == {:error, {:failed, 20}})
        assert result == :ok or match?({:error, {:failed, _count}}, result)
        if kind == [], do: assert(Enum.to_list(101..200) -- keys(received_entries()) == [])

        stop_supervised!(buffer)
      end
    end

    test "lets the task have the caller, and its callers, as `$callers`" do
      test = self()
      processor = fn _batch -> send(test, {:callers, Process.get(:"$callers")}) end
      buffer = start_buffer(partitions: 1, processor: processor)
      Buffer.put(buffer, :key, 1)
      Buffer.flush(buffer)
      assert_receive {:callers, [^test]}

      Buffer.put(buffer, :key, 1)
      %Task{pid: pid} = task = Task.async(fn -> Buffer.flush(buffer) end)
      Task.await(task)
      assert_receive {:callers, [^pid, ^test]}

      # A flush that nobody has asked for has the partition's process.
      partition = Process.whereis(partition_of(buffer))
      Buffer.put(buffer, :key, 1)
      tick(partition_of(buffer))
      assert_receive {:callers, [^partition | _]}
    end

    test "raises in a processor of the buffer, as stop/1 does, unless async" do
      buffer = unique_name()
      test = self()

      processor = fn _batch ->
        supervisor = Process.whereis(Module.concat(buffer, Supervisor))
        stop_by_pid = fn _buffer -> Buffer.stop(supervisor) end

        results =
          for call <- [&Buffer.flush/1, &Buffer.stop/1, stop_by_pid, &Buffer.flush(&1, async: true)] do
            try do
              call.(buffer)
            rescue
              error in ArgumentError -> error.message
            end
          end

        send(test, {:results, results})
      end

      start_buffer(name: buffer, partitions: 1, processor: processor)
      Buffer.put(buffer, :key, 1)
      assert Buffer.flush(buffer) == :ok
      assert_receive {:results, [flush, stop, stop, :ok]}
      assert flush =~ "a processor of buffer #{inspect(buffer)} cannot flush it: the call would wait"
      assert stop =~ "a processor of buffer #{inspect(buffer)} cannot stop it: the call would wait"
    end

    test "raises for a buffer that does not run and for invalid options" do
      assert_raise ArgumentError, ~r/not running/, fn -> Buffer.flush(unique_name()) end
      assert_raise RuntimeError, ~r/0 partitions/, fn -> Buffer.flush(start_buffer(partitions: 0)) end
      buffer = start_buffer()

      assert_raise ArgumentError, ~r/:timeout of a call on buffer/, fn ->
        Buffer.flush(buffer, timeout: -1)
      end

      assert_raise ArgumentError, ~r/:async of a call on buffer/, fn -> Buffer.flush(buffer, async: 1) end
      assert_raise ArgumentError, ~r/does not take option :wait/, fn -> Buffer.flush(buffer, wait: 1) end
    end

    # Each writer counts a key of its own up. What it had written before a flush must be at the sink after it.
    test "returns :ok only after all earlier writes, despite failures and races" do
      for kind <- @kinds, {:ok, sink} = Agent.start_link(fn -> %{} end) do
        failing? = kind != []

        processor = fn batch ->
          if failing? and :rand.uniform(5) == 1 do
            {:error, :down}
          else
            Agent.update(sink, fn sink ->
              for {writer, value, _, _} <- batch, into: sink, do: {writer, value}
            end)
          end
        end

        options = [partitions: 2, processor: processor, processing_interval_ms: 2, processing_batch_size: 2]

        buffer =
          start_buffer(
            options ++
              Keyword.merge(
                kind,
                if(failing?, do: [max_attempts: :infinity, retry_backoff_ms: {1, 2}], else: [])
              )
          )

        capture_log(fn ->
          1..6
          |> Enum.map(fn writer ->
            Task.async(fn ->
              for n <- 1..100 do
                Buffer.put(buffer, writer, n)

                if Buffer.flush(buffer) == :ok do
                  assert {writer, n} == {writer, Agent.get(sink, & &1[writer])}
                  :ok
                end
              end
              |> Enum.count(&(&1 == :ok))
            end)
          end)
          |> Task.await_many(60_000)
          |> then(&assert Enum.min(&1) > 0)

          # The sink ends with the test, so nothing may be left for the stop.
          assert Enum.find(1..1_000, fn _ -> Buffer.flush(buffer) == :ok end)
        end)
      end
    end
  end
end
