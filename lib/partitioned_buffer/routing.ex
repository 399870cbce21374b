defmodule PartitionedBuffer.Routing do
  @moduledoc false
  # Chooses the partition of an entry, and names buffers and partitions.

  alias PartitionedBuffer.Native

  @typedoc "A partition, and the partition count that chose it; nil if the key itself decides."
  @type route() :: {partition :: non_neg_integer(), partition_count :: pos_integer()} | nil

  @doc """
  The route of a key with this `partition_key`.
  """
  @spec route(any(), any(), pos_integer()) :: route()
  def route(partition_key, key, partition_count),
    do: {:erlang.phash2(routing_key(partition_key, key), partition_count), partition_count}

  @doc """
  The name of the partition of a key.
  """
  @spec partition_name(atom(), any(), any()) :: atom()
  def partition_name(buffer, partition_key, key) do
    partition_name(buffer, :erlang.phash2(routing_key(partition_key, key), partition_count!(buffer)))
  end

  @doc """
  The name of a partition by its index.
  """
  @spec partition_name(atom(), non_neg_integer()) :: atom()
  def partition_name(buffer, partition), do: Module.concat([buffer, to_string(partition)])

  @doc """
  The name of a buffer's supervisor.
  """
  @spec supervisor_name(atom()) :: atom()
  def supervisor_name(buffer), do: Module.concat(buffer, Supervisor)

  @doc """
  The name of the supervisor of a buffer of several nodes, and of its table.
  """
  @spec cluster_name(atom()) :: atom()
  def cluster_name(buffer), do: Module.concat(buffer, Cluster)

  @doc """
  The name of the stage that delivers the entries of a buffer of several nodes. The other stage has
  the name of the buffer.
  """
  @spec owning_name(atom()) :: atom()
  def owning_name(buffer), do: Module.concat(buffer, Owning)

  @doc """
  The names of all partitions of a running buffer.
  """
  @spec partition_names(atom()) :: [atom()]
  def partition_names(buffer) do
    for partition <- 0..(partition_count!(buffer) - 1), do: partition_name(buffer, partition)
  end

  @doc """
  The partition count of a running buffer.
  """
  @spec partition_count!(atom()) :: pos_integer()
  def partition_count!(buffer) do
    case Native.partition_count(buffer) do
      :not_running -> not_running!(buffer)
      partition_count -> partition_count
    end
  end

  @doc """
  Raises the error of a call that no partition accepts. `kind` is the kind of buffer that the call
  expects.
  """
  @spec not_running!(atom()) :: no_return()
  @spec not_running!(atom(), PartitionedBuffer.Options.kind() | :any) :: no_return()
  def not_running!(buffer, kind \\ :any) do
    message = "no partitions available for buffer #{inspect(buffer)}: "

    case Native.status(buffer) do
      :not_running ->
        raise ArgumentError, message <> "it is not running"

      {_kind, 0} ->
        raise message <> "it was started with 0 partitions"

      {running_as, _partition_count} when kind not in [:any, running_as] ->
        raise ArgumentError,
              message <> "it is running as a #{running_as}, and this call is for a #{kind}"

      # The buffer runs, but its partitions are closed, or not open yet.
      _running ->
        raise ArgumentError, message <> "it is starting or stopping"
    end
  end

  defp routing_key(nil, key), do: :erlang.phash2(key)
  defp routing_key(function, key) when is_function(function, 1), do: function.(key)
  defp routing_key({m, f, a}, key) when is_atom(m) and is_atom(f) and is_list(a), do: apply(m, f, [key | a])
  defp routing_key(term, _key), do: term
end
