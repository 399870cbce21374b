defmodule PartitionedBuffer.Processing.Outcome do
  @moduledoc false
  # Turns the return value of a processor into the outcome of its batch.

  @typedoc """
  All entries succeeded; some or all failed; some failed or are cancelled; the processor wants a
  later call, of this partition or of all; some or all cannot succeed. The other entries succeeded.
  `:raised` is an exception, throw or exit in place of a return value.
  """
  @type t() ::
          :ok
          | {:error, reason :: any(), numbers()}
          | {:partial, reason :: any(), [integer()]}
          | {:snooze, number(), :partition | :buffer}
          | {:cancel, reason :: any(), numbers()}
          | {:raised, :error | :exit | :throw, any(), Exception.stacktrace()}

  @typedoc """
  Entries, by their numbers in the batch, from 0 on and in ascending order. In `:partial` a
  cancelled entry has the number `-1 - number`.
  """
  @type numbers() :: [non_neg_integer()] | :all

  @doc """
  The outcome for the entries of a batch.
  """
  @spec new(any(), PartitionedBuffer.Options.kind(), list()) :: t()
  def new(:error, _kind, _entries), do: {:error, :error, :all}
  def new({:error, reason}, _kind, _entries), do: {:error, reason, :all}
  def new({:cancel, reason}, _kind, _entries), do: {:cancel, reason, :all}
  def new({:snooze, ms}, _kind, _entries) when is_number(ms), do: {:snooze, ms, :partition}
  def new({:snooze, ms, :buffer}, _kind, _entries) when is_number(ms), do: {:snooze, ms, :buffer}

  def new({outcome, reason, some} = returned, kind, entries) when outcome in [:error, :cancel] do
    case numbers(kind, [some], entries) do
      {:ok, [[]]} -> :ok
      {:ok, [numbers]} -> {outcome, reason, numbers}
      :error -> bad_return(returned)
    end
  end

  def new({:partial, reason, some} = returned, kind, entries) do
    with true <- Keyword.keyword?(some) and Keyword.keys(some) -- [:retry, :cancel] == [],
         lists = [Keyword.get(some, :retry, []), Keyword.get(some, :cancel, [])],
         {:ok, [retried, cancelled]} <- numbers(kind, lists, entries) do
      partial(reason, retried, cancelled)
    else
      _invalid -> bad_return(returned)
    end
  end

  # A slip in such a term, as in `{:partial, retry: entries}`, is no success.
  def new(returned, _kind, _entries)
      when is_tuple(returned) and elem(returned, 0) in [:snooze, :cancel, :partial],
      do: bad_return(returned)

  # One example is the error of an `Ecto.Multi`, which has four elements. Taking it for a success
  # would lose the batch.
  def new(returned, _kind, _entries) when is_tuple(returned) and elem(returned, 0) == :error,
    do: {:error, returned, :all}

  def new(_returned, _kind, _entries), do: :ok

  defp bad_return(returned), do: {:error, {:bad_return, returned}, :all}

  defp partial(_reason, [], []), do: :ok
  defp partial(reason, retried, []), do: {:error, reason, retried}
  defp partial(reason, [], cancelled), do: {:cancel, reason, cancelled}

  defp partial(reason, retried, cancelled) do
    marked = Enum.map(retried, &{&1, &1}) ++ Enum.map(cancelled, &{&1, -1 - &1})
    {:partial, reason, marked |> Enum.sort() |> Enum.map(&elem(&1, 1))}
  end

  # The numbers of the entries in each list, which the processor may return in any order. A queue may
  # have equal items, so each name stands for another item. No entry is named in two lists.
  defp numbers(kind, lists, [first | _rest] = entries) do
    if Enum.all?(lists, &proper_list?/1) do
      names = entries |> Enum.map(&name(kind, &1, first)) |> Enum.with_index() |> Enum.reverse()

      free =
        Enum.reduce(names, %{}, fn {name, number}, free ->
          Map.update(free, name, [number], &[number | &1])
        end)

      take_lists(kind, lists, first, free)
    else
      :error
    end
  end

  defp take_lists(kind, lists, first, free) do
    {numbers, _free} =
      Enum.map_reduce(lists, free, fn list, free ->
        Enum.map_reduce(repeat_no_key(kind, list, first), free, &take(name(kind, &1, first), &2))
      end)

    if Enum.any?(numbers, &(:error in &1)), do: :error, else: {:ok, Enum.map(numbers, &Enum.sort/1)}
  end

  # An entry with a key may be named several times in a list.
  defp repeat_no_key(:queue, list, _first), do: list
  defp repeat_no_key(kind, list, first), do: Enum.uniq_by(list, &name(kind, &1, first))

  defp take(name, free) do
    case free do
      %{^name => [number | others]} -> {number, %{free | name => others}}
      _none -> {:error, free}
    end
  end

  # Entries with keys have different keys, so the key is enough. The atom is no entry's name.
  defp name(:queue, item, _first), do: {:item, item}

  defp name(_with_keys, entry, first) when is_tuple(entry) and tuple_size(entry) == tuple_size(first),
    do: {:key, elem(entry, 0)}

  defp name(_with_keys, _other, _first), do: :no_entry

  defp proper_list?(term), do: is_list(term) and not List.improper?(term)
end
