defmodule PartitionedBuffer.Conservation.Lists do
  @moduledoc false
  # The lists that faults write to maps and counters. Each key of a list, `{:list, list, place}`, is
  # written once.

  alias PartitionedBuffer.Conservation.Ledger

  @size 5_000

  # The most entries of a list that are written at once, lock by lock.
  @written_at_once 128

  @doc "The places of a list."
  def places, do: 1..@size

  @doc "Notes that the entry of a place came, and whether it is the right one."
  def arrive({list, place}, right?, ledger) do
    arrivals = arrivals(list, ledger)
    :counters.add(arrivals, place, 1)

    cond do
      not right? -> Ledger.violation(ledger, :wrong, {list, place})
      :counters.get(arrivals, place) > 1 -> Ledger.violation(ledger, :again, {list, place})
      true -> ledger
    end
  end

  # How often each place of a list came.
  defp arrivals(list, ledger) do
    case :ets.lookup(ledger.seen, {:list, list}) do
      [{_list, arrivals}] ->
        arrivals

      [] ->
        arrivals = :counters.new(@size, [])
        :ets.insert(ledger.seen, {{:list, list}, arrivals})
        arrivals
    end
  end

  @doc "Checks a list at the end."
  def check({:list, list, outcome}, ledger) do
    arrivals = arrivals(list, ledger)
    check(list, outcome, &(:counters.get(arrivals, elem(&1, 2)) > 0), ledger.windows > 0, ledger)
  end

  @doc "The same: `came?` is whether a key came, and `excused?` whether some may be missing."
  # A list cut short was written in its order. Gaps may be only among the entries last written at
  # once.
  def check(list, outcome, came?, excused?, ledger) do
    places = for place <- places(), came?.({:list, list, place}), do: place
    complete = if outcome == :done, do: @size, else: max(List.last(places, 0) - @written_at_once, 0)

    case complete - Enum.count(places, &(&1 <= complete)) do
      0 -> Ledger.count(ledger, if(outcome == :done, do: :lists_done, else: :lists_cut_short))
      missing -> Ledger.missing(ledger, missing, {:list, list, outcome, missing}, excused?)
    end
  end
end
