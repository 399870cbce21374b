defmodule PartitionedBuffer.Test.Cluster.Peer do
  @moduledoc false
  # One node of a cluster: an OS process with Erlang, on 127.0.0.1, with the code paths of this VM.
  #
  # A peer belongs to the process that starts it. When that process ends, `:peer` halts the node. A
  # shell kills the OS process if this VM dies, since a suspended node cannot halt.

  alias PartitionedBuffer.Test.Cluster.{Controller, Until}

  @enforce_keys [:node, :os_pid, :guard]
  defstruct [:node, :os_pid, :guard]

  # Two busy cores are shared by all nodes: no scheduler spins.
  @vm_args ~w(+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none)

  # In milliseconds. A stop may drain while the sink is down.
  @boot_ms 60_000
  @end_ms 60_000

  @doc "Starts nodes at the same time. `names` are full names, `args` further arguments of `erl`."
  def start(names, args \\ []) do
    args = Enum.map(@vm_args ++ Controller.peer_args() ++ args ++ code_paths(), &String.to_charlist/1)

    for name <- names do
      [short, host] = String.split("#{name}", "@")

      :peer.start_link(%{
        name: String.to_charlist(short),
        host: String.to_charlist(host),
        longnames: true,
        wait_boot: {self(), {__MODULE__, name}},
        args: args
      })
    end

    Enum.map(names, &await_boot/1)
  end

  @doc "Calls a function on the node."
  def call(peer, module, function, args, timeout \\ 60_000),
    do: :erpc.call(peer.node, module, function, args, timeout)

  @doc "Stops the node as a deploy does: its applications end in order. Returns after its end."
  def stop(peer) do
    Node.monitor(peer.node, true)
    :erpc.cast(peer.node, :init, :stop, [])
    await_end(peer)
  end

  @doc "Kills the OS process."
  def kill(peer) do
    Node.monitor(peer.node, true)
    signal(peer, "KILL")
    await_end(peer)
  end

  @doc "Freezes the OS process. Its connections stay. Returns when all of its threads stopped."
  def suspend(peer) do
    signal(peer, "STOP")
    Until.true?(@end_ms, fn -> stopped?(peer) end) || raise "node #{peer.node} does not stop"
  end

  def resume(peer), do: signal(peer, "CONT")

  defp await_boot(name) do
    receive do
      {{__MODULE__, ^name}, {:started, node, _pid}} ->
        os_pid = :erpc.call(node, System, :pid, [])
        %__MODULE__{node: node, os_pid: os_pid, guard: guard(os_pid)}

      {{__MODULE__, ^name}, failure} ->
        raise "node #{name} does not start: #{inspect(failure)}"
    after
      @boot_ms -> raise "node #{name} does not start within #{@boot_ms} ms"
    end
  end

  # A line ends the shell. The end of its standard input kills the node: it comes with the owner's end.
  defp guard(os_pid) do
    script = "read -r _ || kill -9 #{os_pid} 2>/dev/null"
    Port.open({:spawn_executable, System.find_executable("sh")}, [:exit_status, args: ["-c", script]])
  end

  defp release(guard) do
    Port.command(guard, "\n")
    receive do: ({^guard, {:exit_status, _status}} -> :ok)
  end

  # The connection ends a moment before the name is free for a restart.
  defp await_end(peer) do
    receive do: ({:nodedown, node} when node == peer.node -> :ok), after: (@end_ms -> raise_alive(peer))
    Until.true?(@end_ms, fn -> not named?(peer) end) || raise_alive(peer)
    release(peer.guard)
  end

  defp named?(peer) do
    {:ok, names} = Controller.names()
    [short, _host] = String.split("#{peer.node}", "@")
    List.keymember?(names, String.to_charlist(short), 0)
  end

  defp raise_alive(peer), do: raise("node #{peer.node} does not end within #{@end_ms} ms")

  defp signal(peer, name) do
    {_output, 0} = System.cmd("kill", ["-s", name, peer.os_pid])
    :ok
  end

  # The signal is sent to the process, and its threads notice it later. Without /proc, nobody knows when.
  defp stopped?(peer) do
    "/proc/#{peer.os_pid}/task/*/stat" |> Path.wildcard() |> Enum.all?(&(File.read!(&1) =~ ~r/\) T /))
  end

  defp code_paths, do: Enum.flat_map(:code.get_path(), &["-pa", to_string(&1)])
end
