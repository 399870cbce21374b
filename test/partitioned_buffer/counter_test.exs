defmodule PartitionedBuffer.CounterTest do
  use PartitionedBuffer.Case, async: true

  import Bitwise
  import ExUnit.CaptureLog

  alias PartitionedBuffer.{Counter, FullError}

  doctest PartitionedBuffer.Counter

  @moduletag :capture_log

  @min -0x8000000000000000
  @max 0x7FFFFFFFFFFFFFFF

  setup context do
    if context.test_type == :doctest, do: start_counter(name: :doc_counter)
    :ok
  end

  defp start_counter(opts \\ []), do: start_buffer([module: Counter] ++ opts)

  # Flushes only when it is asked to, and pauses so long that no test sees the end of a pause.
  defp start_with_outcomes(opts) do
    start_counter(
      Keyword.merge(
        [
          partitions: 1,
          processing_interval_ms: :infinity,
          max_attempts: 5,
          retry_backoff_ms: {60_000, 60_000}
        ],
        opts
      )
    )
  end

  # Sends each batch to the test, and returns the outcomes in turn; the last one stays.
  defp returning(outcomes) do
    test = self()
    calls = :counters.new(1, [])

    fn batch ->
      send(test, {:batch, batch})
      :counters.add(calls, 1, 1)
      Enum.at(outcomes, min(:counters.get(calls, 1), length(outcomes)) - 1)
    end
  end

  defp quietly(fun) do
    {result, _log} = with_log(fun)
    result
  end

  # A flush during which the test does something while the processor has the batch, which then waits again.
  defp flush_that_fails(buffer, batch, meanwhile) do
    quietly(fn ->
      flush = Task.async(fn -> Counter.flush(buffer) end)
      assert_receive {:asked, pid, asked}
      assert Enum.sort(asked) == batch
      meanwhile.()
      send(pid, {:return, {:snooze, 60_000}})
      assert {:error, {:failed, _count}} = Task.await(flush)
    end)
  end

  # A flush that succeeds, with this batch.
  defp flush_that_succeeds(buffer, batch) do
    flush = Task.async(fn -> Counter.flush(buffer) end)
    assert_receive {:asked, pid, asked}
    assert Enum.sort(asked) == batch
    send(pid, :return)
    assert Task.await(flush) == :ok
  end

  defp await_writer(buffer),
    do: if(Counter.info(buffer).waiting_writers == 0, do: await_writer(buffer), else: :ok)

  defp add(sums, key, sum, count),
    do: Map.update(sums, key, {sum, count}, fn {sums, counts} -> {sums + sum, counts + count} end)

  describe "add" do
    test "adds to the sum and the count of a key, whatever term it is" do
      buffer = start_counter()

      keys = [
        1,
        1.0,
        "key",
        :key,
        {:a, [1, %{b: nil}]},
        self(),
        make_ref(),
        1 <<< 80,
        [],
        nil,
        Enum.to_list(1..2_000)
      ]

      for _ <- 1..3, key <- keys, do: assert(Counter.add(buffer, key, 2) == :ok)
      for key <- keys, do: assert(Counter.add(buffer, key) == :ok)
      assert Counter.size(buffer) == length(keys)
      for key <- keys, do: assert(Counter.get(buffer, key) === 7)
      flush(buffer)
      entries = received_entries()
      assert length(entries) == length(keys)
      # Sorted, 1 and 1.0 would be in any order.
      assert MapSet.new(entries) == MapSet.new(keys, &{&1, 7, 4})
    end

    test "counts with 0, and an entry stays whose sum comes to 0" do
      buffer = start_counter(partitions: 1)
      Counter.add(buffer, :nothing, 0)
      Counter.add(buffer, :balanced, 5)
      Counter.add(buffer, :balanced, -5)
      assert {Counter.fetch(buffer, :nothing), Counter.fetch(buffer, :balanced)} == {{:ok, 0}, {:ok, 0}}
      flush(buffer)
      assert Enum.sort(received_entries()) == [{:balanced, 0, 2}, {:nothing, 0, 1}]
    end

    test "is exact beyond 64 bits, up and down" do
      buffer = start_counter(partitions: 1, processing_batch_size: 10)

      amounts = %{
        up: List.duplicate(@max, 5),
        down: List.duplicate(@min, 5),
        up_and_back: [@max, 1, -1, @max, @min, @min, @min],
        edge: [@max, 1],
        below: [@min, -1],
        back: [@max, 1, -1]
      }

      for {key, list} <- amounts, amount <- list, do: Counter.add(buffer, key, amount)
      expected = for {key, list} <- amounts, do: {key, Enum.sum(list), length(list)}
      for {key, sum, _count} <- expected, do: assert(Counter.get(buffer, key) === sum)
      flush(buffer)
      assert Enum.sort(received_entries()) === Enum.sort(expected)
    end

    test "begins at 0 after each flush" do
      buffer = start_counter(partitions: 1)
      Counter.add(buffer, :key, 3)
      flush(buffer)
      assert Counter.get(buffer, :key) == 0
      Counter.add(buffer, :key, 4)
      flush(buffer)
      assert received_batches() == [[{:key, 3, 1}], [{:key, 4, 1}]]
    end

    test "loses nothing of what several processes add to the same keys" do
      buffer = start_counter(partitions: 2)

      1..4
      |> Enum.map(fn n ->
        Task.async(fn -> for i <- 1..20_000, do: Counter.add(buffer, rem(i, 3), n) end)
      end)
      |> Enum.each(fn task ->
        flush(buffer)
        Task.await(task)
      end)

      flush(buffer)
      sums = Enum.group_by(received_entries(), &elem(&1, 0), fn {_key, sum, count} -> {sum, count} end)

      for {key, parts} <- sums do
        times = length(for i <- 1..20_000, rem(i, 3) == key, do: i)
        {sums, counts} = Enum.unzip(parts)
        assert {Enum.sum(sums), Enum.sum(counts)} == {10 * times, 4 * times}
      end
    end

    test "raises on a non-int64 amount, names buffer and entry, and adds nothing" do
      buffer = start_counter()

      for amount <- [@max + 1, @min - 1, 1 <<< 200, 1.0, "1", nil, :one, [1]],
          opts <- [[], [partition_key: 1]] do
        message =
          "invalid entry: #{inspect({:key, amount})} for buffer #{inspect(buffer)}, expected {key, amount} with an " <>
            "integer of 64 bits, from -2^63 to 2^63 - 1, as amount"

        assert_raise ArgumentError, message, fn -> Counter.add(buffer, :key, amount, opts) end
      end

      assert Counter.size(buffer) == 0
    end

    test "takes a partition key, with which the sum is found" do
      buffer = start_counter(partitions: 8)
      region = fn {region, _id} -> region end
      for id <- 1..50, do: Counter.add(buffer, {:eu, id}, id, partition_key: region)
      for id <- 1..50, do: assert(Counter.get(buffer, {:eu, id}, nil, partition_key: region) == id)
      flush(buffer)
      assert length(received_batches()) == 5, "all are in one partition, in batches of ten"
    end

    test "takes a count, which is added to the count of the key" do
      buffer = start_counter(partitions: 2)
      Counter.add(buffer, :a, 5)
      assert Counter.add(buffer, :a, 10, count: 7) == :ok
      assert Counter.add(buffer, :b, -3, count: 0) == :ok
      assert Counter.add(buffer, :b, 1, count: 1, partition_key: :b) == :ok
      assert Counter.get(buffer, :a) == 15
      assert %{written: 4, coalesced: coalesced} = Counter.info(buffer).totals
      assert coalesced in 1..2
      flush(buffer)
      sums = for {key, sum, count} <- received_entries(), reduce: %{}, do: (acc -> add(acc, key, sum, count))
      assert sums == %{a: {15, 8}, b: {-2, 1}}
    end

    test "takes counts whose total needs more than 64 bits" do
      buffer = start_counter(partitions: 1)
      for _ <- 1..5, do: Counter.add(buffer, :a, @max, count: @max)
      for _ <- 1..5, do: Counter.add(buffer, :a, 1)
      flush(buffer)
      assert received_entries() === [{:a, 5 * @max + 5, 5 * @max + 5}]
    end

    test "raises on an invalid count with buffer, key and count, adds nothing" do
      buffer = start_counter()

      for count <- [-1, @max + 1, 1 <<< 200, 1.0, "1", nil, :one], opts <- [[], [partition_key: 1]] do
        message =
          "invalid entry: #{inspect({:key, 1, count})} for buffer #{inspect(buffer)}, expected {key, amount, count} " <>
            "with an integer of 64 bits, from -2^63 to 2^63 - 1, as amount, and an integer from 0 to 2^63 - 1 as count"

        assert_raise ArgumentError, message, fn -> Counter.add(buffer, :key, 1, [count: count] ++ opts) end
      end

      assert_raise ArgumentError, ~r/invalid entry: {:key, 1.0, 1}/, fn ->
        Counter.add(buffer, :key, 1.0, count: 1)
      end

      assert_raise ArgumentError, ~r/does not take option :counts/, fn ->
        Counter.add(buffer, :key, 1, count: 1, counts: 1)
      end

      assert %{size: 0, totals: %{written: 0}} = Counter.info(buffer)
    end

    test "raises if the buffer is not running, or is of another kind" do
      assert_raise ArgumentError, ~r/it is not running/, fn -> Counter.add(unique_name(), 1) end
      map = start_buffer()
      counter = start_counter()
      message = ~r/it is running as a map, and this call is for a counter/

      for call <- [&Counter.add/2, &Counter.get/2, &Counter.fetch/2, &Counter.delete/2],
          do: assert_raise(ArgumentError, message, fn -> call.(map, 1) end)

      assert_raise ArgumentError, message, fn -> Counter.add_all(map, [{1, 1}]) end
      assert_raise ArgumentError, ~r/it is running as a counter/, fn -> Buffer.put(counter, 1, 1) end
      assert Buffer.size(map) == 0 and Counter.size(counter) == 0
    end
  end

  describe "add_all" do
    test "takes a map, a list and any enumerable, and the same key several times" do
      buffer = start_counter()
      assert Counter.add_all(buffer, %{a: 1, b: 2}) == :ok
      assert Counter.add_all(buffer, [{:a, 1}, {:a, 1}, {:b, -2}]) == :ok
      assert Counter.add_all(buffer, Stream.map(1..3, &{:a, &1})) == :ok
      assert Counter.add_all(buffer, []) == :ok
      assert {Counter.get(buffer, :a), Counter.get(buffer, :b)} == {9, 0}
      flush(buffer)
      assert Enum.sort(received_entries()) == [{:a, 9, 6}, {:b, 0, 2}]
    end

    test "adds long lists as a whole, with and without a partition key" do
      for opts <- [[], [partition_key: &rem(&1, 7)]] do
        buffer = start_counter(partitions: 4)
        Counter.add_all(buffer, for(n <- 1..100_000, do: {rem(n, 1_000), n}), opts)
        flush(buffer)
        entries = received_entries()
        assert length(entries) == 1_000

        for {key, sum, count} <- entries,
            do: assert({sum, count} == {Enum.sum(for n <- 1..100_000, rem(n, 1_000) == key, do: n), 100})
      end
    end

    test "raises on anything else, and adds nothing" do
      buffer = start_counter()
      good = for n <- 1..3_000, do: {n, n}

      for bad <- [:atom, {1}, {1, 2, 3}, {1, 1.0}, {1, nil}, {1, @max + 1}, {1, @min - 1}, [1, 2]],
          list <- [good ++ [bad], [bad], [bad | good]],
          opts <- [[], [partition_key: 1]] do
        message =
          ~r/invalid entry: #{Regex.escape(inspect(bad))} for buffer #{inspect(buffer)}, expected \{key, amount\}/

        assert_raise ArgumentError, message, fn -> Counter.add_all(buffer, list, opts) end
      end

      assert_raise ArgumentError, ~r/proper list/, fn -> Counter.add_all(buffer, [{1, 1} | {2, 2}]) end

      assert_raise ArgumentError, ~r/expected a map, or another enumerable of \{key, amount\}/, fn ->
        Counter.add_all(buffer, 7)
      end

      assert_raise RuntimeError, fn -> Counter.add_all(buffer, Stream.map(1..3, fn _ -> raise "no" end)) end
      assert Counter.size(buffer) == 0
    end
  end

  describe "get, fetch and delete" do
    test "see what waits" do
      buffer = start_counter(partitions: 1)

      assert {Counter.get(buffer, :key), Counter.get(buffer, :key, nil), Counter.fetch(buffer, :key)} ==
               {0, nil, :error}

      Counter.add(buffer, :key, 2)

      assert {Counter.get(buffer, :key), Counter.get(buffer, :key, nil), Counter.fetch(buffer, :key)} ==
               {2, 2, {:ok, 2}}

      assert Counter.delete(buffer, :key) == :ok
      assert Counter.delete(buffer, :key) == :ok
      assert {Counter.fetch(buffer, :key), Counter.size(buffer)} == {:error, 0}
      Counter.add(buffer, :key, 7)
      flush(buffer)
      assert received_entries() == [{:key, 7, 1}]
    end

    test "see nothing in flight without :max_attempts" do
      buffer = start_counter(partitions: 1, processor: asking_processor())
      Counter.add(buffer, :key, 2)
      tick(hd(partitions(buffer)))
      assert_receive {:asked, pid, [{:key, 2, 1}]}
      assert Counter.fetch(buffer, :key) == :error
      send(pid, :return)
    end

    test "see what waits and what is in flight with :max_attempts" do
      buffer = start_with_outcomes(processor: asking_processor())
      Counter.add(buffer, :key, 2)
      Counter.add(buffer, :other, 1)
      flush = Task.async(fn -> Counter.flush(buffer) end)
      assert_receive {:asked, pid, _batch}
      assert Counter.get(buffer, :key) == 2
      Counter.add(buffer, :key, 40)
      assert Counter.get(buffer, :key) == 42
      Counter.delete(buffer, :key)
      assert Counter.fetch(buffer, :key) == :error
      assert Counter.get(buffer, :other) == 1
      send(pid, :return)
      assert Task.await(flush) == :ok
      assert Counter.fetch(buffer, :other) == :error
    end
  end

  describe "a failed batch" do
    test "is added back: sums and counts join what was added meanwhile" do
      buffer = start_with_outcomes(processor: returning([{:snooze, 60_000}, :ok]), processing_batch_size: 10)
      Counter.add_all(buffer, a: 1, b: @max, c: 3)
      assert quietly(fn -> Counter.flush(buffer) end) == {:error, {:failed, 3}}
      assert Counter.get(buffer, :b) == @max
      Counter.add_all(buffer, b: @max, d: 4)
      assert Counter.get(buffer, :b) == 2 * @max
      assert Counter.flush(buffer) == :ok
      [first, retried | more] = received_batches()
      assert Enum.sort(first) == [{:a, 1, 1}, {:b, @max, 1}, {:c, 3, 1}]

      assert Enum.sort(Enum.concat([retried | more])) == [
               {:a, 1, 1},
               {:b, 2 * @max, 2},
               {:c, 3, 1},
               {:d, 4, 1}
             ]

      assert Counter.size(buffer) == 0
    end

    test "joins what is added while the processor has it" do
      buffer = start_with_outcomes(processor: asking_processor())
      Counter.add(buffer, :key, 1)
      flush_that_fails(buffer, [{:key, 1, 1}], fn -> Counter.add(buffer, :key, 10) end)
      flush_that_succeeds(buffer, [{:key, 11, 2}])
      assert %{totals: %{written: 2, coalesced: 1, processed: 1, failed: 0}} = Counter.info(buffer)
    end

    test "keeps its number of attempts, also when it is added to" do
      test = self()
      dead_letter = &send(test, {:dead, &1, &2})

      buffer =
        start_with_outcomes(
          processor: returning([{:error, :down}]),
          max_attempts: 3,
          dead_letter: dead_letter
        )

      Counter.add(buffer, :key, 1)

      quietly(fn ->
        for n <- 1..2 do
          assert Counter.flush(buffer) == {:error, {:failed, 1}}
          Counter.add(buffer, :key, 10 * n)
        end

        Counter.flush(buffer)
      end)

      assert_receive {:dead, [{:key, 31, 3}], :down}
      assert Counter.fetch(buffer, :key) == :error
      assert received_batches() == [[{:key, 1, 1}], [{:key, 11, 2}], [{:key, 31, 3}]]
    end

    test "may name the entries that have failed, as they were given" do
      buffer = start_with_outcomes(processor: returning([{:error, :some, [{:c, 3, 1}, {:a, 1, 1}]}, :ok]))

      Counter.add_all(buffer, a: 1, b: 2, c: 3)
      assert quietly(fn -> Counter.flush(buffer) end) == {:error, {:failed, 2}}
      assert Enum.sort(received_entries()) == [{:a, 1, 1}, {:b, 2, 1}, {:c, 3, 1}]
      assert Counter.flush(buffer) == :ok
      assert Enum.sort(received_entries()) == [{:a, 1, 1}, {:c, 3, 1}]

      for bad <- [[{:a, 1}], [{:a, 1, 0, 0}], [:a], [{:z, 1, 1}], [{:a, 1, 1} | :b]] do
        buffer = start_with_outcomes(processor: returning([{:error, :some, bad}]))
        Counter.add_all(buffer, a: 1, b: 2)
        assert quietly(fn -> Counter.flush(buffer) end) == {:error, {:failed, 2}}
      end
    end

    test "is not added back where it was deleted" do
      buffer = start_with_outcomes(processor: asking_processor())
      Counter.add_all(buffer, gone: 1, kept: 2)
      flush_that_fails(buffer, [{:gone, 1, 1}, {:kept, 2, 1}], fn -> Counter.delete(buffer, :gone) end)
      flush_that_succeeds(buffer, [{:kept, 2, 1}])
      assert %{in_flight: 0, size: 0, totals: %{superseded: 1, processed: 1}} = Counter.info(buffer)
    end

    test "of a task that was killed is added back" do
      buffer = start_with_outcomes(processor: asking_processor(), retry_backoff_ms: {0, 0})
      Counter.add(buffer, :key, 1)
      Counter.flush(buffer, async: true)
      assert_receive {:asked, pid, [{:key, 1, 1}]}
      Counter.add(buffer, :key, 2)

      quietly(fn ->
        Process.exit(pid, :kill)
        assert_receive {:asked, again, [{:key, 3, 2}]}
        send(again, :return)
        assert Counter.flush(buffer) == :ok
      end)
    end

    test "is lost without :max_attempts, and counted as failed" do
      buffer = start_counter(partitions: 1, processor: fn _batch -> raise "away" end)
      Counter.add(buffer, :key, 2)
      quietly(fn -> flush(buffer) end)
      assert %{size: 0, totals: %{failed: 1, processed: 1}} = Counter.info(buffer)
    end
  end

  describe "a full counter" do
    test "adds to a key that waits, and refuses another" do
      buffer =
        start_counter(
          partitions: 1,
          max_size: 2,
          full_timeout_ms: 0,
          processor: asking_processor(),
          max_attempts: 3
        )

      Counter.add_all(buffer, a: 1, b: 1)
      assert Counter.add(buffer, :a, 5) == :ok
      assert Counter.add(buffer, :a, 5, count: 2) == :ok
      assert_raise FullError, fn -> Counter.add(buffer, :c) end
      assert_raise FullError, fn -> Counter.add(buffer, :c, 1, count: 2) end
      assert_raise FullError, fn -> Counter.add_all(buffer, c: 1) end
      assert_receive {:asked, pid, [_, _]}
      send(pid, :return)
    end

    test "lets an addition with a count wait for room, drops it, or refuses it" do
      options = [partitions: 1, max_size: 1, full_timeout_ms: 0]
      dropping = start_counter([when_full: :drop_newest] ++ options)
      Counter.add(dropping, :a)
      assert Counter.add(dropping, :b, 1, count: 5) == :ok
      assert %{size: 1, totals: %{dropped: 1}} = Counter.info(dropping)
      refusing = start_counter([when_full: :error] ++ options)
      Counter.add(refusing, :a)
      assert Counter.add(refusing, :b, 1, count: 5, partition_key: 1) == {:error, :full}
      waiting = start_counter(Keyword.put(options, :full_timeout_ms, 60_000))
      Counter.pause(waiting)
      Counter.add(waiting, :a)
      writer = Task.async(fn -> Counter.add(waiting, :b, 10, count: 5) end)
      await_writer(waiting)
      Counter.resume(waiting)
      assert Task.await(writer) == :ok
      assert Counter.flush(waiting) == :ok
      assert {:b, 10, 5} in received_entries()
    end

    test "has room again for what was added back to another entry" do
      buffer =
        start_with_outcomes(max_size: 2, when_full: :error, full_timeout_ms: 0, processor: asking_processor())

      Counter.add(buffer, :a, 1)

      flush_that_fails(buffer, [{:a, 1, 1}], fn ->
        assert Counter.add(buffer, :a, 2) == :ok
        assert Counter.add(buffer, :b, 1) == {:error, :full}
      end)

      assert Counter.add(buffer, :b, 1) == :ok
      flush_that_succeeds(buffer, [{:a, 3, 2}, {:b, 1, 1}])
    end
  end

  describe "with processing_batch_size: :table" do
    test "the table has records with sum and count" do
      test = self()

      processor = fn table ->
        send(test, {:table, :ets.info(table, :type), Enum.sort(:ets.tab2list(table))})
      end

      buffer = start_counter(partitions: 1, processing_batch_size: :table, processor: processor)
      Counter.add_all(buffer, a: 1, a: 2, b: @max, b: @max)
      flush(buffer)
      assert_receive {:table, :set, [{:entry, :a, 3, 0, 2}, {:entry, :b, sum, 0, 2}]}
      assert sum == 2 * @max
    end
  end

  describe "what waits" do
    test "outlives the supervision tree, and another partition count" do
      options = buffer_options(partitions: 4, module: Counter)
      {module, options} = Keyword.pop(options, :module)
      Process.flag(:trap_exit, true)
      {:ok, _pid} = module.start_link(options)
      name = options[:name]
      Counter.add_all(name, for(n <- 1..1_000, do: {n, n}))
      kill_tree(name)
      {:ok, _pid} = module.start_link(Keyword.put(options, :partitions, 3))
      Counter.add_all(name, for(n <- 1..1_000, do: {n, 1}))
      Counter.stop(name)
      entries = received_entries()
      assert Enum.sum(for {_key, sum, _count} <- entries, do: sum) == div(1_000 * 1_001, 2) + 1_000
      assert Enum.sum(for {_key, _sum, count} <- entries, do: count) == 2_000
    end

    test "is not seen by a buffer of another kind with the same name" do
      options = buffer_options()
      {:ok, _pid} = Counter.start_link(options)
      Counter.add(options[:name], :key, 5)
      Process.flag(:trap_exit, true)
      kill_tree(options[:name])
      {:ok, _pid} = Buffer.start_link(options)
      assert {Buffer.size(options[:name]), Buffer.get(options[:name], :key)} == {0, nil}
      Buffer.stop(options[:name])
      {:ok, _pid} = Counter.start_link(options)
      assert Counter.get(options[:name], :key) == 5
      Counter.stop(options[:name])
      assert received_entries() == [{:key, 5, 1}]
    end
  end
end
