# What the option `:journal` costs, beside the same buffer without it, and what it keeps: each bar of its contract, with the
# measured median and spread, and whether it holds.
#
#     MIX_ENV=prod mix run bench/journal.exs
#     MIX_ENV=prod mix run bench/journal.exs --only puts,kill --dir /var/tmp
#     MIX_ENV=prod mix run bench/journal.exs --only base --base ../before
#
# Parts, which --only selects:
#
#   puts      the processor time of the schedulers for a put, and that of the journal's threads
#   peers     the processor time of the whole VM for an entry, beside ETS with files of the VM; that of SQLite (Python's
#             module) and of Redis where these are installed
#   tail      the latency of a put while `dd` keeps the disk busy
#   flush     how long a flush takes
#   kill      what a VM that is killed has lost, and how long before its end that was acknowledged
#   replay    how many entries a second of one processor a start takes in
#   memory    the resident bytes for entries that are not written
#   outage    the bytes on the disk while the processor fails and each key is written a hundred times
#   base      buffers without the option beside another build of the package: --base is the directory of a checkout in which
#             `mix compile` has run in the same environment
#
# What is compared is measured in one run and in turn, as processor time where that can be: the load of the machine changes
# from minute to minute. A ratio is the median of those of each turn. --rounds N sets the number of turns. Files are made
# below --dir, by default the system's directory for temporary files, which has to be on a disk. Only Linux counts the
# processor time of threads. In each part, `PartitionedBuffer.Journal.read/1` shows whether the journal has what it should
# have; if not, the script fails. A row without a bar explains others.
#
# Without --only it also writes what it prints to bench/journal.txt.

for file <- ~w(report runner histogram bars cpu journal_vm journal_peers),
    do: Code.require_file("support/#{file}.ex", __DIR__)

