defmodule Bench.Readme do
  @moduledoc """
  Figures in README.md and bench/README.md. Between the lines

      <!-- bench/FILE PART -->
      <!-- end -->

  stands what that file has: results of a benchmark (`.json`) as a table, of the part `scenarios` or another one; what a
  benchmark has printed (`.txt`) as it is. With `bench/summary` it is a table of some results of all files, and with
  `bench/database` what PostgreSQL took.
  """

  alias Bench.Report

  # The benchmarks' directory, whose parent has the README.
  @bench Path.expand("..", __DIR__)
  @readmes [Path.expand("../README.md", @bench), Path.join(@bench, "README.md")]

  # What the table of the summary shows: the file, its part, and the scenario.
  @summary [
    {"results.json", "scenarios", "put int→int"},
    {"results.json", "scenarios", "put_newer that updates, int→map of 4"},
    {"results.json", "counters", "add to int"},
    {"queue.json", "scenarios", "push map of 4"},
    {"results.json", "scenarios", "flush in batches of 1000, per entry"}
  ]

  @doc "The path of each file, its text as it is, and its text with the figures that are in the files now."
  def texts do
    for path <- @readmes do
      text = File.read!(path)
      now = Regex.replace(~r/^<!-- bench\/(\S+)( \w+)? -->\n.*?^<!-- end -->$/msu, text, &section/3)
      {path, text, now}
    end
  end

  defp section(_text, file, part) do
    "<!-- bench/#{file}#{part} -->\n\n#{figures(file, Path.extname(file), String.trim(part))}\n\n<!-- end -->"
  end

  defp figures("summary", _extension, _part) do
    rows =
      for {file, part, name} <- @summary do
        %{^part => scenarios} = results(file)
        %{"results" => [base | _] = all} = Enum.find(scenarios, &(&1["name"] == name))
        own = Enum.find(all, &(&1["candidate"] == "this package, 1 partition"))
        line([name, time(base), time(own), ratio(own)])
      end

    Enum.join(["|  | ETS | this package, 1 partition | times |", "|---|---|---|---|" | rows], "\n")
  end

  defp figures("database", _extension, _part) do
    text = read("postgres.txt")
    [buffer] = Regex.run(~r/^buffer .* ([\d.]+) +\d+$/m, text, capture: :all_but_first)
    [chunks] = Regex.run(~r/^chunks of 500 .* ([\d.]+) +\d+$/m, text, capture: :all_but_first)
    [single] = Regex.run(~r/^A statement each would take (\d+)/m, text, capture: :all_but_first)

    "In PostgreSQL, a million updates from eight processes took #{buffer} s through a buffer, and #{chunks} s in chunks of 500 that\n" <>
      "each process collected. One statement for each update would take #{single} s."
  end

  defp figures(file, ".txt", _part), do: "```text\n#{String.trim(read(file))}\n```"

  defp figures(file, ".json", part) do
    part = if part == "", do: "scenarios", else: part
    %{"machine" => machine, "rounds" => rounds, ^part => scenarios} = results(file)

    [%{"results" => [base | others]} | _scenarios] = scenarios
    heads = ["", base["candidate"]] ++ Enum.flat_map(others, &[&1["candidate"], "times"])

    """
    Medians of #{rounds} rounds; #{machine}.

    #{line(heads)}
    #{String.duplicate("|---", length(heads))}|
    """ <> Enum.map_join(scenarios, "\n", &row/1)
  end

  defp results(file), do: parse(read(file))
  defp read(file), do: File.read!(Path.join(@bench, file))

  defp row(%{"name" => name, "results" => [base | others]}),
    do: line([name, time(base)] ++ Enum.flat_map(others, &[time(&1), ratio(&1)]))

  defp line(cells), do: "| #{Enum.join(cells, " | ")} |"

  defp time(%{"ns" => ns}) when ns < 10_000, do: "#{round(ns)} ns"
  defp time(%{"ns" => ns}), do: Report.format(ns)

  defp ratio(%{"ratio" => ratio}), do: :erlang.float_to_binary(ratio / 1, decimals: 2)

  ## What Report.json/1 writes, read.

  defp parse(json) do
    {value, ""} = json |> String.trim() |> value()
    value
  end

  defp value("{" <> rest), do: members(rest, %{})
  defp value("[" <> rest), do: elements(rest, [])
  defp value(~s(") <> rest), do: text(rest, "")
  defp value("null" <> rest), do: {nil, rest}

  defp value(rest) do
    [number] = Regex.run(~r/^-?[0-9.e+-]+/, rest)
    {value, ""} = Float.parse(number)
    {if(number =~ ".", do: value, else: trunc(value)), String.replace_prefix(rest, number, "")}
  end

  defp members("}" <> rest, members), do: {members, rest}
  defp members("," <> rest, members), do: members(rest, members)

  defp members(~s(") <> rest, members) do
    {key, ":" <> rest} = text(rest, "")
    {value, rest} = value(rest)
    members(rest, Map.put(members, key, value))
  end

  defp elements("]" <> rest, elements), do: {Enum.reverse(elements), rest}
  defp elements("," <> rest, elements), do: elements(rest, elements)

  defp elements(rest, elements) do
    {value, rest} = value(rest)
    elements(rest, [value | elements])
  end

  defp text(~S(\") <> rest, text), do: text(rest, text <> ~s("))
  defp text(~s(") <> rest, text), do: {text, rest}
  defp text(<<char::utf8, rest::binary>>, text), do: text(rest, <<text::binary, char::utf8>>)
end
