# How late other processes are while a million entries are flushed, freed, or put in one call: beside ETS doing the
# same, in one VM and in alternation.
#
#     mix run bench/neighbours.exs [PART OF A SCENARIO'S NAME]
#
# Two kinds of neighbours, each measured alone:
#
#   * timers: four processes that want to wake each millisecond, and sleep in between;
#   * steps: one process for each scheduler that wants to act each 100 µs and yields in between, so that no scheduler is
#     ever idle. With them runs, for comparison, a loop that only counts: what any busy process costs its neighbours.
#
# Late is the time from when a process wanted to act until it does. What it misses while it waits counts too: after 5 ms
# without a turn a process of steps has been late 50 times.
#
# Prints a table and, without an argument, writes it to bench/neighbours.txt. Contents are checked after each measurement.

for file <- ~w(candidates report histogram), do: Code.require_file("support/#{file}.ex", __DIR__)

defmodule Bench.Loop do
  @moduledoc "No buffer at all: counts as long as the others may take."

  def label, do: "a loop that counts"
end

defmodule Neighbours do
  alias Bench.{Histogram, Report}
  alias PartitionedBuffer.Native

  @rounds 5
  @million 1_000_000
  @sum div(@million * (@million + 1), 2)
  @candidates [Bench.Loop, Bench.Ets, Bench.NativeOne, Bench.Native]
  @shares [0.5, 0.99, 0.999, 1.0]
  @output Path.join(__DIR__, "neighbours.txt")

  # How often they want to act, in ns, and how many there are.
  @kinds [timers: {1_000_000, 4}, steps: {100_000, System.schedulers_online()}]

  def main(argv) do
    filter = List.first(argv) || ""
    if filter == "", do: File.write!(@output, "")

    say = if filter == "", do: &Report.say(&1, @output), else: &IO.puts/1

    say.(
      "#{Report.machine()}\nmedians of #{@rounds} rounds in alternation, below them 10% to 90% of the rounds"
    )

    for {name, scenario} <- scenarios(), name =~ filter, {kind, _} <- @kinds do
      say.(
        "\n#{kind} while a million entries are #{name}: how late\n" <> row(["" | ~w(takes p50 p99 p99.9 max)])
      )

      for {mod, rounds} <- run(scenario, kind), do: say.(lines(mod, rounds))
    end
  end

  ## Scenarios: `prepare` gives a handle and what else `run` needs; `run` is what the neighbours see; `check` looks whether it was done.

  defp scenarios do
    [
      {"flushed in tens and freed", flush(10)},
      {"flushed in thousands and freed", flush(1_000)},
      {"freed", free()},
      {"put in one call", put_all()}
    ]
  end

  defp flush(size) do
    %{
      prepare: &{filled(&1), :counters.new(2, [])},
      run: fn mod, {handle, counter} ->
        mod.drain(handle, size, fn batch ->
          :counters.add(counter, 1, length(batch))
          :counters.add(counter, 2, sum_of_keys(batch, 0))
        end)

        freed(mod)
      end,
      check: fn mod, {handle, counter} ->
        counted = {:counters.get(counter, 1), :counters.get(counter, 2)}
        counted == {@million, @sum} and empty?(mod, handle)
      end
    }
  end

  defp free do
    %{
      prepare: fn
        Bench.Ets -> {filled(Bench.Ets), nil}
        mod -> mod |> filled() |> then(&{&1, leased(&1)})
      end,
      run: fn
        Bench.Ets, {{table, _}, nil} ->
          :ets.delete(table)

        mod, {_name, flushes} ->
          Enum.each(flushes, &Native.succeed/1)
          freed(mod)
      end,
      check: fn mod, {handle, _flushes} -> empty?(mod, handle) end
    }
  end

  # The flushes of all partitions, each with all its entries in one batch, which frees them at its end.
  defp leased(name) do
    for n <- 0..(Native.partition_count(name) - 1) do
      {:fresh, flush} = Native.flush(Native.run(name), n)
      read_all(flush, 0)
      0 = Native.lease(flush, true)
      flush
    end
  end

  defp read_all(flush, length) do
    {_entries, length, complete?} = Native.read(flush, length, @million, false)
    unless complete?, do: read_all(flush, length)
  end

  defp put_all do
    %{
      prepare: &{&1.new([]), Enum.map(1..@million, fn n -> entry(n) end)},
      run: fn mod, {handle, entries} -> mod.put_all(handle, entries) end,
      check: fn mod, {handle, _entries} ->
        sample = for _ <- 1..1_000, do: entry(:rand.uniform(@million))
        mod.size(handle) == @million and Enum.all?(sample, fn {k, v} -> mod.get(handle, k) === v end)
      end
    }
  end

  defp entry(n), do: {n, %{id: n, name: "user", count: n, active: true}}

  defp filled(mod) do
    handle = mod.new([])
    for chunk <- Stream.chunk_every(1..@million, 10_000), do: mod.put_all(handle, Enum.map(chunk, &entry/1))
    mod.size(handle) == @million || raise "#{inspect(mod)} does not hold what was put"
    handle
  end

  defp sum_of_keys([entry | rest], sum), do: sum_of_keys(rest, sum + elem(entry, 0))
  defp sum_of_keys([], sum), do: sum

  # What the reclaimer frees is part of it.
  defp freed(Bench.Ets), do: :ok
  defp freed(_mod), do: Native.await_reclaimed()

  defp empty?(Bench.Ets, {table, _}), do: :ets.info(table) == :undefined
  defp empty?(mod, name), do: mod.size(name) == 0 and PartitionedBuffer.memory().environments == 0

  ## Running

  defp run(scenario, kind) do
    candidates = if kind == :steps, do: @candidates, else: @candidates -- [Bench.Loop]
    for mod <- candidates, do: measure(mod, scenario, kind)
    rounds = for _ <- 1..@rounds, do: Map.new(candidates, &{&1, measure(&1, scenario, kind)})
    for mod <- candidates, do: {mod, Enum.map(rounds, & &1[mod])}
  end

  # How long it took, and the percentiles of the neighbours; on a process of its own.
  defp measure(Bench.Loop, _scenario, kind) do
    in_process(fn ->
      observed(kind, fn -> count_until(System.monotonic_time(:millisecond) + 500, 0) end)
    end)
  end

  defp measure(mod, scenario, kind) do
    in_process(fn ->
      {handle, _rest} = state = scenario.prepare.(mod)
      :erlang.garbage_collect()
      figures = observed(kind, fn -> scenario.run.(mod, state) end)
      scenario.check.(mod, state) || raise "#{inspect(mod)} holds something else than it should"
      mod.free(handle)
      figures
    end)
  end

  defp in_process(function), do: function |> Task.async() |> Task.await(:infinity)

  # A million steps take some milliseconds.
  defp count_until(deadline, count) do
    if rem(count, 100_000) == 0 and System.monotonic_time(:millisecond) >= deadline,
      do: count,
      else: count_until(deadline, count + 1)
  end

  defp observed(kind, function) do
    {interval, processes} = @kinds[kind]
    histogram = Histogram.new()
    me = self()

    neighbours =
      for _ <- 1..processes do
        spawn_link(fn ->
          send(me, {:ready, self()})
          # A whole number of milliseconds, which timers count in.
          start = (System.monotonic_time(:millisecond) + 1) * 1_000_000
          act(kind, interval, start, histogram)
        end)
      end

    for pid <- neighbours, do: receive(do: ({:ready, ^pid} -> :ok))
    started = System.monotonic_time(:nanosecond)
    function.()
    elapsed = System.monotonic_time(:nanosecond) - started
    for pid <- neighbours, do: send(pid, {:stop, me})
    for pid <- neighbours, do: receive(do: ({:stopped, ^pid} -> :ok))
    [elapsed | Enum.map(@shares, &Histogram.percentile(histogram, &1))]
  end

  defp act(:timers, interval, due, histogram) do
    timer = :erlang.start_timer(div(due, 1_000_000), self(), :due, abs: true)

    receive do
      {:timeout, ^timer, :due} -> act(:timers, interval, late(due, interval, histogram), histogram)
      {:stop, from} -> send(from, {:stopped, self()})
    end
  end

  defp act(:steps, interval, due, histogram) do
    :erlang.yield()
    due = late(due, interval, histogram)

    receive do
      {:stop, from} -> send(from, {:stopped, self()})
    after
      0 -> act(:steps, interval, due, histogram)
    end
  end

  # Counts all that was due until now; returns what is due next.
  defp late(due, interval, histogram) do
    late(due, interval, histogram, System.monotonic_time(:nanosecond))
  end

  defp late(due, _interval, _histogram, now) when due > now, do: due

  defp late(due, interval, histogram, now) do
    Histogram.add(histogram, now - due)
    late(due + interval, interval, histogram, now)
  end

  ## Printing

  # Medians, and below them the spread.
  defp lines(mod, rounds) do
    columns = Enum.zip_with(rounds, & &1)

    spreads =
      for values <- columns, {low, high} = Report.spread(values), do: "#{short(low)} to #{short(high)}"

    row([mod.label() | Enum.map(columns, &short(Report.median(&1)))]) <> "\n" <> row([""] ++ spreads)
  end

  defp row([first | rest]),
    do: String.pad_trailing(first, 26) <> Enum.map_join(rest, &String.pad_leading(&1, 20))

  defp short(ns) when ns >= 10_000_000, do: "#{round(ns / 1_000_000)} ms"
  defp short(ns) when ns >= 1_000_000, do: "#{Float.round(ns / 1_000_000, 1)} ms"
  defp short(ns) when ns >= 10_000, do: "#{round(ns / 1_000)} µs"
  defp short(ns), do: "#{Float.round(ns / 1_000, 1)} µs"
end

Neighbours.main(System.argv())
