# reload_test.exs runs this in a copy of the project: it changes the module of the NIFs, and recompiles as IEx does.
alias PartitionedBuffer.Map, as: Buffer

me = self()

{:ok, _pid} =
  Buffer.start_link(name: :b, processor: &send(me, {:batch, &1}), processing_batch_size: 1_000, partitions: 1)

for n <- 1..1_000, do: Buffer.put(:b, n, n)
false = function_exported?(PartitionedBuffer.Native, :added, 0)

file = "lib/partitioned_buffer/native.ex"
source = File.read!(file)
File.write!(file, String.replace(source, "  @on_load :load\n", "  @on_load :load\n  def added, do: :added\n"))
:ok = IEx.Helpers.recompile()

:added = apply(PartitionedBuffer.Native, :added, [])
for n <- 1..1_000, do: ^n = Buffer.get(:b, n)
:ok = Buffer.put(:b, 1_001, 1)
:ok = Buffer.stop(:b)
1_001 = receive(do: ({:batch, batch} -> length(batch))) + receive(do: ({:batch, batch} -> length(batch)))
IO.puts("recompiled: as it should be")
