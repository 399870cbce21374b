defmodule PartitionedBuffer do
  @moduledoc false

  alias PartitionedBuffer.{Native, Options, Partition, Routing}

  @type buffer() :: atom()

  def start_link(opts), do: opts |> Options.start!() |> PartitionedBuffer.Supervisor.start_link()

  def stop(buffer, reason \\ :normal, timeout \\ :infinity)
  def stop(pid, reason, timeout) when is_pid(pid), do: Supervisor.stop(pid, reason, timeout)
  def stop(buffer, reason, timeout), do: buffer |> PartitionedBuffer.Supervisor.name() |> Supervisor.stop(reason, timeout)

  def buffer_size(buffer) do
    case Native.size(buffer) do
      :not_running -> Routing.not_running!(buffer)
      size -> size
    end
  end

  def update_options(buffer, opts) do
    changes = Options.update!(buffer, opts)
    buffer |> Routing.partition_names() |> Enum.each(&Partition.update_options(&1, changes))
  end

  def get_partition(buffer, partition_key, key), do: Routing.partition_name(buffer, partition_key, key)
end
