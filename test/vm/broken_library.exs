# library_test.exs runs this with a library that cannot be loaded: a start says why, and what to do.
Logger.configure(level: :none)
options = [name: :buffer, processor: &Function.identity/1]

for module <- [PartitionedBuffer.Map, PartitionedBuffer.Queue, PartitionedBuffer.Counter] do
  {:error, {%RuntimeError{message: message}, []}} = module.start_link(options)
  IO.puts("started: #{message}")
end

Process.flag(:trap_exit, true)

{:error, {:shutdown, {:failed_to_start_child, :buffer, reason}}} =
  Supervisor.start_link([{PartitionedBuffer.Map, options}], strategy: :one_for_one)

IO.puts("supervised: #{Exception.format_exit(reason)}")
