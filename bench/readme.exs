# Brings the figures of bench/results.json and of what the other benchmarks have printed into the README.
#
#     mix run bench/readme.exs

for file <- ~w(report readme), do: Code.require_file("support/#{file}.ex", __DIR__)

{_before, now} = Bench.Readme.texts()
File.write!(Bench.Readme.path(), now)
