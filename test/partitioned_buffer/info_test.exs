defmodule PartitionedBuffer.InfoTest do
  use PartitionedBuffer.Case, async: true

  import ExUnit.CaptureLog

  alias PartitionedBuffer.Queue

  defp start(opts),
    do: [partitions: 1, processing_interval_ms: :infinity] |> Keyword.merge(opts) |> start_buffer()

  defp start_with_outcomes(outcome, opts \\ []) do
    test = self()

    processor = fn batch ->
      send(test, {:batch, self(), batch})
      if is_function(outcome), do: outcome.(batch), else: outcome
    end

    start([processor: processor, max_attempts: 3, retry_backoff_ms: {60_000, 60_000}] ++ opts)
  end

  defp quietly(fun) do
    {result, _log} = with_log(fun)
    result
  end

  # Flushes, and answers the processor.
  defp flush_answering(buffer, outcome) do
    %Task{ref: ref} = Task.async(fn -> PartitionedBuffer.flush(buffer) end)
    answer(ref, outcome)
  end

  defp answer(ref, outcome) do
    receive do
      {:batch, task, _batch} ->
        send(task, outcome)
        answer(ref, outcome)

      {^ref, result} ->
        Process.demonitor(ref, [:flush])
        result
    end
  end

  # The law of `PartitionedBuffer.info/1`.
  defp balance(info) do
    totals = info.totals
    held = info.size + info.in_flight
    ended = totals.deleted + totals.superseded + totals.processed + totals.given_up
    totals.written - totals.coalesced - held - ended
  end

  defp await_failing(buffer, ms),
    do: if(PartitionedBuffer.info(buffer).failing_ms < ms, do: await_failing(buffer, ms), else: :ok)

  defp totals(buffer), do: buffer |> PartitionedBuffer.info() |> Map.fetch!(:totals)

  describe "info/1" do
    test "of a new buffer is empty" do
      buffer = start(processor: &Function.identity/1, partitions: 2)

      assert %{
               kind: :map,
               size: 0,
               in_flight: 0,
               retrying: 0,
               max_size: :infinity,
               oldest_ms: nil,
               waiting_writers: 0,
               last_error: nil,
               partitions: [first, second]
             } = PartitionedBuffer.info(buffer)

      assert Enum.all?(totals(buffer), fn {_total, count} -> count == 0 end)
      assert %{size: 0, in_flight: 0, state: :idle, failures: 0, next_ms: nil} = first
      assert [first.name, second.name] == PartitionedBuffer.Routing.partition_names(buffer)
    end

    test "counts writes by what they have done" do
      buffer = start(processor: &Function.identity/1)
      Buffer.put_all(buffer, a: 1, b: 2, c: 3)
      Buffer.put(buffer, :a, 2)
      Buffer.put_newer(buffer, :b, 3, 7)
      Buffer.put_newer(buffer, :b, 4, 7)
      Buffer.put_all_newer(buffer, [{:b, 4, 6}, {:d, 1, 1}])
      Buffer.put_new(buffer, :a, 9)
      Buffer.put_new(buffer, :e, 9)
      Buffer.delete(buffer, :c)
      Buffer.delete(buffer, :absent)
      assert %{size: 4, bytes: bytes} = info = PartitionedBuffer.info(buffer)
      assert %{written: 7, coalesced: 2, stale: 2, deleted: 1, processed: 0} = info.totals
      assert bytes > 0
      assert balance(info) == 0
      assert PartitionedBuffer.flush(buffer) == :ok
      assert %{size: 0, in_flight: 0, oldest_ms: nil} = info = PartitionedBuffer.info(buffer)
      assert %{written: 7, processed: 4} = info.totals
      assert balance(info) == 0
    end

    test "tells that a key written again after a flush is a new entry" do
      buffer = start(processor: &Function.identity/1)

      for _ <- 1..3 do
        Buffer.put(buffer, :key, 1)
        Buffer.put(buffer, :key, 2)
        PartitionedBuffer.flush(buffer)
      end

      assert %{written: 6, coalesced: 3, processed: 3} = totals(buffer)
    end

    test "counts what is in flight, until the processor has succeeded with it" do
      buffer =
        start_with_outcomes(fn _batch -> receive(do: (outcome -> outcome)) end, processing_batch_size: 2)

      Buffer.put_all(buffer, for(n <- 1..6, do: {n, n}))
      PartitionedBuffer.flush(buffer, async: true)
      assert_receive {:batch, task, [_, {key, _, _, _}]}
      Buffer.put(buffer, key, :newer)
      assert %{size: 1, in_flight: 6, oldest_ms: oldest_ms} = info = PartitionedBuffer.info(buffer)
      assert is_integer(oldest_ms)
      assert [%{state: :processing, size: 1, in_flight: 6}] = info.partitions
      assert balance(info) == 0
      send(task, :ok)
      assert_receive {:batch, ^task, [_, _]}
      assert %{size: 1, in_flight: 4, totals: %{processed: 2}} = info = PartitionedBuffer.info(buffer)
      assert balance(info) == 0
      send(task, :ok)
      assert flush_answering(buffer, :ok) == :ok
      assert %{size: 0, in_flight: 0, totals: %{processed: 7}} = info = PartitionedBuffer.info(buffer)
      assert balance(info) == 0
    end

    test "tells of failures, retries, and the pause" do
      buffer = start_with_outcomes({:error, {:sink, "away"}})
      Buffer.put_all(buffer, a: 1, b: 2, c: 3)
      quietly(fn -> PartitionedBuffer.flush(buffer) end)

      assert %{size: 3, in_flight: 0, retrying: 3, oldest_ms: oldest_ms} =
               info = PartitionedBuffer.info(buffer)

      assert is_integer(oldest_ms)
      assert [%{state: :paused, failures: 1, next_ms: next_ms, name: name}] = info.partitions
      assert next_ms in 20_000..60_000
      assert %{failed: 3, processed: 0} = info.totals
      assert %{reason: reason, system_time: time, partition: ^name} = info.last_error
      assert reason == ~s({:sink, "…"})
      assert_in_delta time, System.system_time(:millisecond), 10_000
      # A newer write has not failed, and a deleted entry is not retried.
      Buffer.put(buffer, :a, 2)
      Buffer.delete(buffer, :b)

      assert %{size: 2, retrying: 1, totals: %{written: 4, coalesced: 1, deleted: 1}} =
               PartitionedBuffer.info(buffer)

      for _ <- 1..5, do: quietly(fn -> PartitionedBuffer.flush(buffer) end)
      assert %{size: 0, in_flight: 0, retrying: 0} = info = PartitionedBuffer.info(buffer)
      assert %{failed: 8, given_up: 2} = info.totals
      assert balance(info) == 0
    end

    test "tells how long the processor has been failing, until it succeeds" do
      buffer = start_with_outcomes(fn _batch -> receive(do: (outcome -> outcome)) end)
      assert PartitionedBuffer.info(buffer).failing_ms == 0
      Buffer.put(buffer, :a, 1)
      quietly(fn -> flush_answering(buffer, {:error, :away}) end)
      await_failing(buffer, 3)
      quietly(fn -> flush_answering(buffer, {:error, :away}) end)
      assert PartitionedBuffer.info(buffer).failing_ms >= 3
      assert flush_answering(buffer, :ok) == :ok
      assert PartitionedBuffer.info(buffer).failing_ms == 0
    end

    test "tells the longest time that a partition has been failing" do
      buffer = start_with_outcomes({:error, :away}, partitions: 2)
      Buffer.put(buffer, :a, 1, partition_key: partition_key_of(1, 2))
      quietly(fn -> PartitionedBuffer.flush(buffer) end)
      await_failing(buffer, 3)
      assert [%{failures: 0}, %{failures: 1}] = PartitionedBuffer.info(buffer).partitions
    end

    test "counts as superseded what was deleted or replaced in flight" do
      buffer =
        start_with_outcomes(
          fn batch -> receive(do: (outcome -> with(:error <- outcome, do: {:error, :down, batch}))) end,
          processing_batch_size: 2
        )

      Buffer.put_all(buffer, for(n <- 1..6, do: {n, n}))
      PartitionedBuffer.flush(buffer, async: true)
      assert_receive {:batch, task, [{first, _, _, _}, {second, _, _, _}]}
      [third, fourth | _] = Enum.to_list(1..6) -- [first, second]
      Buffer.put(buffer, first, :newer)
      for key <- [second, third, fourth], do: Buffer.delete(buffer, key)
      send(task, :error)
      assert_receive {:batch, ^task, [_fifth, _sixth]}
      info = PartitionedBuffer.info(buffer)
      assert %{superseded: 4, failed: 2} = info.totals
      assert balance(info) == 0
      send(task, :ok)
      assert flush_answering(buffer, :ok) == :ok
      assert %{size: 0, in_flight: 0} = info = PartitionedBuffer.info(buffer)
      assert %{superseded: 4, deleted: 0, processed: 3} = info.totals
      assert balance(info) == 0
    end

    test "of a queue counts items, and those kept at the head after a failure" do
      test = self()

      buffer =
        start_buffer(
          module: Queue,
          partitions: 1,
          processing_interval_ms: :infinity,
          max_attempts: 2,
          retry_backoff_ms: {60_000, 60_000},
          processing_batch_size: 4,
          processor: fn batch -> send(test, {:batch, batch}) && {:error, :down, Enum.drop(batch, 2)} end
        )

      Queue.push(buffer, Enum.to_list(1..10))
      quietly(fn -> PartitionedBuffer.flush(buffer) end)
      assert %{kind: :queue, size: 0, in_flight: 8, retrying: 2, totals: totals} = info = Queue.info(buffer)
      assert %{written: 10, processed: 2, failed: 2, given_up: 0} = totals
      assert balance(info) == 0
    end

    test "without :max_attempts counts lost entries as processed and as failed" do
      buffer = start(processor: fn _batch -> exit(:down) end, processing_batch_size: 2)
      Buffer.put_all(buffer, a: 1, b: 2, c: 3)
      quietly(fn -> PartitionedBuffer.flush(buffer) end)
      assert %{size: 0, in_flight: 1} = info = PartitionedBuffer.info(buffer)
      assert %{processed: 2, failed: 2} = info.totals
      assert info.last_error.reason == :down
      assert balance(info) == 0
    end

    test "shows no keys and values" do
      buffer = start_with_outcomes(fn batch -> {:error, :down, [{:secret, batch}]} end)
      Buffer.put(buffer, "secret key", "secret value")
      quietly(fn -> PartitionedBuffer.flush(buffer) end)
      refute inspect(PartitionedBuffer.info(buffer), limit: :infinity) =~ "secret"
    end

    test "asks no process, works while all are busy, and takes less than 1 ms" do
      buffer =
        start_buffer(processor: &Function.identity/1, partitions: 64, processing_interval_ms: :infinity)

      Buffer.put_all(buffer, for(n <- 1..50_000, do: {n, n}))
      supervisor = PartitionedBuffer.Buffer.Lookup.supervisor(buffer)
      children = for {_id, pid, _type, _modules} <- Supervisor.which_children(supervisor), do: pid
      for pid <- [supervisor | children], do: :erlang.suspend_process(pid)

      times =
        for _ <- 1..50,
            do:
              buffer
              |> PartitionedBuffer.info()
              |> then(fn _ -> :timer.tc(fn -> PartitionedBuffer.info(buffer) end) end)

      {fastest, %{size: 50_000}} = Enum.min_by(times, &elem(&1, 0))
      assert fastest < 1_000
      for pid <- [supervisor | children], do: :erlang.resume_process(pid)
    end

    test "raises if the buffer is not running, or has no partitions" do
      assert_raise ArgumentError, ~r/not running/, fn -> PartitionedBuffer.info(:no_such_buffer) end
      buffer = start_buffer(processor: &Function.identity/1, partitions: 0)
      assert_raise RuntimeError, fn -> PartitionedBuffer.info(buffer) end
    end
  end
end
