defmodule PartitionedBuffer.Conservation.Kind do
  @moduledoc false
  # Everything that differs between the kinds of buffers: the writes, and how the ledger finds
  # missing ones.

  alias PartitionedBuffer.Conservation.{Ledger, Writer}

  @typedoc "Written data, for `c:check/2`."
  @type written() :: any()

  @doc "The module of the buffer."
  @callback buffer() :: module()

  @doc "The numbers of partitions with which all checks hold."
  @callback partitions() :: [pos_integer()]

  ## Writers

  @doc "The first `state` of a writer."
  @callback new() :: any()

  @callback write_one(Writer.t()) :: Writer.t()
  @callback write_many(Writer.t()) :: Writer.t()
  @callback read(Writer.t()) :: Writer.t()

  @doc "The writes of a writer to a buffer with retries that are not through after a flush."
  @callback not_through(Writer.t()) :: [any()]

  @doc "All writes of a writer."
  @callback written(Writer.t()) :: [written()]

  ## Calls

  @doc "Does a call of a writer or a fault on a buffer."
  @callback call(atom(), tuple() | atom(), keyword()) :: any()

  @doc "Does a call of a writer on an ETS design."
  @callback call_design(module(), any(), tuple() | atom()) :: any()

  @doc """
  A call that writes a long list. The writes have it as `{:list, number, :done | :cut_short}`.
  """
  @callback list(non_neg_integer()) :: tuple()

  @doc "A call that writes a value which refers to code. `Ledger.code/3` notes it when it comes."
  @callback code(non_neg_integer(), any()) :: tuple()

  @doc "Whether this value still waits."
  @callback code_waits?(atom(), non_neg_integer(), pid()) :: boolean()

  ## The ledger

  @doc "The module that compares for buffers with retries."
  @callback retried() :: module()

  @doc "The entries of a table that the processor got, in their order if they have one."
  @callback entries(:ets.table()) :: list()

  @doc """
  Checks an entry that the processor got: from which partition, of how many, and whether from a
  dying task beside another. Partition and count are nil if unknown.
  """
  @callback entry(
              any(),
              {partition :: any(), partition_count :: any(), overlapping? :: boolean()},
              Ledger.t()
            ) :: Ledger.t()

  @doc "Compares a write with the entries that came, at the end."
  @callback check(written(), Ledger.t()) :: Ledger.t()

  @doc "The result of a call on a buffer, or `:refused` if the buffer is not running."
  def refusable(call) do
    call.()
  rescue
    error in ArgumentError ->
      unless error.message =~ "no partitions available", do: reraise(error, __STACKTRACE__)
      :refused
  end
end
