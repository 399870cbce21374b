defmodule PartitionedBuffer.Conservation.Checks do
  @moduledoc false
  # The differences between the kinds of buffers for the ledger of a buffer with retries.

  @typedoc "`PartitionedBuffer.Conservation.Retries`"
  @type ledger() :: struct()

  @typedoc """
  A mark is the verdict on an entry: `:split` is an entry of a batch that failed as a whole, and
  `:dead` one that `:dead_letter` got.
  """
  @type mark() :: :ok | :failed | :split | :snoozed | :cancelled | :dead

  @typedoc """
  An entry for the checks: its content, the least number of its failures before, and whether the
  batch has no other.
  """
  @type entry() :: %{:attempts => non_neg_integer(), :single? => boolean(), optional(atom()) => any()}

  @typedoc """
  A batch: its number, task, and whether its entries go to the processor or are given up without a
  call.
  """
  @type batch() :: {pos_integer(), struct()}

  @doc "The first state."
  @callback new() :: any()

  @doc "Whether a failed entry holds up all others."
  @callback strict?() :: boolean()

  @doc "Checks the entries of a batch. Returns them in their order, yet without `single?`."
  @callback arrive([any()], batch(), ledger()) :: {[map()], ledger()}

  @doc "Notes the marks of a batch."
  @callback mark([{entry(), mark()}], batch(), ledger()) :: ledger()

  @doc """
  Looks at the entries of a failed batch again, as of the time just before the processor returned.
  """
  @callback returning(batch(), time :: integer(), ledger()) :: ledger()

  @doc """
  Checks entries that `:dead_letter` got: `expected` are the entries of the task's own batch, nil if
  another task had it.
  """
  @callback dead([any()], expected :: [entry()] | nil, ledger()) :: ledger()

  @doc "Notes an entry that had to be given up and was not."
  @callback not_given_up(entry(), ledger()) :: ledger()

  @doc "Whether an entry was deleted or replaced, at the end."
  @callback replaced?(entry(), ledger()) :: boolean()

  @doc "Whether `:dead_letter` got the entry of a write."
  @callback dead?(what :: any(), number :: pos_integer(), ledger()) :: boolean()

  @doc "Whether all earlier writes are through; `what` has a meaning for the kind."
  @callback through?(what :: any(), ledger()) :: boolean()

  @doc "The entries of a write that are not through, if the others do not hold them up."
  @callback left(any(), ledger()) :: [what :: any()]

  @doc "Compares a write with the entries that came, at the end."
  @callback check(any(), ledger()) :: ledger()
end
