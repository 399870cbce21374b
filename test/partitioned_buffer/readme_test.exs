defmodule PartitionedBuffer.ReadmeTest do
  use ExUnit.Case, async: true

  for file <- ~w(report readme), do: Code.require_file("../../bench/support/#{file}.ex", __DIR__)

  test "the figures in the README are those that the benchmarks have written: else run bench/readme.exs" do
    {text, with_figures} = Bench.Readme.texts()
    assert text =~ "<!-- bench/results.json -->"
    assert text =~ "<!-- bench/limits.txt -->"
    assert text == with_figures
  end
end
