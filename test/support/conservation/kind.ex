defmodule PartitionedBuffer.Conservation.Kind do
  @moduledoc false
  # What maps and queues differ in: what is written, and how the ledger knows that all of it has come.

  alias PartitionedBuffer.Conservation.{Ledger, Writer}

  @typedoc "What somebody has written, as `c:check/2` takes it."
  @type written() :: any()

  @doc "The module of the buffer."
  @callback buffer() :: module()

  @doc "How many partitions the buffer may have for what is checked of it to hold."
  @callback partitions() :: [pos_integer()]

  ## Writers

  @doc "What a writer keeps in `state`."
  @callback new() :: any()

  @callback write_one(Writer.t()) :: Writer.t()
  @callback write_many(Writer.t()) :: Writer.t()
  @callback read(Writer.t()) :: Writer.t()

  @doc "What a writer has written."
  @callback written(Writer.t()) :: [written()]

  @doc "A call of a writer, to a buffer with these options, and to an ETS design, which has none."
  @callback call(atom(), tuple(), keyword()) :: any()
  @callback call_design(module(), any(), tuple()) :: any()

  ## Faults

  @doc "A long list, each with another number, and its writing, which may have been `:cut_short`."
  @callback list(non_neg_integer()) :: list()
  @callback write_list(atom(), list()) :: :ok
  @callback written_list(non_neg_integer(), :done | :cut_short) :: written()

  @doc "Writes a value with a number that refers to code, of which the ledger is told by `Ledger.code/3`."
  @callback write_code(atom(), non_neg_integer(), any()) :: :ok

  @doc "Whether this value has not been flushed."
  @callback code_waits?(atom(), non_neg_integer(), pid()) :: boolean()

  ## The ledger

  @doc "The entries of a table that was flushed, in their order if they have one."
  @callback entries(:ets.table()) :: list()

  @doc """
  An entry that was flushed by a partition of so many, which is no number if it is not known, and whether by a dying task
  beside another.
  """
  @callback entry(any(), {partition :: any(), among :: any(), overlapping? :: boolean()}, Ledger.t()) ::
              Ledger.t()

  @doc "Compares what was written with what has come, at the end."
  @callback check(written(), Ledger.t()) :: Ledger.t()
end
