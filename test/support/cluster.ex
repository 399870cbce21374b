defmodule PartitionedBuffer.Test.Cluster do
  @moduledoc """
  A buffer on several nodes, with a ledger of all writes and a sink, for the tests of several nodes and
  `bench/cluster.exs`.

      cluster = Cluster.start(adapter: Adapter.Clustered, kind: :counter, nodes: 4)
      cluster = Cluster.load(cluster, keys: 100, rate: 2_000, writers: 2)
      ...
      Cluster.finish(cluster)

  The nodes are OS processes on 127.0.0.1. This VM is the controller: a hidden node, so it is no
  member, with the sink and the ledger. Everything ends with the process that called `start/1`.

    * `Controller` and `Peer`: epmd, distribution, and a node that can be stopped, killed and frozen.
    * `Host`: the buffer and the writers of a node, in two applications.
    * `Writer` and `Ledger`: the writes, and those acknowledged.
    * `Processor`, `Sink` and `Rows`: the stored entries, each with its node and time.
    * `Accounting`: the difference between ledger and sink.
    * `Netsplit` and `Links`: splits, and how long they were.
    * `Adapter`: the buffer under test.
    * `Scenarios`: loads and failures, with the numbers that they counted.
  """

  alias PartitionedBuffer.Test.Cluster.{
    Accounting,
    Controller,
    Host,
    Ledger,
    Peer,
    Processor,
    Sink,
    Until,
    Writer
  }

  @enforce_keys [:adapter, :kind, :buffer, :options, :args, :names, :peers, :sink, :ledger]
  defstruct @enforce_keys ++ [load: nil, gate: false]

  # In milliseconds.
  @settle_ms 60_000
  @members_ms 30_000

  @doc """
  Starts nodes with the buffer. Returns when every node sees every other.

  Options: `:adapter`, `:kind` (`:counter`, `:map`), `:nodes` (4), `:options` of the buffer
  (`t:Adapter.options/0`), `:args` of `erl`, `:gate` (`Gate`), `:store`, the sink with its options:
  `{Sink, []}` or `{PostgresSink, port: port}`.
  """
  def start(opts) do
    Controller.start()
    run = System.unique_integer([:positive])
    names = for n <- 1..Keyword.get(opts, :nodes, 4), do: :"n#{n}_#{run}_#{System.pid()}@#{Controller.host()}"
    {store, store_opts} = Keyword.get(opts, :store, {Sink, []})
    {:ok, sink} = store.start_link(opts[:kind], store_opts)
    {:ok, ledger} = Ledger.start_link()

    cluster = %__MODULE__{
      adapter: opts[:adapter],
      kind: opts[:kind],
      buffer: :"cluster_#{run}",
      options: Keyword.get(opts, :options, []),
      args: Keyword.get(opts, :args, []),
      names: names,
      peers: %{},
      sink: sink,
      ledger: ledger,
      gate: Keyword.get(opts, :gate, false)
    }

    cluster |> boot(names) |> await_members()
  end

  @doc "Starts these nodes (again), with the buffer, and with writers if there is a load."
  def boot(cluster, names) do
    peers = Peer.start(names, cluster.args)
    cluster = %{cluster | peers: Map.merge(cluster.peers, Map.new(peers, &{&1.node, &1}))}
    for peer <- peers, do: Peer.call(peer, Host, :boot, [])
    connect(nodes(cluster))
    for node <- names, do: start_buffer(cluster, node)
    if cluster.load, do: for(node <- names, do: start_writers(cluster, node))
    cluster
  end

  @doc "The nodes that run."
  def nodes(cluster), do: Enum.filter(cluster.names, &is_map_key(cluster.peers, &1))

  @doc "Starts the buffer on a running node, under an application."
  def start_buffer(cluster, node), do: call(cluster, node, Host, :start_buffer, [child_spec(cluster, node)])

  @doc "Stops the buffer on a node, as the end of its application does. The node and its writers go on."
  def stop_buffer(cluster, node), do: call(cluster, node, Host, :stop_buffer, [])

  @doc "Stops a node, as a deploy does. Returns after its end."
  def halt(cluster, node) do
    Peer.stop(cluster.peers[node])
    %{cluster | peers: Map.delete(cluster.peers, node)}
  end

  @doc "Kills a node."
  def kill(cluster, node) do
    Peer.kill(cluster.peers[node])
    %{cluster | peers: Map.delete(cluster.peers, node)}
  end

  def suspend(cluster, node), do: Peer.suspend(cluster.peers[node])
  def resume(cluster, node), do: Peer.resume(cluster.peers[node])

  @doc """
  Starts writers on all nodes, and on nodes that boot later. Options: `:writers` on each node (2),
  `:rate` of each writer in writes a second (1_000, or `:max`), `:keys` (1_000).
  """
  def load(cluster, opts) do
    cluster = %{cluster | load: Map.merge(%{writers: 2, rate: 1_000, keys: 1_000}, Map.new(opts))}
    for node <- nodes(cluster), do: start_writers(cluster, node)
    cluster
  end

  @doc "Ends all writers. Their last reports are in the ledger."
  def stop_load(cluster) do
    parallel(nodes(cluster), &call(cluster, &1, Host, :stop_writers, []))
    %{cluster | load: nil}
  end

  @doc "Calls a function of the adapter on a node."
  def adapter(cluster, node, function, args), do: call(cluster, node, cluster.adapter, function, args)

  @doc "Waits until every running node sees these members: by default all that run."
  def await_members(cluster, members \\ nil) do
    members = Enum.sort(members || nodes(cluster))
    for node <- members, do: await_members(cluster, node, members)
    cluster
  end

  @doc """
  Flushes all nodes until none holds anything. Returns how many entries are held: 0, unless the time is
  up. A flush fails while a slot moves or a node does not answer, and is repeated.
  """
  def settle(cluster, ms \\ @settle_ms) do
    Until.true?(ms, fn ->
      flushed = parallel(nodes(cluster), &try_adapter(cluster, &1, :flush, [cluster.buffer, 10_000]))
      Enum.all?(flushed, &(&1 == :ok)) and held(cluster) == 0
    end)

    held(cluster)
  end

  @doc "How many entries all nodes hold."
  def held(cluster), do: Enum.sum(on_all(cluster, :held, [cluster.buffer]))

  @doc "How many writes (maps) or additions were acknowledged and are not stored now."
  def outstanding(cluster), do: accounts(cluster, held(cluster)).residue

  @doc "Ends the load, settles, and returns the accounts (`Accounting`) with the counts of the buffers."
  def finish(cluster) do
    cluster = stop_load(cluster)
    :ok = Sink.switch(cluster.sink, :up)
    held = settle(cluster)
    cluster |> accounts(held) |> Map.put(:totals, totals(cluster))
  end

  @doc "Stops all nodes at once."
  def stop(cluster) do
    for {_node, peer} <- cluster.peers, do: Peer.kill(peer)
    for process <- [cluster.sink, cluster.ledger], do: GenServer.stop(process)
    :ok
  end

  def call(cluster, node, module, function, args), do: Peer.call(cluster.peers[node], module, function, args)

  defp accounts(cluster, held) do
    ledger = Ledger.read(cluster.ledger)
    Accounting.residue(cluster.kind, ledger, Sink.read(cluster.sink), held, length(cluster.names))
  end

  defp child_spec(cluster, node) do
    options =
      Keyword.merge(cluster.options,
        name: cluster.buffer,
        processor: {Processor, :deliver, [cluster.sink, cluster.gate]},
        dead_letter: {Processor, :give_up, [cluster.sink]}
      )

    adapter(cluster, node, :child_spec, [cluster.kind, options])
  end

  defp start_writers(cluster, node) do
    for writer <- 1..cluster.load.writers do
      config =
        Map.merge(cluster.load, %{
          adapter: cluster.adapter,
          kind: cluster.kind,
          buffer: cluster.buffer,
          ledger: cluster.ledger,
          index: Enum.find_index(cluster.names, &(&1 == node)),
          nodes: length(cluster.names),
          writer: writer - 1
        })

      spec = Host.writer_spec({Writer, :start_link, [config]})
      call(cluster, node, Host, :start_writer, [spec])
    end
  end

  defp connect(nodes), do: for(a <- nodes, b <- nodes, a < b, do: true = :erpc.call(a, Node, :connect, [b]))

  defp await_members(cluster, node, members) do
    see = fn -> try_adapter(cluster, node, :members, [cluster.buffer]) end

    Until.true?(@members_ms, fn -> see.() in [:alone, members] end) ||
      raise "#{node} sees the members #{inspect(see.())}, not #{inspect(members)}"
  end

  # A buffer that is just restarting raises.
  defp try_adapter(cluster, node, function, args) do
    adapter(cluster, node, function, args)
  rescue
    error -> {:error, error}
  end

  defp totals(cluster) do
    cluster
    |> on_all(:info, [cluster.buffer])
    |> Enum.map(& &1.totals)
    |> Enum.reduce(%{}, &Map.merge(&1, &2, fn _name, one, other -> one + other end))
  end

  defp on_all(cluster, function, args), do: parallel(nodes(cluster), &adapter(cluster, &1, function, args))

  defp parallel(nodes, fun),
    do: nodes |> Enum.map(&Task.async(fn -> fun.(&1) end)) |> Task.await_many(@settle_ms)
end
