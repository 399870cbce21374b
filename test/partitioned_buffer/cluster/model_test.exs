defmodule PartitionedBuffer.Cluster.ModelTest do
  # Any history of writes, moved slots, lost answers, splits and deaths keeps the table of guarantees.
  #
  #     LAWS_SEQUENTIAL=1000000 LAWS_SEED=1 mix test test/partitioned_buffer/cluster/model_test.exs
  use ExUnit.Case, async: true

  @compile {:no_warn_undefined, [:proper_types]}

  alias :proper_types, as: T
  alias PartitionedBuffer.{ClusterModel, Laws}
  alias PartitionedBuffer.ClusterModel.{Absorbed, Check, Pure}

  @moduletag :proper
  @moduletag timeout: :infinity

  # Members, slots and keys are few, so that commands meet.
  defp histories(deaths) do
    {m, slot, key} = {T.range(0, 2), T.range(0, 3), T.range(0, 5)}

    T.resize(
      200,
      T.list(
        T.frequency(
          [
            {8, {:write, m, key}},
            {14, {:step, m, slot}},
            {2, {:die_after, m, slot}},
            {2, {:kill_task, m, slot}},
            {16, {:deliver, m, m}},
            {3, {:timeout, m, slot}},
            {2, {:cut, m, m}},
            {3, {:connect, m, m}},
            {5, {:view, m}},
            {1, {:leave, m}},
            {3, {:elapse, T.range(1, 6)}},
            {3, {:store, m}}
          ] ++ if(deaths == :deaths, do: [{1, {:kill, m}}, {2, {:start, m}}], else: [])
        )
      )
    )
  end

  defp cases, do: div(Laws.sequential(), 3)

  defp law(kind, store, broken \\ nil),
    do: fn history -> kind |> ClusterModel.run(store, history, broken) |> Check.check() end

  for kind <- [:counter, :map] do
    describe "a #{kind}" do
      test "is exact in each history without deaths of members" do
        Laws.holds(
          "members of a #{unquote(kind)}",
          Laws.sequential(),
          histories(:none),
          law(unquote(kind), Pure)
        )
      end

      test "loses only what a dead member had" do
        Laws.holds(
          "mortal members of a #{unquote(kind)}",
          Laws.sequential(),
          histories(:deaths),
          law(unquote(kind), Pure)
        )
      end

      test "is so with the native numbers" do
        cases = div(cases(), 10)

        Laws.holds(
          "members of a native #{unquote(kind)}",
          cases,
          histories(:deaths),
          law(unquote(kind), Absorbed)
        )
      end
    end
  end

  test "histories have all answers to sure and to unsure batches, and batches sent again" do
    Process.put(:seen, %{resent: 0})

    count = fn history ->
      world = ClusterModel.run(:counter, Pure, history)
      seen = Map.put(world.seen, :resent, world.resent)
      Process.put(:seen, Map.merge(Process.get(:seen), seen, fn _what, one, other -> one + other end))
      :ok
    end

    Laws.holds("histories", 500, histories(:deaths), count)
    seen = Process.get(:seen)
    # Only a task that died asks for a batch that was certainly not taken.
    for answer <- [:ok, :duplicate, :full, :moved],
        do: assert(Map.get(seen, {answer, false}, 0) > 0, inspect(seen))

    for answer <- [:ok, :full, :moved], do: assert(Map.get(seen, {answer, true}, 0) > 0, inspect(seen))
    assert seen.resent > 0
    refute is_map_key(seen, {:duplicate, true})
  end

  describe "the law" do
    for {rule, kinds} <- ClusterModel.rules(), kind <- kinds do
      test "finds #{rule} of a #{kind}" do
        error =
          assert_raise ExUnit.AssertionError, fn ->
            Laws.holds(
              "a broken #{unquote(kind)}",
              100_000,
              histories(:none),
              law(unquote(kind), Pure, unquote(rule)),
              [:noshrink]
            )
          end

        assert error.message =~ ~r/wrong_sums|not_the_newest|early/
      end
    end
  end
end
