# script_test.exs runs this: a script that writes to a buffer, and ends in one of the ways that scripts end.
[path, ending] = System.argv()

{:ok, _pid} =
  PartitionedBuffer.Counter.start_link(
    name: :script,
    processor: fn batch -> File.write!(path, inspect(batch), [:append]) end,
    processing_interval_ms: 60_000
  )

PartitionedBuffer.Counter.add(:script, :key, 2)

case ending do
  "end" -> :ok
  "halt" -> System.halt()
  "stop the buffer" -> PartitionedBuffer.stop(:script)
  "flush" -> PartitionedBuffer.flush(:script)
end
