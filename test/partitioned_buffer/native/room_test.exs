defmodule PartitionedBuffer.Native.RoomTest do
  # Reservations: they belong to one buffer, and give no more room than they have.
  use PartitionedBuffer.NativeCase, async: true

  @lists [
    put_all: {:map, [{:a, 1}, {:b, 2}]},
    put_all_newer: {:map, [{:a, 1, 1}, {:b, 2, 2}]},
    push_all: {:queue, [:a, :b]},
    add_all: {:counter, [{:a, 1}, {:b, 2}]}
  ]

  defp open(kind, max_size \\ 10) do
    buffer = unique_name()
    Native.open(buffer, kind, 2, false, true, :any, {max_size, :infinity})
    buffer
  end

  defp held(buffer), do: elem(Native.bound(buffer), 0)

  # The items of both partitions.
  defp waiting(buffer) do
    for number <- 0..1,
        {:fresh, flush} <- [Native.flush(run(buffer), number)],
        item <- read(flush, 0),
        do: item
  end

  defp read(flush, length) do
    case Native.read(flush, length, 100_000, false) do
      {items, _length, true} -> items
      {items, length, false} -> items ++ read(flush, length)
    end
  end

  describe "a reservation" do
    test "of another buffer is refused, changes nothing, and stays usable" do
      for {nif, {kind, list}} <- @lists, max_size <- [10, :infinity] do
        [buffer, other] = [open(kind, max_size), open(kind)]
        reservation = Native.reserve(other, 2, false)
        name = unique_name()

        for {target, to} <- [{buffer, nil}, {buffer, {:processor, nil}}, {buffer, {0, 2}}, {name, nil}],
            list <- [list, [], tl(list)],
            do: assert(call(nif, [target, to, list, reservation]) == :badarg)

        assert {Native.size(buffer), held(buffer)} == {0, 0}
        assert {Native.size(other), held(other)} == {0, 2}
        assert call(nif, [other, nil, list, reservation]) == :ok
        assert Native.release(reservation) == :ok
        assert {Native.size(other), held(other)} == {2, 2}
      end
    end

    test "of another kind of the same name is refused" do
      name = unique_name()
      Native.open(name, :map, 1, false, true, :any, {10, :infinity})
      reservation = Native.reserve(name, 2, false)
      Native.open(name, :queue, 1, false, true, :any, {10, :infinity})
      assert call(:push_all, [name, nil, [:a, :b], reservation]) == :badarg
      assert {Native.size(name), held(name)} == {0, 0}
      # The buffer takes no lists of these kinds.
      assert call(:put_all, [name, nil, [a: 1], reservation]) == :not_running
      assert call(:add_all, [name, nil, [a: 1], reservation]) == :not_running
    end

    test "is refused for more entries than it has room for, and stays usable" do
      for {nif, {kind, list}} <- @lists do
        buffer = open(kind)
        reservation = Native.reserve(buffer, 1, false)
        assert call(nif, [buffer, nil, list, reservation]) == :badarg
        assert {Native.size(buffer), held(buffer)} == {0, 1}
        assert call(nif, [buffer, nil, tl(list), reservation]) == :ok
        assert call(nif, [buffer, nil, [hd(list)], reservation]) == :badarg
        assert Native.release(reservation) == :ok
        assert {Native.size(buffer), held(buffer)} == {1, 1}
      end
    end

    test "has room for the first part of a long list, and no more" do
      items = Enum.to_list(1..10_000)

      for room <- [1, 2_047, 2_048, 2_049, 5_000, 9_999] do
        buffer = open(:queue, 20_000)
        reservation = Native.reserve(buffer, room, false)
        assert write(buffer, items, reservation) == :badarg
        size = Native.size(buffer)
        # Chunks are written as a whole, or not at all.
        assert size <= room and size > room - 2_048
        Native.release(reservation)
        assert held(buffer) == size
        assert Enum.sort(waiting(buffer)) == Enum.take(items, size)
      end
    end

    test "is used no further than it goes by several processes" do
      for _round <- 1..20 do
        buffer = open(:queue, 100_000)
        reservation = Native.reserve(buffer, 4_000, false)

        tasks = for _ <- 1..4, do: Task.async(fn -> write(buffer, Enum.to_list(1..2_000), reservation) end)

        results = Task.await_many(tasks)
        assert Enum.all?(results, &(&1 in [:ok, :badarg]))
        Native.release(reservation)
        size = Native.size(buffer)
        assert size <= 4_000
        assert held(buffer) == size
      end
    end

    test "gives nothing twice: it is empty once it is released" do
      buffer = open(:map)
      reservation = Native.reserve(buffer, 2, false)
      for _ <- 1..3, do: assert(Native.release(reservation) == :ok)
      assert held(buffer) == 0
      assert call(:put_all, [buffer, nil, [a: 1], reservation]) == :badarg
      assert call(:put_all, [buffer, nil, [], reservation]) == :ok
      assert {Native.size(buffer), held(buffer)} == {0, 0}
    end

    test "of a run that is over writes to the next run of the same kind" do
      buffer = unique_name()
      {owner, _run} = open_elsewhere(buffer, :queue, 1)
      reservation = Native.reserve(buffer, 2, false)
      kill_owner(buffer, owner)
      assert call(:push_all, [buffer, nil, [:a, :b], reservation]) == :not_running
      Native.open(buffer, :queue, 2, false, true, :any, {10, :infinity})
      assert call(:push_all, [buffer, nil, [:a, :b], reservation]) == :ok
      Native.release(reservation)
      assert {Native.size(buffer), held(buffer)} == {2, 2}
    end
  end

  describe "reserve/3" do
    test "takes no count beyond any memory, and counts right up to it" do
      for max_size <- [10, :infinity] do
        buffer = open(:map, max_size)
        largest = Integer.pow(2, 48)

        for count <- [-1, largest + 1, Integer.pow(2, 63), Integer.pow(2, 64) - 1, Integer.pow(2, 200), 1.0],
            waits? <- [true, false],
            do: assert(call(:reserve, [buffer, count, waits?]) == :badarg)

        assert held(buffer) == 0
        has_room? = max_size == :infinity
        reservation = Native.reserve(buffer, largest, false)
        assert is_reference(reservation) == has_room?
        if has_room?, do: Native.release(reservation)
        assert held(buffer) == 0
        assert Native.put_all(buffer, nil, [a: 1], true) == :ok
      end
    end
  end

  defp write(buffer, items, reservation) do
    case call(:push_all, [buffer, nil, items, reservation]) do
      {:more, rest} -> write(buffer, rest, reservation)
      result -> result
    end
  end

  describe "set_bound/2" do
    test "of several processes at once leaves one bound for all partitions" do
      for kind <- [:queue, :map], _round <- 1..20 do
        buffer = unique_name()
        Native.open(buffer, kind, 64, false, true, :any, {1_000, :infinity})

        put = fn n ->
          if kind == :queue,
            do: Native.push(buffer, nil, n),
            else: Native.put(buffer, nil, n, n)
        end

        writer = Task.async(fn -> Enum.each(1..500, put) end)

        changes =
          for sizes <- [[:infinity, 2_000], [3_000, :infinity], [:infinity, 4_000]] do
            Task.async(fn ->
              for size <- sizes ++ sizes, do: :ok = Native.set_bound(run(buffer), {size, :infinity})
            end)
          end

        Task.await_many([writer | changes])
        assert Native.size(buffer) == 500
        assert Native.set_bound(run(buffer), {600, :infinity}) == :ok
        assert held(buffer) == 500
        results = for n <- 1_001..1_200, do: put.(n)
        assert Enum.count(results, &(&1 == :ok)) == 100
        assert Native.size(buffer) == held(buffer)
      end
    end
  end
end
