defmodule PartitionedBuffer.ProcessingTest do
  # What the processor gets, and what it loses when it fails. Intervals are in CadenceTest, tables in TableTest, the end of a
  # buffer in StopTest, deaths of other processes in CrashTest.
  use PartitionedBuffer.Case, async: true

  alias PartitionedBuffer.{Native, Processing}

  @moduletag :capture_log

  def process(batch, test, tag), do: send(test, {tag, batch})

  describe "a flush" do
    test "gives the processor all waiting entries, in full batches but the last" do
      buffer = start_buffer(partitions: 1, processing_interval_ms: 20)
      Buffer.put_all(buffer, for(n <- 1..25, do: {n, n}))
      assert_receive {:batch, first}
      assert_receive {:batch, second}
      assert_receive {:batch, third}
      assert Enum.map([first, second, third], &length/1) == [10, 10, 5]
      assert keys(first ++ second ++ third) == Enum.to_list(1..25)
      assert Buffer.size(buffer) == 0
    end

    test "leaves out the entries that were deleted" do
      buffer = start_buffer(partitions: 1, processing_batch_size: 3)
      Buffer.put_all(buffer, for(n <- 1..300_000, do: {n, n}))
      kept = [1, 2, 150_000, 299_999]
      for n <- 1..300_000, n not in kept, do: Buffer.delete(buffer, n)
      flush(buffer)
      assert_received {:batch, [_, _, _] = first}
      assert_received {:batch, [_] = second}
      refute_received {:batch, _batch}
      assert keys(first ++ second) == kept
    end

    test "does not hold up writes, which wait for the next flush" do
      buffer = start_buffer(partitions: 1, processor: asking_processor())
      Buffer.put(buffer, :key, 1)
      [partition] = partitions(buffer)
      tick(partition)
      assert_receive {:asked, pid, [{:key, 1, 0, 0}]}
      assert Buffer.get(buffer, :key) == nil
      Buffer.put(buffer, :key, 2)
      assert Buffer.get(buffer, :key) == 2
      refute_received {:asked, _pid, _batch}
      send(pid, :return)
      wait_idle(partition)
      assert Buffer.get(buffer, :key) == 2
      tick(partition)
      assert {[{:key, 2, 0, 0}], _ref} = answer(:return)
    end

    test "loses no write of writers that race with it" do
      buffer = start_buffer(processing_interval_ms: 1, processing_batch_size: 100)
      writers = 4
      writes = 20_000

      1..writers
      |> Task.async_stream(
        fn writer -> for n <- 1..writes, do: :ok = Buffer.put_newer(buffer, {writer, rem(n, 500)}, n, n) end,
        timeout: :infinity
      )
      |> Stream.run()

      Buffer.stop(buffer)
      entries = received_entries()
      # `updates` counts the writes that were coalesced: each write is in exactly one flush.
      assert Enum.sum(for {_, _, _, updates} <- entries, do: updates + 1) == writers * writes

      for {_key, versions} <- Enum.group_by(entries, &elem(&1, 0), &elem(&1, 2)) do
        assert versions == Enum.sort(versions)
      end
    end
  end

  describe "a batch" do
    test "may have any positive integer as its size" do
      buffer = start_buffer(processing_batch_size: Integer.pow(10, 30))
      Buffer.put(buffer, 1, 1)
      flush(buffer)
      assert_received {:batch, [{1, 1, 0, 0}]}
    end

    test "is whole if it is larger than what one call of the NIF reads" do
      buffer = start_buffer(partitions: 1, processing_batch_size: 100_000)
      Buffer.put_all(buffer, for(n <- 1..150_000, do: {n, {n, "value", [n]}}))
      flush(buffer)
      assert_received {:batch, first}
      assert_received {:batch, second}
      assert length(first) == 100_000
      assert keys(first ++ second) == Enum.to_list(1..150_000)
    end
  end

  describe "the processor" do
    test "gets the batch before its arguments if it is an MFA" do
      buffer = start_buffer(processor: {__MODULE__, :process, [self(), :tag]})
      Buffer.put(buffer, 1, 2)
      flush(buffer)
      assert_received {:tag, [{1, 2, 0, 0}]}
    end

    for {how, answer} <- [
          raises: {:raise, "no"},
          throws: {:throw, :ball},
          exits: {:exit, :reason},
          "exits normally": {:exit, :normal},
          "is killed": :kill
        ] do
      test "loses only its batch if it #{how}" do
        buffer = start_buffer(partitions: 1, processor: asking_processor())
        Buffer.put_all(buffer, for(n <- 1..25, do: {n, n}))
        [partition] = partitions(buffer)
        tick(partition)
        {first, _ref} = answer(:return)
        {second, ref} = answer(unquote(Macro.escape(answer)))
        assert_receive {:DOWN, ^ref, :process, _pid, _reason}
        wait_idle(partition)

        Buffer.put(buffer, :later, 1)
        tick(partition)
        {rest, _ref} = answer(:return)
        assert Enum.map([first, second, rest], &length/1) == [10, 10, 5]
        assert keys(first ++ second ++ rest) == Enum.to_list(1..25)
        # The waiting entry follows without another interval.
        assert {[{:later, 1, 0, 0}], _ref} = answer(:return)
      end
    end
  end

  # A task of a killed supervision tree may still work when the next tree has started.
  describe "two tasks that work on one flush" do
    test "never give an entry to the processor twice" do
      buffer = start_buffer(partitions: 1)
      Buffer.put_all(buffer, for(n <- 1..8, do: {n, n}))
      {:fresh, flush} = Native.flush(run(buffer), 0)

      job = job(buffer, flush, processing_batch_size: 2, processor: asking_processor())
      process = fn -> Processing.run(job) end
      first = Task.async(process)
      assert_receive {:asked, pid, one}
      %Task{pid: second_pid} = second = Task.async(process)
      # Each has a batch now. The first goes on behind the batch of the second.
      assert_receive {:asked, ^second_pid, two}
      send(pid, :return)
      assert_receive {:asked, ^pid, three}
      send(second_pid, :return)
      assert_receive {:asked, last_pid, four}
      for pid <- [pid, last_pid], do: send(pid, :return)
      Task.await_many([first, second])
      assert keys(one ++ two ++ three ++ four) == Enum.to_list(1..8)
    end

    test "give each entry to the processor once, though both read it at once" do
      buffer = start_buffer(partitions: 1)
      Buffer.put_all(buffer, for(n <- 1..20_000, do: {n, n}))
      {:fresh, flush} = Native.flush(run(buffer), 0)
      given = :counters.new(20_000, [])
      processor = fn [{n, n, 0, 0}] -> :counters.add(given, n, 1) end
      job = job(buffer, flush, processing_batch_size: 1, processor: processor)
      task = fn _ -> Task.async(fn -> Processing.run(job) end) end
      1..2 |> Enum.map(task) |> Task.await_many()
      assert Enum.frequencies_by(1..20_000, &:counters.get(given, &1)) == %{1 => 20_000}
    end

    test "fill only one table" do
      buffer = start_buffer(partitions: 1)
      Buffer.put_all(buffer, for(n <- 1..20_000, do: {n, n}))
      {:fresh, flush} = Native.flush(run(buffer), 0)
      test = self()
      processor = fn table -> send(test, {:size, :ets.info(table, :size)}) end
      job = job(buffer, flush, processing_batch_size: :table, processor: processor)

      task = fn n ->
        Task.async(fn -> Processing.run(%{job | ref: %{job.ref | name: :"#{buffer}.#{n}"}}) end)
      end

      1..2 |> Enum.map(task) |> Task.await_many()
      assert_received {:size, one}
      assert_received {:size, other}
      assert Enum.sort([one, other]) == [0, 20_000]
    end
  end

  describe "processing_partition/0" do
    test "is the number of the partition in its processor and its function for dead letters" do
      test = self()
      tell = fn entries -> send(test, {PartitionedBuffer.processing_partition(), entries}) end

      buffer =
        start_buffer(
          partitions: 4,
          processor: fn batch -> tell.(batch) && {:cancel, :refused} end,
          dead_letter: fn entries, _reason -> tell.(entries) end,
          max_attempts: 1
        )

      Buffer.put_all(buffer, for(key <- 1..100, do: {key, key}))
      :ok = PartitionedBuffer.flush(buffer)
      calls = for _call <- 1..20, do: assert_receive({number, [_ | _]} when is_integer(number))
      assert calls |> Enum.map(&elem(&1, 0)) |> Enum.uniq() |> Enum.sort() == [0, 1, 2, 3]

      for {number, entries} <- calls, {key, _value, _version, _updates} <- entries do
        assert PartitionedBuffer.get_partition(buffer, nil, key) == Module.concat(buffer, "#{number}")
      end

      assert PartitionedBuffer.processing_partition() == nil
    end
  end
end
