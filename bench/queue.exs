# The Queue beside an ordered set keyed by `{monotonic_time, ref}`, as the documented ETS design has it, and beside a
# duplicate bag, in one VM and in alternation.
#
#     mix run bench/queue.exs
#
# Prints a table and writes bench/queue.json. Contents, and their order where there is one, are checked after each scenario.

for file <- ~w(candidates report runner), do: Code.require_file("support/#{file}.ex", __DIR__)

defmodule Bench.Bag do
  @moduledoc "A duplicate bag, which has no order."

  def label, do: "duplicate_bag"

  def new(_opts),
    do: :ets.new(:bench, [:duplicate_bag, :public, write_concurrency: true, decentralized_counters: true])

  def push(table, item), do: :ets.insert(table, {System.monotonic_time(), item})
  def push_all(table, items), do: :ets.insert(table, for(item <- items, do: {System.monotonic_time(), item}))
  defdelegate size(table), to: Bench.OrderedSet
  defdelegate free(table), to: Bench.OrderedSet
  defdelegate drain(table, batch_size, processor), to: Bench.OrderedSet
end

defmodule Bench.Queue do
  @moduledoc "This package's Queue with one partition."

  alias PartitionedBuffer.{Native, Queue}

  def label, do: "this package, 1 partition"

  def new(_opts) do
    name = :"bench_#{System.unique_integer([:positive])}"

    {:ok, _pid} =
      Queue.start_link(
        name: name,
        processor: fn _ -> :ok end,
        partitions: 1,
        processing_interval_ms: 86_400_000
      )

    name
  end

  def push(name, item), do: Queue.push(name, item)
  def push_all(name, items), do: Queue.push(name, items)
  def size(name), do: Queue.size(name)
  def free(name), do: Queue.stop(name)

  def drain(name, batch_size, processor) do
    for {_kind, flush} <- [Native.flush(Native.run(name), 0)],
        do: Bench.Native.process(name, 0, flush, batch_size, processor)

    :ok
  end
end

defmodule QueueBench do
  alias Bench.{Report, Runner}

  @items 100_000
  @candidates [Bench.OrderedSet, Bench.Bag, Bench.Queue]

  def main do
    Runner.release!()

    IO.puts(
      "#{Report.machine()}\n#{Runner.rounds()} rounds in alternation, medians, in brackets 10% to 90%\n"
    )

    IO.puts(
      String.duplicate(" ", 44) <> Enum.map_join(@candidates, &String.pad_trailing("  " <> &1.label(), 32))
    )

    results = Runner.run(scenarios(), @candidates)

    File.write!(
      Path.join(__DIR__, "queue.json"),
      Report.json(%{machine: Report.machine(), rounds: Runner.rounds(), scenarios: results}) <> "\n"
    )
  end

  defp scenarios do
    ints = Enum.to_list(1..@items)
    maps = Enum.map(ints, &%{id: &1, name: "user", count: &1, active: true})

    for({name, items} <- [{"int", ints}, {"map of 4", maps}], do: push(name, items)) ++
      for(
        {name, items} <- [{"int", ints}, {"map of 4", maps}],
        size <- [10, 1_000],
        do: push_all(name, items, size)
      ) ++
      [writers(maps)] ++ for(size <- [10, 1_000], do: flush(maps, size))
  end

  defp push(name, items) do
    %{
      name: "push #{name}",
      ops: @items,
      prepare: & &1.new([]),
      run: &each_push(&1, &2, items),
      check: &holds?(&1, &2, items)
    }
  end

  defp push_all(name, items, size) do
    lists = Enum.chunk_every(items, size)

    %{
      name: "push of #{size} #{name}, per item",
      ops: @items,
      prepare: & &1.new([]),
      run: fn mod, handle -> Enum.each(lists, &mod.push_all(handle, &1)) end,
      check: &holds?(&1, &2, items)
    }
  end

  defp writers(items) do
    %{
      name: "push map of 4, 2 writers",
      ops: 2 * @items,
      prepare: fn mod ->
        handle = mod.new([])
        {handle, Runner.ready(for _ <- 1..2, do: fn -> each_push(mod, handle, items) end)}
      end,
      run: fn _mod, {_handle, pids} -> Runner.release(pids) end,
      finish: fn _mod, {handle, _pids} -> handle end,
      check: &(&1.size(&2) == 2 * @items)
    }
  end

  defp flush(items, batch_size) do
    %{
      name: "flush in batches of #{batch_size}, per item",
      ops: @items,
      drained?: true,
      prepare: fn mod ->
        handle = mod.new([])
        each_push(mod, handle, items)
        {handle, :counters.new(1, [])}
      end,
      run: fn mod, {handle, counter} ->
        # On a process of its own, as a task does it.
        count = fn batch -> :counters.add(counter, 1, length(batch)) end
        fn -> mod.drain(handle, batch_size, count) end |> Task.async() |> Task.await(:infinity)
      end,
      finish: fn _mod, {handle, counter} ->
        Process.put(:flushed, :counters.get(counter, 1))
        handle
      end,
      check: fn _mod, _handle -> Process.get(:flushed) == @items end
    }
  end

  defp each_push(mod, handle, [item | rest]) do
    mod.push(handle, item)
    each_push(mod, handle, rest)
  end

  defp each_push(_mod, _handle, []), do: :ok

  # The bag has no order.
  defp holds?(mod, handle, items) do
    mod.drain(handle, 1_000, &Process.put(:drained, [&1 | Process.get(:drained, [])]))
    drained = Process.delete(:drained) |> Enum.reverse() |> Enum.concat()
    if mod == Bench.Bag, do: Enum.sort(drained) == Enum.sort(items), else: drained == items
  end
end

QueueBench.main()
