# Fills a counter until the VM has no memory. Its keys are immediates, so only the library allocates.
{:ok, _} =
  PartitionedBuffer.Counter.start_link(
    name: :c,
    processor: fn _batch -> :ok end,
    processing_interval_ms: :infinity
  )

pid = System.pid()
[size] = Regex.run(~r/VmSize:\s+(\d+) kB/, File.read!("/proc/#{pid}/status"), capture: :all_but_first)
limit = (String.to_integer(size) + 100_000) * 1024
{"", 0} = System.cmd("prlimit", ["--pid", pid, "--as=#{limit}"])
IO.puts("filling")
Enum.each(1..50_000_000, &PartitionedBuffer.Counter.add(:c, &1, 1))
IO.puts("full")
