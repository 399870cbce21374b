defmodule PartitionedBuffer.Cluster.SlotsTest do
  use ExUnit.Case, async: true

  alias PartitionedBuffer.Cluster.Slots

  # Groups of nodes, with the kinds of names that deployments give them.
  defp names do
    [
      &:"app@10.0.#{div(&1, 4)}.#{17 * &1 + 3}",
      &:"app-#{&1}@app-#{&1}.app.svc.cluster.local",
      &:"n#{&1}@127.0.0.1",
      &:"app@#{:erlang.phash2({:host, &1})}.internal"
    ] ++ for(k <- 1..4, do: &:"r#{k}_#{&1 * 7919}@h") ++ for(k <- 1..16, do: &:"r#{k}_#{&1 * 7919}@h")
  end

  @slots [8, 16, 64, 256, 1024]

  defp members(name, count), do: for(n <- 1..count, do: name.(n))

  defp loads(owners), do: owners |> Tuple.to_list() |> Enum.frequencies()

  defp moved(before, later),
    do: Enum.count(0..(tuple_size(before) - 1), &(elem(before, &1) != elem(later, &1)))

  defp groups(counts), do: for(name <- names(), count <- counts, do: members(name, count))

  test "every slot has a member as its owner, and all have the same number of slots, or one more" do
    for slots <- @slots, members <- groups([1, 3, 8, 17]) do
      owners = Slots.owners(slots, members, :all)
      loads = Map.values(Map.merge(Map.new(members, &{&1, 0}), loads(owners)))
      assert tuple_size(owners) == slots and Enum.sum(loads) == slots
      assert (Enum.max(loads) - Enum.min(loads)) in 0..1
    end
  end

  test "the busiest of 2 to 8 owners of 64 slots has at most 1.05 times its share" do
    for members <- groups([2, 3, 4, 5, 6, 8]) do
      busiest = Slots.owners(64, members, :all) |> loads() |> Map.values() |> Enum.max()
      assert busiest / (64 / length(members)) <= 1.05
    end

    # Of 7 owners one has 10 of 64, and less is not possible.
    for members <- groups([7]),
        do:
          assert(
            Slots.owners(64, members, :all) |> loads() |> Map.values() |> Enum.sort() == [
              9,
              9,
              9,
              9,
              9,
              9,
              10
            ]
          )
  end

  test "a join or a leave moves at most 1.8 times the least possible on average" do
    for {slots, worst, counts} <- [{64, 2.5, 2..8}, {256, 1.8, [4, 8]}], count <- counts do
      ratios =
        for members <- groups([count]), joining <- members do
          others = List.delete(members, joining)
          moved(Slots.owners(slots, others, :all), Slots.owners(slots, members, :all)) / (slots / count)
        end

      assert Enum.sum(ratios) / length(ratios) <= 1.8, inspect({slots, count, ratios})
      assert Enum.max(ratios) <= worst, inspect({slots, count, ratios})
      # Up to 5 members, in each case.
      assert count > 5 or Enum.max(ratios) <= 1.8
    end
  end

  test "the order of the members, and the node that asks, do not matter" do
    for members <- groups([2, 5, 9]), most <- [:all, 1, 3] do
      expected = Slots.owners(64, Enum.sort(members), most)
      for _ <- 1..5, do: assert(Slots.owners(64, Enum.shuffle(members), most) == expected)
    end
  end

  test "members of all versions of the package agree: the choice never changes" do
    members = for n <- 1..4, do: :"n#{n}@127.0.0.1"
    choices = for most <- [:all, 1, 2], do: Slots.owners(8, members, most)

    indices =
      for choice <- choices,
          do: for(owner <- Tuple.to_list(choice), do: Enum.find_index(members, &(&1 == owner)))

    assert indices == [[3, 1, 3, 2, 0, 2, 0, 1], List.duplicate(1, 8), [1, 1, 2, 2, 1, 2, 2, 1]]
  end

  test "with a number of owners only so many own slots, and a member that is none of them moves nothing" do
    for members <- groups([2, 4, 8]), most <- 1..9 do
      owners = Slots.owners(64, members, most)
      owning = Map.keys(loads(owners))
      assert length(owning) == min(most, length(members))

      for leaving <- members -- owning,
          do: assert(Slots.owners(64, List.delete(members, leaving), most) == owners)
    end
  end

  test "one owner stays the owner until it leaves, also when others join" do
    for name <- names() do
      [first | others] = members(name, 10)

      Enum.reduce(others, {[first], first}, fn joining, {members, owner} ->
        members = [joining | members]
        [now] = Slots.owners(64, members, 1) |> loads() |> Map.keys()
        assert now in [owner, joining]
        {members, now}
      end)
    end
  end
end
