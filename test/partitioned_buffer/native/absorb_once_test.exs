defmodule PartitionedBuffer.Native.AbsorbOnceTest do
  # Entries of other nodes come once: the numbers of streams, bounds, stops, and incarnations.
  use PartitionedBuffer.NativeCase, async: true

  import Bitwise
  import PartitionedBuffer.Absorbing

  @calls [:absorb, :absorb_large]

  describe "a stream" do
    test "takes each number once, in ascending order" do
      run = open(:counter)
      absorb = &Native.absorb(run, [{:key, 1, 1}], &1, &2, [])
      assert [absorb.({1, 1}, 5), absorb.({1, 1}, 5), absorb.({1, 1}, 4)] == [:ok, :duplicate, :duplicate]
      assert Native.absorb_large(run, [{:key, 1, 1}], {1, 1}, 5, []) == :duplicate
      assert [absorb.({1, 1}, 9), absorb.({1, 2}, 1), absorb.({2, 1}, 1)] == [:ok, :ok, :ok]
      assert [absorb.(nil, 1), absorb.(nil, 1)] == [:ok, :ok]
      last = (1 <<< 64) - 1
      assert [absorb.({last, 0}, last), absorb.({last, 0}, last)] == [:ok, :duplicate]
      assert Native.streams(run) == [{1, 1, 9}, {1, 2, 1}, {2, 1, 1}, {last, 0, last}]
      assert entries(run) == [{:key, 7, 7}]
    end

    test "is forgotten by its first part" do
      run = open(:counter)
      absorb = &Native.absorb(run, [{:key, 1, 1}], &1, 1, [])
      for stream <- [{1, 1}, {1, 2}, {2, 1}], do: assert(absorb.(stream) == :ok)
      assert Native.absorb(run, [{:key, 1, 1}], {1, 3}, 2, []) == :ok
      assert Native.forget_streams(run, 1, 1) == :ok
      assert Native.forget_streams(run, 3, 1) == :ok
      # Later numbers are not forgotten.
      assert Native.streams(run) == [{1, 3, 2}, {2, 1, 1}]
      assert [absorb.({1, 1}), absorb.({2, 1})] == [:ok, :duplicate]
    end

    test "outlives a run, for each kind of buffer" do
      name = unique_name()
      {owner, run} = open_elsewhere(name, :counter, 1, true)
      assert Native.absorb(run, [{:key, 1, 1}], {1, 1}, 1, []) == :ok
      kill_owner(name, owner)
      {owner, run} = open_elsewhere(name, :map, 1, true)
      assert Native.streams(run) == []
      assert Native.absorb(run, [{:key, 1, 1, 0}], {1, 1}, 1, []) == :ok
      kill_owner(name, owner)
      run = open(:counter, name: name, partitions: 4)
      assert Native.streams(run) == [{1, 1, 1}]
      assert Native.absorb(run, [{:key, 1, 1}], {1, 1}, 1, []) == :duplicate
      assert entries(run) == [{:key, 1, 1}]
    end

    test "takes the entries of a number once from many calls at once" do
      run = open(:counter, partitions: 2)
      list = for n <- 1..100, do: {n, 1, 1}

      tasks =
        for _ <- 1..4 do
          Task.async(fn ->
            for number <- 1..200,
                call <- Enum.shuffle(@calls),
                do: apply(Native, call, [run, list, {1, 1}, number, []])
          end)
        end

      results = tasks |> Task.await_many(:infinity) |> Enum.concat() |> Enum.frequencies()
      taken = results[:ok]
      assert taken <= 200 and results |> Map.keys() |> Enum.all?(&(&1 in [:ok, :duplicate, :large]))
      assert Native.streams(run) == [{1, 1, 200}]
      assert entries(run) == for(n <- 1..100, do: {n, taken, taken})
    end

    test "holds what a killed process wrote, or nothing" do
      list = for n <- 1..20_000, do: {n, 1, 1}

      for _ <- 1..20 do
        run = open(:counter)
        test = self()

        sender =
          spawn(fn ->
            send(test, :begins)
            Native.absorb_large(run, list, {1, 1}, 1, [])
          end)

        assert_receive :begins
        Process.exit(sender, :kill)
        # Waits for the call under way, if there is one.
        assert Native.absorb_large(run, list, {1, 1}, 1, []) in [:ok, :duplicate]
        assert entries(run) == list
      end
    end
  end

  describe "a bound" do
    test "that has no room for all entries takes none" do
      for {kind, entry} <- [counter: &{&1, 1, 1}, map: &{&1, 1, 1, 1}] do
        {name, _number} = run = open(kind, max_size: 5)
        assert Native.absorb(run, Enum.map([1, 2, 3], entry), {1, 1}, 1, []) == :ok
        before = held(run)
        assert both(run, Enum.map([4, 5, 6], entry), {1, 1}, 2) == :full
        # Room is reserved for each entry, though none of these is new.
        assert both(run, Enum.map([1, 2, 3], entry), {1, 1}, 2) == :full
        assert held(run) == before
        assert Native.absorb(run, Enum.map([3, 4], entry), {1, 1}, 2, []) == :ok
        assert elem(Native.bound(name), 0) == 4
        assert both(run, Enum.map([5, 6], entry), {1, 1}, 2) == :duplicate
        assert both(run, Enum.map(1..6, entry), {1, 1}, 3) == :full
      end
    end

    test "is exceeded by force" do
      {name, _number} = run = open(:counter, max_size: 2, outcomes?: false)

      for call <- @calls,
          do: assert(apply(Native, call, [run, [{1, 1, 1}, {2, 1, 1}, {3, 1, 1}], nil, 1, [:force]]) == :ok)

      assert elem(Native.bound(name), 0) == 3
      assert Native.add(name, nil, :key, 1) == :full
      assert Native.add(name, nil, 1, 1) == :ok
      assert entries(run) == [{1, 3, 3}, {2, 2, 2}, {3, 2, 2}]
      assert elem(Native.bound(name), 0) == 0
      assert Native.add(name, nil, :key, 1) == :ok
    end

    test "gives no room while writers wait for some" do
      {name, _number} = run = open(:counter, max_size: 2)
      assert Native.absorb(run, [{1, 1, 1}], nil, 1, []) == :ok
      assert {:wait, _reservation, _place} = Native.reserve(name, 2, true)
      assert both(run, [{2, 1, 1}]) == :full
      assert Native.absorb(run, [{2, 1, 1}], nil, 1, [:force]) == :ok
    end

    test "tells the process of the room that it is full, and of unused room" do
      run = open(:counter, max_size: 3)
      Native.register(run, :room, :room)
      assert Native.absorb(run, [{1, 1, 1}], nil, 1, []) == :ok
      refute_received :full
      assert both(run, for(n <- 1..4, do: {n, 1, 1})) == :full
      assert_received :full
      refute_received :full
      assert Native.absorb(run, [{1, 1, 1}, {1, 1, 1}], nil, 1, []) == :ok
      assert_received :room
    end
  end

  test "a partition gets the news that enough entries wait" do
    for call <- @calls do
      {name, _number} = run = open(:counter, partitions: 2)
      for partition <- 0..1, do: Native.register(run, partition, :server)
      for partition <- 0..1, do: Native.set_threshold(run, partition, 3)

      of = fn partition ->
        Stream.iterate(1, &(&1 + 1)) |> Stream.filter(&(:erlang.phash2(&1, 2) == partition))
      end

      assert apply(Native, call, [run, for(n <- Enum.take(of.(0), 2), do: {n, 1, 1}), nil, 1, []]) == :ok
      refute_received :enough
      assert apply(Native, call, [run, for(n <- Enum.take(of.(0), 5), do: {n, 1, 1}), nil, 1, []]) == :ok
      assert_received :enough
      refute_received :enough
      assert Native.size(name) == 5
    end
  end

  describe "a stop" do
    test "refuses entries but those that are written as by a processor" do
      run = open(:counter)
      assert Native.absorb(run, [{:key, 1, 1}], {1, 1}, 1, []) == :ok
      assert Native.begin_stop(run) == 0
      before = held(run)
      assert both(run, [{:key, 1, 1}], {1, 1}, 2) == :stopping
      assert both(run, [{:key, 1, 1}], {1, 1}, 1) == :duplicate
      assert held(run) == before
      assert Native.drain(run, 0) == :ok
      assert both(run, [{:key, 1, 1}], {1, 1}, 2) == :stopping
      assert Native.absorb(run, [{:key, 1, 1}], {1, 1}, 2, [:processor]) == :ok
      assert Native.absorb_large(run, [{:key, 1, 1}], {1, 1}, 3, [:processor, :force]) == :ok
      assert entries(run) == [{:key, 3, 3}]
      # No stop waits for the refused calls.
      assert Native.begin_stop(run) == 0
    end

    test "refuses all entries if one of their partitions refuses" do
      run = open(:counter, partitions: 2)
      list = for n <- 1..100, do: {n, 1, 1}
      assert Native.drain(run, 1) == :ok
      assert both(run, list, {1, 1}, 1) == :stopping
      assert absorb(run, list, {1, 1}, 1, [:processor]) == :ok
      assert Native.close(run, 1) == :ok
      assert both(run, list, {1, 1}, 2, [:processor]) == :stopping
      assert Native.streams(run) == [{1, 1, 1}]
      assert Native.reopen(run, 1) == :ok
      assert absorb(run, list, {1, 1}, 2, []) == :ok
      assert entries(run) == for(n <- 1..100, do: {n, 2, 2})
    end

    test "waits for the end of a call" do
      list = for n <- 1..100_000, do: {n, 1, 1}

      for _ <- 1..3 do
        {name, _number} = run = open(:counter)
        call = Task.async(fn -> Native.absorb_large(run, list, {1, 1}, 1, []) end)
        await_first(name)
        if Native.begin_stop(run) == 1, do: assert_receive(:lists_written, 60_000)
        assert Native.size(name) == length(list)
        assert Native.streams(run) == [{1, 1, 1}]
        assert Task.await(call, :infinity) == :ok
      end
    end

    test "closes no partition in the middle of a call" do
      list = for n <- 1..100_000, do: {n, 1, 1}

      for modes <- [[], [:processor]] do
        {name, _number} = run = open(:counter)
        call = Task.async(fn -> Native.absorb_large(run, list, {1, 1}, 1, modes) end)
        await_first(name)
        assert Native.drain(run, 0) == :ok
        assert Native.close(run, 0) == :ok
        assert Native.held(run, 0) == length(list)
        assert Task.await(call, :infinity) == :ok
      end
    end
  end

  # Waits until the first entry is written.
  defp await_first(name), do: Native.size(name) > 0 || await_first(name)

  describe "an incarnation" do
    test "is a random number of the name, whatever runs there" do
      name = unique_name()
      incarnation = Native.incarnation(name)
      assert incarnation in 1..((1 <<< 58) - 1)
      {owner, _run} = open_elsewhere(name, :counter, 1)
      assert Native.incarnation(name) == incarnation
      kill_owner(name, owner)
      open(:map, name: name)
      assert Native.incarnation(name) == incarnation
      others = for _ <- 1..100, do: Native.incarnation(unique_name())
      assert length(Enum.uniq([incarnation | others])) == 101
      assert call(:incarnation, ["name"]) == :badarg
    end

    test "of a name that never ran starts no buffer" do
      name = unique_name()
      Native.incarnation(name)
      assert Native.status(name) == :not_running
      refute name in Native.buffers()
    end
  end
end
