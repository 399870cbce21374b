defmodule PartitionedBuffer.Cluster.DocTest do
  use PartitionedBuffer.Case, async: true

  doctest PartitionedBuffer.Cluster

  setup do
    start_buffer(module: PartitionedBuffer.Counter, name: :doc_cluster, max_attempts: 1, cluster: true)
    :ok
  end
end
