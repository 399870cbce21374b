# Shifts the wall clock of this VM forward and back. Prints the versions of a key.
:logger.set_primary_config(:level, :none)

alias PartitionedBuffer.{Map, Native}

{:ok, _} = Map.start_link(name: :clock, processor: &Function.identity/1, versions: :clock, partitions: 1)

for shift_ms <- [0, 5_000, -3_600_000, 0] do
  Native.shift_clock(shift_ms)
  Map.put(:clock, :key, 1)
  {:ok, 1, version} = Map.fetch(:clock, :key, version: true)
  Map.put(:clock, {:other, shift_ms}, 1)
  IO.puts("#{version} #{System.os_time(:microsecond) * 128}")
end
