defmodule PartitionedBuffer.Test.Cluster.AccountingTest do
  # A wrong harness would hide a loss: what it counts with, without nodes.
  use ExUnit.Case, async: true

  alias PartitionedBuffer.Test.Cluster.{Accounting, Amounts, Gate, Ledger, Rows, Sink, Written}

  @nodes 4

  describe "counters" do
    test "without a difference have no residue" do
      ledger = counter_ledger([{0, :a}, {1, :a}, {3, :b}])
      assert %{residue: 0, lost: 0, doubled: 0} = account(:counter, ledger, [[a: [0]], [a: [1], b: [3]]])
    end

    test "show one lost addition" do
      ledger = counter_ledger([{0, :a}, {1, :a}])
      assert %{residue: 1, lost: 1, doubled: 0, lost_of: %{1 => 1}} = account(:counter, ledger, [[a: [0]]])
    end

    test "show one doubled addition" do
      ledger = counter_ledger([{0, :a}])
      assert %{residue: -1, lost: 0, doubled: 1} = account(:counter, ledger, [[a: [0]], [a: [0]]])
    end

    test "show a lost and a doubled addition of one key, though their number is right" do
      ledger = counter_ledger([{0, :a}, {2, :a}])
      assert %{residue: 0, lost: 1, doubled: 1} = account(:counter, ledger, [[a: [0, 0]]])
    end

    test "show an addition that nobody made" do
      assert %{residue: -1, doubled: 1} = account(:counter, counter_ledger([]), [[a: [1]]])
    end

    test "take what is given up as delivered" do
      {:ok, sink} = Sink.start_link(:counter)
      :ok = Sink.give_up(sink, [{:a, Amounts.amount(0, @nodes), 1}], :stopped)

      assert %{residue: 0, given_up: 1} =
               Accounting.residue(:counter, counter_ledger([{0, :a}]), Sink.read(sink), 0, @nodes)
    end

    test "count no uncertain addition, whether it was stored or not" do
      ledger = %{counter_ledger([{0, :a}]) | uncertain: %{a: Amounts.amount(0, @nodes)}}

      for stored <- [[0], [0, 0]],
          do: assert(%{lost: 0, doubled: 0} = account(:counter, ledger, [[a: stored]]))

      assert %{doubled: 1} = account(:counter, ledger, [[a: [0, 0, 0]]])
      assert %{lost: 1} = account(:counter, ledger, [])
    end

    test "raise before the additions of a node could count for the next one" do
      many = div(Amounts.limit(@nodes), 2) + 1
      written = %Written{sums: %{a: many * Amounts.amount(1, @nodes)}}

      assert_raise RuntimeError, ~r/take more keys/, fn ->
        account(:counter, %{written: written, nodes: %{}, uncertain: %{}}, [])
      end
    end
  end

  describe "maps" do
    test "show an older stored value" do
      {old, new} = {value(0, 1, 1_000), value(1, 1, 50_000)}
      assert %{residue: 0} = account(:map, map_ledger([old, new]), [[a: {old, 1}], [a: {new, 2}]])
      assert %{wrong: 1, missing: 0} = account(:map, map_ledger([old, new]), [[a: {old, 1}]])
      # Without versions the last one is stored.
      assert %{wrong: 1, back: 1} = account(:map, map_ledger([old, new]), [[a: {new, 0}], [a: {old, 0}]])
    end

    test "show a missing value" do
      assert %{missing: 1, residue: 1} = account(:map, map_ledger([value(0, 1, 0)]), [])
    end

    test "have an order for two writes of one writer, however close" do
      {old, new} = {value(0, 1, 1_000), value(0, 2, 1_001)}
      assert %{wrong: 1} = account(:map, map_ledger([old, new]), [[a: {old, 1}]])
    end

    test "have no order for writes of two nodes at the same time" do
      {one, other} = {value(0, 1, 1_000), value(1, 1, 2_000)}
      assert %{wrong: 0} = account(:map, map_ledger([one, other]), [[a: {one, 1}]])
    end

    test "count refused and repeated entries" do
      {old, new} = {value(0, 1, 1_000), value(1, 1, 50_000)}
      batches = [[a: {new, 2}], [a: {old, 1}], [a: {new, 2}]]
      assert %{residue: 0, refused: 1, repeated: 1, rows: 1} = account(:map, map_ledger([old, new]), batches)
    end
  end

  describe "the ledger" do
    test "keeps the plan of a writer that does not report" do
      {:ok, ledger} = Ledger.start_link()
      :ok = Ledger.announce(ledger, :one, %Written{}, %{a: 1})
      assert %{uncertain: %{a: 1}, written: %{ok: 0}} = Ledger.read(ledger)
      :ok = Ledger.announce(ledger, :one, %Written{ok: 1, sums: %{a: 1}}, %{b: 1})
      assert %{uncertain: %{b: 1} = uncertain, written: %{sums: %{a: 1}}} = Ledger.read(ledger)
      refute is_map_key(uncertain, :a)
      :ok = Ledger.announce(ledger, :one, %Written{full: 1}, %{})
      assert %{uncertain: uncertain, nodes: %{one: %{ok: 1, full: 1}}} = Ledger.read(ledger)
      assert uncertain == %{}
    end
  end

  describe "the sink" do
    test "stores nothing while it is down or hanging" do
      {:ok, sink} = Sink.start_link(:counter)
      Sink.switch(sink, :down)
      assert Sink.store(sink, [{:a, 1, 1}]) == {:error, :down}
      Sink.switch(sink, :hanging)
      hanging = Task.async(fn -> Sink.store(sink, [{:a, 1, 1}]) end)
      refute Task.yield(hanging, 50)
      Sink.switch(sink, :up)
      assert Task.await(hanging) == {:error, :down}
      assert %{rows: [], failed: 2} = Sink.read(sink)
    end
  end

  describe "rows" do
    test "of two nodes for a key in one interval are counted" do
      row = fn key, node, ms -> {key, node, ms * 1_000, nil} end

      rows = [
        row.(:a, :one, 0),
        row.(:a, :two, 100),
        row.(:a, :one, 1_100),
        row.(:b, :one, 0),
        row.(:b, :one, 100)
      ]

      assert Rows.by_two_nodes(rows, 1_000) == 1
      assert Rows.per_key(rows) == 2.5
    end
  end

  describe "the gate" do
    test "kills nobody while a batch is on its way" do
      start_supervised!(Gate)
      test = self()

      task = fn name ->
        spawn(fn ->
          Gate.pass()
          send(test, {:passed, name})
          receive do: (:end -> :ok)
        end)
      end

      one = task.(:one)
      assert_receive {:passed, :one}
      killer = Task.async(fn -> Gate.quietly(fn -> send(test, :quiet) end) end)
      refute_receive :quiet, 50
      # A task that comes now has to wait for the killer.
      two = task.(:two)
      refute_receive {:passed, :two}, 50
      send(one, :end)
      assert_receive :quiet
      assert_receive {:passed, :two}
      Task.await(killer)
      send(two, :end)
    end
  end

  defp account(kind, ledger, batches) do
    {:ok, sink} = Sink.start_link(kind)
    for batch <- batches, do: :ok = Sink.store(sink, Enum.map(batch, &entry(kind, &1)))
    Accounting.residue(kind, ledger, Sink.read(sink), 0, @nodes)
  end

  # A stored sum, by the nodes whose additions are in it.
  defp entry(:counter, {key, indices}),
    do: {key, Enum.sum(Enum.map(indices, &Amounts.amount(&1, @nodes))), length(indices)}

  defp entry(:map, {key, {value, version}}), do: {key, value, version, 1}

  defp counter_ledger(additions) do
    written =
      Enum.reduce(additions, %Written{}, fn {index, key}, written ->
        Written.note(written, {:counter, key, Amounts.amount(index, @nodes)}, :ok, 0, 0)
      end)

    %{written: written, nodes: %{}, uncertain: %{}}
  end

  defp map_ledger(values) do
    chunks = for {_, _, _, at} = value <- values, do: Written.note(%Written{}, {:map, :a, value}, :ok, at, at)
    %{written: Enum.reduce(chunks, &Written.merge/2), nodes: %{}, uncertain: %{}}
  end

  defp value(index, number, at), do: {index, 0, number, at}
end
