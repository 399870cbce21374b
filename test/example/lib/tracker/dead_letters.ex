defmodule Tracker.DeadLetters do
  @moduledoc """
  A file with the entries that were given up: those that PostgreSQL refuses, and those that a shutdown during an outage has left.
  """

  @doc "Adds entries. They are lost if this raises, and the buffer logs their count."
  def write(entries, reason, buffer) do
    lines =
      for entry <- entries, do: [{buffer, entry, reason} |> :erlang.term_to_binary() |> Base.encode64(), ?\n]

    File.write!(path(), lines, [:append, :sync])
  end

  @doc """
  Takes all entries out of the file, as `{buffer, entry, reason}`. It is renamed before it is read, so entries that are written
  meanwhile are in a new one.
  """
  def take do
    taken = path() <> ".taken"

    with :ok <- File.rename(path(), taken) do
      letters =
        for line <- File.stream!(taken),
            do: line |> String.trim() |> Base.decode64!() |> :erlang.binary_to_term()

      File.rm!(taken)
      letters
    else
      {:error, :enoent} -> []
    end
  end

  defp path, do: Application.fetch_env!(:tracker, __MODULE__)[:path]
end
