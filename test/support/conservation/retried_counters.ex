defmodule PartitionedBuffer.Conservation.RetriedCounters do
  @moduledoc false
  # Compares the entries of a counter with retries with the additions of the writers. A failed entry
  # comes again, together with later additions. So the additions to a key come in their order, and
  # the additions of an entry follow each other: the first addition of the next entry is certain.
  #
  # After the death of a task it is uncertain whether its batch was settled. Then the next entry may
  # begin with the first addition of that batch, or behind the batch.
  #
  # After a start with another partition count two partitions may have additions to one key, and the
  # additions of an entry may not follow each other. Then sums and counts are added up, until the
  # order is found again. At the end the entries of each key must be all its additions; a batch of a
  # dead task counts or not.

  @behaviour PartitionedBuffer.Conservation.Checks

  alias PartitionedBuffer.Conservation.{Accepted, Additions, Checks, Code, Ledger, Lists, Retries}

  # The notes on a key: the sum and the count of the additions that left the buffer for certain, and
  # the number of the last one, nil if unknown. `uncertain` are entries of dead tasks, until the
  # next entry shows whether they left, and `untold` are entries that no later entry explains.
  # `given_up` has sum and count of entries given up: if a task dies while it gives up a batch,
  # `:dead_letter` gets the batch again. `open` are entries in unsettled batches, the last one
  # first. `failed` is the last entry to come again, and `latest` the last one, for the writers.
  @new %{
    sum: 0,
    count: 0,
    last: 0,
    uncertain: [],
    untold: [],
    open: [],
    failed: nil,
    latest: nil,
    given_up: []
  }

  # Of a key with more uncertain entries only the count is compared.
  @most_uncertain 14

  # Dead entries of code and lists are as good as any other, so they need no state.
  @impl Checks
  def new, do: nil

  @impl Checks
  def strict?, do: false

  ## For the writers

  @doc "The additions with which the present entry of the buffer may begin."
  def firsts(accepted, id) do
    case Accepted.batch(accepted, id) do
      nil -> [1]
      %{latest: %{first: first, last: last}} when first != nil -> [first, last + 1]
      _unknown -> []
    end
  end

  @doc "Whether a read found a past or present entry of a key with this number of writes."
  def held?(accepted, id, written, before, result) do
    now = firsts(accepted, id)

    Additions.deletes?(id) or before == [] or now == [] or
      Enum.any?(before ++ now, fn first ->
        result == if(first > written, do: :absent, else: {:ok, Additions.sum(id, first, written)})
      end)
  end

  @doc "Whether all additions up to this one left the buffer."
  def through_to?(accepted, id, written) do
    case Accepted.batch(accepted, id) do
      nil -> written == 0
      %{latest: %{last: nil}} -> true
      %{latest: %{last: last} = latest} -> last >= written and leaves?(accepted, latest)
    end
  end

  defp leaves?(_accepted, %{mark: mark}) when mark in [:ok, :cancelled, :dead], do: true
  defp leaves?(accepted, %{mark: :failed, attempts: attempts}), do: attempts + 1 >= accepted.max_attempts
  defp leaves?(_accepted, _snoozed_or_split), do: false

  ## Batches

  @impl Checks
  def arrive(entries, batch, ledger), do: Enum.map_reduce(entries, ledger, &arrive_one(&1, batch, &2))

  defp arrive_one({{:code, number, value}, 1, 1}, batch, ledger) do
    ledger =
      if Code.intact?(value, number), do: ledger, else: Retries.violation(ledger, :wrong, {:code, number})

    arrive_at({:code, number}, {1, 1}, {1, 1}, batch, ledger)
  end

  defp arrive_one({{:list, _list, place} = key, sum, count}, batch, ledger) do
    ledger =
      if {sum, count} == {place, 1}, do: ledger, else: Retries.violation(ledger, :wrong, {key, sum, count})

    arrive_at(key, {sum, count}, {1, 1}, batch, ledger)
  end

  defp arrive_one({key, sum, count}, batch, ledger) do
    id = Additions.id(key)

    case Additions.run(id, sum, count) do
      {first, last} ->
        arrive_at(id, {sum, count}, {first, last}, batch, ledger)

      :error ->
        ledger = if ledger.disordered?, do: ledger, else: Retries.violation(ledger, :wrong, {id, sum, count})
        arrive_at(id, {sum, count}, {nil, nil}, batch, ledger)
    end
  end

  defp arrive_at(what, {sum, count}, {first, last}, {number, task}, ledger) do
    key = resolve(key(ledger, what), ledger)
    entry = %{what: what, sum: sum, count: count, first: first, last: last, batch: number}
    {attempts, key, ledger} = place(key, entry, task, ledger)
    Accepted.put_batch(ledger.accepted, what, key)
    {Map.put(entry, :attempts, attempts), ledger}
  end

  defp key(ledger, what), do: Accepted.batch(ledger.accepted, what) || @new

  # While the order is lost, only sum and count are certain.
  defp place(key, _entry, _task, %{disordered?: true} = ledger), do: {0, untold(%{key | last: nil}), ledger}
  defp place(%{last: nil} = key, %{first: nil}, _task, ledger), do: {0, key, ledger}

  # The first entry after the order is found. All entries that left are before it.
  defp place(%{last: nil} = key, entry, _task, ledger),
    do: {0, untold(%{key | last: entry.first - 1}), ledger}

  defp place(key, %{first: nil}, _task, ledger), do: {0, key, ledger}

  defp place(key, entry, task, ledger) do
    ledger =
      if key.open == [] or task.other,
        do: ledger,
        else: Retries.violation(ledger, :two_at_a_time, {entry, key})

    # Each uncertain entry left or not, in their order.
    known =
      Enum.find(
        [key.last | Enum.map(key.uncertain, & &1.last)],
        &Additions.begins?(entry.what, &1, entry.first)
      )

    cond do
      known ->
        {left, _came_again} = Enum.split_with(key.uncertain, &(&1.last <= known))
        key = Enum.reduce(left, key, &leave(&2, &1))
        attempts = attempts(key, entry)
        ledger = check_attempts(ledger, entry, attempts, task)
        {attempts, %{key | last: entry.first - 1, uncertain: [], failed: nil}, ledger}

      entry.first <= key.last ->
        {0, key, Retries.violation(ledger, :again, {entry, key})}

      true ->
        {0, %{key | last: entry.first - 1}, Retries.violation(ledger, :lost, {entry, key})}
    end
  end

  defp untold(key), do: %{key | untold: key.untold ++ key.uncertain, uncertain: []}

  # The least number of its failures: that of the entry with which it begins.
  defp attempts(%{failed: %{first: first, attempts: attempts}}, %{first: first}), do: attempts
  defp attempts(_key, _entry), do: 0

  defp check_attempts(ledger, entry, attempts, task) do
    if attempts > 0 and attempts >= ledger.accepted.max_attempts and not task.other,
      do: Retries.violation(ledger, :too_often, entry),
      else: if(attempts > 0, do: Ledger.count(ledger, :retries), else: ledger)
  end

  @impl Checks
  def mark(marked, _batch, ledger) do
    for {entry, mark} <- marked do
      key = key(ledger, entry.what)
      entry = entry |> Map.drop([:bad?]) |> Map.put(:mark, mark)
      latest = if ledger.disordered?, do: %{entry | first: nil, last: nil}, else: entry
      Accepted.put_batch(ledger.accepted, entry.what, %{key | open: [entry | key.open], latest: latest})
    end

    ledger
  end

  # The fate of the entries of earlier batches.
  defp resolve(key, ledger) do
    Enum.reduce(Enum.reverse(key.open), %{key | open: []}, fn entry, key ->
      case {Retries.batch_state(ledger, entry.batch), leaves?(ledger.accepted, entry)} do
        {:open, _leaves?} ->
          %{key | open: [entry | key.open]}

        {:settled, true} ->
          leave(key, entry)

        {:settled, false} ->
          %{key | failed: failed(entry, ledger)}

        {:died, true} ->
          %{key | uncertain: key.uncertain ++ [entry], failed: failed(entry, ledger)}

        {:died, false} ->
          %{key | failed: failed(entry, ledger)}
      end
    end)
  end

  defp failed(entry, ledger), do: %{entry | attempts: Retries.failures(ledger, entry)}

  defp leave(key, %{sum: sum, count: count, last: last, mark: mark}),
    do: %{
      key
      | sum: key.sum + sum,
        count: key.count + count,
        last: key.last && (last || key.last),
        failed: nil,
        given_up: if(mark == :ok, do: key.given_up, else: [{sum, count} | key.given_up])
    }

  # A failed entry of a counter is never replaced.
  @impl Checks
  def returning(_batch, _time, ledger), do: ledger

  ## Dead letters

  # The entries of the task's own batch are certain. Others failed more often than the ledger saw,
  # since tasks died before they called the processor, or come from the batch of a dead task,
  # perhaps an unseen one.
  @impl Checks
  def dead(entries, expected, ledger) do
    known = for entry <- entries, do: identify(entry)
    ours = for %{what: what, sum: sum, count: count} <- expected || [], do: {what, sum, count}
    ledger = Enum.reduce(known -- ours, ledger, &dead_one/2)
    missing = Enum.reject(expected || [], &({&1.what, &1.sum, &1.count} in known))
    Enum.reduce(missing, ledger, &not_given_up/2)
  end

  defp identify({{:code, number, _value}, sum, count}), do: {{:code, number}, sum, count}
  defp identify({{:list, _list, _place} = key, sum, count}), do: {key, sum, count}
  defp identify({key, sum, count}), do: {Additions.id(key), sum, count}

  defp dead_one({what, sum, count} = entry, ledger) do
    key = key(ledger, what)
    ledger = if ledger.deaths?, do: ledger, else: Retries.violation(ledger, :given_up_early, {entry, key})
    same? = &(&1 != nil and {&1.sum, &1.count} == {sum, count})
    known = Enum.find(key.open, same?)
    key = if known, do: key, else: resolve(key, ledger)

    key =
      cond do
        known ->
          dead = %{known | mark: :dead}
          %{key | open: Enum.map(key.open, &if(&1 == known, do: dead, else: &1)), latest: dead}

        {sum, count} in key.given_up ->
          key

        known = Enum.find(key.uncertain, same?) ->
          leave(%{key | uncertain: List.delete(key.uncertain, known)}, known)

        same?.(key.failed) ->
          leave(key, key.failed)

        true ->
          {first, last} = run(what, sum, count)

          dead = %{
            what: what,
            sum: sum,
            count: count,
            first: first,
            last: last,
            attempts: 0,
            single?: false,
            mark: :dead,
            batch: 0
          }

          %{leave(key, dead) | latest: dead}
      end

    Accepted.put_batch(ledger.accepted, what, key)
    Ledger.count(ledger, :given_up_unseen)
  end

  defp run(id, sum, count) when is_integer(id),
    do: with(:error <- Additions.run(id, sum, count), do: {nil, nil})

  defp run(_code_or_list, _sum, _count), do: {1, 1}

  @impl Checks
  def not_given_up(entry, ledger), do: %{ledger | not_given_up: [entry | ledger.not_given_up]}

  # Only a delete removes an entry.
  @impl Checks
  def replaced?(%{what: what}, _ledger), do: is_integer(what) and Additions.deletes?(what)

  ## The end

  @impl Checks
  def dead?(_what, _number, _ledger), do: false

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
    do: Lists.check(list, outcome, &came?(&1, ledger), false, ledger)

  def check({:code, _number} = what, ledger),
    do: if(came?(what, ledger), do: ledger, else: Retries.violation(ledger, :lost, what))

  # The number of writes to a key is a range, since a refused list may be added in part.
  def check({id, written}, ledger) do
    key = resolve(key(ledger, id), ledger)
    right? = if Additions.deletes?(id), do: &may_be_all?(id, key, &1), else: &all?(id, key, &1)

    cond do
      Enum.any?(written, right?) ->
        ledger

      key.count > written.last and not Additions.deletes?(id) ->
        Retries.violation(ledger, :never_written, {id, written, key})

      true ->
        Retries.violation(ledger, :lost, {id, written, key})
    end
  end

  # The entries that left, with some of the uncertain ones, are all additions.
  defp all?(id, key, written) do
    {sum, count} = {Additions.sum(id, 1, written) - key.sum, written - key.count}
    uncertain = key.uncertain ++ key.untold

    cond do
      {sum, count} == {0, 0} -> true
      length(uncertain) > @most_uncertain -> count in 0..Enum.sum(Enum.map(uncertain, & &1.count))
      true -> {sum, count} in sums(uncertain)
    end
  end

  # The amount that a delete removed is unknown.
  defp may_be_all?(_id, %{last: nil, count: count}, written), do: count <= written

  defp may_be_all?(id, key, written),
    do:
      Enum.any?(
        [key.last | Enum.map(key.uncertain, & &1.last)],
        &(&1 == nil or Additions.finished?(id, &1, written))
      )

  defp came?(what, ledger) do
    key = resolve(key(ledger, what), ledger)
    key.count + length(key.uncertain) > 0
  end

  # The sums and counts of all parts of a list.
  defp sums(entries) do
    Enum.reduce(entries, [{0, 0}], fn %{sum: sum, count: count}, sums ->
      sums ++ for {s, c} <- sums, do: {s + sum, c + count}
    end)
  end
end
