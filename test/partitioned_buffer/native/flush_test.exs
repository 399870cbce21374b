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
      refute Native.lease(flush)
      assert {[^first], 1, true} = Native.read(flush, 0, 1, false)
      assert Native.lease(flush)
      assert Native.inherit(flush) == {:leased, 1}
      # Nothing is read before the batch has an outcome.
      assert Native.read(flush, 0, 1, false) == {[], 0, true}
      assert Native.succeed(flush) == :ok
      assert Native.inherit(flush) == nil
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
      Native.open(buffer, :map, 1, true, :infinity)
      {:rest, rest} = Native.flush(run(buffer), 0)
      {[first], 1, true} = Native.read(rest, 0, 1, false)
      Native.lease(rest)
      before = {Native.seen(rest), Native.info(run(buffer), 0)}

      assert Native.read(flush, 0, 1, false) == {[], 0, true}
      assert Native.claim(flush) == false
      assert Native.lease(flush) == false
      assert Native.succeed(flush) == :ok
      assert Native.give_back(flush, :all, true, 0, 1_000) == {:done, {0, 0, 0}}
      assert Native.inherit(flush) == nil
      assert Native.bury(flush) == :ok

      assert {Native.seen(rest), Native.info(run(buffer), 0)} == before
      assert Native.batch(rest) == [first]
      assert Native.succeed(rest) == :ok
      assert [_second] = take(buffer)
    end
  end

  describe "a flush of one partition" do
    test "leaves the batch of another one alone" do
      buffer = unique_name()
      Native.open(buffer, :queue, 2, true, :infinity)
      for number <- 0..1, do: Native.push_all(buffer, {number, 2}, [{number, 1}, {number, 2}], true)
      [first, second] = for number <- 0..1, do: elem(Native.flush(run(buffer), number), 1)
      for flush <- [first, second], do: Native.read(flush, 0, 1, false)

      # The numbers of both batches are the same.
      assert Native.lease(first)
      assert Native.give_back(second, [0], true, 1, 1_000) == {:done, {0, 0, 0}}
      assert Native.lease(second)
      assert Native.give_back(second, [0], true, 1, 1_000) == {:done, {0, 0, 1}}
      assert Native.succeed(second) == :ok
      assert Native.inherit(first) == {:leased, 1}
      assert Native.batch(first) == [{0, 1}]
      assert learned(buffer, 0) == %{failures: 0, pause_ms: nil, failed: 0}
      assert %{failures: 1} = learned(buffer, 1)
    end
  end

  describe "a flush of one process" do
    test "takes no outcome from another process" do
      buffer = unique_name()
      Native.open(buffer, :map, 1, true, :infinity)
      Native.put_all(buffer, nil, [a: 1, b: 2], true)
      {:fresh, flush} = Native.flush(run(buffer), 0)
      {[_first], 1, true} = Native.read(flush, 0, 1, false)
      Native.lease(flush)

      other = fn nif, arguments -> Task.await(Task.async(Native, nif, [flush | arguments])) end
      assert other.(:succeed, []) == :ok
      assert other.(:give_back, [:all, true, 0, 1_000]) == {:done, {0, 0, 0}}
      assert other.(:claim, []) == false
      assert other.(:read, [1, 1, false]) == {[], 1, true}
      assert Native.inherit(flush) == {:leased, 1}
      assert learned(buffer) == %{failures: 0, pause_ms: nil, failed: 0}
    end
  end
end
