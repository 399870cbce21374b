defmodule PartitionedBuffer.FullError do
  @moduledoc """
  A write found no room in time, in a buffer with `:max_size` or `:max_bytes` and `when_full: :raise`,
  the default.
  Nothing of the write is in the buffer.

  `buffer` is the name of the buffer, `max_size` and `max_bytes` its options when the write began to
  wait, and `waited_ms` the time in milliseconds that the write waited for room. That time is 0 with
  `full_timeout_ms: 0`, and in a processor of the same buffer, which never waits. A list may find no
  room although single entries still do.
  """

  defexception [:buffer, :max_size, :waited_ms, max_bytes: :infinity]

  @type t() :: %__MODULE__{
          buffer: atom(),
          max_size: pos_integer() | :infinity,
          max_bytes: pos_integer() | :infinity,
          waited_ms: non_neg_integer()
        }

  @impl Exception
  def message(%__MODULE__{buffer: buffer, waited_ms: waited_ms} = error) do
    "buffer #{inspect(buffer)} is full: it holds at most #{bound(error)}, " <>
      "and the write waited #{waited_ms} ms for room"
  end

  defp bound(%__MODULE__{max_size: max_size, max_bytes: :infinity}), do: "#{max_size} entries, its :max_size"
  defp bound(%__MODULE__{max_size: :infinity, max_bytes: bytes}), do: "#{bytes} bytes, its :max_bytes"

  defp bound(%__MODULE__{max_size: max_size, max_bytes: bytes}),
    do: "#{max_size} entries, its :max_size, and #{bytes} bytes, its :max_bytes"
end
