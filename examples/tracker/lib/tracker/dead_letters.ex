defmodule Tracker.DeadLetters do
  @moduledoc """
  Files with the entries that were given up: those that PostgreSQL refuses, and those that a shutdown during an outage has left.

  Each call of `write/3` makes a file of its own, and gives it its name when it is complete. So a reader never sees a part of one.
  """

  @doc "Makes the directory. The application does not start if that is not possible."
  def init!, do: File.mkdir_p!(directory())

  @doc "Writes entries. They are lost if this raises, and the buffer logs their count."
  def write(entries, reason, buffer) do
    path = Path.join(directory(), "#{System.system_time()}_#{System.unique_integer([:positive])}")
    File.write!(path <> ".incomplete", :erlang.term_to_binary({buffer, entries, reason}), [:sync])
    File.rename!(path <> ".incomplete", path)
  end

  @doc """
  Calls a function with the name of the buffer, the entries and the reason of each file, the oldest first. A file is removed when
  the function has returned. If it raises, that file and all later ones are still there.
  """
  def each(fun) do
    for name <- directory() |> File.ls!() |> Enum.sort(), Path.extname(name) == "" do
      path = Path.join(directory(), name)
      {buffer, entries, reason} = path |> File.read!() |> :erlang.binary_to_term()
      fun.(buffer, entries, reason)
      File.rm!(path)
    end

    :ok
  end

  defp directory, do: Application.fetch_env!(:tracker, __MODULE__)[:directory]
end
