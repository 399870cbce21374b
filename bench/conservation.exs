# Conservation: all that is written comes out once, also when processes die. test/support/conservation.ex tells how it works.
#
#     mix run bench/conservation.exs                 10 million writes, and the same to the ETS design
#     mix run bench/conservation.exs --faults        10 million writes, with all kinds of faults
#     mix run bench/conservation.exs --retries       a buffer with `:max_attempts`, whose processor fails, with or without --faults
#     mix run bench/conservation.exs --queue         items of a queue instead, with or without --faults and --retries
#     mix run bench/conservation.exs --counter       sums of a counter instead, the same
#
# With --retries, --max-size N bounds the buffer: writers wait for room. Lists of 5,000 must fit. --refuses by_chance, keys, size,
# tenant, turns or mixed is the way in which the sink refuses, and --order none lets failed items of a queue wait apart.
#
# Options: --writes N, --writers N, --seed N. Prints the counts. Ends with 1 if this package violates anything; violations of
# the ETS design are only printed.

Code.require_file("support/candidates.ex", __DIR__)
support = Path.expand("../test/support", __DIR__)

unless Code.ensure_loaded?(PartitionedBuffer.Model) do
  files =
    for glob <- ~w(model.ex conservation.ex conservation/*.ex), do: Path.wildcard(Path.join(support, glob))

  {:ok, _modules, _warnings} = Kernel.ParallelCompiler.compile(Enum.concat(files))
end

Application.ensure_all_started(:telemetry)
unless Code.ensure_loaded?(:telemetry), do: Code.require_file("../test/hexless/telemetry.ex", __DIR__)

defmodule Conserve do
  alias PartitionedBuffer.Conservation

  def main(argv) do
    {options, [], []} =
      OptionParser.parse(argv,
        strict: [
          queue: :boolean,
          counter: :boolean,
          faults: :boolean,
          retries: :boolean,
          max_size: :integer,
          refuses: :string,
          order: :string,
          writes: :integer,
          writers: :integer,
          seed: :integer
        ]
      )

    seed = options[:seed] || :erlang.phash2(make_ref())
    # Logs of the faults would fill the terminal.
    Logger.configure(level: :none)
    opts = [writes: options[:writes] || 10_000_000, writers: options[:writers] || 4, seed: seed]
    IO.puts("--seed #{seed} --writes #{opts[:writes]} --writers #{opts[:writers]}")

    {kind, design} =
      cond do
        options[:queue] -> {Conservation.Queues, Bench.LeanQueue}
        options[:counter] -> {Conservation.Counters, Bench.LeanCounter}
        true -> {Conservation.Maps, Bench.Lean}
      end

    result =
      if options[:retries] || options[:faults] do
        faults =
          case {options[:faults], options[:retries]} do
            {true, true} -> Conservation.Faults.all_with_retries()
            {true, _} -> Conservation.Faults.all()
            _ -> []
          end

        max_size = options[:max_size] || :infinity
        refuses = way(options[:refuses] || "by_chance", Conservation.refuses())
        order = way(options[:order] || "strict", [:strict, :none])
        retries = [retries: options[:retries] || false, refuses: refuses, order: order]
        opts = [faults: faults, max_size: max_size] ++ retries ++ opts
        report("this package", Conservation.package(kind, opts))
      else
        result = report("this package", Conservation.package(kind, opts))
        report("the ETS design", Conservation.ets_design(kind, design, opts))
        result
      end

    if result.violations != %{}, do: System.halt(1)
  end

  defp way(name, ways), do: Enum.find(ways, &(Atom.to_string(&1) == name)) || raise("unknown: #{name}")

  defp report(title, result) do
    IO.puts("\n#{title}: #{result.seconds} s")
    for part <- [:calls, :counts, :faults], do: IO.puts("#{part}: #{line(result[part])}")
    IO.puts("violations: #{inspect(result.violations, limit: 20)}")
    result
  end

  defp line(counts),
    do: counts |> Enum.sort() |> Enum.map_join(", ", fn {what, count} -> "#{what} #{count}" end)
end

Conserve.main(System.argv())
