defmodule PartitionedBuffer.Test.Cluster.Vitals do
  @moduledoc false
  # Runs on a node: what grows if something is not given back.

  def read do
    for pid <- Process.list(), do: :erlang.garbage_collect(pid)

    %{
      processes: :erlang.system_info(:process_count),
      atoms: :erlang.system_info(:atom_count),
      tables: length(:ets.all()),
      ports: :erlang.system_info(:port_count),
      memory: :erlang.memory(:total)
    }
  end

  @doc "How much more there is of each."
  def growth(before, later), do: Map.new(later, fn {name, count} -> {name, count - before[name]} end)
end
