defmodule PartitionedBuffer.Conservation.Additions do
  @moduledoc false
  # All additions to a key follow from the key's number: the amounts rise by the same step, so sum
  # and count of an entry reveal its additions, as long as they follow each other. Some sums need
  # more than 64 bits, others are negative. The keys are those of `History`.
  #
  # The writes to a key are numbered from 1. Some keys also have deletes, which remove the waiting
  # sum.

  import Bitwise

  alias PartitionedBuffer.Conservation.History

  defdelegate key(id), to: History
  defdelegate id(key), to: History

  @doc "Whether some writes to the key are deletes."
  def deletes?(id), do: rem(id, 4) == 3

  @doc "Whether a write is a delete."
  def delete?(id, number), do: deletes?(id) and :erlang.phash2([id | number], 8) == 0

  @doc "The amount of the write with this number."
  def amount(id, number), do: number * step(id)

  defp step(id) do
    size = if rem(id, 5) == 0, do: 1 <<< 40, else: 1
    if rem(id, 2) == 0, do: size, else: -size
  end

  @doc "The sum of the additions from `first` to `last`; 0 without any."
  def sum(_id, first, last) when first > last, do: 0
  def sum(id, first, last), do: step(id) * div((last - first + 1) * (first + last), 2)

  @doc """
  The first and the last addition of an entry, or `:error` if its additions do not follow each
  other.
  """
  def run(id, sum, count) when count > 0 do
    # The sum is `step * count * (2 * first + count - 1) / 2`.
    with twice = 2 * sum,
         factor = step(id) * count,
         0 <- rem(twice, factor),
         ends = div(twice, factor) - count + 1,
         true <- ends > 0 and rem(ends, 2) == 0 do
      {div(ends, 2), div(ends, 2) + count - 1}
    else
      _other -> :error
    end
  end

  def run(_id, _sum, _count), do: :error

  @doc """
  Whether an addition may begin its entry, after those up to `last`: a delete or `last` precedes it.
  """
  def begins?(id, last, first), do: first == last + 1 or (first > last + 1 and delete?(id, first - 1))

  @doc "Whether a key with `written` writes has no entry after the additions up to `last`."
  def finished?(id, last, written), do: last == written or (last < written and delete?(id, written))
end
