defmodule PartitionedBuffer.FullError do
  @moduledoc """
  A write found no room in time, in a buffer with `:max_size` and `when_full: :raise`, the default.
  Nothing of the write is in the buffer.

  `buffer` is the name of the buffer, `max_size` its option when the write began to wait, and
  `waited_ms` the time in milliseconds that the write waited for room. That time is 0 with
  `full_timeout_ms: 0`, and in a processor of the same buffer, which never waits. A list may find no
  room although single entries still do.
  """

  defexception [:buffer, :max_size, :waited_ms]

  @type t() :: %__MODULE__{buffer: atom(), max_size: pos_integer(), waited_ms: non_neg_integer()}

  @impl Exception
  def message(%__MODULE__{buffer: buffer, max_size: max_size, waited_ms: waited_ms}) do
    "buffer #{inspect(buffer)} is full: it holds at most #{max_size} entries, its :max_size, " <>
      "and the write waited #{waited_ms} ms for room"
  end
end
