# cluster/unused_test.exs runs this in a VM of its own: everything that an application without `:cluster` does. Then no module of
# several nodes is loaded, and no process of them runs. With the argument `cluster` it uses one, so that the test sees a difference.
alias PartitionedBuffer.{Counter, Queue}
alias PartitionedBuffer.Map, as: Buffer

{:ok, _started} = Application.ensure_all_started(:partitioned_buffer)
# Modules are loaded when they are used.
:interactive = :code.get_mode()
processes = fn -> MapSet.new(Process.registered()) end
before = processes.()
test = self()
options = [processor: &send(test, {:batch, &1}), max_attempts: 3, partitions: 2, max_size: 100]

for {module, name} <- [{Buffer, :map}, {Counter, :counter}, {Queue, :queue}] do
  {:ok, _pid} = module.start_link([name: name] ++ options)
end

Buffer.put(:map, :a, 1)
Buffer.put_new(:map, :b, 1)
Buffer.put_newer(:map, :c, 1, 1)
Buffer.get(:map, :a)
Buffer.fetch(:map, :a, version: true)
Buffer.delete(:map, :a)
Counter.add(:counter, :a)
Counter.add_all(:counter, a: 1)
Counter.get(:counter, :a)
Counter.delete(:counter, :a)
Queue.push(:queue, [1, 2])

for name <- [:map, :counter, :queue] do
  PartitionedBuffer.update_options(name, max_size: 200, processing_batch_size: 5)
  PartitionedBuffer.pause(name)
  PartitionedBuffer.resume(name)
  :ok = PartitionedBuffer.flush(name)
  PartitionedBuffer.info(name)
  PartitionedBuffer.buffer_size(name)
  PartitionedBuffer.emit_info(name)
end

PartitionedBuffer.emit_info(:all)
[:counter, :map, :queue] = PartitionedBuffer.buffers()
{:ok, device} = StringIO.open("")
:ok = PartitionedBuffer.watch(:map, rounds: 1, device: device)

if System.argv() == ["cluster"] do
  {:ok, _pid} = Counter.start_link([name: :shared, cluster: true] ++ options)
end

names = for name <- processes.(), name not in before, do: inspect(name)

for name <- [:map, :counter, :queue], do: :ok = PartitionedBuffer.stop(name)

loaded =
  for {module, _file} <- :code.all_loaded(),
      name = inspect(module),
      String.starts_with?(name, "PartitionedBuffer.") and name =~ "Cluster",
      do: name

false = Node.alive?()
pg = if :code.is_loaded(:pg), do: [":pg"], else: []
IO.puts("loaded: #{Enum.join(Enum.sort(loaded) ++ pg, " ")}")
IO.puts("names: #{names |> Enum.filter(&(&1 =~ ~r/Cluster|Owning|Scope/)) |> Enum.join(" ")}")
