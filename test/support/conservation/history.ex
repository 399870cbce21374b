defmodule PartitionedBuffer.Conservation.History do
  @moduledoc false
  # All writes to a key follow from the key's number. So each entry reveals its writes.
  #
  # One process writes to a key, and the flushes of a key come one after the other. So each flush
  # has a run of the key's writes, next to the run of the flush before, and its entry is the result
  # of `Model` for this run. The entry reveals its run by its version and by `updates`, which counts
  # back to the first write of the run or to the last `put`. No run explains the entry of a missing,
  # doubled, late or misplaced write. Only the loss of a write replaced or deleted in the same run
  # stays unseen.

  import Bitwise

  alias PartitionedBuffer.Model

  @doc "The key with this number."
  def key(id) when rem(id, 3) == 0, do: id
  def key(id) when rem(id, 3) == 1, do: {:key, id}
  def key(id), do: <<id::64>>

  @doc "The number of a key."
  def id(id) when is_integer(id), do: id
  def id({:key, id}), do: id
  def id(<<id::64>>), do: id

  @doc "A write to a key. They are numbered from 1."
  @spec write(non_neg_integer(), pos_integer()) :: Model.write()
  def write(id, number), do: write(id, number, value(id, number))

  defp write(id, number, value) do
    case kind(id, number) do
      :put -> {:put, value}
      :newer -> {:put_newer, value, version(id, number)}
      # Its version is below all before, so it is stored only without an entry.
      :stale -> {:put_newer, value, -version(id, number)}
      :delete -> :delete
    end
  end

  @doc "The kind of a write."
  def kind(id, number) do
    case :erlang.phash2([id | number], 16) do
      n when n < 5 -> :put
      n when n < 12 -> :newer
      n when n < 14 -> :stale
      _ -> :delete
    end
  end

  @doc """
  The same for a buffer with retries: half of the stale writes are `put_new`, for keys without an
  entry.
  """
  def retried(id, number) do
    with {:put_newer, value, version} when version < 0 and rem(number, 2) == 0 <- write(id, number),
         do: {:put_new, value}
  end

  @doc """
  Whether this may be the entry of the write with this number in a buffer with retries. Entries
  replaced in flight stay unseen, so `updates` may count fewer than all replacements.
  """
  def retried?(id, number, {value, version, updates}) when is_integer(number) and number > 0 do
    case retried(id, number) do
      {:put_newer, ^value, ^version} when version > 0 -> updates in 0..most_updates(id, number - 1, 0)
      {:put_newer, ^value, ^version} -> updates == 0
      {put, ^value} when put in [:put, :put_new] -> {version, updates} == {0, 0}
      _other -> false
    end
  end

  def retried?(_id, _number, _entry), do: false

  defp most_updates(_id, 0, count), do: count

  defp most_updates(id, number, count) do
    case kind(id, number) do
      :newer -> most_updates(id, number - 1, count + 1)
      # It was ignored, or made the entry that the next write replaced.
      :stale -> max(count + 1, most_updates(id, number - 1, count))
      :put -> count + 1
      :delete -> count
    end
  end

  @doc "The number of the write of a value."
  def number({number, _id}), do: number
  def number(<<number::64, _rest::binary>>), do: number
  def number(%{number: number}), do: number
  def number(number), do: number

  @doc """
  Explains the next entry of a key, after the writes up to the number `seen`. Returns the number of
  the last write that came now, and `:ok` or the violation: writes come `:again`, writes before the
  entry are `:lost`, or no run gives this entry, so it is `:wrong`.
  """
  def flush(id, seen, {value, version, updates}) do
    number = number(value)
    # The number stands for the value, which was compared.
    entry = {number, version, updates}

    cond do
      value !== value(id, number) -> {:wrong, seen}
      number <= seen -> {:again, seen}
      run?(id, seen + 1, number, entry) -> {:ok, number}
      Enum.any?(number..(seen + 1)//-1, &(entry(id, &1, number) == entry)) -> {:lost, number}
      true -> {:wrong, number}
    end
  end

  @doc "Whether a key with `written` writes has no entry after the writes up to `seen`."
  def finished?(id, seen, written), do: seen <= written and run?(id, seen + 1, written, nil)

  @doc "Whether a read after this number of writes may find this value: no later write replaced it."
  def current?(id, written, value) do
    number = number(value)

    number in 1..written and value(id, number) === value and
      Enum.all?((number + 1)..written//1, &(kind(id, &1) == :stale))
  end

  # A stale write after the last entry was ignored in its run, or begins this one.
  defp run?(id, first, last, entry) do
    entry(id, first, last) == entry or
      (first <= last and kind(id, first) == :stale and run?(id, first + 1, last, entry))
  end

  # The entry of a run of writes, with the number of the write instead of the value.
  defp entry(id, first, last), do: Enum.reduce(first..last//1, nil, &Model.write(&2, write(id, &1, &1)))

  defp value(id, number) do
    case rem(number, 4) do
      0 -> number
      1 -> {number, id}
      2 -> <<number::64, id::64, 0::640>>
      3 -> %{number: number, id: id}
    end
  end

  # Some versions need more than a word.
  defp version(id, number) when rem(id, 8) == 0, do: number <<< 60
  defp version(_id, number), do: number
end
