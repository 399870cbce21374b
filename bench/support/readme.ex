defmodule Bench.Readme do
  @moduledoc """
  Figures in the README. Between the lines

      <!-- bench/FILE -->
      <!-- end -->

  stands what that file has: the results of compare.exs (`.json`) as a table, what another benchmark has printed (`.txt`)
  as it is.
  """

  alias Bench.Report

  # The benchmarks' directory, whose parent has the README.
  @bench Path.expand("..", __DIR__)
  @readme Path.join(@bench, "../README.md") |> Path.expand()

  def path, do: @readme

  @doc "The README as it is, and with the figures that are in the files now."
  def texts do
    text = File.read!(@readme)
    {text, Regex.replace(~r/^<!-- bench\/(\S+) -->\n.*?^<!-- end -->$/ms, text, &section/2)}
  end

  defp section(_text, file) do
    contents = File.read!(Path.join(@bench, file))
    "<!-- bench/#{file} -->\n\n#{figures(Path.extname(file), contents)}\n\n<!-- end -->"
  end

  defp figures(".txt", contents), do: "```text\n#{String.trim(contents)}\n```"

  defp figures(".json", contents) do
    %{"machine" => machine, "rounds" => rounds, "scenarios" => scenarios} = parse(contents)

    [%{"results" => [base | others]} | _scenarios] = scenarios
    heads = ["", base["candidate"]] ++ Enum.flat_map(others, &[&1["candidate"], "times"])

    """
    Medians of #{rounds} rounds; #{machine}.

    #{line(heads)}
    #{String.duplicate("|---", length(heads))}|
    """ <> Enum.map_join(scenarios, "\n", &row/1)
  end

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
