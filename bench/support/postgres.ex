defmodule Bench.Postgres do
  @moduledoc """
  A PostgreSQL server for benchmarks and tests, with a data directory of its own. It can be killed and started again.

  The data is in a new temporary directory, and the server listens on a free port of 127.0.0.1. It trusts everybody, so there
  are no passwords. The server refuses to run as root: root runs it as the user `postgres` of Debian's package.

  The server and its directory go with the process that `start_link/0` starts. If this VM dies, a shell that waits for the end
  of its standard input removes them.
  """

  use GenServer

  alias Bench.Postgres.Client

  @binaries "/usr/lib/postgresql/*/bin"
  @install "apt-get install -y postgresql erlang-p1-pgsql"

  # In seconds. A server that was killed first repeats what its log has.
  @ready_within 60

  @cleanup ~S(read -r _; "$1" -D "$2/data" -m immediate stop; rm -rf "$2")

  @doc "What to install, as a sentence; `nil` if everything is there."
  @spec missing() :: String.t() | nil
  def missing do
    server = if binaries() == nil, do: ["a PostgreSQL server in #{@binaries}"], else: []
    client = if Client.load(), do: [], else: ["the Erlang application p1_pgsql"]

    if server ++ client != [],
      do: "not found: #{Enum.join(server ++ client, ", ")}; on Debian install it as root with `#{@install}`"
  end

  @doc """
  Starts a server with an empty database `postgres` and these settings, linked to the calling process.
  Raises if something is missing.
  """
  @spec start_link(keyword(String.t())) :: GenServer.on_start()
  def start_link(settings \\ []) do
    if sentence = missing(), do: raise(sentence)
    GenServer.start_link(__MODULE__, {binaries(), settings})
  end

  @doc "The port that it listens on, also after `start!/1`."
  @spec port(GenServer.server()) :: :inet.port_number()
  def port(postgres), do: GenServer.call(postgres, :port)

  @doc "Ends the server at once, as a crash would: statements under way are lost, and so are all connections."
  @spec kill!(GenServer.server()) :: :ok
  def kill!(postgres), do: GenServer.call(postgres, :kill, :infinity)

  @doc "Starts a server that was killed. It accepts connections when the call returns."
  @spec start!(GenServer.server()) :: :ok
  def start!(postgres), do: GenServer.call(postgres, :start, :infinity)

  @doc "Ends the server and removes its data."
  @spec destroy(GenServer.server()) :: :ok
  def destroy(postgres), do: GenServer.stop(postgres)

  @impl GenServer
  def init({binaries, settings}) do
    # For `terminate/2`.
    Process.flag(:trap_exit, true)
    template = Path.join(System.tmp_dir!(), "partitioned_buffer_postgres_XXXXXX")
    dir = String.trim(run!("mktemp", ["-d", template], System.tmp_dir!()))
    state = %{binaries: binaries, dir: dir, port: free_port(), cleanup: cleanup(binaries, dir)}

    # The directory dies with the server, so nothing is to be flushed to disk yet.
    postgres!(state, "initdb", ~w(-D data -U postgres -A trust -E UTF8 --locale=C --no-sync))

    File.write!(
      Path.join(dir, "data/postgresql.conf"),
      """
      listen_addresses = '127.0.0.1'
      port = #{state.port}
      unix_socket_directories = '#{dir}'
      #{Enum.map_join(settings, "\n", fn {name, value} -> "#{name} = #{value}" end)}
      """,
      [:append]
    )

    start_server(state)
    {:ok, state}
  end

  @impl GenServer
  def handle_call(:port, _from, state), do: {:reply, state.port, state}
  def handle_call(:start, _from, state), do: {:reply, start_server(state), state}

  def handle_call(:kill, _from, state) do
    postgres!(state, "pg_ctl", ~w(-D data -w -m immediate stop))
    {:reply, :ok, state}
  end

  # The port of a command has ended.
  @impl GenServer
  def handle_info({:EXIT, _port, :normal}, state), do: {:noreply, state}

  @impl GenServer
  def terminate(_reason, %{cleanup: cleanup}) do
    Port.command(cleanup, "\n")
    receive do: ({^cleanup, {:exit_status, _status}} -> :ok)
  end

  defp start_server(state) do
    postgres!(state, "pg_ctl", ~w(-D data -w -t #{@ready_within} -l log start))
    :ok
  end

  defp postgres!(%{binaries: binaries, dir: dir}, program, args),
    do: run!(Path.join(binaries, program), args, dir)

  defp run!(program, args, dir) do
    {program, args} = as_postgres(program, args)
    {output, status} = System.cmd(program, args, cd: dir, stderr_to_stdout: true)

    status == 0 ||
      raise "#{Enum.join([program | args], " ")} exited with #{status}:\n#{output}#{log(dir)}"

    output
  end

  defp log(dir) do
    case File.read(Path.join(dir, "log")) do
      {:ok, log} -> "\nIts log:\n#{log}"
      {:error, _none_yet} -> ""
    end
  end

  # Its standard input ends with this VM, however that ends.
  defp cleanup(binaries, dir) do
    {shell, args} =
      as_postgres("/bin/sh", [
        "-c",
        "exec >/dev/null 2>&1; " <> @cleanup,
        "sh",
        Path.join(binaries, "pg_ctl"),
        dir
      ])

    Port.open({:spawn_executable, System.find_executable(shell)}, [:exit_status, args: args, cd: "/"])
  end

  defp as_postgres(program, args) do
    case System.cmd("id", ["-u"]) do
      {"0\n", 0} -> {"runuser", ["-u", "postgres", "--", program | args]}
      {_another_user, 0} -> {program, args}
    end
  end

  # The newest.
  defp binaries do
    @binaries
    |> Path.join("initdb")
    |> Path.wildcard()
    |> Enum.map(&Path.dirname/1)
    |> Enum.max_by(&version/1, fn -> nil end)
  end

  defp version(binaries) do
    {version, _rest} = binaries |> Path.dirname() |> Path.basename() |> Integer.parse()
    version
  end

  defp free_port do
    {:ok, socket} = :gen_tcp.listen(0, ip: {127, 0, 0, 1})
    {:ok, port} = :inet.port(socket)
    :gen_tcp.close(socket)
    port
  end
end
