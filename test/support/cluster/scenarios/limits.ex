defmodule PartitionedBuffer.Test.Cluster.Scenarios.Limits do
  @moduledoc false

  alias PartitionedBuffer.Test.Cluster
  alias PartitionedBuffer.Test.Cluster.{Direct, Ledger, Scenarios, Sink}

  @hour_ms 3_600_000

  @doc """
  Group 8: the sink is down until every node refuses writes, and up again for `:seconds`.
  `held_full` is what each node held then, `refused` how many writes each node refused.
  `options: [owners: 1]` fills the owner first.
  """
  def full(opts) do
    defaults = [
      seconds: 2,
      keys: 20_000,
      rate: 2_000,
      options: [max_size: 2_000, when_full: :error, full_timeout_ms: 200]
    ]

    Scenarios.with_cluster(opts, defaults, fn cluster, opts ->
      Sink.switch(cluster.sink, :down)
      :ok = Ledger.await(cluster.ledger, &all_refuse?(&1, length(cluster.names)))
      held = for node <- cluster.names, do: Cluster.adapter(cluster, node, :held, [cluster.buffer])
      refused = for {_node, written} <- Ledger.read(cluster.ledger).nodes, do: written.full
      Sink.switch(cluster.sink, :up)
      Scenarios.last(opts[:seconds] * 1_000)
      {cluster, accounts} = Scenarios.finish(cluster, %{held_full: held, refused_writes: refused})
      # A write that waits for room gets its version when it has some, so it may be newer than one that
      # began later.
      {cluster, Map.delete(accounts, :back)}
    end)
  end

  @doc """
  Group 7, a clock ahead by `:ms` on one node: that node writes `:keys`, and after an exchange another
  node writes them. `later_wins` counts the keys for which the later write is stored. Without the exchange
  (`exchange: false`) the earlier one wins.
  """
  def clock_ahead(opts) do
    with_clocks(opts, [ms: 5_000, exchange: true], fn cluster, [one, other | _rest], keys, opts ->
      shift(cluster, one, opts[:ms])
      Direct.write(cluster, one, keys, 1)
      if opts[:exchange], do: exchange(cluster, other)
      Direct.write(cluster, other, keys, 2)
      Cluster.settle(cluster)
      {cluster, %{later_wins: Direct.count_stored(cluster, keys, 2), keys: length(keys)}}
    end)
  end

  @doc """
  Group 7, a clock that is set back by `:ms` (an hour) in a restart of the node: it writes keys before,
  and after an exchange again.
  """
  def clock_back(opts) do
    with_clocks(opts, [ms: @hour_ms], fn cluster, [one | _rest], keys, opts ->
      Direct.write(cluster, one, keys, 1)
      Cluster.settle(cluster)
      cluster = cluster |> Cluster.halt(one) |> Cluster.boot([one])
      shift(cluster, one, -opts[:ms])
      Cluster.await_members(cluster)
      exchange(cluster, one)
      Direct.write(cluster, one, keys, 2)
      Cluster.settle(cluster)
      {cluster, %{later_wins: Direct.count_stored(cluster, keys, 2), keys: length(keys)}}
    end)
  end

  @doc """
  Group 7, a clock ahead by a day, which nobody may follow: `followed` counts the keys of another node
  whose version is more than an hour ahead after an exchange. `ahead_ms` is what each node reports.
  """
  def clock_far(opts) do
    with_clocks(opts, [ms: 24 * @hour_ms], fn cluster, [one, other | _rest] = nodes, keys, opts ->
      shift(cluster, one, opts[:ms])
      Direct.write(cluster, one, keys, 1)
      exchange(cluster, other)
      others = Enum.map(keys, &(&1 + length(keys)))
      Direct.write(cluster, other, others, 2)
      Cluster.settle(cluster)

      result = %{
        followed: Direct.count_ahead(cluster, others, @hour_ms),
        keys: length(others),
        ahead_ms:
          for(node <- nodes, do: Cluster.adapter(cluster, node, :info, [cluster.buffer])[:clock_ahead_ms])
      }

      {cluster, result}
    end)
  end

  # A map without writers.
  defp with_clocks(opts, defaults, fun) do
    opts = Keyword.merge([nodes: 3, keys: 200] ++ defaults, opts) |> Keyword.put(:kind, :map)
    cluster = Cluster.start(opts)

    {cluster, result} = fun.(cluster, cluster.names, Enum.to_list(1..opts[:keys]), opts)
    Cluster.stop(cluster)
    result
  end

  defp shift(cluster, node, ms), do: Cluster.adapter(cluster, node, :shift_clock, [cluster.buffer, ms])

  # Everybody has what was written before. The node writes other keys, so it forwards to every owner, and
  # the answers carry their clocks.
  defp exchange(cluster, node) do
    Cluster.settle(cluster)
    Direct.write(cluster, node, Enum.to_list(100_001..101_000), 0)
    Cluster.settle(cluster)
  end

  defp all_refuse?(%{nodes: nodes}, count),
    do: map_size(nodes) == count and Enum.all?(nodes, fn {_node, written} -> written.full > 0 end)
end