defmodule JournalBench do
  import Bench.Bars, only: [row: 5, figures: 4, figures: 5, times: 1, whole: 1, mean: 1]

  alias Bench.{Bars, Cpu, Histogram, JournalPeers, JournalVm, Report, Runner}
  alias PartitionedBuffer.Journal
  alias PartitionedBuffer.Map, as: Buffer

  @parts [:puts, :peers, :tail, :flush, :kill, :replay, :memory, :outage, :base]

  @keys 200_000
  @million 1_000_000
  @mib 1_048_576
  # The default.
  @write_ms 5
  @ms 1_000_000

  def main(argv) do
    {options, [], []} =
      OptionParser.parse(argv, strict: [only: :string, dir: :string, base: :string, rounds: :integer])

    Runner.release!()
    names = Map.new(@parts, &{to_string(&1), &1})
    only = options[:only]
    parts = if only, do: only |> String.split(",") |> Enum.map(&Map.fetch!(names, &1)), else: @parts
    name = "partitioned_buffer_journal_#{System.unique_integer([:positive])}_#{System.pid()}"
    dir = Path.join(options[:dir] || System.tmp_dir!(), name)
    File.mkdir_p!(dir)
    Bars.start(if only, do: nil, else: Path.join(__DIR__, "journal.txt"))

    try do
      for part <- parts, do: part(part, dir, options)
    after
      File.rm_rf!(dir)
    end
  end

  ## The processor time of puts

  defp part(:puts, dir, options) do
    rounds = Keyword.get(options, :rounds, 15)
    hot = for {_key, value} <- entries(:map), do: {:hot, value}

    for {name, entries, bars} <- [
          {"put int→map of 4", entries(:map), [1.05, 1.15]},
          {"put int→int", entries(:int), [1.20, 1.20]},
          {"put binary 13→binary 16", entries(:binary), [1.10, 1.35]},
          {"put one hot key→map of 4", hot, [1.05, 1.20]}
        ],
        {bar, writers} <- Enum.with_index(bars, 1) do
      turns = puts(dir, entries, writers, rounds, [])
      figures("#{name}, #{writers(writers)}", {:most, bar}, ratios(turns, :journal, :plain), &times/1)
      figures("  without", nil, pluck(turns, :plain), &Report.format/1)
      if entries == hot, do: hot_records(turns)
    end

    # A log that is not written anew meanwhile has a record for each put.
    turns = puts(dir, entries(:map), 1, rounds, max_bytes: 4_096 * @mib)
    figures("thread, an entry of map of 4, to a put", {:most, 0.8}, ratios(turns, :thread, :plain), &times/1)
    figures("  an entry", nil, pluck(turns, :thread), &Report.format/1)
  end

  defp part(:peers, dir, options) do
    dir = Path.join(dir, "peers")
    File.mkdir_p!(dir)
    args = [dir, Keyword.get(options, :rounds, 9), 20_000]
    all = in_vm(&JournalVm.call(&1, JournalPeers, :run, args))

    for {way, name, bar} <- [
          {:alog, "whole VM, an entry, to ets + disk_log:alog", 0.4},
          {:sqlite, "whole VM, an entry, to SQLite, WAL, 500 rows", 0.3},
          {:redis, "whole VM, an entry, to Redis, AOF, 50 pipelined", 0.3}
        ] do
      case all do
        %{^way => others} -> figures(name, {:most, bar}, ratios(all.journal, others), &times/1)
        %{} -> row(name, "≤ #{times(bar)}", "", "not installed", "")
      end
    end

    for {way, name} <- [
          journal: "buffer with a journal",
          memory: "buffer without",
          ets: "ets",
          alog: "ets + disk_log:alog",
          log: "ets + disk_log:log",
          delayed_write: "ets + a file with delayed_write",
          write: "ets + a raw file",
          sqlite: "SQLite",
          redis: "Redis, the server"
        ],
        figures = all[way],
        do: figures("  #{name}", nil, figures, &Report.format/1)
  end

  ## Latencies

  defp part(:tail, dir, options) do
    entries = entries(:map)
    start_both(dir, [])
    for name <- [:plain, :journal], do: each_put(name, entries)

    turns =
      while_disk_is_busy(dir, fn ->
        for _turn <- 1..Keyword.get(options, :rounds, 15),
            do: %{
              plain: latencies(:plain, entries, 1),
              two: latencies(:plain, entries, 2),
              journal: latencies(:journal, entries, 1)
            }
      end)

    stop_both(entries)
    tails = fn way -> for turn <- turns, do: Histogram.percentile(turn[way], 0.999) end

    late = fn way ->
      mean(for turn <- turns, do: @million * Histogram.above(turn[way], @ms) / Histogram.count(turn[way]))
    end

    figures(
      "p99.9 of a put while the disk is busy",
      {:most, 1.5},
      ratios(tails.(:journal), tails.(:plain)),
      &times/1
    )

    figures("  with a journal", nil, tails.(:journal), &Report.format/1)
    figures("  without", nil, tails.(:plain), &Report.format/1)
    # The bar: a thread holds a shard up no more often than another writer does.
    figures("puts over 1 ms of a million then, 1 writer", {:most, late.(:two)}, [late.(:journal)], &times/1)
    figures("  without, 1 writer", nil, [late.(:plain)], &times/1)
    figures("  without, 2 writers", nil, [late.(:two)], &times/1)
  end

  defp part(:flush, dir, options) do
    flushes("flush of an entry", dir, 1, 1, Keyword.get(options, :rounds, 200))
    flushes("flush of 1000 batches", dir, 1_000, 1, Keyword.get(options, :rounds, 15))
  end

  ## What is kept

  defp part(:kill, dir, options) do
    for {name, bar, pace} <- [
          {"lost at kill -9, 100 entries a ms", {:most, @write_ms + 5}, 100},
          {"lost at kill -9, as fast as one can", nil, :fast}
        ] do
      rounds = for _round <- 1..Keyword.get(options, :rounds, 15), do: killed(dir, pace)
      ages = pluck(rounds, :age_ms)
      # The bar is about the worst round.
      figures(name, bar, ages, &"#{times(&1)} ms", Enum.max(ages))
      figures("  worst round", nil, [Enum.max(ages)], &"#{times(&1)} ms")
      figures("  entries", nil, pluck(rounds, :missing), &whole/1)
      figures("  acknowledged", nil, pluck(rounds, :acknowledged), &whole/1)
    end
  end

  defp part(:replay, dir, options) do
    for {kind, name, bar} <- [
          {:map, "int→map of 4", 500_000},
          {:binary, "binary 13→binary 16", 1_000_000}
        ] do
      dir = Path.join(dir, "replay_#{kind}")
      %{dir: path} = in_vm(&JournalVm.call(&1, :make_journal, [dir, kind, @keys]))
      check(path, entries(kind))

      speeds =
        for _round <- 1..Keyword.get(options, :rounds, 9) do
          {ns, @keys} = in_vm(&JournalVm.call(&1, :replay, [dir]))
          1.0e9 * @keys / ns
        end

      check(path, entries(kind))
      figures("replay, entries a second, #{name}", {:least, bar}, speeds, &whole/1)
    end
  end

  defp part(:memory, dir, options) do
    turns =
      for turn <- 1..Keyword.get(options, :rounds, 5) do
        dir = Path.join(dir, "memory_#{turn}")
        memory = fn opts -> in_vm(&JournalVm.call(&1, :memory, [opts, :int, @million])) end
        {held, most} = memory.([])
        {unwritten, most_at_once} = memory.(journal: [dir: Path.join(dir, "at_once"), write_ms: 60_000])
        {_held, most_in_turn} = memory.(journal: Path.join(dir, "in_turn"))
        File.rm_rf!(dir)
        %{unwritten: unwritten - held, at_once: most_at_once - most, in_turn: most_in_turn - most}
      end

    megabytes = &"#{times(&1 / @million)} MB"
    unwritten = for %{unwritten: bytes} <- turns, do: bytes / @million
    figures("memory, bytes an unwritten entry", {:most, 5}, unwritten, &times/1)
    # A million entries, and 8 MB.
    bar = {:most, 13 * @million}
    figures("  most, a million written in one pass", bar, pluck(turns, :at_once), megabytes)
    figures("  most, a million written as they come", bar, pluck(turns, :in_turn), megabytes)
  end

  defp part(:outage, dir, _options) do
    for mib <- [64, 4] do
      max_bytes = mib * @mib
      samples = outage(Path.join(dir, "outage_#{mib}"), max_bytes)
      shares = for {bytes, held} <- samples, do: bytes / (2 * held + max_bytes)
      worst = Enum.max(shares)
      figures("disk in an outage, to 2 × held + #{mib} MiB", {:most, 1}, shares, &times/1, worst)
      figures("  worst", nil, [worst], &times/1)
      {most, held} = Enum.max(samples)
      figures("  most", nil, [most], &"#{times(&1 / @mib)} MiB")
      figures("  held then", nil, [held], &"#{times(&1 / @mib)} MiB")
    end
  end

  defp part(:base, _dir, options) do
    if base = options[:base],
      do: beside(Path.expand(base), Keyword.get(options, :rounds, 9)),
      else: row("put without the option, to the build before", "≤ 1.01", "", "needs --base", "")
  end

  ## Rounds of puts

  # Each key once, in the order of the keys. All are there: the first round, which is not measured, puts them.
  defp puts(dir, entries, writers, rounds, opts) do
    start_both(dir, opts)
    parts = Enum.chunk_every(entries, div(length(entries), writers))
    [_first | turns] = for turn <- 0..rounds, do: turn(turn, parts)
    stop_both(entries)
    turns
  end

  defp turn(turn, parts) do
    names = if rem(turn, 2) == 0, do: [:plain, :journal], else: [:journal, :plain]
    Enum.reduce(names, %{}, &Map.merge(&2, measure(&1, parts)))
  end

  defp measure(:plain, parts), do: %{plain: write(:plain, parts)}

  defp measure(:journal, parts) do
    %{bytes: before} = PartitionedBuffer.info(:journal).journal
    started = System.monotonic_time(:millisecond)

    {thread, put} =
      Cpu.of(:journal, fn ->
        put = write(:journal, parts)
        :ok = PartitionedBuffer.sync(:journal, level: :written, timeout: 60_000)
        put
      end)

    passes = div(System.monotonic_time(:millisecond) - started, @write_ms) + 2
    %{bytes: later} = PartitionedBuffer.info(:journal).journal
    # The same key again: the bytes of a pass with one record.
    {[{key, value} | _], _parts} = {hd(parts), parts}
    Buffer.put(:journal, key, value)
    :ok = PartitionedBuffer.sync(:journal, level: :written)
    %{bytes: last} = PartitionedBuffer.info(:journal).journal
    records = div(later - before, max(last - later, 1))
    %{journal: put, thread: thread / @keys, records: records, passes: passes}
  end

  defp hot_records(turns) do
    passes = turns |> pluck(:passes) |> Report.median()
    figures("  records of #{@keys} puts", {:most, passes}, pluck(turns, :records), &whole/1)
  end

  defp write(name, parts) do
    pids = Runner.ready(for part <- parts, do: fn -> each_put(name, part) end)
    {ns, _done} = Cpu.of(:schedulers, fn -> Runner.release(pids) end)
    ns / @keys
  end

  defp each_put(name, [{key, value} | rest]) do
    Buffer.put(name, key, value)
    each_put(name, rest)
  end

  defp each_put(_name, []), do: :ok

  ## Latencies

  # Writers wrap around for half a second. Each put is timed; what lies between two puts is not.
  defp latencies(name, entries, writers) do
    histogram = Histogram.new()
    until = System.monotonic_time(:nanosecond) + 500 * @ms
    parts = Enum.chunk_every(entries, div(length(entries), writers))

    Runner.release(
      Runner.ready(for part <- parts, do: fn -> timed_puts(name, part, part, until, histogram) end)
    )

    histogram
  end

  defp timed_puts(name, [{key, value} | rest], all, until, histogram) do
    started = System.monotonic_time(:nanosecond)
    Buffer.put(name, key, value)
    ended = System.monotonic_time(:nanosecond)
    Histogram.add(histogram, ended - started)
    if ended < until, do: timed_puts(name, rest, all, until, histogram), else: :ok
  end

  defp timed_puts(name, [], all, until, histogram), do: timed_puts(name, all, all, until, histogram)

  defp while_disk_is_busy(dir, function) do
    busy = Path.join(dir, "busy")
    File.write!(busy, "")

    script =
      "while [ -e '#{busy}' ]; do dd if=/dev/zero of='#{busy}.data' bs=1M count=64 conv=fsync 2>/dev/null; done"

    port = Port.open({:spawn_executable, "/bin/sh"}, [:exit_status, args: ["-c", script]])
    Process.sleep(1_000)
    result = function.()
    File.rm!(busy)
    receive do: ({^port, {:exit_status, 0}} -> result)
  end

  defp flushes(title, dir, count, batch_size, rounds) do
    ways = [plain: nil, synced: 1_000, written: :infinity]

    for {name, sync_ms} <- ways do
      journal = if sync_ms, do: [journal: [dir: dir, sync_ms: sync_ms]], else: []
      JournalVm.start_buffer(name, [partitions: 1, processing_batch_size: batch_size] ++ journal)
    end

    [_first | turns] =
      for turn <- 0..rounds, do: Map.new(ways, fn {name, _} -> {name, flush(name, count, turn)} end)

    for {name, _sync_ms} <- ways, do: :ok = PartitionedBuffer.stop(name)

    for {way, name} <- [plain: "without", synced: "sync_ms: 1000", written: "sync_ms: :infinity"],
        do: figures("#{title}, #{name}", nil, pluck(turns, way), &Report.format/1)
  end

  defp flush(name, count, turn) do
    for n <- 1..count, do: Buffer.put(name, {turn, n}, n)
    started = System.monotonic_time(:nanosecond)
    :ok = PartitionedBuffer.flush(name)
    ended = System.monotonic_time(:nanosecond)
    0 = PartitionedBuffer.buffer_size(name)
    ended - started
  end

  ## What is kept

  defp killed(dir, pace) do
    dir = Path.join(dir, "killed")
    pipe = dir <> ".pipe"
    {"", 0} = System.cmd("mkfifo", [pipe])
    cat = Port.open({:spawn_executable, System.find_executable("cat")}, [:binary, :exit_status, args: [pipe]])
    peer = JournalVm.start()
    :peer.cast(peer, JournalVm, :write_until_killed, [dir, pipe, pace])
    lines = read_for(cat, 300 + :rand.uniform(300), "")
    JournalVm.kill(peer)
    notes = lines |> read_all(cat) |> notes()
    {last, ended} = List.last(notes)
    {:ok, %{entries: entries, damaged: []}} = Journal.read(Path.join([dir, "killed", "map"]))
    for {key, value, _version, _updates} <- entries, do: ^value = JournalVm.small_map(key)
    kept = MapSet.new(entries, &elem(&1, 0))
    missing = Enum.reject(1..last, &MapSet.member?(kept, &1))
    File.rm_rf!(dir)
    File.rm!(pipe)
    %{acknowledged: last, missing: length(missing), age_ms: age(missing, notes, ended) / 1_000}
  end

  defp age([], _notes, _ended), do: 0.0

  defp age([oldest | _], notes, ended) do
    {_last, at} = Enum.find(notes, fn {last, _at} -> last >= oldest end)
    ended - at
  end

  defp read_for(cat, ms, lines) do
    Process.send_after(self(), :enough, ms)
    read_until_enough(cat, lines)
  end

  defp read_until_enough(cat, lines) do
    receive do
      {^cat, {:data, data}} -> read_until_enough(cat, [lines | data])
      :enough -> lines
    end
  end

  defp read_all(lines, cat) do
    receive do
      {^cat, {:data, data}} -> read_all([lines | data], cat)
      {^cat, {:exit_status, 0}} -> IO.iodata_to_binary(lines)
    end
  end

  defp notes(lines) do
    for line <- String.split(lines, "\n", trim: true) do
      [last, at] = String.split(line)
      {String.to_integer(last), String.to_integer(at)}
    end
  end

  # The sizes of files and memory from time to time, while each key is written a hundred times and nothing is stored.
  defp outage(dir, max_bytes) do
    {keys, writes, away} = {20_000, 100, :atomics.new(1, [])}

    JournalVm.start_buffer(:outage,
      journal: [dir: dir, max_bytes: max_bytes],
      processor: fn _batch -> if :atomics.get(away, 1) == 0, do: {:error, :away}, else: :ok end,
      processing_interval_ms: 100,
      retry_backoff_ms: {50, 200}
    )

    path = PartitionedBuffer.info(:outage).journal.dir
    sampler = Task.async(fn -> sample(path, []) end)
    for write <- 1..writes, key <- 1..keys, do: Buffer.put(:outage, key, JournalVm.small_map(key + write))
    :ok = PartitionedBuffer.sync(:outage, timeout: 60_000)
    send(sampler.pid, :enough)
    samples = Task.await(sampler)
    check(path, for(key <- 1..keys, do: {key, JournalVm.small_map(key + writes)}))
    :atomics.put(away, 1, 1)
    :ok = PartitionedBuffer.stop(:outage)
    samples
  end

  defp sample(path, samples) do
    held = PartitionedBuffer.info(:outage).bytes
    samples = [{bytes(path), held} | samples]
    receive do: (:enough -> samples), after: (10 -> sample(path, samples))
  end

  # A file may go meanwhile.
  defp bytes(path) do
    for file <- File.ls!(path), {:ok, %{size: size}} <- [File.stat(Path.join(path, file))], reduce: 0 do
      sum -> sum + size
    end
  end

  ## Another build

  defp beside(base, rounds) do
    own = Application.app_dir(:partitioned_buffer, "ebin")
    other = Path.join(base, Path.relative_to(own, Path.expand("..", __DIR__)))
    true = File.dir?(other)

    turns =
      for turn <- 1..rounds,
          do: for(ebin <- in_turn(turn, [own, other]), into: %{}, do: {ebin, put_path(ebin)})

    [%{^own => operations} | _] = turns

    for {name, _times} <- operations do
      {times, others} = {pluck(turns, own, name), pluck(turns, other, name)}
      figures("without the option: #{name}", {:most, 1.01}, ratios(times, others), &times/1)
      figures("  least", nil, [Enum.min(times) / Enum.min(others)], &times/1)
      figures("  before", nil, others, &Report.format/1)
    end
  end

  defp in_turn(turn, all), do: if(rem(turn, 2) == 0, do: all, else: Enum.reverse(all))

  # Of each operation the least time of the rounds of a VM.
  defp put_path(ebin) do
    args = ["--erl", "+sbwt none", "-pa", ebin, Path.join(__DIR__, "support/put_path.exs")]
    {output, 0} = System.cmd("elixir", args)

    for line <- String.split(output, "\n", trim: true) do
      [name | times] = String.split(line, "\t")
      {name, times |> Enum.map(&String.to_float/1) |> Enum.min()}
    end
  end

  defp pluck(turns, build, name), do: for(%{^build => times} <- turns, do: :proplists.get_value(name, times))

  ## Buffers and journals

  defp start_both(dir, opts) do
    JournalVm.start_buffer(:plain, [])
    JournalVm.start_buffer(:journal, journal: [dir: dir] ++ opts)
  end

  # The journal has the entries. Both are flushed.
  defp stop_both(entries) do
    :ok = PartitionedBuffer.sync(:journal, timeout: 60_000)
    check(PartitionedBuffer.info(:journal).journal.dir, entries)
    for name <- [:plain, :journal], do: :ok = PartitionedBuffer.stop(name)
  end

  defp check(path, entries) do
    {:ok, %{entries: kept, damaged: [], damaged_records: 0}} = Journal.read(path)
    kept = Map.new(kept, fn {key, value, _version, _updates} -> {key, value} end)
    # Of one key the last one, or any: several write it.
    wanted = Map.new(entries)
    true = map_size(kept) == map_size(wanted)

    unless map_size(wanted) == 1 or kept == wanted,
      do: raise("the journal in #{path} has other entries than the buffer")
  end

  defp in_vm(function) do
    peer = JournalVm.start()
    result = function.(peer)
    JournalVm.kill(peer)
    result
  end

  defp entries(kind), do: for(n <- 1..@keys, do: JournalVm.entry(kind, n))
  defp writers(1), do: "1 writer"
  defp writers(count), do: "#{count} writers"

  defp pluck(turns, name), do: Enum.map(turns, & &1[name])
  defp ratios(turns, one, other), do: ratios(pluck(turns, one), pluck(turns, other))
  defp ratios(ones, others), do: Enum.zip_with(ones, others, &(&1 / &2))
end

Logger.configure(level: :error)
JournalBench.main(System.argv())
