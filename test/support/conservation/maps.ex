defmodule PartitionedBuffer.Conservation.Maps do
  @moduledoc false
  # Each writer writes to keys of its own, to each in the order of its `History`. Each acknowledged write must have been
  # processed once, unless a later one replaced or deleted it before.
  #
  # The keys are in numbered slots. After a list that was cut short nobody knows how often its keys were written. So they are
  # given up, and other keys take their slots.

  @behaviour PartitionedBuffer.Conservation.Kind

  alias PartitionedBuffer.Conservation.{Accepted, Code, History, Kind, Ledger, RetriedMaps, Retries, Writer}
  alias PartitionedBuffer.Map, as: Buffer

  @absent {:absent, __MODULE__}

  @slots 4_096
  @hot_slots 16
  @list_size 5_000

  # The most entries of a list that are written at once, lock by lock.
  @written_at_once 128

  @impl Kind
  def buffer, do: Buffer

  @impl Kind
  def partitions, do: [1, 2, 3, 5]

  ## Writers

  # `slots` has the key's number of each slot, and how often it was written. `given_up` has keys with the range of how often
  # they may have been written.
  @impl Kind
  def new, do: %{slots: %{}, given_up: []}

  @impl Kind
  def written(%{state: state}) do
    for({id, written} <- Map.values(state.slots), do: {id, written..written}) ++ state.given_up
  end

  defp any_slot do
    if :rand.uniform(2) == 1, do: :rand.uniform(@hot_slots) - 1, else: :rand.uniform(@slots) - 1
  end

  @impl Kind
  def write_one(writer), do: write_one(writer, any_slot())

  defp write_one(%{accepted: nil} = writer, slot) do
    {id, written} = at(writer, slot)

    writer
    |> Writer.single(call_of(writer, id, written + 1), option(slot))
    |> put_slot(slot, {id, written + 1})
  end

  defp write_one(%{accepted: accepted} = writer, slot) do
    {id, written} = at(writer, slot)
    number = written + 1
    phase = Accepted.phase(accepted)
    # Every version that may be stale, and some others.
    stale = if History.kind(id, number) == :stale or rem(number, 4) == 0, do: [stale: :error], else: []
    call = call_of(writer, id, number)
    opts = if elem(call, 0) == :put_newer, do: stale ++ option(slot), else: option(slot)

    writer
    |> Writer.single(call, opts, &note(&1, {id, number, phase}, &2))
    |> put_slot(slot, {id, number})
  end

  # A stale write, or `put_new`, is done if there is no entry.
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

  # Every fourth slot, so that the same option routes all of them. A list has up to three writes of a key.
  @impl Kind
  def write_many(writer) do
    first = :rand.uniform(@slots) - 1
    slots = for n <- 0..:rand.uniform(100), do: rem(first + 4 * n, @slots)

    by_call =
      Enum.group_by(slots, fn slot ->
        {id, written} = at(writer, slot)
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
      case writer.target.({call, argument}, option(hd(slots))) do
        :ok -> {writer |> note_runs(runs) |> Writer.done(call, length(entries)), &written_up_to/3}
        :refused -> {Writer.count(writer, :lists_cut_short), &give_up/3}
      end

    Enum.reduce(runs, writer, fn {slot, numbers}, writer -> note.(writer, slot, numbers.last) end)
  end

  defp note_runs(%{accepted: nil} = writer, _runs), do: writer

  defp note_runs(writer, runs) do
    for {slot, numbers} <- runs do
      {id, _written} = at(writer, slot)
      Accepted.wrote(writer.accepted, id, numbers.last, :set)
    end

    writer
  end

  # The numbers of the slot's next writes that this call can do.
  defp run(writer, slot, call, longest) do
    {id, written} = at(writer, slot)
    length = Enum.find(1..longest, longest, &(list_call(writer, id, written + &1 + 1) != call))
    (written + 1)..(written + length)
  end

  defp list_entry(writer, slot, number) do
    {id, _written} = at(writer, slot)
    writer |> call_of(id, number) |> Tuple.delete_at(0)
  end

  # The call that can do a write in a list. It does not tell which writes were stale, which the ledger of retries has to know.
  defp list_call(writer, id, number) do
    case History.kind(id, number) do
      :put -> :put_all
      :delete -> :single
      :stale when writer.accepted != nil -> :single
      _newer_or_stale -> :put_all_newer
    end
  end

  # Nobody else writes to the key. So it has its last write, or none if that was flushed.
  @impl Kind
  def read(%{accepted: nil} = writer) do
    slot = any_slot()
    {id, written} = at(writer, slot)

    what =
      case writer.target.({:get, History.key(id)}, option(slot)) do
        {:ok, value} -> if History.current?(id, written, value), do: :found, else: :wrong_reads
        absent_or_refused -> absent_or_refused
      end

    Writer.count(writer, what)
  end

  # The same, until the processor has succeeded with it, or it was given up.
  def read(%{accepted: accepted} = writer) do
    slot = any_slot()
    {id, _written} = at(writer, slot)
    phase = Accepted.phase(accepted)
    current = Accepted.current(accepted, id)
    result = writer.target.({Enum.random([:get, :fetch]), History.key(id)}, option(slot))

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

  # The key, a term, a function or an MFA chooses the partition.
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

  defp at(%{state: %{slots: slots}} = writer, slot),
    do: Map.get_lazy(slots, slot, fn -> {id(writer, slot, 0), 0} end)

  # Each writer has other keys, and so has a slot each time its key is given up.
  defp id(writer, slot, given_up), do: (given_up * @slots + slot) * writer.writers + writer.number

  defp put_slot(%{state: state} = writer, slot, written),
    do: %{writer | state: %{state | slots: Map.put(state.slots, slot, written)}}

  defp written_up_to(writer, slot, last) do
    {id, _written} = at(writer, slot)
    put_slot(writer, slot, {id, last})
  end

  defp give_up(%{state: state} = writer, slot, last) do
    {id, written} = at(writer, slot)
    given_up = div(div(id, writer.writers), @slots) + 1
    writer = %{writer | state: %{state | given_up: [{id, written..last} | state.given_up]}}
    put_slot(writer, slot, {id(writer, slot, given_up), 0})
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
    do: {:put_all, for(place <- 1..@list_size, do: {{:list, number, place}, {number, place}})}

  @impl Kind
  def code(number, value), do: {:put, {:code, number}, value}

  @impl Kind
  def code_waits?(buffer, number, _ledger), do: buffer |> Buffer.get({:code, number}) |> Code.intact?(number)

  ## The ledger

  @impl Kind
  def entries(table), do: for({:entry, k, v, n, u} <- :ets.tab2list(table), do: {k, v, n, u})

  # Each key of a list is written once.
  @impl Kind
  def entry({{:list, list, place}, value, 0, 0}, _from, ledger) do
    arrivals = arrivals(list, ledger)
    :counters.add(arrivals, place, 1)

    cond do
      value != {list, place} -> Ledger.violation(ledger, :wrong, {list, place, value})
      :counters.get(arrivals, place) > 1 -> Ledger.violation(ledger, :again, {list, place})
      true -> ledger
    end
  end

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

  # How often each place of a list has come.
  defp arrivals(list, ledger) do
    case :ets.lookup(ledger.seen, {:list, list}) do
      [{_list, arrivals}] ->
        arrivals

      [] ->
        arrivals = :counters.new(@list_size, [])
        :ets.insert(ledger.seen, {{:list, list}, arrivals})
        arrivals
    end
  end

  @impl Kind
  def check({:list, list, outcome}, ledger) do
    arrivals = arrivals(list, ledger)
    check_list(list, outcome, &(:counters.get(arrivals, elem(&1, 2)) > 0), ledger.windows > 0, ledger)
  end

  # How often a key was written is a range, since a refused call may have done a part of its writes.
  def check({id, written}, ledger) do
    {seen, windows} = Ledger.seen(ledger, id)

    if Enum.any?(written, &History.finished?(id, seen, &1)),
      do: ledger,
      else: Ledger.missing(ledger, 1, {id, seen, written}, ledger.windows > windows)
  end

  @doc "Checks a list of a fault. `came?` tells of a key whether it has come, and `excused?` whether some may be missing."
  # A list that was cut short was written in its order. Only among those that were written at once last there may be gaps.
  def check_list(list, outcome, came?, excused?, ledger) do
    places = for place <- 1..@list_size, came?.({:list, list, place}), do: place
    complete = if outcome == :done, do: @list_size, else: max(List.last(places, 0) - @written_at_once, 0)

    case complete - Enum.count(places, &(&1 <= complete)) do
      0 -> Ledger.count(ledger, if(outcome == :done, do: :lists_done, else: :lists_cut_short))
      missing -> Ledger.missing(ledger, missing, {:list, list, outcome, missing}, excused?)
    end
  end

  @impl Kind
  def retried, do: RetriedMaps
end
