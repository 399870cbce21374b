# Every operation of the Map and of the Counter beside raw ETS, and those of the Map beside the documented ETS design, in one
# VM and in alternation.
#
#     mix run bench/compare.exs [PART OF A SCENARIO'S NAME]
#
# Prints a table and, without an argument, writes bench/results.json and bench/*.svg. Contents are checked after each
# scenario. Latency, memory and the longest NIF call are measured by bench/limits.exs.

for file <- ~w(candidates report runner), do: Code.require_file("support/#{file}.ex", __DIR__)

defmodule Compare do
  alias Bench.{Report, Runner}

  @keys 100_000
  @candidates [Bench.Ets, Bench.Lean, Bench.NativeOne, Bench.Native]
  # What `:max_size` and `:processing_threshold` cost.
  @limited [Bench.Native, Bench.NativeBound, Bench.NativeThreshold]
  @counters [Bench.EtsCounter, Bench.EtsSum, Bench.EtsPlain, Bench.CounterOne, Bench.Counter]

  def main(argv) do
    Runner.release!()

    IO.puts(
      "#{Report.machine()}\n#{Runner.rounds()} rounds in alternation, medians, in brackets 10% to 90%\n"
    )

    filter = List.first(argv) || ""
    results = scenarios() |> Enum.filter(&(&1.name =~ filter)) |> Runner.run(@candidates)
    IO.puts("\nwith a limit that is not reached\n")
    for(n <- [1, 2, 4], do: new_keys(n)) |> Enum.filter(&(&1.name =~ filter)) |> Runner.run(@limited)
    IO.puts("\ncounters\n")
    counted = counting() |> Enum.filter(&(&1.name =~ filter)) |> Runner.run(@counters)
    if filter == "", do: write(results, counted)
  end

  ## Scenarios: ops is how many operations `run` does; `prepare` is not measured.

  defp scenarios do
    ints = Enum.to_list(1..@keys)

    puts = [
      {"put int→int", Enum.map(ints, &{&1, &1})},
      {"put int→map of 4", Enum.map(ints, &{&1, small_map(&1)})},
      {"put {atom, int}→map of 4", Enum.map(ints, &{{:user, &1}, small_map(&1)})},
      {"put binary 13→binary 16", Enum.map(ints, &{<<"user:", &1::64>>, <<&1::128>>})},
      {"put int→300 words", Enum.map(1..5_000, &{&1, Enum.to_list(&1..(&1 + 149))})},
      {"put int→binary of 100 kB", Enum.map(1..500, &{&1, :binary.copy(<<&1>>, 100_000)})},
      {"put one hot key→map of 4", Enum.map(ints, &{:hot, small_map(&1)})}
    ]

    for({name, entries} <- puts, do: overwrite(name, entries, entries)) ++
      for(
        {name, entries} <- Enum.take(puts, 3),
        do: overwrite(name <> ", keys in random order", entries, shuffle(entries))
      ) ++
      [
        fresh("put a new key, int→map of 4", Enum.map(ints, &{&1, small_map(&1)})),
        get("get int, hit", ints, 0),
        get("get int, miss", ints, @keys)
      ] ++
      for(
        {name, from, to} <- [{"fresh", nil, 1}, {"that updates", 1, 2}, {"that is stale", 2, 1}],
        do: newer(name, from, to)
      ) ++
      for(size <- [10, 1_000], do: put_all(size)) ++
      for(size <- [10, 1_000], do: put_all_newer(size)) ++
      [delete(ints)] ++
      for(flush <- [false, true], n <- [1, 2, 4], do: writers(n, flush)) ++
      for(size <- [10, 1_000], do: flush(size)) ++
      [stop(), size()]
  end

  defp small_map(n), do: %{id: n, name: "user", count: n, active: true}

  # Keys that are there are put again, two times over.
  defp overwrite(name, entries, order) do
    size = entries |> Enum.uniq_by(&elem(&1, 0)) |> length()

    %{
      name: name,
      ops: 2 * length(entries),
      prepare: &filled(&1, entries),
      run: fn mod, h -> for _ <- 1..2, do: each_put(mod, h, order) end,
      check: holds(order, size)
    }
  end

  defp fresh(name, entries) do
    %{
      name: name,
      ops: length(entries),
      prepare: & &1.new([]),
      run: &each_put(&1, &2, entries),
      check: holds(entries, length(entries))
    }
  end

  defp get(name, ints, offset) do
    keys = Enum.map(ints, &(&1 + offset))

    %{
      name: name,
      ops: length(keys),
      prepare: &filled(&1, Enum.map(ints, fn n -> {n, n} end)),
      run: &each_get(&1, &2, keys),
      check: fn mod, h -> Enum.all?(Enum.take(keys, 1_000), &(mod.get(h, &1) == if(offset == 0, do: &1))) end
    }
  end

  defp newer(name, from, to) do
    entries = Enum.map(1..div(@keys, 4), &{&1, small_map(&1)})

    %{
      name: "put_newer #{name}, int→map of 4",
      ops: length(entries),
      prepare: fn mod ->
        handle = mod.new([])
        if from, do: each_put_newer(mod, handle, Enum.map(entries, fn {k, _} -> {k, :old} end), from)
        handle
      end,
      run: &each_put_newer(&1, &2, entries, to),
      check:
        &(&1.size(&2) == length(entries) and &1.get(&2, 7) == if(from == 2, do: :old, else: small_map(7)))
    }
  end

  defp put_all(size) do
    entries = Enum.map(1..@keys, &{&1, small_map(&1)})
    chunks = Enum.chunk_every(entries, size)

    %{
      name: "put_all of #{size}, per entry",
      ops: @keys,
      prepare: &filled(&1, entries),
      run: fn mod, h -> Enum.each(chunks, &mod.put_all(h, &1)) end,
      check: holds(entries, @keys)
    }
  end

  defp put_all_newer(size) do
    count = div(@keys, 4)
    chunks = Enum.map(1..count, &{&1, small_map(&1), 2}) |> Enum.chunk_every(size)

    %{
      name: "put_all_newer of #{size}, per entry",
      ops: count,
      prepare: fn mod ->
        handle = mod.new([])
        each_put_newer(mod, handle, Enum.map(1..count, &{&1, :old}), 1)
        handle
      end,
      run: fn mod, h -> Enum.each(chunks, &mod.put_all_newer(h, &1)) end,
      check: &(&1.size(&2) == count and &1.get(&2, 7) == small_map(7))
    }
  end

  defp delete(ints) do
    keys = ints

    %{
      name: "delete int",
      ops: length(keys),
      prepare: &filled(&1, Enum.map(ints, fn n -> {n, small_map(n)} end)),
      run: fn mod, h -> Enum.each(keys, &mod.delete(h, &1)) end,
      check: &(&1.size(&2) == 0)
    }
  end

  defp writers(count, flush?) do
    entries = Enum.map(1..@keys, &{&1, small_map(&1)})
    parts = for n <- 1..count, do: Enum.drop(entries, n * 1_000) ++ Enum.take(entries, n * 1_000)

    %{
      name: "put int→map, #{count} writers" <> if(flush?, do: ", flushed each 10 ms", else: ""),
      ops: Enum.sum(Enum.map(parts, &length/1)),
      prepare: fn mod ->
        handle = if flush?, do: mod.new([]), else: filled(mod, entries)

        pids = Runner.ready(for part <- parts, do: fn -> each_put(mod, handle, part) end)
        flusher = if flush? and mod != Bench.Ets, do: spawn_link(fn -> flush_each_10_ms(mod, handle) end)
        {handle, pids, flusher}
      end,
      run: fn _mod, {_handle, pids, _flusher} -> Runner.release(pids) end,
      finish: fn _mod, {handle, _pids, flusher} ->
        if flusher do
          send(flusher, {:stop, self()})
          receive do: (:stopped -> :ok)
        end

        handle
      end,
      check: if(flush?, do: fn _mod, _handle -> true end, else: holds(entries, @keys))
    }
  end

  # Each of them needs room, and counts for the threshold.
  defp new_keys(count) do
    parts = for n <- 1..count, do: Enum.map(1..div(@keys, count), &{{n, &1}, &1})

    %{
      name: "put a new key, {int, int}→int, #{count} writers",
      ops: Enum.sum(Enum.map(parts, &length/1)),
      prepare: fn mod ->
        handle = mod.new([])
        {handle, Runner.ready(for part <- parts, do: fn -> each_put(mod, handle, part) end)}
      end,
      run: fn _mod, {_handle, pids} -> Runner.release(pids) end,
      finish: fn _mod, {handle, _pids} -> handle end,
      check: holds(Enum.concat(parts), @keys)
    }
  end

  ## Counters

  defp counting do
    ints = Enum.to_list(1..@keys)
    pages = Enum.map(ints, &{:page, "/posts/#{&1}"})
    hot = List.duplicate(:hot, @keys)

    [
      add("add to int", ints, ints, 1),
      add("add to int, keys in random order", ints, shuffle(ints), 1),
      add("add to int, 2 writers", ints, ints, 2),
      add("add to one hot key", hot, hot, 1),
      add("add to one hot key, 2 writers", hot, hot, 2),
      add("add to {atom, binary}", pages, pages, 1),
      add("add to {atom, binary}, keys in random order", pages, shuffle(pages), 1),
      add_new(ints),
      add_all(ints, 10),
      add_all(ints, 1_000),
      get_sum(ints),
      flush_counters(1_000_000)
    ]
  end

  # Each writer adds to all keys, which are there.
  defp add(name, keys, order, count) do
    size = keys |> Enum.uniq() |> length()
    rounds = 2

    %{
      name: name,
      ops: rounds * count * length(keys),
      prepare: fn mod ->
        handle = counted(mod, keys)
        # The writers begin at different keys.
        parts = for n <- 1..count, do: Enum.drop(order, n * 1_000) ++ Enum.take(order, n * 1_000)
        add = fn part -> fn -> for(_ <- 1..rounds, do: each_add(mod, handle, part)) && :ok end end
        {handle, Runner.ready(Enum.map(parts, add))}
      end,
      run: fn _mod, {_handle, pids} -> Runner.release(pids) end,
      finish: fn _mod, {handle, _pids} -> handle end,
      check: sums_to(keys, size, (1 + rounds * count) * div(length(keys), size))
    }
  end

  defp add_new(keys) do
    %{
      name: "add to a new int",
      ops: length(keys),
      prepare: & &1.new([]),
      run: &each_add(&1, &2, keys),
      check: sums_to(keys, length(keys), 1)
    }
  end

  defp add_all(keys, size) do
    chunks = keys |> Enum.map(&{&1, 1}) |> Enum.chunk_every(size)

    %{
      name: "add_all of #{size}, per entry",
      ops: length(keys),
      prepare: &counted(&1, keys),
      run: fn mod, handle -> Enum.each(chunks, &mod.add_all(handle, &1)) end,
      check: sums_to(keys, length(keys), 2)
    }
  end

  defp get_sum(keys) do
    %{
      name: "get the sum of int",
      ops: length(keys),
      prepare: &counted(&1, keys),
      run: &each_get(&1, &2, keys),
      check: sums_to(keys, length(keys), 1)
    }
  end

  defp flush_counters(count) do
    %{
      drained?: true,
      name: "flush of a million counters in thousands, per entry",
      ops: count,
      rounds: 2,
      prepare: fn mod ->
        handle = mod.new([])
        for chunk <- Enum.chunk_every(1..count, 10_000), do: mod.add_all(handle, for(n <- chunk, do: {n, n}))
        {handle, :counters.new(1, [])}
      end,
      run: fn mod, {handle, counter} ->
        sum = fn batch -> :counters.add(counter, 1, batch |> Enum.map(&elem(&1, 1)) |> Enum.sum()) end
        fn -> mod.drain(handle, 1_000, sum) end |> Task.async() |> Task.await(:infinity)
      end,
      finish: fn _mod, {handle, counter} ->
        Process.put(:flushed, :counters.get(counter, 1))
        handle
      end,
      check: fn _mod, _handle -> Process.get(:flushed) == div(count * (count + 1), 2) end
    }
  end

  defp counted(mod, keys) do
    handle = mod.new([])
    each_add(mod, handle, keys)
    handle
  end

  defp each_add(mod, handle, [key | rest]) do
    mod.add(handle, key, 1)
    each_add(mod, handle, rest)
  end

  defp each_add(_mod, _handle, []), do: :ok

  defp sums_to(keys, size, sum) do
    sample = Enum.take_random(keys, 1_000)
    fn mod, handle -> mod.size(handle) == size and Enum.all?(sample, &(mod.get(handle, &1) == sum)) end
  end

  defp flush_each_10_ms(mod, handle) do
    receive do
      {:stop, from} -> send(from, :stopped)
    after
      10 ->
        mod.drain(handle, 1_000, fn _batch -> :ok end)
        flush_each_10_ms(mod, handle)
    end
  end

  defp flush(batch_size) do
    entries = Enum.map(1..@keys, &{&1, small_map(&1)})

    %{
      drained?: true,
      name: "flush in batches of #{batch_size}, per entry",
      ops: @keys,
      prepare: &{filled(&1, entries), :counters.new(1, [])},
      run: fn mod, {handle, counter} ->
        # On a process of its own, as a task does it.
        count = fn batch -> :counters.add(counter, 1, length(batch)) end
        fn -> mod.drain(handle, batch_size, count) end |> Task.async() |> Task.await(:infinity)
      end,
      finish: fn _mod, {handle, counter} ->
        Process.put(:flushed, :counters.get(counter, 1))
        handle
      end,
      check: fn _mod, _handle -> Process.get(:flushed) == @keys end
    }
  end

  defp stop do
    entries = Enum.map(1..1_000_000, &{&1, &1})

    %{
      drained?: true,
      name: "stop of a million entries in thousands",
      ops: 1,
      rounds: 1,
      prepare: fn mod ->
        handle =
          if mod in [Bench.Native, Bench.NativeOne],
            do: mod.new(processing_batch_size: 1_000),
            else: mod.new([])

        mod.put_all(handle, entries)
        handle
      end,
      run: fn
        mod, handle when mod in [Bench.Native, Bench.NativeOne] -> mod.free(handle)
        mod, handle -> mod.drain(handle, 1_000, fn _batch -> :ok end)
      end,
      finish: fn mod, handle -> if mod in [Bench.Native, Bench.NativeOne], do: mod.new([]), else: handle end,
      check: fn _mod, _handle -> true end
    }
  end

  defp size do
    %{
      name: "size",
      ops: 10_000,
      prepare: &filled(&1, Enum.map(1..10_000, fn n -> {n, n} end)),
      run: fn mod, h -> for _ <- 1..10_000, do: mod.size(h) end,
      check: &(&1.size(&2) == 10_000)
    }
  end

  defp filled(mod, entries) do
    handle = mod.new([])
    each_put(mod, handle, entries)
    handle
  end

  defp each_put(mod, handle, [{key, value} | rest]) do
    mod.put(handle, key, value)
    each_put(mod, handle, rest)
  end

  defp each_put(_mod, _handle, []), do: :ok

  defp each_put_newer(mod, handle, [{key, value} | rest], version) do
    mod.put_newer(handle, key, value, version)
    each_put_newer(mod, handle, rest, version)
  end

  defp each_put_newer(_mod, _handle, [], _version), do: :ok

  defp each_get(mod, handle, [key | rest]) do
    mod.get(handle, key)
    each_get(mod, handle, rest)
  end

  defp each_get(_mod, _handle, []), do: :ok

  # A check of the size and of the values of some keys, the last of each.
  defp holds(entries, size) do
    sample = entries |> Map.new() |> Enum.take_random(1_000)

    fn mod, h ->
      mod.size(h) == size and Enum.all?(sample, fn {key, value} -> mod.get(h, key) === value end)
    end
  end

  defp shuffle(list) do
    :rand.seed(:exsss, {1, 2, 3})
    Enum.shuffle(list)
  end

  ## Files

  defp write(results, counted) do
    dir = __DIR__

    File.write!(
      Path.join(dir, "results.json"),
      Report.json(%{machine: Report.machine(), rounds: Runner.rounds(), scenarios: results, counters: counted}) <>
        "\n"
    )

    label = Bench.NativeOne.label()

    for {file, title, pattern} <- [
          {"single.svg", "One process: times as fast as raw ETS (one partition)",
           ~r/^(put |get|put_newer|delete|size)(?!.*writers)/},
          {"bulk.svg", "Lists, flush, stop: times as fast as raw ETS (one partition)", ~r/put_all|flush|stop/}
        ] do
      rows =
        for %{name: name, results: all} <- results,
            name =~ pattern,
            r <- all,
            r.candidate == label,
            do: {name, r.ratio}

      File.write!(Path.join(dir, file), Report.svg(title, rows))
    end

    rows =
      for %{name: name, results: all} <- results,
          name =~ "writers",
          r <- all,
          r.candidate == Bench.Native.label(),
          do: {name, r.ratio}

    File.write!(
      Path.join(dir, "writers.svg"),
      Report.svg("Several processes: times as fast as raw ETS", rows)
    )
  end
end

Compare.main(System.argv())
