defmodule Bench.Ets do
  @moduledoc "Raw ETS: one set, written to directly."

  def label, do: "raw ETS"

  def new(_opts), do: {new_table(), nil}

  def put({table, _}, key, value), do: :ets.insert(table, {key, value})
  def put_all({table, _}, entries), do: :ets.insert(table, entries)

  # The documented design's two steps, on a bare table.
  def put_newer({table, _}, key, value, version) do
    :ets.insert_new(table, {key, value, version, 0}) || Bench.Ets.replace(table, key, value, version)
  end

  def put_all_newer(handle, entries), do: Enum.each(entries, fn {k, v, n} -> put_newer(handle, k, v, n) end)

  def replace(table, key, value, version) do
    :ets.select_replace(table, [
      {{key, :_, :"$1", :"$2"}, [{:<, :"$1", version}],
       [{{{:const, key}, {:const, value}, version, {:+, :"$2", 1}}}]}
    ])
  end

  def get({table, _}, key) do
    case :ets.lookup(table, key) do
      [entry] -> elem(entry, 1)
      [] -> nil
    end
  end

  def delete({table, _}, key), do: :ets.delete(table, key)
  def size({table, _}), do: :ets.info(table, :size)

  def drain({table, _}, batch_size, processor) do
    Bench.Ets.each_batch(:ets.select(table, [{:"$1", [], [:"$1"]}], batch_size), processor)
    :ets.delete(table)
  end

  def each_batch(:"$end_of_table", _processor), do: :ok

  def each_batch({batch, continuation}, processor) do
    processor.(batch)
    each_batch(:ets.select(continuation), processor)
  end

  def free({table, _}) do
    if :ets.info(table) != :undefined, do: :ets.delete(table)
  end

  def new_table do
    :ets.new(:bench, [:set, :public, write_concurrency: true, decentralized_counters: true])
  end
end

defmodule Bench.Lean do
  @moduledoc """
  The documented ETS design behind a shell as lean as can be: partitions by phash2, the current table of each through
  persistent_term, flush by switching to another table.
  """

  def label, do: "ETS design"

  def new(opts) do
    name = make_ref()
    partitions = Keyword.get(opts, :partitions, System.schedulers_online())
    for n <- 0..(partitions - 1), do: :persistent_term.put({name, n}, Bench.Ets.new_table())
    {name, partitions}
  end

  # A table may be gone between the look-up and the insertion. Users of the design have to try again.
  def put({name, n} = handle, key, value) do
    :ets.insert(table(name, n, key), {key, value, 0, 0})
  rescue
    ArgumentError -> put(handle, key, value)
  end

  def put_all(handle, entries), do: Enum.each(entries, fn {key, value} -> put(handle, key, value) end)

  def put_newer({name, n}, key, value, version) do
    table = table(name, n, key)
    :ets.insert_new(table, {key, value, version, 0}) || Bench.Ets.replace(table, key, value, version)
  end

  def put_all_newer(handle, entries), do: Enum.each(entries, fn {k, v, n} -> put_newer(handle, k, v, n) end)

  def get({name, n}, key), do: Bench.Ets.get({table(name, n, key), nil}, key)
  def delete({name, n}, key), do: :ets.delete(table(name, n, key), key)

  def size({name, n}),
    do: Enum.sum(for i <- 0..(n - 1), do: :ets.info(:persistent_term.get({name, i}), :size))

  def drain({name, n}, batch_size, processor) do
    for i <- 0..(n - 1) do
      table = :persistent_term.get({name, i})
      :persistent_term.put({name, i}, Bench.Ets.new_table())
      Bench.Ets.drain({table, nil}, batch_size, processor)
    end

    :ok
  end

  def free({name, n}) do
    for i <- 0..(n - 1) do
      # A table dies with the process that flushed last.
      Bench.Ets.free({:persistent_term.get({name, i}), nil})
      :persistent_term.erase({name, i})
    end
  end

  @doc false
  def table(name, n, key), do: :persistent_term.get({name, :erlang.phash2(key, n)})
end

defmodule Bench.OrderedSet do
  @moduledoc "An ordered set of `{{monotonic_time, ref}, item}`."

  def label, do: "ordered_set"

  def new(_opts),
    do: :ets.new(:bench, [:ordered_set, :public, write_concurrency: true, decentralized_counters: true])

  def push(table, item), do: :ets.insert(table, {key(), item})
  def push_all(table, items), do: :ets.insert(table, for(item <- items, do: {key(), item}))
  def size(table), do: :ets.info(table, :size)
  def free(table), do: if(:ets.info(table) != :undefined, do: :ets.delete(table))

  def drain(table, batch_size, processor) do
    Bench.Ets.each_batch(:ets.select(table, [{{:_, :"$1"}, [], [:"$1"]}], batch_size), processor)
    :ets.delete(table)
  end

  defp key, do: {System.monotonic_time(), make_ref()}
