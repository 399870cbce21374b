defmodule Bench.OutageChart do
  @moduledoc "The figures of bench/outage.exs, second by second, one below the other."

  @width 820
  @left 110
  @panel 110

  @doc "Rows of {writes, microseconds, held}; the second part of three is the outage."
  def svg(rows, seconds) do
    panels = [
      {"writes a second", Enum.map(rows, &elem(&1, 0))},
      {"99.9 % of puts within µs", Enum.map(rows, &elem(&1, 1))},
      {"entries held", Enum.map(rows, &elem(&1, 2))}
    ]

    height = 70 + @panel * length(panels)
    step = (@width - @left - 20) / length(rows)

    """
    <svg xmlns="http://www.w3.org/2000/svg" width="#{@width}" height="#{height}" font-family="sans-serif" font-size="12">
    <rect width="100%" height="100%" fill="white"/>
    <text x="10" y="22" font-size="15">The database is down for #{seconds} seconds: no write fails or waits</text>
    <rect x="#{round(@left + seconds * step)}" y="34" width="#{round(seconds * step)}" height="#{height - 60}" fill="#f3dcdc"/>
    #{for {panel, index} <- Enum.with_index(panels), do: panel(panel, 40 + index * @panel, step)}
    <text x="#{round(@left + 1.5 * seconds * step)}" y="#{height - 8}" text-anchor="middle">the sink is down</text>
    </svg>
    """
  end

  defp panel({name, values}, top, step) do
    most = max(Enum.max(values), 1)
    bottom = top + @panel - 24

    points =
      for {value, index} <- Enum.with_index(values),
          do:
            "#{round(@left + (index + 0.5) * step)},#{Float.round(bottom - value / most * (@panel - 40), 1)} "

    """
    <text x="#{@left - 8}" y="#{top + 12}" text-anchor="end">#{most}</text>
    <text x="#{@left - 8}" y="#{bottom}" text-anchor="end">0</text>
    <text x="#{@left + 4}" y="#{top + 4}">#{name}</text>
    <line x1="#{@left}" y1="#{bottom}" x2="#{@width - 20}" y2="#{bottom}" stroke="#999"/>
    <polyline points="#{points}" fill="none" stroke="#2f6f4f" stroke-width="2"/>
    """
  end
end
