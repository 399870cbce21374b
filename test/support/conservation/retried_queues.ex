defmodule PartitionedBuffer.Conservation.RetriedQueues do
  @moduledoc false
  # Compares the items of a queue with retries with the pushes of the writers. A partition gives the
  # failed items first, in their order, and then new ones, also in theirs. So the items of each
  # batch are certain.
  #
  # After the death of a task it is uncertain whether its batch was settled. So the failed items
  # have several *cases*. Cases that do not fit the next batch are dropped, and it is a violation to
  # have none left.

  @behaviour PartitionedBuffer.Conservation.Checks

  alias PartitionedBuffer.Conservation.{Checks, Code, Item, Ledger, Queues, Retries}

  # Items of one own partition. A case is the list of the failed items, in their order. `open` is
  # the last batch, if its fate is unknown yet: its number, and its entries with their marks. Then
  # the cases are the items behind it.
  defmodule Line do
    @moduledoc false
    defstruct cases: [[]], open: nil
  end

  # `lines` are by own partition, and `last` has the last number of each stream in each partition
  # that came. `skipped` are missing items of a lower number.
  @impl Checks
  def new, do: %{lines: %{}, last: %{}, skipped: MapSet.new()}

  @impl Checks
  def strict?, do: true

  @impl Checks
  def arrive(items, {number, task}, ledger) do
    entries = for item <- items, do: %{what: identify(item), batch: number, attempts: 0}
    ledger = Enum.reduce(entries, ledger, &check_partition(&1.what, task, &2))

    {failures, ledger} =
      for {own, entries} <- by_line(entries), reduce: {%{}, ledger} do
        {failures, ledger} ->
          {attempts, ledger} = arrive_in(own, entries, task, ledger)
          {Map.merge(failures, attempts), ledger}
      end

    {for(entry <- entries, do: %{entry | attempts: Map.get(failures, entry.what, 0)}), ledger}
  end

  @doc """
  Stream, own partition and number of an item, or `:error`. A value that refers to code is a separate
  stream.
  """
  def identify({:code, number, value}),
    do: if(Code.intact?(value, number), do: {{:code, number}, {:code, number}, 1}, else: :error)

  def identify(item), do: Item.read(item)

  @doc "Checks that an item comes from its own partition."
  def check_partition(:error, _task, ledger), do: Retries.violation(ledger, :wrong, :error)

  def check_partition({_stream, own, _number} = what, task, ledger) do
    if task.partition == own or task.partition_count != Item.partitions() or not is_integer(own) or
         ledger.disordered? or
         task.other,
       do: ledger,
       else: Retries.violation(ledger, :wrong_partition, {what, task.partition})
  end

  defp by_line(entries), do: entries |> Enum.filter(&is_tuple(&1.what)) |> Enum.group_by(&elem(&1.what, 1))

  # The attempts of items that failed before. While the order is lost, two partitions may have items
  # of one line, so the next item is unknown; in the end all items are through.
  defp arrive_in(own, entries, _task, %{disordered?: true} = ledger) do
    {new, again} = Enum.split_with(for(entry <- entries, do: entry.what), &new?(&1, ledger))
    ledger = Ledger.count(ledger, :disordered, length(again))
    {%{}, new |> check_new(ledger) |> put(own, %Line{})}
  end

  # A stop gives up the leftovers of a killed task, whatever their failures.
  defp arrive_in(own, entries, task, ledger) do
    whats = for entry <- entries, do: entry.what
    cases = if task.other, do: cases(own, ledger) ++ cases(own, ledger, :unsettled), else: cases(own, ledger)
    {new, again} = Enum.split_with(whats, &new?(&1, ledger))
    ledger = check_new(new, ledger)
    again = MapSet.new(again)

    case for(failed <- cases, rest = rest(failed, whats, again), do: {failed, rest}) do
      [] ->
        what = {own, Enum.take(whats, 3), Enum.map(cases, &Enum.take(&1, 3))}
        ledger = Retries.violation(ledger, kind(again, cases), what)
        {%{}, put(ledger, own, %Line{cases: Enum.uniq(for failed <- cases, do: without(failed, again))})}

      fitting ->
        ledger = Ledger.count(ledger, :retries, MapSet.size(again))
        attempts = for {what, attempts} <- least(fitting), what in again, into: %{}, do: {what, attempts}
        {attempts, put(ledger, own, %Line{cases: fitting |> Enum.map(&elem(&1, 1)) |> Enum.uniq()})}
    end
  end

  # The rest of a case behind this batch, nil if it does not fit: the failed items come first.
  defp rest([{what, _attempts} | failed], [what | whats], again), do: rest(failed, whats, again)
  defp rest(failed, [], _again), do: failed
  defp rest([], whats, again), do: if(Enum.any?(whats, &(&1 in again)), do: nil, else: [])
  defp rest(_failed, _whats, _again), do: nil

  defp without(failed, whats), do: Enum.reject(failed, fn {what, _attempts} -> what in whats end)

  # The case with the fewest failures.
  defp least(fitting) do
    {failed, _rest} =
      Enum.min_by(fitting, fn {failed, _rest} -> failed |> Enum.map(&elem(&1, 1)) |> Enum.max(fn -> 0 end) end)

    failed
  end

  # An item comes again without a failure, or the failed items do not come first.
  defp kind(again, cases) do
    known? =
      Enum.any?(cases, fn failed -> length(failed) - length(without(failed, again)) == MapSet.size(again) end)

    if known?, do: :out_of_order, else: :again
  end

  ## Numbers

  defp new?({stream, own, number} = what, ledger),
    do: number > last(stream, own, ledger) or what in ledger.state.skipped

  defp last(stream, own, ledger), do: Map.get(ledger.state.last, {stream, own}, 0)

  defp check_new(whats, ledger), do: Enum.reduce(whats, ledger, &check_number/2)

  # While the order is lost, skipped items come later.
  defp check_number({stream, own, number} = what, ledger) do
    last = last(stream, own, ledger)
    ledger = check_stream(what, ledger)

    cond do
      number == last + 1 ->
        see(ledger, stream, own, number)

      number <= last ->
        update_in(ledger.state.skipped, &MapSet.delete(&1, what))

      true ->
        ledger =
          if ledger.disordered?, do: ledger, else: Retries.violation(ledger, :out_of_order, {what, last})

        skipped = for skipped <- (last + 1)..(number - 1), do: {stream, own, skipped}
        ledger = update_in(ledger.state.skipped, &Enum.into(skipped, &1))
        see(ledger, stream, own, number)
    end
  end

  defp see(ledger, stream, own, number), do: put_in(ledger.state.last[{stream, own}], number)

  # The streams of a writer come one after the other.
  defp check_stream({stream, own, _number} = what, ledger) when is_integer(stream) do
    key = {:stream, Queues.writer(stream), own}
    last = Map.get(ledger.state.last, key, 0)

    cond do
      stream >= last or not Queues.ordered?(stream) -> put_in(ledger.state.last[key], stream)
      ledger.disordered? -> ledger
      true -> Retries.violation(ledger, :out_of_order, {what, last})
    end
  end

  defp check_stream(_code, ledger), do: ledger

  ## Lines

  defp put(ledger, own, line), do: put_in(ledger.state.lines[own], line)

  # The items of a line that may have failed. If its last batch is not settled, all its items may
  # still come again; the failure only counts for an item that was alone.
  defp cases(own, ledger, last \\ :failed) do
    case Map.get(ledger.state.lines, own, %Line{}) do
      %Line{cases: cases, open: nil} ->
        cases

      %Line{cases: cases, open: {number, marked}} ->
        died = for {entry, _mark} <- marked, do: {entry, if(entry.single?, do: last, else: :split)}
        settled? = Retries.batch_state(ledger, number) == :settled

        Enum.uniq(
          for marked <- if(settled?, do: [marked], else: [marked, died]),
              failed <- cases,
              do: retried(marked, ledger) ++ failed
        )
    end
  end

  defp retried(marked, ledger) do
    for {entry, mark} <- marked,
        mark in [:failed, :split, :snoozed, :unsettled],
        not Retries.given_up?(ledger, entry, mark),
        do: {entry.what, if(mark == :failed, do: entry.attempts + 1, else: entry.attempts)}
  end

  @impl Checks
  def mark(marked, {number, _task}, ledger) do
    marked
    |> Enum.filter(fn {entry, _mark} -> is_tuple(entry.what) end)
    |> Enum.group_by(fn {entry, _mark} -> elem(entry.what, 1) end)
    |> Enum.reduce(ledger, fn {own, marked}, ledger ->
      put(ledger, own, %{ledger.state.lines[own] | open: {number, marked}})
    end)
  end

  @impl Checks
  def returning(_batch, _time, ledger), do: ledger

  ## Dead letters

  # The items of the task's own batch are certain. Others come from the batch of a dead task.
  @impl Checks
  def dead(items, expected, ledger) do
    whats = Enum.map(items, &identify/1)

    ledger =
      cond do
        expected != nil and Enum.map(expected, & &1.what) == whats -> ledger
        not ledger.deaths? -> Retries.violation(ledger, :given_up_early, {whats, expected})
        Enum.any?(whats, &(&1 == :error)) -> Retries.violation(ledger, :wrong, whats)
        true -> Ledger.count(ledger, :given_up_unseen, length(whats))
      end

    for own <- whats |> Enum.filter(&is_tuple/1) |> Enum.map(&elem(&1, 1)) |> Enum.uniq(), reduce: ledger do
      ledger -> bury(own, whats, ledger)
    end
  end

  defp bury(own, whats, ledger) do
    cases = for failed <- cases(own, ledger), do: without(failed, whats)
    new = for {stream, ^own, number} <- whats, number > last(stream, own, ledger), do: {stream, own, number}
    new |> check_new(ledger) |> put(own, %Line{cases: Enum.uniq(cases)})
  end

  @impl Checks
  def not_given_up(entry, ledger), do: Retries.violation(ledger, :not_given_up, entry)

  @impl Checks
  def replaced?(_entry, _ledger), do: false

  ## The end

  @impl Checks
  def dead?(_what, _number, _ledger), do: false

  @impl Checks
  def through?({:code, _number} = code, ledger), do: last(code, code, ledger) > 0

  def through?({stream, own, number}, ledger) do
    last(stream, own, ledger) >= number and
      not Enum.any?(ledger.state.skipped, &match?({^stream, ^own, skipped} when skipped <= number, &1)) and
      Enum.any?(cases(own, ledger), fn failed ->
        not Enum.any?(failed, &match?({{^stream, ^own, failed}, _attempts} when failed <= number, &1))
      end)
  end

  # A bad item holds up the good ones.
  @impl Checks
  def left(_written, _ledger), do: []

  @impl Checks
  def check({:list, number, outcome}, ledger),
    do: Queues.check_list(number, outcome, ledger, &check/2)

  def check({:code, _number} = code, ledger), do: check({code, code, 1..1}, ledger)

  # The number of pushed items is a range, since a refused list may be pushed in part.
  def check({stream, own, written}, ledger) do
    last = last(stream, own, ledger)

    cond do
      last > written.last ->
        Retries.violation(ledger, :never_written, {stream, own, written, last})

      last < written.first ->
        Retries.violation(ledger, :lost, {stream, own, written, last}, written.first - last)

      not through?({stream, own, last}, ledger) ->
        Retries.violation(ledger, :lost, {stream, own, written, cases(own, ledger)})

      true ->
        ledger
    end
  end
end
