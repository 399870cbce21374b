# Brings the figures of bench/*.json and of what the other benchmarks have printed into README.md and bench/README.md.
#
#     mix run bench/readme.exs

for file <- ~w(report readme), do: Code.require_file("support/#{file}.ex", __DIR__)
for {path, _before, now} <- Bench.Readme.texts(), do: File.write!(path, now)
