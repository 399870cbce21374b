defmodule PartitionedBuffer.Cluster.Slots do
  @moduledoc false
  # Chooses the owner of each slot, by rendezvous hashing with equal shares. The choice is a function of
  # its arguments alone, so members that see the same members agree without a message.
  #
  # The pairs of a slot and a member are taken by weight, the heaviest first, whatever the number of the
  # slot. So a member that joins gets the slots that suit it best, and few others move.

  @doc """
  The owner of each slot, as a tuple. The numbers of slots of two owners differ by at most one.
  `members` must not be empty.
  """
  @spec owners(pos_integer(), [node(), ...], :all | pos_integer()) :: tuple()
  def owners(slots, members, most) do
    able = able(members, most)
    {share, more} = {div(slots, length(able)), rem(slots, length(able))}
    pairs = for slot <- 0..(slots - 1), member <- able, do: {weight(slot, member), slot, member}
    # `more` members have one slot beyond their share.
    start = {%{}, Map.new(able, &{&1, 0}), more}

    {owners, _loads, 0} =
      pairs
      |> Enum.sort(:desc)
      |> Enum.reduce(start, fn {_weight, slot, member}, {owners, loads, more} = choice ->
        load = loads[member]
        beyond? = load == share and more > 0

        if not is_map_key(owners, slot) and (load < share or beyond?),
          do:
            {Map.put(owners, slot, member), %{loads | member => load + 1},
             if(beyond?, do: more - 1, else: more)},
          else: choice
      end)

    List.to_tuple(for slot <- 0..(slots - 1), do: owners[slot])
  end

  # The members that own slots: those with the greatest weights, so few change when one leaves.
  defp able(members, :all), do: members

  defp able(members, most),
    do: members |> Enum.sort_by(&{weight(:owners, &1), &1}, :desc) |> Enum.take(most)

  # The results of `:erlang.phash2/2` for similar names depend on each other: a join moved up to three
  # times the least possible.
  defp weight(slot, member), do: :erlang.md5("#{slot} #{member}")
end
