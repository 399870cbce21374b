defmodule PartitionedBuffer.Conservation.Writer do
  @moduledoc false
  # Writes to keys of its own, each in the order of its `History`, with every kind of call. A single write that raises
  # because the buffer is not running has not been done, and is tried again. Of a list some may have been written: its keys
  # are given up, and others take their places.

  alias PartitionedBuffer.Conservation.History

  @slots 4_096
  @hot 16

  defstruct [
    :number,
    :writers,
    :target,
    :hibernate,
    :left,
    :report_to,
    slots: %{},
    cut_short: [],
    counts: %{}
  ]

  @doc "Starts one of so many writers, which sends `{:written, histories, counts}` after `left` writes."
  def start_link(number, opts) do
    writer = struct!(__MODULE__, [number: number, report_to: self()] ++ Keyword.delete(opts, :seed))

    spawn_link(fn ->
      :rand.seed(:exsss, {opts[:seed], number, 0})
      loop(writer)
    end)
  end

  @doc false
  def loop(%{left: left} = writer) when left <= 0 do
    histories = for {id, written} <- Map.values(writer.slots), do: {id, written..written}
    send(writer.report_to, {:written, histories ++ writer.cut_short, writer.counts})
  end

  def loop(writer) do
    case :rand.uniform(1_000) do
      n when n <= 15 -> writer |> write_many() |> loop()
      n when n <= 60 -> writer |> check_read() |> loop()
      n when n <= 80 -> writer |> yield() |> loop()
      81 when writer.hibernate -> hibernate(writer)
      _ -> writer |> write_one(any_slot()) |> loop()
    end
  end

  # The message wakes it up at once, from a heap that has shrunk to what is alive.
  defp hibernate(writer) do
    send(self(), :wake_up)
    :erlang.hibernate(__MODULE__, :woken_up, [writer])
  end

  @doc false
  def woken_up(writer) do
    receive(do: (:wake_up -> loop(count(writer, :hibernations))))
  end

  # A writer's time slice is thousands of calls: partitions would seldom have their turn.
  defp yield(writer) do
    :erlang.yield()
    writer
  end

  defp any_slot do
    if :rand.uniform(2) == 1, do: :rand.uniform(@hot) - 1, else: :rand.uniform(@slots) - 1
  end

  ## Calls

  defp write_one(writer, slot) do
    {id, written} = at(writer, slot)
    call = single(History.write(id, written + 1), History.key(id))

    case writer.target.write.(call, option(slot)) do
      :ok ->
        writer |> put_slot(slot, {id, written + 1}) |> done(elem(call, 0), 1)

      :refused ->
        Process.sleep(1)
        writer |> count(:refused) |> write_one(slot)
    end
  end

  defp single({:put, value}, key), do: {:put, key, value}
  defp single({:put_newer, value, version}, key), do: {:put_newer, key, value, version}
  defp single(:delete, key), do: {:delete, key}

  # Next to each other, all routed in the same way; up to three writes of each in a list.
  defp write_many(writer) do
    first = :rand.uniform(@slots) - 1
    slots = for n <- 0..:rand.uniform(100), do: rem(first + 4 * n, @slots)

    by_call =
      Enum.group_by(slots, fn slot ->
        {id, written} = at(writer, slot)
        call_for(History.kind(id, written + 1))
      end)

    writer = Enum.reduce(Map.get(by_call, :delete, []), writer, &write_one(&2, &1))

    Enum.reduce([:put_all, :put_all_newer], writer, fn call, writer ->
      write_list(writer, call, Map.get(by_call, call, []))
    end)
  end

  defp write_list(writer, _call, []), do: writer

  defp write_list(writer, call, slots) do
    # A map has each key once.
    as_map = call == :put_all and :rand.uniform(4) == 1
    runs = for slot <- slots, do: {slot, run(writer, slot, call, if(as_map, do: 1, else: 3))}

    entries =
      for {slot, numbers} <- runs, number <- numbers do
        {id, _written} = at(writer, slot)
        id |> History.write(number) |> single(History.key(id)) |> Tuple.delete_at(0)
      end

    argument = if as_map, do: Map.new(entries), else: entries

    case writer.target.write.({call, argument}, option(hd(slots))) do
      :ok ->
        writer = done(writer, call, length(entries))

        Enum.reduce(runs, writer, fn {slot, numbers}, w ->
          put_slot(w, slot, {elem(at(w, slot), 0), numbers.last})
        end)

      :refused ->
        Enum.reduce(runs, count(writer, :lists_cut_short), fn {slot, numbers}, w ->
          give_up(w, slot, numbers.last)
        end)
    end
  end

  # The next writes of a slot that this call can do.
  defp run(writer, slot, call, longest) do
    {id, written} = at(writer, slot)
    length = Enum.find(1..longest, longest, &(call_for(History.kind(id, written + &1 + 1)) != call))
    (written + 1)..(written + length)
  end

  defp call_for(:put), do: :put_all
  defp call_for(:delete), do: :delete
  defp call_for(_newer_or_stale), do: :put_all_newer

  # Nobody else writes to the key: it has its last write or has been handed over.
  defp check_read(writer) do
    slot = any_slot()
    {id, written} = at(writer, slot)

    case writer.target.get.(History.key(id), option(slot)) do
      :absent -> count(writer, :absent)
      {:ok, value} -> count(writer, if(History.current?(id, written, value), do: :found, else: :wrong_reads))
      :refused -> count(writer, :refused)
    end
  end

  # How the partition is chosen: by the key, a term, a function, an MFA.
  defp option(slot) do
    case rem(slot, 4) do
      0 -> []
      1 -> [partition_key: :all_of_these]
      2 -> [partition_key: &:erlang.phash2/1]
      3 -> [partition_key: {__MODULE__, :partition_key, [:of]}]
    end
  end

  def partition_key(key, argument), do: {argument, key}

  ## Slots

  defp at(writer, slot), do: Map.get_lazy(writer.slots, slot, fn -> {number(writer, slot, 0), 0} end)

  defp number(writer, slot, incarnation), do: (incarnation * @slots + slot) * writer.writers + writer.number

  defp put_slot(writer, slot, state), do: %{writer | slots: Map.put(writer.slots, slot, state)}

  defp give_up(writer, slot, last) do
    {id, written} = at(writer, slot)
    incarnation = div(div(id, writer.writers), @slots) + 1
    writer = %{writer | cut_short: [{id, written..last} | writer.cut_short]}
    put_slot(writer, slot, {number(writer, slot, incarnation), 0})
  end

  ## Counts

  defp done(writer, call, writes), do: count(%{writer | left: writer.left - writes}, call, writes)
  defp count(writer, what, by \\ 1), do: %{writer | counts: Map.update(writer.counts, what, by, &(&1 + by))}
end
