# vm_stop_test.exs runs this: an application whose buffer cannot deliver its entries ends in one of several ways. Each call
# of the processor and of :dead_letter adds a line to a file.
[path, scenario] = System.argv()

defmodule DeadLetters do
  def bury(entries, reason, path),
    do: File.write!(path, "dead #{inspect(entries)} #{inspect(reason)}\n", [:append])
end

defmodule Shop do
  use Application

  def start(_type, %{children: children}),
    do: Supervisor.start_link(children, strategy: :one_for_one, max_restarts: 0)

  def buffer(path, opts \\ []) do
    defaults = [
      name: Shop.Buffer,
      module: PartitionedBuffer.Map,
      partitions: 2,
      processor: fn _batch ->
        File.write!(path, "failed\n", [:append])
        {:error, :down}
      end,
      processing_interval_ms: :infinity,
      max_attempts: :infinity,
      retry_backoff_ms: {20, 20},
      drain_timeout_ms: 1_000,
      processing_timeout_ms: 500,
      dead_letter: {DeadLetters, :bury, [path]}
    ]

    opts = Keyword.reject(Keyword.merge(defaults, opts), &match?({_key, nil}, &1))
    Supervisor.child_spec({PartitionedBuffer, opts}, id: :buffer)
  end

  def load(children) do
    :application.unload(:shop)

    :ok =
      :application.load(
        {:application, :shop,
         vsn: ~c"1", applications: [:elixir, :logger, :partitioned_buffer], mod: {Shop, %{children: children}}}
      )
  end

  def start_app(children, type \\ :temporary) do
    load(children)
    {:ok, _started} = Application.ensure_all_started(:shop, type)
  end

  def put(value \\ 1), do: PartitionedBuffer.Map.put(Shop.Buffer, :key, value)

  # Nothing can be made in a directory that became a file.
  def start_failing(path) do
    journal = path <> ".journal"
    start_app([buffer(path, journal: journal)])
    File.rm_rf!(journal)
    File.write!(journal, "")
    put()
  end

  # The supervisor gives up when this process dies.
  def worker, do: %{id: :worker, start: {Agent, :start_link, [fn -> 0 end, [name: :worker]]}}

  def crash do
    ref = Process.monitor(supervisor())
    Process.exit(Process.whereis(:worker), :kill)
    receive do: ({:DOWN, ^ref, :process, _pid, _reason} -> :ok)
  end

  def stop_app, do: :ok = Application.stop(:shop)

  def kill_buffer do
    ref = Process.monitor(supervisor())
    Process.exit(supervisor(), :kill)
    receive do: ({:DOWN, ^ref, :process, _pid, _reason} -> :ok)
  end

  defp supervisor, do: PartitionedBuffer.Buffer.Lookup.supervisor(Shop.Buffer)
end

stored = &File.write!(path, "stored #{inspect(&1)}\n", [:append])

