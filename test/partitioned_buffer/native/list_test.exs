defmodule PartitionedBuffer.Native.ListTest do
  # Lists: the check of their elements, what a call writes, and what it leaves for the next one.
  use PartitionedBuffer.NativeCase, async: true

  import Bitwise

  defp fits?(:pairs, term), do: list_of?(term, &match?({_key, _value}, &1))

  defp fits?(:versioned, term),
    do: list_of?(term, &match?({_key, _value, version} when is_integer(version), &1))

  defp fits?(:list, term), do: list_of?(term, fn _item -> true end)

  defp list_of?([head | tail], fits?), do: fits?.(head) and list_of?(tail, fits?)
  defp list_of?(tail, _fits?), do: tail == []

  defp lists do
    [[], [1], [nil], [[]], ~c"name", [:name], Enum.to_list(1..10_000)] ++
      [[1 | 2], [{1, 1} | {2, 2}], [{1, 1, 1} | {2, 2, 2}], [{1, 1} | %{}], [[{1, 1}]]] ++
      [[{1, 1}, 2], [{1, 1}, {2, 2, 2}], [{1, 1, 1}, {2, 2}], [{1}], [{}], [{1, 1, 1, 1}], [[1, 1], [2, 2]]] ++
      for(version <- [1.0, :version, nil, "1", [1], {1}], do: [{1, 1, version}])
  end

  # What is invalid about a list.
  defp invalid(kind, [head | tail]),
    do: if(fits?(kind, [head]), do: invalid(kind, tail), else: {:invalid, head})

  defp invalid(_kind, tail), do: {:improper, tail}

  defp check(shape, list) do
    with {:more, rest} <- Native.check(shape, list), do: check(shape, rest)
  end

  describe "check/2" do
    test "finds what is invalid in a list of any length" do
      long = Enum.map(1..200_000, &{&1, &1})

      for {shape, kind} <- [pair: :pairs, versioned: :versioned, item: :list],
          list <- lists() ++ [long, long ++ [:bad], long ++ :tail] do
        assert check(shape, list) == if(fits?(kind, list), do: :ok, else: invalid(kind, list))
      end
    end
  end

  describe "a list" do
    test "is not written if it is long and its caller has not checked it" do
      {buffer, flush} = opened()
      before = held(buffer, flush)
      assert Native.put_all(buffer, nil, Enum.map(1..200_000, &{&1, &1}), false) == :long
      assert held(buffer, flush) == before
    end

    test "is not written if it is unchecked and an element does not fit" do
      {buffer, flush} = opened()
      before = held(buffer, flush)
      good = Enum.map(1..1_000, &{&1, &1})
      versioned = Enum.map(1..1_000, &{&1, &1, 1})

      for list <- lists() ++ [good ++ [:bad], good ++ :tail, [:bad | good]], not fits?(:pairs, list) do
        assert Native.put_all(buffer, nil, list, false) == invalid(:pairs, list)
        assert held(buffer, flush) == before
      end

      for list <- lists() ++ [good ++ :tail], not fits?(:list, list) do
        assert Native.push_all(queue(buffer), nil, list, false) == invalid(:list, list)
        assert held(buffer, flush) == before
      end

      for list <- lists() ++ [versioned ++ good, versioned ++ :tail], not fits?(:versioned, list) do
        assert Native.put_all_newer(buffer, nil, list, false) == invalid(:versioned, list)
        assert held(buffer, flush) == before
      end
    end

    test "is refused before it is written, whatever its caller has checked" do
      {buffer, flush} = opened()
      before = held(buffer, flush)

      reservations =
        for name <- [buffer, queue(buffer), counter(buffer)], do: Native.reserve(name, 100, false)

      reserved = held(buffer, flush)

      for list <- [[{1, 1}, :bad, {2, 2}], [{1, 1}, {1}, {2, 2}], [{1, 1} | {2, 2}], [{1, 1}, {2, :two} | 3]] do
        [of_map, of_queue, of_counter] = reservations
        newer = fn tail -> [{1, 1, 1} | tail] end

        for {map_checked, queue_checked, counter_checked} <- [
              {true, true, true},
              {of_map, of_queue, of_counter}
            ] do
          assert call(:put_all, [buffer, nil, list, map_checked]) == :badarg
          assert call(:put_all_newer, [buffer, nil, newer.(list), map_checked]) == :badarg
          assert call(:add_all, [counter(buffer), nil, list, counter_checked]) == :badarg
          assert call(:push_all, [queue(buffer), nil, [1, 2 | 3], queue_checked]) == :badarg
        end
      end

      assert held(buffer, flush) == reserved
      Enum.each(reservations, &Native.release/1)
      assert held(buffer, flush) == before
    end

    test "is written up to the chunk of a bad element if it is checked" do
      for {nif, kind, element, bad} <- [
            {:put_all, :map, &{&1, 1}, :bad},
            {:put_all_newer, :map, &{&1, 1, 1}, {1, 1}},
            {:add_all, :counter, &{&1, 1}, {1, 1 <<< 63}}
          ],
          tail <- [[bad], bad],
          length <- [2_047, 2_048, 5_000] do
        buffer = unique_name()
        Native.open(buffer, kind, 1, false, true, :any, {:infinity, :infinity})
        list = Enum.map(1..length, element)
        assert {:badarg, left} = write(nif, buffer, list ++ tail)
        size = Native.size(buffer)
        assert_left(left, list, tail, buffer)
        assert size > length - 2_048
      end
    end

    test "comes back in order, without written items, if a partition is draining" do
      buffer = unique_name()
      Native.open(queue(buffer), :queue, 3, false, true, :any, {:infinity, :infinity})
      Native.drain(run(queue(buffer)), 1)
      in_draining = &(:erlang.phash2(:erlang.phash2(&1), 3) == 1)

      for size <- [10, 100], checked <- [false, true] do
        items = Enum.to_list(1..size)
        assert {:refused, rest} = Native.push_all(queue(buffer), nil, items, checked)
        written = items -- rest
        assert rest == Enum.sort(rest)
        assert Enum.filter(items, in_draining) -- rest == []
        assert Native.push_all(queue(buffer), {:processor, nil}, rest, true) == :ok

        flushed =
          for n <- 0..2, {:fresh, flush} <- [Native.flush(run(queue(buffer)), n)] do
            {items, _length, true} = Native.read(flush, 0, size, false)
            assert Native.claim(flush)
            assert items == Enum.sort(items)
            items
          end

        assert Enum.sort(Enum.concat(flushed)) == items
        assert Enum.filter(written, in_draining) == []
      end
    end

    test "is written by calls with few large entries beyond their time" do
      {buffer, _batch} = opened()
      large = Enum.to_list(1..100_000)
      entries = Enum.map(1..500, &{&1, &1}) ++ Enum.map(501..550, &{&1, large})

      written = entries |> rests(&Native.put_all(buffer, nil, &1, true)) |> Enum.map(&length/1)
      assert longest_step_behind(500, Enum.map(written, &(550 - &1))) <= 8

      # The earlier flush comes first.
      assert {:rest, first} = Native.flush(run(buffer), 0)
      assert {_flushed, 1, true} = Native.read(first, 0, 10, false)
      assert Native.claim(first)
      {:fresh, flush} = Native.flush(run(buffer), 0)

      read = Enum.map(reads(flush, 0), fn read -> Enum.count(read, &is_list(elem(&1, 1))) end)
      assert Enum.sum(read) == 50
      assert Enum.max(read) <= 32
    end

    test "is written by calls that hash no more large keys than time allows" do
      {buffer, _batch} = opened()
      large = :binary.copy("x", 100_000)
      newer = for n <- 1..1_000, do: {<<n::32, large::binary>>, n, 1}
      pairs = for {key, value, _version} <- newer, do: {key, value}

      for {nif, list} <- [put_all: pairs, put_all_newer: newer], checked <- [false, true] do
        times =
          for _ <- 1..10 do
            {microseconds, {:more, _rest}} = :timer.tc(Native, nif, [buffer, nil, list, checked])
            microseconds
          end

        # The shortest call was not interrupted. To hash all keys would take some 50 ms.
        assert Enum.min(times) < 5_000
      end
    end

    test "is written by calls within a millisecond though each value is nearly large" do
      value = for n <- 1..60, do: {n, n, {n, n, {n, n}}, [n]}
      few = for key <- 1..600, do: {key, value}
      behind = for(key <- 1..2_000, do: {-key, key}) ++ few

      for list <- [few, behind] do
        # On a busy machine most buffers have a call that is interrupted, and none may be after a few.
        assert Enum.any?(1..300, fn _buffer ->
                 buffer = open(:map, 1)
                 list |> times(&Native.put_all(buffer, nil, &1, true)) |> Enum.max() < 1_000
               end)
      end
    end

    test "write the rest of a short list in its order once all room is reserved" do
      for {kind, operation, list, written} <- [
            {:map, :put_all, for(n <- 1..9, do: {rem(n, 7), n}), for(n <- 3..9, do: {rem(n, 7), n, 0, 0})},
            {:queue, :push_all, Enum.to_list(1..9), Enum.to_list(1..9)},
            {:counter, :add_all, for(n <- 1..9, do: {rem(n, 7), n}),
             for(
               n <- 0..6,
               do: {n, Enum.sum(Enum.filter(1..9, &(rem(&1, 7) == n))), if(n in 1..2, do: 2, else: 1)}
             )}
          ] do
        buffer = unique_name()
        Native.open(buffer, kind, 1, false, true, :any, {3, :infinity})
        assert apply(Native, operation, [buffer, nil, list, true]) == :ok
        assert {:fresh, flush} = Native.flush(run(buffer), 0)
        assert {entries, _length, true} = Native.read(flush, 0, 100, false)
        assert if(kind == :queue, do: entries, else: Enum.sort(entries)) == Enum.sort(written)
      end
    end
  end

  # Lengths around the borders of steps: the first has 16 elements, the others 128. Without a check
  # by the caller, a list has 2,048 elements behind the first step at most.
  @lengths [0, 1, 2, 15, 16, 17, 18, 143, 144, 145, 271, 272, 273, 2_047, 2_048, 2_063, 2_064]

  # The NIFs, and an element for each from a key and a number.
  defp nifs do
    [
      put_all: {:map, &{&1, &2}},
      put_all_newer: {:map, &{&1, &2, &2}},
      add_all: {:counter, &{&1, &2}},
      push_all: {:queue, &{&1, &2}}
    ]
  end

  defp open(kind, partition_count, max_size \\ :infinity) do
    buffer = unique_name()
    Native.open(buffer, kind, partition_count, false, true, :any, {max_size, :infinity})
    buffer
  end

  # The elements of the list that are not in the buffer are left, in their order and before the tail. A
  # call that is interrupted in a step leaves some that come before written ones.
  defp assert_left(left, list, tail, buffer) do
    written = for entries <- all(buffer, 1), entry <- entries, into: MapSet.new(), do: elem(entry, 0)
    assert left == Enum.reject(list, &(elem(&1, 0) in written)) ++ tail
  end

  # The entries of all partitions, in the order of each.
  defp all(buffer, partition_count) do
    for n <- 0..(partition_count - 1), {:fresh, flush} <- [Native.flush(run(buffer), n)] do
      read = Enum.concat(reads(flush, 0))
      assert Native.claim(flush)
      read
    end
  end

  # The entries that a list of keys and numbers leaves, one for each key.
  defp expected(nif, pairs) do
    for {key, numbers} <- Enum.group_by(pairs, &elem(&1, 0), &elem(&1, 1)) do
      count = length(numbers)

      case nif do
        :put_all -> {key, List.last(numbers), 0, 0}
        :put_all_newer -> {key, List.last(numbers), List.last(numbers), count - 1}
        :add_all -> {key, Enum.sum(numbers), count}
      end
    end
  end

  defp write_all(nif, buffer, list, checked) do
    case apply(Native, nif, [buffer, nil, list, checked]) do
      {:more, rest} -> write_all(nif, buffer, rest, true)
      result -> result
    end
  end

  describe "a list at the borders of steps" do
    test "is written as a whole, each key in its order" do
      for {nif, {kind, element}} <- nifs(), partition_count <- [1, 3, 100], size <- @lengths do
        # Every key comes twice or three times, in the same step and in others.
        pairs = for n <- 1..size//1, do: {rem(n * 7, div(size, 2) + 1), n}
        buffer = open(kind, partition_count)

        for checked <- [false, true] do
          list = for {key, n} <- pairs, do: element.(key, n)
          assert {nif, size, write_all(nif, buffer, list, checked)} == {nif, size, :ok}
          entries = all(buffer, partition_count)

          if kind == :queue do
            for items <- entries, do: assert(items == Enum.sort_by(items, &elem(&1, 1)))
            assert Enum.sort(Enum.concat(entries)) == Enum.sort(pairs)
          else
            assert Enum.sort(Enum.concat(entries)) == Enum.sort(expected(nif, pairs))
          end
        end
      end
    end

    test "is not written if an element behind them is invalid" do
      for {nif, {kind, element}} <- nifs(), size <- Enum.drop(@lengths, -1) do
        buffer = open(kind, 2)
        list = for n <- 1..size//1, do: element.(n, n)
        rest = for n <- 1..20, do: element.(n, n)

        if kind != :queue do
          assert call(nif, [buffer, nil, list ++ [:bad | rest], false]) == {:invalid, :bad}
        end

        if size > 0,
          do: assert(call(nif, [buffer, nil, list ++ :tail, false]) == {:improper, :tail})

        assert call(nif, [buffer, nil, :tail, false]) == {:improper, :tail}
        assert Native.size(buffer) == 0
      end
    end

    test "is long behind 2,048 elements that the first step does not have" do
      for {nif, {kind, element}} <- nifs() do
        buffer = open(kind, 1)
        list = for n <- 1..2_065, do: element.(n, n)
        assert call(nif, [buffer, nil, list, false]) == :long
        assert call(nif, [buffer, nil, list ++ :tail, false]) == :long
        assert Native.size(buffer) == 0
      end
    end

    test "is written up to the step of a bad element if it is checked" do
      for {nif, {kind, element}} <- nifs(), size <- @lengths do
        buffer = open(kind, 1)
        list = for n <- 1..size//1, do: element.(n, n)
        assert {:badarg, left} = write(nif, buffer, list ++ :tail)
        written = Native.size(buffer)
        assert_left(left, list, :tail, buffer)
        assert written > size - 128
      end
    end

    test "uses the room of its reservation, and no more" do
      for {nif, {kind, element}} <- nifs(), size <- @lengths do
        buffer = open(kind, 2, 5_000)
        # Half of the keys are new.
        list = for n <- 1..size//1, do: element.(rem(n, div(size, 2) + 1), n)
        assert call(nif, [buffer, nil, list, false]) == :bounded
        reservation = Native.reserve(buffer, size, false)
        assert write_reserved(nif, buffer, list, reservation) == :ok
        held = Native.size(buffer)
        assert held == if(kind == :queue, do: size, else: length(Enum.uniq_by(list, &elem(&1, 0))))
        assert elem(Native.bound(buffer), 0) == size
        Native.release(reservation)
        assert elem(Native.bound(buffer), 0) == held
      end
    end

    test "goes on behind a large element that was taken for a small one" do
      large = Enum.to_list(1..20_000)

      for {nif, {kind, element}} <- nifs(),
          kind != :counter,
          size <- [1, 16, 17, 145, 300],
          partitions <- [1, 3] do
        buffer = open(kind, partitions)
        list = for n <- 1..size, do: element.(n, if(nif == :put_all_newer, do: n, else: large))
        list = if nif == :put_all_newer, do: Enum.map(list, &put_elem(&1, 1, large)), else: list
        assert write_all(nif, buffer, list, false) == :ok
        keys = for entry <- Enum.concat(all(buffer, partitions)), do: elem(entry, 0)
        assert Enum.sort(keys) == Enum.to_list(1..size)
      end
    end
  end

  defp write_reserved(nif, buffer, list, reservation) do
    with {:more, rest} <- apply(Native, nif, [buffer, nil, list, reservation]),
         do: write_reserved(nif, buffer, rest, reservation)
  end

  # Writes until a call raises, and returns the list of that call.
  defp write(nif, buffer, list) do
    case call(nif, [buffer, nil, list, true]) do
      {:more, rest} -> write(nif, buffer, rest)
      result -> {result, list}
    end
  end

  # The rests that the calls of `write` leave, after the whole list.
  defp rests(list, write) do
    case write.(list) do
      {:more, rest} -> [list | rests(rest, write)]
      :ok -> [list, []]
    end
  end

  # The microseconds of each call of `write`.
  defp times(list, write) do
    case :timer.tc(fn -> write.(list) end) do
      {time, {:more, rest}} -> [time | times(rest, write)]
      {time, :ok} -> [time]
    end
  end

  # The entries that each call reads of one batch.
  defp reads(flush, length) do
    case Native.read(flush, length, 10_000, false) do
      {read, _length, true} -> [read]
      {read, length, false} -> [read | reads(flush, length)]
    end
  end

  # The most entries behind this number that one step has written.
  defp longest_step_behind(number, positions) do
    positions
    |> Enum.chunk_every(2, 1, :discard)
    |> Enum.map(fn [from, to] -> max(to, number) - max(from, number) end)
    |> Enum.max()
  end
end
