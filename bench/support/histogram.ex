defmodule Bench.Histogram do
  @moduledoc "Counts of nanoseconds, sixteen slots for each doubling; any process may add."

  @slots 64 * 16

  def new, do: :counters.new(@slots, [])

  def add(histogram, ns), do: :counters.add(histogram, slot(ns), 1)

  def count(histogram), do: Enum.sum(for slot <- 1..@slots, do: :counters.get(histogram, slot))

  @doc "How many values are above this one, but for the width of a slot."
  def above(histogram, ns),
    do: Enum.sum(for slot <- (slot(ns) + 1)..@slots, do: :counters.get(histogram, slot))

  @doc "What this share of the values does not exceed, but for the width of a slot."
  def percentile(histogram, share) do
    wanted = max(ceil(share * count(histogram)), 1)
    value(find(histogram, wanted, 1))
  end

  defp find(histogram, wanted, slot) do
    case :counters.get(histogram, slot) do
      count when count >= wanted -> slot
      count -> find(histogram, wanted - count, slot + 1)
    end
  end

  defp slot(ns) when ns < 16, do: max(ns, 0) + 1

  defp slot(ns) do
    exponent = trunc(:math.log2(ns))
    exponent * 16 + div(ns * 16, Integer.pow(2, exponent)) - 15
  end

  defp value(slot) when slot <= 16, do: slot - 1

  defp value(slot) do
    exponent = div(slot - 1, 16)
    div((rem(slot - 1, 16) + 16) * Integer.pow(2, exponent), 16)
  end
end
