defmodule Bench.JournalVm do
  @moduledoc """
  VMs of their own for the benchmark of the journal: those that are killed, those that replay, and those whose memory or
  processor time is measured as a whole. Their schedulers do not wait busily, which would count as work.
  """

  alias Bench.Cpu
  alias PartitionedBuffer.Map, as: Buffer

  @args ~w(+sbwt none +sbwtdcpu none +sbwtdio none)c

  @doc "Starts a VM that has the package and the modules of this directory."
  def start do
    paths = for path <- :code.get_path(), do: [~c"-pa", path]
    {:ok, peer, _node} = :peer.start(%{connection: :standard_io, args: @args ++ Enum.concat(paths)})

    for app <- [:elixir, :logger, :partitioned_buffer],
        do: {:ok, _apps} = call(peer, Application, :ensure_all_started, [app])

    call(peer, Logger, :configure, [[level: :error]])

    for file <- ~w(cpu report journal_vm journal_peers),
        do: call(peer, Code, :require_file, [Path.join(__DIR__, file <> ".ex")])

    peer
  end

  def call(peer, module, function, args), do: :peer.call(peer, module, function, args, 600_000)
  def call(peer, function, args), do: call(peer, __MODULE__, function, args)

  @doc "Ends a VM as a segmentation fault or the system would."
  def kill(peer) do
    os_pid = call(peer, System, :pid, [])
    Process.unlink(peer)
    monitor = Process.monitor(peer)
    {"", 0} = System.cmd("kill", ["-9", os_pid])
    receive do: ({:DOWN, ^monitor, :process, ^peer, _reason} -> :ok)
  end

  ## What runs in these VMs

  @doc "A small map, as values of the benchmarks are."
  def small_map(n), do: %{id: n, name: "user", count: n, active: true}

  def entry(:int, n), do: {n, n}
  def entry(:map, n), do: {n, small_map(n)}
  def entry(:binary, n), do: {<<"user:", n::64>>, <<n::128>>}

  @doc "A buffer whose entries stay until it is flushed. It survives the caller."
  def start_buffer(name, opts) do
    caller = self()

    {owner, failed} =
      spawn_monitor(fn ->
        options = [
          processor: {__MODULE__, :store, []},
          max_attempts: :infinity,
          processing_interval_ms: :infinity
        ]

        {:ok, pid} = Buffer.start_link([name: name] ++ opts ++ options)
        send(caller, {:started, name})
        monitor = Process.monitor(pid)
        receive do: ({:DOWN, ^monitor, :process, ^pid, _reason} -> :ok)
      end)

    receive do
      {:started, ^name} -> Process.demonitor(failed, [:flush])
      {:DOWN, ^failed, :process, ^owner, reason} -> exit(reason)
    end

    :ok
  end

  def store(_batch), do: :ok

  @doc "Puts the entries of these numbers."
  def fill(name, kind, from, to) when from <= to do
    {key, value} = entry(kind, from)
    Buffer.put(name, key, value)
    fill(name, kind, from + 1, to)
  end

  def fill(_name, _kind, _from, _to), do: :ok

  @doc """
  Puts new keys until the VM ends, `pace` a millisecond or as fast as it can. After each hundred it writes its progress
  into a pipe, and the time in microseconds.
  """
  def write_until_killed(dir, pipe, pace) do
    start_buffer(:killed, journal: dir)
    {:ok, file} = :file.open(pipe, [:write, :raw])
    write_on(file, pace, 1, System.monotonic_time(:microsecond))
  end

  defp write_on(file, pace, first, started) do
    fill(:killed, :map, first, first + 99)
    now = System.monotonic_time(:microsecond)
    :ok = :file.write(file, "#{first + 99} #{now}\n")
    if pace != :fast and first > (now - started) * pace / 1_000, do: Process.sleep(1)
    write_on(file, pace, first + 100, started)
  end

  @doc "A journal with these entries. Returns the numbers of `info/1`."
  def make_journal(dir, kind, count) do
    start_buffer(:replayed, journal: dir)
    fill(:replayed, kind, 1, count)
    synced()
  end

  @doc "What the replay takes on all threads but those of the journal, and the number of entries."
  def replay(dir) do
    # The first start of a VM loads the code of the package.
    start_buffer(:loaded, journal: dir <> ".other")
    :ok = PartitionedBuffer.stop(:loaded)
    from = Cpu.ns() - Cpu.ns(:journal)
    start_buffer(:replayed, journal: dir)
    ns = Cpu.ns() - Cpu.ns(:journal) - from
    size = PartitionedBuffer.buffer_size(:replayed)
    %{replayed: ^size} = synced()
    {ns, size}
  end

  defp synced do
    :ok = PartitionedBuffer.sync(:replayed, timeout: 60_000)
    PartitionedBuffer.info(:replayed).journal
  end

  @doc "The resident bytes after so many puts, and the most there were when all is written."
  def memory(opts, kind, count) do
    start_buffer(:memory, opts)
    fill(:memory, kind, 1, count)
    held = status("VmRSS")
    if opts != [], do: :ok = PartitionedBuffer.sync(:memory, timeout: 60_000)
    {held, status("VmHWM")}
  end

  defp status(field) do
    [_, kilobytes] = Regex.run(~r/^#{field}:\s+(\d+) kB$/m, File.read!("/proc/self/status"))
    1_024 * String.to_integer(kilobytes)
  end
end
