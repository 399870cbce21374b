defmodule PartitionedBuffer.RecipesTest do
  # Runs the statements of the guides, and the example of the README, on a PostgreSQL server. `mix test --exclude postgres` leaves
  # it out on a machine without PostgreSQL.

  use PartitionedBuffer.Case, async: true

  for file <- ~w(postgres_client postgres zipf),
      do: Code.require_file("../../bench/support/#{file}.ex", __DIR__)

  alias Bench.{Postgres, Zipf}
  alias Bench.Postgres.Client
  alias PartitionedBuffer.{Counter, Guide, Queue}

  # Connections are lost, and buffers report failures.
  @moduletag :capture_log
  @moduletag :postgres
  @moduletag timeout: 300_000

  @guides ["guides/counting.md", "guides/processors.md", "guides/several-nodes.md"]

  setup_all do
    if missing = Postgres.missing(),
      do: raise("#{missing}, or leave these tests out with `mix test --exclude postgres`")

    {:ok, server: start_supervised!(Postgres), statements: statements()}
  end

  setup %{server: postgres, statements: statements} do
    client = start_client(postgres)

    for {"CREATE TABLE " <> _ = create, _number} <- Enum.with_index(statements) do
      [_, table] = Regex.run(~r/^CREATE TABLE (\w+)/, create)
      {:ok, _} = Client.query(client, "DROP TABLE IF EXISTS #{table}")
      {:ok, _} = Client.query(client, create)
    end

    {:ok, client: client}
  end

  defp statements do
    for guide <- @guides,
        [_, sql] <- Regex.scan(~r/^```sql\n(.*?)^```/ms, File.read!(Guide.path(guide))),
        do: String.trim(sql)
  end

  # The statement that begins like this.
  defp statement(statements, beginning) do
    [statement] = Enum.filter(statements, &String.starts_with?(&1, beginning))
    statement
  end

  defp start_client(postgres),
    do: start_supervised!({Client, port: Postgres.port(postgres)}, id: make_ref())

  # The client has no parameters.
  defp run(client, statement, parameters) do
    sql =
      for {parameter, number} <- Enum.with_index(parameters, 1), reduce: statement do
        sql -> String.replace(sql, "$#{number}", IO.iodata_to_binary(literal(parameter)))
      end

    Client.query(client, sql)
  end

  defp literal(list) when is_list(list),
    do: ["ARRAY[", list |> Enum.map(&literal/1) |> Enum.intersperse(", "), "]"]

  defp literal(nil), do: "NULL"
  defp literal(value), do: Client.literal(value)

  defp table(client, select) do
    {:ok, %{rows: rows}} = Client.query(client, select)
    Map.new(rows, fn [key | numbers] -> {key, Enum.map(numbers, &String.to_integer/1)} end)
  end

  # Adds from several processes, to few keys most often; returns the sum and the count of each.
  defp count_up(buffers, additions, amount) do
    zipf = Zipf.new(200, 1.1)

    1..4
    |> Enum.map(fn writer ->
      Task.async(fn ->
        {sums, _rand} =
          Enum.reduce(1..additions, {%{}, :rand.seed_s(:exsss, {writer, 1, 1})}, fn n, {sums, rand} ->
            {key, rand} = Zipf.next(zipf, rand)
            path = "/it's/#{key}"
            :ok = Counter.add(Enum.at(buffers, rem(n, length(buffers))), path, amount.(n))

            {Map.update(sums, path, [amount.(n), 1], fn [sum, count] -> [sum + amount.(n), count + 1] end),
             rand}
          end)

        sums
      end)
    end)
    |> Task.await_many(60_000)
    |> Enum.reduce(&merge/2)
  end

  defp merge(sums, others), do: Map.merge(sums, others, fn _path, [a, m], [b, n] -> [a + b, m + n] end)

  defp count_until(enough?, buffer, sums) do
    sums = merge(sums, count_up([buffer], 250, fn n -> rem(n, 5) - 1 end))
    Process.sleep(1)
    if :atomics.get(enough?, 1) == 1, do: sums, else: count_until(enough?, buffer, sums)
  end

  defp start_counter(processor, opts \\ []),
    do: start_buffer([module: Counter, processor: processor, processing_interval_ms: 5] ++ opts)

  # Sorted columns of a batch.
  defp columns(batch, elements),
    do: for(element <- elements, do: batch |> Enum.sort() |> Enum.map(&elem(&1, element)))

  # Two buffers as on two nodes, each with connections of its own, and a processor that stores `elements` of each entry. Returns
  # them, and counts of calls and failures.
  defp start_nodes(postgres, statement, elements, opts) do
    counts = :counters.new(2, [])

    nodes =
      for _node <- 1..2 do
        connections = for _ <- 1..2, do: start_client(postgres)
        start_buffer([processor: {__MODULE__, :store, [statement, elements, connections, counts]}] ++ opts)
      end

    {nodes, counts}
  end

  def store(batch, statement, elements, connections, counts) do
    :counters.add(counts, 1, 1)

    with {:error, reason} <- run(Enum.random(connections), statement, columns(batch, elements)) do
      :counters.add(counts, 2, 1)
      {:error, reason}
    end
  end

  test "the example of the README stores what it counts", %{client: client, server: postgres} do
    {_number, lines} =
      Enum.find(Guide.blocks("README.md"), fn {_number, lines} -> hd(lines) =~ "PageViews" end)

    {module, _rest} = Enum.split_while(lines, &(&1 != "end"))
    connection = :readme_connection
    start_supervised!({Client, port: Postgres.port(postgres), name: connection})

    source =
      Enum.join(module ++ ["end"], "\n")
      |> String.replace("defmodule MyApp.PageViews", "defmodule #{inspect(__MODULE__)}.PageViews")
      |> String.replace("Postgrex.query(MyApp.DB,", "#{inspect(__MODULE__)}.query(#{inspect(connection)},")

    [{page_views, _binary}] = Code.compile_string(source)
    start_supervised!({page_views, processing_interval_ms: 5, partitions: 2})

    for n <- 1..1_000, do: page_views.view("/#{rem(n, 10)}")
    # Text that the server refuses.
    for bad <- [<<255>>, "/\0"], do: assert(page_views.view(bad) == :ok)
    assert page_views.flush() == :ok
    for _ <- 1..5, do: page_views.view("/0")
    assert page_views.stop() == :ok

    assert table(client, "SELECT path, views FROM page_views") ==
             Map.new(0..9, &{"/#{&1}", [if(&1 == 0, do: 105, else: 100)]})
  end

  def query(connection, sql, parameters), do: run(connection, sql, parameters)

  test "entries of put come to their rows in the order of the writes", context do
    %{server: postgres, client: client, statements: statements} = context
    upsert = statement(statements, "INSERT INTO sessions")
    opts = [processing_interval_ms: 1, processing_batch_size: 20, max_attempts: 3]
    {[buffer, _other], counts} = start_nodes(postgres, upsert, [0, 1], opts)

    for n <- 1..20_000, do: Buffer.put(buffer, rem(n, 50), "it's #{n}")
    assert Buffer.flush(buffer) == :ok
    assert :counters.get(counts, 2) == 0
    {:ok, %{rows: rows}} = Client.query(client, "SELECT id, state FROM sessions ORDER BY id")
    assert rows == for(id <- 0..49, do: ["#{id}", "it's #{if id == 0, do: 20_000, else: 19_950 + id}"])
  end

  test "two nodes upsert the same keys without deadlock, and the newest stays",
       context do
    %{server: postgres, client: client, statements: statements} = context
    upsert = statement(statements, "INSERT INTO users")
    opts = [processing_interval_ms: 1, processing_batch_size: 100, max_attempts: 3, partitions: 2]
    {nodes, counts} = start_nodes(postgres, upsert, [0, 1, 2], opts)
    clock = :atomics.new(1, [])

    put = fn node, id ->
      version = :atomics.add_get(clock, 1, 1)
      Buffer.put_newer(node, id, "#{version}", version)
    end

    update_until(nodes, put, counts, 1_000)
    for node <- nodes, id <- 1..200, do: put.(node, id)
    for node <- nodes, do: assert(Buffer.flush(node) == :ok)
    assert :counters.get(counts, 2) == 0, "there was a deadlock"
    rows = table(client, "SELECT id, version FROM users WHERE name = version::text")
    last = :atomics.get(clock, 1)
    assert rows == Map.new(1..200, &{"#{&1}", [last - 200 + &1]})
  end

  test "two nodes put the same keys with versions of the clock, and the last write stays", context do
    %{server: postgres, client: client, statements: statements} = context
    upsert = statement(statements, "INSERT INTO profiles")
    opts = [processing_interval_ms: 1, max_attempts: 3, partitions: 2, versions: :clock]
    {nodes, counts} = start_nodes(postgres, upsert, [0, 1, 2], opts)
    put = fn node, id -> Buffer.put(node, id, "#{System.unique_integer([:monotonic])}") end
    update_until(nodes, put, counts, 200)
    # One of both deletes, and the other one writes. Their clocks are the same.
    [one, other] = Enum.shuffle(nodes)
    for id <- 1..200, do: Buffer.put(one, id, "older")
    Process.sleep(1)
    for id <- 1..200, do: Buffer.put(other, id, if(rem(id, 2) == 0, do: "newer"))
    for node <- [other, one], do: assert(Buffer.flush(node) == :ok)
    assert :counters.get(counts, 2) == 0, "there was a deadlock"

    select = "SELECT count(*), count(name), min(name), max(name) FROM profiles"
    assert {:ok, %{rows: [["200", "100", "newer", "newer"]]}} = Client.query(client, select)

    # The tombstones of the guide.
    delete = statement(statements, "DELETE FROM profiles")
    {:ok, %{count: 0}} = run(client, delete, [(System.os_time(:microsecond) - 60_000_000) * 128])
    {:ok, %{count: 100}} = run(client, delete, [(System.os_time(:microsecond) + 60_000_000) * 128])
  end

  # Each node gets the keys in an order of its own.
  defp update_until(nodes, put, counts, calls) do
    for node <- nodes, id <- Enum.shuffle(1..200), do: put.(node, id)
    Process.sleep(1)
    if :counters.get(counts, 1) < calls, do: update_until(nodes, put, counts, calls)
  end

  test "the guide's statement for put_newer never replaces an entry of put", context do
    %{server: postgres, client: client, statements: statements} = context

    {[buffer, _other], _counts} =
      start_nodes(postgres, statement(statements, "INSERT INTO users"), [0, 1, 2], [])

    for name <- ["Ada", "Ada Lovelace", "Countess"] do
      Buffer.put(buffer, 7, name)
      Buffer.flush(buffer)
    end

    assert {:ok, %{rows: [["7", "Ada", "0"]]}} = Client.query(client, "SELECT * FROM users")
  end

  test "entries that the server refuses alone are given up, all others stored", context do
    %{server: postgres, client: client, statements: statements} = context
    upsert = statement(statements, "INSERT INTO users")
    {connection, calls, test} = {start_client(postgres), :counters.new(1, []), self()}

    # As in the guide.
    processor = fn batch ->
      :counters.add(calls, 1, 1)

      case run(connection, upsert, columns(batch, [0, 1, 2])) do
        {:ok, _result} ->
          :ok

        {:error, %{code: <<class::binary-size(2), _::binary>>} = error} when class in ["22", "23", "54"] ->
          if match?([_], batch), do: {:cancel, error}, else: {:error, error}
      end
    end

    buffer =
      start_buffer(
        processor: processor,
        processing_interval_ms: :infinity,
        processing_batch_size: 500,
        partitions: 1,
        max_attempts: 20,
        dead_letter: fn entries, error -> send(test, {:dead, entries, error.code}) end
      )

    for id <- 1..1_000, do: Buffer.put_newer(buffer, id, "it's #{id}", id)
    # Larger than a bigint.
    too_large = for n <- 0..2, do: 2 ** 63 + n
    for id <- too_large, do: Buffer.put_newer(buffer, id, "it's too large", 1)
    assert Buffer.flush(buffer) == :ok
    for _ <- too_large, do: assert_received({:dead, [{_id, "it's too large", 1, 0}], "22003"})
    assert {:ok, %{rows: [["1000"]]}} = Client.query(client, "SELECT count(*) FROM users")
    assert :counters.get(calls, 1) < 100
  end

  test "keys that are one row make a statement fail, as the guide says", context do
    %{client: client, statements: statements} = context
    upsert = statement(statements, "INSERT INTO sessions")
    assert {:error, %{code: "21000"}} = run(client, upsert, [[1, 1], ["a", "b"]])
  end

  test "items with an id are stored once, although their batches come again", context do
    %{server: postgres, client: client, statements: statements} = context
    insert = statement(statements, "INSERT INTO events")
    connection = start_client(postgres)

    # The answer is lost after one of three statements.
    processor = fn items ->
      {:ok, _} = run(connection, insert, columns(items, [0, 1]))
      if :rand.uniform(3) == 1, do: {:error, :closed}, else: :ok
    end

    opts = [max_attempts: :infinity, retry_backoff_ms: {0, 1}, processing_interval_ms: 1, partitions: 1]
    queue = start_buffer([module: Queue, processor: processor] ++ opts)
    for n <- 1..500, do: Queue.push(queue, {"id #{n}", "it's #{n}"})
    assert Queue.stop(queue) == :ok
    {:ok, %{rows: rows}} = Client.query(client, "SELECT id, body FROM events")
    assert Enum.sort(rows) == Enum.sort(for n <- 1..500, do: ["id #{n}", "it's #{n}"])
  end

  test "page views of two nodes add up to what was counted, without a deadlock", context do
    %{server: postgres, client: client, statements: statements} = context
    add_views = statement(statements, "INSERT INTO page_views")
    opts = [module: Counter, max_attempts: 3, processing_interval_ms: 5, processing_batch_size: 50]
    {buffers, counts} = start_nodes(postgres, add_views, [0, 1], opts)
    expected = count_up(buffers, 60_000, fn _n -> 1 end)
    Enum.each(buffers, &(:ok = Counter.flush(&1)))

    assert table(client, "SELECT path, views FROM page_views") ==
             Map.new(expected, fn {path, [views, _count]} -> {path, [views]} end)

    assert :counters.get(counts, 2) == 0
    assert :counters.get(counts, 1) > 20, "the statements of the nodes have met"
  end

  test "sums and counts give means, and a map gives the largest", context do
    %{client: client, statements: statements} = context
    latencies = statement(statements, "INSERT INTO latencies")
    slowest = statement(statements, "INSERT INTO slowest")

    counter =
      start_counter(fn batch ->
        [routes, totals, counts] = batch |> Enum.sort() |> Enum.map(&Tuple.to_list/1) |> Enum.zip_with(& &1)
        {:ok, _} = run(client, latencies, [routes, totals, counts])
      end)

    map =
      start_buffer(
        processing_interval_ms: 5,
        processor: fn batch ->
          {routes, largest} = batch |> Enum.sort() |> Enum.map(&{elem(&1, 0), elem(&1, 1)}) |> Enum.unzip()
          {:ok, _} = run(client, slowest, [routes, largest])
        end
      )

    amounts = for n <- 1..2_000, do: {"GET /#{rem(n, 7)}", rem(n * 7_919, 1_000)}

    for {route, us} <- amounts do
      Counter.add(counter, route, us)
      Buffer.put_newer(map, route, us, us)
    end

    {:ok, :ok} = {Counter.flush(counter), Buffer.flush(map)}
    groups = Enum.group_by(amounts, &elem(&1, 0), &elem(&1, 1))

    assert table(client, "SELECT route, total, count FROM latencies") ==
             Map.new(groups, fn {route, list} -> {route, [Enum.sum(list), length(list)]} end)

    assert table(client, "SELECT route, us FROM slowest") ==
             Map.new(groups, fn {route, list} -> {route, [Enum.max(list)]} end)
  end

  test "batch ids let nothing be missed or counted twice if the server dies",
       context do
    %{server: postgres, client: client, statements: statements} = context
    with_id = statement(statements, "WITH batch")
    take_id = statement(statements, "INSERT INTO batches")
    once = once()
    unanswered = :counters.new(1, [])
    lost = :counters.new(1, [])
    connection = start_client(postgres)

    store = fn batch, id ->
      case run(connection, with_id, columns(batch, [0, 1]) ++ [id]) do
        # Some answers are lost.
        {:ok, _} ->
          if :rand.uniform(3) == 1, do: :counters.add(lost, 1, 1) && :unknown, else: :ok

        {:error, %{code: "08" <> _}} ->
          :counters.add(unanswered, 1, 1) && :unknown

        {:error, %{code: "57P" <> _}} ->
          :unknown

        {:error, reason} ->
          {:error, reason}
      end
    end

    stored? = fn id ->
      case run(connection, take_id, [id]) do
        {:ok, %{rows: [[stored]]}} -> stored == "t"
        {:error, _reason} -> :unknown
      end
    end

    opts = [partitions: 1, max_attempts: :infinity, retry_backoff_ms: {5, 20}, processing_batch_size: 50]
    buffer = start_counter({once, :process, [store, stored?]}, opts)
    enough? = :atomics.new(1, [])
    writing = Task.async(fn -> count_until(enough?, buffer, %{}) end)

    for _ <- 1..3 do
      wait_for_batches(client, 3)
      Postgres.kill!(postgres)
      Postgres.start!(postgres)
    end

    :atomics.put(enough?, 1, 1)
    expected = Task.await(writing, 60_000)
    assert Counter.flush(buffer, timeout: 60_000) == :ok

    assert table(client, "SELECT path, views FROM page_views") ==
             Map.new(expected, fn {path, [views, _count]} -> {path, [views]} end)

    assert :counters.get(unanswered, 1) > 0, "the server was away"
    assert :counters.get(lost, 1) > 0, "answers were lost"
  end

  # The module of the guide, under a name of this test.
  defp once do
    [code] =
      for {_number, lines} <- Guide.blocks(hd(@guides)),
          Enum.any?(lines, &(&1 =~ "defmodule Guide.Once")),
          do: lines

    {module, _rest} = Enum.split_while(code, &(&1 != "end"))
    source = Enum.join(module ++ ["end"], "\n")

    [{module, _binary}] =
      Code.compile_string(String.replace(source, "Guide.Once", inspect(__MODULE__) <> ".Once"))

    module
  end

  # Until so many more batches are stored. The server may have lost this connection.
  defp wait_for_batches(client, more, from \\ nil) do
    count =
      case Client.query(client, "SELECT count(*) FROM batches") do
        {:ok, %{rows: [[count]]}} -> String.to_integer(count)
        {:error, _reason} -> from || 0
      end

    from = from || count
    if count < from + more, do: Process.sleep(1) && wait_for_batches(client, more, from)
  end
end
