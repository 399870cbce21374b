defmodule Tracker.Telemetry do
  @moduledoc """
  Counts the entries that were retried or given up. The guide on operations has all metrics, for `Telemetry.Metrics`.

  With Hex the library `telemetry` is always there. Without, this does nothing.
  """

  @compile {:no_warn_undefined, :telemetry}
  @events for event <- [:retry, :dead_letter], do: [:partitioned_buffer, :partition, event]

  def attach do
    :persistent_term.put(__MODULE__, :counters.new(2, []))

    if Code.ensure_loaded?(:telemetry),
      do: :telemetry.attach_many(__MODULE__, @events, &__MODULE__.count/4, nil)

    :ok
  end

  def count([_, _, event], %{count: count}, _metadata, _config),
    do: :counters.add(:persistent_term.get(__MODULE__), place(event), count)

  @doc "How many entries were retried, or given up."
  def get(event), do: :counters.get(:persistent_term.get(__MODULE__), place(event))

  defp place(:retry), do: 1
  defp place(:dead_letter), do: 2
end
