defmodule PartitionedBuffer.Test.Cluster.Direct do
  @moduledoc false
  # Numbered writes of a scenario itself to a map, and their fate at the sink.

  alias PartitionedBuffer.Test.Cluster
  alias PartitionedBuffer.Test.Cluster.Sink

  # A version counts microseconds, 128 for each.
  @per_ms 128_000

  @doc "Writes the keys on a node, with this number in each value."
  def write(cluster, node, keys, number),
    do: Cluster.call(cluster, node, __MODULE__, :write_here, [cluster.adapter, cluster.buffer, keys, number])

  @doc false
  def write_here(adapter, buffer, keys, number) do
    for key <- keys, do: :ok = adapter.write(:map, buffer, key, {0, 0, number, System.os_time(:microsecond)})
    :ok
  end

  @doc "How many keys have the value with this number at the sink."
  def count_stored(cluster, keys, number) do
    table = Sink.read(cluster.sink).table
    Enum.count(keys, &match?({_version, {_index, _writer, ^number, _at}}, table[&1]))
  end

  @doc "How many keys have a version at the sink that is ahead of the clock by more than `ms`."
  def count_ahead(cluster, keys, ms) do
    table = Sink.read(cluster.sink).table
    limit = (System.os_time(:millisecond) + ms) * @per_ms
    Enum.count(keys, fn key -> table |> Map.fetch!(key) |> elem(0) > limit end)
  end
end
