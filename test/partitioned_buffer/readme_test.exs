defmodule PartitionedBuffer.ReadmeTest do
  use ExUnit.Case, async: true

  for file <- ~w(report readme), do: Code.require_file("../../bench/support/#{file}.ex", __DIR__)

  # If it fails, bench/readme.exs writes the figures into the README.
  test "the README has the figures that the benchmarks wrote" do
    {text, with_figures} = Bench.Readme.texts()
    assert text =~ "<!-- bench/results.json -->"
    assert text =~ "<!-- bench/limits.txt -->"
    assert text == with_figures
  end
end
