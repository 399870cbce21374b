defmodule PartitionedBuffer.Conservation.Maps do
  @moduledoc false
  # Each writer writes to separate keys, to each in the order of its `History`. Each acknowledged
  # write must be processed once, unless a later one replaced or deleted it before.
  #
  # The keys are in `Slots`.

  @behaviour PartitionedBuffer.Conservation.Kind

  alias PartitionedBuffer.Conservation.{
    Accepted,
    Code,
    History,
    Kind,
    Ledger,
    Lists,
    RetriedMaps,
    Retries,
    Slots,
    Writer
  }

  alias PartitionedBuffer.Map, as: Buffer

  @absent {:absent, __MODULE__}

  @impl Kind
  def buffer, do: Buffer

  @impl Kind
  def partitions, do: [1, 2, 3, 5]

  ## Writers

  @impl Kind
  defdelegate new, to: Slots

  @impl Kind
  defdelegate written(writer), to: Slots

  @impl Kind
  def write_one(writer), do: write_one(writer, Slots.any())

  defp write_one(%{accepted: nil} = writer, slot) do
    {id, written} = Slots.at(writer, slot)

    writer
    |> Writer.single(call_of(writer, id, written + 1), Slots.option(slot))
    |> Slots.put(slot, written + 1)
  end

  defp write_one(%{accepted: accepted} = writer, slot) do
    {id, written} = Slots.at(writer, slot)
    number = written + 1
    phase = Accepted.phase(accepted)
    # Every version that may be stale, and some others.
    stale = if History.kind(id, number) == :stale or rem(number, 4) == 0, do: [stale: :error], else: []
    call = call_of(writer, id, number)
    opts = if elem(call, 0) == :put_newer, do: stale ++ Slots.option(slot), else: Slots.option(slot)

    writer
    |> Writer.single(call, opts, &note(&1, {id, number, phase}, &2))
    |> Slots.put(slot, number)
  end

  # A stale write, or `put_new`, is done for a key without an entry.
  defp note(%{accepted: accepted} = writer, {id, number, phase}, result) do
    current = Accepted.current(accepted, id)

    {effect, right?} =
      case {History.kind(id, number), result} do
        {:stale, :ok} -> {:set, current == :none or Accepted.gone?(accepted, id, current)}
        {:stale, {:error, reason}} when reason in [:stale, :exists] -> {:none, current != :none}
        {:delete, :ok} -> {:delete, true}
        {_put_or_newer, result} -> {:set, result == :ok}
      end

    unless right? or not Accepted.ordered_since?(accepted, phase) do
      what = {id, number, result, current, Accepted.batch(accepted, id)}
      Retries.suspect(accepted.ledger, :wrong_results, {id, current}, what)
    end

    Accepted.wrote(accepted, id, number, effect)
    writer
  end

  defp call_of(writer, id, number) do
    key = History.key(id)

    case if(writer.accepted, do: History.retried(id, number), else: History.write(id, number)) do
      {:put, value} -> {:put, key, value}
      {:put_new, value} -> {:put_new, key, value}
      {:put_newer, value, version} -> {:put_newer, key, value, version}
      :delete -> {:delete, key}
    end
  end

  # A list has up to three writes of a key.
  @impl Kind
  def write_many(writer) do
    slots = Slots.of_list()

    by_call =
      Enum.group_by(slots, fn slot ->
        {id, written} = Slots.at(writer, slot)
        list_call(writer, id, written + 1)
      end)

    writer = by_call |> Map.get(:single, []) |> Enum.reduce(writer, &write_one(&2, &1))

    for call <- [:put_all, :put_all_newer], slots = by_call[call], reduce: writer do
      writer -> write_list(writer, call, slots)
    end
  end

  defp write_list(writer, call, slots) do
    # A map has each key once.
    as_map? = call == :put_all and :rand.uniform(4) == 1
    runs = for slot <- slots, do: {slot, run(writer, slot, call, if(as_map?, do: 1, else: 3))}
    entries = for {slot, numbers} <- runs, number <- numbers, do: list_entry(writer, slot, number)
    argument = if as_map?, do: Map.new(entries), else: entries

    {writer, note} =
      case writer.target.({call, argument}, Slots.option(hd(slots))) do
        :ok -> {writer |> note_runs(runs) |> Writer.done(call, length(entries)), &Slots.put/3}
        :refused -> {Writer.count(writer, :lists_cut_short), &Slots.give_up/3}
      end

    Enum.reduce(runs, writer, fn {slot, numbers}, writer -> note.(writer, slot, numbers.last) end)
  end

  defp note_runs(%{accepted: nil} = writer, _runs), do: writer

  defp note_runs(writer, runs) do
    for {slot, numbers} <- runs do
      {id, _written} = Slots.at(writer, slot)
      Accepted.wrote(writer.accepted, id, numbers.last, :set)
    end

    writer
  end

  # The numbers of the slot's next writes that this call can do.
  defp run(writer, slot, call, longest) do
    {id, written} = Slots.at(writer, slot)
    length = Enum.find(1..longest, longest, &(list_call(writer, id, written + &1 + 1) != call))
    (written + 1)..(written + length)
  end

  defp list_entry(writer, slot, number) do
    {id, _written} = Slots.at(writer, slot)
    writer |> call_of(id, number) |> Tuple.delete_at(0)
  end

  # The call that can do a write in a list. It does not return which writes were stale, which the
  # ledger of retries needs.
  defp list_call(writer, id, number) do
    case History.kind(id, number) do
      :put -> :put_all
      :delete -> :single
      :stale when writer.accepted != nil -> :single
      _newer_or_stale -> :put_all_newer
    end
  end

  # Only this writer writes to the key. So it has its last write, or none after a flush.
  @impl Kind
  def read(%{accepted: nil} = writer) do
    slot = Slots.any()
    {id, written} = Slots.at(writer, slot)

    what =
      case writer.target.({:get, History.key(id)}, Slots.option(slot)) do
        {:ok, value} -> if History.current?(id, written, value), do: :found, else: :wrong_reads
        absent_or_refused -> absent_or_refused
      end

    Writer.count(writer, what)
  end

  # The same, until the processor succeeds with it, or it is given up.
  def read(%{accepted: accepted} = writer) do
    slot = Slots.any()
    {id, _written} = Slots.at(writer, slot)
    phase = Accepted.phase(accepted)
    current = Accepted.current(accepted, id)
    result = writer.target.({Enum.random([:get, :fetch]), History.key(id)}, Slots.option(slot))

    right? =
      case result do
        :refused -> true
        :absent -> current == :none or Accepted.gone?(accepted, id, current)
        {:ok, value} -> History.number(value) == current
      end

    unless right? or not Accepted.ordered_since?(accepted, phase) do
      what = {id, result, Accepted.write(accepted, id), Accepted.batch(accepted, id)}
      Retries.suspect(accepted.ledger, :wrong_reads, {id, current}, what)
    end

    Writer.count(writer, if(is_tuple(result), do: :found, else: result))
  end

  @impl Kind
  def not_through(%{accepted: accepted} = writer) do
    for {id, _written} <- Map.values(writer.state.slots),
        current = Accepted.current(accepted, id),
        current != :none and not Accepted.gone?(accepted, id, current),
        do: {id, Accepted.write(accepted, id), Accepted.batch(accepted, id)}
  end

  ## Calls

  @impl Kind
  def call(buffer, call, opts) do
    case call do
      {:put, key, value} -> Buffer.put(buffer, key, value, opts)
      {:put_newer, key, value, version} -> Buffer.put_newer(buffer, key, value, version, opts)
      {:put_all, entries} -> Buffer.put_all(buffer, entries, opts)
      {:put_all_newer, entries} -> Buffer.put_all_newer(buffer, entries, opts)
      {:delete, key} -> Buffer.delete(buffer, key, opts)
      {:put_new, key, value} -> Buffer.put_new(buffer, key, value, opts)
      {:fetch, key} -> with :error <- Buffer.fetch(buffer, key, opts), do: :absent
      :flush -> Buffer.flush(buffer, opts)
      {:get, key} -> found(Buffer.get(buffer, key, @absent, opts), @absent)
    end
  end

  @impl Kind
  def call_design(design, handle, {:get, key}), do: handle |> design.get(key) |> found(nil)

  def call_design(design, handle, call) do
    [function | arguments] = Tuple.to_list(call)
    apply(design, function, [handle | arguments])
    :ok
  end

  defp found(absent, absent), do: :absent
  defp found(value, _absent), do: {:ok, value}

  @impl Kind
  def list(number),
    do: {:put_all, for(place <- Lists.places(), do: {{:list, number, place}, {number, place}})}

  @impl Kind
  def code(number, value), do: {:put, {:code, number}, value}

  @impl Kind
  def code_waits?(buffer, number, _ledger), do: buffer |> Buffer.get({:code, number}) |> Code.intact?(number)

  ## The ledger

  @impl Kind
  def entries(table), do: for({:entry, k, v, n, u} <- :ets.tab2list(table), do: {k, v, n, u})

  # Each key of a list is written once.
  @impl Kind
  def entry({{:list, list, place}, value, 0, 0}, _from, ledger),
    do: Lists.arrive({list, place}, value == {list, place}, ledger)

  def entry({{:code, number}, value, 0, 0}, _from, ledger), do: Ledger.code(ledger, number, value)

  def entry({key, value, version, updates}, _from, ledger) do
    id = History.id(key)
    {seen, windows} = Ledger.seen(ledger, id)
    {outcome, last} = History.flush(id, seen, {value, version, updates})
    Ledger.see(ledger, id, last)
    what = {id, seen, value, version, updates}

    case outcome do
      :ok -> ledger
      :lost -> Ledger.missing(ledger, 1, what, ledger.windows > windows)
      again_or_wrong -> Ledger.violation(ledger, again_or_wrong, what)
    end
  end

  @impl Kind
  def check({:list, _list, _outcome} = written, ledger), do: Lists.check(written, ledger)

  # The number of writes to a key is a range, since a refused call may do a part of its writes.
  def check({id, written}, ledger) do
    {seen, windows} = Ledger.seen(ledger, id)

    if Enum.any?(written, &History.finished?(id, seen, &1)),
      do: ledger,
      else: Ledger.missing(ledger, 1, {id, seen, written}, ledger.windows > windows)
  end

  @impl Kind
  def retried, do: RetriedMaps
end
