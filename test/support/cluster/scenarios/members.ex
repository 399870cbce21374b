defmodule PartitionedBuffer.Test.Cluster.Scenarios.Members do
  @moduledoc false

  alias PartitionedBuffer.Test.Cluster
  alias PartitionedBuffer.Test.Cluster.{Scenarios, Sink, Vitals}

  @doc """
  Group 2: every node is stopped and started again, one after the other, under load. With `sink: :down`
  the sink is down before the first stop and until the last node is back. `stops_ms` is how long each
  stop took.
  """
  def rolling_restart(opts) do
    Scenarios.with_cluster(opts, [seconds: 1, sink: :up], fn cluster, opts ->
      Scenarios.last(opts[:seconds] * 500)
      Sink.switch(cluster.sink, opts[:sink])
      Scenarios.last(opts[:seconds] * 500)

      {cluster, stops} =
        Enum.reduce(cluster.names, {cluster, []}, fn node, {cluster, stops} ->
          {ms, cluster} = Scenarios.timed(fn -> Cluster.halt(cluster, node) end)
          {cluster |> Cluster.boot([node]) |> Cluster.await_members(), [ms | stops]}
        end)

      Scenarios.finish(cluster, %{stops_ms: Enum.reverse(stops)})
    end)
  end

  @doc "Group 3: the buffers of random nodes stop and start again, `:times` times in `:seconds`."
  def join_and_leave(opts) do
    Scenarios.with_cluster(opts, [seconds: 5, times: 10], fn cluster, opts ->
      pause = opts[:seconds] * 1_000 / opts[:times] / 2

      for _ <- 1..opts[:times] do
        node = Enum.random(cluster.names)
        Cluster.stop_buffer(cluster, node)
        Scenarios.last(pause)
        Cluster.start_buffer(cluster, node)
        Scenarios.last(pause)
      end

      Cluster.await_members(cluster)
      Scenarios.finish(cluster)
    end)
  end

  @doc """
  Group 10: the buffer of the last node stops and starts again, `:cycles` times. `stayed` and `moved`
  are the growth of the first and the last node (`Vitals`) since the end of `:warmup` cycles.
  """
  def cycles(opts) do
    Scenarios.with_cluster(opts, [cycles: 50, warmup: 20, nodes: 2, rate: 50], fn cluster, opts ->
      [stays, moves] = [hd(cluster.names), List.last(cluster.names)]
      vitals = fn -> for node <- [stays, moves], do: Cluster.call(cluster, node, Vitals, :read, []) end

      cycle = fn _number ->
        Cluster.stop_buffer(cluster, moves)
        Cluster.start_buffer(cluster, moves)
        Cluster.await_members(cluster)
      end

      Enum.each(1..opts[:warmup], cycle)
      # All code is loaded after a flush.
      Cluster.settle(cluster)
      vitals.()
      before = vitals.()
      {ms, :ok} = Scenarios.timed(fn -> Enum.each(1..opts[:cycles], cycle) end)
      [stayed, moved] = Enum.zip_with(before, vitals.(), &Vitals.growth/2)
      Scenarios.finish(cluster, %{stayed: stayed, moved: moved, cycle_ms: ms / opts[:cycles]})
    end)
  end
end
