defmodule PartitionedBuffer.MapTest do
  use PartitionedBuffer.Case, async: true

  import Bitwise

  doctest PartitionedBuffer.Map
  doctest PartitionedBuffer, except: [emit_info: 1]

  setup context do
    if context.test_type == :doctest, do: start_buffer(name: :doc)
    :ok
  end

  defp terms do
    port = Port.open({:spawn_executable, "/bin/cat"}, [])

    [
      :atom,
      nil,
      0,
      -1,
      1 <<< 59,
      1 <<< 64,
      -(1 <<< 200),
      0.5,
      1.0e300,
      "",
      "binary",
      String.duplicate("x", 100_000),
      binary_part(String.duplicate("y", 1_000), 3, 500),
      <<1::3>>,
      <<5, 6, 7::5>>,
      [],
      [1, 2 | 3],
      ~c"charlist",
      {},
      {:a, {:b, [c: 1]}},
      %{},
      %{%{a: 1} => [%{b: {2}}]},
      Map.new(1..100, &{&1, {&1}}),
      self(),
      make_ref(),
      port,
      fn -> :anonymous end,
      &String.length/1,
      :_,
      :"$1",
      :"$_",
      :"$$",
      {:a, :_},
      [:"$1" | :"$_"],
      %{key: :"$1"},
      {:const, :"$1"},
      1..10,
      ~D[2026-01-01],
      :atomics.new(1, [])
    ]
  end

  describe "put/4 and get/4" do
    test "take any term as a value, which comes back exactly" do
      buffer = start_buffer()
      terms = Enum.with_index(terms())
      for {term, index} <- terms, do: Buffer.put(buffer, index, term)
      for {term, index} <- terms, do: assert(Buffer.get(buffer, index) === term)
      flush(buffer)
      assert Enum.sort(received_entries()) === Enum.sort(for {term, index} <- terms, do: {index, term, 0, 0})
    end

    test "keep integers of any size after their writer is gone" do
      buffer = start_buffer()
      # The VM keeps most integers of 60 bits in a word, others need memory.
      edges =
        for bits <- [0, 31, 58, 59, 60, 62, 63, 64], sign <- [1, -1], step <- -1..1, do: {bits, sign, step}

      numbers = fn -> Enum.uniq(for {bits, sign, step} <- edges, do: sign * (1 <<< bits) + step) end
      writer = fn -> for number <- numbers.(), do: Buffer.put(buffer, number, number - 1) end
      writer |> Task.async() |> Task.await()
      for number <- numbers.(), do: assert(Buffer.get(buffer, number) === number - 1)
      flush(buffer)

      assert Enum.sort(received_entries()) ===
               Enum.sort(for number <- numbers.(), do: {number, number - 1, 0, 0})
    end

    test "take any term as a key to overwrite, update, delete and flush" do
      buffer = start_buffer()

      for term <- terms() do
        Buffer.put(buffer, term, :first)
        Buffer.put(buffer, term, :second)
        assert Buffer.get(buffer, term) == :second
        Buffer.put_newer(buffer, term, term, 1)
        Buffer.put_newer(buffer, term, term, 2)
        Buffer.put_newer(buffer, term, :stale, 2)
        assert Buffer.get(buffer, term) === term
        assert Buffer.size(buffer) == 1
        flush(buffer)
        assert [{^term, ^term, 2, 2}] = received_entries()
        Buffer.put(buffer, term, 1)
        Buffer.delete(buffer, term)
        assert Buffer.get(buffer, term, :gone) == :gone
        assert Buffer.size(buffer) == 0
      end
    end

    test "take 1 and 1.0 as two keys, also within other terms" do
      buffer = start_buffer(partitions: 1)
      for key <- [1, 1.0, {1}, {1.0}, [1], [1.0], %{1 => 1}, %{1.0 => 1}], do: Buffer.put(buffer, key, key)
      assert Buffer.size(buffer) == 8
      assert Buffer.get(buffer, 1.0) === 1.0
      assert Buffer.get(buffer, %{1 => 1}) === %{1 => 1}
    end

    test "tell a stored nil from a missing key" do
      buffer = start_buffer()
      Buffer.put(buffer, :key, nil)
      assert Buffer.get(buffer, :key, :default) == nil
      assert Buffer.get(buffer, :other, :default) == :default
      assert Buffer.get(buffer, :other) == nil
    end

    test "take values that look like results as values" do
      buffer = start_buffer()

      for value <- [:ok, :error, :not_running, :empty, {:ok, 1}, {:more, []}] do
        Buffer.put(buffer, value, value)
        assert Buffer.get(buffer, value, :default) === value
      end
    end
  end

  describe "put_newer/5" do
    test "writes an absent key, replaces an older version, keeps one not older" do
      buffer = start_buffer()
      Buffer.put_newer(buffer, :key, :a, 5)
      Buffer.put_newer(buffer, :key, :b, 5)
      assert Buffer.get(buffer, :key) == :a
      Buffer.put_newer(buffer, :key, :c, 6)
      Buffer.put_newer(buffer, :key, :d, -7)
      flush(buffer)
      assert received_entries() == [{:key, :c, 6, 1}]
    end

    test "compares versions as integers of any size" do
      buffer = start_buffer()

      low_to_high = [
        -(1 <<< 100),
        -(1 <<< 63) - 1,
        -(1 <<< 63),
        -1,
        0,
        1,
        (1 <<< 59) - 1,
        1 <<< 59,
        (1 <<< 63) - 1,
        1 <<< 63,
        1 <<< 100
      ]

      for {version, index} <- Enum.with_index(low_to_high) do
        Buffer.put_newer(buffer, :key, index, version)
        assert Buffer.get(buffer, :key) == index
        for older <- Enum.take(low_to_high, index + 1), do: Buffer.put_newer(buffer, :key, :stale, older)
        assert Buffer.get(buffer, :key) == index
      end

      flush(buffer)
      assert received_entries() == [{:key, 10, 1 <<< 100, 10}]
    end

    test "takes an entry of put/4 as version 0, also over a versioned one" do
      buffer = start_buffer()
      Buffer.put(buffer, :key, :plain)
      Buffer.put_newer(buffer, :key, :stale, 0)
      assert Buffer.get(buffer, :key) == :plain
      Buffer.put_newer(buffer, :key, :newer, 1)
      Buffer.put_newer(buffer, :key, :newest, 1 <<< 70)
      Buffer.put(buffer, :key, :plain_again)
      flush(buffer)
      assert received_entries() == [{:key, :plain_again, 0, 0}]
    end

    test "raises if the version is not an integer, and writes nothing" do
      buffer = start_buffer()

      for version <- [1.0, :atom, nil, "1", {1}] do
        assert_raise ArgumentError, ~r/invalid entry: #{Regex.escape(inspect({:k, :v, version}))}/, fn ->
          Buffer.put_newer(buffer, :k, :v, version)
        end
      end

      assert Buffer.size(buffer) == 0
    end
  end

  describe "put_all/3 and put_all_newer/3" do
    test "apply a list in its order" do
      buffer = start_buffer()
      Buffer.put_all(buffer, [{:a, 1}, {:b, 1}, {:a, 2}])
      assert Buffer.get(buffer, :a) == 2
      Buffer.put_all_newer(buffer, [{:c, 2, 2}, {:c, 1, 1}, {:c, 3, 3}])
      flush(buffer)
      assert Enum.sort(received_entries()) == [{:a, 2, 0, 0}, {:b, 1, 0, 0}, {:c, 3, 3, 1}]
    end

    test "take a map, an empty map and an empty list" do
      buffer = start_buffer()
      assert Buffer.put_all(buffer, %{a: 1, b: 2}) == :ok
      assert Buffer.put_all(buffer, %{}) == :ok
      assert Buffer.put_all(buffer, []) == :ok
      assert Buffer.put_all_newer(buffer, []) == :ok
      assert Buffer.size(buffer) == 2
    end

    test "write all 200,000 entries of a list or a map" do
      buffer = start_buffer(processing_batch_size: 1_000)
      Buffer.put_all(buffer, for(n <- 1..200_000, do: {rem(n, 150_000), {n}}))
      assert Buffer.size(buffer) == 150_000
      assert Buffer.get(buffer, 49_999) == {199_999}
      Buffer.put_all(buffer, Map.new(1..200_000, &{{:map, &1}, &1}))
      Buffer.put_all_newer(buffer, for(n <- 1..200_000, do: {{:newer, rem(n, 1_000)}, n, n}))
      assert Buffer.size(buffer) == 351_000
      flush(buffer)
      updates = for {{:newer, _}, _, _, updates} <- received_entries(), do: updates
      assert Enum.sum(updates) == 199_000
    end

    test "take any enumerable of their tuples" do
      buffer = start_buffer()

      for opts <- [[], [partition_key: :one]] do
        assert Buffer.put_all(buffer, MapSet.new([{1, :a}, {2, :b}]), opts) == :ok
        assert Buffer.put_all(buffer, Stream.map(3..4, &{&1, :c}), opts) == :ok
        assert Buffer.put_all(buffer, Stream.map([], & &1), opts) == :ok
        assert Buffer.put_all_newer(buffer, Stream.map(4..5, &{&1, :d, 1}), opts) == :ok
        assert Buffer.put_all_newer(buffer, MapSet.new([{5, :e, 2}]), opts) == :ok
        assert Buffer.put_all_newer(buffer, %{}, opts) == :ok

        assert for(key <- 1..6, do: Buffer.get(buffer, key, nil, opts)) ==
                 [:a, :b, :c, :d, :e, nil]
      end
    end

    test "write nothing of an enumerable that raises or has an invalid element" do
      buffer = start_buffer()
      raising = Stream.map(1..1_000, &if(&1 == 1_000, do: raise("no"), else: {&1, &1}))
      assert_raise RuntimeError, "no", fn -> Buffer.put_all(buffer, raising) end

      for {write, entries, element} <- [
            {&Buffer.put_all/2, 1..3, "1"},
            {&Buffer.put_all/2, MapSet.new([{1, 1, 1}]), "{1, 1, 1}"},
            {&Buffer.put_all_newer/2, %{a: 1}, "{:a, 1}"},
            {&Buffer.put_all_newer/2, Stream.map(1..3, &{&1, &1, nil}), "{1, 1, nil}"}
          ] do
        message = ~r/^invalid entry: #{Regex.escape(element)} for buffer #{inspect(buffer)}, expected/
        assert_raise ArgumentError, message, fn -> write.(buffer, entries) end
      end

      assert Buffer.size(buffer) == 0
    end

    test "raise on what is not enumerable, and write nothing" do
      buffer = start_buffer()

      for value <- [
            1,
            :atom,
            "binary",
            {1, 2},
            nil,
            URI.parse("/"),
            self(),
            fn -> 1 end,
            &Function.identity/1
          ],
          opts <- [[], [partition_key: 1]],
          {write, expected} <- [
            {&Buffer.put_all/3, "a map, or another enumerable of {key, value}"},
            {&Buffer.put_all_newer/3, "an enumerable of {key, value, version} with an integer version"}
          ] do
        message = "invalid entries: #{inspect(value)} for buffer #{inspect(buffer)}, expected #{expected}"
        assert_raise ArgumentError, message, fn -> write.(buffer, value, opts) end
      end

      assert Buffer.size(buffer) == 0
    end

    test "raise on an invalid last element or an improper list, write nothing" do
      buffer = start_buffer()
      good = for n <- 1..1_000, do: {n, n}
      good_newer = for n <- 1..1_000, do: {n, n, n}

      for bad <- [:atom, {1}, {1, 2, 3}, [1, 2], nil] do
        message = ~r/invalid entry: #{Regex.escape(inspect(bad))}/
        assert_raise ArgumentError, message, fn -> Buffer.put_all(buffer, good ++ [bad]) end
      end

      for bad <- [:atom, {1, 2}, {1, 2, 3.0}, {1, 2, nil}, {1, 2, 3, 4}] do
        message = ~r/invalid entry: #{Regex.escape(inspect(bad))}/
        assert_raise ArgumentError, message, fn -> Buffer.put_all_newer(buffer, good_newer ++ [bad]) end
      end

      assert_raise ArgumentError, ~r/proper list/, fn -> Buffer.put_all(buffer, good ++ {:a, 1}) end
      assert_raise ArgumentError, ~r/proper list/, fn -> Buffer.put_all_newer(buffer, good_newer ++ :tail) end
      assert Buffer.size(buffer) == 0
    end
  end

  describe "a call that no partition can take" do
    defp operations(buffer) do
      [
        fn -> Buffer.put(buffer, 1, 1) end,
        fn -> Buffer.put(buffer, 1, 1, partition_key: 1) end,
        fn -> Buffer.put_newer(buffer, 1, 1, 1) end,
        fn -> Buffer.put_newer(buffer, 1, 1, 1, partition_key: 1) end,
        fn -> Buffer.put_all(buffer, [{1, 1}]) end,
        fn -> Buffer.put_all(buffer, %{1 => 1}, partition_key: 1) end,
        fn -> Buffer.put_all(buffer, []) end,
        fn -> Buffer.put_all(buffer, [], partition_key: 1) end,
        fn -> Buffer.put_all_newer(buffer, [{1, 1, 1}]) end,
        fn -> Buffer.get(buffer, 1) end,
        fn -> Buffer.delete(buffer, 1) end,
        fn -> Buffer.size(buffer) end,
        fn -> Buffer.update_options(buffer, processing_interval_ms: 1) end,
        fn -> PartitionedBuffer.get_partition(buffer, nil, 1) end
      ]
    end

    defp assert_all_raise(operations, error, buffer, reason) do
      message = "no partitions available for buffer #{inspect(buffer)}: #{reason}"
      for operation <- operations, do: assert_raise(error, message, operation)
    end

    test "raises an ArgumentError if the buffer never started or was stopped" do
      stopped = start_buffer()
      Buffer.stop(stopped)
      without_partitions = start_buffer(partitions: 0)
      Buffer.stop(without_partitions)

      for buffer <- [unique_name(), stopped, without_partitions],
          do: assert_all_raise(operations(buffer), ArgumentError, buffer, "it is not running")
    end

    test "raises a RuntimeError if the buffer was started with 0 partitions" do
      buffer = start_buffer(partitions: 0)
      assert_all_raise(operations(buffer), RuntimeError, buffer, "it was started with 0 partitions")
    end

    test "raises an ArgumentError if the buffer is a queue" do
      queue = start_buffer(module: PartitionedBuffer.Queue)
      reason = "it is running as a queue, and this call is for a map"
      # The last operations of the list are for any buffer.
      assert_all_raise(Enum.take(operations(queue), 11), ArgumentError, queue, reason)
      assert Buffer.size(queue) == 0
    end

    test "raises an ArgumentError if it writes while the buffer is stopping" do
      buffer = start_buffer(partitions: 1, processor: asking_processor())
      Buffer.put(buffer, :key, 1)
      stop = Task.async(fn -> Buffer.stop(buffer) end)
      # The last entries are processed when writes are refused already.
      assert_receive {:asked, processor, _batch}
      assert_all_raise(Enum.take(operations(buffer), 6), ArgumentError, buffer, "it is starting or stopping")
      assert Buffer.size(buffer) == 0
      send(processor, :return)
      assert Task.await(stop) == :ok
    end
  end
end
