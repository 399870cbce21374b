defmodule Tracker.DB do
  @moduledoc """
  Connections to PostgreSQL: a stand-in for `Postgrex`, because this example also runs where Hex cannot be reached. The driver has no
  parameters, so they are written into the statement, and its rows are texts. To use Postgrex, start
  `{Postgrex, name: Tracker.Postgrex, pool_size: 6}` in the place of `Tracker.DB`, and let this module be

      def query(sql, parameters \\ []) do
        case Postgrex.query(Tracker.Postgrex, sql, parameters) do
          {:ok, result} -> {:ok, result.rows}
          {:error, %Postgrex.Error{postgres: %{pg_code: code}}} -> {:error, {:refused, code}}
          {:error, error} -> {:error, {:down, error}}
        end
      end
  """

  use Supervisor

  alias Tracker.DB.Connection

  # As many as the partitions of all buffers.
  @connections 6

  def start_link(_opts), do: Supervisor.start_link(__MODULE__, [], name: __MODULE__)

  @impl Supervisor
  def init(_opts) do
    children = for n <- 1..@connections, do: Supervisor.child_spec({Connection, n}, id: n)
    Supervisor.init(children, strategy: :one_for_one)
  end

  @doc """
  Runs a statement. A list is an array. Returns rows of texts; `{:error, {:refused, sqlstate}}` if PostgreSQL has refused the
  statement; `{:error, {:down, reason}}` if there was no answer.
  """
  def query(sql, parameters \\ []) do
    literals = for {value, n} <- Enum.with_index(parameters, 1), into: %{}, do: {"$#{n}", literal(value)}
    sql = Regex.replace(~r/\$\d+/, sql, &Map.fetch!(literals, &1))
    Connection.query(:rand.uniform(@connections), sql)
  end

  defp literal(list) when is_list(list), do: "ARRAY[#{Enum.map_join(list, ",", &literal/1)}]"
  defp literal(integer) when is_integer(integer), do: "(#{integer})"
  defp literal(text) when is_binary(text), do: "'" <> String.replace(text, "'", "''") <> "'"
end
