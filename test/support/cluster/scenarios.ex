defmodule PartitionedBuffer.Test.Cluster.Scenarios do
  @moduledoc """
  Parts that the scenarios share. A scenario starts a cluster, loads it, lets something happen, and
  returns the numbers that it counted: those of `Accounting` and its own.

  Every scenario takes `:adapter`, `:kind`, `:nodes`, `:options` of the buffer and `:seconds`; the load
  is `:keys`, `:rate` of each writer and `:writers` of each node. A time of a scenario is the length of
  a load or of a failure, and no event is waited for by time.

    * `Steady`: hot keys.
    * `Members`: rolling restarts, members that join and leave.
    * `Failures`: killed nodes, frozen nodes, netsplits, killed processes.
    * `Limits`: clocks, full buffers.
  """

  alias PartitionedBuffer.Test.Cluster

  @doc """
  Starts a cluster and a load, runs a function that returns the cluster as it is then and a result, and
  stops all nodes. If it raises, the nodes end with the calling process.
  """
  def with_cluster(opts, defaults, fun) do
    opts = deep_merge(defaults, opts)
    cluster = Cluster.start(opts)
    {cluster, result} = cluster |> Cluster.load(Keyword.take(opts, [:keys, :rate, :writers])) |> fun.(opts)
    Cluster.stop(cluster)
    result
  end

  @doc "Ends the load, and returns the cluster with the accounts and the numbers of the scenario."
  def finish(cluster, numbers \\ %{}), do: {cluster, Map.merge(Cluster.finish(cluster), numbers)}

  @doc "The length of a load, or of a failure."
  def last(ms), do: Process.sleep(round(ms))

  @doc "Milliseconds that a function takes, and its result."
  def timed(fun) do
    {microseconds, result} = :timer.tc(fun)
    {div(microseconds, 1_000), result}
  end

  # The options of the buffer are merged, not replaced.
  defp deep_merge(defaults, opts) do
    options = Keyword.merge(Keyword.get(defaults, :options, []), Keyword.get(opts, :options, []))
    defaults |> Keyword.merge(opts) |> Keyword.put(:options, options)
  end
end
