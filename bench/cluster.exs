# What a buffer on several nodes stores, loses and doubles, in loads and failures longer than those of the tests.
# test/support/cluster.ex tells how it works.
#
#     mix run bench/cluster.exs                      all scenarios, with and without :cluster
#     mix run bench/cluster.exs --only hot_keys      one scenario
#     mix run bench/cluster.exs --kind map           counter, map, or both
#     mix run bench/cluster.exs --adapter alone      alone, clustered, or both
#     mix run bench/cluster.exs --seconds 60         the length of each load
#
# Needs epmd. `postgres` and `postgres_sorted` need a PostgreSQL server, as bench/postgres.exs does.

for file <- ~w(postgres_client postgres), do: Code.require_file("support/#{file}.ex", __DIR__)

# The nodes load the modules from a directory.
unless Code.ensure_loaded?(PartitionedBuffer.Test.Cluster) do
  test = Path.expand("../test", __DIR__)
  dir = Path.join(System.tmp_dir!(), "partitioned_buffer_cluster_#{System.pid()}")
  File.mkdir_p!(dir)
  System.at_exit(fn _status -> File.rm_rf!(dir) end)
  telemetry = if Code.ensure_loaded?(:telemetry), do: [], else: [Path.join(test, "hexless/telemetry.ex")]

  files =
    [Path.join(test, "support/cluster.ex") | Path.wildcard(Path.join(test, "support/cluster/**/*.ex"))] ++
      telemetry

  {:ok, _modules, _warnings} = Kernel.ParallelCompiler.compile_to_path(files, dir)
  Code.prepend_path(dir)
end

defmodule Bench.Cluster do
  alias PartitionedBuffer.Test.Cluster.{Adapter, PostgresSink}
  alias PartitionedBuffer.Test.Cluster.Scenarios.{Failures, Limits, Members, Steady}

  @adapters %{"alone" => Adapter.Alone, "clustered" => Adapter.Clustered}

  def main(argv) do
    {options, [], []} =
      OptionParser.parse(argv, strict: [only: :string, kind: :string, adapter: :string, seconds: :integer])

    for {name, run} <- scenarios(options[:seconds] || 20),
        options[:only] in [nil, name],
        kind <- kinds(name, options[:kind]) do
      results =
        for {adapter, module} <- @adapters,
            options[:adapter] in [nil, adapter],
            adapter == "clustered" or not needs_clock?(name),
            do: run.(adapter: module, kind: kind) |> print("#{name}, #{kind}, #{adapter}")

      with [alone, clustered] <- results, do: compare(alone, clustered)
    end
  end

  defp print(result, title) do
    IO.puts(title)

    for {name, number} <- Enum.sort(result),
        number not in [0, [], %{}],
        do: IO.puts("  #{name} #{inspect(number)}")

    result
  end

  # The ratios of what `:cluster` is to change.
  defp compare(alone, clustered) do
    for {name, number} <- costs(alone), number > 0, other = costs(clustered)[name] do
      IO.puts("  with :cluster / without: #{name} #{Float.round(other / number, 2)}")
    end
  end

  defp costs(result) do
    rows = Map.take(result, [:rows_per_key])

    ages =
      if match?([_p50, _p99], result[:ages_ms]),
        do: Map.new(Enum.zip([:p50_ms, :p99_ms], result.ages_ms)),
        else: %{}

    rows |> Map.merge(ages) |> Map.merge(Map.take(result[:postgres] || %{}, [:updated, :wal]))
  end

  # A time of doubt below and above the length of a split.
  defp scenarios(seconds) do
    outage = [drain_timeout_ms: 2_000]

    [
      {"hot_keys", &Steady.hot_keys([seconds: seconds] ++ &1)},
      {"postgres", &postgres([seconds: seconds] ++ &1, :shuffled)},
      {"postgres_sorted", &postgres([seconds: seconds] ++ &1, :sorted)},
      {"rolling_restart", &Members.rolling_restart([seconds: seconds] ++ &1)},
      {"rolling_restart_in_outage", &Members.rolling_restart([sink: :down, options: outage] ++ &1)},
      {"join_and_leave", &Members.join_and_leave([seconds: seconds, times: seconds] ++ &1)},
      {"cycles", &Members.cycles([cycles: 50 * seconds] ++ &1)},
      {"kill", &Failures.kill([seconds: seconds, options: [uncertain_ms: 2_000]] ++ &1)},
      {"kill_in_outage",
       &Failures.kill([seconds: seconds, sink: :down, options: [uncertain_ms: 2_000]] ++ &1)},
      {"freeze", &Failures.freeze([times: seconds, options: [call_ms: 60]] ++ &1)},
      {"long_freeze", &Failures.freeze([ms: 6_000, times: 1, options: [call_ms: 60]] ++ &1)},
      {"short_split", &Failures.netsplit([times: 3, options: [uncertain_ms: 15_000]] ++ &1)},
      {"long_split", &Failures.netsplit([ms: 6_000, options: [uncertain_ms: 2_000]] ++ &1)},
      {"overlap_prevention",
       &Failures.netsplit([overlap_prevention: true, options: [uncertain_ms: 15_000]] ++ &1)},
      {"kill_processes", &Failures.kill_processes([seconds: seconds] ++ &1)},
      {"full", &Limits.full([seconds: seconds] ++ &1)},
      {"full_owner", &Limits.full([seconds: seconds, options: [owners: 1]] ++ &1)},
      {"clock_ahead", &Limits.clock_ahead/1},
      {"clock_back", &Limits.clock_back/1},
      {"clock_far", &Limits.clock_far/1}
    ]
  end

  defp postgres(opts, order) do
    {:ok, server} = Bench.Postgres.start_link()
    store = {PostgresSink, port: Bench.Postgres.port(server), order: order}
    result = Steady.postgres([store: store, options: [processing_interval_ms: 500]] ++ opts)
    Bench.Postgres.destroy(server)
    result
  end

  defp kinds(name, kind), do: if(needs_clock?(name), do: [:map], else: all_or_one(kind))

  defp all_or_one(nil), do: [:counter, :map]
  defp all_or_one(kind), do: [String.to_existing_atom(kind)]

  defp needs_clock?(name), do: String.starts_with?(name, "clock_")
end

Bench.Cluster.main(System.argv())
