defmodule Bench.Mixed.Sink do
  @moduledoc """
  The tables of `Bench.Mixed` in PostgreSQL, their statements, and the processor.

  Each table has a second unique index, on the key in lower case, which a row of another writer can violate (`23505`). A
  statement sleeps for each of its rows, so the larger ones exceed `statement_timeout` (`57014`).
  """

  # It calls this module, so one of the two is compiled before the other.
  @compile {:no_warn_undefined, Bench.Mixed}

  alias Bench.Mixed
  alias Bench.Postgres.Client

  # In milliseconds. Statements of more than 160 rows take too long.
  @ms_per_row 0.5
  @statement_timeout 80
  @answer_within 5_000

  # Bad data, limits such as that of an index row, and constraints: the statement fails again, however often it is repeated.
  @refused %{
    newest: ["22", "54"],
    latest: ["22", "54"],
    sums: ["22", "54"],
    items: ["22", "54"],
    ordered: ["22", "23", "54"]
  }

  @columns %{
    newest: "value text NOT NULL, version bigint NOT NULL",
    latest: "value text NOT NULL",
    sums: "sum bigint NOT NULL",
    items: "value text NOT NULL",
    ordered: "value text NOT NULL"
  }

  @doc "The tables, one for each buffer."
  @spec tables() :: [Mixed.kind()]
  def tables, do: Map.keys(@columns)

  @doc "Creates empty tables, and sets the time limit of statements for new connections."
  @spec create(GenServer.server()) :: :ok
  def create(client) do
    for {table, columns} <- @columns,
        sql <- [
          "DROP TABLE IF EXISTS #{table}",
          "CREATE TABLE #{table} (key text PRIMARY KEY, #{columns})",
          "CREATE UNIQUE INDEX ON #{table} (lower(key))"
        ],
        do: run!(client, sql)

    run!(client, "DROP TABLE IF EXISTS batches")
    run!(client, "CREATE TABLE batches (id text PRIMARY KEY, stored boolean NOT NULL)")
    run!(client, "ALTER DATABASE postgres SET statement_timeout = #{@statement_timeout}")
  end

  @doc "Ends the time limit for new connections."
  @spec reset(GenServer.server()) :: :ok
  def reset(client), do: run!(client, "ALTER DATABASE postgres RESET statement_timeout")

  defp run!(client, sql) do
    {:ok, _} = Client.query(client, sql)
    :ok
  end

  @doc "What a table holds: by key, the value or sum. The rows of the other writer are left out."
  @spec stored(GenServer.server(), Mixed.kind()) :: %{String.t() => String.t() | integer()}
  def stored(client, table) do
    column = if table == :sums, do: "sum", else: "value"
    # The time limit is for the statements of the buffers.
    run!(client, "SET statement_timeout = 0")
    {:ok, %{rows: rows}} = Client.query(client, "SELECT key, #{column} FROM #{table} WHERE key = lower(key)")
    Map.new(rows, fn [key, value] -> {key, if(table == :sums, do: String.to_integer(value), else: value)} end)
  end

  @doc "Inserts a row that the given key violates, or deletes it. Returns whether the server did so."
  @spec take(GenServer.server(), Mixed.kind(), String.t()) :: boolean()
  def take(client, table, key) do
    values = for column <- columns(table), do: if(column == "value", do: "'taken'", else: "0")

    sql = [
      "INSERT INTO #{table} (#{Enum.join(["key" | columns(table)], ", ")}) VALUES (",
      Enum.intersperse([Client.literal(String.upcase(key)) | values], ", "),
      ") ON CONFLICT DO NOTHING"
    ]

    match?({:ok, %{count: 1}}, Client.query(client, sql, @answer_within))
  end

  @spec release(GenServer.server(), Mixed.kind(), String.t()) :: boolean()
  def release(client, table, key) do
    sql = ["DELETE FROM #{table} WHERE key = ", Client.literal(String.upcase(key))]
    match?({:ok, _}, Client.query(client, sql, @answer_within))
  end

  ## The processor

  @doc "Stores a batch, by the connection of its partition, and notes the outcome."
  def process(batch, kind, clients, notes) do
    client = client(batch, kind, clients)
    Mixed.note(notes, kind, :calls)

    case store(client, kind, batch) do
      :ok ->
        Mixed.stored(notes, kind, batch)
        :ok

      {:error, %{code: <<class::binary-size(2), _rest::binary>> = code} = error} ->
        Mixed.note(notes, kind, {:failed, code})
        if match?([_], batch) and class in @refused[kind], do: {:cancel, error}, else: {:error, error}
    end
  end

  # That of the partition: the buffer routes a key or an item like this.
  defp client([entry | _], kind, clients) do
    routed = if kind in [:items, :ordered], do: entry, else: elem(entry, 0)
    elem(clients, :erlang.phash2(:erlang.phash2(routed), tuple_size(clients)))
  end

  # A sum that is stored twice counts twice, so each statement has an id, which tells whether it was carried out.
  defp store(client, :sums, batch) do
    id = Base.encode16(:crypto.strong_rand_bytes(16))

    case run(client, statement(:sums, batch, id)) do
      {:error, %{code: <<class::binary-size(2), _rest::binary>>} = error} ->
        if class in ["08", "57"] and error.code != "57014",
          do: settle(client, id, error),
          else: {:error, error}

      :ok ->
        :ok
    end
  end

  defp store(client, kind, batch), do: run(client, statement(kind, batch, nil))

  # If the statement did not store its id, this one does, and then that one cannot do anything any more.
  defp settle(client, id, error) do
    sql =
      "INSERT INTO batches AS t (id, stored) VALUES ('#{id}', false) " <>
        "ON CONFLICT (id) DO UPDATE SET stored = t.stored RETURNING stored"

    case Client.query(client, sql, @answer_within) do
      {:ok, %{rows: [["t"]]}} ->
        :ok

      {:ok, %{rows: [["f"]]}} ->
        {:error, error}

      {:error, _no_answer} ->
        Process.sleep(100)
        settle(client, id, error)
    end
  end

  defp run(client, sql) do
    with {:ok, _result} <- Client.query(client, sql, @answer_within), do: :ok
  end

  # An upsert of sorted rows, or an insert in the order of a queue.
  defp statement(kind, batch, id) do
    [
      "WITH slow AS MATERIALIZED (SELECT pg_sleep(#{@ms_per_row / 1_000} * #{length(batch)}))",
      if(kind == :sums,
        do: ", batch AS (INSERT INTO batches VALUES ('#{id}', true) ON CONFLICT DO NOTHING RETURNING id)",
        else: ""
      ),
      " INSERT INTO #{kind} AS t (",
      Enum.join(["key" | columns(kind)], ", "),
      ") SELECT new.* FROM slow, ",
      if(kind == :sums, do: "batch, ", else: ""),
      "(VALUES ",
      rows(kind, batch),
      ") AS new ",
      conflict(kind)
    ]
  end

  defp columns(:newest), do: ["value", "version"]
  defp columns(:sums), do: ["sum"]
  defp columns(_kind), do: ["value"]

  defp rows(kind, batch) do
    batch = if kind in [:items, :ordered], do: batch, else: Enum.sort(batch)
    Enum.map_intersperse(batch, ", ", &["(", Enum.intersperse(row(kind, &1), ", "), ")"])
  end

  defp row(:newest, {key, value, version, _updates}), do: [text(key), text(value), Client.literal(version)]
  defp row(:latest, {key, value, _version, _updates}), do: [text(key), text(value)]
  defp row(:sums, {key, sum, _count}), do: [text(key), [Client.literal(sum), "::bigint"]]
  defp row(_queue, {key, value}), do: [text(key), text(value)]

  defp conflict(:newest),
    do:
      "ON CONFLICT (key) DO UPDATE SET value = excluded.value, version = excluded.version " <>
        "WHERE excluded.version > t.version"

  defp conflict(:latest), do: "ON CONFLICT (key) DO UPDATE SET value = excluded.value"
  defp conflict(:sums), do: "ON CONFLICT (key) DO UPDATE SET sum = t.sum + excluded.sum"
  defp conflict(_queue), do: "ON CONFLICT (key) DO NOTHING"

  # The server refuses an invalid text (`22021`).
  defp text(text) do
    if String.valid?(text) and not String.contains?(text, <<0>>),
      do: Client.literal(text),
      else: ["convert_from('\\x", Base.encode16(text), "', 'UTF8')"]
  end
end
