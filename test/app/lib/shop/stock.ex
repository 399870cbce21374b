defmodule Shop.Stock do
  @moduledoc false

  def store(batch) do
    rows = Map.new(batch, fn {item, count, version, _updates} -> {item, {count, version}} end)
    Agent.update(__MODULE__, &Map.merge(&1, rows))
  end

  def all, do: Agent.get(__MODULE__, & &1)
end
