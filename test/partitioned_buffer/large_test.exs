defmodule PartitionedBuffer.LargeTest do
  # Large terms are copied without a lock, charged to the caller, and freed one by one.
  use PartitionedBuffer.Case, async: true

  import Bitwise

  alias PartitionedBuffer.{Counter, Queue}

  # Terms that are large at once, that have a large part, and a small one.
  @terms [
    list: Enum.to_list(1..50_000),
    list_of_tuples: for(n <- 1..10_000, do: {n, n}),
    tuple: List.to_tuple(Enum.to_list(1..50_000)),
    map: Map.new(1..10_000, &{&1, &1}),
    nested: %{id: 1, rows: [1, 2, {:rows, Enum.to_list(1..50_000)}]},
    small: %{id: 1}
  ]

  # Other tests let the library look for large terms or not, so only one of some calls has to be as expected.
  defp most_reductions(function) do
    Enum.max(
      for _ <- 1..5 do
        {:reductions, before} = Process.info(self(), :reductions)
        function.()
        {:reductions, now} = Process.info(self(), :reductions)
        now - before
      end
    )
  end

  describe "a large term" do
    test "comes back exactly as key, value or item, in a list, with any version" do
      buffer = start_buffer(processing_batch_size: 100)
      queue = start_buffer(module: Queue, partitions: 1)
      terms = Keyword.values(@terms)
      big = Integer.pow(2, 70)

      for round <- 1..3 do
        for {term, number} <- Enum.with_index(terms) do
          Buffer.put(buffer, {:put, number}, {round, term})
          Buffer.put(buffer, term, round)
          Buffer.put_newer(buffer, {:newer, number}, {round, term}, round)
          Buffer.put_newer(buffer, {:newest, number}, term, big + round)
          Queue.push(queue, {round, term})
        end

        Buffer.put_all(
          buffer,
          for({term, number} <- Enum.with_index(terms), do: {{:all, number}, [round, term]})
        )

        for {term, number} <- Enum.with_index(terms) do
          assert Buffer.get(buffer, {:put, number}) == {round, term}
          assert Buffer.get(buffer, term) == round
          assert Buffer.get(buffer, {:newer, number}) == {round, term}
          assert Buffer.get(buffer, {:newest, number}) == term
          assert Buffer.get(buffer, {:all, number}) == [round, term]
        end
      end

      flush(buffer)
      flush(queue)
      {entries, items} = Enum.split_with(received_entries(), &match?({_, _, _, _}, &1))

      newest =
        for {{:newest, number}, term, version, updates} <- entries, do: {number, term, version, updates}

      assert Enum.sort(newest) == for({term, n} <- Enum.with_index(terms), do: {n, term, big + 3, 2})
      assert length(entries) == 5 * length(terms)
      assert items == for(round <- 1..3, term <- terms, do: {round, term})
    end

    test "is charged to the process that writes or reads it, unlike a small one" do
      buffer = start_buffer()
      list = Enum.to_list(1..100_000)

      for term <- [list, %{list: list}, {1, %{list: [1, 2, list]}}] do
        assert most_reductions(fn -> Buffer.put(buffer, :key, term) end) > 1_000

        assert most_reductions(fn ->
                 Buffer.put_newer(buffer, :key, term, System.unique_integer([:monotonic]))
               end) > 1_000

        Buffer.put(buffer, :key, term)
        assert most_reductions(fn -> Buffer.get(buffer, :key) end) > 1_000
      end

      assert most_reductions(fn -> Buffer.put(buffer, :key, {1}) end) < 1_000
    end

    test "is charged as a key by each operation, whether the key is there or not" do
      [map, counter, queue] = for module <- [Buffer, Counter, Queue], do: start_buffer(module: module)

      for {name, key} <- [
            binary: :binary.copy("k", 1_000_000),
            list: Enum.to_list(1..50_000),
            map: Map.new(1..20_000, &{&1, &1}),
            integer: 1 <<< 4_000_000,
            hidden: {1, 2, 3, 4, 5, [:a, %{b: {:c, :binary.copy("k", 1_000_000)}}]}
          ],
          {operation, call} <- [
            put: fn -> Buffer.put(map, key, 1) end,
            put_new: fn -> Buffer.put_new(map, key, 1) end,
            put_newer: fn -> Buffer.put_newer(map, key, 1, System.unique_integer([:monotonic])) end,
            get: fn -> Buffer.get(map, key) end,
            delete: fn -> Buffer.delete(map, key) end,
            get_absent: fn -> Buffer.get(map, key) end,
            put_all: fn -> Buffer.put_all(map, [{key, 1}]) end,
            put_all_newer: fn -> Buffer.put_all_newer(map, [{key, 1, 1}]) end,
            add: fn -> Counter.add(counter, key, 1) end,
            sum: fn -> Counter.get(counter, key) end,
            add_all: fn -> Counter.add_all(counter, [{key, 1}]) end,
            delete_sum: fn -> Counter.delete(counter, key) end,
            push: fn -> Queue.push(queue, key) end
          ] do
        assert {name, operation, most_reductions(call)} > {name, operation, 500}
      end
    end

    test "is not charged as a key unless it is large" do
      buffer = start_buffer()

      for key <- [
            1,
            :key,
            "key",
            {:key, "key", 1.0},
            [1, 2],
            %{key: 1},
            self(),
            make_ref(),
            Integer.pow(2, 70)
          ] do
        assert most_reductions(fn -> for _ <- 1..10, do: Buffer.put(buffer, key, 1) end) < 1_000
      end
    end

    test "is read whole while others replace it" do
      buffer = start_buffer(partitions: 1)
      value = fn n -> %{n: n, list: List.duplicate(n, 20_000)} end
      Buffer.put(buffer, :key, value.(0))

      writers =
        for _ <- 1..2, do: Task.async(fn -> for n <- 1..300, do: Buffer.put(buffer, :key, value.(n)) end)

      reader =
        Task.async(fn ->
          for _ <- 1..300 do
            %{n: n, list: list} = Buffer.get(buffer, :key)
            list == List.duplicate(n, 20_000)
          end
        end)

      Task.await_many(writers, :infinity)
      assert reader |> Task.await(:infinity) |> Enum.all?()
    end
  end
end
