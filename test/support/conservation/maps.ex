defmodule PartitionedBuffer.Conservation.Maps do
  @moduledoc false
  # Each writer writes to keys of its own, to each in the order of its `History`. Of a list that was cut short the keys are
  # given up, and others take their places.
  #
  # Each acknowledged write must have been processed once, or have been replaced or deleted by a later one before that.

  @behaviour PartitionedBuffer.Conservation.Kind

  alias PartitionedBuffer.Conservation.{Code, History, Kind, Ledger, Writer}
  alias PartitionedBuffer.Map, as: Buffer

  @absent {:absent, __MODULE__}

  @slots 4_096
  @hot 16
  @list_size 5_000

  @impl Kind
  def buffer, do: Buffer

  @impl Kind
  def partitions, do: [1, 2, 3, 5]

  ## Writers

  # By the number of a slot the key in it, and how often it has been written; how often those were written that were
  # given up.
  @impl Kind
  def new, do: {%{}, []}

  @impl Kind
  def written(%{state: {slots, cut_short}}) do
    for({id, written} <- Map.values(slots), do: {id, written..written}) ++ cut_short
  end

  defp any_slot do
    if :rand.uniform(2) == 1, do: :rand.uniform(@hot) - 1, else: :rand.uniform(@slots) - 1
  end

  @impl Kind
  def write_one(writer), do: write_one(writer, any_slot())

  defp write_one(writer, slot) do
    {id, written} = at(writer, slot)
    call = single(History.write(id, written + 1), History.key(id))
    writer |> Writer.single(call, option(slot)) |> put_slot(slot, {id, written + 1})
  end

  defp single({:put, value}, key), do: {:put, key, value}
  defp single({:put_newer, value, version}, key), do: {:put_newer, key, value, version}
  defp single(:delete, key), do: {:delete, key}

  # Next to each other, all routed in the same way; up to three writes of each in a list.
  @impl Kind
  def write_many(writer) do
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

    case writer.target.({call, argument}, option(hd(slots))) do
      :ok ->
        writer = Writer.done(writer, call, length(entries))

        Enum.reduce(runs, writer, fn {slot, numbers}, w ->
          put_slot(w, slot, {elem(at(w, slot), 0), numbers.last})
        end)

      :refused ->
        Enum.reduce(runs, Writer.count(writer, :lists_cut_short), fn {slot, numbers}, w ->
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

  # Nobody else writes to the key: it has its last write or has been flushed.
  @impl Kind
  def read(writer) do
    slot = any_slot()
    {id, written} = at(writer, slot)

    what =
      case writer.target.({:get, History.key(id)}, option(slot)) do
        {:ok, value} -> if History.current?(id, written, value), do: :found, else: :wrong_reads
        absent_or_refused -> absent_or_refused
      end

    Writer.count(writer, what)
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

  defp at(%{state: {slots, _cut_short}} = writer, slot),
    do: Map.get_lazy(slots, slot, fn -> {number(writer, slot, 0), 0} end)

  defp number(writer, slot, incarnation), do: (incarnation * @slots + slot) * writer.writers + writer.number

  defp put_slot(%{state: {slots, cut_short}} = writer, slot, written),
    do: %{writer | state: {Map.put(slots, slot, written), cut_short}}

  defp give_up(%{state: {slots, cut_short}} = writer, slot, last) do
    {id, written} = at(writer, slot)
    incarnation = div(div(id, writer.writers), @slots) + 1

    put_slot(
      %{writer | state: {slots, [{id, written..last} | cut_short]}},
      slot,
      {number(writer, slot, incarnation), 0}
    )
  end

  ## What is written to

  @impl Kind
  def call(buffer, call, opts) do
    case call do
      {:put, key, value} -> Buffer.put(buffer, key, value, opts)
      {:put_newer, key, value, version} -> Buffer.put_newer(buffer, key, value, version, opts)
      {:put_all, entries} -> Buffer.put_all(buffer, entries, opts)
      {:put_all_newer, entries} -> Buffer.put_all_newer(buffer, entries, opts)
      {:delete, key} -> Buffer.delete(buffer, key, opts)
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

  ## Faults

  @impl Kind
  def list(number), do: for(place <- 1..@list_size, do: {{:list, number, place}, {number, place}})

  @impl Kind
  def write_list(buffer, list), do: Buffer.put_all(buffer, list)

  @impl Kind
  def written_list(number, outcome), do: {:list, number, outcome}

  @impl Kind
  def write_code(buffer, number, value), do: Buffer.put(buffer, {:code, number}, value)

  @impl Kind
  def code_waits?(buffer, number, _ledger), do: buffer |> Buffer.get({:code, number}) |> Code.intact?(number)

  ## The ledger

  @impl Kind
  def entries(table), do: for({:entry, k, v, n, u} <- :ets.tab2list(table), do: {k, v, n, u})

  # Of a list that was put by a process that may have been killed: each comes once.
  @impl Kind
  def entry({{:list, list, place}, value, 0, 0}, _partition, ledger) do
    come = come(list, ledger)
    :counters.add(come, place, 1)

    cond do
      value != {list, place} -> Ledger.violation(ledger, :wrong, {list, place, value})
      :counters.get(come, place) > 1 -> Ledger.violation(ledger, :again, {list, place})
      true -> ledger
    end
  end

  def entry({{:code, number}, value, 0, 0}, _partition, ledger), do: Ledger.code(ledger, number, value)

  def entry({key, value, version, updates}, _partition, ledger) do
    id = History.id(key)
    {seen, windows} = Ledger.seen(ledger, id, 0)

    {outcome, now_seen} = History.flush(id, seen, {value, version, updates})
    Ledger.see(ledger, id, now_seen)

    case outcome do
      :ok ->
        ledger

      :lost ->
        if ledger.windows > windows,
          do: Ledger.count(ledger, :unseen),
          else: Ledger.violation(ledger, :lost, {id, seen, value, version, updates})

      outcome ->
        Ledger.violation(ledger, outcome, {id, seen, value, version, updates})
    end
  end

  # How often a place of a list has come.
  defp come(list, ledger) do
    case :ets.lookup(ledger.seen, {:list, list}) do
      [{_list, come}] ->
        come

      [] ->
        come = :counters.new(@list_size, [])
        :ets.insert(ledger.seen, {{:list, list}, come})
        come
    end
  end

  # What is missing of a list: nothing if it was put, and otherwise what is behind the writes that were done. Those that
  # are done at once, 128, are done lock by lock: among the last that came some may be missing.
  @impl Kind
  def check({:list, list, outcome}, ledger) do
    counters = come(list, ledger)
    come = for place <- 1..@list_size, :counters.get(counters, place) > 0, do: place
    complete = if outcome == :done, do: @list_size, else: max(List.last(come, 0) - 128, 0)

    case complete - Enum.count(come, &(&1 <= complete)) do
      0 -> Ledger.count(ledger, if(outcome == :done, do: :lists_done, else: :lists_cut_short))
      missing -> Ledger.missing(ledger, missing, {:list, list, outcome, missing}, ledger.windows > 0)
    end
  end

  # How often a key was written: a range, because of a call that failed an unknown part was done, the first writes of it.
  def check({id, written}, ledger) do
    {seen, windows} = Ledger.seen(ledger, id, 0)

    cond do
      Enum.any?(written, &History.finished?(id, seen, &1)) -> ledger
      ledger.windows > windows -> Ledger.count(ledger, :unseen)
      true -> Ledger.violation(ledger, :lost, {id, seen, written})
    end
  end
end
