defmodule PartitionedBuffer.Identity do
  @moduledoc false
  # Which partition it is, and where its options are. All processes that work for the partition have its identity, which
  # outlives the partition's own process.

  alias PartitionedBuffer.{Options, Routing}

  @enforce_keys [:buffer, :number, :name, :settings]
  defstruct @enforce_keys

  @type t() :: %__MODULE__{buffer: atom(), number: non_neg_integer(), name: atom(), settings: :ets.tid()}

  @doc """
  The identity of a partition. `settings` is the ETS table with the options of the buffer.
  """
  @spec new(atom(), non_neg_integer(), :ets.tid()) :: t()
  def new(buffer, partition, settings) do
    %__MODULE__{
      buffer: buffer,
      number: partition,
      name: Routing.partition_name(buffer, partition),
      settings: settings
    }
  end

  @doc """
  The current options of the buffer.
  """
  @spec options(t()) :: Options.t()
  def options(%__MODULE__{settings: settings}), do: :ets.lookup_element(settings, :options, 2)

  @doc """
  Keeps a value for the partition until the buffer ends, also if its process dies. Nothing happens after that end.
  """
  @spec put(t(), atom(), any()) :: :ok
  def put(%__MODULE__{settings: settings, number: number}, key, value) do
    :ets.insert(settings, {{key, number}, value})
    :ok
  rescue
    ArgumentError -> :ok
  end

  @doc """
  Takes out a value that `put/3` has kept, or nil.
  """
  @spec take(t(), atom()) :: any()
  def take(%__MODULE__{settings: settings, number: number}, key) do
    case :ets.take(settings, {key, number}) do
      [{_key, value}] -> value
      [] -> nil
    end
  end

  @doc """
  A value that `put/3` has kept, or nil. It stays there.
  """
  @spec get(t(), atom()) :: any()
  def get(%__MODULE__{settings: settings, number: number}, key), do: get(settings, number, key)

  @doc """
  The same by the settings and the number of a partition.
  """
  @spec get(:ets.tid(), non_neg_integer(), atom()) :: any()
  def get(settings, number, key) do
    case :ets.lookup(settings, {key, number}) do
      [{_key, value}] -> value
      [] -> nil
    end
  end

  @doc """
  Keeps the last failure of a processor of the buffer.
  """
  @spec put_error(t(), any()) :: :ok
  def put_error(%__MODULE__{settings: settings, name: name}, reason) do
    error = %{reason: reason, system_time: System.system_time(:millisecond), partition: name}
    :ets.insert(settings, {:last_error, error})
    :ok
  rescue
    ArgumentError -> :ok
  end

  @doc """
  The metadata of every telemetry event of the partition.
  """
  @spec metadata(t()) :: map()
  def metadata(%__MODULE__{} = identity), do: %{buffer: identity.buffer, partition: identity.name}

  @doc """
  The name of the partition in log lines.
  """
  @spec describe(t()) :: String.t()
  def describe(%__MODULE__{} = identity),
    do: "partition #{identity.number} of buffer #{inspect(identity.buffer)}"
end
