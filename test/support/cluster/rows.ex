defmodule PartitionedBuffer.Test.Cluster.Rows do
  @moduledoc false
  # Questions about the rows that a sink stored.

  @doc "Rows for each key, on average."
  def per_key([]), do: 0.0
  def per_key(rows), do: length(rows) / (rows |> Enum.uniq_by(&elem(&1, 0)) |> length())

  @doc """
  How often two nodes stored the same key within half an interval. One owner stores a key once in an
  interval.
  """
  def by_two_nodes(rows, interval_ms) do
    rows
    |> Enum.group_by(&elem(&1, 0))
    |> Enum.map(fn {_key, rows} -> rows |> Enum.sort_by(&elem(&1, 2)) |> neighbours(interval_ms * 500) end)
    |> Enum.sum()
  end

  @doc "The ages of a map's values when they were stored, in milliseconds, at these shares of 1."
  def ages(rows, shares) do
    ages = for({_key, _node, _at, age} <- rows, age != nil, do: age) |> Enum.sort()

    if ages != [],
      do: for(share <- shares, do: Enum.at(ages, floor((length(ages) - 1) * share)) / 1_000),
      else: []
  end

  defp neighbours(rows, within) do
    rows
    |> Enum.chunk_every(2, 1, :discard)
    |> Enum.count(fn [{_, one, at, _}, {_, other, later, _}] -> one != other and later - at < within end)
  end
end
