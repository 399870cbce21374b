defmodule PartitionedBuffer.Identity do
  @moduledoc false
  # Which partition it is, and where its options are: what all know that work for it. It outlives the partition's process.

  alias PartitionedBuffer.{Options, Routing}

  @enforce_keys [:buffer, :number, :name, :settings]
  defstruct @enforce_keys

  @type t() :: %__MODULE__{buffer: atom(), number: non_neg_integer(), name: atom(), settings: :ets.tid()}

  @doc """
  The partition of a buffer with this number. `settings` is the ETS table with the buffer's options.
  """
  @spec new(atom(), non_neg_integer(), :ets.tid()) :: t()
  def new(buffer, number, settings) do
    %__MODULE__{
      buffer: buffer,
      number: number,
      name: Routing.partition_name(buffer, number),
      settings: settings
    }
  end

  @doc """
  The options of its buffer, as they are now.
  """
  @spec options(t()) :: Options.t()
  def options(%__MODULE__{settings: settings}), do: :ets.lookup_element(settings, :options, 2)

  @doc """
  What each telemetry event tells of it.
  """
  @spec metadata(t()) :: map()
  def metadata(%__MODULE__{} = identity), do: %{buffer: identity.buffer, partition: identity.name}

  @doc """
  How it is called in log lines.
  """
  @spec describe(t()) :: String.t()
  def describe(%__MODULE__{} = identity),
    do: "partition #{identity.number} of buffer #{inspect(identity.buffer)}"
end
