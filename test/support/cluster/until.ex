defmodule PartitionedBuffer.Test.Cluster.Until do
  @moduledoc false
  # For conditions without an event: a name in epmd, the members that a node sees, the entries it
  # holds. It looks every few milliseconds, since a look is a call to another OS process.

  @look_ms 10

  @doc "Returns `true` as soon as the function does, or `false` if it does not within `ms`."
  def true?(ms, fun), do: look(System.monotonic_time(:millisecond) + ms, fun)

  defp look(deadline, fun) do
    cond do
      fun.() ->
        true

      System.monotonic_time(:millisecond) > deadline ->
        false

      true ->
        receive after: (@look_ms -> :ok)
        look(deadline, fun)
    end
  end
end
