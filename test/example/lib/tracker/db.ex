defmodule Tracker.DB do
  @moduledoc """
  Connections to PostgreSQL. A stand-in for `Postgrex`, whose `query/3` it resembles: the driver of Debian has no parameters, so they
  are written into the statement.
  """

  use Supervisor

  alias Tracker.DB.Connection

  @connections 4

  def start_link(_opts), do: Supervisor.start_link(__MODULE__, [], name: __MODULE__)

  @impl Supervisor
  def init(_opts) do
    children = for n <- 1..@connections, do: Supervisor.child_spec({Connection, n}, id: n)
    Supervisor.init(children, strategy: :one_for_one)
  end

  @doc "Carries out a statement. A list is an array. Returns rows of texts."
  def query(sql, parameters \\ []) do
    literals = for {value, n} <- Enum.with_index(parameters, 1), into: %{}, do: {"$#{n}", literal(value)}
    sql = Regex.replace(~r/\$\d+/, sql, &Map.fetch!(literals, &1))
    Connection.query(:rand.uniform(@connections), sql)
  end

  defp literal(list) when is_list(list), do: "ARRAY[#{Enum.map_join(list, ",", &literal/1)}]"
  defp literal(integer) when is_integer(integer), do: "(#{integer})"
  defp literal(text) when is_binary(text), do: "'" <> String.replace(text, "'", "''") <> "'"
end
