defmodule PartitionedBuffer.Conservation.RetriedMaps do
  @moduledoc false
  # Compares the entries of a map with retries with the writes of the writers. The number of its
  # write stands for an entry: at the sink the numbers of a key never fall, and one comes again only
  # after its batch failed, and without a later write to the key.

  @behaviour PartitionedBuffer.Conservation.Checks

  alias PartitionedBuffer.Conservation.{Accepted, Checks, Code, History, Ledger, Lists, Retries}

  # The entries that `:dead_letter` got, by their write.
  @impl Checks
  def new, do: MapSet.new()

  @impl Checks
  def strict?, do: false

  @impl Checks
  def arrive(entries, batch, ledger), do: Enum.map_reduce(entries, ledger, &arrive_one(&1, batch, &2))

  defp arrive_one({_key, _value, version, updates} = entry, {number, task}, ledger) do
    {what, written, right?} = identify(entry)
    entry = %{what: what, number: written, version: version, updates: updates, batch: number}
    ledger = if right? and written?(entry, ledger), do: ledger, else: violation(ledger, :wrong, entry, nil)
    last = Accepted.batch(ledger.accepted, what)
    ledger = ledger |> check_writes(entry, task) |> compare(entry, last, task)
    attempts = attempts(ledger, entry, last)
    {Map.put(entry, :attempts, attempts), ledger}
  end

  # Lists and values that refer to code are written once.
  defp identify({{:list, list, place} = key, value, version, updates}),
    do: {key, 1, {value, version, updates} == {{list, place}, 0, 0}}

  defp identify({{:code, number} = key, value, version, updates}),
    do: {key, 1, {version, updates} == {0, 0} and Code.intact?(value, number)}

  defp identify({key, value, version, updates}) do
    {id, number} = {History.id(key), History.number(value)}
    {id, number, History.retried?(id, number, {value, version, updates})}
  end

  # A write refused as stale, or for an existing key, changes nothing. The writer may note a write
  # between the two looks, so the second look has to see it.
  defp written?(%{what: id, number: number}, ledger) do
    if number > Accepted.written(ledger.accepted, id) do
      true
    else
      {effective, _at, _deleted, _deleted_at} = Accepted.write(ledger.accepted, id)
      number <= effective
    end
  end

  # A deleted entry without a batch does not come. A replaced one does not come in a flush that began
  # later. In the rest of a flush it may.
  defp check_writes(%{disordered?: true} = ledger, _entry, _task), do: ledger
  # An entry given up by a stop may be replaced.
  defp check_writes(ledger, _entry, %{other: true}), do: ledger

  defp check_writes(ledger, %{what: id, number: number} = entry, task) do
    {effective, at, deleted, deleted_at} = Accepted.write(ledger.accepted, id)

    cond do
      deleted > number and deleted_at < task.read_after -> violation(ledger, :deleted, entry, deleted)
      effective > number and at < task.flush_after -> violation(ledger, :replaced, entry, effective)
      true -> ledger
    end
  end

  defp compare(ledger, _entry, nil, _task), do: ledger
  defp compare(ledger, %{number: number}, %{number: last}, _task) when number > last, do: ledger

  defp compare(ledger, %{number: number} = entry, %{number: last} = before, _task) when number < last do
    if ledger.disordered?,
      do: Ledger.count(ledger, :disordered),
      else: violation(ledger, :falls, entry, before)
  end

  defp compare(ledger, entry, before, task) do
    case {before.mark, Retries.batch_state(ledger, before.batch)} do
      {mark, :settled} when mark in [:ok, :cancelled] -> violation(ledger, :again, entry, before)
      {:dead, _state} -> violation(ledger, :again, entry, before)
      {_mark, :open} -> violation(ledger, :two_at_a_time, entry, before)
      _failed_or_died -> compare_retry(ledger, entry, before, task)
    end
  end

  defp compare_retry(ledger, entry, before, task) do
    anything? = ledger.disordered? or task.other
    same? = {entry.version, entry.updates} == {before.version, before.updates}

    cond do
      not same? ->
        violation(ledger, :wrong, entry, before)

      before.replaced? and not split?(ledger, before) and not anything? ->
        violation(ledger, :retried, entry, before)

      attempts(ledger, entry, before) >= max_attempts(ledger) and not anything? ->
        violation(ledger, :too_often, entry, before)

      true ->
        Ledger.count(ledger, :retries)
    end
  end

  # The entries of a split batch come again, also replaced ones: the processor failed with all of it,
  # or its task died.
  defp split?(_ledger, %{mark: :split}), do: true

  defp split?(ledger, %{single?: single?, batch: batch}),
    do: not single? and Retries.batch_state(ledger, batch) != :settled

  # The least number of failures of an entry.
  defp attempts(ledger, %{number: number}, %{number: number} = before), do: Retries.failures(ledger, before)
  defp attempts(_ledger, _entry, _other), do: 0

  defp max_attempts(ledger), do: ledger.accepted.max_attempts

  # While the order is lost, an earlier entry may come after a later one.
  @impl Checks
  def mark(marked, {_number, task}, ledger) do
    dead = for {%{what: what, number: number}, :dead} <- marked, do: {what, number}
    ledger = update_in(ledger.state, &Enum.into(dead, &1))

    for {%{what: what, number: number} = entry, mark} <- marked do
      last = Accepted.batch(ledger.accepted, what)

      if last == nil or last.number <= number do
        entry = entry |> Map.drop([:what, :bad?]) |> Map.put(:mark, mark)
        put(ledger, what, entry, task.sent)
      end
    end

    ledger
  end

  # A failed entry replaced or deleted before the processor returned is not retried.
  @impl Checks
  def returning({number, task}, time, ledger) do
    for what <- task.entries do
      entry = Accepted.batch(ledger.accepted, what)
      if entry.batch == number, do: put(ledger, what, entry, time)
    end

    ledger
  end

  # `time` is a time at which the buffer had the entry for certain.
  defp put(ledger, what, %{number: number} = entry, time) do
    {effective, at, _deleted, _deleted_at} = Accepted.write(ledger.accepted, what)
    replaced? = effective > number and at <= time
    Accepted.put_batch(ledger.accepted, what, Map.put(entry, :replaced?, replaced?))
  end

  ## Dead letters

  @impl Checks
  def dead(entries, expected, ledger) do
    {known, ledger} = Enum.map_reduce(entries, ledger, &dead_one/2)
    missing = if expected, do: Enum.reject(expected, &(&1.what in known)), else: []
    Enum.reduce(missing, ledger, &not_given_up/2)
  end

  # It came, and failed often enough, or was in an unseen batch.
  defp dead_one({_key, _value, version, updates} = entry, ledger) do
    {what, number, _right?} = identify(entry)
    ledger = update_in(ledger.state, &MapSet.put(&1, {what, number}))

    case Accepted.batch(ledger.accepted, what) do
      %{number: ^number, version: ^version, updates: ^updates} = last ->
        ledger = if may_die?(ledger, last), do: ledger, else: violation(ledger, :given_up_early, entry, last)
        Accepted.put_batch(ledger.accepted, what, %{last | mark: :dead})
        {what, ledger}

      other when ledger.deaths? ->
        if other == nil or other.number <= number,
          do:
            Accepted.put_batch(ledger.accepted, what, %{
              number: number,
              version: version,
              updates: updates,
              batch: 0,
              attempts: 1,
              single?: false,
              replaced?: false,
              mark: :dead
            })

        {what, Ledger.count(ledger, :given_up_unseen)}

      other ->
        {what, violation(ledger, :given_up_early, entry, other)}
    end
  end

  defp may_die?(_ledger, %{mark: mark}) when mark in [:cancelled, :dead], do: true

  defp may_die?(ledger, last),
    do: Retries.failures(ledger, last) >= max_attempts(ledger) or ledger.deaths?

  # It may be replaced or deleted. The end decides, because the writer may note it later.
  @impl Checks
  def not_given_up(entry, ledger), do: %{ledger | not_given_up: [entry | ledger.not_given_up]}

  @impl Checks
  def replaced?(%{what: what, number: number}, ledger) do
    {effective, _at, _deleted, _deleted_at} = Accepted.write(ledger.accepted, what)
    effective > number
  end

  ## The end

  @impl Checks
  def dead?(what, number, ledger), do: {what, number} in ledger.state

  @impl Checks
  def through?({:code, _number} = what, ledger), do: Accepted.batch(ledger.accepted, what) != nil

  @impl Checks
  def left({:list, _list, _outcome}, _ledger), do: []

  def left({what, _number} = write, ledger) do
    what = if what == :code, do: write, else: what
    if check(write, %{ledger | violations: %{}}).violations == %{}, do: [], else: [what]
  end

  @impl Checks
  def check({:list, list, outcome}, ledger),
    do: Lists.check(list, outcome, &gone?(ledger, &1, 1), false, ledger)

  def check({:code, _number} = what, ledger),
    do: if(gone?(ledger, what, 1), do: ledger, else: violation(ledger, :lost, what, nil))

  # The writes of a list cut short may be done in part: then the last number is a range.
  def check({id, written}, ledger) do
    last = Accepted.batch(ledger.accepted, id)

    through? =
      case Accepted.current(ledger.accepted, id) do
        :none -> true
        current -> gone?(ledger, id, current)
      end

    may_be_through? =
      Range.size(written) > 1 and last != nil and last.number in (written.first + 1)..written.last and
        gone?(ledger, id, last.number)

    cond do
      last != nil and last.number > written.last -> violation(ledger, :never_written, {id, written}, last)
      through? or may_be_through? -> ledger
      true -> violation(ledger, :lost, {id, written, Accepted.write(ledger.accepted, id)}, last)
    end
  end

  defp gone?(ledger, what, number), do: Accepted.gone?(ledger.accepted, what, number)

  defp violation(ledger, kind, %{what: what} = entry, other),
    do: Retries.violation(ledger, kind, {entry, other, written: Accepted.write(ledger.accepted, what)})

  defp violation(ledger, kind, entry, other), do: Retries.violation(ledger, kind, {entry, other})
end
