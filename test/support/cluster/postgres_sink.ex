defmodule PartitionedBuffer.Test.Cluster.PostgresSink do
  @moduledoc false
  # A sink that writes to PostgreSQL. It answers the calls of `Sink`.
  #
  # Each batch is one statement. Statements of several nodes can deadlock unless each is sorted by key:
  # every node has its connections, in this VM, so its statements run beside those of other nodes. A
  # batch waits for a free connection.

  use GenServer

  alias PartitionedBuffer.Test.Cluster.Sink

  # bench/support is compiled by the tests that need it.
  @compile {:no_warn_undefined, Bench.Postgres.Client}
  alias Bench.Postgres.Client

  @table "cluster_rows"
  @statement_ms 60_000

  defstruct [
    :kind,
    :port,
    connections: 2,
    order: :given,
    free: %{},
    waiting: %{},
    sink: nil,
    statements: 0,
    errors: %{},
    before: nil,
    client: nil
  ]

  @doc """
  Options: the `:port` of the server, `:connections` of each node (2), and the
  `:order` of the rows in a statement: `:given` as by the buffer, `:sorted`, or `:shuffled`.
  """
  def start_link(kind, opts), do: GenServer.start_link(__MODULE__, {kind, opts})

  @doc """
  What the server did since the start: `statements` that it carried out, `updated` rows, `wal` bytes, and
  `errors` by SQLSTATE.
  """
  def counts(sink), do: GenServer.call(sink, :counts, :infinity)

  @impl GenServer
  def init({kind, opts}) do
    state = struct!(%__MODULE__{kind: kind, sink: %Sink{kind: kind}}, opts)
    {:ok, client} = Client.start_link(port: state.port)

    for sql <- [
          "DROP TABLE IF EXISTS #{@table}",
          "CREATE TABLE #{@table} (key bigint PRIMARY KEY, sum bigint, version bigint, value text)"
        ],
        do: query!(client, sql)

    state = %{state | client: client}
    {:ok, %{state | before: server(state)}}
  end

  @impl GenServer
  def handle_call({:store, node, entries}, from, state) do
    batch = {from, entries}
    {:noreply, state |> connect(node) |> update(:waiting, node, &[batch | &1]) |> run(node)}
  end

  def handle_call({:give_up, node, entries, reason}, _from, state) do
    given_up = for entry <- entries, do: {elem(entry, 0), elem(entry, 1), node, reason}
    {:reply, :ok, update_in(state.sink.given_up, &(given_up ++ &1))}
  end

  # The server is down when it is killed, not by a mode.
  def handle_call({:switch, :up}, _from, state), do: {:reply, :ok, state}

  def handle_call(:read, _from, state),
    do: {:reply, %{state.sink | table: table(state), calls: state.statements}, state}

  def handle_call(:counts, _from, state) do
    later = server(state)
    counts = %{updated: later.updated - state.before.updated, wal: later.wal - state.before.wal}
    {:reply, Map.merge(counts, %{statements: state.statements, errors: state.errors}), state}
  end

  @impl GenServer
  def handle_info({:done, node, client, from, result}, state) do
    GenServer.reply(from, with({:ok, _rows} <- result, do: :ok))
    {:noreply, state |> count(result) |> update(:free, node, &[client | &1]) |> run(node)}
  end

  defp connect(%{free: free} = state, node) when is_map_key(free, node), do: state

  defp connect(state, node) do
    clients =
      for _ <- 1..state.connections do
        {:ok, client} = Client.start_link(port: state.port)
        client
      end

    %{state | free: Map.put(state.free, node, clients), waiting: Map.put(state.waiting, node, [])}
  end

  defp update(state, field, node, fun), do: Map.update!(state, field, &Map.update!(&1, node, fun))

  defp run(state, node) do
    with [client | free] <- state.free[node],
         [{from, entries} | waiting] <- Enum.reverse(state.waiting[node]) do
      sql = statement(state.kind, in_order(entries, state.order))
      sink = self()
      spawn_link(fn -> send(sink, {:done, node, client, from, Client.query(client, sql, @statement_ms)}) end)

      state
      |> update(:free, node, fn _ -> free end)
      |> update(:waiting, node, fn _ -> Enum.reverse(waiting) end)
    else
      [] -> state
    end
  end

  defp count(state, {:ok, _rows}), do: %{state | statements: state.statements + 1}

  defp count(state, {:error, %{code: code}}),
    do: %{state | errors: Map.update(state.errors, code, 1, &(&1 + 1))}

  defp in_order(entries, :given), do: entries
  defp in_order(entries, :sorted), do: Enum.sort(entries)
  defp in_order(entries, :shuffled), do: Enum.shuffle(entries)

  defp statement(:counter, entries) do
    rows = for {key, sum, _count} <- entries, do: "(#{key}, #{sum})"

    "INSERT INTO #{@table} AS t (key, sum) VALUES #{Enum.join(rows, ", ")} " <>
      "ON CONFLICT (key) DO UPDATE SET sum = t.sum + excluded.sum"
  end

  defp statement(:map, entries) do
    rows = for {key, value, version, _updates} <- entries, do: "(#{key}, #{version}, '#{encode(value)}')"

    "INSERT INTO #{@table} AS t (key, version, value) VALUES #{Enum.join(rows, ", ")} " <>
      "ON CONFLICT (key) DO UPDATE SET version = excluded.version, value = excluded.value " <>
      "WHERE t.version <= excluded.version"
  end

  defp table(%{kind: :counter, client: client}) do
    for [key, sum] <- query!(client, "SELECT key, sum FROM #{@table}"),
        into: %{},
        do: {integer(key), integer(sum)}
  end

  defp table(%{kind: :map, client: client}) do
    for [key, version, value] <- query!(client, "SELECT key, version, value FROM #{@table}"),
        into: %{},
        do: {integer(key), {integer(version), decode(value)}}
  end

  defp server(state) do
    # A connection reports its counts a second later, unless it is forced to (PostgreSQL 15).
    for client <- [state.client | Enum.concat(Map.values(state.free))],
        do: Client.query(client, "SELECT pg_stat_force_next_flush()")

    sql =
      "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint, coalesce(sum(n_tup_upd), 0)::bigint " <>
        "FROM pg_stat_user_tables"

    [[wal, updated]] = query!(state.client, sql)
    %{wal: integer(wal), updated: integer(updated)}
  end

  defp query!(client, sql) do
    {:ok, %{rows: rows}} = Client.query(client, sql)
    rows
  end

  defp encode(value), do: value |> :erlang.term_to_binary() |> Base.encode16()
  defp decode(text), do: text |> Base.decode16!() |> :erlang.binary_to_term()
  defp integer(text), do: String.to_integer(text)
end
