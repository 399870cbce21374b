defmodule PartitionedBuffer.ReadmeTest do
  use ExUnit.Case, async: true

  for file <- ~w(report readme), do: Code.require_file("../../bench/support/#{file}.ex", __DIR__)

  # If it fails, bench/readme.exs writes the figures.
  test "README.md and bench/README.md have the figures of the benchmarks" do
    [{_readme, text, _now}, {_bench, bench, _also_now}] = texts = Bench.Readme.texts()
    for part <- ~w(summary database), do: assert(text =~ "<!-- bench/#{part} -->")

    for file <- ~w(results.json queue.json limits.txt calls.txt neighbours.txt journal.txt postgres.txt),
        do: assert(bench =~ "<!-- bench/#{file}")

    for {path, text, with_figures} <- texts, do: assert({path, text} == {path, with_figures})
  end

  test "README.md is short enough to be read" do
    [{_path, text, _now} | _] = Bench.Readme.texts()
    assert text |> String.split() |> length() <= 1_500
  end
end
