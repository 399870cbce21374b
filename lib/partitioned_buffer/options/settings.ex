defmodule PartitionedBuffer.Options.Settings do
  @moduledoc false
  # The settings of an option that is a keyword list. Each module of such an option has a struct for
  # them.

  @doc """
  The settings with checked changes. The first of duplicate keys counts.
  """
  @spec update(settings, keyword()) :: settings when settings: struct()
  def update(settings, changes), do: struct!(settings, Enum.uniq_by(changes, &elem(&1, 0)))

  @doc """
  Why a keyword list has other settings than the `known` ones, or an invalid value; nil if it has not.
  `expected` returns the description of the valid values of a key.
  """
  @spec invalid(keyword(), [atom()], (atom(), any() -> boolean()), (atom() -> String.t())) :: String.t() | nil
  def invalid(settings, known, valid?, expected) do
    Enum.find_value(settings, fn {key, value} ->
      cond do
        key not in known ->
          "expected some of #{Enum.map_join(known, ", ", &inspect/1)}, got: #{inspect(key)}"

        not valid?.(key, value) ->
          "expected #{key}: #{expected.(key)}, got: #{inspect(value)}"

        true ->
          nil
      end
    end)
  end
end
