defmodule PartitionedBuffer.Test.Cluster.Amounts do
  @moduledoc false
  # Each node adds amounts of another magnitude, so a sum reveals how many additions of which node are
  # in it: node 0 adds 1, node 1 adds 2^15 if there are four, and so on. A lost addition of one node
  # cannot hide a doubled one of another node. A sum fits 64 bits.

  import Bitwise

  @bits 62

  @doc "The amount that the node with this index adds, of `nodes` nodes."
  def amount(index, nodes), do: 1 <<< (index * width(nodes))

  @doc "How many additions of each node a sum has."
  def counts(sum, nodes) do
    for index <- 0..(nodes - 1), do: sum >>> (index * width(nodes)) &&& limit(nodes)
  end

  @doc "More additions of a node to a key cannot be told apart from those of the next node."
  def limit(nodes), do: (1 <<< width(nodes)) - 1

  defp width(nodes), do: div(@bits, nodes)
end
