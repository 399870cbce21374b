defmodule PartitionedBuffer.Conservation.RetriedItems do
  @moduledoc false
  # Compares the items of a queue with retries and `order: :none` with the pushes of the writers. A
  # failed item holds up nobody, so items come in any order; but each one comes again only after its
  # batch failed.

  @behaviour PartitionedBuffer.Conservation.Checks

  alias PartitionedBuffer.Conservation.{Checks, Ledger, Queues, RetriedQueues, Retries}

  # Items of a stream in its own partition: the last number that came, the lower ones that did not,
  # and the last entries of the items that may still come again, by their numbers.
  defmodule Line do
    @moduledoc false
    defstruct last: 0, skipped: MapSet.new(), open: %{}
  end

  # A line with more open entries drops those that are through.
  @most_open 100

  # The lines, by stream and own partition.
  @impl Checks
  def new, do: %{}

  @impl Checks
  def strict?, do: false

  @impl Checks
  def arrive(items, {_number, task} = batch, ledger) do
    Enum.map_reduce(items, ledger, fn item, ledger ->
      what = RetriedQueues.identify(item)
      arrive_one(what, batch, RetriedQueues.check_partition(what, task, ledger))
    end)
  end

  defp arrive_one(:error, {number, _task}, ledger), do: {%{what: :error, attempts: 0, batch: number}, ledger}

  defp arrive_one({stream, own, number} = what, {batch, task}, ledger) do
    line = line(ledger, stream, own)
    {attempts, ledger} = compare(line, what, task, ledger)
    {%{what: what, attempts: attempts, batch: batch}, put(ledger, stream, own, come(line, number))}
  end

  defp line(ledger, stream, own), do: Map.get(ledger.state, {stream, own}, %Line{})
  defp put(ledger, stream, own, line), do: put_in(ledger.state[{stream, own}], line)

  defp come(%Line{last: last} = line, number) when number > last,
    do: %{line | last: number, skipped: Enum.into((last + 1)..(number - 1)//1, line.skipped)}

  defp come(%Line{} = line, number), do: %{line | skipped: MapSet.delete(line.skipped, number)}

  # Returns the least number of failures of an item.
  defp compare(line, {_stream, _own, number} = what, task, ledger) do
    before = line.open[number]

    cond do
      number > line.last or number in line.skipped -> {0, ledger}
      before == nil or gone?(before, ledger) -> {0, Retries.violation(ledger, :again, {what, before})}
      true -> compare_retry(what, before, task, ledger)
    end
  end

  defp compare_retry(what, before, task, ledger) do
    attempts = Retries.failures(ledger, before)

    cond do
      Retries.batch_state(ledger, before.batch) == :open ->
        {attempts, Retries.violation(ledger, :two_at_a_time, {what, before})}

      attempts >= ledger.accepted.max_attempts and not task.other and not ledger.disordered? ->
        {attempts, Retries.violation(ledger, :too_often, {what, before})}

      true ->
        {attempts, Ledger.count(ledger, :retries)}
    end
  end

  # Whether an item left the buffer for certain: the task lived to settle its batch.
  defp gone?(entry, ledger),
    do: leaves?(entry, ledger) and Retries.batch_state(ledger, entry.batch) == :settled

  defp leaves?(%{mark: mark} = entry, ledger),
    do: mark in [:ok, :dead] or Retries.given_up?(ledger, entry, mark)

  @impl Checks
  def mark(marked, _batch, ledger) do
    for {%{what: {stream, own, number}} = entry, mark} <- marked, reduce: ledger do
      ledger ->
        line = prune(line(ledger, stream, own), ledger)
        open = Map.put(line.open, number, entry |> Map.delete(:what) |> Map.put(:mark, mark))
        put(ledger, stream, own, %{line | open: open})
    end
  end

  defp prune(%Line{open: open} = line, _ledger) when map_size(open) < @most_open, do: line

  defp prune(%Line{open: open} = line, ledger),
    do: %{line | open: Map.reject(open, fn {_number, entry} -> gone?(entry, ledger) end)}

  # A failed item is never replaced.
  @impl Checks
  def returning(_batch, _time, ledger), do: ledger

  @impl Checks
  def replaced?(_entry, _ledger), do: false

  ## Dead letters

  @impl Checks
  def dead(items, expected, ledger) do
    whats = Enum.map(items, &RetriedQueues.identify/1)
    ours = for %{what: what} <- expected || [], do: what
    ledger = Enum.reduce(ours -- whats, ledger, &not_given_up/2)
    known? = fn what -> what in ours or ledger.deaths? end

    Enum.reduce(whats, ledger, fn what, ledger ->
      if known?.(what),
        do: bury(what, ledger),
        else: Retries.violation(ledger, :given_up_early, {what, expected})
    end)
  end

  # An item of a dead task's batch, which perhaps never came, may be given up twice.
  defp bury({stream, own, number}, ledger) do
    line = ledger |> line(stream, own) |> come(number)
    put(ledger, stream, own, %{line | open: Map.delete(line.open, number)})
  end

  defp bury(:error, ledger), do: Retries.violation(ledger, :wrong, :error)

  @impl Checks
  def not_given_up(entry, ledger), do: Retries.violation(ledger, :not_given_up, entry)

  ## The end

  @impl Checks
  def dead?(_what, _number, _ledger), do: false

  @impl Checks
  def through?({:code, _number} = code, ledger), do: line(ledger, code, code).last > 0

  def through?({stream, own, number}, ledger), do: left_of(stream, own, number, ledger) == []

  # The numbers up to this one that cannot have left the buffer.
  defp left_of(stream, own, number, ledger) do
    line = line(ledger, stream, own)
    open = for {open, entry} <- line.open, not leaves?(entry, ledger), do: open
    new = Enum.to_list((line.last + 1)..number//1)
    Enum.filter(open ++ Enum.to_list(line.skipped) ++ new, &(&1 <= number))
  end

  @impl Checks
  def left({:list, _number, _outcome}, _ledger), do: []
  def left({:code, _number} = code, ledger), do: left({code, code, 1..1}, ledger)

  def left({stream, own, written}, ledger),
    do: for(number <- left_of(stream, own, written.first, ledger), do: {stream, own, number})

  @impl Checks
  def check({:list, number, outcome}, ledger),
    do: Queues.check_list(number, outcome, ledger, &check/2)

  def check({:code, _number} = code, ledger), do: check({code, code, 1..1}, ledger)

  # The number of pushed items is a range, since a refused list may be pushed in part.
  def check({stream, own, written}, ledger) do
    last = line(ledger, stream, own).last
    left = left_of(stream, own, max(last, written.first), ledger)

    cond do
      last > written.last -> Retries.violation(ledger, :never_written, {stream, own, written, last})
      left != [] -> Retries.violation(ledger, :lost, {stream, own, written, left}, length(left))
      true -> ledger
    end
  end
end
