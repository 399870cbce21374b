defmodule PartitionedBuffer.Journal do
  @moduledoc """
  Reads and removes the journal of a buffer that does not run.

  The option `:journal` of a buffer keeps a copy of its entries in files, from which the next VM restores
  them after a crash. The guide [Surviving a crash](surviving-a-crash.md) explains it. Nobody needs the
  functions here in normal operation: they are for the day on which a start is refused, and for that on
  which the option is taken away.

  The directory of a journal is `dir/<name>/<kind>`, as `PartitionedBuffer.info/1` shows it:
  `dir` from the option, the name of the buffer, and `map`, `counter` or `queue`.
  """

  alias PartitionedBuffer.{Library, Native}

  @kinds ~w(map counter queue)

  @typedoc "An entry as its processor gets it."
  @type entry() ::
          {key :: any(), value :: any(), version :: integer(), updates :: non_neg_integer()}
          | {key :: any(), sum :: integer(), count :: pos_integer()}
          | (item :: any())

  @typedoc """
  What a journal holds. `damaged` has the file, the offset and the number of bytes of each stretch that
  no checksum fits; `torn_bytes` are those of a tail that was being written.
  """
  @type contents() :: %{
          entries: [entry()],
          damaged: [{Path.t(), offset :: non_neg_integer(), bytes :: pos_integer()}],
          torn_bytes: non_neg_integer(),
          damaged_records: non_neg_integer()
        }

  @doc """
  Reads the journal in a directory. It changes nothing, and needs no lock: the latest
  changes of a running buffer may be missing.

  The entries come as the next start would restore them, those given up first. Returns
  `{:error, posix}` if a file cannot be read, and `{:error, {:format, version}}` if a newer version of
  this package wrote them. Raises an `ArgumentError` if the path does not end with a kind.
  """
  @spec read(Path.t()) :: {:ok, contents()} | {:error, File.posix() | {:format, pos_integer()}}
  def read(dir) when is_binary(dir) do
    kind = kind!(dir)
    Library.check!()

    with {:ok, {entries, damaged, torn_bytes, damaged_records}} <- Native.read_journal(dir, kind) do
      damaged = for {segment, offset, bytes} <- damaged, do: {file(dir, segment), offset, bytes}

      {:ok,
       %{
         entries: Enum.map(entries, &entry/1),
         damaged: damaged,
         torn_bytes: torn_bytes,
         damaged_records: damaged_records
       }}
    end
  end

  @doc """
  Removes a journal with its directory, damaged files included. Other files there stay, and so does the
  directory then. Returns `{:error, :locked}` while a buffer uses it, and `:ok` if it is not there.
  Raises as `read/1` does.
  """
  @spec delete(Path.t()) :: :ok | {:error, :locked | File.posix()}
  def delete(dir) when is_binary(dir) do
    _kind = kind!(dir)
    Library.check!()
    Native.delete_journal(dir)
  end

  defp kind!(dir) do
    kind = Path.basename(dir)

    unless kind in @kinds do
      raise ArgumentError,
            "expected the directory of a journal, which ends with a kind, such as dir/Elixir.MyApp.Buffer/map, " <>
              "got: #{inspect(dir)}"
    end

    String.to_existing_atom(kind)
  end

  defp file(dir, segment) do
    name = segment |> Integer.to_string(16) |> String.downcase() |> String.pad_leading(16, "0")
    Path.join(dir, name <> ".log")
  end

  defp entry({:value, key, value, version, updates}),
    do: {term(key), term(value), if(is_binary(version), do: term(version), else: version), updates}

  defp entry({:sum, key, sum, count}), do: {term(key), sum, count}
  defp entry({:item, item}), do: term(item)

  defp term(bytes), do: :erlang.binary_to_term(<<131, bytes::binary>>)
end
