defmodule PartitionedBuffer.MemoryTest do
  # Not async: it looks at the memory of the whole VM.
  use PartitionedBuffer.Case, async: false

  @mib 1024 * 1024

  # By how much the VM's memory, the library's included, is larger at its largest of some looks while `function` works.
  defp growth(rounds, function) do
    function.(0)
    before = memory()
    Enum.reduce(1..rounds, 0, fn round, largest -> function.(round) && max(largest, memory() - before) end)
  end

  defp memory do
    :erlang.garbage_collect()
    :erlang.memory(:total)
  end

  test "memory stays flat while a key is overwritten a million times with a binary of 32 kB" do
    buffer = start_buffer()
    binary = :crypto.strong_rand_bytes(32_768)

    growth =
      growth(100, fn round ->
        for n <- 1..10_000, do: Buffer.put(buffer, :key, <<round::32, n::32, binary::binary>>)
      end)

    assert growth < 16 * @mib
    assert <<100::32, 10_000::32, ^binary::binary>> = Buffer.get(buffer, :key)
  end

  test "memory stays flat while ten keys are overwritten with terms of 32 kB" do
    buffer = start_buffer()
    list = Enum.to_list(1..2_000)

    growth =
      growth(10, fn round ->
        for n <- 1..5_000, do: Buffer.put_newer(buffer, rem(n, 10), [n | list], round * 5_000 + n)
      end)

    assert growth < 32 * @mib
    assert Buffer.size(buffer) == 10
  end

  test "memory stays flat while one large value among many small ones is overwritten" do
    buffer = start_buffer()
    Buffer.put_all(buffer, for(n <- 1..10_000, do: {n, {n}}))
    binary = :binary.copy("x", @mib)

    growth =
      growth(20, fn round ->
        for n <- 1..100 do
          Buffer.put(buffer, :large, %{body: <<n::32, binary::binary>>})
          Buffer.put_all(buffer, for(m <- 1..20, do: {rem(n * 20 + m, 10_000), {round}}))
        end
      end)

    # One copy in 16 is weighed, and half of those in the large value's shard are small: of the 2 GiB written, as many large
    # copies may be waiting in the open segment as fit between some weighings that all met a small one.
    assert growth < 128 * @mib, "grew by #{div(growth, @mib)} MiB"
  end

  test "memory stays flat while keys come and go" do
    buffer = start_buffer()

    growth =
      growth(20, fn round ->
        for n <- 1..5_000, do: Buffer.put(buffer, {round, n, "some key"}, %{n: n})
        for n <- 1..5_000, do: Buffer.delete(buffer, {round, n, "some key"})
      end)

    assert growth < 8 * @mib
  end

  test "memory is back after what was handed over has been processed" do
    buffer = start_buffer(processor: fn _batch -> :ok end, processing_batch_size: 1_000)

    fill = fn ->
      entries = for n <- 1..50_000, do: {n, {make_ref(), fn -> n end, :binary.copy("x", 100)}}
      Buffer.put_all(buffer, entries)
    end

    fill.()
    flush(buffer)
    await_memory_below(memory() + @mib)
    before = memory()

    for _ <- 1..10 do
      fill.()
      flush(buffer)
    end

    await_memory_below(before + 4 * @mib)
  end

  test "a thousand starts and stops of a name leave no atoms, processes, tables or memory behind" do
    name = unique_name()

    cycle = fn ->
      {:ok, _pid} = Buffer.start_link(name: name, processor: fn _batch -> :ok end, partitions: 2)
      Buffer.put_all(name, for(n <- 1..10, do: {n, :binary.copy("x", 1_000)}))
      Buffer.stop(name)
    end

    for _ <- 1..10, do: cycle.()
    counts = fn -> {:erlang.system_info(:atom_count), length(Process.list()), length(:ets.all())} end
    before = counts.()
    memory = memory()
    for _ <- 1..1_000, do: cycle.()
    assert counts.() == before
    await_memory_below(memory + 2 * @mib)
  end

  # The reclaimer frees at its own pace, and tells nobody.
  defp await_memory_below(limit, tries \\ 500) do
    cond do
      memory() < limit ->
        :ok

      tries == 0 ->
        flunk("#{div(memory(), 1024)} kB are in use, less than #{div(limit, 1024)} kB were expected")

      true ->
        receive(do: (:never -> :ok), after: (10 -> await_memory_below(limit, tries - 1)))
    end
  end
end
