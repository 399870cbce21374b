defmodule PartitionedBuffer.Test.Cluster.Adapter.Alone do
  @moduledoc false
  # A buffer without `:cluster`: every node stores for itself. It shows what the tests of a cluster
  # find where it is not used.

  @behaviour PartitionedBuffer.Test.Cluster.Adapter

  alias PartitionedBuffer.Test.Cluster.Adapter

  @impl Adapter
  def child_spec(:counter, options), do: PartitionedBuffer.Counter.child_spec(Adapter.common(options))
  def child_spec(:map, options), do: PartitionedBuffer.Map.child_spec(Adapter.common(options))

  @impl Adapter
  def write(:counter, buffer, key, amount), do: PartitionedBuffer.Counter.add(buffer, key, amount)
  def write(:map, buffer, key, value), do: PartitionedBuffer.Map.put(buffer, key, value)

  @impl Adapter
  def flush(buffer, timeout), do: PartitionedBuffer.flush(buffer, timeout: timeout)

  @impl Adapter
  def held(buffer) do
    info = PartitionedBuffer.info(buffer)
    info.size + info.in_flight
  end

  @impl Adapter
  def members(_buffer), do: :alone

  @impl Adapter
  def owner(_kind, _buffer, _key), do: node()

  @impl Adapter
  def info(_buffer), do: %{totals: %{}}

  @impl Adapter
  def shift_clock(_buffer, _milliseconds), do: raise("a buffer without :cluster has no clock")
end
