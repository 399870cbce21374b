defmodule PartitionedBuffer.Conservation.History do
  @moduledoc false
  # What is written to a key, from its first write to its last, follows from the key's number alone. So whoever sees an
  # entry can tell which writes it is made of.
  #
  # A key is written by one process, its flushes come one after the other, so each of them has a run of its writes:
  # those behind the last one's run. The entry that comes out is what `Model` makes of this run. The version, and
  # `updates`, which counts back to the first write of the run or to the last `put`, give the run away: a write that is
  # missing, comes twice, comes late or in another's place makes an entry that no run explains. Not seen is only the loss
  # of a write that the next one of the same run replaced or deleted anyway.

  import Bitwise

  alias PartitionedBuffer.Model

  @doc "The key with this number, and back."
  def key(id) when rem(id, 3) == 0, do: id
  def key(id) when rem(id, 3) == 1, do: {:key, id}
  def key(id), do: <<id::64>>

  def id(id) when is_integer(id), do: id
  def id({:key, id}), do: id
  def id(<<id::64>>), do: id

  @doc "The write with this number, from 1, of a key."
  @spec write(non_neg_integer(), pos_integer()) :: Model.write()
  def write(id, number), do: write(id, number, value(id, number))

  defp write(id, number, value) do
    case kind(id, number) do
      :put -> {:put, value}
      :newer -> {:put_newer, value, version(id, number)}
      # Less than all before it: it is stored only where there is nothing.
      :stale -> {:put_newer, value, -version(id, number)}
      :delete -> :delete
    end
  end

  @doc "Of which kind that write is."
  def kind(id, number) do
    case :erlang.phash2([id | number], 16) do
      n when n < 5 -> :put
      n when n < 12 -> :newer
      n when n < 14 -> :stale
      _ -> :delete
    end
  end

  @doc "The number of the write that made a value."
  def number({number, _id}), do: number
  def number(<<number::64, _rest::binary>>), do: number
  def number(%{number: number}), do: number
  def number(number), do: number

  @doc """
  Takes an entry that was flushed, of a key whose writes up to `seen` have been before. The number up to which they
  have been now; or what cannot be: the same writes `:again`, an entry behind one that was `:lost`, one that is `:wrong`.
  """
  def flush(id, seen, {value, version, updates}) do
    number = number(value)
    # Of what was written the number says all.
    entry = {number, version, updates}

    cond do
      value !== value(id, number) -> {:wrong, seen}
      number <= seen -> {:again, seen}
      run?(id, seen + 1, number, entry) -> {:ok, number}
      Enum.any?(number..(seen + 1)//-1, &(entry(id, &1, number) == entry)) -> {:lost, number}
      true -> {:wrong, number}
    end
  end

  @doc "Whether nothing is to come of a key that was written so many times, `seen` of which were flushed."
  def finished?(id, seen, written), do: seen <= written and run?(id, seen + 1, written, nil)

  @doc "Whether a read between two writes may find this value: nothing has replaced it."
  def current?(id, written, value) do
    number = number(value)

    number in 1..written and value(id, number) === value and
      Enum.all?((number + 1)..written//1, &(kind(id, &1) == :stale))
  end

  # A stale write behind the last entry may have been ignored in that run, or begin this one.
  defp run?(id, first, last, entry) do
    entry(id, first, last) == entry or
      (first <= last and kind(id, first) == :stale and run?(id, first + 1, last, entry))
  end

  # What a run of writes leaves, with a number in the place of its value.
  defp entry(id, first, last), do: Enum.reduce(first..last//1, nil, &Model.write(&2, write(id, &1, &1)))

  defp value(id, number) do
    case rem(number, 4) do
      0 -> number
      1 -> {number, id}
      2 -> <<number::64, id::64, 0::640>>
      3 -> %{number: number, id: id}
    end
  end

  # Some of them need more than a word.
  defp version(id, number) when rem(id, 8) == 0, do: number <<< 60
  defp version(_id, number), do: number
end
