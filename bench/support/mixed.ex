defmodule Bench.Mixed do
  @moduledoc """
  Five buffers before a PostgreSQL server that refuses single entries, is too slow for large batches, and is killed.

  The buffers are a map with versions, a map without, a counter, a queue with `order: :none`, and a queue. A writer for each of
  them writes at a constant rate. One write in a thousand is bad: it has data that the server refuses (class 22), a key that is
  too long for an index (54), or a key that another writer took (23505). Half of the taken keys are free again two
  seconds later. Half of the entries of a map with bad data are corrected a second later.

  At the end every write must be in its table, or a newer one of its key, or among the dead letters, and no good one is a dead
  letter. The *lateness* of a good write is the time until it is stored, without the time in which the server was away.
  """

  alias Bench.Mixed.Sink
  alias Bench.Postgres
  alias Bench.Postgres.Client
  alias PartitionedBuffer.{Counter, Queue}
  alias PartitionedBuffer.Map, as: Buffer

  @typedoc "The buffer, by the name of its table."
  @type kind() :: :newest | :latest | :sums | :items | :ordered

  @partitions 2
  @interval 1_500

  # Writes of each writer in a second, and its keys.
  @rate 400
  @keys 1_000
  # The writes of which one is bad.
  @block 1_000

  # Milliseconds.
  @step 10
  @taken_for 2_000
  @corrected_after 1_000

  # Two such amounts exceed a `bigint`.
  @largest 9_223_372_036_854_775_807

  @options [
    partitions: @partitions,
    processing_interval_ms: @interval,
    processing_batch_size: 500,
    max_attempts: 20,
    # The server may be back for such a pause before a partition calls it.
    retry_backoff_ms: {100, 500}
  ]

  @doc """
  Writes for so many `:seconds`; `:outages` are pairs of the millisecond when the server is killed, and the milliseconds until it
  starts again. Returns the result of each buffer.
  """
  @spec run(pid(), keyword()) :: %{kind() => map()}
  def run(postgres, opts) do
    [seconds, outages, seed] = for key <- [:seconds, :outages, :seed], do: Keyword.fetch!(opts, key)
    client = start_client(postgres)
    Sink.create(client)
    notes = :ets.new(:mixed, [:public, :duplicate_bag, write_concurrency: true])
    counts = :ets.new(:counts, [:public, write_concurrency: true])
    attach(counts)
    {:ok, tree} = Supervisor.start_link(children(postgres, {notes, counts}), strategy: :one_for_one)

    try do
      rival = Task.async(fn -> take_keys(start_client(postgres), %{log: [], waiting: 0}) end)
      until = now() + 1_000 * seconds

      writers =
        for kind <- Sink.tables(), do: {kind, Task.async(fn -> write(kind, rival.pid, until, seed) end)}

      away = for {at, ms} <- outages, do: outage(postgres, until - 1_000 * seconds + at, ms)
      written = Map.new(writers, fn {kind, writer} -> {kind, Task.await(writer, :infinity)} end)
      send(rival.pid, :finish)
      taken = Task.await(rival, :infinity)
      for kind <- Sink.tables(), do: flush(kind, 100)

      for kind <- Sink.tables(), into: %{} do
        writes = written[kind] ++ for({^kind, write} <- taken, do: write)
        {kind, result(client, {notes, counts}, kind, writes, away)}
      end
    after
      :telemetry.detach(__MODULE__)
      Supervisor.stop(tree)
      Sink.reset(client)
    end
  end

  @doc "An outage of two seconds for each twenty, in their middle."
  @spec outages(pos_integer()) :: [{pos_integer(), pos_integer()}]
  def outages(seconds), do: for(n <- 0..(div(seconds, 20) - 1)//1, do: {20_000 * n + 9_000, 2_000})

  defp now, do: System.monotonic_time(:millisecond)

  defp start_client(postgres) do
    {:ok, client} = Client.start_link(port: Postgres.port(postgres))
    client
  end

  ## The buffers

  defp children(postgres, notes) do
    Enum.flat_map(Sink.tables(), fn kind ->
      clients = for n <- 1..@partitions, do: :"mixed_#{kind}_#{n}"

      own = [
        name: name(kind),
        processor: {Sink, :process, [kind, List.to_tuple(clients), notes]},
        dead_letter: {__MODULE__, :bury, [kind, notes]}
      ]

      for(client <- clients, do: {Client, name: client, port: Postgres.port(postgres)}) ++
        [{module(kind), Keyword.merge(@options, own ++ own(kind))}]
    end)
  end

  defp name(kind), do: :"mixed_#{kind}"

  defp module(kind) when kind in [:newest, :latest], do: Buffer
  defp module(:sums), do: Counter
  defp module(_queue), do: Queue

  # In an outage all failures of a queue are those of its first item.
  defp own(:ordered), do: [max_attempts: 100]
  defp own(:items), do: [order: :none]
  defp own(_kind), do: []

  # The last entries are given up after some flushes.
  defp flush(kind, flushes) do
    case module(kind).flush(name(kind)) do
      :ok -> :ok
      {:error, {:failed, _count}} when flushes > 0 -> flush(kind, flushes - 1)
    end
  end

  ## What happens

  @doc "Counts something."
  def note({_notes, counts}, kind, what), do: :ets.update_counter(counts, {kind, what}, 1, {{kind, what}, 0})

  @doc "Notes that the server has a batch. A sum stands for a number of additions."
  def stored({notes, counts}, kind, batch) do
    at = now()

    for entry <- batch do
      key = elem(entry, 0)
      id = {:additions, key}

      number =
        if kind == :sums, do: :ets.update_counter(counts, id, elem(entry, 2), {id, 0}), else: elem(entry, 1)

      :ets.insert(notes, {{:stored, kind, key}, number, at})
    end
  end

  @doc "The `:dead_letter` of a buffer."
  def bury(entries, _reason, kind, {notes, _counts}),
    do: for(entry <- entries, do: :ets.insert(notes, {{:dead, kind, elem(entry, 0)}, elem(entry, 1)}))

  defp attach(counts) do
    events = for event <- [:split, :retry], do: [:partitioned_buffer, :partition, event]
    :ok = :telemetry.attach_many(__MODULE__, events, &__MODULE__.handle/4, counts)
  end

  @doc false
  def handle([_, _, :split], _measurements, %{buffer: buffer}, counts),
    do: note({nil, counts}, buffer, :splits)

  def handle([_, _, :retry], %{delay: delay}, %{buffer: buffer}, counts),
    do: if(delay > 0, do: note({nil, counts}, buffer, :pauses))

  defp outage(postgres, at, ms) do
    Process.sleep(max(at - now(), 0))
    from = now()
    Postgres.kill!(postgres)
    Process.sleep(ms)
    Postgres.start!(postgres)
    {from, now()}
  end

  ## The writers. A write is `{key, number, time, quality, value}`. The numbers of a key grow by one.

  defp write(kind, rival, until, seed) do
    rand = :rand.seed_s(:exsss, {seed, :erlang.phash2(kind), 0})

    write(%{
      kind: kind,
      rival: rival,
      until: until,
      from: now(),
      rand: rand,
      done: 0,
      written: 0,
      bad_at: nil,
      numbers: %{},
      log: []
    })
  end

  defp write(%{until: until} = state) do
    passed = now() - state.from

    if state.from + passed < until do
      due = div(passed * @rate, 1_000)

      state =
        Enum.reduce(state.done..(due - 1)//1, state, fn _n, state -> state |> write_one() |> correct() end)

      Process.sleep(@step)
      write(%{state | done: due})
    else
      correct_all(state)
    end
  end

  defp write_one(%{kind: kind} = state) do
    {bad, state} = next_bad(state)
    {key, rand} = :rand.uniform_s(@keys, state.rand)
    state = %{state | rand: rand}
    id = "#{map_size(state.numbers)}"

    case bad do
      0 -> write_bad_data(state, "data-" <> id)
      1 -> put(state, "limit-" <> Base.encode32(:crypto.strong_rand_bytes(2_560), case: :lower), :limit)
      2 -> take_key(state, "taken-" <> id)
      _good when kind in [:items, :ordered] -> put(state, "good-" <> id, :good)
      _good -> put(state, "good-#{key}", :good)
    end
  end

  # In each block of writes one is bad, at a random place. The kinds take turns, so that a short run
  # has all of them. Returns the kind; nil for a good write.
  defp next_bad(%{written: written} = state) do
    state =
      if rem(written, @block) == 0 do
        {place, rand} = :rand.uniform_s(@block, state.rand)
        %{state | rand: rand, bad_at: written + place - 1}
      else
        state
      end

    {if(written == state.bad_at, do: rem(div(written, @block), 3)), %{state | written: written + 1}}
  end

  defp write_bad_data(%{kind: :sums} = state, key),
    do: state |> put(key, :data, @largest) |> put(key, :data, @largest)

  defp write_bad_data(%{kind: kind} = state, key) do
    {even?, rand} = :rand.uniform_s(2, state.rand)
    invalid = if even? == 1, do: <<255>>, else: <<0>>

    if kind in [:newest, :latest] and even? == 1,
      do: Process.send_after(self(), {:correct, key}, @corrected_after)

    put(%{state | rand: rand}, key, :data, "#{next(state, key)} is invalid: " <> invalid)
  end

  # The other writer also writes the entry, after it took the key.
  defp take_key(%{kind: kind, rival: rival} = state, key) do
    send(rival, {:take, kind, key})
    %{state | numbers: Map.put(state.numbers, key, 1)}
  end

  defp correct(state) do
    receive do: ({:correct, key} -> put(state, key, :good)), after: (0 -> state)
  end

  # No other write of these keys is to come.
  defp correct_all(state) do
    receive do: ({:correct, key} -> state |> put(key, :good) |> correct_all()),
            after: (2 * @corrected_after -> state.log)
  end

  defp next(%{numbers: numbers}, key), do: Map.get(numbers, key, 0) + 1

  defp put(state, key, quality), do: put(state, key, quality, value(state.kind, next(state, key)))

  defp put(%{kind: kind} = state, key, quality, value) do
    number = next(state, key)
    write = {key, number, now(), quality, value}
    put_entry(kind, key, number, value)
    %{state | log: [write | state.log], numbers: Map.put(state.numbers, key, number)}
  end

  defp value(:sums, number), do: rem(number, 5) - 1
  defp value(_kind, number), do: "#{number}"

  defp put_entry(:newest, key, number, value), do: :ok = Buffer.put_newer(name(:newest), key, value, number)
  defp put_entry(:latest, key, _number, value), do: :ok = Buffer.put(name(:latest), key, value)
  defp put_entry(:sums, key, _number, amount), do: :ok = Counter.add(name(:sums), key, amount)
  defp put_entry(queue, key, _number, value), do: :ok = Queue.push(name(queue), {key, value})

  # The other writer takes keys, as long as the server is there. It ends when all that are to be freed are free.
  defp take_keys(client, state) do
    receive do
      {:take, kind, key} ->
        take_keys(client, take(client, state, kind, key))

      {:release, kind, key} ->
        if Sink.release(client, kind, key) do
          take_keys(client, %{state | waiting: state.waiting - 1})
        else
          Process.send_after(self(), {:release, kind, key}, @step)
          take_keys(client, state)
        end

      :finish when state.waiting == 0 ->
        state.log

      :finish ->
        Process.send_after(self(), :finish, @step)
        take_keys(client, state)
    end
  end

  defp take(client, state, kind, key) do
    taken? = Sink.take(client, kind, key)
    free_again? = taken? and rem(length(state.log), 2) == 0
    if free_again?, do: Process.send_after(self(), {:release, kind, key}, @taken_for)
    value = value(kind, 1)
    put_entry(kind, key, 1, value)
    write = {key, 1, now(), if(taken?, do: :taken, else: :late), value}
    waiting = if free_again?, do: state.waiting + 1, else: state.waiting
    %{state | log: [{kind, write} | state.log], waiting: waiting}
  end

  ## The result

  defp result(client, {notes, counts}, kind, writes, away) do
    late = lateness(notes, kind, writes, away)
    dead = Map.new(Enum.group_by(:ets.select(notes, dead_letters(kind)), &elem(&1, 0), &elem(&1, 1)))

    failures =
      for [code, n] <- :ets.match(counts, {{kind, {:failed, :"$1"}}, :"$2"}), into: %{}, do: {code, n}

    %{
      writes: length(writes),
      refused: writes |> Enum.map(&elem(&1, 3)) |> Enum.frequencies() |> Map.delete(:good),
      calls: count(counts, {kind, :calls}),
      failures: failures,
      splits: count(counts, {name(kind), :splits}),
      pauses: count(counts, {name(kind), :pauses}),
      dead: dead |> Map.values() |> Enum.map(&length/1) |> Enum.sum(),
      lateness: for(q <- [0.5, 0.99, 0.999, 1.0], into: %{}, do: {q, quantile(late, q)}),
      in_time: Enum.count(late, &(&1 <= 2 * @interval)) / length(late),
      differences: differences(kind, writes, Sink.stored(client, kind), dead)
    }
  end

  defp dead_letters(kind), do: [{{{:dead, kind, :"$1"}, :"$2"}, [], [{{:"$1", :"$2"}}]}]

  defp count(counts, what), do: with([{_what, n}] <- :ets.lookup(counts, what), do: n, else: (_none -> 0))

  # Of each good write, in ascending order. A write is stored with the first number that is not below its own.
  defp lateness(notes, kind, writes, away) do
    writes
    |> Enum.filter(&(elem(&1, 3) == :good))
    |> Enum.group_by(&elem(&1, 0))
    |> Enum.flat_map(fn {key, writes} ->
      stored =
        for {_key, number, at} <- :ets.lookup(notes, {:stored, kind, key}),
            do: {if(is_binary(number), do: String.to_integer(number), else: number), at}

      writes |> Enum.sort_by(&elem(&1, 1)) |> wait(Enum.sort(first(stored)), away)
    end)
    |> Enum.sort()
  end

  # Without a store after which the same number or a higher one was stored earlier.
  defp first(stored) do
    {stored, _earliest} =
      stored
      |> Enum.sort(:desc)
      |> Enum.map_reduce(:never, fn {number, at}, earliest ->
        {{number, min(at, earliest)}, min(at, earliest)}
      end)

    stored
  end

  defp wait([], _stored, _away), do: []

  # Never stored: a difference as well.
  defp wait(writes, [], _away), do: for(_write <- writes, do: :never)

  defp wait([{_key, n, at, _, _} | writes], [{number, stored_at} | _] = stored, away) when n <= number,
    do: [stored_at - at - overlap(at, stored_at, away) | wait(writes, stored, away)]

  defp wait(writes, [_lower | stored], away), do: wait(writes, stored, away)

  defp overlap(from, to, away),
    do: Enum.sum(for {began, ended} <- away, do: max(min(to, ended) - max(from, began), 0))

  defp quantile(sorted, q), do: Enum.at(sorted, max(ceil(q * length(sorted)) - 1, 0))

  # A total is stored, or among the dead letters.
  defp differences(:sums, writes, stored, dead) do
    for {key, amounts} <- Enum.group_by(writes, &elem(&1, 0), &elem(&1, 4)),
        expected = Enum.sum(amounts),
        found = [Map.get(stored, key, 0) | Map.get(dead, key, [])],
        Enum.sum(found) != expected or (String.starts_with?(key, "good-") and Map.has_key?(dead, key)),
        do: {key, expected, found}
  end

  # So is the last value of a key, and no good value is among the dead letters.
  defp differences(_kind, writes, stored, dead) do
    for {key, writes} <- Enum.group_by(writes, &elem(&1, 0)),
        last = elem(Enum.max_by(writes, &elem(&1, 1)), 4),
        letters = Map.get(dead, key, []),
        stored[key] == last == last in letters or
          Enum.any?(writes, &(elem(&1, 3) == :good and elem(&1, 4) in letters)),
        do: {key, last, {stored[key], letters}}
  end
end