end

defmodule Bench.LeanQueue do
  @moduledoc "The documented ETS design for items: that of `Bench.Lean`, with the tables of `Bench.OrderedSet`."

  alias Bench.OrderedSet

  def label, do: "ETS design"

  def new(opts) do
    name = make_ref()
    for n <- 0..(opts[:partitions] - 1), do: :persistent_term.put({name, n}, OrderedSet.new(opts))
    {name, opts[:partitions]}
  end

  # Raises if the table was replaced and deleted meanwhile.
  def push({name, n}, routing_key, item),
    do: OrderedSet.push(:persistent_term.get({name, :erlang.phash2(routing_key, n)}), item)

  def size({name, n}),
    do: Enum.sum(for i <- 0..(n - 1), do: OrderedSet.size(:persistent_term.get({name, i})))

  def drain({name, n}, batch_size, processor) do
    for i <- 0..(n - 1) do
      table = :persistent_term.get({name, i})
      :persistent_term.put({name, i}, OrderedSet.new([]))
      OrderedSet.drain(table, batch_size, processor)
    end

    :ok
  end

  def free({name, n}) do
    for i <- 0..(n - 1) do
      # A table dies with the process that flushed last.
      OrderedSet.free(:persistent_term.get({name, i}))
      :persistent_term.erase({name, i})
    end
  end
end

defmodule Bench.Native do
  @moduledoc "This package's Map, by its public functions."

  alias PartitionedBuffer.{Native, Processing, Ref, Routing}
  alias PartitionedBuffer.Map, as: Buffer

  @never 86_400_000

  def label, do: "this package"

  def new(opts) do
    name = :"bench_#{System.unique_integer([:positive])}"
    opts = Keyword.merge([name: name, processor: fn _ -> :ok end, processing_interval_ms: @never], opts)
    {:ok, _pid} = Buffer.start_link(opts)
    name
  end

  def put(name, key, value), do: Buffer.put(name, key, value)
  def put_all(name, entries), do: Buffer.put_all(name, entries)
  def put_newer(name, key, value, version), do: Buffer.put_newer(name, key, value, version)
  def put_all_newer(name, entries), do: Buffer.put_all_newer(name, entries)
  def get(name, key), do: Buffer.get(name, key)
  def delete(name, key), do: Buffer.delete(name, key)
  def size(name), do: Buffer.size(name)

  # What a partition and its task do at a tick, on the calling process.
  def drain(name, batch_size, processor) do
    for n <- 0..(Routing.partition_count!(name) - 1),
        {_kind, flush} <- [Native.flush(Native.run(name), n)],
        do: process(name, n, flush, batch_size, processor)

    :ok
  end

  def process(name, n, flush, batch_size, processor) do
    job = Processing.Job.new(flush, Ref.new(Native.run(name), name, n), trigger: :interval)
    options = %{job.options | processing_batch_size: batch_size}
    Processing.run(%{job | options: options, functions: %{job.functions | processor: processor}})
  end

  def free(name), do: Buffer.stop(name)
end

defmodule Bench.NativeOne do
  @moduledoc "The same with one partition: one lock against one table."

  def label, do: "this package, 1 partition"
  def new(opts), do: Bench.Native.new([partitions: 1] ++ opts)
  defdelegate put(name, key, value), to: PartitionedBuffer.Map
  defdelegate put_all(name, entries), to: PartitionedBuffer.Map
  defdelegate put_newer(name, key, value, version), to: PartitionedBuffer.Map
  defdelegate put_all_newer(name, entries), to: PartitionedBuffer.Map
  defdelegate get(name, key), to: PartitionedBuffer.Map
  defdelegate delete(name, key), to: PartitionedBuffer.Map
  defdelegate size(name), to: PartitionedBuffer.Map
  defdelegate drain(name, batch_size, processor), to: Bench.Native
  defdelegate free(name), to: Bench.Native
end

