# dependency_test.exs runs this in the app: several processes write, and after a stop everything has to be stored.
alias PartitionedBuffer.Map, as: Buffer

1..8
|> Task.async_stream(fn writer ->
  for n <- 1..1_000, do: Buffer.put_newer(Shop.Changes, rem(n, 100), {n, writer}, n)
end)
|> Stream.run()

# An app that comes to telemetry later, without the package being compiled again.
if Code.ensure_loaded?(:telemetry), do: raise("the app was meant to have no telemetry")
me = self()

Code.eval_string("""
defmodule :telemetry do
  def execute([:partitioned_buffer | _] = event, _measurements, %{buffer: Shop.Changes}) do
    send(:the_runner, {:event, event})
    :ok
  end
end
""")

Process.register(me, :the_runner)
Supervisor.terminate_child(Shop.Supervisor, Shop.Changes)
stored = Shop.Stock.all()
versions = for {_item, {{version, _writer}, version}} <- stored, do: version

event =
  receive do
    {:event, [:partitioned_buffer, :partition, :stop]} -> "telemetry"
  after
    0 -> "no telemetry"
  end

IO.puts(
  "stored #{map_size(stored)} items, versions from #{Enum.min(versions)} to #{Enum.max(versions)}, #{event}"
)
