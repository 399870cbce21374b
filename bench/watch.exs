# A buffer to watch: eight writers, and a sink that is slow and fails now and then.
#
#     mix run bench/watch.exs
#
# Option: --rounds N, how many seconds to watch; without it until Enter or Ctrl-C. Fifty keys in a hundred thousand get half of the writes.
# The writers are faster than the sink, so the buffer fills up to its bound, and they wait. A call of the processor takes 100
# to 300 ms, and one of fifty fails.

defmodule WatchBench do
  @keys 100_000
  @hot 50

  def main(argv) do
    {options, [], []} = OptionParser.parse(argv, strict: [rounds: :integer])
    # The failures would fill the terminal.
    Logger.configure(level: :none)

    {:ok, _pid} =
      PartitionedBuffer.Map.start_link(
        name: :watched,
        processor: {__MODULE__, :process, []},
        partitions: 4,
        processing_interval_ms: 2_000,
        processing_batch_size: 500,
        processing_threshold: 5_000,
        max_size: 30_000,
        max_attempts: :infinity,
        drain_timeout_ms: 2_000
      )

    for _writer <- 1..8, do: spawn_link(&write/0)
    PartitionedBuffer.watch(:watched, rounds: Keyword.get(options, :rounds, :infinity))
  end

  def process(_batch) do
    Process.sleep(Enum.random(100..300))
    if :rand.uniform(50) == 1, do: {:error, :away}, else: :ok
  end

  # Eight of these write some thousands of entries a second, and wait while the buffer is full.
  defp write do
    for _write <- 1..10, do: PartitionedBuffer.Map.put(:watched, key(), System.system_time())
    Process.sleep(1)
    write()
  end

  defp key, do: if(:rand.uniform(2) == 1, do: :rand.uniform(@hot), else: :rand.uniform(@keys))
end

WatchBench.main(System.argv())
