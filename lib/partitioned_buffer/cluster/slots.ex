defmodule PartitionedBuffer.Cluster.Slots do
  @moduledoc false
  # Chooses the owner of each slot, by rendezvous hashing with a bound. The choice is a function of its
  # arguments alone, so members that see the same members agree without a message.

  # The range of `:erlang.phash2/2`.
  @range 4_294_967_296

  @doc """
  The owner of each slot, as a tuple. No owner has more than its share of the slots, rounded up.
  `members` must not be empty.
  """
  @spec owners(pos_integer(), [node(), ...], :all | pos_integer()) :: tuple()
  def owners(slots, members, most) do
    able = able(members, most)
    share = div(slots + length(able) - 1, length(able))

    {owners, _loads} =
      Enum.map_reduce(0..(slots - 1), Map.new(able, &{&1, 0}), fn slot, loads ->
        owner = able |> Enum.filter(&(loads[&1] < share)) |> Enum.max_by(&{weight(slot, &1), &1})
        {owner, Map.update!(loads, owner, &(&1 + 1))}
      end)

    List.to_tuple(owners)
  end

  # The members that own slots: those with the greatest weights, so few change when one leaves.
  defp able(members, :all), do: Enum.sort(members)

  defp able(members, most),
    do: members |> Enum.sort_by(&{weight(:owners, &1), &1}, :desc) |> Enum.take(most) |> Enum.sort()

  defp weight(slot, member), do: :erlang.phash2({slot, member}, @range)
end
