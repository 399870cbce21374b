defmodule PartitionedBuffer.Test.Cluster.Accounting do
  @moduledoc false
  # Compares the ledger with the sink.
  #
  # Counters: every addition has to be stored or given up. `residue` is the difference; `lost`
  # and `doubled` count them apart, for each key and each node that added (`Amounts`), so they do not
  # hide each other. Uncertain additions of a killed node may be in the sink or not: neither counts.
  #
  # Maps: `wrong` counts keys whose stored value is not the newest acknowledged one, `missing` those
  # without a stored value. `residue` is the sum of both. `unsure` keys had a write that waited for
  # room: their newest write is not certain, so only a missing value counts.
  #
  # `held` is how many entries the nodes still hold. Those count as lost, so it has to be 0.

  alias PartitionedBuffer.Test.Cluster.{Amounts, Sink}

  @doc "`ledger` is the result of `Ledger.read/1`, `sink` that of `Sink.read/1`."
  def residue(kind, ledger, sink, held, nodes) do
    common = %{
      written: ledger.written.ok,
      full: ledger.written.full,
      stopped: ledger.written.stopped,
      longest_ms: div(ledger.written.longest, 1_000),
      unexpected: ledger.written.unexpected,
      held: held,
      rows: length(sink.rows),
      calls: sink.calls,
      failed_calls: sink.failed,
      given_up: length(sink.given_up)
    }

    Map.merge(common, compare(kind, ledger, sink, nodes))
  end

  defp compare(:counter, ledger, sink, nodes) do
    given_up =
      Enum.reduce(sink.given_up, %{}, fn {key, sum, _node, _reason}, sums ->
        Map.update(sums, key, sum, &(&1 + sum))
      end)

    keys =
      Enum.uniq(Enum.flat_map([ledger.written.sums, ledger.uncertain, sink.table, given_up], &Map.keys/1))

    differences =
      for key <- keys,
          out = Map.get(sink.table, key, 0) + Map.get(given_up, key, 0),
          sums = [Map.get(ledger.written.sums, key, 0), Map.get(ledger.uncertain, key, 0), out],
          {[added, uncertain, out], index} <- by_node(sums, nodes) do
        {index, added - out, max(0, added - out), max(0, out - added - uncertain)}
      end

    %{
      residue: Enum.sum(Enum.map(differences, &elem(&1, 1))),
      lost: Enum.sum(Enum.map(differences, &elem(&1, 2))),
      doubled: Enum.sum(Enum.map(differences, &elem(&1, 3))),
      lost_of: sums_by_node(differences, 2),
      uncertain:
        ledger.uncertain |> Map.values() |> Enum.map(&Enum.sum(Amounts.counts(&1, nodes))) |> Enum.sum()
    }
  end

  defp compare(:map, ledger, sink, _nodes) do
    {missing, present} =
      Enum.split_with(ledger.written.newest, fn {key, _newest} -> not is_map_key(sink.table, key) end)

    {unsure, sure} = Enum.split_with(present, fn {key, _newest} -> key in ledger.written.waited end)
    wrong = Enum.filter(sure, fn {key, newest} -> older?(elem(sink.table[key], 1), newest) end)

    %{
      residue: length(missing) + length(wrong),
      missing: length(missing),
      wrong: length(wrong),
      keys: map_size(ledger.written.newest),
      unsure: length(unsure),
      uncertain: map_size(ledger.uncertain),
      refused: sink.refused,
      repeated: sink.repeated,
      back: sink.back
    }
  end

  # Two writes of different nodes at the same time have any order. A write of the same writer has one.
  defp older?(value, {_began, value}), do: false
  defp older?({index, writer, number, _at}, {_began, {index, writer, newest, _}}), do: number < newest
  defp older?({_index, _writer, _number, at}, {began, _value}), do: at < began - Sink.skew()

  # Carries between the digits of a sum would count additions for the wrong node.
  defp by_node([added, uncertain, out] = sums, nodes) do
    counts = Enum.map(sums, &Amounts.counts(&1, nodes))

    if Enum.max(List.flatten(counts)) > div(Amounts.limit(nodes), 2),
      do:
        raise("too many additions for one key and node: #{inspect([added, uncertain, out])}; take more keys")

    counts |> Enum.zip_with(& &1) |> Enum.with_index()
  end

  defp sums_by_node(differences, at) do
    for difference <- differences, elem(difference, at) > 0, reduce: %{} do
      sums -> Map.update(sums, elem(difference, 0), elem(difference, at), &(&1 + elem(difference, at)))
    end
  end
end
