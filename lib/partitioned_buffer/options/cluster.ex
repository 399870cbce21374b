defmodule PartitionedBuffer.Options.Cluster do
  @moduledoc false
  # The option `:cluster`: how the nodes of an application share a buffer.

  import Bitwise

  alias PartitionedBuffer.Options.Settings

  defstruct forward_ms: 100,
            owners: :all,
            slots: 64,
            uncertain_ms: 15_000,
            call_ms: 5_000,
            max_skew_ms: 10_000

  @type t() :: %__MODULE__{
          forward_ms: pos_integer(),
          owners: :all | pos_integer(),
          slots: pos_integer(),
          uncertain_ms: non_neg_integer(),
          call_ms: pos_integer(),
          max_skew_ms: non_neg_integer()
        }

  # The number of slots decides on the partitions of a stage, which stay.
  @updatable [:forward_ms, :owners, :uncertain_ms, :call_ms, :max_skew_ms]

  # The longest timeout of `receive`.
  @max_ms 4_294_967_295

  @doc """
  The settings of a checked option: `true`, or a keyword list that replaces some.
  """
  @spec new(true | keyword()) :: t()
  def new(true), do: %__MODULE__{}
  def new(settings), do: update(%__MODULE__{}, settings)

  @doc """
  The settings with checked changes.
  """
  @spec update(t(), keyword()) :: t()
  def update(%__MODULE__{} = settings, changes), do: Settings.update(settings, changes)

  @doc """
  Why a value is no option `:cluster`; nil if it is one. An update changes only some settings.
  """
  @spec invalid(any(), :start | :update) :: String.t() | nil
  def invalid(on?, :start) when is_boolean(on?), do: nil

  def invalid(settings, at) do
    known = if at == :start, do: [:slots | @updatable], else: @updatable

    if Keyword.keyword?(settings),
      do: Settings.invalid(settings, known, &valid?/2, &expected/1),
      else: "expected #{if at == :start, do: "a boolean or "}a keyword list, got: #{inspect(settings)}"
  end

  defp valid?(:owners, :all), do: true
  defp valid?(:owners, count), do: is_integer(count) and count > 0

  defp valid?(:slots, slots),
    do: is_integer(slots) and slots in 8..1_024 and (slots &&& slots - 1) == 0

  defp valid?(key, ms) when key in [:forward_ms, :call_ms], do: is_integer(ms) and ms in 1..@max_ms
  defp valid?(_ms, ms), do: is_integer(ms) and ms in 0..@max_ms

  defp expected(:owners), do: ":all or a positive integer"
  defp expected(:slots), do: "a power of 2 from 8 to 1024"

  defp expected(key) when key in [:forward_ms, :call_ms],
    do: "a positive integer up to #{@max_ms} (milliseconds)"

  defp expected(_ms), do: "a non-negative integer up to #{@max_ms} (milliseconds)"
end
