defmodule PartitionedBuffer.Buffer.Settings do
  @moduledoc false
  # Changes the options of a running buffer. The native run keeps the options and functions, with a
  # version, so concurrent callers lose no change. The partitions only get a message.

  alias PartitionedBuffer.Buffer.{Journaling, Lookup, Writers}
  alias PartitionedBuffer.{Native, Options, Routing}
  alias PartitionedBuffer.Partition.Server

  @doc """
  Changes options. See `PartitionedBuffer.update_options/2`.
  """
  @spec update!(atom(), keyword()) :: :ok
  def update!(buffer, changes) do
    changes = Options.changes!(buffer, changes)
    _has_partitions = Routing.partition_count!(buffer)
    run = Lookup.run!(buffer)
    options = change!(run, buffer, changes)

    for number <- 0..(options.partitions - 1)//1,
        do: Server.options_changed(Routing.partition_name(buffer, number))

    if Keyword.has_key?(changes, :journal), do: Journaling.set_times(run)
    if Enum.any?([:max_size, :max_bytes], &Keyword.has_key?(changes, &1)), do: Writers.set_bound(run)
    :ok
  end

  defp change!(run, buffer, changes) do
    case Native.options(run) do
      {version, options} -> change!(run, buffer, changes, version, options)
      # A buffer that has just been opened has no options yet.
      nothing when nothing in [nil, :not_running] -> Routing.not_running!(buffer)
    end
  end

  # The functions are read after the options: if they are newer, the options have another version.
  defp change!(run, buffer, changes, version, options) do
    {options, functions} = Options.update!(options, changes)
    functions = if functions != [], do: struct!(functions!(run, buffer), functions)

    case Native.put_options(run, version, options, functions) do
      :ok -> options
      :changed -> change!(run, buffer, changes)
      :not_running -> Routing.not_running!(buffer)
    end
  end

  defp functions!(run, buffer) do
    case with(:large <- Native.functions(run), do: Native.functions_large(run)) do
      %Options.Functions{} = functions -> functions
      :not_running -> Routing.not_running!(buffer)
    end
  end
end
