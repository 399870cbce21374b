# A buffer before PostgreSQL, beside two ways to do without one, and what an outage of the server does to it.
#
#     mix run bench/postgres.exs
#
# Needs Debian's packages postgresql and erlang-p1-pgsql, starts a server of its own, and ends it. Eight processes update
# rows of a table, a few of them very often (Zipf, exponent 1.1), by conditional upserts: the highest version stays.
#
#   1. The same updates in three ways, with eight connections each: through the buffer; collected by hand, in a statement for
#      each 500 updates of a process; and directly, in a statement for each update. Shown are the statements and their rows, also
#      those that failed, and the time until all was stored. The third way does fewer updates, since it would take minutes.
#   2. The same through the buffer, while the server is killed at half of the updates and stays away for some time.
#   3. A VM with a buffer gets SIGTERM while the server is away, and may take two seconds to stop: what was not stored has to be
#      among the dead letters. This has a tenth of the updates.
#
#   4. Five buffers write for a minute to a server that refuses single entries, is too slow for large batches, and is killed three
#      times (`Bench.Mixed`). Shown are calls, splits and pauses, dead letters, how late good writes are, in milliseconds, and how many
#      of them are stored within two intervals.
#
# Options: --updates N (1000000), --keys N (100000), --direct N, the updates of the third way (20000), --outage MS (10000),
# --mixed SECONDS (60), --seed N. The buffer of the first three parts has eight partitions, which flush each 200 ms in batches of 500, and after a failure pauses for 50 to
# 500 ms.
#
# At the end of each part the table, in the third one with the dead letters, is compared with a fold over what was written: the
# highest version of each key, and its value. If they differ, that is printed, and the script ends with 1.
#
# What it prints is also written to bench/postgres.txt.

# For the counts of splits and pauses.
Application.ensure_all_started(:telemetry)
unless Code.ensure_loaded?(:telemetry), do: Code.require_file("../test/hexless/telemetry.ex", __DIR__)

for file <- ~w(report postgres_client postgres zipf upserts sigterm mixed_sink mixed),
    do: Code.require_file("support/#{file}.ex", __DIR__)

defmodule PostgresBench do
  alias Bench.{Mixed, Postgres, Report, Sigterm, Upserts}

  @results Path.join(__DIR__, "postgres.txt")

  @columns ["", "updates", "statements", "rows", "failures", "seconds", "updates/s"]

  def main(argv) do
    if missing = Postgres.missing(), do: abort(missing)

    {options, [], []} =
      OptionParser.parse(argv,
        strict: for(option <- [:updates, :keys, :direct, :outage, :mixed, :seed], do: {option, :integer})
      )

    updates = Keyword.get(options, :updates, 1_000_000)
    keys = Keyword.get(options, :keys, 100_000)
    direct = Keyword.get(options, :direct, 20_000)
    outage = Keyword.get(options, :outage, 10_000)
    mixed = Keyword.get(options, :mixed, 60)
    seed = Keyword.get(options, :seed, :erlang.phash2(make_ref()))

    # The loss of the connections would fill the terminal.
    Logger.configure(level: :none)

    File.write!(@results, "")

    say("""
    #{Report.machine()}
    --updates #{updates} --keys #{keys} --direct #{direct} --outage #{outage} --mixed #{mixed} --seed #{seed}
    """)

    {:ok, postgres} = Postgres.start_link()
    work = Upserts.work(updates: updates, keys: keys, seed: seed)

    differences =
      compare(postgres, work, direct) ++
        outage(postgres, work, outage) ++
        sigterm(postgres, updates: div(updates, 10), keys: keys, seed: seed) ++
        mixed(postgres, mixed, seed)

    Postgres.destroy(postgres)
    if differences != [], do: abort("#{length(differences)} differences")
    say("\nchecked: nothing is missing, and nothing is older than what was written")
  end

  defp compare(postgres, work, direct) do
    say(Report.row(@columns))
    buffer = report("buffer", Upserts.through_buffer(postgres, work))
    chunks = report("chunks of 500 by hand", Upserts.in_chunks(postgres, work))
    directly = report("a statement each", Upserts.directly(postgres, %{work | updates: direct}))

    say(
      "\nA statement each would take #{seconds(directly.seconds * work.updates / direct)} s for all updates, " <>
        "if it went on like this. Deadlocks: #{Upserts.deadlocks(postgres)}."
    )

    buffer.differences ++ chunks.differences ++ directly.differences
  end

  defp outage(postgres, work, outage) do
    say("\nwith an outage of #{outage} ms")
    report("buffer", Upserts.through_outage(postgres, work, outage)).differences
  end

  defp sigterm(postgres, opts) do
    result = Sigterm.run(postgres, opts)

    say("""

    SIGTERM while the server is away, #{opts[:updates]} updates
    #{Report.row(["", "keys", "stored", "dead", "stop"])}
    #{Report.row(["buffer", result.acknowledged, result.stored, result.dead_letters, "#{result.stop_ms} ms"])}\
    """)

    say_differences(result)
  end

  defp mixed(postgres, seconds, seed) do
    say("""

    mixed failures for #{seconds} s
    #{Report.row(["", "writes", "calls", "failures", "splits", "pauses", "dead", "median", "99 %", "in time"])}\
    """)

    results = Mixed.run(postgres, seconds: seconds, outages: Mixed.outages(seconds), seed: seed)

    Enum.flat_map(results, fn {kind, result} ->
      failures = result.failures |> Map.values() |> Enum.sum()
      in_time = :erlang.float_to_binary(100 * result.in_time, decimals: 2) <> " %"
      counts = [result.writes, result.calls, failures, result.splits, result.pauses, result.dead]
      say(Report.row([kind | counts] ++ [result.lateness[0.5], result.lateness[0.99], in_time]))
      say_differences(result)
    end)
  end

  defp report(title, result) do
    rate = round(result.updates / result.seconds)
    counts = [result.updates, result.statements, result.rows, result.failures]
    say(Report.row([title | counts] ++ [seconds(result.seconds), rate]))
    say_differences(result)
    result
  end

  defp say_differences(%{differences: differences}) do
    for {what, expected, found} <- Enum.take(differences, 10) do
      say("  #{inspect(what)}: expected #{inspect(expected)}, found #{inspect(found)}")
    end

    differences
  end

  defp say(text), do: Report.say(text, @results)

  defp seconds(seconds), do: :erlang.float_to_binary(seconds / 1, decimals: 2)

  defp abort(message) do
    IO.puts(:stderr, message)
    System.halt(1)
  end
end

PostgresBench.main(System.argv())
