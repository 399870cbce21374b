defmodule Bench.Upserts do
  @moduledoc """
  Updates of rows in PostgreSQL: what bench/postgres.exs and its short form in the tests have in common.

  Several writers make updates `{key, value, version}`. Few keys get most of them (`Bench.Zipf`), and all versions come from
  one clock. A writer remembers what it has written, so at the end it is known what the table must hold.

  All updates come to the table by a conditional upsert: late or doubled ones change nothing, because the highest version
  stays. The rows of a statement are sorted by key, so two statements cannot wait for each other's rows.
  """

  alias Bench.Postgres
  alias Bench.Postgres.Client
  alias Bench.Zipf
  alias PartitionedBuffer.Map, as: Buffer

  @buffer :entries
  @writers 8
  @rows_per_statement 500
  @exponent 1.1

  # Every partition has a connection, as every writer has without a buffer.
  @partitions @writers
  @clients List.to_tuple(for n <- 1..@writers, do: :"postgres_#{n}")

  # Places in the counters of a run.
  @statements 1
  @rows 2
  @failures 3

  @typedoc "By key, the highest version and its value."
  @type fold() :: %{integer() => {version :: integer(), value :: String.t()}}

  ## The work

  @doc "So many `:updates` of so many `:keys`, chosen by a `:seed`."
  def work(updates: updates, keys: keys, seed: seed) do
    %{updates: updates, seed: seed, zipf: Zipf.new(keys, @exponent), clock: :atomics.new(1, [])}
  end

  @doc "Other updates with higher versions."
  def next(work), do: %{work | seed: work.seed + 1}

  @doc "Starts the writers. `write` gets the number of a writer and its updates as a stream, and returns their fold."
  @spec start_writers(map(), (pos_integer(), Enumerable.t() -> fold())) :: [Task.t()]
  def start_writers(work, write) do
    for writer <- 1..@writers, do: Task.async(fn -> write.(writer, updates(work, writer)) end)
  end

  @doc "Waits for the writers, and returns the fold over all that they have written."
  @spec await_writers([Task.t()]) :: fold()
  def await_writers(writers), do: writers |> Task.await_many(:infinity) |> Enum.reduce(&newest/2)

  @doc "Of each key the higher version of two."
  @spec newest(fold(), fold()) :: fold()
  def newest(one, other), do: Map.merge(one, other, fn _key, one, other -> max(one, other) end)

  # The version is taken when the update is.
  defp updates(work, writer) do
    Stream.unfold({share(work), :rand.seed_s(:exsss, {work.seed, writer, 0})}, fn
      {0, _rand} ->
        nil

      {left, rand} ->
        {key, rand} = Zipf.next(work.zipf, rand)
        version = :atomics.add_get(work.clock, 1, 1)
        {{key, "it's #{version}", version}, {left - 1, rand}}
    end)
  end

  defp share(work), do: div(work.updates, @writers)

  defp remember({key, value, version}, fold), do: Map.put(fold, key, {version, value})

  ## Three ways

  @doc "Through the buffer: the writers put, and it flushes."
  def through_buffer(postgres, work) do
    run(postgres, work, &children(Postgres.port(postgres), &1), fn _counters ->
      fold = work |> start_writers(fn _writer, updates -> put_all(updates) end) |> await_writers()
      flush()
      fold
    end)
  end

  @doc """
  The same, but the server is killed when the writers have made half of their updates, and is back after `outage` milliseconds.

  A lock sees to it that statements are under way when the server is killed. A fifth of the updates comes while it is locked,
  and a fifth while the server is away.
  """
  def through_outage(postgres, work, outage) do
    run(postgres, work, &children(Postgres.port(postgres), &1), fn _counters ->
      owner = self()
      [half, locked, down] = for tenths <- [5, 7, 9], do: div(share(work) * tenths, 10)

      reached = fn count ->
        if count in [half, locked, down] do
          send(owner, {:reached, count})
          receive do: (:go_on -> :ok)
        end
      end

      writers = start_writers(work, fn _writer, updates -> put_all(updates, reached) end)
      await_reached(writers, half)
      client = start_client(postgres)
      {:ok, _} = Client.query(client, "BEGIN")
      {:ok, _} = Client.query(client, "LOCK TABLE entries")
      go_on(writers)
      await_reached(writers, locked)
      await_waiting(client)
      Postgres.kill!(postgres)
      GenServer.stop(client)
      go_on(writers)
      await_reached(writers, down)
      Process.sleep(outage)
      Postgres.start!(postgres)
      go_on(writers)
      fold = await_writers(writers)
      flush()
      fold
    end)
  end

  defp await_reached(writers, count),
    do: for(_writer <- writers, do: receive(do: ({:reached, ^count} -> :ok)))

  defp go_on(writers), do: for(writer <- writers, do: send(writer.pid, :go_on))

  @doc "Without a buffer: a statement for each update."
  def directly(postgres, work) do
    without_buffer(postgres, work, fn updates, client, counters ->
      Enum.reduce(updates, %{}, fn {key, value, version} = update, fold ->
        :ok = upsert(client, [{key, value, version, 0}], counters)
        remember(update, fold)
      end)
    end)
  end

  @doc "Without a buffer: each writer collects as many updates as the buffer gives to its processor, and sends one statement."
  def in_chunks(postgres, work) do
    without_buffer(postgres, work, fn updates, client, counters ->
      updates
      |> Stream.chunk_every(@rows_per_statement)
      |> Enum.reduce(%{}, fn chunk, fold ->
        :ok = upsert(client, coalesce(chunk), counters)
        Enum.reduce(chunk, fold, &remember/2)
      end)
    end)
  end

  defp without_buffer(postgres, work, write) do
    run(postgres, work, fn _counters -> clients(Postgres.port(postgres)) end, fn counters ->
      work
      |> start_writers(fn writer, updates -> write.(updates, elem(@clients, writer - 1), counters) end)
      |> await_writers()
    end)
  end

  defp coalesce(updates) do
    rows =
      for {key, value, version} <- updates, reduce: %{} do
        rows -> Map.update(rows, key, {value, version, 0}, fn {_, _, n} -> {value, version, n + 1} end)
      end

    for {key, {value, version, updates}} <- rows, do: {key, value, version, updates}
  end

  # `write` returns the fold when all is stored.
  defp run(postgres, work, children, write) do
    create_table(postgres)
    counters = :counters.new(3, [])
    {:ok, tree} = Supervisor.start_link(children.(counters), strategy: :one_for_one)

    {fold, result} =
      try do
        began = System.monotonic_time(:microsecond)
        fold = write.(counters)
        ended = System.monotonic_time(:microsecond)

        {fold,
         %{
           updates: work.updates,
           statements: :counters.get(counters, @statements),
           rows: :counters.get(counters, @rows),
           failures: :counters.get(counters, @failures),
           seconds: (ended - began) / 1_000_000,
           differences: differences(postgres, fold, work)
         }}
      after
        Supervisor.stop(tree)
      end

    # A stop leaves it as it is.
    %{result | differences: result.differences ++ differences(postgres, fold, work)}
  end

  ## The buffer

  @doc "Connections and a buffer, for a supervision tree. `opts` are options of the buffer."
  def children(port, counters, opts \\ []) do
    buffer = [
      name: @buffer,
      processor: {__MODULE__, :process, [counters]},
      partitions: @partitions,
      processing_interval_ms: 200,
      processing_batch_size: @rows_per_statement,
      max_attempts: :infinity,
      retry_backoff_ms: {50, 500}
    ]

    clients(port) ++ [{Buffer, Keyword.merge(buffer, opts)}]
  end

  defp clients(port), do: for(name <- Tuple.to_list(@clients), do: {Client, name: name, port: port})

  @doc "The processor."
  def process([{key, _value, _version, _updates} | _] = batch, counters) do
    # That of the partition: the buffer routes a key like this.
    client = elem(@clients, :erlang.phash2(:erlang.phash2(key), @partitions))
    upsert(client, batch, counters)
  end

  @doc "Puts updates, and returns their fold. `reached` is called with the count after each of them."
  def put_all(updates, reached \\ fn _count -> :ok end) do
    {_count, fold} =
      Enum.reduce(updates, {0, %{}}, fn {key, value, version} = update, {count, fold} ->
        :ok = Buffer.put_newer(@buffer, key, value, version)
        reached.(count + 1)
        {count + 1, remember(update, fold)}
      end)

    fold
  end

  @doc "Returns when all that was put is stored."
  def flush, do: :ok = Buffer.flush(@buffer, timeout: 60_000)

  ## The table

  @doc "An empty table `entries`."
  def create_table(postgres) do
    client = start_client(postgres)
    {:ok, _} = Client.query(client, "DROP TABLE IF EXISTS entries")

    {:ok, _} =
      Client.query(client, """
      CREATE TABLE entries (
        key bigint PRIMARY KEY, value text NOT NULL, version bigint NOT NULL, updates bigint NOT NULL
      )
      """)

    GenServer.stop(client)
  end

  @doc "What the table holds."
  @spec stored(pid()) :: fold()
  def stored(postgres) do
    for [key, value, version] <- rows(postgres, "SELECT key, value, version FROM entries"), into: %{} do
      {String.to_integer(key), {String.to_integer(version), value}}
    end
  end

  @doc "Returns when a statement of another connection waits for a lock."
  def await_waiting(client) do
    {:ok, %{rows: [[waiting]]}} = Client.query(client, "SELECT count(*) FROM pg_locks WHERE NOT granted")
    if waiting == "0", do: await_waiting(client), else: :ok
  end

  @doc "How often the server had to end a statement because two of them waited for each other."
  def deadlocks(postgres) do
    [[count]] = rows(postgres, "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    String.to_integer(count)
  end

  @doc "In what two folds differ: a list of `{key, expected, stored}`."
  @spec differences(fold(), fold()) :: [{integer(), any(), any()}]
  def differences(expected, stored) do
    for key <- Map.keys(Map.merge(expected, stored)), expected[key] != stored[key] do
      {key, expected[key], stored[key]}
    end
  end

  # No update is counted twice. A stale one is not counted at all.
  defp differences(postgres, fold, work) do
    [[counted]] = rows(postgres, "SELECT sum(updates) FROM entries")
    counted = if String.to_integer(counted) > work.updates, do: [{:updates, work.updates, counted}], else: []
    counted ++ differences(fold, stored(postgres))
  end

  defp upsert(client, rows, counters) do
    :counters.add(counters, @statements, 1)
    :counters.add(counters, @rows, length(rows))

    case Client.query(client, rows |> Enum.sort() |> statement()) do
      {:ok, _result} ->
        :ok

      {:error, reason} ->
        :counters.add(counters, @failures, 1)
        {:error, reason}
    end
  end

  # An entry stands for the update that made it, and for those that have replaced its value.
  defp statement(rows) do
    values =
      Enum.map_intersperse(rows, ?,, fn {key, value, version, updates} ->
        literals = Enum.map_intersperse([key, value, version, updates + 1], ?,, &Client.literal/1)
        [?(, literals, ?)]
      end)

    [
      "INSERT INTO entries (key, value, version, updates) VALUES ",
      values,
      " ON CONFLICT (key) DO UPDATE SET value = excluded.value, version = excluded.version,",
      " updates = entries.updates + excluded.updates WHERE excluded.version > entries.version"
    ]
  end

  defp rows(postgres, sql) do
    client = start_client(postgres)
    {:ok, %{rows: rows}} = Client.query(client, sql, 60_000)
    GenServer.stop(client)
    rows
  end

  defp start_client(postgres) do
    {:ok, client} = Client.start_link(port: Postgres.port(postgres))
    client
  end
end
