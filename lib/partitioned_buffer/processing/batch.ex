defmodule PartitionedBuffer.Processing.Batch do
  @moduledoc false
  # A batch: the entries of one call of the processor.

  alias PartitionedBuffer.Native
  alias PartitionedBuffer.Processing.Job

  # More entries than a flush can have.
  @max_size 4_294_967_296

  # The most entries of a batch that a function of the user ends.
  @max_size_of_function 10_000

  @enforce_keys [:entries, :count]
  defstruct @enforce_keys

  @type t() :: %__MODULE__{entries: list(), count: non_neg_integer()}

  @doc """
  Reads the next batch. It has no entries at the end of the flush. With `superseded?` it leaves out
  entries for whose keys newer ones wait.
  """
  @spec read(Job.t(), superseded? :: boolean()) :: t()
  def read(%Job{flush: flush, options: options}, superseded?) do
    size = max_size(options.processing_batch_size)
    {entries, count} = read(flush, 0, size, superseded?)
    %__MODULE__{entries: entries, count: count}
  end

  defp max_size(:function), do: @max_size_of_function
  defp max_size(size), do: min(size, @max_size)

  # One call of the NIF may read fewer than `size` entries, even none, when its time is up.
  defp read(flush, length, size, superseded?) do
    case Native.read(flush, length, size, superseded?) do
      {entries, length, true} ->
        {entries, length}

      {entries, length, false} ->
        {more, length} = read(flush, length, size, superseded?)
        {entries ++ more, length}
    end
  end

  @doc """
  Ends a leased batch with failed entries, given by their numbers. Returns how many entries will be
  retried, how many are superseded or deleted, and how many are given up. The entries given up
  become the batch.

  With `counted?` the failure counts as an attempt, and as a failure in a row if the partition
  pauses. The partition pauses for `pause_ms`, unless that is nil.
  """
  @spec give_back(
          Native.flush(),
          [non_neg_integer()] | :all,
          boolean(),
          non_neg_integer() | :infinity,
          non_neg_integer() | nil
        ) :: {non_neg_integer(), non_neg_integer(), non_neg_integer()}
  def give_back(flush, failed, counted?, max_attempts, pause_ms) do
    case Native.give_back(flush, failed, counted?, max_attempts, pause_ms) do
      {:done, counts} ->
        counts

      {:more, rest, {retried, superseded, given_up}} ->
        {more_retried, more_superseded, more_given_up} =
          give_back(flush, rest, counted?, max_attempts, pause_ms)

        {retried + more_retried, superseded + more_superseded, given_up + more_given_up}
    end
  end
end
