# How many calls of the processor isolation costs: refused entries, a sink that takes few entries at a
# time, an outage.
#
#     mix run bench/isolation.exs
#
# The guides have these numbers.
Logger.configure(level: :critical)

defmodule Bench.Isolation do
  alias PartitionedBuffer.Map, as: Buffer

  @defaults [partitions: 1, processing_interval_ms: :infinity, max_attempts: 100, drain_timeout_ms: 0]

  @doc "Flushes entries until `sink` took `good` of them, and returns the calls and the refused calls of each flush."
  def run(entries, good, sink, opts) do
    {calls, refused} = {:counters.new(1, []), :counters.new(1, [])}

    processor = fn batch ->
      :counters.add(calls, 1, 1)

      if sink.(batch) do
        :ok
      else
        :counters.add(refused, 1, 1)
        {:error, :refused}
      end
    end

    # A buffer of another name has no limit yet.
    name = :"isolation_#{System.unique_integer([:positive])}"
    {:ok, buffer} = Buffer.start_link([name: name, processor: processor] ++ Keyword.merge(@defaults, opts))
    Buffer.put_all(name, entries)
    flushes = flush(name, good, {calls, refused}, [])
    Supervisor.stop(buffer)
    flushes
  end

  defp flush(name, good, {calls, refused} = counts, flushes) do
    PartitionedBuffer.flush(name)
    flushes = flushes ++ [{:counters.get(calls, 1), :counters.get(refused, 1)}]

    if PartitionedBuffer.info(name).totals.processed >= good,
      do: flushes,
      else: flush(name, good, counts, flushes)
  end
end

entries = fn count -> for(n <- 1..count, do: {n, n}) end
refuses = fn bad -> fn batch -> not Enum.any?(batch, &bad.(elem(&1, 0))) end end

spread = fn numbers -> "#{Enum.min(numbers)} to #{Enum.max(numbers)}" end

one =
  for bad <- 1..1_000//37 do
    flushes = Bench.Isolation.run(entries.(1_000), 999, refuses.(&(&1 == bad)), processing_batch_size: 1_000)

    flushes |> List.last() |> elem(0)
  end

IO.puts("calls for one refused entry in a batch of 1,000: #{spread.(one)}")

flushes =
  Bench.Isolation.run(entries.(5_000), 4_875, refuses.(&(rem(&1, 40) == 7)), processing_batch_size: 1_000)

{calls, _refused} = List.last(flushes)
IO.puts("calls for 125 refused entries among 5,000: #{calls}, in #{length(flushes)} flushes")

flushes = Bench.Isolation.run(entries.(20_000), 20_000, &(length(&1) <= 100), processing_batch_size: 1_000)

{calls, refused} = List.last(flushes)
IO.puts("calls for 20,000 entries, if the sink takes 100: #{calls}, of which it refuses #{refused}")

up = :atomics.new(1, [])
down = fn _batch -> :atomics.get(up, 1) == 1 end
calls = :counters.new(1, [])

{:ok, buffer} =
  PartitionedBuffer.Map.start_link(
    name: :outage,
    processor: fn batch -> :counters.add(calls, 1, 1) && if(down.(batch), do: :ok, else: {:error, :down}) end,
    partitions: 1,
    processing_interval_ms: :infinity,
    processing_batch_size: 1_000,
    max_attempts: 100,
    drain_timeout_ms: 0
  )

PartitionedBuffer.Map.put_all(:outage, entries.(10_000))
PartitionedBuffer.flush(:outage)
first = :counters.get(calls, 1)
for _ <- 1..10, do: PartitionedBuffer.flush(:outage)
each = div(:counters.get(calls, 1) - first, 10)
IO.puts("calls in an outage: #{first} before the first pause, then #{each} for each pause")
before = :counters.get(calls, 1)
:atomics.put(up, 1, 1)
:ok = PartitionedBuffer.flush(:outage)

IO.puts(
  "calls for 10,000 entries after the outage, with batches of 1,000: #{:counters.get(calls, 1) - before}"
)

Supervisor.stop(buffer)
