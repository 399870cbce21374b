defmodule PartitionedBuffer.JournalLoop.Ledger do
  @moduledoc false
  # What the processes of a VM did, in files that survive it. Each process has a file of its own, or
  # takes turns with others. A frame is in the file when `note/2` returns; the last one may be torn.

  @doc "Opens the file of the calling process."
  def open!(dir, name) do
    {:ok, file} = :file.open(Path.join(dir, name), [:append, :raw, :binary])
    file
  end

  @doc "Adds a frame with one write of the system."
  def note(file, term) do
    binary = :erlang.term_to_binary(term)
    :ok = :file.write(file, <<byte_size(binary)::32, binary::binary>>)
  end

  @doc "All whole frames of the files whose names begin so, file by file."
  def read(dir, prefix) do
    for name <- Enum.sort(File.ls!(dir)), String.starts_with?(name, prefix) do
      frames(File.read!(Path.join(dir, name)))
    end
  end

  defp frames(<<size::32, binary::binary-size(size), rest::binary>>),
    do: [:erlang.binary_to_term(binary) | frames(rest)]

  defp frames(_torn), do: []

  @doc "The time, which all VMs of a machine share, in microseconds."
  def now, do: System.os_time(:microsecond)
end
