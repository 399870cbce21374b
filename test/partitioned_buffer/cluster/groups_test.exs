# The groups of tests of `:cluster`, in short. `bench/cluster.exs` runs the same for longer.
defmodule PartitionedBuffer.ClusterGroupsTest do
  # Not async: these tests make the VM a node, and need both cores.
  use ExUnit.Case, async: false

  alias PartitionedBuffer.Test.Cluster.{Adapter, Controller}
  alias PartitionedBuffer.Test.Cluster.Scenarios.{Failures, Limits, Members, Steady}

  @moduletag :cluster
  @moduletag timeout: 120_000

  @adapter Adapter.Clustered

  setup_all do
    Controller.start()
    on_exit(&Controller.stop/0)
  end

  for kind <- [:counter, :map] do
    describe "a #{kind} on several nodes" do
      @describetag kind: kind

      test "stores a hot key once in an interval, from one node", %{kind: kind} do
        result = exact(&Steady.hot_keys/1, kind, seconds: 2, options: [processing_interval_ms: 500])
        assert_in_delta result.rows_per_key, 1, 0.25
        assert result.by_two_nodes == 0
      end

      test "loses nothing in a rolling restart", %{kind: kind} do
        result = exact(&Members.rolling_restart/1, kind, nodes: 3, seconds: 0.5)
        assert result.given_up == 0
      end

      test "loses nothing in a rolling restart while the sink is down", %{kind: kind} do
        result =
          exact(&Members.rolling_restart/1, kind,
            nodes: 3,
            seconds: 0.5,
            sink: :down,
            options: [drain_timeout_ms: 500]
          )

        assert result.given_up == 0 and result.failed_calls > 0
      end

      test "loses nothing while members join and leave", %{kind: kind} do
        result = exact(&Members.join_and_leave/1, kind, nodes: 3, seconds: 2, times: 8)
        assert result.stopped > 0
      end

      test "loses what was not stored when a node is killed, and doubles nothing", %{kind: kind} do
        for sink <- [:up, :down] do
          result = run(&Failures.kill/1, kind, nodes: 3, seconds: 1, sink: sink, options: [uncertain_ms: 500])

          assert result.residue <= result.outstanding
          assert Map.get(result, :doubled, 0) == 0 and Map.get(result, :back, 0) == 0
        end
      end

      test "asks a frozen owner again, and loses and doubles nothing", %{kind: kind} do
        result = exact(&Failures.freeze/1, kind, ms: 300, times: 2, options: [call_ms: 60])
        assert result.totals |> Map.values() |> Enum.sum() > 0
      end

      test "is exact after a netsplit that is short", %{kind: kind} do
        result = exact(&Failures.netsplit/1, kind, ms: 700, options: [uncertain_ms: 15_000])
        assert [%{members: [2, 2, 2, 2], reconnections: 0, longest_ms: longest}] = result.splits
        assert longest < 15_000
      end

      test "is exact while its processes are killed", %{kind: kind} do
        exact(&Failures.kill_processes/1, kind, nodes: 3, seconds: 2, every: 50)
      end

      test "lets writers wait and refuses them when all stages are full, and loses nothing", %{kind: kind} do
        result = exact(&Limits.full/1, kind, nodes: 3, seconds: 1, options: [max_size: 1_000])
        assert Enum.all?(result.held_full, &(&1 <= 2 * 1_000))
        assert Enum.all?(result.refused_writes, &(&1 > 0))
        assert result.longest_ms >= 200
      end
    end
  end

  test "an owner that stops tells what it took, so a late answer counts nothing twice" do
    options = [call_ms: 5, forward_ms: 5, uncertain_ms: 1_500]
    result = exact(&Members.rolling_restart/1, :counter, nodes: 3, seconds: 0.5, options: options)
    assert result.totals.resent == 0
  end

  test "an owner that is frozen for long holds up no keys of others" do
    result = exact(&Failures.freeze/1, :counter, nodes: 3, ms: 6_000, times: 1, options: [call_ms: 60])
    assert result.others_stored == 1
  end

  test "a split of one side, and one with overlap prevention, lose and double nothing" do
    for opts <- [[way: :one], [overlap_prevention: true]] do
      exact(&Failures.netsplit/1, :counter, [ms: 700, options: [uncertain_ms: 15_000]] ++ opts)
    end
  end

  test "a split longer than uncertain_ms doubles at most one batch for a slot" do
    result = run(&Failures.netsplit/1, :counter, nodes: 2, ms: 1_500, options: [uncertain_ms: 500])
    assert result.lost == 0
    # A batch has at most 1,000 entries; this load has fewer in flight.
    assert result.doubled <= 1_000
    exact(&Failures.netsplit/1, :map, nodes: 2, ms: 1_500, options: [uncertain_ms: 500])
  end

  test "clocks that are ahead, or set back, are followed; one ahead by a day is not" do
    for scenario <- [&Limits.clock_ahead/1, &Limits.clock_back/1] do
      assert %{later_wins: keys, keys: keys} = scenario.(adapter: @adapter)
    end

    assert %{followed: 0} = Limits.clock_far(adapter: @adapter)
  end

  test "cycles of join and leave leave nothing behind" do
    result = exact(&Members.cycles/1, :counter, cycles: 100)

    for growth <- [result.stayed, result.moved] do
      assert growth.processes <= 5 and growth.tables <= 1 and growth.atoms <= 50
      assert growth.memory < 5_000_000
    end
  end

  # The harness itself was right, and nothing is lost or doubled.
  defp exact(scenario, kind, opts) do
    result = run(scenario, kind, opts)
    assert result.residue == 0, inspect(result)
    assert Map.get(result, :lost, 0) == 0 and Map.get(result, :doubled, 0) == 0, inspect(result)
    assert Map.get(result, :back, 0) == 0, inspect(result)
    assert result.uncertain == 0
    result
  end

  defp run(scenario, kind, opts) do
    result = scenario.([adapter: @adapter, kind: kind] ++ opts)
    assert result.held == 0 and result.unexpected == [], inspect(result)
    assert result.written > 0
    result
  end
end
