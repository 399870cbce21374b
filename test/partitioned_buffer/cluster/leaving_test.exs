defmodule PartitionedBuffer.Cluster.LeavingTest do
  # What becomes of the entries of a member that stops while the sink is down. Not async: it makes the VM
  # a node.
  use ExUnit.Case, async: false

  alias PartitionedBuffer.Test.Cluster
  alias PartitionedBuffer.Test.Cluster.{Adapter, Controller, Host, Scenarios, Sink, Until}

  @moduletag :cluster
  @moduletag :capture_log
  @moduletag timeout: 120_000

  setup_all do
    Controller.start()
    on_exit(&Controller.stop/0)
  end

  defp start(options) do
    options = [drain_timeout_ms: 300, partitions: 1, processing_batch_size: 1] ++ options
    cluster = Cluster.start(adapter: Adapter.Clustered, kind: :map, nodes: 2, options: options)
    Sink.switch(cluster.sink, :down)
    cluster
  end

  defp put(cluster, node, keys) do
    entries = for key <- keys, do: {key, {0, 0, 1, 1}}
    Cluster.call(cluster, node, PartitionedBuffer.Map, :put_all, [cluster.buffer, entries])
  end

  defp owned(cluster, node) do
    %{size: size, in_flight: in_flight} =
      Cluster.call(cluster, node, PartitionedBuffer, :info, [cluster.buffer]).cluster.owning

    size + in_flight
  end

  test "they are at another member, and one event has their number" do
    cluster = start([])
    [leaves, stays] = cluster.names
    event = [:partitioned_buffer, :cluster, :hand_over]
    :ok = Cluster.call(cluster, leaves, :telemetry, :attach, [event, event, &Host.send_event/4, self()])
    put(cluster, leaves, 1..40)
    assert Until.true?(30_000, fn -> owned(cluster, leaves) + owned(cluster, stays) == 40 end)
    owned = owned(cluster, leaves)
    cluster = Cluster.halt(cluster, leaves)
    assert_received {^event, %{count: ^owned}, %{to: ^stays}}
    refute_received {^event, _measurements, _metadata}
    assert owned(cluster, stays) == 40
    assert Sink.read(cluster.sink).given_up == []
    Cluster.stop(cluster)
  end

  test "full members take what a stop hands over" do
    cluster = start(max_size: 20, when_full: :drop_newest, full_timeout_ms: 0)

    full? = fn node ->
      put(cluster, node, Enum.take_random(1..200, 5))
      owned(cluster, node) == 20
    end

    assert Until.true?(30_000, fn -> cluster.names |> Enum.map(full?) |> Enum.all?() end)
    {ms, cluster} = Scenarios.timed(fn -> Cluster.halt(cluster, hd(cluster.names)) end)
    assert Sink.read(cluster.sink).given_up == []
    [stays] = Cluster.nodes(cluster)
    # More than its bound.
    assert owned(cluster, stays) > 20
    assert ms < 15_000
    Cluster.stop(cluster)
  end
end
