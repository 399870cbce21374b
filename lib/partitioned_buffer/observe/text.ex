defmodule PartitionedBuffer.Observe.Text do
  @moduledoc false
  # Numbers of `PartitionedBuffer.info/1` as text, for people.

  @doc """
  A count with a comma between thousands; "-" for nil.
  """
  @spec grouped(integer() | nil) :: String.t()
  def grouped(nil), do: "-"

  def grouped(integer) do
    integer
    |> Integer.to_string()
    |> String.reverse()
    |> String.replace(~r/\d{3}(?=\d)/, "\\0,")
    |> String.reverse()
  end

  @doc """
  Bytes in the unit that fits; "-" for nil.
  """
  @spec bytes(non_neg_integer() | nil) :: String.t()
  def bytes(nil), do: "-"
  def bytes(bytes) when bytes < 1_000, do: "#{bytes} B"
  def bytes(bytes) when bytes < 1_000_000, do: "#{decimal(bytes / 1_000)} kB"
  def bytes(bytes) when bytes < 1_000_000_000, do: "#{decimal(bytes / 1_000_000)} MB"
  def bytes(bytes), do: "#{decimal(bytes / 1_000_000_000)} GB"

  @doc """
  Milliseconds in the unit that fits; "-" for nil.
  """
  @spec duration(non_neg_integer() | nil) :: String.t()
  def duration(nil), do: "-"
  def duration(ms) when ms < 1_000, do: "#{ms} ms"
  def duration(ms) when ms < 60_000, do: "#{decimal(ms / 1_000)} s"
  def duration(ms) when ms < 3_600_000, do: "#{div(ms, 60_000)} min #{ms |> rem(60_000) |> div(1_000)} s"
  def duration(ms), do: "#{div(ms, 3_600_000)} h #{ms |> rem(3_600_000) |> div(60_000)} min"

  @doc """
  Events a second; "-" for nil.
  """
  @spec rate(number() | nil) :: String.t()
  def rate(nil), do: "-"
  def rate(rate), do: "#{grouped(round(rate))}/s"

  @doc """
  The text for how long a processor fails: "-" while it does not.
  """
  @spec failing(non_neg_integer() | nil) :: String.t()
  def failing(ms) when ms in [nil, 0], do: "-"
  def failing(ms), do: duration(ms)

  @doc """
  The name of a partition, without Elixir's prefix.
  """
  @spec partition(atom()) :: String.t()
  def partition(partition), do: partition |> Atom.to_string() |> String.replace_prefix("Elixir.", "")

  @doc """
  The last error of an info in one line, with its age at `now`, the system time in milliseconds, or
  without its age if `now` is nil.
  """
  @spec last_error(map() | nil, integer() | nil) :: String.t()
  def last_error(nil, _now), do: "-"

  def last_error(%{reason: reason, partition: partition, system_time: at}, now) do
    age = if now, do: ", #{duration(max(now - at, 0))} ago", else: ""
    # The text of `:format_reason` may have several lines.
    reason = if is_atom(reason), do: inspect(reason), else: String.replace(reason, ~r/[\p{C}\p{Z}]+/u, " ")
    "#{reason} in #{partition(partition)}#{age}"
  end

  @doc """
  Rows of cells as lines. Each column is as wide as its widest cell, and at least as wide as its
  given width.
  """
  @spec align([[String.t()]], [{:left | :right, non_neg_integer()}]) :: [String.t()]
  def align(rows, sides) do
    columns =
      for {column, {side, least}} <- Enum.zip(Enum.zip_with(rows, & &1), sides) do
        width = column |> Enum.map(&String.length/1) |> Enum.max() |> max(least)
        Enum.map(column, &pad(&1, side, width))
      end

    Enum.zip_with(columns, &(&1 |> Enum.join("  ") |> String.trim_trailing()))
  end

  defp pad(text, :left, width), do: String.pad_trailing(text, width)
  defp pad(text, :right, width), do: String.pad_leading(text, width)

  defp decimal(number), do: :erlang.float_to_binary(number, decimals: 1)
end
