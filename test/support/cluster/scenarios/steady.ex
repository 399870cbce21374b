defmodule PartitionedBuffer.Test.Cluster.Scenarios.Steady do
  @moduledoc false

  alias PartitionedBuffer.Test.Cluster.{PostgresSink, Rows, Scenarios, Sink}

  @doc """
  Group 1: all nodes write the same keys. Beside the accounts: `rows_per_key`, in each interval;
  `by_two_nodes`, how often two nodes stored a key within half an interval; `ages_ms` of a map's
  values when they are stored, at 0.5 and 0.99. The
  counted time begins and ends between two intervals.
  """
  def hot_keys(opts) do
    Scenarios.with_cluster(opts, [seconds: 3, keys: 96, rate: 2_000], fn cluster, opts ->
      interval = Keyword.get(opts[:options], :processing_interval_ms, 1_000)
      Scenarios.last(interval * 1.5)
      Sink.forget_rows(cluster.sink)
      Scenarios.last(opts[:seconds] * 1_000)
      rows = Sink.read(cluster.sink).rows

      Scenarios.finish(cluster, %{
        rows_per_key: Rows.per_key(rows) * interval / (opts[:seconds] * 1_000),
        by_two_nodes: Rows.by_two_nodes(rows, interval),
        ages_ms: Rows.ages(rows, [0.5, 0.99])
      })
    end)
  end

  @doc """
  Group 12: as group 1, with `store: {PostgresSink, …}`. `postgres` has what the server counted
  (`PostgresSink.counts/1`).
  """
  def postgres(opts) do
    Scenarios.with_cluster(opts, [seconds: 5, keys: 400, rate: 2_000], fn cluster, opts ->
      Scenarios.last(opts[:seconds] * 1_000)
      {cluster, accounts} = Scenarios.finish(cluster)
      {cluster, Map.put(accounts, :postgres, PostgresSink.counts(cluster.sink))}
    end)
  end
end
