defmodule PartitionedBuffer.Conservation.Slots do
  @moduledoc false
  # The keys of a writer of maps or counters, in numbered slots. After a list cut short the number
  # of writes to its keys is unknown. So they are given up, and other keys take their slots.

  @slots 4_096
  @hot_slots 16

  @doc """
  The first state of a writer: `slots` has the key's number of each slot, and the number of its
  writes; `given_up` has keys with the range of that number.
  """
  def new, do: %{slots: %{}, given_up: []}

  @doc "All keys of a writer, with the range of the number of writes."
  def written(%{state: state}),
    do: for({id, written} <- Map.values(state.slots), do: {id, written..written}) ++ state.given_up

  @doc "A slot by chance: half of the times one of a few."
  def any do
    if :rand.uniform(2) == 1, do: :rand.uniform(@hot_slots) - 1, else: :rand.uniform(@slots) - 1
  end

  @doc "Slots for a list: every fourth, so that one option routes all."
  def of_list do
    first = :rand.uniform(@slots) - 1
    for n <- 0..:rand.uniform(100), do: rem(first + 4 * n, @slots)
  end

  @doc """
  The option of all calls for the key of a slot: the key, a term, a function or an MFA chooses the
  partition.
  """
  def option(slot) do
    case rem(slot, 4) do
      0 -> []
      1 -> [partition_key: :all_of_these]
      2 -> [partition_key: &:erlang.phash2/1]
      3 -> [partition_key: {__MODULE__, :partition_key, [:of]}]
    end
  end

  def partition_key(key, argument), do: {argument, key}

  @doc "The key's number of a slot, and the number of its writes."
  def at(%{state: %{slots: slots}} = writer, slot),
    do: Map.get_lazy(slots, slot, fn -> {id(writer, slot, 0), 0} end)

  # Each writer has other keys, and so has a slot each time its key is given up.
  defp id(writer, slot, given_up), do: (given_up * @slots + slot) * writer.writers + writer.number

  @doc "The key of a slot has this number of writes."
  def put(writer, slot, written) do
    {id, _before} = at(writer, slot)
    put_slot(writer, slot, {id, written})
  end

  @doc "The key of a slot has at most this number of writes, and perhaps none since the last time."
  def give_up(%{state: state} = writer, slot, last) do
    {id, written} = at(writer, slot)
    given_up = div(div(id, writer.writers), @slots) + 1
    writer = %{writer | state: %{state | given_up: [{id, written..last} | state.given_up]}}
    put_slot(writer, slot, {id(writer, slot, given_up), 0})
  end

  defp put_slot(%{state: state} = writer, slot, written),
    do: %{writer | state: %{state | slots: Map.put(state.slots, slot, written)}}
end
