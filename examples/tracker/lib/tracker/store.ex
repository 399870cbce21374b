defmodule Tracker.Store do
  @moduledoc "What the buffers have in common: texts that PostgreSQL can store, and what the result of a statement means."

  # Bad data, constraints, and limits such as that of an index. Such a statement fails again, however often it is repeated.
  @permanent ["22", "23", "54"]

  @doc """
  Checks a text before it gets into a buffer. PostgreSQL has no texts that are not UTF-8 or have zero bytes, and the one who writes
  it should get the error.
  """
  def text!(text) do
    if is_binary(text) and String.valid?(text) and not String.contains?(text, <<0>>),
      do: text,
      else: raise(ArgumentError, "expected a text without zero bytes, got: #{inspect(text)}")
  end

  @doc """
  Runs a statement with the columns of a batch, and returns what the processor returns.

    * PostgreSQL refuses one entry, and always will: the entry is given up.
    * PostgreSQL refuses several entries: the buffer retries them in smaller batches, until the bad one is alone.
    * Any other error, such as a lost connection or a deadlock: the buffer retries, as long as it takes.
  """
  def store(sql, batch, elements) do
    columns = for element <- elements, do: Enum.map(batch, &elem(&1, element))

    case Tracker.DB.query(sql, columns) do
      {:ok, _rows} ->
        :ok

      {:error, {:refused, <<class::binary-size(2), _rest::binary>> = code}}
      when class in @permanent and length(batch) == 1 ->
        {:cancel, {:refused, code}}

      {:error, reason} ->
        {:error, reason}
    end
  end
end
