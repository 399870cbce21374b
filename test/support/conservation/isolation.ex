defmodule PartitionedBuffer.Conservation.Isolation do
  @moduledoc false
  # What the ledger of a buffer with retries knows about the isolation of a partition. The death of
  # a task leaves it unknown whether the last batch succeeded. So the limit is an upper bound, and
  # the failures of single entries, `alone`, are a lower bound.

  defstruct limit: :infinity, ceiling: :infinity, successes: 0, alone: 0, paused?: false

  @type t() :: %__MODULE__{}

  @successes 16
  @alone 3

  @doc "A batch of `length` entries succeeded, or some of it."
  def succeed(%__MODULE__{} = isolation, length) do
    isolation = %{isolation | alone: 0, paused?: false, successes: isolation.successes + 1}

    isolation =
      if isolation.limit != :infinity and length >= isolation.limit,
        do: %{isolation | limit: min(4 * isolation.limit, isolation.ceiling)},
        else: isolation

    if isolation.successes == @successes,
      do: %{isolation | successes: 0, ceiling: double(isolation.ceiling)},
      else: isolation
  end

  defp double(:infinity), do: :infinity
  defp double(ceiling), do: 2 * ceiling

  @doc "A batch of `length` entries failed as a whole."
  def split(%__MODULE__{} = isolation, length),
    do: %{isolation | limit: limit(length), ceiling: max(div(length, 2), 1), successes: 0}

  @doc "The limit after a split of `length` entries."
  def limit(length), do: max(div(length, 4), 1)

  @doc "All entries of a batch of `length` entries failed by themselves."
  def fail(%__MODULE__{} = isolation, length) do
    isolation = %{isolation | alone: isolation.alone + 1, successes: 0}
    if length == 1, do: %{isolation | limit: 1, ceiling: :infinity}, else: isolation
  end

  @doc "A whole batch of `length` entries was cancelled."
  def cancel(%__MODULE__{} = isolation, 1), do: %{isolation | ceiling: :infinity}
  def cancel(%__MODULE__{} = isolation, _length), do: isolation

  @doc "A pause begins."
  def pause(%__MODULE__{} = isolation), do: %{isolation | paused?: true}

  @doc "Whether the next failure of all entries of a batch begins a pause for certain."
  def exhausted?(%__MODULE__{alone: alone, paused?: paused?}), do: paused? or alone + 1 >= @alone
end
