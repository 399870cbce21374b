# Every public operation with every kind of term, for tools that watch the library's memory: native/sanitize runs it.
#
#     mix run bench/workload.exs
#
# WORKLOAD_OPERATIONS (a million) and WORKLOAD_SEED choose what is done, WORKLOAD_DEPTH (3) how deep terms are: 1 has none
# of more than some thousand words. Writers meet flushes, deletions, changes of options, and restarts with other numbers of
# partitions, with outcomes, bounds and thresholds and without; each term that comes back is looked at. With WORKLOAD_JOURNAL,
# a directory, each buffer has a journal there, and so outcomes; what is in its files is read too.

defmodule Workload do
  alias PartitionedBuffer.{Counter, Map, Queue}

  @map :workload_map
  @queue :workload_queue
  @counter :workload_counter
  @buffers [@map, @queue, @counter]
  @writers 4
  @terms 400
  @operations_per_change 1_000
  @writes_and_reads ~w(put put_newer put_new put_all put_all_newer get delete size flush push push_all)a ++
                      ~w(add add_all get_sum delete_sum info)a
  @of_journals ~w(sync read)a
  @kinds @writes_and_reads ++ ~w(update_options restart processed failed dead_letter)a ++ @of_journals

  def main do
    Process.flag(:trap_exit, true)
    Logger.configure(level: :none)
    wanted = String.to_integer(System.get_env("WORKLOAD_OPERATIONS", "1000000"))

    seed =
      String.to_integer(
        System.get_env("WORKLOAD_SEED") || to_string(System.unique_integer([:positive]) + System.os_time())
      )

    IO.puts("WORKLOAD_SEED=#{seed} WORKLOAD_OPERATIONS=#{wanted}")
    done = :counters.new(length(@kinds), [])
    for buffer <- @buffers, do: start(buffer, 0, done)
    share = div(wanted, @writers) + 1
    writers = for number <- 1..@writers, do: Task.async(fn -> write(seed + number, share, done) end)
    restart_until_done(writers, 1, done)
    for buffer <- @buffers, do: :ok = PartitionedBuffer.stop(buffer)
    report(done, wanted)
  end

  ## The writers

  defp write(seed, share, done) do
    :rand.seed(:exsss, seed)
    deepest = String.to_integer(System.get_env("WORKLOAD_DEPTH", "3"))
    depths = for n <- 1..@terms, do: min(deepest, if(rem(n, 10) == 0, do: 3, else: 1 + rem(n, 2)))
    terms = depths |> Enum.map(&term/1) |> List.to_tuple()
    for _ <- 1..share, do: operate(terms, done)
  end

  defp operate(terms, done) do
    kind = kind(:rand.uniform(100))
    perform(kind, terms)
    count(done, kind)
  rescue
    error in ArgumentError ->
      # The buffer is being restarted.
      error.message =~ "no partitions available" || reraise(error, __STACKTRACE__)
      Process.sleep(1)
      operate(terms, done)
  end

  defp kind(n) when n <= 20, do: :put
  defp kind(n) when n <= 23, do: :put_new
  defp kind(n) when n <= 36, do: :put_newer
  defp kind(n) when n <= 40, do: :put_all
  defp kind(n) when n <= 44, do: :put_all_newer
  defp kind(n) when n <= 54, do: :get
  defp kind(n) when n <= 66, do: :delete
  defp kind(n) when n <= 74, do: :push
  defp kind(n) when n <= 78, do: :push_all
  defp kind(n) when n <= 86, do: :add
  defp kind(n) when n <= 89, do: :add_all
  defp kind(n) when n <= 92, do: :get_sum
  defp kind(n) when n <= 97, do: :delete_sum
  defp kind(98), do: :info
  defp kind(99), do: :flush
  defp kind(_n), do: :size

  defp perform(:put, terms), do: Map.put(@map, pick(terms), pick(terms), options())

  defp perform(:put_newer, terms),
    do: Map.put_newer(@map, pick(terms), pick(terms), version(), options())

  defp perform(:put_new, terms), do: Map.put_new(@map, pick(terms), pick(terms), options())
  defp perform(:get, terms), do: :erlang.phash2(Map.fetch(@map, pick(terms), options()))
  defp perform(:flush, _terms), do: PartitionedBuffer.flush(Enum.random(@buffers), timeout: 20)
  defp perform(:info, _terms), do: true = PartitionedBuffer.info(Enum.random(@buffers)).bytes >= 0
  defp perform(:add, terms), do: Counter.add(@counter, pick(terms), amount(), options())
  defp perform(:get_sum, terms), do: :erlang.phash2(Counter.fetch(@counter, pick(terms), options()))
  defp perform(:delete_sum, terms), do: Counter.delete(@counter, pick(terms), options())

  defp perform(:add_all, terms),
    do: Counter.add_all(@counter, for(_ <- 1..:rand.uniform(40), do: {pick(terms), amount()}), options())

  defp perform(:delete, terms), do: Map.delete(@map, pick(terms), options())
  defp perform(:size, _terms), do: true = Map.size(@map) >= 0

  defp perform(:push, terms), do: Queue.push(@queue, {pick(terms)}, options())

  defp perform(:push_all, terms),
    do: Queue.push(@queue, for(_ <- 1..:rand.uniform(40), do: pick(terms)), options())

  defp perform(:put_all, terms),
    do: Map.put_all(@map, for(_ <- 1..:rand.uniform(40), do: {pick(terms), pick(terms)}), options())

  defp perform(:put_all_newer, terms) do
    Map.put_all_newer(
      @map,
      for(_ <- 1..:rand.uniform(40), do: {pick(terms), pick(terms), version()}),
      options()
    )
  end

  defp pick(terms), do: elem(terms, :rand.uniform(@terms) - 1)

  defp options, do: if(:rand.uniform(8) == 1, do: [partition_key: &:erlang.phash2/1], else: [])

  # Sums soon need more than 64 bits.
  defp amount, do: Enum.random([1, -1, 0, Integer.pow(2, 63) - 1, -Integer.pow(2, 63)])

  defp version do
    case :rand.uniform(4) do
      1 -> Integer.pow(2, 64) + :rand.uniform(1_000)
      2 -> -Integer.pow(2, 64) - :rand.uniform(1_000)
      _ -> :rand.uniform(1_000)
    end
  end

  ## Terms of every kind

  defp term(0), do: :rand.uniform(1_000)

  defp term(depth) do
    case :rand.uniform(19) do
      1 -> Enum.random([:atom, nil, true, :"with space"])
      2 -> :rand.uniform(1_000_000) - 500_000
      3 -> Integer.pow(3, 30 + :rand.uniform(200))
      4 -> -Integer.pow(2, 59 + :rand.uniform(10))
      5 -> :rand.uniform() * 1.0e9
      6 -> :rand.bytes(:rand.uniform(64))
      7 -> :rand.bytes(64 + :rand.uniform(4_000))
      8 -> binary_part(:rand.bytes(2_000), 100, 65 + :rand.uniform(1_500))
      9 -> <<:rand.uniform(1_000)::size(13), 1::size(70)>>
      10 -> Elixir.Map.new(1..:rand.uniform(6), &{&1, term(depth - 1)})
      11 -> Elixir.Map.new(1..(32 + :rand.uniform(60)), &{{&1, term(0)}, term(depth - 1)})
      12 -> for _ <- 1..:rand.uniform(20), do: term(depth - 1)
      13 -> [term(depth - 1) | term(depth - 1)]
      14 -> List.to_tuple(for _ <- 0..:rand.uniform(6), do: term(depth - 1))
      15 -> captured(term(depth - 1))
      16 -> make_ref()
      17 -> self()
      18 -> Enum.random([&String.length/1, {}, [], %{}, ""])
      19 -> large(Enum.to_list(1..(500 + :rand.uniform(1_500))))
    end
  end

  # Some look large from outside, some do not.
  defp large(list),
    do: Enum.random([list, List.to_tuple(list), %{rows: [term(0), term(1) | list]}, {:rows, list}])

  defp captured(term), do: fn -> term end

  ## Restarts

  # Not more often where a tool makes all of it slow.
  defp restart_until_done(writers, round, done) do
    results = for {writer, result} <- Task.yield_many(writers, 20), do: {writer, result}
    for {_writer, {:exit, reason}} <- results, do: exit(reason)

    case for({writer, nil} <- results, do: writer) do
      [] ->
        :ok

      running ->
        if operations(done) < round * @operations_per_change do
          restart_until_done(running, round, done)
        else
          change(Enum.at(@buffers, rem(div(round, 4), 3)), rem(round, 4), round, done)
          restart_until_done(running, round + 1, done)
        end
    end
  end

  defp change(buffer, 0, round, done) do
    :ok = PartitionedBuffer.stop(buffer)
    start(buffer, round, done)
    count(done, :restart)
  end

  # As a crash of the whole tree: the next one finds what this one held.
  defp change(buffer, 2, round, done) do
    supervisor = :persistent_term.get({__MODULE__, buffer})
    monitor = Process.monitor(supervisor)
    Process.exit(supervisor, :kill)
    receive do: ({:DOWN, ^monitor, :process, _pid, _reason} -> :ok)
    start(buffer, round, done)
    count(done, :restart)
  end

  defp change(buffer, _odd, round, done) do
    if journal(), do: look_into_journal(buffer, done)
    max_size = Enum.random([200, 1_000, :infinity])

    :ok =
      PartitionedBuffer.update_options(buffer, processing_batch_size: 1 + rem(round, 50), max_size: max_size)

    count(done, :update_options)
  end

  # Its files change while they are read.
  defp look_into_journal(buffer, done) do
    :ok = PartitionedBuffer.sync(buffer, level: :written, timeout: :infinity)
    count(done, :sync)
    kind = %{@map => "map", @queue => "queue", @counter => "counter"}[buffer]

    with {:ok, found} <- PartitionedBuffer.Journal.read(Path.join([journal(), to_string(buffer), kind])) do
      true = :erlang.phash2(found) >= 0
      count(done, :read)
    end
  end

  defp journal, do: System.get_env("WORKLOAD_JOURNAL")

  # The names of a killed tree may be taken for a moment more.
  defp start(buffer, round, done) do
    outcomes? = journal() != nil or rem(round, 3) != 0

    options = [
      module: %{@map => Map, @queue => Queue, @counter => Counter}[buffer],
      name: buffer,
      processor: {__MODULE__, :process, [outcomes?, done]},
      partitions: 1 + rem(round, 3),
      processing_interval_ms: 5,
      processing_batch_size: if(outcomes?, do: 20, else: :table),
      processing_threshold: Enum.random([20, :infinity]),
      max_size: Enum.random([300, :infinity]),
      when_full: :drop_newest,
      full_timeout_ms: 5
    ]

    options = if outcomes?, do: options ++ outcomes(done), else: options

    options =
      if journal(),
        do: options ++ [journal: [dir: journal(), write_ms: 1, sync_ms: :infinity, max_bytes: 1_048_576]],
        else: options

    case PartitionedBuffer.start_link(options) do
      {:ok, supervisor} ->
        :persistent_term.put({__MODULE__, buffer}, supervisor)

      {:error, _name_is_taken} ->
        Process.sleep(1)
        start(buffer, round, done)
    end
  end

  defp outcomes(done) do
    [
      max_attempts: 4,
      retry_backoff_ms: {0, 2},
      dead_letter: {__MODULE__, :dead_letter, [done]},
      processing_timeout_ms: 200,
      drain_timeout_ms: 300
    ]
  end

  def process(entries, outcomes?, done) when is_list(entries) do
    true = :erlang.phash2(entries) >= 0
    if outcomes? and :rand.uniform(4) == 1, do: fail(entries, done), else: succeed(entries, done)
  end

  def process(table, outcomes?, done), do: process(:ets.tab2list(table), outcomes?, done)

  defp succeed(entries, done) do
    :counters.add(done, place(:processed), length(entries))
    :ok
  end

  defp fail(entries, done) do
    :counters.add(done, place(:failed), length(entries))
    some = Enum.filter(entries, fn _ -> :rand.uniform(2) == 1 end)

    case :rand.uniform(6) do
      1 -> {:error, :away}
      2 -> {:error, :some, some}
      3 -> {:cancel, :some, some}
      4 -> {:snooze, 1}
      5 -> raise "away"
      6 -> Process.exit(self(), :kill)
    end
  end

  def dead_letter(entries, _reason, done) do
    true = :erlang.phash2(entries) >= 0
    :counters.add(done, place(:dead_letter), length(entries))
  end

  ## Counts

  defp count(done, kind), do: :counters.add(done, place(kind), 1)
  defp place(kind), do: Enum.find_index(@kinds, &(&1 == kind)) + 1

  defp operations(done) do
    Enum.sum(for kind <- @writes_and_reads, do: :counters.get(done, place(kind)))
  end

  defp report(done, wanted) do
    counts = for kind <- @kinds, do: {kind, :counters.get(done, place(kind))}
    for {kind, count} <- counts, do: IO.puts("#{String.pad_trailing(to_string(kind), 16)}#{count}")

    operations = operations(done)
    IO.puts("#{operations} operations of writers")
    needless = if journal(), do: [], else: @of_journals

    if Enum.any?(counts, fn {kind, count} -> count == 0 and kind not in needless end),
      do: raise("an operation was never done")

    if operations < wanted, do: raise("too few operations were done")
    IO.puts("workload done")
  end
end

Workload.main()