case scenario do
  "the VM stops" ->
    Shop.start_app([Shop.buffer(path)], :permanent)
    Shop.put()

  "a permanent application gave up" ->
    Shop.start_app([Shop.buffer(path), Shop.worker()], :permanent)
    Shop.put()
    Shop.crash()
    # The VM goes down.
    Process.sleep(:infinity)

  "a temporary application gave up" ->
    Shop.start_app([Shop.buffer(path), Shop.worker()])
    Shop.put()
    Shop.crash()

  "the application was stopped" ->
    Shop.start_app([Shop.buffer(path)])
    Shop.put()
    Shop.stop_app()
    IO.puts("kept: #{not File.exists?(path) or not (File.read!(path) =~ "dead")}")

  "the supervisor was killed" ->
    Shop.start_app([Shop.buffer(path)])
    Shop.put()
    Shop.kill_buffer()

  "its supervisor does not wait" ->
    # The VM's stop kills the buffer in the middle of its work.
    Shop.start_app([Map.put(Shop.buffer(path, drain_timeout_ms: 60_000), :shutdown, 100)])
    Shop.put()

  "started again" ->
    Shop.start_app([Shop.buffer(path)])
    Shop.put()
    Shop.stop_app()
    Shop.start_app([Shop.buffer(path, processor: stored, partitions: 3)])

  "started and stopped again" ->
    Shop.start_app([Shop.buffer(path)])
    Shop.put()
    Shop.stop_app()
    Shop.start_app([Shop.buffer(path, partitions: 3)])
    Shop.stop_app()

  "started again without outcomes" ->
    Shop.start_app([Shop.buffer(path)])
    Shop.put()
    Shop.stop_app()
    Shop.start_app([Shop.buffer(path, processor: stored, max_attempts: nil, dead_letter: nil)])
    :ok = PartitionedBuffer.flush(Shop.Buffer)
    Shop.put()
    Shop.kill_buffer()

  "another kind started" ->
    Shop.start_app([Shop.buffer(path)])
    Shop.put()
    Shop.stop_app()
    Shop.start_app([Shop.buffer(path, module: PartitionedBuffer.Queue)])
    PartitionedBuffer.Queue.push(Shop.Buffer, :item)

  "it runs elsewhere" ->
    Shop.start_app([Shop.buffer(path)])
    Shop.put()
    Shop.stop_app()
    # The VM's end does not stop it, as it belongs to no application.
    Process.flag(:trap_exit, true)
    {:ok, _pid} = Supervisor.start_link([Shop.buffer(path)], strategy: :one_for_one)

  "the owning stage left it" ->
    Shop.start_app([Shop.buffer(path, cluster: true, versions: :own)])
    PartitionedBuffer.Map.put_newer(Shop.Buffer, :key, 1, 0)
    {:error, {:failed, 1}} = PartitionedBuffer.flush(Shop.Buffer)
    Shop.stop_app()

  "the collecting stage left it" ->
    Shop.start_app([Shop.buffer(path, cluster: [forward_ms: 86_400_000], versions: :own)])
    PartitionedBuffer.Map.put_newer(Shop.Buffer, :key, 1, 0)
    Shop.kill_buffer()

  "no :dead_letter" ->
    Shop.start_app([Shop.buffer(path, dead_letter: nil)])
    Shop.put()
    Shop.stop_app()

  "the VM stops, no :dead_letter" ->
    Shop.start_app([Shop.buffer(path, dead_letter: nil)])
    Shop.put()

  "the VM stops, and the journal has them" ->
    Shop.start_app([Shop.buffer(path, journal: path <> ".journal")])
    Shop.put()

  "the VM stops, its journal fails" ->
    Shop.start_failing(path)

  "the buffer stops, its journal fails" ->
    Shop.start_failing(path)
    Shop.stop_app()

  "it hangs" ->
    Shop.start_app([Shop.buffer(path, dead_letter: fn _, _ -> Process.sleep(:infinity) end)])
    Shop.put()
    Shop.stop_app()

  "it raises" ->
    Shop.start_app([Shop.buffer(path, dead_letter: fn _, _ -> raise "no" end)])
    Shop.put()
    Shop.stop_app()

  "it is unloaded" ->
    Shop.start_app([Shop.buffer(path)])
    Shop.put()
    Shop.stop_app()
    :code.delete(DeadLetters)
    :code.purge(DeadLetters)

  "a start races with the end" ->
    Process.flag(:trap_exit, true)
    # A busy machine must not let a call of :dead_letter take too long: it would be made again.
    failing = Shop.buffer(path, processing_timeout_ms: 60_000)
    {_module, _function, [opts]} = Shop.buffer(path, processor: stored, processing_timeout_ms: 60_000).start

    start = fn start ->
      with {:error, _taken} <- PartitionedBuffer.start_link(opts), do: start.(start)
    end

    for n <- 1..100 do
      {:ok, pid} = Supervisor.start_link([failing], strategy: :one_for_one)
      Shop.put(n)
      Supervisor.stop(pid)
      give_up = Task.async(&PartitionedBuffer.Buffer.Leftovers.give_up/0)
      if rem(n, 2) == 0, do: Process.sleep(rem(n, 5))
      {:ok, _pid} = start.(start)
      PartitionedBuffer.flush(Shop.Buffer)
      Task.await(give_up)
      PartitionedBuffer.stop(Shop.Buffer)
    end

  "the package is no application" ->
    {:ok, pid} = Supervisor.start_link([Shop.buffer(path)], strategy: :one_for_one)
    Shop.put()
    Supervisor.stop(pid)
end

System.stop(0)
Process.sleep(:infinity)
