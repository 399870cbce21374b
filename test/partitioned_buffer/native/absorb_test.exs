defmodule PartitionedBuffer.Native.AbsorbTest do
  # Entries of other nodes: all or none are written, and those of a number once.
  use PartitionedBuffer.NativeCase, async: true

  import Bitwise

  @most (1 <<< 120) - 1
  @calls [:absorb, :absorb_large]

  defp open(kind, opts \\ []) do
    max_size = Keyword.get(opts, :max_size, :infinity)
    outcomes? = Keyword.get(opts, :outcomes?, true)
    name = Keyword.get_lazy(opts, :name, &unique_name/0)
    Native.open(name, kind, Keyword.get(opts, :partitions, 1), outcomes?, true, {max_size, :infinity})
  end

  # All entries of the next flush of each partition.
  defp entries({name, _number} = run) do
    flushes =
      for partition <- 0..(Native.partition_count(name) - 1),
          {_kind, flush} <- [Native.flush(run, partition)],
          do: flush

    flushes |> Enum.flat_map(&read(&1, 0)) |> Enum.sort()
  end

  defp read(flush, length) do
    case Native.read(flush, length, 100_000, false) do
      {read, _length, true} -> Native.claim(flush) && read
      {read, length, false} -> read ++ read(flush, length)
    end
  end

  defp held({name, _number} = run) do
    {counts, _age, writes, ended, _now} = Native.info(run, 0)
    {put_elem(counts, 3, nil), writes, ended, Native.bound(name), Native.streams(run)}
  end

  # The results of both calls, which have to be the same.
  defp both(run, entries, stream \\ nil, number \\ 1, modes \\ []) do
    [result, same] = for call <- @calls, do: apply(Native, call, [run, entries, stream, number, modes])
    assert result == same
    result
  end

  describe "a counter" do
    test "adds sums and counts as one write for each entry" do
      for call <- @calls do
        {name, _number} = run = open(:counter)
        Native.add(name, nil, "a", 5)
        assert apply(Native, call, [run, [{"a", -7, 3}, {:b, 2, 0}, {"a", 1, 1}], nil, 1, []]) == :ok
        {{2, 0, 0, _bytes}, _age, {4, 2, 0, 0}, _ended, _now} = Native.info(run, 0)
        assert entries(run) == Enum.sort([{"a", -1, 5}, {:b, 2, 0}])
      end
    end

    test "takes sums and counts of 120 bits" do
      numbers =
        for bits <- [31, 59, 60, 62, 63, 64, 65, 100, 119, 120],
            near <- [-1, 0, 1],
            number = (1 <<< bits) + near,
            number <= @most,
            do: number

      run = open(:counter)
      signed = Enum.flat_map(numbers, &[&1, -&1])
      list = for {number, key} <- Enum.with_index(signed), do: {key, number, abs(number)}
      assert Native.absorb(run, list, nil, 1, []) == :ok
      assert entries(run) == list
    end

    test "keeps a sum and a count at their limit" do
      run = open(:counter)
      for _ <- 1..300, do: Native.absorb(run, [{:up, @most, @most}, {:down, -@most, 0}], nil, 1, [])
      assert [{:down, -@most, 0}, {:up, @most, @most}] == entries(run)
    end

    test "refuses all other sums and counts" do
      run = open(:counter)
      before = held(run)

      for bad <- [
            @most + 1,
            -@most - 1,
            1 <<< 128,
            -(1 <<< 127),
            1 <<< 1_000_000,
            1.0,
            -0.0,
            nil,
            "1",
            :a,
            [1],
            {1}
          ] do
        entry = {:key, bad, 1}
        assert both(run, [{:good, 1, 1}, entry]) == {:invalid, entry}
        assert both(run, [{:good, 1, 1}, {:key, 1, bad}]) == {:invalid, {:key, 1, bad}}
      end

      assert both(run, [{:key, 1, -1}]) == {:invalid, {:key, 1, -1}}
      assert held(run) == before
    end
  end

  describe "a map" do
    test "keeps the updates of new entries, and adds them at a replacement" do
      for call <- @calls do
        {name, _number} = run = open(:map)
        Native.put_newer(name, nil, :old, 1, 1)
        Native.put_newer(name, nil, :old, 2, 2)
        list = [{:old, 3, 3, 10}, {:new, 1, 7, 4}, {:new, 2, 8, 1}, {:put, 1, 0, 0}]
        assert apply(Native, call, [run, list, nil, 1, []]) == :ok
        assert entries(run) == [{:new, 2, 8, 6}, {:old, 3, 3, 12}, {:put, 1, 0, 0}]
      end
    end

    test "counts an entry that is not newer as stale, also beside one in flight" do
      {name, _number} = run = open(:map)
      big = 1 <<< 70

      for {key, version} <- [a: 5, b: big, c: -big], do: Native.put_newer(name, nil, key, version, version)
      stale = [{:a, :stale, 5, 9}, {:b, :stale, 6, 9}, {:b, :stale, big - 1, 9}, {:c, :stale, -big, 9}]
      assert Native.absorb_large(run, stale, nil, 1, []) == :ok
      assert {_counts, _age, {3, 0, 4, 0}, _ended, _now} = Native.info(run, 0)
      {:fresh, flush} = Native.flush(run, 0)
      assert Native.absorb_large(run, stale, nil, 1, []) == :ok
      assert {{0, 3, 0, _bytes}, _age, {3, 0, 8, 0}, _ended, _now} = Native.info(run, 0)
      assert Native.absorb(run, [{:a, :newer, 6, 9}], nil, 1, []) == :ok
      assert Native.get(name, nil, :a) == {:ok, :newer}
      assert Native.seen(flush) |> elem(2) == 3
    end

    test "takes versions of any size" do
      versions = for bits <- [0, 59, 60, 63, 64, 128, 5_000], sign <- [1, -1], do: sign * (1 <<< bits)
      run = open(:map)

      assert Native.absorb_large(run, for(version <- versions, do: {version, :value, version, 0}), nil, 1, []) ==
               :ok

      assert entries(run) == Enum.sort(for(version <- versions, do: {version, :value, version, 0}))
    end

    test "refuses other versions and updates" do
      run = open(:map)
      before = held(run)

      for bad <- [1.0, nil, "1", [1], {1}] do
        assert both(run, [{:good, 1, 1, 1}, {:key, 1, bad, 1}]) == {:invalid, {:key, 1, bad, 1}}
        assert both(run, [{:good, 1, 1, 1}, {:key, 1, 1, bad}]) == {:invalid, {:key, 1, 1, bad}}
      end

      for bad <- [-1, 1 <<< 63, 1 <<< 70],
          do: assert(both(run, [{:key, 1, 1, bad}]) == {:invalid, {:key, 1, 1, bad}})

      assert held(run) == before
    end

    test "keeps updates within 63 bits" do
      run = open(:map)
      most = (1 <<< 63) - 1
      for version <- 1..3, do: assert(Native.absorb(run, [{:key, version, version, most}], nil, 1, []) == :ok)
      assert entries(run) == [{:key, 3, 3, most}]
    end
  end

  describe "a list" do
    test "with a misfit changes nothing, and takes no number" do
      good = for n <- 1..300, do: {n, n, 1}
      goods = for n <- 1..300, do: {n, n, 1, 1}

      for {kind, good} <- [counter: good, map: goods],
          {list, result} <- [
            {good ++ [:bad], {:invalid, :bad}},
            {[{1} | good], {:invalid, {1}}},
            {good ++ [{1, 1}], {:invalid, {1, 1}}},
            {good ++ [{1, 1, 1, 1, 1}], {:invalid, {1, 1, 1, 1, 1}}},
            {good ++ :tail, {:improper, :tail}},
            {:tail, {:improper, :tail}},
            {%{}, {:improper, %{}}}
          ] do
        run = open(kind)
        before = held(run)
        assert both(run, list, {1, 1}, 1) == result
        assert held(run) == before
        assert Native.absorb(run, good, {1, 1}, 1, []) == :ok
      end
    end

    test "may be empty" do
      run = open(:counter)
      assert both(run, []) == :ok
      assert Native.absorb(run, [], {1, 1}, 1, []) == :ok
      assert Native.absorb(run, [{:key, 1, 1}], {1, 1}, 1, []) == :duplicate
    end

    test "of any length reaches all partitions" do
      for partitions <- [1, 3, 512], length <- [1, 17, 5_000] do
        run = open(:counter, partitions: partitions)
        list = for n <- 1..length, do: {{:key, n}, n, 1}
        assert Native.absorb_large(run, list ++ list, nil, 1, []) == :ok
        assert entries(run) == for(n <- 1..length, do: {{:key, n}, 2 * n, 2})
      end
    end

    test "of large or many entries is left to the other call, and takes no number" do
      large = Enum.to_list(1..10_000)
      binary = :binary.copy("x", 100_000)
      run = open(:map)
      before = held(run)

      for list <- [
            for(n <- 1..513, do: {n, n, 1, 0}),
            [{1, 1, 1, 0}, {large, 1, 1, 0}],
            [{binary, 1, 1, 0}],
            [{1, large, 1, 0}],
            [{1, 1, 1 <<< 64, 0}],
            for(n <- 1..400, do: {n, List.to_tuple(for(m <- 1..14, do: "#{m}")), 1, 0})
          ] do
        assert Native.absorb(run, list, {1, 1}, 1, []) == :large
        assert held(run) == before
        other = open(:map)
        assert Native.absorb_large(other, list, {1, 1}, 1, []) == :ok
        assert entries(other) == Enum.sort(list)
      end
    end

    test "with a large value and a version beyond 64 bits is freed as a whole" do
      large = Enum.to_list(1..10_000)
      {name, _number} = run = open(:map)

      for round <- 1..20 do
        entry = {large, large, (1 <<< 64) + round, 0}
        assert Native.absorb_large(run, [entry], {1, 1}, round, []) == :ok
      end

      assert Native.get(name, nil, large) == {:ok, large}
      assert entries(run) == [{large, large, (1 <<< 64) + 20, 19}]
    end
  end

  describe "a call" do
    test "within the limits of a scheduler takes less than a millisecond" do
      shapes = [
        counter: &{"counter #{&1} #{&2}", 1, &1},
        counter: &{{&2}, (1 <<< 100) + &1, 1 <<< 90},
        map: &{"#{&2}", :binary.copy("x", 200), &1, 0},
        map: &{&2, List.to_tuple(Enum.to_list(1..450)), &1, 0},
        map: &{&2, List.to_tuple(for(n <- 1..14, do: "#{n}")), &1, 0}
      ]

      for {kind, entry} <- shapes, length <- [100, 250, 512], partitions <- [4, 256] do
        run = open(kind, partitions: partitions)

        times =
          for round <- 1..10 do
            list = for n <- 1..length, do: entry.(round, n)
            {time, result} = :timer.tc(Native, :absorb, [run, list, {1, 1}, round, []])
            assert result in [:ok, :large]
            time
          end

        # The shortest calls were not interrupted, and the first one meets empty partitions.
        assert Enum.min(times) < 1_000
      end
    end

    test "raises badarg for a queue, and for a number of other form" do
      run = open(:queue)
      assert call(:absorb, [run, [], nil, 1, []]) == :badarg
      run = open(:counter)

      for number <- [0, -1, 1 <<< 64, 1.0, nil], call <- @calls do
        assert call(call, [run, [], nil, number, []]) == :badarg
      end

      for stream <- [{1}, {1, -1}, {1, 1 <<< 64}, {1, 1, 1}, 1, {1, nil}], call <- @calls do
        assert call(call, [run, [], stream, 1, []]) == :badarg
      end

      for modes <- [nil, :force, [:other], [:force | :force], [:force, :force, :force], [1]],
          call <- @calls do
        assert call(call, [run, [], nil, 1, modes]) == :badarg
      end
    end

    test "returns that a run is over" do
      {owner, run} = open_elsewhere(unique_name(), :counter, 1)
      assert Native.absorb(run, [{:key, 1, 1}], {1, 1}, 1, []) == :ok
      kill_owner(elem(run, 0), owner)
      assert both(run, [{:key, 1, 1}], {1, 1}, 2) == :not_running
      assert Native.streams(run) == :not_running
      assert Native.forget_streams(run, 1) == :not_running
      assert both({unique_name(), 1}, []) == :not_running
      assert both(open(:map, partitions: 0), []) == :not_running
    end
  end

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
      assert Native.forget_streams(run, 1) == :ok
      assert Native.forget_streams(run, 3) == :ok
      assert Native.streams(run) == [{2, 1, 1}]
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
      assert Native.absorb(run, list, {1, 1}, 1, [:processor]) == :ok
      assert Native.close(run, 1) == :ok
      assert both(run, list, {1, 1}, 2, [:processor]) == :stopping
      assert Native.streams(run) == [{1, 1, 1}]
      assert Native.reopen(run, 1) == :ok
      assert Native.absorb(run, list, {1, 1}, 2, []) == :ok
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
