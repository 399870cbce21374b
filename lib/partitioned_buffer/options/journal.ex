defmodule PartitionedBuffer.Options.Journal do
  @moduledoc false
  # The option `:journal`: where a buffer keeps a copy of its entries, and how far the copy may be behind.

  alias PartitionedBuffer.Options.Settings

  @enforce_keys [:dir]
  defstruct dir: nil,
            write_ms: 5,
            sync_ms: 1_000,
            max_bytes: 67_108_864,
            when_behind: :accept,
            max_lag_ms: 10_000

  @type t() :: %__MODULE__{
          dir: Path.t(),
          write_ms: pos_integer(),
          sync_ms: pos_integer() | :infinity,
          max_bytes: pos_integer(),
          when_behind: :accept | :refuse,
          max_lag_ms: pos_integer()
        }

  @updatable [:write_ms, :sync_ms, :when_behind]
  @known [:dir, :max_bytes, :max_lag_ms | @updatable]

  # The longest timeout of `receive`.
  @max_ms 4_294_967_295

  # More bytes than any machine has.
  @max_bytes 1_152_921_504_606_846_976

  @doc """
  The settings of a checked option: a path, or a keyword list.
  """
  @spec new(Path.t() | keyword()) :: t()
  def new(dir) when is_binary(dir), do: new(dir: dir)

  def new(settings) do
    {dir, others} = Keyword.pop!(settings, :dir)
    # A later change of the working directory moves no journal.
    update(%__MODULE__{dir: Path.expand(dir)}, others)
  end

  @doc """
  The settings with checked changes.
  """
  @spec update(t(), keyword()) :: t()
  def update(%__MODULE__{} = settings, changes), do: Settings.update(settings, changes)

  @doc """
  The directory of a buffer's journal, which other buffers with the same `:dir` do not use.
  """
  @spec path(Path.t(), atom(), atom()) :: Path.t()
  def path(dir, buffer, kind), do: Path.join([dir, file_name(buffer), Atom.to_string(kind)])

  # A name may have slashes, or be a name with a meaning for the file system.
  defp file_name(buffer) do
    case URI.encode(Atom.to_string(buffer), &URI.char_unreserved?/1) do
      <<".", rest::binary>> -> "%2E" <> rest
      name -> name
    end
  end

  @doc """
  Why a value is no option `:journal`; nil if it is one. An update changes only some settings.
  """
  @spec invalid(any(), :start | :update) :: String.t() | nil
  def invalid(nil, :start), do: nil
  def invalid(dir, :start) when is_binary(dir), do: invalid([dir: dir], :start)

  def invalid(settings, at) do
    known = if at == :start, do: @known, else: @updatable

    cond do
      not Keyword.keyword?(settings) ->
        "expected #{if at == :start, do: "a path or "}a keyword list, got: #{inspect(settings)}"

      at == :start and not Keyword.has_key?(settings, :dir) ->
        "expected dir: #{expected(:dir)}, which is missing in #{inspect(settings)}"

      true ->
        Settings.invalid(settings, known, &valid?/2, &expected/1)
    end
  end

  defp valid?(:dir, dir), do: is_binary(dir) and dir != "" and not String.contains?(dir, <<0>>)
  defp valid?(:write_ms, ms), do: is_integer(ms) and ms in 1..60_000
  defp valid?(:sync_ms, :infinity), do: true
  defp valid?(:sync_ms, ms), do: is_integer(ms) and ms in 1..3_600_000
  defp valid?(:max_bytes, bytes), do: is_integer(bytes) and bytes in 1_048_576..@max_bytes
  defp valid?(:when_behind, what), do: what in [:accept, :refuse]
  defp valid?(:max_lag_ms, ms), do: is_integer(ms) and ms in 1..@max_ms

  defp expected(:dir), do: "the path of a directory, as a string"
  defp expected(:write_ms), do: "a positive integer up to 60000 (milliseconds)"
  defp expected(:sync_ms), do: "a positive integer up to 3600000 (milliseconds) or :infinity"
  defp expected(:max_bytes), do: "an integer from 1048576 to #{@max_bytes} (bytes)"
  defp expected(:when_behind), do: ":accept or :refuse"
  defp expected(:max_lag_ms), do: "a positive integer up to #{@max_ms} (milliseconds)"
end
