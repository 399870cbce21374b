defmodule Bench.Postgres.Client do
  @moduledoc """
  A connection to PostgreSQL, by Debian's `erlang-p1-pgsql`.

  It connects at the first statement, and again at the next one after the connection was lost. Every failure is an error value:

    * what the server refuses, with its SQLSTATE,
    * `08001` if there is no connection to be had, `08006` if it was lost, or if the answer did not come in time. Then it is not
      known whether the statement was carried out.

  It takes one statement at a time. p1_pgsql has parameters for prepared statements only, so values are written into the
  statement by `literal/1`.
  """

  use GenServer

  # Without the package, `load/0` is false.
  @compile {:no_warn_undefined, [:pgsql, :pgsql_proto]}

  @connect_timeout 5_000

  @type error() :: {:error, %{code: String.t(), message: String.t()}}

  @doc "Whether p1_pgsql is there. Mix takes the applications that a project does not name off the code path."
  @spec load() :: boolean()
  def load do
    unless Code.ensure_loaded?(:pgsql) do
      [:code.lib_dir(), "p1_pgsql-*/ebin"] |> Path.join() |> Path.wildcard() |> Enum.each(&Code.append_path/1)
    end

    Code.ensure_loaded?(:pgsql)
  end

  def child_spec(opts), do: %{id: opts[:name] || __MODULE__, start: {__MODULE__, :start_link, [opts]}}

  @doc "Options: `:port`, and perhaps a `:name`."
  @spec start_link(keyword()) :: GenServer.on_start()
  def start_link(opts) do
    {port, opts} = Keyword.pop!(opts, :port)
    true = load()
    GenServer.start_link(__MODULE__, port, opts)
  end

  @doc """
  Carries out one statement. `rows` are lists of binaries and `:null`, `count` is the number of rows that it returned or
  changed.
  """
  @spec query(GenServer.server(), iodata(), timeout()) ::
          {:ok, %{rows: [[binary() | :null]], count: non_neg_integer()}} | error()
  def query(client, sql, timeout \\ 15_000),
    do: GenServer.call(client, {:query, IO.iodata_to_binary(sql), timeout}, :infinity)

  @doc "An integer or a text, as it is written in a statement."
  @spec literal(integer() | String.t()) :: iodata()
  # Otherwise a cast would come before the sign, and a sign before this one would begin a comment.
  def literal(integer) when integer < 0, do: [?(, Integer.to_string(integer), ?)]
  def literal(integer) when is_integer(integer), do: Integer.to_string(integer)

  def literal(text) when is_binary(text) do
    (String.valid?(text) and not String.contains?(text, <<0>>)) ||
      raise ArgumentError,
            "PostgreSQL has no text like #{inspect(text)}: it has to be UTF-8 without zero bytes"

    [?', String.replace(text, "'", "''"), ?']
  end

  @impl GenServer
  def init(port) do
    # A lost connection is no reason to die.
    Process.flag(:trap_exit, true)
    {:ok, silent} = StringIO.open("")
    {:ok, %{port: port, connection: nil, silent: silent}}
  end

  @impl GenServer
  def handle_call({:query, sql, timeout}, _from, state) do
    case connected(state) do
      {:ok, connection} ->
        case ask(connection, sql, timeout) do
          {:lost, error} ->
            Process.exit(connection, :kill)
            {:reply, error, %{state | connection: nil}}

          answer ->
            {:reply, answer, %{state | connection: connection}}
        end

      error ->
        {:reply, error, state}
    end
  end

  @impl GenServer
  def handle_info({:EXIT, connection, _reason}, %{connection: connection} = state),
    do: {:noreply, %{state | connection: nil}}

  # That of a task that has connected, or of a connection that was given up.
  def handle_info({:EXIT, _pid, _reason}, state), do: {:noreply, state}

  @impl GenServer
  def terminate(_reason, %{connection: connection}), do: connection && Process.exit(connection, :kill)

  # p1_pgsql has no time limit for all of this, and later prints "Sock closed" on what is the group leader now.
  defp connected(%{connection: nil, port: port, silent: silent}) do
    options = [
      host: ~c"127.0.0.1",
      port: port,
      user: ~c"postgres",
      database: ~c"postgres",
      as_binary: true,
      connect_timeout: @connect_timeout
    ]

    task =
      Task.async(fn ->
        Process.flag(:trap_exit, true)
        Process.group_leader(self(), silent)
        :pgsql_proto.start_link(options)
      end)

    case Task.yield(task, @connect_timeout) || Task.shutdown(task, :brutal_kill) do
      {:ok, {:ok, connection}} ->
        Process.link(connection)
        {:ok, connection}

      {:ok, {:error, {_refused, [{_field, _value} | _] = fields}}} ->
        refused(fields)

      {:ok, {:error, reason}} ->
        error("08001", "no connection: #{inspect(reason)}")

      nil ->
        error("08001", "no connection in #{@connect_timeout} ms")
    end
  end

  defp connected(%{connection: connection}), do: {:ok, connection}

  defp ask(connection, sql, timeout) do
    case :pgsql.squery(connection, sql, timeout) do
      {:ok, [{:error, fields}]} -> refused(fields)
      {:ok, [{command, _columns, rows}]} -> {:ok, %{rows: rows, count: count(command)}}
      {:ok, [command]} -> {:ok, %{rows: [], count: count(command)}}
      {:ok, several} -> error("42601", "#{length(several)} statements instead of one")
    end
  catch
    :exit, {:timeout, _call} -> {:lost, error("08006", "no answer in #{timeout} ms")}
    :exit, {reason, _call} -> {:lost, error("08006", "the connection was lost: #{inspect(reason)}")}
  end

  defp refused(fields) do
    {:code, code} = List.keyfind(fields, :code, 0)
    {:message, message} = List.keyfind(fields, :message, 0)
    error(code, message)
  end

  defp error(code, message), do: {:error, %{code: code, message: message}}

  # Of "INSERT 0 500", "SELECT 3", "CREATE TABLE".
  defp count(command) do
    case command |> String.split() |> List.last() |> Integer.parse() do
      {count, ""} -> count
      :error -> 0
    end
  end
end
