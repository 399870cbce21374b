defmodule PartitionedBuffer.Test.Cluster.Host do
  @moduledoc false
  # Two applications of a node: `:cluster_load` with writers, started first, and `:cluster_host` with
  # the buffer. A stop of the node ends the buffer first, as in a release, so writers still run and
  # note what the stop refuses.

  use Application

  alias PartitionedBuffer.Test.Cluster.{Gate, Links}

  @buffers __MODULE__.Buffers
  @writers __MODULE__.Writers

  # A writer may wait for room in a full buffer before it notices its end.
  @writer_stop_ms 20_000

  @doc "Starts the package and the application of the writers. To be called on the node."
  def boot do
    {:ok, _started} = Application.ensure_all_started(:partitioned_buffer)
    # Without Hex and Debian's package, telemetry is the stand-in of test/hexless, which is no application.
    Application.ensure_all_started(:telemetry)
    # Lost nodes and failing sinks are what these tests make.
    Logger.configure(level: :none)
    start_application(:cluster_load, [:partitioned_buffer], :load)
  end

  @doc "Starts the buffer under an application."
  def start_buffer(child_spec), do: start_application(:cluster_host, [:cluster_load], {:buffer, child_spec})

  @doc "Stops the buffer. The node goes on, and so do its writers."
  def stop_buffer do
    :ok = Application.stop(:cluster_host)
    :ok = Application.unload(:cluster_host)
  end

  @doc "The supervisor above the buffer."
  def supervisor, do: @buffers

  def start_writer(child_spec), do: {:ok, _pid} = DynamicSupervisor.start_child(@writers, child_spec)

  @doc "Ends all writers. They have given their last report when this returns."
  def stop_writers do
    for {_id, pid, _type, _modules} <- DynamicSupervisor.which_children(@writers),
        is_pid(pid),
        do: send(pid, :stop)

    await_writers()
  end

  @impl Application
  def start(_type, :load) do
    writers = {DynamicSupervisor, name: @writers, strategy: :one_for_one}
    Supervisor.start_link([Links, Gate, writers], strategy: :one_for_one)
  end

  def start(_type, {:buffer, child_spec}),
    do: Supervisor.start_link([child_spec], strategy: :one_for_one, max_restarts: 1_000, name: @buffers)

  @doc "The child of a writer. A crash of a writer is a fault of the harness: it is not restarted."
  def writer_spec(start), do: %{id: :writer, start: start, restart: :temporary, shutdown: @writer_stop_ms}

  defp await_writers do
    monitors =
      for {_id, pid, _type, _modules} <- DynamicSupervisor.which_children(@writers),
          is_pid(pid),
          do: Process.monitor(pid)

    for monitor <- monitors, do: receive(do: ({:DOWN, ^monitor, :process, _pid, _reason} -> :ok))
    :ok
  end

  defp start_application(name, needs, arg) do
    spec = [
      vsn: ~c"1",
      modules: [],
      registered: [],
      applications: [:kernel, :stdlib | needs],
      mod: {__MODULE__, arg}
    ]

    :ok = :application.load({:application, name, spec})
    :ok = Application.start(name)
  end

  @doc "A telemetry handler that sends the event to a process."
  def send_event(event, measurements, metadata, pid), do: send(pid, {event, measurements, metadata})
end
