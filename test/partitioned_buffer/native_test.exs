defmodule PartitionedBuffer.NativeTest do
  # The NIFs do not trust their callers: whatever they are given raises badarg or is answered, and changes nothing.
  use PartitionedBuffer.Case, async: true

  alias PartitionedBuffer.Native

  import Bitwise

  defp garbage do
    [nil, :atom, -1, 0, 1 <<< 32, 1 <<< 63, 1 <<< 64, 1 <<< 70, -(1 <<< 70), 1.5, "binary", <<1::3>>] ++
      [
        [],
        [1 | 2],
        [1],
        {},
        {1},
        {1, 2, 3},
        %{},
        %{a: 1},
        self(),
        make_ref(),
        fn -> :ok end,
        :atomics.new(1, [])
      ]
  end

  test "garbage in any argument of any NIF raises badarg or is answered, and the buffer stays as it is" do
    buffer = start_buffer()
    Buffer.put(buffer, :key, :value)

    valid = %{
      reopen: [buffer, 0],
      partitions: [buffer],
      size: [buffer],
      get: [buffer, nil, :key],
      put_newer: [buffer, nil, :key, :stale, -1],
      put_all: [buffer, nil, [], true],
      put_all_newer: [buffer, nil, [], false],
      position: [:no_batch],
      read: [:no_batch, 0, 1],
      claim: [:no_batch, 0, 1]
    }

    for {name, args} <- valid, {_arg, index} <- Enum.with_index(args), garbage <- garbage() do
      # A key or a value may be anything.
      unless {name, index} in [{:get, 2}, {:put_newer, 2}, {:put_newer, 3}, {:put_newer, 4}] do
        call(name, List.replace_at(args, index, garbage))
      end
    end

    for garbage <- garbage(), not is_integer(garbage) do
      assert_raise ArgumentError, fn -> Native.put_newer(buffer, nil, :key, :value, garbage) end
      assert_raise ArgumentError, fn -> Native.put_all(buffer, nil, [{:a, 1}, garbage], true) end
    end

    for name <- garbage(), not is_atom(name) do
      assert_raise ArgumentError, fn -> Native.open(name, :map, 1) end
    end

    for partitions <- garbage(), not is_integer(partitions) or partitions < 0 or partitions > 4_096 do
      assert_raise ArgumentError, fn -> Native.open(unique_name(), :map, partitions) end
    end

    assert Buffer.get(buffer, :key) == :value
    flush(buffer)
    assert {:key, :value, 0, 0} in received_entries()
  end

  test "a resource of another kind is no batch" do
    resource = Native.open(unique_name(), :map, 1)
    assert_raise ArgumentError, fn -> Native.read(resource, 0, 1) end
    assert_raise ArgumentError, fn -> Native.claim(resource, 0, 1) end
    assert_raise ArgumentError, fn -> Native.position(resource) end
  end

  test "positions and counts beyond the end read nothing" do
    buffer = start_buffer(partitions: 1)
    Buffer.put(buffer, :key, 1)
    {:fresh, batch} = Native.hand_over(buffer, 0)
    largest = (1 <<< 64) - 1
    assert Native.read(batch, largest, 1) == {[], largest}
    assert Native.read(batch, 0, 0) == {[], 0}
    assert {[{:key, 1, 0, 0}], 1} = Native.read(batch, 0, largest)
    refute Native.claim(batch, 1, largest)
    refute Native.claim(batch, largest, 0)
    assert Native.claim(batch, 0, largest)
    assert Native.read(batch, 0, 10) == {[], 0}
    assert Native.hand_over(buffer, 0) == :empty
  end

  test "a batch outlives its buffer" do
    buffer = start_buffer(partitions: 1)
    Buffer.put(buffer, :key, 1)
    {:fresh, batch} = Native.hand_over(buffer, 0)
    stop_supervised!(buffer)
    # Its drainer has handed all of it to the processor.
    refute Native.claim(batch, 0, 1)
    assert Native.read(batch, 0, 1) == {[], 0}
  end

  test "a lock is never left behind by a bad entry in the middle of a list" do
    buffer = start_buffer()
    assert Native.put_all(buffer, nil, [{1, 1}, :bad, {2, 2}], false) == :unchecked
    assert Buffer.size(buffer) == 0
    assert_raise ArgumentError, fn -> Native.put_all(buffer, nil, [{1, 1}, :bad, {2, 2}], true) end
    assert Buffer.put(buffer, 1, 1) == :ok
  end

  defp call(name, args) do
    apply(Native, name, args)
  rescue
    ArgumentError -> :badarg
  end
end
