defmodule Bench.Bars do
  @moduledoc "A table of what was measured beside what it may be."

  alias Bench.Report

  @doc "Starts the table, which also goes to a file, or to none."
  def start(file) do
    Process.put(__MODULE__, file)
    if file, do: File.write!(file, "")
    say(Report.machine() <> "\n")
    row("", "bar", "median", "10% to 90%", "")
  end

  @doc "A row of texts."
  def row(title, bar, median, spread, verdict) do
    cells = [String.pad_leading(bar, 12), String.pad_leading(median, 12), String.pad_leading(spread, 24)]
    say(String.trim_trailing(String.pad_trailing(title, 50) <> Enum.join(cells) <> "   " <> verdict))
  end

  @doc """
  A row of figures. `bar` is `{:most, figure}` or `{:least, figure}`, or `nil` for a row that explains others; `judged` is the
  figure that it is about, by default the median.
  """
  def figures(title, bar, figures, format, judged \\ nil) do
    median = Report.median(figures)
    {low, high} = Report.spread(figures)
    spread = if length(figures) > 1, do: "#{format.(low)} to #{format.(high)}", else: ""
    row(title, bar(bar, format), format.(median), spread, verdict(bar, judged || median))
  end

  defp bar(nil, _format), do: ""
  defp bar({:most, figure}, format), do: "≤ " <> format.(figure)
  defp bar({:least, figure}, format), do: "≥ " <> format.(figure)

  defp verdict(nil, _figure), do: ""
  defp verdict({:most, bar}, figure), do: if(figure <= bar, do: "pass", else: "FAIL")
  defp verdict({:least, bar}, figure), do: if(figure >= bar, do: "pass", else: "FAIL")

  def times(ratio), do: :erlang.float_to_binary(ratio / 1, decimals: 2)
  def whole(number), do: "#{round(number)}"
  def mean(numbers), do: Enum.sum(numbers) / length(numbers)

  defp say(text) do
    IO.puts(text)
    if file = Process.get(__MODULE__), do: File.write!(file, [text, ?\n], [:append])
  end
end
