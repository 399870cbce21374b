defmodule PartitionedBuffer.Cluster.MembersTest do
  # The functions and events of a buffer that has two members.
  # Not async: these tests make the VM a node.
  use ExUnit.Case, async: false

  alias PartitionedBuffer.{Cluster, Clustered, Counter, Native}
  alias PartitionedBuffer.Test.Cluster, as: Nodes
  alias PartitionedBuffer.Test.Cluster.{Adapter, Controller, Netsplit, Sink, Until}

  @moduletag :cluster
  @moduletag timeout: 120_000

  setup_all do
    Controller.start()
    on_exit(&Controller.stop/0)
  end

  # Two nodes, and a key of each as the first one sees it.
  defp start(kind, options \\ []) do
    options = [processing_interval_ms: 600_000] ++ options
    cluster = Nodes.start(adapter: Adapter.Clustered, kind: kind, nodes: 2, options: options)
    [one, other] = cluster.names

    keys =
      for node <- [one, other],
          do: Enum.find(1..1_000, &(call(one, Cluster, :owner, [cluster.buffer, &1]) == node))

    {cluster, cluster.buffer, one, other, keys}
  end

  defp call(node, module, function, args), do: :erpc.call(node, module, function, args)

  defp attach(node, buffer, events), do: :ok = call(node, Clustered, :attach, [buffer, events, self()])

  defp await(fun), do: assert(Until.true?(20_000, fun))

  test "each member reads, flushes and measures the other" do
    {cluster, buffer, one, other, [mine, theirs]} =
      start(:counter, owners: :all, forward_ms: 600_000, partitions: 1)

    nodes = Enum.sort([one, other])
    for node <- nodes, do: assert(call(node, Cluster, :members, [buffer]) == nodes)
    assert for(node <- nodes, do: call(node, Cluster, :owner, [buffer, mine])) == [one, one]

    for node <- nodes, key <- [mine, theirs], do: :ok = call(node, Counter, :add, [buffer, key, 1])
    # The local function sees this member, Cluster.get the owner as well.
    assert call(one, Counter, :get, [buffer, theirs]) == 1
    assert call(one, Cluster, :get, [buffer, theirs]) == 2
    Sink.switch(cluster.sink, :down)
    assert {:error, reasons} = call(one, Cluster, :flush, [buffer])
    assert reasons == %{one => {:failed, 1}, other => {:failed, 1}}
    assert call(one, Counter, :get, [buffer, theirs]) == 0
    assert call(one, Cluster, :get, [buffer, theirs]) == 2
    assert call(one, Cluster, :fetch, [buffer, mine]) == {:ok, 2}
    # A flush of one member waits for what it has at the other.
    assert call(one, PartitionedBuffer, :flush, [buffer]) == {:error, {:failed, 2}}
    Sink.switch(cluster.sink, :up)
    assert call(one, PartitionedBuffer, :flush, [buffer]) == :ok
    assert Sink.read(cluster.sink).table == %{mine => 2, theirs => 2}
    assert call(one, Cluster, :flush, [buffer]) == :ok
    infos = call(one, Cluster, :info, [buffer])
    assert Map.keys(infos) == nodes
    assert for({_node, info} <- infos, do: info.cluster.owns) == [32, 32]
    Nodes.stop(cluster)
  end

  test "a member that leaves owns nothing and goes on collecting, until it joins again" do
    {cluster, buffer, one, other, [mine, _theirs]} = start(:counter)
    attach(other, buffer, [[:cluster, :members]])
    assert call(one, Cluster, :leave, [buffer]) == :ok
    assert_receive {[:cluster, :members], %{count: 1, slots: 64, moved: 32}, %{left: [^one], joined: []}}
    assert call(one, Cluster, :members, [buffer]) == [other]
    assert call(one, Cluster, :owner, [buffer, mine]) == other
    :ok = call(one, Counter, :add, [buffer, mine])
    # It is no member, but flushed and measured like one.
    assert call(one, Cluster, :flush, [buffer]) == :ok
    assert Map.keys(call(one, Cluster, :info, [buffer])) == Enum.sort([one, other])
    assert Sink.read(cluster.sink).table == %{mine => 1}
    assert call(one, Cluster, :join, [buffer]) == :ok
    assert_receive {[:cluster, :members], %{count: 2, slots: 32, moved: 32}, %{joined: [^one], left: []}}
    assert call(one, Cluster, :owner, [buffer, mine]) == one
    Nodes.stop(cluster)
  end

  test "what a stop cannot deliver is handed over, and reported" do
    {cluster, buffer, one, other, [mine, _theirs]} = start(:counter, drain_timeout_ms: 400)
    attach(one, buffer, [[:cluster, :hand_over]])
    Sink.switch(cluster.sink, :down)
    :ok = call(one, Counter, :add, [buffer, mine, 3])
    {:error, {:failed, 1}} = call(one, PartitionedBuffer, :flush, [buffer])
    :ok = call(one, PartitionedBuffer, :stop, [buffer])
    assert_receive {[:cluster, :hand_over], %{count: 1}, %{buffer: ^buffer, to: ^other}}
    assert call(other, Counter, :get, [buffer, mine]) == 3
    Sink.switch(cluster.sink, :up)
    # A flush of one member is about its own writes.
    # Its supervisor starts the stopped buffer again.
    await(fn -> buffer in call(one, PartitionedBuffer, :buffers, []) end)
    assert call(other, Cluster, :flush, [buffer]) == :ok
    assert %{table: table, given_up: []} = Sink.read(cluster.sink)
    assert table == %{mine => 3}
    Nodes.stop(cluster)
  end

  test "a batch whose owner is away is asked for when the owner is back, and taken once" do
    {cluster, buffer, one, other, [_mine, theirs]} = start(:counter)
    attach(one, buffer, [[:cluster, :uncertain]])
    :ok = call(one, Clustered, :block_first_forward, [buffer, self()])
    :ok = call(one, Counter, :add, [buffer, theirs, 3])
    assert_receive {:blocked, task}
    Netsplit.cut([one], [other])

    assert {:error, {:erpc, :noconnection}} =
             catch_away(fn -> call(one, Cluster, :get, [buffer, theirs, 0, []]) end, one, buffer)

    Process.exit(task, :kill)
    call(one, PartitionedBuffer, :flush, [buffer, [async: true]])

    await(fn ->
      match?(%{uncertain: 1, away: [^other]}, call(one, PartitionedBuffer, :info, [buffer]).cluster)
    end)

    Netsplit.heal(cluster.names)
    assert_receive {[:cluster, :uncertain], %{count: 1, duration: duration}, %{outcome: :taken, to: ^other}}
    assert duration > 0
    assert call(one, PartitionedBuffer, :flush, [buffer]) == :ok
    assert Sink.read(cluster.sink).table == %{theirs => 3}
    assert %{uncertain: 0, totals: %{resent: 0}} = call(one, PartitionedBuffer, :info, [buffer]).cluster
    Nodes.stop(cluster)
  end

  # As soon as the view has noticed, this node owns the key, and nobody is asked.
  defp catch_away(fun, node, buffer) do
    if call(node, Cluster, :members, [buffer]) == [node],
      do: {:error, {:erpc, :noconnection}},
      else: {:error, catch_error(fun.())}
  end

  test "a flush names the members that have entries and are away" do
    {cluster, buffer, one, other, [_mine, theirs]} = start(:counter)
    Sink.switch(cluster.sink, :down)
    :ok = call(one, Counter, :add, [buffer, theirs, 3])
    {:error, {:failed, 1}} = call(one, PartitionedBuffer, :flush, [buffer])
    Netsplit.cut([one], [other])
    Sink.switch(cluster.sink, :up)
    assert call(one, PartitionedBuffer, :flush, [buffer]) == {:error, {:away, [other]}}
    Netsplit.heal(cluster.names)
    assert call(one, PartitionedBuffer, :flush, [buffer]) == :ok
    assert Sink.read(cluster.sink).table == %{theirs => 3}
    Nodes.stop(cluster)
  end

  test "a clock that is too far ahead is reported" do
    {cluster, buffer, one, other, [_mine, theirs]} = start(:map, max_skew_ms: 1_000)
    attach(other, buffer, [[:cluster, :skew]])
    :ok = call(one, Native, :shift_clock, [60_000])
    :ok = call(one, PartitionedBuffer.Map, :put, [buffer, theirs, {1, 1, 1}])
    assert_receive {[:cluster, :skew], %{ahead_ms: ahead_ms}, %{buffer: ^buffer, node: ^one}}
    assert_in_delta ahead_ms, 60_000, 5_000
    assert call(other, PartitionedBuffer, :info, [buffer]).cluster.clock_ahead_ms > 50_000
    Nodes.stop(cluster)
  end
end
