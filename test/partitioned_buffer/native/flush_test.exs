defmodule PartitionedBuffer.Native.FlushTest do
  # Flushes and their batches, which belong to one run and one partition.
  use PartitionedBuffer.NativeCase, async: true

  import Bitwise

  describe "a flush" do
    test "reads and claims nothing beyond its end" do
      buffer = start_buffer(partitions: 1)
      Buffer.put(buffer, :key, 1)
      {:fresh, flush} = Native.flush(run(buffer), 0)
      largest = (1 <<< 64) - 1
      assert {[{:key, 1, 0, 0}], 1, true} = Native.read(flush, 0, largest, false)
      assert Native.read(flush, 1, largest, false) == {[], 1, true}
      assert Native.read(flush, largest, 1, false) == {[], largest, true}
      assert Native.claim(flush)
      refute Native.claim(flush)
      assert Native.read(flush, 0, 10, false) == {[], 0, true}
      assert Native.flush(run(buffer), 0) == :empty
    end

    test "has one batch at a time, owned by the process that began it last" do
      buffer = start_buffer(partitions: 1)
      Buffer.put_all(buffer, a: 1, b: 2)
      {:fresh, flush} = Native.flush(run(buffer), 0)
      assert {[first], 1, true} = Native.read(flush, 0, 1, false)
      assert Task.await(Task.async(fn -> Native.read(flush, 0, 1, false) end)) == {[first], 1, true}
      refute Native.claim(flush)
      refute Native.lease(flush, true)
      assert {[^first], 1, true} = Native.read(flush, 0, 1, false)
      assert Native.lease(flush, true)
      assert Native.inherit(flush, nil) == {:leased, 1}
      # Nothing is read before the batch has an outcome.
      assert Native.read(flush, 0, 1, false) == {[], 0, true}
      assert Native.succeed(flush) == 0
      assert Native.inherit(flush, nil) == nil
      assert {[second], 1, true} = Native.read(flush, 0, 1, false)
      assert keys([first, second]) == [:a, :b]
    end

    test "outlives its buffer" do
      buffer = start_buffer(partitions: 1)
      Buffer.put(buffer, :key, 1)
      {:fresh, flush} = Native.flush(run(buffer), 0)
      stop_supervised!(buffer)
      # The drainer has given all of it to the processor.
      assert Native.read(flush, 0, 1, false) == {[], 0, true}
      refute Native.claim(flush)
    end
  end

  describe "a flush of a run that is over" do
    test "is empty, takes no outcome, and leaves the next run alone" do
      buffer = unique_name()
      {owner, run} = open_elsewhere(buffer, :map, 1, true)
      Native.put_all(buffer, nil, [a: 1, b: 2], true)
      {:fresh, flush} = Native.flush(run, 0)
      {[_entry], 1, true} = Native.read(flush, 0, 1, false)
      kill_owner(buffer, owner)
      Native.open(buffer, :map, 1, true, true, :any, {:infinity, :infinity})
      {:rest, rest} = Native.flush(run(buffer), 0)
      {[first], 1, true} = Native.read(rest, 0, 1, false)
      Native.lease(rest, true)
      before = {seen(rest), Native.info(run(buffer), 0)}

      assert Native.read(flush, 0, 1, false) == {[], 0, true}
      assert Native.claim(flush) == false
      assert Native.lease(flush, true) == false
      assert Native.succeed(flush) == 0
      assert Native.give_back(flush, :all, true, 0, 1_000) == {:done, {0, 0, 0}}
      assert Native.inherit(flush, nil) == nil
      assert Native.bury(flush) == :ok

      assert {seen(rest), Native.info(run(buffer), 0)} == before
      assert Native.batch(rest) == [first]
      assert Native.succeed(rest) == 0
      assert [_second] = take(buffer)
    end
  end

  describe "a flush of one partition" do
    test "leaves the batch of another one alone" do
      buffer = unique_name()
      Native.open(buffer, :queue, 2, true, true, :any, {:infinity, :infinity})
      for number <- 0..1, do: Native.push_all(buffer, {number, 2}, [{number, 1}, {number, 2}], true)
      [first, second] = for number <- 0..1, do: elem(Native.flush(run(buffer), number), 1)
      for flush <- [first, second], do: Native.read(flush, 0, 1, false)

      # The numbers of both batches are the same.
      assert Native.lease(first, true)
      assert Native.give_back(second, [0], true, 1, 1_000) == {:done, {0, 0, 0}}
      assert Native.lease(second, true)
      assert Native.give_back(second, [0], true, 1, 1_000) == {:done, {0, 0, 1}}
      assert Native.succeed(second) == 0
      assert Native.inherit(first, nil) == {:leased, 1}
      assert Native.batch(first) == [{0, 1}]
      assert learned(buffer, 0) == %{failures: 0, pause_ms: nil, failed: 0}
      assert %{failures: 1} = learned(buffer, 1)
    end
  end

  describe "a flush of one process" do
    test "takes no outcome from another process" do
      buffer = unique_name()
      Native.open(buffer, :map, 1, true, true, :any, {:infinity, :infinity})
      Native.put_all(buffer, nil, [a: 1, b: 2], true)
      {:fresh, flush} = Native.flush(run(buffer), 0)
      {[_first], 1, true} = Native.read(flush, 0, 1, false)
      Native.lease(flush, true)

      other = fn nif, arguments -> Task.await(Task.async(Native, nif, [flush | arguments])) end
      assert other.(:succeed, []) == 0
      assert other.(:give_back, [:all, true, 0, 1_000]) == {:done, {0, 0, 0}}
      assert other.(:claim, []) == false
      assert other.(:read, [1, 1, false]) == {[], 1, true}
      assert Native.inherit(flush, nil) == {:leased, 1}
      assert learned(buffer) == %{failures: 0, pause_ms: nil, failed: 0}
    end
  end

  describe "claim_next/3" do
    test "reads the next batch and claims it" do
      {buffer, flush} = flushed(1..3)
      assert Native.claim_next(flush, 0, 2) == {[1, 2], 2, true}
      assert {1, 2, 1, passed} = Native.seen(flush)
      assert passed >= 0
      refute Native.claim(flush)
      assert Native.claim_next(flush, 0, 2) == {[3], 1, true}
      assert Native.claim_next(flush, 0, 2) == {[], 0, false}
      assert {2, 1, 0, _passed} = Native.seen(flush)
      assert Native.lost(run(buffer), 0) == 0
    end

    test "leaves the call before open until it is confirmed" do
      {buffer, flush} = flushed(1..3)
      assert await(fn -> Native.claim_next(flush, 0, 2) end) == {[1, 2], 2, true}
      assert Native.lost(run(buffer), 0) == 2
      assert Native.claim_next(flush, 0, 2) == {[3], 1, true}
    end

    test "claims nothing while the run is on hold, and the batch stays read" do
      {buffer, flush} = flushed(1..3)
      Native.hold_run(run(buffer))
      assert Native.claim_next(flush, 0, 2) == {[1, 2], 2, :on_hold}
      assert seen(flush) == {0, 0, 3}
      Native.resume_run(run(buffer))
      assert Native.claim(flush) == true
      assert seen(flush) == {1, 2, 1}
    end

    test "claims nothing before the whole batch is read, or if the process must yield" do
      {_buffer, flush} = flushed(1..3_000)
      :erlang.yield()
      # The read takes longer than what is left of the time slice.
      :erlang.bump_reductions(3_950)
      assert {entries, length, :more} = Native.claim_next(flush, 0, 3_000)
      assert seen(flush) == {0, 0, 3_000}
      assert entries ++ claimed(flush, length, 3_000) == Enum.to_list(1..3_000)
      assert seen(flush) == {1, 3_000, 0}
    end
  end

  defp claimed(flush, length, size) do
    case Native.claim_next(flush, length, size) do
      {entries, length, :more} -> entries ++ claimed(flush, length, size)
      {entries, ^size, true} -> entries
    end
  end

  describe "lease_next/6" do
    test "ends the leased batch only after a success, and leases the next one" do
      {buffer, flush} = flushed(1..3)
      assert Native.lease_next(flush, 0, 2, false, false, false) == {[1, 2], 2, 0}
      assert Native.lease_next(flush, 0, 2, false, false, false) == {[], 0, false}
      assert Native.inherit(flush, nil) == {:leased, 2}
      assert Native.lease_next(flush, 0, 2, false, false, true) == {[3], 1, 0}
      assert seen(flush) == {2, 1, 1}
      assert Native.lease_next(flush, 0, 2, false, false, true) == {[], 0, false}
      assert seen(flush) == {2, 1, 0}
      assert Native.flush(run(buffer), 0) == :empty
    end

    test "ends a flush whose last entries were deleted" do
      buffer = unique_name()
      Native.open(buffer, :map, 1, true, true, :any, {:infinity, :infinity})
      Native.put_all(buffer, nil, [a: 1, b: 2], true)
      {:fresh, flush} = Native.flush(run(buffer), 0)
      {[entry], 1, 0} = Native.lease_next(flush, 0, 1, false, false, false)
      for key <- [:a, :b] -- keys([entry]), do: Native.delete(buffer, nil, key)
      assert Native.lease_next(flush, 0, 1, false, false, true) == {[], 0, false}
      assert Native.flush(run(buffer), 0) == :empty
    end

    test "takes no success from another process" do
      {_buffer, flush} = flushed(1..3)
      {[1, 2], 2, 0} = Native.lease_next(flush, 0, 2, false, false, false)
      assert await(fn -> Native.lease_next(flush, 0, 2, false, false, true) end) == {[], 0, false}
      assert Native.batch(flush) == [1, 2]
      assert seen(flush) == {1, 2, 3}
    end

    test "returns the attempts of the batch" do
      {_buffer, flush} = flushed(1..3)
      {[1], 1, 0} = Native.lease_next(flush, 0, 1, false, true, false)
      {:done, {1, 0, 0}} = Native.give_back(flush, :all, true, 9, nil)
      assert Native.lease_next(flush, 0, 1, true, true, false) == {[1], 1, 1}
    end

    test "leases nothing in a pause, unless it may, and ends the batch before" do
      {buffer, flush} = flushed(1..3)
      {[1], 1, 0} = Native.lease_next(flush, 0, 1, false, false, false)
      Native.pause(run(buffer), 0, 60_000, false)
      assert Native.lease_next(flush, 0, 1, false, false, true) == {[2], 1, :paused}
      assert seen(flush) == {1, 1, 2}
      assert Native.lease_next(flush, 0, 1, false, true, false) == {[2], 1, 0}
    end
  end

  defp await(call), do: call |> Task.async() |> Task.await()

  # A flush of a queue with these items.
  defp flushed(items) do
    buffer = unique_name()
    Native.open(buffer, :queue, 1, true, true, :any, {:infinity, :infinity})
    push_all(buffer, Enum.to_list(items))
    {:fresh, flush} = Native.flush(run(buffer), 0)
    {buffer, flush}
  end

  # All but the time that passes.
  defp seen(flush), do: flush |> Native.seen() |> Tuple.delete_at(3)

  # A leased batch of a queue with the items from 0 on.
  defp leased(length, kind \\ :queue) do
    buffer = unique_name()
    Native.open(buffer, kind, 1, true, true, :any, {:infinity, :infinity})
    items = Enum.to_list(0..(length - 1))

    if kind == :queue,
      do: push_all(buffer, items),
      else: for(item <- items, do: Native.put(buffer, nil, item, item))

    {:fresh, flush} = Native.flush(run(buffer), 0)
    ^length = read_all(flush, length, 0)
    assert Native.lease(flush, true)
    {buffer, flush}
  end

  defp push_all(buffer, items) do
    with {:more, rest} <- Native.push_all(buffer, nil, items, true), do: push_all(buffer, rest)
  end

  defp read_all(flush, size, length) do
    case Native.read(flush, length, size, false) do
      {_entries, length, true} -> length
      {_entries, length, false} -> read_all(flush, size, length)
    end
  end

  defp give_back(flush, failed, counts \\ {0, 0, 0}) do
    add = fn {a, b, c}, {d, e, f} -> {a + d, b + e, c + f} end

    case Native.give_back(flush, failed, true, :infinity, nil) do
      {:done, more} -> add.(counts, more)
      {:more, rest, more} -> give_back(flush, rest, add.(counts, more))
    end
  end

  describe "give_back/5" do
    test "refuses numbers out of order or of no entry, and changes nothing" do
      {buffer, flush} = leased(3)
      before = {seen(flush), Native.info(run(buffer), 0)}

      for failed <- [
            [1, 0],
            [0, 0],
            [0, 1, 1],
            [3],
            [0, 1, 2, 3],
            [0, (1 <<< 64) - 1],
            [-2, 0],
            [-1, 0],
            [-5],
            [-(1 <<< 63)],
            [-(1 <<< 64)],
            [1 <<< 64],
            [1 <<< 1_000],
            [0 | 1],
            [0 | :all],
            [nil],
            [0.0],
            :some,
            0,
            {0}
          ],
          do: assert({failed, call(:give_back, [flush, failed, true, 1, nil])} == {failed, :badarg})

      assert {seen(flush), Native.info(run(buffer), 0)} == before
      assert give_back(flush, [0, 2]) == {2, 0, 0}
      assert [0, 2] == take(buffer)
    end

    test "takes any number of numbers, and gives back these and no others" do
      for {length, failed} <- [
            {10_000, Enum.to_list(0..9_999)},
            {10_000, Enum.to_list(0..9_999//3)},
            {10_000, []},
            {10_000, [9_999]},
            {10_000, Enum.to_list(0..4_095)},
            {10_000, Enum.to_list(5_000..7_000)},
            {4_096, Enum.to_list(0..4_095)},
            {4_097, Enum.to_list(0..4_096)}
          ] do
        {buffer, flush} = leased(length)
        assert give_back(flush, failed) == {length(failed), 0, 0}
        {_info, _age, _writes, {0, processed, _failed, 0}, _now} = Native.info(run(buffer), 0)
        assert processed == length - length(failed)
        assert waiting(buffer) == failed
      end
    end

    test "lets the heir of a batch give back all that is left of it" do
      {buffer, flush} = leased(20_000)
      failed = Enum.to_list(0..19_999//2)
      assert {:more, rest, {retried, 0, 0}} = Native.give_back(flush, failed, true, :infinity, nil)
      assert rest == Enum.drop(failed, retried)

      task =
        Task.async(fn ->
          {:leased, left} = Native.inherit(flush, nil)
          {left, give_back(flush, :all)}
        end)

      {left, {others, 0, 0}} = Task.await(task)
      assert left == others
      {_info, _age, _writes, {0, processed, _failed, 0}, _now} = Native.info(run(buffer), 0)
      assert processed + retried + others == 20_000
      assert Enum.take(waiting(buffer), retried) == Enum.take(failed, retried)
    end

    test "finds a number that does not fit in the call that comes to it" do
      {buffer, flush} = leased(20_000, :map)
      failed = Enum.to_list(0..9_999) ++ [5]
      assert_raise ArgumentError, fn -> give_back(flush, failed) end
      {:leased, left} = Native.inherit(flush, nil)
      # Up to there, all is given back.
      assert left in 10_000..15_904
      assert Native.size(buffer) == 20_000 - left
      assert give_back(flush, :all) == {left, 0, 0}
    end
  end

  # The items that are read next, in their order.
  defp waiting(buffer) do
    case Native.flush(run(buffer), 0) do
      {_kind, flush} ->
        items = items(flush, 0)
        # The attempts of an item limit its batch.
        if items == [], do: [], else: (Native.claim(flush) && items) ++ waiting(buffer)

      :empty ->
        []
    end
  end

  defp items(flush, length) do
    case Native.read(flush, length, 1 <<< 20, false) do
      {items, _length, true} -> items
      {items, length, false} -> items ++ items(flush, length)
    end
  end
end
