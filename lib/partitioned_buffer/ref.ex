defmodule PartitionedBuffer.Ref do
  @moduledoc false
  # Names a partition of one run of a buffer. All processes that work for the partition have its
  # reference, and it does nothing once that run is over.

  alias PartitionedBuffer.{Native, Options, Routing}

  @enforce_keys [:run, :buffer, :number, :name]
  defstruct @enforce_keys

  @type t() :: %__MODULE__{run: Native.run(), buffer: atom(), number: non_neg_integer(), name: atom()}

  @doc """
  A reference to the partition with this number.
  """
  @spec new(Native.run(), atom(), non_neg_integer()) :: t()
  def new(run, buffer, number),
    do: %__MODULE__{run: run, buffer: buffer, number: number, name: Routing.partition_name(buffer, number)}

  @doc """
  The present options of the buffer; nil once its run is over.
  """
  @spec options(t()) :: Options.t() | nil
  def options(%__MODULE__{run: run}) do
    case Native.options(run) do
      {_version, options} -> options
      :not_running -> nil
    end
  end

  @doc """
  The functions of the user; nil once the run is over. They may be large, so only a task reads them.
  """
  @spec functions(t()) :: Options.Functions.t() | nil
  def functions(%__MODULE__{run: run}) do
    case with(:large <- Native.functions(run), do: Native.functions_large(run)) do
      :not_running -> nil
      functions -> functions
    end
  end

  @doc """
  How many entries wait or are in flight; 0 once the run is over.
  """
  @spec held(t()) :: non_neg_integer()
  def held(%__MODULE__{run: run, number: number}) do
    with :not_running <- Native.held(run, number), do: 0
  end

  @doc """
  How many entries partitions hold together.
  """
  @spec held_by_all([t()]) :: non_neg_integer()
  def held_by_all(partitions), do: partitions |> Enum.map(&held/1) |> Enum.sum()

  @doc """
  The metadata of every telemetry event of the partition.
  """
  @spec metadata(t()) :: map()
  def metadata(%__MODULE__{} = ref), do: %{buffer: ref.buffer, partition: ref.name}

  @doc """
  The metadata of every log line about the partition.
  """
  @spec log_metadata(t()) :: keyword()
  def log_metadata(%__MODULE__{} = ref), do: [buffer: ref.buffer, partition: ref.name]

  @doc """
  The name of the partition in log lines.
  """
  @spec describe(t()) :: String.t()
  def describe(%__MODULE__{} = ref), do: "partition #{ref.number} of buffer #{inspect(ref.buffer)}"
end
