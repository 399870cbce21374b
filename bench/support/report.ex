defmodule Bench.Report do
  @moduledoc "What the benchmarks print and write: a table, JSON, SVG."

  def machine do
    cpu =
      with {:ok, info} <- File.read("/proc/cpuinfo"),
           [_, model] <- Regex.run(~r/model name\s*:\s*(.+)/, info) do
        model
      else
        _unknown -> "unknown processor"
      end

    "#{cpu}, #{System.schedulers_online()} schedulers, OTP #{System.otp_release()}, Elixir #{System.version()}#{commit()}"
  end

  # What was measured, if this is a checkout.
  defp commit do
    case System.cmd("git", ["describe", "--always", "--exclude=*"],
           cd: __DIR__,
           stderr_to_stdout: true
         ) do
      {commit, 0} -> ", commit #{String.trim(commit)}"
      _no_checkout -> ""
    end
  rescue
    # There is no git.
    ErlangError -> ""
  end

  def median(numbers) do
    sorted = Enum.sort(numbers)
    Enum.at(sorted, div(length(sorted), 2))
  end

  @doc "Smallest and largest but for a tenth at each end."
  def spread(numbers) do
    sorted = Enum.sort(numbers)
    cut = div(length(sorted), 10)
    {Enum.at(sorted, cut), Enum.at(sorted, length(sorted) - 1 - cut)}
  end

  def format(ns) when ns >= 1_000_000, do: "#{decimals(ns / 1_000_000, 2)} ms"
  def format(ns) when ns >= 10_000, do: "#{decimals(ns / 1_000, 1)} µs"
  def format(ns), do: "#{decimals(ns / 1, 1)} ns"

  defp decimals(number, decimals), do: :erlang.float_to_binary(number, decimals: decimals)

  @doc "A line of a table: what it is about, then the figures."
  def row([first | rest]),
    do:
      String.pad_trailing(to_string(first), 28) <> Enum.map_join(rest, &String.pad_leading(to_string(&1), 12))

  @doc "Prints lines and adds them to a file."
  def say(text, file) do
    IO.puts(text)
    File.write!(file, [text, ?\n], [:append])
  end

  def json(map) when is_map(map),
    do: "{" <> Enum.map_join(map, ",", fn {k, v} -> json(to_string(k)) <> ":" <> json(v) end) <> "}"

  def json(list) when is_list(list), do: "[" <> Enum.map_join(list, ",", &json/1) <> "]"
  def json(nil), do: "null"
  def json(value) when is_boolean(value), do: to_string(value)
  def json(float) when is_float(float), do: :erlang.float_to_binary(float, [:compact, decimals: 3])
  def json(integer) when is_integer(integer), do: Integer.to_string(integer)
  def json(text), do: ~s(") <> (text |> to_string() |> String.replace(~S("), ~S(\\"))) <> ~s(")

  @doc "A bar chart of ratios to raw ETS: to the right of the line at 1 is faster."
  def svg(title, rows) do
    row_height = 22
    left = 250
    width = 820
    height = 60 + row_height * length(rows)
    largest = rows |> Enum.map(&elem(&1, 1)) |> Enum.max() |> max(1.0)
    scale = (width - left - 70) / largest

    bars =
      for {{name, ratio}, index} <- Enum.with_index(rows) do
        y = 40 + index * row_height
        color = if ratio >= 1, do: "#2f6f4f", else: "#a83232"

        """
        <text x="#{left - 8}" y="#{y + 14}" text-anchor="end">#{escape(name)}</text>
        <rect x="#{left}" y="#{y + 2}" width="#{Float.round(ratio * scale, 1)}" height="16" fill="#{color}"/>
        <text x="#{Float.round(left + ratio * scale + 5, 1)}" y="#{y + 14}">#{Float.round(ratio / 1, 2)}×</text>
        """
      end

    one = Float.round(left + scale, 1)

    """
    <svg xmlns="http://www.w3.org/2000/svg" width="#{width}" height="#{height}" font-family="sans-serif" font-size="12">
    <rect width="100%" height="100%" fill="white"/>
    <text x="10" y="22" font-size="15">#{escape(title)}</text>
    #{bars}<line x1="#{one}" y1="32" x2="#{one}" y2="#{height - 12}" stroke="black" stroke-dasharray="3 3"/>
    </svg>
    """
  end

  defp escape(text), do: text |> String.replace("&", "&amp;") |> String.replace("<", "&lt;")
end
