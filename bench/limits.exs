# Limits rather than speed: the latency of single puts, memory, the longest NIF call.
#
#     mix run bench/limits.exs
#     PARTITIONED_BUFFER_NIF_FEATURES=timing mix run bench/limits.exs    also the library's own count of its calls
#
# Prints its results and writes them to bench/limits.txt, or with `timing` what that has counted to bench/calls.txt: asking for
# the processor time of each call takes longer than a put, so latencies are measured without. `mix run bench/readme.exs`
# brings both into the README. The library built with `timing` is for this script only: run `mix compile` afterwards.

for file <- ~w(candidates report histogram), do: Code.require_file("support/#{file}.ex", __DIR__)

defmodule Limits do
  alias Bench.{Histogram, Report}

  @mib 1024 * 1024
  @new_keys 4_000_000
  @million 1_000_000

  @limits Path.join(__DIR__, "limits.txt")
  @calls Path.join(__DIR__, "calls.txt")

  def main do
    unless counts?(), do: File.write!(@limits, "")
    say(Report.machine())
    latency("latency of a put, #{@new_keys} new keys int→int", [], &new_keys/2)
    latency("latency of a put while a million entries are flushed in tens", [], &while_flushed/2)
    swap()
    bytes_per_entry()
    growth()
    growth_among_small()
    nif_calls()
  end

  ## Latency: each put is timed; what lies between two puts is not.

  defp latency(title, opts, run) do
    say("\n#{title}\n" <> Report.row(["", "p50", "p99", "p99.9", "p99.99", "max"]))

    for mod <- [Bench.Ets, Bench.NativeOne, Bench.Native] do
      histogram = in_process(fn -> run.(mod, opts) end)

      values =
        for share <- [0.5, 0.99, 0.999, 0.9999, 1.0],
            do: Report.format(Histogram.percentile(histogram, share))

      say(Report.row([mod.label() | values]))
    end
  end

  defp new_keys(mod, opts) do
    handle = mod.new(opts)
    histogram = timed_puts(mod, handle, 1, @new_keys, Histogram.new())
    mod.size(handle) == @new_keys || raise "#{inspect(mod)} does not hold what was put"
    discard(mod, handle)
    histogram
  end

  defp while_flushed(mod, opts) do
    handle = mod.new(opts)
    for chunk <- Enum.chunk_every(1..@million, 10_000), do: mod.put_all(handle, for(n <- chunk, do: {n, n}))
    # The table of raw ETS is not replaced: new keys go to another, as the design does it.
    target = if mod == Bench.Ets, do: mod.new(opts), else: handle
    drain = Task.async(fn -> mod.drain(handle, 10, fn _batch -> :ok end) end)
    histogram = until_done(mod, target, drain, 1, Histogram.new())
    discard(mod, target)
    histogram
  end

  defp until_done(mod, handle, drain, from, histogram) do
    timed_puts(mod, handle, from, from + 9_999, histogram)
    if Task.yield(drain, 0), do: histogram, else: until_done(mod, handle, drain, from + 10_000, histogram)
  end

  defp timed_puts(_mod, _handle, from, to, histogram) when from > to, do: histogram

  defp timed_puts(mod, handle, from, to, histogram) do
    started = :erlang.monotonic_time(:nanosecond)
    mod.put(handle, from, from)
    Histogram.add(histogram, :erlang.monotonic_time(:nanosecond) - started)
    timed_puts(mod, handle, from + 1, to, histogram)
  end

  ## The swap

  defp swap do
    say("\nswap of a partition, median and longest of 21")

    for size <- [1_000, @million] do
      times =
        for _ <- 1..21 do
          name = Bench.NativeOne.new([])

          for chunk <- Enum.chunk_every(1..size, 10_000),
              do: Bench.Native.put_all(name, for(n <- chunk, do: {n, n}))

          {microseconds, {:fresh, flush}} =
            timed_ns(fn -> PartitionedBuffer.Native.flush(PartitionedBuffer.Native.run(name), 0) end)

          Bench.Native.process(name, 0, flush, size, fn _batch -> :ok end)
          Bench.Native.free(name)
          microseconds
        end

      say(
        Report.row(["#{size} entries", Report.format(Report.median(times)), Report.format(Enum.max(times))])
      )
    end
  end

  defp timed_ns(function) do
    started = System.monotonic_time(:nanosecond)
    result = function.()
    {System.monotonic_time(:nanosecond) - started, result}
  end

  ## Memory

  defp bytes_per_entry do
    bytes_per_entry(
      "a million of {atom, int}→map of 4",
      [Bench.Ets, Bench.NativeOne, Bench.Native],
      &put_users/3
    )

    bytes_per_entry("a million sums of int", [Bench.EtsCounter, Bench.CounterOne, Bench.Counter], &count_up/3)
  end

  defp bytes_per_entry(title, candidates, fill) do
    say("\nbytes an entry, #{title}\n" <> Report.row(["", "bytes", "to raw ETS"]))

    sizes =
      for mod <- candidates do
        bytes =
          in_process(fn ->
            before = settled_memory()
            handle = mod.new([])
            fill.(mod, handle, @million)
            used = memory() - before
            mod.size(handle) == @million || raise "#{inspect(mod)} does not hold what was put"
            discard(mod, handle)
            used / @million
          end)

        {mod.label(), bytes}
      end

    [{_label, ets} | _] = sizes

    for {label, bytes} <- sizes,
        do: say(Report.row([label, Float.round(bytes, 1), Float.round(bytes / ets, 2)]))
  end

  defp count_up(_mod, _handle, 0), do: :ok

  defp count_up(mod, handle, n) do
    mod.add(handle, n, 1)
    count_up(mod, handle, n - 1)
  end

  defp put_users(_mod, _handle, 0), do: :ok

  defp put_users(mod, handle, n) do
    mod.put(handle, {:user, n}, %{id: n, name: "user", count: n, active: true})
    put_users(mod, handle, n - 1)
  end

  defp growth do
    say("\nlargest growth while 10 keys are overwritten 200000 times with terms of 32 kB")

    for mod <- [Bench.Ets, Bench.NativeOne, Bench.Native] do
      growth =
        in_process(fn ->
          handle = mod.new([])
          list = Enum.to_list(1..2_000)
          before = settled_memory()

          largest =
            for round <- 1..20, reduce: 0 do
              largest ->
                for n <- 1..10_000, do: mod.put(handle, rem(n, 10), [{round, n} | list])
                max(largest, memory() - before)
            end

          mod.size(handle) == 10 || raise "#{inspect(mod)} does not hold what was put"
          discard(mod, handle)
          largest
        end)

      say(Report.row([mod.label(), "#{Float.round(growth / @mib, 1)} MiB"]))
    end
  end

  # Without the garbage of this process.
  defp memory do
    :erlang.garbage_collect()
    :erlang.memory(:total)
  end

  # When what was freed before is free: no change for half a second.
  defp settled_memory(last \\ 0, same \\ 0)
  defp settled_memory(last, 10), do: last

  defp settled_memory(last, same) do
    receive do: (:never -> :ok), after: (50 -> :ok)
    now = memory()
    if abs(now - last) < 100_000, do: settled_memory(last, same + 1), else: settled_memory(now, 0)
  end

  defp growth_among_small do
    title = "growth by 200000 small entries, a value of 32 kB overwritten after each so many of them"
    say("\n#{title}\n" <> Report.row(["", "2", "20", "200", "never"]))

    for mod <- [Bench.Ets, Bench.NativeOne] do
      growths = for every <- [2, 20, 200, 1_000_000], do: in_process(fn -> among_small(mod, every) end)
      say(Report.row([mod.label() | Enum.map(growths, &"#{Float.round(&1 / @mib, 1)} MiB")]))
    end
  end

  defp among_small(mod, every) do
    handle = mod.new([])
    list = Enum.to_list(1..2_000)
    before = settled_memory()

    for n <- 1..200_000 do
      mod.put(handle, n, {n})
      if rem(n, every) == 0, do: mod.put(handle, :large, [n | list])
    end

    growth = memory() - before
    discard(mod, handle)
    growth
  end

  ## The library's own count: in CPU time of the thread, apart for calls in which the system had to provide memory, and on the
  ## clock, in which the interruptions by the system and the host are.

  defp nif_calls do
    if counts?() do
      in_process(&misses/0)
      every_call()
      File.write!(@calls, "")
      Report.say("longest call of each NIF in a run of this script, as counted in the library", @calls)
      Report.say(Report.machine() <> "\n", @calls)

      Report.say(
        Report.row(["", "CPU time", "over 1 ms", "with faults", "over 1 ms", "clock", "over 1 ms"]),
        @calls
      )

      for {name, used, faulting, elapsed} <- Enum.sort(PartitionedBuffer.Native.longest_calls()) do
        figures =
          for {longest, over} <- [used, faulting, elapsed],
              figure <- [Report.format(longest), over],
              do: figure

        Report.say(Report.row([name | figures]), @calls)
      end
    end
  end

  # What can interrupt any call. These take as long as a put, but only hash a key: they allocate nothing, change nothing
  # and meet nobody.
  defp misses do
    handle = Bench.NativeOne.new([])
    key = List.to_tuple(Enum.to_list(1..40))
    for _ <- 1..10_000_000, do: nil = Bench.NativeOne.get(handle, key)
    discard(Bench.NativeOne, handle)
  end

  # Every NIF, with terms of all kinds of up to some thousand words.
  defp every_call do
    System.put_env(%{"WORKLOAD_OPERATIONS" => "300000", "WORKLOAD_SEED" => "2026", "WORKLOAD_DEPTH" => "1"})
    Code.require_file("workload.exs", __DIR__)
  end

  ## Helpers

  defp counts?, do: PartitionedBuffer.Native.longest_calls() != []

  defp say(text), do: if(counts?(), do: IO.puts(text), else: Report.say(text, @limits))

  # Half a million entries or more are not processed at the end: the processor of these buffers does nothing.
  defp discard(mod, handle), do: mod.free(handle)

  defp in_process(function), do: function |> Task.async() |> Task.await(:infinity)
end

Limits.main()
