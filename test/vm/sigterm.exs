# bench/support/sigterm.ex runs this in a VM of its own, and tells what both sides do.
# Arguments: the port of PostgreSQL, a directory, updates, keys, seed.
for file <- ~w(postgres_client postgres zipf upserts sigterm),
    do: Code.require_file("../../bench/support/#{file}.ex", __DIR__)

defmodule Sigterm do
  # An application, since the VM shuts down the supervision trees of applications only.
  use Application

  alias Bench.Upserts

  @impl Application
  def start(_type, [port, dir]) do
    opts = [drain_timeout_ms: 2_000, dead_letter: {Bench.Sigterm, :bury, [dir]}]
    Supervisor.start_link(Upserts.children(port, :counters.new(3, []), opts), strategy: :one_for_one)
  end

  def put(work),
    do:
      work
      |> Upserts.start_writers(fn _writer, updates -> Upserts.put_all(updates) end)
      |> Upserts.await_writers()
end

alias Bench.Upserts

# The loss of the connections is what this is about.
Logger.configure(level: :none)
[port, dir, updates, keys, seed] = System.argv()

:ok =
  :application.load(
    {:application, :sigterm,
     vsn: ~c"1", applications: [:elixir, :partitioned_buffer], mod: {Sigterm, [String.to_integer(port), dir]}}
  )

{:ok, _started} = Application.ensure_all_started(:sigterm)

work =
  Upserts.work(
    updates: div(String.to_integer(updates), 2),
    keys: String.to_integer(keys),
    seed: String.to_integer(seed)
  )

first = Sigterm.put(work)
Upserts.flush()
IO.puts("stored")
"go on\n" = IO.gets("")
second = Sigterm.put(Upserts.next(work))
File.write!(Bench.Sigterm.acknowledged(dir), :erlang.term_to_binary(Upserts.newest(first, second)))
IO.puts("written")
# SIGTERM comes now, or the end of the other side.
IO.gets("")
