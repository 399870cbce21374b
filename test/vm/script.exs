# script_test.exs runs this: a script that writes to a buffer, and ends in one of the ways that scripts end. Each call of
# the processor and of :dead_letter adds a line to a file.
[path, ending] = System.argv()

defmodule Script do
  use Application

  def start(_type, children), do: Supervisor.start_link(children, strategy: :one_for_one)

  def note(path, what), do: File.write!(path, "#{what}\n", [:append])

  # A sink that goes with the application, as a pool of connections does.
  def sink, do: %{id: :sink, start: {Agent, :start_link, [fn -> 0 end, [name: :sink]]}}

  def buffer(path, opts \\ []) do
    defaults = [
      name: :script,
      processor: fn batch ->
        Agent.get(:sink, & &1)
        note(path, inspect(batch))
      end,
      processing_interval_ms: 60_000
    ]

    PartitionedBuffer.Counter.child_spec(Keyword.merge(defaults, opts))
  end

  # Refuses all.
  def failing(path) do
    buffer(path,
      processor: fn _batch -> {:error, :down} end,
      max_attempts: :infinity,
      retry_backoff_ms: {10, 10},
      drain_timeout_ms: 200,
      dead_letter: fn batch, reason -> note(path, "dead #{inspect(batch)} #{reason}") end
    )
  end

  def start_app(children) do
    applications = [:kernel, :stdlib, :elixir, :logger, :partitioned_buffer]
    description = [vsn: ~c"1", applications: applications, mod: {Script, children}]
    :ok = :application.load({:application, :script, description})
    {:ok, _started} = Application.ensure_all_started(:script)
  end

  def start_here(children), do: {:ok, _pid} = Supervisor.start_link(children, strategy: :one_for_one)
end

case ending do
  "the application fails to deliver" -> Script.start_app([Script.failing(path)])
  "the script fails to deliver" -> Script.start_here([Script.failing(path)])
  "with a cluster" -> Script.start_here([Script.sink(), Script.buffer(path, cluster: true, max_attempts: 3)])
  "the application" <> _ends -> Script.start_app([Script.sink(), Script.buffer(path)])
  _of_the_script -> Script.start_here([Script.sink(), Script.buffer(path)])
end

PartitionedBuffer.Counter.add(:script, :key, 2)

case ending do
  "halt" -> System.halt()
  "stop the buffer" -> PartitionedBuffer.stop(:script)
  "flush" -> PartitionedBuffer.flush(:script)
  "the application, status 3" -> exit({:shutdown, 3})
  "raise" -> raise "no"
  "the application, tests" -> ExUnit.start()
  _ends -> :ok
end
