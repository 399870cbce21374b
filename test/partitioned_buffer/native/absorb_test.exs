defmodule PartitionedBuffer.Native.AbsorbTest do
  # Entries of other nodes: what a map and a counter make of them, and the time of a call.
  use PartitionedBuffer.NativeCase, async: true

  import Bitwise
  import PartitionedBuffer.Absorbing

  @most (1 <<< 120) - 1
  @calls [:absorb, :absorb_large]

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
      assert absorb(run, list, nil, 1, []) == :ok
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
        assert absorb(run, good, {1, 1}, 1, []) == :ok
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
      assert Native.forget_streams(run, 1, 1) == :not_running
      assert both({unique_name(), 1}, []) == :not_running
      assert both(open(:map, partitions: 0), []) == :not_running
    end
  end
end
