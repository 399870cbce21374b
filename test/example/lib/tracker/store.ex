defmodule Tracker.Store do
  @moduledoc "What the processors of all buffers have in common: a statement, and what its result means for the batch."

  require Logger

  # Data that PostgreSQL does not take, and constraints. Such a statement fails again, however often it is repeated.
  @permanent ["22", "23"]

  @doc """
  Runs a statement with the columns of a batch, and returns what the processor returns.

    * The database is down: nothing is wrong with the entries, so the buffer tries again in a second.
    * PostgreSQL refuses one entry, and always will: the entry is given up.
    * PostgreSQL refuses several entries: the buffer tries them again in smaller batches, until the bad one is alone.
    * Any other error, such as a deadlock: the buffer tries again.
  """
  def store(sql, batch, elements) do
    columns = for element <- elements, do: Enum.map(batch, &elem(&1, element))

    case Tracker.DB.query(sql, columns) do
      {:ok, _rows} ->
        :ok

      {:error, {:down, reason}} ->
        Logger.warning("the database is down: #{inspect(reason)}")
        {:snooze, 1_000}

      {:error, {:refused, <<class::binary-size(2), _rest::binary>> = code}}
      when class in @permanent and length(batch) == 1 ->
        {:cancel, {:refused, code}}

      {:error, reason} ->
        {:error, reason}
    end
  end
end
