defmodule PartitionedBuffer.Cluster.FullMembersTest do
  # Not async: it makes the VM a node.
  use ExUnit.Case, async: false

  alias PartitionedBuffer.Test.Cluster
  alias PartitionedBuffer.Test.Cluster.{Adapter, Controller, Scenarios, Sink, Until}

  @moduletag :cluster
  @moduletag :capture_log
  @moduletag timeout: 120_000

  setup_all do
    Controller.start()
    on_exit(&Controller.stop/0)
  end

  test "a member that leaves asks full members for some seconds in all, not for each batch" do
    options = [max_size: 20, when_full: :drop_newest, full_timeout_ms: 0, drain_timeout_ms: 300]

    cluster =
      Cluster.start(
        adapter: Adapter.Clustered,
        kind: :map,
        nodes: 2,
        options: options ++ [partitions: 1, processing_batch_size: 1]
      )

    Sink.switch(cluster.sink, :down)
    keys = Enum.to_list(1..200)

    full? = fn node ->
      Cluster.call(cluster, node, PartitionedBuffer.Map, :put_all, [
        cluster.buffer,
        Enum.take_random(keys, 5) |> Enum.map(&{&1, {0, 0, 1, 1}})
      ])

      info = Cluster.call(cluster, node, PartitionedBuffer, :info, [cluster.buffer]).cluster
      info.owning.size + info.owning.in_flight == 20
    end

    assert Until.true?(30_000, fn -> cluster |> Cluster.nodes() |> Enum.map(full?) |> Enum.all?() end)
    {ms, cluster} = Scenarios.timed(fn -> Cluster.halt(cluster, hd(cluster.names)) end)
    assert length(Sink.read(cluster.sink).given_up) >= 20
    assert ms < 15_000
    Cluster.stop(cluster)
  end
end
