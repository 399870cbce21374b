defmodule PartitionedBuffer.Released do
  @moduledoc false
  # The application of a release in vm_stop_test.exs. Its arguments are a file, and how it ends.
  use Application

  @impl Application
  def start(_type, _args) do
    [path, ending] = Enum.map(:init.get_plain_arguments(), &to_string/1)

    buffer =
      {PartitionedBuffer.Map,
       name: Shop.Buffer,
       processor: {__MODULE__, :fail, [path]},
       processing_interval_ms: :infinity,
       max_attempts: :infinity,
       retry_backoff_ms: {20, 20},
       drain_timeout_ms: 1_000,
       dead_letter: {__MODULE__, :bury, [path]}}

    worker = %{id: :worker, start: {Task, :start_link, [__MODULE__, :finish, [ending]]}}
    Supervisor.start_link([buffer, worker], strategy: :one_for_one, max_restarts: 0)
  end

  def fail(_batch, path) do
    File.write!(path, "failed\n", [:append])
    :error
  end

  def bury(entries, reason, path),
    do: File.write!(path, "dead #{inspect(entries)} #{inspect(reason)}\n", [:append])

  def finish(ending) do
    await_started()
    PartitionedBuffer.Map.put(Shop.Buffer, :key, 1)
    if ending == "the VM stops", do: System.stop(0), else: raise(ending)
    Process.sleep(:infinity)
  end

  # A VM that stops while it boots does not stop its applications one after the other.
  defp await_started do
    unless match?({:started, _progress}, :init.get_status()) do
      Process.sleep(10)
      await_started()
    end
  end
end
