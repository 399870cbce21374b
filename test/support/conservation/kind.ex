defmodule PartitionedBuffer.Conservation.Kind do
  @moduledoc false
  # Everything that differs between the kinds of buffers: the writes, and how the ledger knows that all of them have come.

  alias PartitionedBuffer.Conservation.{Ledger, Writer}

  @typedoc "Something that was written, for `c:check/2`."
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

  @doc "What a writer has written to a buffer with retries, and is not through after a flush."
  @callback not_through(Writer.t()) :: [any()]

  @doc "All that a writer has written."
  @callback written(Writer.t()) :: [written()]

  ## Calls

  @doc "Does a call of a writer or a fault on a buffer."
  @callback call(atom(), tuple() | atom(), keyword()) :: any()

  @doc "Does a call of a writer on an ETS design."
  @callback call_design(module(), any(), tuple() | atom()) :: any()

  @doc "A call that writes a long list. It is `{:list, number, :done | :cut_short}` in what was written."
  @callback list(non_neg_integer()) :: tuple()

  @doc "A call that writes a value which refers to code. `Ledger.code/3` is told of it when it comes."
  @callback code(non_neg_integer(), any()) :: tuple()

  @doc "Whether this value still waits."
  @callback code_waits?(atom(), non_neg_integer(), pid()) :: boolean()

  ## The ledger

  @doc "The module that compares for buffers with retries."
  @callback retried() :: module()

  @doc "The entries of a table that the processor got, in their order if they have one."
  @callback entries(:ets.table()) :: list()

  @doc """
  Checks an entry that the processor got: from which partition, of how many, and whether from a dying task beside another.
  Partition and count are nil if they are not known.
  """
  @callback entry(
              any(),
              {partition :: any(), partition_count :: any(), overlapping? :: boolean()},
              Ledger.t()
            ) :: Ledger.t()

  @doc "Compares something that was written with what has come, at the end."
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
