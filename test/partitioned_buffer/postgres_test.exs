defmodule PartitionedBuffer.PostgresTest do
  # A short form of bench/postgres.exs: a buffer before a PostgreSQL server that is killed. `mix test --exclude postgres` leaves
  # it out on a machine without PostgreSQL. POSTGRES_SEED sets the seed, POSTGRES_SECONDS the length of the mixed failures.

  use ExUnit.Case, async: true

  for file <- ~w(postgres_client postgres zipf upserts sigterm mixed_sink mixed),
      do: Code.require_file("../../bench/support/#{file}.ex", __DIR__)

  alias Bench.{Mixed, Postgres, Sigterm, Upserts, Zipf}
  alias Bench.Postgres.Client

  # Connections are lost, and the buffer reports failures.
  @moduletag :capture_log
  @moduletag :postgres
  @moduletag timeout: 300_000

  @seed String.to_integer(System.get_env("POSTGRES_SEED", "#{:erlang.phash2(make_ref())}"))

  @seconds String.to_integer(System.get_env("POSTGRES_SECONDS", "20"))

  setup_all do
    if missing = Postgres.missing(),
      do: raise("#{missing}, or leave these tests out with `mix test --exclude postgres`")

    {:ok, server: start_supervised!(Postgres)}
  end

  describe "a buffer before a server" do
    test "stores every write, though the server is killed and away for a second", %{
      server: postgres
    } do
      work = Upserts.work(updates: 20_000, keys: 500, seed: @seed)
      result = Upserts.through_outage(postgres, work, 1_000)
      assert result.differences == [], seeded(result)
      # The outage was met.
      assert result.failures > 0, seeded(result)
    end

    test "stores or dead-letters all writes if its VM gets SIGTERM in an outage", %{
      server: postgres
    } do
      result = Sigterm.run(postgres, updates: 4_000, keys: 500, seed: @seed)
      assert result.differences == [], seeded(result)
      # Half of the updates were stored, and the others could not be.
      assert result.stored > 0 and result.dead_letters > 0, seeded(result)
    end

    test "stores the same as statements for each update, or for collected ones", %{server: postgres} do
      for way <- [&Upserts.through_buffer/2, &Upserts.in_chunks/2, &Upserts.directly/2] do
        result = way.(postgres, Upserts.work(updates: 1_600, keys: 100, seed: @seed))
        assert result.differences == [], seeded(result)
        assert result.failures == 0, seeded(result)
      end
    end
  end

  test "mixed failures lose nothing, and delay few good writes by two intervals", %{server: postgres} do
    results = Mixed.run(postgres, seconds: @seconds, outages: Mixed.outages(@seconds), seed: @seed)

    for {_kind, result} <- results do
      assert result.differences == [], seeded(results)
      assert result.in_time >= 0.99, seeded(results)
    end

    # Bad data, keys too long and taken, large statements, and the outage were met.
    codes = for {_kind, result} <- results, {code, _count} <- result.failures, uniq: true, do: code
    for met <- ~w(22021 22003 54000 23505 57014), do: assert(met in codes, seeded(results))
    assert Enum.any?(codes, &String.starts_with?(&1, "08")), seeded(results)
  end

  describe "the comparison" do
    test "finds what is missing, what is too much, and what is older" do
      expected = %{1 => {10, "a"}, 2 => {20, "b"}, 3 => {30, "c"}}
      assert Upserts.differences(expected, expected) == []

      assert Enum.sort(Upserts.differences(expected, %{1 => {9, "z"}, 2 => {20, "b"}, 4 => {40, "d"}})) ==
               [{1, {10, "a"}, {9, "z"}}, {3, {30, "c"}, nil}, {4, nil, {40, "d"}}]
    end
  end

  describe "the client" do
    setup %{server: postgres} do
      {:ok, client: start_supervised!({Client, port: Postgres.port(postgres)})}
    end

    test "returns rows and counts", %{client: client} do
      assert Client.query(client, "SELECT 1, 'a', NULL") == {:ok, %{rows: [["1", "a", :null]], count: 1}}
      assert Client.query(client, "CREATE TEMPORARY TABLE t (n int)") == {:ok, %{rows: [], count: 0}}
      assert Client.query(client, "INSERT INTO t VALUES (1), (2)") == {:ok, %{rows: [], count: 2}}
    end

    test "writes integers and texts as literals", %{client: client} do
      for value <- [0, -1, 9_223_372_036_854_775_807, -9_223_372_036_854_775_808] do
        sql = ["SELECT ", Client.literal(value), "::bigint"]
        assert Client.query(client, sql) == {:ok, %{rows: [["#{value}"]], count: 1}}
      end

      for text <- ["", "'", "it's", "''; DROP TABLE entries; --", "\\", "\\'", "$$", "a\n\tb", "ä€😀"] do
        sql = ["SELECT ", Client.literal(text), "::text"]
        assert Client.query(client, sql) == {:ok, %{rows: [[text]], count: 1}}
      end

      for no_text <- ["a\0b", <<255>>],
          do: assert_raise(ArgumentError, ~r/zero bytes/, fn -> Client.literal(no_text) end)
    end

    test "returns errors of the server with their SQLSTATE, and goes on", %{client: client} do
      assert Client.query(client, "SELECT 1/0") == {:error, %{code: "22012", message: "division by zero"}}
      assert {:error, %{code: "42P01"}} = Client.query(client, "SELECT * FROM nowhere")
      assert {:error, %{code: "42601"}} = Client.query(client, "SELECT 1; SELECT 2")
      assert {:error, %{code: "42601"}} = Client.query(client, "")
      assert {:ok, _} = Client.query(client, "SELECT 1")
    end

    test "does not wait longer than it may", %{client: client} do
      assert {:error, %{code: "08006", message: "no answer in 50 ms"}} =
               Client.query(client, "SELECT pg_sleep(60)", 50)

      assert {:ok, _} = Client.query(client, "SELECT 1")
    end

    test "returns a lost connection as an error, and connects again", %{client: client, server: postgres} do
      # The other connection has to wait for the lock of the first one.
      {:ok, _} = Client.query(client, "SELECT pg_advisory_lock(1)")
      other = start_supervised!({Client, port: Postgres.port(postgres), name: :other})
      waiting = Task.async(fn -> Client.query(other, "SELECT pg_advisory_lock(1)", 60_000) end)
      Upserts.await_waiting(client)
      Postgres.kill!(postgres)
      assert {:error, %{code: "08006"}} = Task.await(waiting, 60_000)
      # The server is away. The first query may be the one that notices it.
      for client <- [client, other] do
        assert {:error, %{code: "08001"}} =
                 with(
                   {:error, %{code: "08006"}} <- Client.query(client, "SELECT 1"),
                   do: Client.query(client, "SELECT 1")
                 )
      end

      Postgres.start!(postgres)
      for client <- [client, other], do: assert({:ok, _} = Client.query(client, "SELECT 1"))
    end
  end

  test "few keys get most of the updates, and the seed decides which" do
    zipf = Zipf.new(1_000, 1.1)

    draw = fn seed ->
      elem(Enum.map_reduce(1..20_000, :rand.seed_s(:exsss, seed), fn _, r -> Zipf.next(zipf, r) end), 0)
    end

    numbers = draw.(1)
    assert numbers == draw.(1)
    refute numbers == draw.(2)
    assert Enum.all?(numbers, &(&1 in 1..1_000))

    counts = Enum.frequencies(numbers)
    weights = for k <- 1..1_000, do: :math.pow(k, -1.1)

    # Six times the standard deviation, or a little more.
    for k <- [1, 2, 10] do
      expected = 20_000 * Enum.at(weights, k - 1) / Enum.sum(weights)
      assert_in_delta counts[k], expected, 6 * :math.sqrt(expected)
    end
  end

  defp seeded(result), do: "POSTGRES_SEED=#{@seed}: #{inspect(result, pretty: true)}"
end
