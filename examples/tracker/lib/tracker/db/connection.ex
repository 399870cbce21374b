defmodule Tracker.DB.Connection do
  @moduledoc false
  # Connects at the first statement, and again at the next one after the connection was lost.

  use GenServer

  def start_link(number), do: GenServer.start_link(__MODULE__, [], name: name(number))
  def query(number, sql), do: GenServer.call(name(number), {:query, sql}, :infinity)
  defp name(number), do: Module.concat(__MODULE__, "N#{number}")

  @impl GenServer
  def init(_opts) do
    Process.flag(:trap_exit, true)
    {:ok, nil}
  end

  @impl GenServer
  def handle_call({:query, sql}, _from, connection) do
    case connection || connect() do
      {:error, reason} -> {:reply, {:error, {:down, reason}}, nil}
      connection -> {:reply, ask(connection, sql), connection}
    end
  end

  @impl GenServer
  def handle_info({:EXIT, connection, _reason}, connection), do: {:noreply, nil}
  def handle_info({:EXIT, _other, _reason}, connection), do: {:noreply, connection}

  defp connect do
    port = Application.fetch_env!(:tracker, Tracker.DB)[:port]

    options = [
      host: ~c"127.0.0.1",
      port: port,
      user: ~c"postgres",
      database: ~c"postgres",
      as_binary: true
    ]

    with {:ok, connection} <- :pgsql_proto.start_link(options), do: connection
  end

  defp ask(connection, sql) do
    case :pgsql.squery(connection, sql) do
      {:ok, [{:error, fields}]} -> {:error, {:refused, fields |> List.keyfind!(:code, 0) |> elem(1)}}
      {:ok, [{_command, _columns, rows}]} -> {:ok, rows}
      {:ok, [_command]} -> {:ok, []}
    end
  catch
    :exit, _reason -> {:error, {:down, :closed}}
  end
end
