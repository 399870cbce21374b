defmodule PartitionedBuffer.Conservation.Counters do
  @moduledoc false
  # Each writer adds to separate keys, to each in the order of its `Additions`. So an entry has to
  # be the next additions after those of the last one, or after a delete of the key. Each
  # acknowledged addition must come once, unless it was deleted before.
  #
  # The keys are in `Slots`.

  @behaviour PartitionedBuffer.Conservation.Kind

  alias PartitionedBuffer.Conservation.{
    Accepted,
    Additions,
    Kind,
    Ledger,
    Lists,
    RetriedCounters,
    Retries,
    Slots,
    Writer
  }

  alias PartitionedBuffer.Counter

  @impl Kind
  def buffer, do: Counter

  @impl Kind
  def partitions, do: [1, 2, 3, 5]

  ## Writers

  @impl Kind
  defdelegate new, to: Slots

  @impl Kind
  defdelegate written(writer), to: Slots

  @impl Kind
  def write_one(writer), do: write_one(writer, Slots.any())

  defp write_one(writer, slot) do
    {id, written} = Slots.at(writer, slot)

    writer
    |> Writer.single(call_of(id, written + 1), Slots.option(slot))
    |> Slots.put(slot, written + 1)
  end

  defp call_of(id, number) do
    if Additions.delete?(id, number),
      do: {:delete, Additions.key(id)},
      else: {:add, Additions.key(id), Additions.amount(id, number)}
  end

  # A list has up to three additions to a key.
  @impl Kind
  def write_many(writer) do
    {singles, slots} = Enum.split_with(Slots.of_list(), &delete_next?(writer, &1))
    writer = Enum.reduce(singles, writer, &write_one(&2, &1))
    # A map has each key once.
    as_map? = :rand.uniform(4) == 1
    runs = for slot <- slots, do: {slot, run(writer, slot, if(as_map?, do: 1, else: 3))}
    write_list(writer, runs, as_map?)
  end

  defp write_list(writer, [], _as_map?), do: writer

  defp write_list(writer, [{first, _numbers} | _] = runs, as_map?) do
    entries =
      for {slot, numbers} <- runs,
          {id, _written} = Slots.at(writer, slot),
          number <- numbers,
          do: {Additions.key(id), Additions.amount(id, number)}

    {writer, note} =
      case writer.target.({:add_all, if(as_map?, do: Map.new(entries), else: entries)}, Slots.option(first)) do
        :ok -> {Writer.done(writer, :add_all, length(entries)), &Slots.put/3}
        :refused -> {Writer.count(writer, :lists_cut_short), &Slots.give_up/3}
      end

    Enum.reduce(runs, writer, fn {slot, numbers}, writer -> note.(writer, slot, numbers.last) end)
  end

  # The numbers of the slot's next additions, up to a delete.
  defp run(writer, slot, longest) do
    {id, written} = Slots.at(writer, slot)
    length = Enum.find(1..longest, longest, &Additions.delete?(id, written + &1 + 1))
    (written + 1)..(written + length)
  end

  defp delete_next?(writer, slot) do
    {id, written} = Slots.at(writer, slot)
    Additions.delete?(id, written + 1)
  end

  # Only this writer writes to the key. So it has its last additions, or none after a flush.
  @impl Kind
  def read(%{accepted: accepted} = writer) do
    slot = Slots.any()
    {id, written} = Slots.at(writer, slot)
    phase = accepted && Accepted.phase(accepted)
    before = accepted && RetriedCounters.firsts(accepted, id)
    result = writer.target.({Enum.random([:get, :fetch]), Additions.key(id)}, Slots.option(slot))

    right? =
      cond do
        result == :refused -> true
        accepted -> RetriedCounters.held?(accepted, id, written, before, result)
        true -> last?(id, written, result)
      end

    cond do
      right? ->
        Writer.count(writer, if(is_tuple(result), do: :found, else: result))

      accepted ->
        if Accepted.ordered_since?(accepted, phase),
          do:
            Retries.report(accepted.ledger, :wrong_reads, {id, written, result, Accepted.batch(accepted, id)})

        writer

      true ->
        Writer.count(writer, :wrong_reads)
    end
  end

  # Whether this is the sum of the additions from one number to the last.
  defp last?(_id, _written, :absent), do: true

  defp last?(id, written, {:ok, sum}),
    do: not Additions.delete?(id, written) and first_of(id, written, sum) in 1..written

  # The first additions are short of a sum of all, which is a square nearly.
  defp first_of(id, written, sum) do
    missing = div(Additions.sum(id, 1, written) - sum, Additions.amount(id, 1))
    first = 1 + round(:math.sqrt(2 * max(missing, 0)) - 0.5)
    Enum.find(max(first - 1, 1)..(first + 1), &(Additions.sum(id, &1, written) == sum))
  end

  @impl Kind
  def not_through(%{accepted: accepted} = writer) do
    for {id, written} <- Map.values(writer.state.slots),
        not Additions.deletes?(id),
        not RetriedCounters.through_to?(accepted, id, written),
        do: {id, written, Accepted.batch(accepted, id)}
  end

  ## Calls

  @impl Kind
  def call(buffer, call, opts) do
    case call do
      {:add, key, amount} -> Counter.add(buffer, key, amount, opts)
      {:add_all, entries} -> Counter.add_all(buffer, entries, opts)
      {:delete, key} -> Counter.delete(buffer, key, opts)
      {:fetch, key} -> with :error <- Counter.fetch(buffer, key, opts), do: :absent
      {:get, key} -> with sum when sum != nil <- Counter.get(buffer, key, nil, opts), do: {:ok, sum}
      :flush -> Counter.flush(buffer, opts)
    end
    |> then(&(&1 || :absent))
  end

  @impl Kind
  def call_design(design, handle, {read, key}) when read in [:get, :fetch] do
    case design.get(handle, key) do
      nil -> :absent
      sum -> {:ok, sum}
    end
  end

  def call_design(design, handle, call) do
    [function | arguments] = Tuple.to_list(call)
    apply(design, function, [handle | arguments])
    :ok
  end

  @impl Kind
  def list(number), do: {:add_all, for(place <- Lists.places(), do: {{:list, number, place}, place})}

  # A counter keeps no value but its key.
  @impl Kind
  def code(number, value), do: {:add, {:code, number, value}, 1}

  @impl Kind
  def code_waits?(_buffer, number, ledger), do: not Ledger.code_came?(ledger, number)

  ## The ledger

  @impl Kind
  def entries(table), do: for({:entry, key, sum, 0, count} <- :ets.tab2list(table), do: {key, sum, count})

  @impl Kind
  def entry({{:list, list, place}, sum, count}, _from, ledger),
    do: Lists.arrive({list, place}, {sum, count} == {place, 1}, ledger)

  def entry({{:code, number, value}, 1, 1}, _from, ledger), do: Ledger.code(ledger, number, value)

  def entry({key, sum, count}, _from, ledger) do
    id = Additions.id(key)
    {seen, windows} = Ledger.seen(ledger, id)

    case Additions.run(id, sum, count) do
      :error ->
        Ledger.violation(ledger, :wrong, {id, seen, sum, count})

      {first, last} ->
        what = {id, seen, first, last}
        Ledger.see(ledger, id, max(last, seen))

        cond do
          first <= seen -> Ledger.violation(ledger, :again, what)
          Enum.any?(first..last, &Additions.delete?(id, &1)) -> Ledger.violation(ledger, :wrong, what)
          Additions.begins?(id, seen, first) -> ledger
          true -> Ledger.missing(ledger, 1, what, ledger.windows > windows)
        end
    end
  end

  @impl Kind
  def check({:list, _list, _outcome} = written, ledger), do: Lists.check(written, ledger)

  # The number of writes to a key is a range, since a refused call may do a part of its writes.
  def check({id, written}, ledger) do
    {seen, windows} = Ledger.seen(ledger, id)

    cond do
      seen > written.last -> Ledger.violation(ledger, :never_written, {id, seen, written})
      Enum.any?(written, &Additions.finished?(id, seen, &1)) -> ledger
      true -> Ledger.missing(ledger, 1, {id, seen, written}, ledger.windows > windows)
    end
  end

  @impl Kind
  def retried, do: RetriedCounters
end
