defmodule PartitionedBuffer.Buffer.Hold do
  @moduledoc false
  # Puts a running buffer on hold. The native run keeps the hold, so it outlives all processes but
  # the supervisor. Both calls are native and wait for no process.

  alias PartitionedBuffer.Buffer.Lookup
  alias PartitionedBuffer.{Native, Routing}

  @doc """
  See `PartitionedBuffer.pause/1`.
  """
  @spec pause!(atom()) :: :ok
  def pause!(buffer), do: act!(buffer, &Native.hold_run/1)

  @doc """
  See `PartitionedBuffer.resume/1`.
  """
  @spec resume!(atom()) :: :ok
  def resume!(buffer), do: act!(buffer, &Native.resume_run/1)

  defp act!(buffer, act) do
    run = Lookup.run!(buffer)
    _has_partitions = Routing.partition_count!(buffer)
    with :not_running <- act.(run), do: Routing.not_running!(buffer)
  end
end
