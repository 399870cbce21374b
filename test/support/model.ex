defmodule PartitionedBuffer.Model do
  @moduledoc false
  # The entry of one key by the documentation; nil without an entry.

  @type entry() :: nil | {value :: any(), version :: integer(), updates :: non_neg_integer()}
  @type write() :: {:put, any()} | {:put_newer, any(), integer()} | :delete

  @doc "The entry after a write."
  @spec write(entry(), write()) :: entry()
  def write(_entry, {:put, value}), do: {value, 0, 0}
  def write(nil, {:put_newer, value, version}), do: {value, version, 0}

  def write({_value, old, updates}, {:put_newer, value, version}) when version > old,
    do: {value, version, updates + 1}

  def write(entry, {:put_newer, _value, _version}), do: entry
  def write(_entry, :delete), do: nil
end