# The same with a limit that is not reached.
for {module, label, option} <- [
      {Bench.NativeBound, "with :max_size", {:max_size, 1_000_000}},
      {Bench.NativeThreshold, "with :processing_threshold", {:processing_threshold, 1_000_000}}
    ] do
  defmodule module do
    @moduledoc false

    def label, do: "this package, #{unquote(label)}"
    def new(opts), do: Bench.Native.new([unquote(option) | opts])
    defdelegate put(name, key, value), to: PartitionedBuffer.Map
    defdelegate get(name, key), to: PartitionedBuffer.Map
    defdelegate size(name), to: PartitionedBuffer.Map
    defdelegate free(name), to: Bench.Native
  end
end

defmodule Bench.LeanCounter do
  @moduledoc "The documented ETS design for sums: that of `Bench.Lean`, with rows that are counted up in place."

  alias Bench.Lean

  defdelegate new(opts), to: Lean
  defdelegate drain(handle, batch_size, processor), to: Lean
  defdelegate free(handle), to: Lean
  defdelegate size(handle), to: Lean
  defdelegate get(handle, key), to: Lean
  defdelegate delete(handle, key), to: Lean

  # A table may be gone between the look-up and the addition. Users of the design have to try again.
  def add({name, n} = handle, key, amount) do
    :ets.update_counter(Lean.table(name, n, key), key, [{2, amount}, {3, 1}], {key, 0, 0})
  rescue
    ArgumentError -> add(handle, key, amount)
  end

  def add_all(handle, entries), do: Enum.each(entries, fn {key, amount} -> add(handle, key, amount) end)
end

defmodule Bench.EtsCounter do
  @moduledoc "Raw ETS: a row with sum and count for each key, counted up in place."

  def label, do: "raw ETS"
  def new(_opts), do: {Bench.Ets.new_table(), nil}
  def add({table, _}, key, amount), do: :ets.update_counter(table, key, [{2, amount}, {3, 1}], {key, 0, 0})
  def add_all(handle, entries), do: Enum.each(entries, fn {key, amount} -> add(handle, key, amount) end)
  def get({table, _}, key), do: :ets.lookup_element(table, key, 2)
  defdelegate size(handle), to: Bench.Ets
  defdelegate drain(handle, batch_size, processor), to: Bench.Ets
  defdelegate free(handle), to: Bench.Ets
end

defmodule Bench.EtsSum do
  @moduledoc "The same without a count."

  def label, do: "raw ETS, only sums"
  defdelegate new(opts), to: Bench.EtsCounter
  def add({table, _}, key, amount), do: :ets.update_counter(table, key, amount, {key, 0})
  def add_all(handle, entries), do: Enum.each(entries, fn {key, amount} -> add(handle, key, amount) end)
  defdelegate get(handle, key), to: Bench.EtsCounter
  defdelegate size(handle), to: Bench.Ets
  defdelegate drain(handle, batch_size, processor), to: Bench.Ets
  defdelegate free(handle), to: Bench.Ets
end

defmodule Bench.EtsPlain do
  @moduledoc "Sum and count in a table without `write_concurrency`, which is fast for a single writer."

  def label, do: "ETS, no write_concurrency"
  def new(_opts), do: {:ets.new(:bench, [:set, :public]), nil}
  defdelegate add(handle, key, amount), to: Bench.EtsCounter
  defdelegate add_all(handle, entries), to: Bench.EtsCounter
  defdelegate get(handle, key), to: Bench.EtsCounter
  defdelegate size(handle), to: Bench.Ets
  defdelegate drain(handle, batch_size, processor), to: Bench.Ets
  defdelegate free(handle), to: Bench.Ets
end

# This package's Counter, by its public functions.
for {module, label, options} <- [
      {Bench.Counter, "this package", []},
      {Bench.CounterOne, "this package, 1 partition", [partitions: 1]}
    ] do
  defmodule module do
    @moduledoc false

    alias PartitionedBuffer.{Counter, Native, Routing}

    def label, do: unquote(label)

    def new(opts) do
      name = :"bench_#{System.unique_integer([:positive])}"
      fixed = [name: name, processor: fn _ -> :ok end, processing_interval_ms: 86_400_000]
      {:ok, _pid} = Counter.start_link(fixed ++ unquote(options) ++ opts)
      name
    end

    defdelegate add(name, key, amount), to: Counter
    defdelegate add_all(name, entries), to: Counter
    defdelegate get(name, key), to: Counter
    defdelegate size(name), to: Counter

    def drain(name, batch_size, processor) do
      for n <- 0..(Routing.partition_count!(name) - 1),
          {_kind, flush} <- [Native.flush(Native.run(name), n)],
          do: Bench.Native.process(name, n, flush, batch_size, processor)

      :ok
    end

    def free(name), do: Counter.stop(name)
  end
end
