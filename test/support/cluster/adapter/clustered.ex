defmodule PartitionedBuffer.Test.Cluster.Adapter.Clustered do
  @moduledoc false
  # A buffer with `:cluster`.

  @behaviour PartitionedBuffer.Test.Cluster.Adapter

  # `:cluster` may not be built yet where this is compiled.
  @compile {:no_warn_undefined, PartitionedBuffer.Cluster}

  alias PartitionedBuffer.Test.Cluster.Adapter
  alias PartitionedBuffer.Test.Cluster.Adapter.Alone

  @impl Adapter
  def child_spec(:counter, options), do: PartitionedBuffer.Counter.child_spec(clustered(options))
  def child_spec(:map, options), do: PartitionedBuffer.Map.child_spec(clustered(options))

  @impl Adapter
  defdelegate write(kind, buffer, key, value), to: Alone

  @impl Adapter
  defdelegate flush(buffer, timeout), to: Alone

  # `size` and `in_flight` are those of both stages.
  @impl Adapter
  defdelegate held(buffer), to: Alone

  @impl Adapter
  def members(buffer), do: PartitionedBuffer.Cluster.members(buffer)

  @impl Adapter
  def owner(_kind, buffer, key), do: PartitionedBuffer.Cluster.owner(buffer, key, [])

  @impl Adapter
  def info(buffer), do: PartitionedBuffer.info(buffer).cluster

  @impl Adapter
  def shift_clock(_buffer, milliseconds) do
    # A function for tests, which is no part of the API.
    apply(PartitionedBuffer.Native, :shift_clock, [milliseconds])
    :ok
  end

  defp clustered(options) do
    cluster = Keyword.take(options, Adapter.cluster_options())
    Adapter.common(options) ++ [cluster: if(cluster == [], do: true, else: cluster)]
  end
end
