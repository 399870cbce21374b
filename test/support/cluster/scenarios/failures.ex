defmodule PartitionedBuffer.Test.Cluster.Scenarios.Failures do
  @moduledoc false

  alias PartitionedBuffer.Test.Cluster
  alias PartitionedBuffer.Test.Cluster.{Netsplit, Scenarios, Sink, Victims}

  @doc """
  Group 4: one node is killed at a random time of the second half of `:seconds`; the others go on
  for as long. With `sink: :down` the sink is down from the begin to the kill.

  `outstanding` is how much of all nodes was not stored just after the kill, the greatest possible loss.
  `held_by_killed` is how many entries the node held just before. `killed` is its index, and `lost_of`
  has the lost additions of each node.
  """
  def kill(opts) do
    Scenarios.with_cluster(opts, [seconds: 4, sink: :up, keys: 20_000], fn cluster, opts ->
      Sink.switch(cluster.sink, opts[:sink])
      Scenarios.last(opts[:seconds] * (500 + :rand.uniform(500)))
      killed = :rand.uniform(length(cluster.names)) - 1
      node = Enum.at(cluster.names, killed)
      held = Cluster.adapter(cluster, node, :held, [cluster.buffer])
      cluster = Cluster.kill(cluster, node)
      outstanding = Cluster.outstanding(cluster)
      Sink.switch(cluster.sink, :up)
      Cluster.await_members(cluster)
      Scenarios.last(opts[:seconds] * 500)
      Scenarios.finish(cluster, %{killed: killed, held_by_killed: held, outstanding: outstanding})
    end)
  end

  @doc """
  Group 5: a node is frozen for `:ms`, `:times` times. `others_stored` is the share of the keys owned
  by the other nodes that they stored at least once in the longest freeze.
  """
  def freeze(opts) do
    Scenarios.with_cluster(opts, [ms: 300, times: 5, keys: 96], fn cluster, opts ->
      frozen = List.last(cluster.names)
      Scenarios.last(500)
      of_others = keys_of_others(cluster, frozen, opts[:keys])

      stored =
        for _ <- 1..opts[:times] do
          Sink.forget_rows(cluster.sink)
          Cluster.suspend(cluster, frozen)
          Scenarios.last(opts[:ms])
          rows = Sink.read(cluster.sink).rows
          Cluster.resume(cluster, frozen)
          Scenarios.last(min(opts[:ms], 500))
          MapSet.new(for {key, node, _at, _age} <- rows, node != frozen, key in of_others, do: key)
        end

      shares = for keys <- stored, do: MapSet.size(keys) / max(1, length(of_others))
      Scenarios.finish(cluster, %{others_stored: Enum.max(shares)})
    end)
  end

  @doc """
  Group 6: `:times` netsplits of `:ms` between the first half of the nodes and the others, or between
  `sides: {indices, indices}`. `way: :one` changes the cookies on one side only. With `overlap_prevention:
  true` the VM cuts more connections than that, as it likes, so `members`, how many each node saw in
  the split, are fewer. `splits` has the length of each as the nodes saw it (`Netsplit.measure/3`).
  """
  def netsplit(opts) do
    prevention = Keyword.get(opts, :overlap_prevention, false)
    args = ~w(-kernel prevent_overlapping_partitions #{prevention})

    Scenarios.with_cluster(opts, [ms: 1_500, times: 1, way: :both, args: args], fn cluster, opts ->
      {left, right} = sides(cluster.names, opts[:sides])
      Scenarios.last(500)

      splits =
        for _ <- 1..opts[:times] do
          since = System.os_time(:microsecond)
          Netsplit.cut(left, right, way: opts[:way])
          Scenarios.last(opts[:ms])
          seen = for node <- cluster.names, do: Cluster.adapter(cluster, node, :members, [cluster.buffer])
          Netsplit.heal(cluster.names)
          Cluster.await_members(cluster)
          Scenarios.last(500)
          left |> Netsplit.measure(right, since) |> Map.put(:members, Enum.map(seen, &count/1))
        end

      Scenarios.finish(cluster, %{splits: splits})
    end)
  end

  @doc """
  Group 9: a process of the buffer of a random node is killed, all `:every` milliseconds for
  `:seconds`. `killed` counts them by name.
  """
  def kill_processes(opts) do
    Scenarios.with_cluster(opts, [seconds: 5, every: 100, gate: true], fn cluster, opts ->
      killed =
        for _ <- 1..div(opts[:seconds] * 1_000, opts[:every]) do
          Scenarios.last(opts[:every])
          Cluster.call(cluster, Enum.random(cluster.names), Victims, :kill_one, [])
        end

      Cluster.await_members(cluster)
      Scenarios.finish(cluster, %{killed: Enum.frequencies(killed)})
    end)
  end

  defp keys_of_others(cluster, frozen, keys) do
    for key <- 1..keys,
        Cluster.adapter(cluster, hd(cluster.names), :owner, [cluster.kind, cluster.buffer, key]) != frozen,
        do: key
  end

  defp sides(names, nil), do: Enum.split(names, div(length(names), 2))

  defp sides(names, {left, right}),
    do: {Enum.map(left, &Enum.at(names, &1)), Enum.map(right, &Enum.at(names, &1))}

  defp count(:alone), do: 1
  defp count(members), do: length(members)
end
