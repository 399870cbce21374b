# Runs with a limit of the heap of each process that batches exceed. Prints what was stored, what
# came to the dead letters, and what was given up.
alias PartitionedBuffer.{Map, Queue}

Process.flag(:max_heap_size, 0)
Logger.configure(level: :none)
words = fn count -> Enum.to_list(1..div(count, 2)) end
test = self()
store = fn entries -> send(test, {:stored, length(entries)}) && :ok end
dead_letter = fn entries, _reason -> send(test, {:dead, length(entries)}) end

count = fn count, key, total ->
  receive do
    {^key, number} -> count.(count, key, total + number)
  after
    0 -> total
  end
end

options = [
  partitions: 1,
  processing_interval_ms: :infinity,
  retry_backoff_ms: {1, 1},
  dead_letter: dead_letter
]

run = fn name, fun ->
  result = fun.()
  %{size: size, in_flight: in_flight, totals: totals} = PartitionedBuffer.info(name)
  {stored, dead} = {count.(count, :stored, 0), count.(count, :dead, 0)}

  IO.puts(
    "#{name}: #{inspect(result)}, stored #{stored}, dead #{dead}, given up #{totals.given_up}, left #{size + in_flight}"
  )
end

await = fn await, name ->
  case PartitionedBuffer.flush(name) do
    :ok -> :ok
    {:error, {:failed, _count}} -> await.(await, name)
  end
end

# A batch of all has 20 million words.
{:ok, _} =
  Map.start_link(
    [name: :large_batch, processor: store, processing_batch_size: 1_000, max_attempts: 3] ++ options
  )

for key <- 1..1_000, do: Map.put(:large_batch, key, words.(20_000))
run.(:large_batch, fn -> await.(await, :large_batch) end)

# One entry has too many words for any process.
{:ok, _} =
  Queue.start_link(
    [name: :large_entry, processor: store, processing_batch_size: 100, max_attempts: 3] ++ options
  )

Queue.push(:large_entry, Enum.to_list(1..50) ++ [words.(20_000_000)] ++ Enum.to_list(51..100))
run.(:large_entry, fn -> await.(await, :large_entry) end)

# The function for dead letters exceeds the limit with more than ten entries.
cancel = fn _entries -> {:cancel, :refused} end

greedy = fn entries, reason ->
  if length(entries) > 10, do: words.(20_000_000)
  dead_letter.(entries, reason)
end

{:ok, _} =
  Map.start_link(
    [name: :dead_letters, processor: cancel, processing_batch_size: 50, max_attempts: 3] ++
      Keyword.put(options, :dead_letter, greedy)
  )

for key <- 1..50, do: Map.put(:dead_letters, key, key)
run.(:dead_letters, fn -> await.(await, :dead_letters) end)

# A stop gives up what the sink did not take, an entry with too many words included.
down = fn _entries -> {:error, :down} end

{:ok, _} =
  Queue.start_link(
    [name: :stopped, processor: down, max_attempts: :infinity, drain_timeout_ms: 100] ++ options
  )

Queue.push(:stopped, Enum.to_list(1..50) ++ [words.(20_000_000)] ++ Enum.to_list(51..100))
result = PartitionedBuffer.stop(:stopped)
IO.puts("stopped: #{inspect(result)}, dead #{count.(count, :dead, 0)}")
