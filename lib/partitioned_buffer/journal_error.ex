defmodule PartitionedBuffer.JournalError do
  @moduledoc """
  A write was refused, since the journal of the buffer is too far behind: its lag is above
  `max_lag_ms`, the buffer has `when_behind: :refuse` and `when_full: :raise`, the default. Nothing of
  the write is in the buffer.

  `buffer` is the name of the buffer, `lag_ms` the age of the oldest change that the journal does not
  have, in milliseconds, and `max_lag_ms` the option.
  """

  defexception [:buffer, :lag_ms, :max_lag_ms]

  @type t() :: %__MODULE__{buffer: atom(), lag_ms: non_neg_integer(), max_lag_ms: pos_integer()}

  @impl Exception
  def message(%__MODULE__{buffer: buffer, lag_ms: lag_ms, max_lag_ms: max_lag_ms}) do
    "the journal of buffer #{inspect(buffer)} is #{lag_ms} ms behind, more than its max_lag_ms: #{max_lag_ms}"
  end
end
