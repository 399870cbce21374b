defmodule PartitionedBuffer.Test.Cluster.HarnessTest do
  # The nodes of the harness, with buffers without `:cluster`: it has to find what goes wrong there.
  # Not async: these tests make the VM a node, and need both cores.
  use ExUnit.Case, async: false

  alias PartitionedBuffer.Test.Cluster
  alias PartitionedBuffer.Test.Cluster.{Adapter, Controller, Links, Netsplit, Peer}
  alias PartitionedBuffer.Test.Cluster.Scenarios.{Failures, Members, Steady}

  @moduletag :cluster
  @moduletag timeout: 120_000

  setup_all do
    Controller.start()
    on_exit(&Controller.stop/0)
  end

  describe "a node" do
    test "has the other nodes as members of its mesh, and not the controller" do
      cluster = start(nodes: 3)
      [one | others] = cluster.names
      assert Enum.sort(:erpc.call(one, Node, :list, [])) == Enum.sort(others)
      assert :erpc.call(one, Node, :list, [:hidden]) == [node()]
      Cluster.stop(cluster)
    end

    test "dies with the process that started it, though it is suspended" do
      test = self()

      owner =
        spawn(fn ->
          cluster = start(nodes: 1)
          [node] = cluster.names
          Cluster.suspend(cluster, node)
          send(test, {:suspended, node})
          receive do: (:end -> :ok)
        end)

      assert_receive {:suspended, node}, 60_000
      Node.monitor(node, true)
      Process.exit(owner, :kill)
      assert_receive {:nodedown, ^node}, 30_000
    end

    test "starts again under its name after a stop and after a kill" do
      cluster = start(nodes: 2)
      node = hd(cluster.names)
      cluster = cluster |> Cluster.halt(node) |> Cluster.boot([node])
      cluster = cluster |> Cluster.kill(node) |> Cluster.boot([node])
      assert :erpc.call(node, Node, :list, []) == tl(cluster.names)
      Cluster.stop(cluster)
    end

    test "does not answer while it is suspended" do
      cluster = start(nodes: 1)
      [node] = cluster.names
      Cluster.suspend(cluster, node)
      assert_raise ErlangError, ~r/timeout/, fn -> :erpc.call(node, Kernel, :node, [], 100) end
      Cluster.resume(cluster, node)
      assert Peer.call(cluster.peers[node], Kernel, :node, []) == node
      Cluster.stop(cluster)
    end
  end

  describe "a netsplit" do
    for {way, overlap_prevention} <- [both: false, one: false, both: true] do
      @way way
      @overlap_prevention overlap_prevention

      test "cuts nodes off (cookies of #{way}, overlap prevention #{overlap_prevention})" do
        args = ~w(-kernel prevent_overlapping_partitions #{@overlap_prevention})
        cluster = start(nodes: 2, args: args)
        [one, other] = cluster.names
        since = System.os_time(:microsecond)
        Netsplit.cut([one], [other], way: @way)

        for {from, to} <- [{one, other}, {other, one}] do
          refute :erpc.call(from, Node, :connect, [to])
          assert :erpc.call(from, Node, :list, []) == []
        end

        healing = System.os_time(:microsecond)
        Netsplit.heal(cluster.names)
        assert :erpc.call(one, Node, :list, []) == [other]
        split = Netsplit.measure([one], [other], since)
        assert split.reconnections == 0
        # Both saw it, and neither saw the other one before it was healed.
        for node <- cluster.names,
            do: assert([{_down, :down, _}, {up, :up, _} | _] = seen(node, since)) && assert(up >= healing)

        Cluster.stop(cluster)
      end
    end
  end

  describe "buffers without :cluster" do
    test "store a hot key once for each node, and wrong values in a map" do
      result = Steady.hot_keys(adapter: Adapter.Alone, kind: :map, seconds: 2)
      assert_in_delta result.rows_per_key, 4, 0.5
      assert result.by_two_nodes > 0
      assert result.wrong > 0 and result.back > 0
      assert result.missing == 0 and result.held == 0 and result.unexpected == []
    end

    test "store all sums, also through a netsplit" do
      result = Failures.netsplit(adapter: Adapter.Alone, kind: :counter, ms: 500)
      assert %{residue: 0, lost: 0, doubled: 0, held: 0, unexpected: [], splits: [split]} = result
      assert split.together_ms >= 500
    end

    test "lose what a killed node held, and nothing of others" do
      result = Failures.kill(adapter: Adapter.Alone, kind: :counter, seconds: 2, sink: :down)
      assert result.lost > 0 and result.lost <= result.outstanding
      assert Map.keys(result.lost_of) == [result.killed]
      assert result.doubled == 0
    end

    test "lose nothing in a rolling restart, and give up what a sink that is down refuses" do
      options = [drain_timeout_ms: 200]

      result =
        Members.rolling_restart(
          adapter: Adapter.Alone,
          kind: :counter,
          nodes: 2,
          sink: :down,
          options: options
        )

      assert %{residue: 0, lost: 0, doubled: 0, uncertain: 0, unexpected: []} = result
      # The writers outlived the buffer of their node.
      assert result.given_up > 0 and result.stopped > 0
    end

    test "lose and double nothing when their processes are killed between two batches" do
      result =
        Failures.kill_processes(adapter: Adapter.Alone, kind: :counter, nodes: 2, seconds: 2, every: 20)

      assert %{residue: 0, lost: 0, doubled: 0, unexpected: []} = result
      assert result.killed |> Map.delete(nil) |> Map.values() |> Enum.sum() > 50
    end
  end

  defp start(opts), do: Cluster.start([adapter: Adapter.Alone, kind: :counter] ++ opts)

  defp seen(node, since), do: for({at, _event, _node} = event <- Links.events(node), at >= since, do: event)
end
