defmodule PartitionedBuffer.Routing do
  @moduledoc false
  # Which partition an entry belongs to, and how buffers and partitions are named.

  alias PartitionedBuffer.Native

  @typedoc "The number of a partition, and among how many it was chosen; nil where the key itself decides."
  @type route() :: {partition :: non_neg_integer(), partitions :: pos_integer()} | nil

  @doc """
  The partition that `partition_key` chooses for a key among so many.
  """
  @spec route(any(), any(), pos_integer()) :: route()
  def route(partition_key, key, partitions),
    do: {:erlang.phash2(routing_key(partition_key, key), partitions), partitions}

  @doc """
  The name of the partition of a key.
  """
  @spec partition_name(atom(), any(), any()) :: atom()
  def partition_name(buffer, partition_key, key) do
    partition_name(buffer, :erlang.phash2(routing_key(partition_key, key), partitions!(buffer)))
  end

  @doc """
  The name of a partition by its number.
  """
  @spec partition_name(atom(), non_neg_integer()) :: atom()
  def partition_name(buffer, number), do: Module.concat([buffer, to_string(number)])

  @doc """
  The names of all partitions of a running buffer.
  """
  @spec partition_names(atom()) :: [atom()]
  def partition_names(buffer) do
    for number <- 0..(partitions!(buffer) - 1), do: partition_name(buffer, number)
  end

  @doc """
  How many partitions a running buffer has.
  """
  @spec partitions!(atom()) :: pos_integer()
  def partitions!(buffer) do
    case Native.partitions(buffer) do
      :not_running -> not_running!(buffer)
      partitions -> partitions
    end
  end

  @doc """
  Raises what a call raises that a buffer did not take: of the kind `kind`, or of those that all kinds have.
  """
  @spec not_running!(atom(), :map | :queue | :any) :: no_return()
  def not_running!(buffer, kind \\ :any) do
    message = "no partitions available for buffer #{inspect(buffer)}: "

    case Native.status(buffer) do
      :not_running ->
        raise ArgumentError, message <> "it is not running"

      {_running_as, 0} ->
        raise message <> "it was started with 0 partitions"

      {running_as, _partitions} when kind not in [:any, running_as] ->
        raise ArgumentError,
              message <> "it is running as a #{running_as}, and this call is for a #{kind}"

      # Its partitions refuse what comes after the last flush.
      _running ->
        raise ArgumentError, message <> "it is stopping"
    end
  end

  defp routing_key(nil, key), do: :erlang.phash2(key)
  defp routing_key(function, key) when is_function(function, 1), do: function.(key)
  defp routing_key({m, f, a}, key) when is_atom(m) and is_atom(f) and is_list(a), do: apply(m, f, [key | a])
  defp routing_key(term, _key), do: term
end
