defmodule PartitionedBuffer.PauseTest do
  # `pause/1` and `resume/1`, and the pause of all partitions after a snooze of the whole buffer.
  use PartitionedBuffer.Case, async: true

  alias PartitionedBuffer.{Counter, Native, Queue}
  alias PartitionedBuffer.Partition.Server

  @moduletag :capture_log

  @at_most_once []
  @at_least_once [max_attempts: 5, retry_backoff_ms: {60_000, 60_000}]
  @kinds [@at_most_once, @at_least_once]

  defp partition(buffer, number \\ 0), do: Enum.at(partitions(buffer), number)

  # All messages that the partitions got before this call are handled.
  defp settled(buffer), do: Enum.each(partitions(buffer), &Server.task/1)

  defp states(buffer), do: for(partition <- Buffer.info(buffer).partitions, do: partition.state)

  # A partition of a queue with one item for each batch. Its stop kills a call at once.
  defp start_asking(opts) do
    defaults = [partitions: 1, processing_batch_size: 1, processor: asking_processor(), module: Queue]
    start_buffer(Keyword.merge(defaults ++ [drain_timeout_ms: 0], opts))
  end

  # The call with the first of two items is under way.
  defp start_busy(opts) do
    buffer = start_asking(opts)
    Queue.push(buffer, [:first, :second])
    tick(partition(buffer))
    assert_receive {:asked, task, [:first]}
    {buffer, task}
  end

  # Waits until the partition has the request.
  defp async_flush(buffer) do
    partition = Process.whereis(partition(buffer))
    :erlang.trace(partition, true, [:receive])
    flush = Task.async(fn -> PartitionedBuffer.flush(buffer) end)
    assert_receive {:trace, ^partition, :receive, {:"$gen_call", _from, {:flush, _callers, false}}}
    :erlang.trace(partition, false, [:receive])
    flush
  end

  defp end_task(task, answer \\ :return) do
    ref = Process.monitor(task)
    send(task, answer)
    assert_receive {:DOWN, ^ref, :process, _pid, _reason}
  end

  describe "a paused buffer" do
    test "calls nothing for ticks, thresholds, a full buffer and flushes" do
      for kind <- @kinds do
        buffer =
          start_buffer([processing_threshold: 2, max_size: 4, full_timeout_ms: 0, when_full: :error] ++ kind)

        assert Buffer.pause(buffer) == :ok
        assert Buffer.pause(buffer) == :ok
        for n <- 1..4, do: assert(Buffer.put(buffer, n, n) == :ok)
        assert Buffer.put(buffer, 5, 5) == {:error, :full}
        for partition <- partitions(buffer), do: tick(partition)
        assert Buffer.flush(buffer) == {:error, :paused}
        assert Buffer.flush(buffer, async: true) == :ok
        settled(buffer)
        assert received_batches() == []
        assert Buffer.get(buffer, 1) == 1
        assert Buffer.put(buffer, 1, :newer) == :ok
        assert %{size: 4, in_flight: 0, paused?: true} = Buffer.info(buffer)
        assert Buffer.resume(buffer) == :ok
        assert Buffer.flush(buffer) == :ok
        assert keys(received_entries()) == [1, 2, 3, 4]
      end
    end

    test "makes good at its end what it missed" do
      for kind <- @kinds,
          miss <- [
            &tick(partition(&1)),
            &Buffer.flush/1,
            &Buffer.flush(&1, async: true),
            &Server.flush_full(partition(&1))
          ] do
        buffer = start_buffer([partitions: 1] ++ kind)
        Buffer.pause(buffer)
        Buffer.put(buffer, :key, 1)
        miss.(buffer)
        settled(buffer)
        Buffer.resume(buffer)
        assert_receive {:batch, [{:key, 1, 0, 0}]}
      end
    end

    test "makes good a threshold" do
      buffer = start_buffer(partitions: 1, processing_interval_ms: :infinity, processing_threshold: 2)
      Buffer.pause(buffer)
      Buffer.put_all(buffer, a: 1, b: 2)
      settled(buffer)
      assert received_batches() == []
      Buffer.resume(buffer)
      assert_receive {:batch, [_, _]}
    end

    test "calls nothing at its end that it did not miss" do
      buffer = start_buffer(partitions: 1)
      Buffer.pause(buffer)
      Buffer.put(buffer, :key, 1)
      assert Buffer.resume(buffer) == :ok
      assert Buffer.resume(buffer) == :ok
      settled(buffer)
      assert received_batches() == []
      assert states(buffer) == [:idle]
    end

    test "shows its state" do
      for kind <- @kinds do
        buffer = start_buffer([partitions: 1] ++ kind)
        # The partition has its first tick.
        settled(buffer)
        assert %{paused?: false, partitions: [%{state: :idle, next_ms: next}]} = Buffer.info(buffer)
        assert is_integer(next)
        Buffer.pause(buffer)
        assert %{paused?: true, partitions: [%{state: :on_hold, next_ms: nil}]} = Buffer.info(buffer)
        Buffer.resume(buffer)
        assert %{paused?: false, partitions: [%{state: :idle}]} = Buffer.info(buffer)
      end
    end

    test "raises like every function if the buffer is not running" do
      for call <- [:pause, :resume] do
        assert_raise ArgumentError, ~r/no partitions available for buffer :never_started/, fn ->
          apply(PartitionedBuffer, call, [:never_started])
        end

        none = start_buffer(partitions: 0)
        assert_raise RuntimeError, ~r/0 partitions/, fn -> apply(PartitionedBuffer, call, [none]) end
      end
    end

    test "is paused in the functions of all kinds" do
      for {module, start} <- [{Queue, :push}, {Counter, :add}] do
        buffer = start_buffer(module: module)
        assert module.pause(buffer) == :ok
        apply(module, start, [buffer, :key])
        assert module.flush(buffer) == {:error, :paused}
        assert module.resume(buffer) == :ok
        assert module.flush(buffer) == :ok
        assert [[_]] = received_batches()
      end
    end
  end

  describe "a call under way when the pause comes" do
    test "ends, its outcome counts, and no other call begins" do
      for kind <- @kinds do
        {buffer, task} = start_busy(kind)
        Buffer.pause(buffer)
        assert states(buffer) == [:processing]
        end_task(task)
        settled(buffer)
        refute_received {:asked, _task, _batch}
        assert %{size: 0, in_flight: 1, totals: %{processed: 1, failed: 0}} = Buffer.info(buffer)
        assert states(buffer) == [:on_hold]
        Buffer.resume(buffer)
        assert_receive {:asked, task, [:second]}
        end_task(task)
        assert Buffer.flush(buffer) == :ok
        assert %{size: 0, in_flight: 0, totals: %{processed: 2, failed: 0}} = Buffer.info(buffer)
      end
    end

    test "answers those who wait for a flush" do
      for kind <- @kinds do
        {buffer, task} = start_busy(kind)
        flush = async_flush(buffer)
        Buffer.pause(buffer)
        settled(buffer)
        assert Task.yield(flush, 0) == nil
        end_task(task)
        assert Task.await(flush) == {:error, :paused}
      end
    end

    test "answers those whose flush it was, with :ok if it was the last" do
      for kind <- @kinds, {items, result} <- [{[1, 2], {:error, :paused}}, {[1], :ok}] do
        buffer = start_asking(kind)
        Queue.push(buffer, items)
        flush = async_flush(buffer)
        assert_receive {:asked, task, [1]}
        Buffer.pause(buffer)
        end_task(task)
        assert Task.await(flush) == result
      end
    end

    test "is retried after its failure only when the pause ended" do
      {buffer, task} = start_busy(max_attempts: 5, retry_backoff_ms: {0, 0})
      Buffer.pause(buffer)
      end_task(task, {:raise, "no"})
      # The pause after the failure is over at once.
      settled(buffer)
      settled(buffer)
      refute_received {:asked, _task, _batch}
      assert %{failing_ms: failing_ms, totals: %{failed: 1}} = Buffer.info(buffer)
      assert failing_ms >= 0
      Buffer.resume(buffer)
      assert_receive {:asked, task, [:first]}
      send(task, :return)
      assert_receive {:asked, _task, [:second]}
    end

    test "is killed: its batch is settled, and nothing is called" do
      for kind <- @kinds do
        {buffer, task} = start_busy(kind)
        flush = async_flush(buffer)
        Buffer.pause(buffer)
        kill_processes([task])
        assert {:error, reason} = Task.await(flush)
        assert reason == :paused or match?({:failed, _count}, reason)
        settled(buffer)
        refute_received {:asked, _task, _batch}
        assert %{totals: %{failed: 1}} = Buffer.info(buffer)
        Buffer.resume(buffer)
        flush = async_flush(buffer)

        for item <- if(kind == [], do: [:second], else: [:first, :second]) do
          assert_receive {:asked, task, [^item]}
          send(task, :return)
        end

        assert Task.await(flush) == :ok
      end
    end

    test "gives up entries, which go to the dead letters" do
      test = self()
      dead_letter = fn entries, reason -> send(test, {:dead, entries, reason}) end
      {buffer, task} = start_busy(max_attempts: 1, dead_letter: dead_letter, retry_backoff_ms: {0, 0})
      Buffer.pause(buffer)
      end_task(task, {:raise, "no"})
      assert_receive {:dead, [:first], _reason}
      settled(buffer)
      refute_received {:asked, _task, _batch}
    end
  end

  describe "the pause" do
    test "survives the process of a partition" do
      for kind <- @kinds do
        buffer = start_buffer([partitions: 1, max_size: 1, full_timeout_ms: 0, when_full: :error] ++ kind)
        Buffer.pause(buffer)
        Buffer.put(buffer, :key, 1)
        tick(partition(buffer))
        kill_and_await_restart(partition(buffer))
        assert Buffer.flush(buffer) == {:error, :paused}
        kill_and_await_restart(partition(buffer))
        assert states(buffer) == [:on_hold]
        assert received_batches() == []
        # The dead process missed a tick.
        Buffer.resume(buffer)
        assert_receive {:batch, [{:key, 1, 0, 0}]}
      end
    end

    test "survives the process of a partition whose call is under way" do
      for kind <- @kinds do
        {buffer, task} = start_busy(kind)
        Buffer.pause(buffer)
        kill_and_await_restart(partition(buffer))
        assert states(buffer) == [:processing]
        end_task(task)
        settled(buffer)
        refute_received {:asked, _task, _batch}
        assert states(buffer) == [:on_hold]
        Buffer.resume(buffer)
        assert_receive {:asked, _task, [:second]}
      end
    end

    test "survives the process of a partition and its task together" do
      for kind <- @kinds do
        {buffer, task} = start_busy(kind)
        Buffer.pause(buffer)
        kill_processes([Process.whereis(partition(buffer)), task])
        settled_after_restart(buffer)
        refute_received {:asked, _task, _batch}
        assert states(buffer) == [:on_hold]
        Buffer.resume(buffer)
        if kind != [], do: Buffer.flush(buffer, async: true)
        next = if kind == [], do: [:second], else: [:first]
        assert_receive {:asked, _task, ^next}
      end
    end

    test "survives the task supervisor" do
      for kind <- @kinds do
        buffer = start_buffer([partitions: 1] ++ kind)
        Buffer.pause(buffer)
        Buffer.put(buffer, :key, 1)
        tick(partition(buffer))
        kill_and_await_restart(task_supervisor(buffer, 0))
        assert Buffer.flush(buffer) == {:error, :paused}
        Buffer.resume(buffer)
        assert_receive {:batch, [{:key, 1, 0, 0}]}
      end
    end

    test "ends with the supervision tree" do
      buffer = start_buffer(restart: :permanent)
      Buffer.pause(buffer)
      Buffer.put(buffer, :key, 1)
      run = run(buffer)
      kill_tree(buffer)
      await_another_run(buffer, run)
      assert Buffer.info(buffer).paused? == false
      assert Buffer.flush(buffer) == :ok
      assert received_batches() == [[{:key, 1, 0, 0}]]
    end

    test "ends with a stop, which processes all entries" do
      for kind <- @kinds do
        buffer = start_buffer(kind)
        Buffer.pause(buffer)
        Buffer.put_all(buffer, for(n <- 1..20, do: {n, n}))
        for partition <- partitions(buffer), do: tick(partition)
        assert PartitionedBuffer.stop(buffer) == :ok
        assert keys(received_entries()) == Enum.to_list(1..20)
      end
    end

    test "ends with a stop that begins during a call" do
      for kind <- @kinds do
        {buffer, task} = start_busy([drain_timeout_ms: 60_000] ++ kind)
        flush = async_flush(buffer)
        Buffer.pause(buffer)
        stop = Task.async(fn -> PartitionedBuffer.stop(buffer) end)
        await_stop(buffer)
        # During the stop it has no effect.
        assert Buffer.pause(buffer) == :ok
        assert Buffer.info(buffer).paused? == false
        send(task, :return)
        assert_receive {:asked, task, [:second]}
        send(task, :return)
        assert Task.await(stop) == :ok
        assert Task.await(flush) == :ok
      end
    end

    test "comes between the start of a task and its first call" do
      for batch_size <- [10, :table] do
        buffer = start_buffer(partitions: 1, processing_batch_size: batch_size)
        Buffer.put(buffer, :key, 1)
        {:fresh, flush} = Native.flush(run(buffer), 0)
        Buffer.pause(buffer)
        PartitionedBuffer.Processing.run(job(buffer, flush, processing_batch_size: batch_size))
        assert received_batches() == []
        assert :ets.whereis(Module.concat(partition(buffer), Table)) == :undefined
        assert Buffer.info(buffer).in_flight == 1
        Buffer.resume(buffer)
        assert Buffer.flush(buffer) == :ok
        assert Buffer.info(buffer).in_flight == 0
        assert Buffer.info(buffer).totals.processed == 1
        assert [_batch_or_table] = received_batches()
      end
    end

    test "and its end, one after the other many times, lose nothing" do
      for kind <- @kinds do
        buffer = start_buffer([processing_interval_ms: 1, processing_batch_size: 3, partitions: 2] ++ kind)

        toggle =
          spawn_link(fn ->
            Stream.repeatedly(fn -> {Buffer.pause(buffer), Buffer.resume(buffer)} end) |> Stream.run()
          end)

        for n <- 1..2_000, do: Buffer.put(buffer, n, n)
        flushes = for _ <- 1..50, do: Buffer.flush(buffer)
        assert Enum.all?(flushes, &(&1 in [:ok, {:error, :paused}]))
        Process.unlink(toggle)
        kill_processes([toggle])
        Buffer.resume(buffer)
        assert Buffer.flush(buffer) == :ok
        assert keys(received_entries()) == Enum.to_list(1..2_000)
        assert states(buffer) == [:idle, :idle]
      end
    end

    test "lets a flush in between never return :ok too early" do
      buffer = start_buffer(processing_batch_size: 1, partitions: 1)

      toggle =
        spawn_link(fn ->
          Stream.repeatedly(fn -> {Buffer.pause(buffer), Buffer.resume(buffer)} end) |> Stream.run()
        end)

      for n <- 1..300 do
        Buffer.put_all(buffer, for(key <- 1..5, do: {{n, key}, key}))

        if Buffer.flush(buffer) == :ok,
          do: assert(%{size: 0, in_flight: 0} = Buffer.info(buffer))
      end

      Process.unlink(toggle)
      kill_processes([toggle])
    end
  end

  describe "pause, resume, info and update_options" do
    test "wait for no processor, from outside" do
      for kind <- @kinds do
        {buffer, task} = start_busy([max_size: 100] ++ kind)
        assert Buffer.pause(buffer) == :ok
        assert Buffer.info(buffer).paused?
        assert Buffer.update_options(buffer, processing_interval_ms: 50_000, max_size: 50) == :ok
        assert Buffer.resume(buffer) == :ok
        assert Process.alive?(task)
      end
    end

    test "wait for no processor during a stop, also without the writers' process" do
      for kind <- @kinds do
        {buffer, task} = start_busy([drain_timeout_ms: 60_000, max_size: 100] ++ kind)
        stop = Task.async(fn -> PartitionedBuffer.stop(buffer) end)
        await_stop(buffer)
        kill_processes([Native.process(run(buffer), :room, :room)])

        calls = [
          &Buffer.pause/1,
          &Buffer.update_options(&1, max_size: 50),
          &Buffer.resume/1
        ]

        for call <- calls, do: assert(Task.await(Task.async(fn -> call.(buffer) end)) == :ok)
        assert Buffer.info(buffer).max_size == 50
        send(task, :return)
        assert_receive {:asked, task, [:second]}
        send(task, :return)
        assert Task.await(stop) == :ok
      end
    end

    test "wait for none, and a write to a full buffer raises, in the same case" do
      options = [max_size: 2, full_timeout_ms: 60_000, when_full: :error, drain_timeout_ms: 60_000]
      {buffer, task} = start_busy(options ++ @at_least_once)
      stop = Task.async(fn -> PartitionedBuffer.stop(buffer) end)
      await_stop(buffer)
      kill_processes([Native.process(run(buffer), :room, :room)])
      assert_raise ArgumentError, ~r/starting or stopping/, fn -> Queue.push(buffer, :third) end
      send(task, :return)
      assert_receive {:asked, task, [:second]}
      send(task, :return)
      assert Task.await(stop) == :ok
    end

    test "wait for no processor, from a processor of the buffer" do
      for kind <- @kinds do
        {test, name} = {self(), unique_name()}

        processor = fn batch ->
          :ok = Buffer.pause(name)
          true = Buffer.info(name).paused?
          :ok = Buffer.update_options(name, processing_batch_size: 7, max_size: 50)
          send(test, {:batch, batch})
        end

        start_buffer([name: name, partitions: 1, processor: processor] ++ kind)
        Buffer.put_all(name, for(n <- 1..20, do: {n, n}))
        tick(partition(name))
        assert_receive {:batch, [_ | _]}
        wait_idle(partition(name))
        assert received_batches() == []
        assert states(name) == [:on_hold]
        Buffer.resume(name)
        assert_receive {:batch, [_ | _]}
      end
    end
  end

  describe "a pause of all partitions" do
    test "lets an idle partition wait for its end" do
      buffer = start_buffer([partitions: 2] ++ @at_least_once)
      assert Native.pause_all(run(buffer), 86_400_000) == :ok
      Buffer.put_all(buffer, for(n <- 1..20, do: {n, n}))
      for partition <- partitions(buffer), do: tick(partition)
      settled(buffer)
      assert states(buffer) == [:paused, :paused]
      assert received_batches() == []
      assert Buffer.info(buffer).size == 20
      # A flush makes one attempt.
      assert Buffer.flush(buffer) == :ok
      assert keys(received_entries()) == Enum.to_list(1..20)
    end

    test "ends by itself" do
      buffer = start_buffer([partitions: 1] ++ @at_least_once)
      Native.pause_all(run(buffer), 1)
      Buffer.put(buffer, :key, 1)
      assert_receive {:batch, [{:key, 1, 0, 0}]}
      wait_idle(partition(buffer))
      settled(buffer)
      assert states(buffer) == [:idle]
    end

    test "ends the task of a busy partition before its next batch" do
      {buffer, task} = start_busy(@at_least_once)
      Native.pause_all(run(buffer), 86_400_000)
      end_task(task)
      settled(buffer)
      refute_received {:asked, _task, _batch}
      assert states(buffer) == [:paused]
      assert %{in_flight: 1, failing_ms: 0, totals: %{failed: 0}} = Buffer.info(buffer)
      flush = async_flush(buffer)
      assert_receive {:asked, task, [:second]}
      end_task(task)
      assert Task.await(flush) == :ok
    end

    test "pauses a partition whose task just finished its flush" do
      {buffer, task} = start_busy([processing_threshold: 1] ++ @at_least_once)
      send(task, :return)
      assert_receive {:asked, ^task, [:second]}
      Native.pause_all(run(buffer), 86_400_000)
      end_task(task)
      settled(buffer)
      assert states(buffer) == [:paused]
      Queue.push(buffer, :third)
      settled(buffer)
      refute_received {:asked, _task, _batch}
    end

    test "lets the task of a flush by request go on" do
      {buffer, task} = start_busy(@at_least_once)
      flush = async_flush(buffer)
      send(task, :return)
      assert_receive {:asked, task, [:second]}
      Queue.push(buffer, [:third, :fourth])
      end_task(task)
      assert_receive {:asked, task, [:third]}
      Native.pause_all(run(buffer), 86_400_000)
      send(task, :return)
      assert_receive {:asked, task, [:fourth]}
      end_task(task)
      assert Task.await(flush) == :ok
      settled(buffer)
      assert states(buffer) == [:paused]
    end

    test "shortens no pause" do
      buffer = start_buffer([partitions: 1] ++ @at_least_once)
      Native.pause_all(run(buffer), 86_400_000)
      Native.pause_all(run(buffer), 0)
      settled(buffer)
      assert [%{state: :paused, next_ms: next_ms}] = Buffer.info(buffer).partitions
      assert next_ms > 80_000_000
    end

    test "does nothing to another run" do
      buffer = start_buffer(@at_least_once)
      {name, number} = run(buffer)
      assert Native.pause_all({name, number - 1}, 1_000) == :not_running
      assert learned(buffer).pause_ms == nil
    end
  end

  describe "buffers/0" do
    test "returns the names of the running buffers, sorted" do
      [a, b] = for _ <- 1..2, do: start_buffer()
      none = start_buffer(partitions: 0)
      buffers = PartitionedBuffer.buffers()
      assert Enum.sort(buffers) == buffers
      assert Enum.uniq(buffers) == buffers
      for name <- [a, b, none], do: assert(name in buffers)
      PartitionedBuffer.stop(a)
      refute a in PartitionedBuffer.buffers()
      assert b in PartitionedBuffer.buffers()
    end

    test "returns the others while buffers start and stop" do
      stays = start_buffer()
      {:ok, _} = Task.start_link(fn -> for(_ <- 1..30, do: restart(unique_name())) end)
      names = for _ <- 1..200, do: PartitionedBuffer.buffers()
      for buffers <- names, do: assert(stays in buffers and Enum.sort(buffers) == buffers)
    end
  end

  describe "info/1" do
    test "raises an ArgumentError at most, while its buffer starts and stops" do
      name = unique_name()
      task = Task.async(fn -> for(_ <- 1..40, do: restart(name)) end)

      infos =
        Stream.repeatedly(fn ->
          try do
            Buffer.info(name)
          rescue
            error in ArgumentError -> error
          end
        end)
        |> Enum.take_while(fn _info -> Process.alive?(task.pid) end)

      Task.await(task)

      for %{partitions: partitions} = info <- infos do
        assert length(partitions) == 2
        assert info.last_error == nil
      end
    end
  end

  defp restart(name) do
    {:ok, pid} = Buffer.start_link(name: name, partitions: 2, processor: &Function.identity/1)
    Buffer.put(name, :key, 1)
    PartitionedBuffer.stop(pid)
  end

  # The supervisor restarts a killed process before it answers.
  defp settled_after_restart(buffer) do
    buffer |> PartitionedBuffer.Buffer.Lookup.supervisor() |> Supervisor.which_children()
    settled(buffer)
  end

  defp await_another_run(buffer, run),
    do:
      if(Native.run(buffer) in [run, :not_running],
        do: await_another_run(buffer, run),
        else: await_started(buffer)
      )

  defp await_started(buffer),
    do: if(is_pid(Native.process(run(buffer), :drainer, :drainer)), do: :ok, else: await_started(buffer))

  # The partition is passive from then on.
  defp await_stop(buffer), do: Server.task(partition(buffer)) && await_stop(buffer)
end
