defmodule PartitionedBuffer.Processing.Outcome do
  @moduledoc false
  # Turns the return value of a processor into the outcome of its batch.

  # The longest timeout of `receive`.
  @max_ms 4_294_967_295

  @typedoc """
  All entries succeeded; some or all failed; the processor wants a later call; some or all cannot
  succeed. The other entries succeeded. Entries are given by their numbers in the batch, from 0 on
  and in ascending order.
  """
  @type t() ::
          :ok
          | {:error, reason :: any(), numbers()}
          | {:snooze, non_neg_integer()}
          | {:cancel, reason :: any(), numbers()}

  @type numbers() :: [non_neg_integer()] | :all

  @doc """
  The outcome for the entries of a batch.
  """
  @spec new(any(), PartitionedBuffer.Options.kind(), list()) :: t()
  def new(:error, _kind, _entries), do: {:error, :error, :all}
  def new({:error, reason}, _kind, _entries), do: {:error, reason, :all}
  def new({:snooze, ms}, _kind, _entries) when is_integer(ms) and ms in 0..@max_ms, do: {:snooze, ms}
  def new({:snooze, _other} = returned, _kind, _entries), do: bad_return(returned)
  def new({:cancel, reason}, _kind, _entries), do: {:cancel, reason, :all}

  def new({outcome, reason, some} = returned, kind, entries) when outcome in [:error, :cancel] do
    case numbers(kind, some, entries) do
      {:ok, []} -> :ok
      {:ok, numbers} -> {outcome, reason, numbers}
      :error -> bad_return(returned)
    end
  end

  # One example is the error of an `Ecto.Multi`, which has four elements. Taking it for a success
  # would lose the batch.
  def new(returned, _kind, _entries) when is_tuple(returned) and elem(returned, 0) == :error,
    do: {:error, returned, :all}

  def new(_returned, _kind, _entries), do: :ok

  defp bad_return(returned), do: {:error, {:bad_return, returned}, :all}

  # Equal items may occur several times, so the returned items must be in their order.
  defp numbers(:queue, some, items) do
    if proper_list?(some), do: subsequence(some, items, 0, []), else: :error
  end

  # Entries with keys have different keys, so returned entries are found by key, in any order.
  defp numbers(_with_keys, some, [first | _rest] = entries) do
    if proper_list?(some) do
      by_key = for {entry, number} <- Enum.with_index(entries), into: %{}, do: {elem(entry, 0), number}
      numbers = Enum.map(some, &number(&1, tuple_size(first), by_key))
      if :error in numbers, do: :error, else: {:ok, numbers |> Enum.sort() |> Enum.dedup()}
    else
      :error
    end
  end

  defp number(entry, size, by_key) when is_tuple(entry) and tuple_size(entry) == size,
    do: Map.get(by_key, elem(entry, 0), :error)

  defp number(_other, _size, _by_key), do: :error

  defp subsequence([], _items, _number, numbers), do: {:ok, Enum.reverse(numbers)}
  defp subsequence(_some, [], _number, _numbers), do: :error

  defp subsequence([item | some], [item | items], number, numbers),
    do: subsequence(some, items, number + 1, [number | numbers])

  defp subsequence(some, [_item | items], number, numbers),
    do: subsequence(some, items, number + 1, numbers)

  defp proper_list?(term), do: is_list(term) and not List.improper?(term)
end
