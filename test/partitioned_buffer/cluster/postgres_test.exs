defmodule PartitionedBuffer.Cluster.PostgresTest do
  # What a buffer on four nodes spares a PostgreSQL server. `bench/cluster.exs --only postgres` runs the same for longer.
  # Not async: these tests make the VM a node, and need both cores.
  use ExUnit.Case, async: false

  for file <- ~w(postgres_client postgres),
      do: Code.require_file("../../../bench/support/#{file}.ex", __DIR__)

  alias Bench.Postgres
  alias PartitionedBuffer.Test.Cluster.{Adapter, Controller, PostgresSink}
  alias PartitionedBuffer.Test.Cluster.Scenarios.Steady

  @moduletag :capture_log
  @moduletag :cluster
  @moduletag :postgres
  @moduletag timeout: 120_000

  setup_all do
    if missing = Postgres.missing(),
      do: raise("#{missing}, or leave these tests out with `mix test --exclude postgres`")

    Controller.start()
    on_exit(&Controller.stop/0)
    # What the server writes of its own accord would count as WAL of the buffers.
    {:ok, server: start_supervised!({Postgres, full_page_writes: "off", autovacuum: "off"})}
  end

  defp run(adapter, order, interval_ms, seconds, server) do
    result =
      Steady.postgres(
        adapter: adapter,
        kind: :counter,
        store: {PostgresSink, port: Postgres.port(server), order: order},
        seconds: seconds,
        options: [processing_interval_ms: interval_ms]
      )

    assert %{residue: 0, held: 0, unexpected: [], given_up: 0} = result
    assert result.written > 1_000
    result.postgres
  end

  test "unsorted batches of four nodes do not deadlock, and update at most 0.3 of the rows", %{server: server} do
    # Without :cluster such batches deadlock when they meet, as they do with short intervals. Then retries coalesce, so sorted
    # batches show the cost of the load.
    assert Enum.any?(1..4, fn _ ->
             is_map_key(run(Adapter.Alone, :shuffled, 50, 1, server).errors, "40P01")
           end)

    alone = run(Adapter.Alone, :sorted, 500, 6, server)
    assert alone.errors == %{}

    clustered = run(Adapter.Clustered, :shuffled, 500, 6, server)
    assert clustered.errors == %{}
    assert clustered.updated <= 0.3 * alone.updated, inspect({alone, clustered})
    assert clustered.wal <= 0.3 * alone.wal, inspect({alone, clustered})
  end
end
