defmodule PartitionedBuffer.JournalLoop.Model do
  @moduledoc false
  # Checks a round against the laws of a journal. It knows what was written, what the sink got, and what
  # each dead VM left in its journal. An *atom* is what one operation wrote: a value of a key of a
  # map, an addition to a key of a counter, an item of a queue.

  import Bitwise

  alias PartitionedBuffer.JournalLoop.{Ledger, Life, Sink}

  # What was done at most so long before the end of a VM, in microseconds, may be missing in its journal.
  @bound_us 500_000

  @doc """
  Returns the violations of a round, and its numbers. `lives` has what each killed VM left.
  """
  def check(plan, lives, last) do
    numbers = Enum.map(lives, & &1.number)
    writes = Map.new(numbers, &{&1, writes(plan, &1)})
    calls = Map.new(numbers ++ [last.number], &{&1, calls(plan, &1)})
    ends = Map.new(numbers, &{&1, last_time(writes[&1], calls[&1])})
    all_calls = Enum.flat_map(numbers ++ [last.number], &calls[&1])

    round = %{
      plan: plan,
      lives: lives,
      last: last,
      writes: writes,
      calls: calls,
      ends: ends,
      begun: begun(writes),
      done: done(plan, all_calls),
      deletes: deletes(writes)
    }

    kills = Enum.map(lives, &kill(round, &1))

    violations =
      Enum.concat([
        unknown(round, all_calls),
        Enum.flat_map(kills, & &1.violations),
        again(round, all_calls),
        backwards(plan, all_calls),
        revived(round),
        given_up_early(round, all_calls),
        if(plan.kind == :queue, do: out_of_order(round, kills), else: []),
        the_end(round)
      ])

    {violations,
     %{
       kills: length(lives),
       writes: map_size(round.begun),
       calls: length(all_calls),
       lost_ms: Enum.map(kills, & &1.lost_ms),
       lost: kills |> Enum.map(&MapSet.size(&1.lost)) |> Enum.sum(),
       doubtful: doubtful(round, all_calls)
     }}
  end

  ## What happened

  # The writes of a life: operations with the times before and after, and successful syncs.
  defp writes(plan, life) do
    files = Ledger.read(plan.ledger, "writes-#{life}-")

    writes =
      for frames <- files,
          ended = Map.new(for({:end, number, time} <- frames, do: {number, time})),
          {:begin, number, time, operations} <- frames,
          operation <- operations,
          do: {operation, life, time, ended[number]}

    synced = for frames <- files, {:sync, _level, before, :ok} <- frames, do: before
    # All frames have their time at the same place.
    times = for frames <- files, frame <- frames, do: elem(frame, 2)
    %{writes: writes, synced: Enum.max(synced, fn -> 0 end), times: times}
  end

  defp calls(plan, life) do
    frames = Enum.concat(Ledger.read(plan.ledger, "sink-#{life}-"))
    ended = Map.new(for({:end, number, time, fate} <- frames, do: {number, {time, fate}}))
    buried = Map.new(for({:buried, number, time} <- frames, do: {number, {time, :all}}))

    begun =
      for({:begin, number, time, entries} <- frames, do: {:store, number, time, entries, nil}) ++
        for({:bury, number, time, entries, reason} <- frames, do: {:bury, number, time, entries, reason})

    for {what, number, time, entries, reason} <- Enum.sort_by(begun, &elem(&1, 1)) do
      {end_time, fate} = Map.get(if(what == :store, do: ended, else: buried), number, {nil, nil})

      %{
        what: what,
        life: life,
        number: number,
        begun: time,
        entries: entries,
        ended: end_time,
        fate: fate,
        reason: reason
      }
    end
  end

  defp last_time(%{times: times}, calls) do
    calls = for %{begun: begun, ended: ended} <- calls, time <- [begun, ended || begun], do: time
    Enum.max(times ++ calls, fn -> 0 end)
  end

  # All atoms: the life, and the times before and after the write.
  defp begun(writes) do
    for {_life, %{writes: writes}} <- writes,
        {operation, life, before, behind} <- writes,
        atom = written(operation),
        into: %{},
        do: {atom, {life, before, behind}}
  end

  defp written({:put, key, {number, _bytes}}), do: {key, number}
  defp written({:add, key, bit}), do: {key, bit}
  defp written({:push, {writer, number, _bytes}}), do: {writer, number}
  defp written({:delete, _key, _number}), do: nil

  # The deletes of each key: the number, the life, and the time behind.
  defp deletes(writes) do
    for(
      {_life, %{writes: writes}} <- writes,
      {{:delete, key, number}, life, _, behind} <- writes,
      do: {key, {number, life, behind}}
    )
    |> Enum.group_by(&elem(&1, 0), &elem(&1, 1))
  end

  defp atoms(:map, {key, {number, _bytes}, _version, _updates}), do: [{key, number}]
  defp atoms(:counter, {key, sum, _count}), do: for(bit <- bits(sum), do: {key, bit})
  defp atoms(:queue, {writer, number, _bytes}), do: [{writer, number}]

  defp bits(sum) when sum >= 0, do: for(bit <- 0..70, (sum >>> bit &&& 1) == 1, do: bit)
  defp bits(_negative), do: []

  defp atoms_of(kind, entries), do: Enum.flat_map(entries, &atoms(kind, &1))

  # When an atom was stored, or buried: a list of calls, the first one first.
  defp done(plan, calls) do
    for(call <- calls, entry <- ended_entries(call), atom <- atoms(plan.kind, entry), do: {atom, call})
    |> Enum.group_by(&elem(&1, 0), &elem(&1, 1))
  end

  defp ended_entries(%{fate: :all, entries: entries}), do: entries

  defp ended_entries(%{fate: {:some, failed, cancelled}, entries: entries}) do
    others = MapSet.new(failed ++ cancelled)
    for {entry, position} <- Enum.with_index(entries), position not in others, do: entry
  end

  defp ended_entries(_failed), do: []

  ## One kill

  defp kill(%{plan: %{kind: kind}} = round, %{number: life, entries: entries, newly: newly} = left) do
    horizon = horizon(round, life)
    held = MapSet.new(atoms_of(kind, entries))
    covered? = covered(round, life, held)

    unwritten =
      for {operation, ^life, _before, behind} <- round.writes[life].writes,
          atom = written(operation),
          behind != nil,
          not covered?.(atom),
          do: {atom, behind}

    missing =
      for {atom, behind} <- unwritten, behind < horizon, do: {:missing, life, atom, ago(round, life, behind)}

    # What a start found, it keeps.
    dropped = for atom <- atoms_of(kind, newly), not covered?.(atom), do: {:dropped, life, atom}

    unjournaled =
      for %{what: :store} = call <- round.calls[life],
          atom <- atoms_of(kind, call.entries),
          not covered?.(atom),
          do: {:came_to_the_sink_before_the_journal, life, atom, call.number}

    stored =
      for atom <- held,
          %{life: done} = call <- Map.get(round.done, atom, []),
          done <= life and settled?(round, call),
          do: {:still_in_the_journal, life, atom, call.life, call.number}

    lost =
      for {operation, ^life, _before, _behind} <- round.writes[life].writes,
          atom = written(operation),
          not covered?.(atom),
          into: MapSet.new(),
          do: atom

    gaps = if kind == :queue, do: gaps(round, left, lost), else: []
    twice = if kind == :counter, do: twice(life, entries), else: []
    oldest = unwritten |> Enum.map(&elem(&1, 1)) |> Enum.min(fn -> nil end)

    %{
      life: life,
      lost: lost,
      lost_ms: if(oldest, do: ago(round, life, oldest), else: 0),
      violations: missing ++ dropped ++ unjournaled ++ stored ++ gaps ++ twice
    }
  end

  defp ago(round, life, time), do: div(round.ends[life] - time, 1_000)

  # What was acknowledged before is in the journal.
  defp horizon(round, life), do: max(round.ends[life] - @bound_us, round.writes[life].synced)

  # Whether an atom is in the journal or done, or another operation made it void.
  defp covered(%{plan: %{kind: :map}} = round, life, held) do
    held = highest(held)
    done = highest(for {atom, calls} <- round.done, Enum.any?(calls, &(&1.life <= life)), do: atom)

    fn {key, number} ->
      Map.get(held, key, -1) >= number or Map.get(done, key, -1) >= number or
        deleted?(round, key, number, life)
    end
  end

  defp covered(round, life, held) do
    fn {key, _number} = atom ->
      atom in held or Enum.any?(Map.get(round.done, atom, []), &(&1.life <= life)) or
        (round.plan.kind == :counter and deleted?(round, key, -1, life))
    end
  end

  defp deleted?(round, key, number, life),
    do:
      Enum.any?(Map.get(round.deletes, key, []), fn {delete, at, _behind} ->
        delete > number and at <= life
      end)

  defp highest(atoms),
    do: Enum.reduce(atoms, %{}, fn {key, number}, all -> Map.update(all, key, number, &max(&1, number)) end)

  # A queue loses the newest items of a partition only.
  defp gaps(round, %{number: life} = left, lost) do
    by_partition =
      for {{:push, item}, ^life, before, behind} <- round.writes[life].writes,
          do: {Sink.partition(item, Map.merge(round.plan, left)), {written({:push, item}), before, behind}}

    for {_partition, items} <- Enum.group_by(by_partition, &elem(&1, 0), &elem(&1, 1)),
        {lost, kept} = Enum.split_with(items, fn {atom, _, _} -> atom in lost end),
        first = lost |> Enum.map(&elem(&1, 2)) |> Enum.reject(&is_nil/1) |> Enum.min(fn -> nil end),
        {atom, begun, _behind} <- kept,
        begun > first,
        do: {:gap, life, atom}
  end

  # An addition is in one entry.
  defp twice(life, entries) do
    atoms = atoms_of(:counter, entries)
    for atom <- atoms -- Enum.uniq(atoms), do: {:in_two_entries, life, atom}
  end

  # Whether the journal must know the outcome of a call: it ended long before the VM, and was not about
  # to be killed for its time.
  defp settled?(round, %{life: life, ended: ended} = call) do
    in_time?(round, call) and (life == round.last.number or ended < horizon_of_outcome(round, life))
  end

  defp in_time?(round, call), do: call.ended - call.begun < round.plan.options[:processing_timeout_ms] * 500
  defp horizon_of_outcome(round, life), do: round.ends[life] - @bound_us

  defp doubtful(round, calls),
    do: Enum.count(calls, &(&1.ended != nil and ended_entries(&1) != [] and not settled?(round, &1)))

  ## The laws of all calls

  # Nothing comes that was not written so, and only in its partition.
  defp unknown(%{plan: plan} = round, calls) do
    counts = Map.new(round.lives ++ [round.last], &{&1.number, &1.partitions})

    from_sink =
      for call <- calls,
          entry <- call.entries,
          not known?(round, entry),
          do: {:never_written, call.life, entry}

    from_journal =
      for left <- round.lives,
          entry <- left.entries,
          not known?(round, entry),
          do: {:never_written, left.number, entry}

    astray =
      for call <- calls,
          of_life = Map.put(plan, :partitions, counts[call.life]),
          Enum.count(Enum.uniq_by(call.entries, &Sink.partition(&1, of_life))) > 1,
          do: {:in_the_wrong_partition, call.life, call.entries}

    from_sink ++ from_journal ++ astray
  end

  defp known?(%{plan: plan, begun: begun}, {key, {number, _bytes} = value, version, updates}) do
    Map.has_key?(begun, {key, number}) and value == Life.value(number, plan.value_bytes) and updates >= 0 and
      version == if(plan.writes == :put_newer, do: plan.version_base + number, else: 0)
  end

  defp known?(%{plan: %{kind: :counter}, begun: begun}, {key, sum, count}) do
    bits = bits(sum)
    bits != [] and count == length(bits) and Enum.all?(bits, &Map.has_key?(begun, {key, &1}))
  end

  defp known?(%{plan: %{kind: :queue} = plan, begun: begun}, {writer, number, bytes}),
    do: Map.has_key?(begun, {writer, number}) and {number, bytes} == Life.value(number, plan.value_bytes)

  # What is done does not come again, except after a kill for a moment.
  defp again(%{plan: plan} = round, calls) do
    for call <- calls,
        atom <- atoms_of(plan.kind, call.entries),
        earlier <- Map.get(round.done, atom, []),
        {earlier.life, earlier.number} < {call.life, call.number},
        if(earlier.life == call.life, do: in_time?(round, earlier), else: settled?(round, earlier)),
        do: {:came_again, atom, {earlier.life, earlier.number}, {call.life, call.number}}
  end

  # For a key, the processor never gets a value older than one that it has succeeded with.
  defp backwards(%{kind: :map}, calls) do
    {_newest, violations} =
      Enum.reduce(calls, {%{}, []}, fn
        %{what: :bury}, acc ->
          acc

        call, {newest, violations} ->
          older =
            for {key, {number, _bytes}, _version, _updates} <- call.entries,
                number < Map.get(newest, key, -1),
                do: {:backwards, key, number, newest[key], {call.life, call.number}}

          stored = highest(atoms_of(:map, ended_entries(call)))
          {Map.merge(newest, stored, fn _key, one, other -> max(one, other) end), older ++ violations}
      end)

    violations
  end

  defp backwards(_plan, _calls), do: []

  # What was deleted, and the delete written, does not come back.
  defp revived(%{plan: %{kind: kind}} = round) when kind in [:map, :counter] do
    deleted =
      for {key, deletes} <- round.deletes,
          {number, life, behind} <- deletes,
          behind != nil and behind < horizon(round, life),
          do: {key, {number, life}}

    deleted = Enum.group_by(deleted, &elem(&1, 0), &elem(&1, 1))

    for {life, calls} <- round.calls,
        %{what: :store} = call <- calls,
        {key, number} = atom <- atoms_of(kind, call.entries),
        {delete, at} <- Map.get(deleted, key, []),
        at < life and (kind == :counter or number < delete),
        do: {:came_after_its_delete, atom, {life, call.number}, delete}
  end

  defp revived(_round), do: []

  # An entry is given up after its attempts, or if it was cancelled.
  defp given_up_early(%{plan: plan} = round, calls) do
    cancelled =
      for %{fate: {:some, _failed, cancelled}} = call <- calls,
          position <- cancelled,
          atom <- atoms(plan.kind, Enum.at(call.entries, position)),
          into: MapSet.new(),
          do: atom

    attempts =
      Enum.reduce(calls, %{}, fn
        %{what: :store} = call, all ->
          Enum.reduce(
            atoms_of(plan.kind, call.entries),
            all,
            &Map.update(&2, &1, 1, fn count -> count + 1 end)
          )

        _bury, all ->
          all
      end)

    for %{what: :bury} = call <- calls,
        entry <- call.entries,
        atoms = atoms(plan.kind, entry),
        not Enum.any?(atoms, &(&1 in cancelled)),
        most = atoms |> Enum.map(&Map.get(attempts, &1, 0)) |> Enum.max(fn -> 0 end),
        # A call may have begun for the journal whose beginning the sink did not write down.
        most + call.life - 1 < round.plan.options[:max_attempts],
        do: {:given_up_early, call.life, entry, most}
  end

  # The items of a writer in a partition come in their order, from all that are not done.
  defp out_of_order(%{plan: plan} = round, kills) do
    lost = Map.new(kills, &{&1.life, &1.lost})

    buried =
      for {_life, calls} <- round.calls,
          call <- calls,
          {entry, position} <- Enum.with_index(call.entries),
          call.what == :bury or (match?({:some, _, _}, call.fate) and position in elem(call.fate, 2)),
          atom <- atoms(:queue, entry),
          into: MapSet.new(),
          do: atom

    {_streams, _done, violations} =
      Enum.reduce(round.lives ++ [round.last], {%{}, MapSet.new(), []}, fn %{number: life} = of_life, acc ->
        acc = add_items(acc, plan, of_life, Map.get(round.writes, life, %{writes: []}).writes)
        of_life = Map.merge(plan, of_life)
        {streams, done, violations} = Enum.reduce(round.calls[life], acc, &in_order(&1, &2, of_life, buried))
        lost = Map.get(lost, life, MapSet.new())
        {Map.new(streams, fn {id, items} -> {id, Enum.reject(items, &(&1 in lost))} end), done, violations}
      end)

    violations
  end

  defp add_items({streams, done, violations}, plan, of_life, writes) do
    new =
      Enum.group_by(
        for(
          {{:push, item}, _, _, _} <- writes,
          do: {{elem(item, 0), Sink.partition(item, Map.merge(plan, of_life))}, written({:push, item})}
        ),
        &elem(&1, 0),
        &elem(&1, 1)
      )

    {Map.merge(streams, new, fn _stream, old, new -> old ++ new end), done, violations}
  end

  defp in_order(%{what: :bury}, acc, _of_life, _buried), do: acc

  defp in_order(call, {streams, done, violations}, of_life, buried) do
    void? = &(&1 in done or &1 in buried)
    partition = Sink.partition(hd(call.entries), of_life)
    fresh = call.entries |> Enum.flat_map(&atoms(:queue, &1)) |> Enum.reject(void?)

    {streams, wrong} =
      Enum.reduce(Enum.group_by(fresh, &elem(&1, 0)), {streams, []}, fn {writer, own}, {streams, wrong} ->
        id = {writer, partition}
        items = streams |> Map.get(id, []) |> Enum.drop_while(void?)
        expected = items |> Stream.reject(void?) |> Enum.take(length(own))

        wrong =
          if expected == own,
            do: wrong,
            else: [{:out_of_order, {call.life, call.number}, own, expected} | wrong]

        {Map.put(streams, id, items), wrong}
      end)

    done = call |> ended_entries() |> Enum.flat_map(&atoms(:queue, &1)) |> Enum.into(done)
    {streams, done, wrong ++ violations}
  end

  # The last VM delivers exactly what the one before left.
  defp the_end(%{plan: plan, last: last} = round) do
    left = MapSet.new(atoms_of(plan.kind, List.last(round.lives).entries))

    delivered = MapSet.new(Enum.flat_map(round.calls[last.number], &atoms_of(plan.kind, ended_entries(&1))))

    replayed =
      for %{entries: entries, found: found} <- round.lives,
          found != nil and found != length(entries),
          do: {:replayed, found, length(entries)}

    replayed ++
      for(atom <- MapSet.difference(left, delivered), do: {:left_and_not_delivered, atom}) ++
      for(atom <- MapSet.difference(delivered, left), do: {:delivered_and_not_left, atom}) ++
      for(file <- last.files, file != "lock", do: {:file_stays, file})
  end
end
