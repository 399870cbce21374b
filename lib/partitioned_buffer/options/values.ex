defmodule PartitionedBuffer.Options.Values do
  @moduledoc false
  # The valid values of each start option but `:cluster` and `:journal`.

  alias PartitionedBuffer.Options.Preset

  # The longest timeout of `receive`.
  @max_ms 4_294_967_295

  # The most entries that a bound or a threshold can count.
  @max_count 4_294_967_295

  # More bytes than any machine has.
  @max_bytes 1_152_921_504_606_846_976

  @doc """
  Whether an option may have a value.
  """
  @spec valid?(atom(), any()) :: boolean()
  def valid?(:name, name), do: is_atom(name) and name != nil

  # A module of a buffer kind exports `__kind__/0`, since it is a layer above this module.
  def valid?(:module, module),
    do: is_atom(module) and Code.ensure_loaded?(module) and function_exported?(module, :__kind__, 0)

  def valid?(:preset, preset), do: Keyword.has_key?(Preset.all(), preset)

  def valid?(key, {m, f, args}) when key in [:processor, :format_reason],
    do: is_atom(m) and is_atom(f) and is_list(args) and List.improper?(args) == false

  def valid?(key, function) when key in [:processor, :format_reason], do: is_function(function, 1)
  def valid?(:partitions, count), do: is_integer(count) and count in 0..4_096
  def valid?(:max_attempts, attempts), do: attempts == :infinity or (is_integer(attempts) and attempts > 0)

  def valid?(:retry_backoff_ms, {min, max}),
    do: is_integer(min) and is_integer(max) and min >= 0 and min <= max and max <= @max_ms

  def valid?(:retry_backoff_ms, function), do: is_function(function, 1)
  def valid?(:dead_letter, {_m, _f, _args} = mfa), do: valid?(:processor, mfa)
  def valid?(:dead_letter, function), do: is_function(function, 2)
  def valid?(:processing_interval_ms, :infinity), do: true
  def valid?(:processing_interval_ms, ms), do: is_integer(ms) and ms > 0 and ms <= max_interval_ms()
  def valid?(:processing_jitter_ms, ms), do: is_integer(ms) and ms in 0..@max_ms
  def valid?(key, :infinity) when key in [:processing_timeout_ms, :drain_timeout_ms], do: true

  def valid?(key, ms) when key in [:processing_timeout_ms, :drain_timeout_ms],
    do: is_integer(ms) and ms in 0..@max_ms

  def valid?(:order, order), do: order in [:strict, :none]
  def valid?(:versions, versions), do: versions in [:clock, :own]
  def valid?(:processing_batch_size, :table), do: true
  def valid?(:processing_batch_size, {_acc, function}), do: is_function(function, 2)
  def valid?(:processing_batch_size, size), do: is_integer(size) and size > 0

  def valid?(key, :infinity) when key in [:processing_threshold, :max_size], do: true

  def valid?(key, count) when key in [:processing_threshold, :max_size],
    do: is_integer(count) and count in 1..@max_count

  def valid?(key, :infinity) when key in [:max_bytes, :processing_batch_bytes], do: true

  def valid?(key, bytes) when key in [:max_bytes, :processing_batch_bytes],
    do: is_integer(bytes) and bytes in 1..@max_bytes

  def valid?(:when_full, what), do: what in [:raise, :error, :drop_newest]
  def valid?(:full_timeout_ms, ms), do: is_integer(ms) and ms in 0..@max_ms

  @doc """
  What a valid value is, for error messages.
  """
  @spec expected(atom()) :: String.t()
  def expected(:name), do: "an atom"

  def expected(:module),
    do: "PartitionedBuffer.Map, PartitionedBuffer.Queue or PartitionedBuffer.Counter"

  def expected(:preset), do: Preset.all() |> Keyword.keys() |> Enum.map_join(", ", &inspect/1)

  def expected(key) when key in [:processor, :format_reason],
    do: "a function of arity 1 or {module, function, args}"

  def expected(:partitions), do: "a non-negative integer up to 4096"
  def expected(:max_attempts), do: "a positive integer or :infinity"

  def expected(:retry_backoff_ms),
    do: "{min, max} with 0 <= min <= max <= #{@max_ms} (milliseconds), or a function of arity 1"

  def expected(:dead_letter), do: "a function of arity 2 or {module, function, args}"

  def expected(:processing_interval_ms),
    do: "a positive integer up to #{max_interval_ms()} (milliseconds) or :infinity"

  def expected(:processing_jitter_ms),
    do: "a non-negative integer up to #{@max_ms} (milliseconds)"

  def expected(key) when key in [:processing_timeout_ms, :drain_timeout_ms],
    do: "a non-negative integer up to #{@max_ms} (milliseconds) or :infinity"

  def expected(:order), do: ":strict or :none"

  def expected(:versions), do: ":clock or :own"

  def expected(:processing_batch_size),
    do: "a positive integer, :table, or {acc, function} with a function of arity 2"

  def expected(key) when key in [:processing_threshold, :max_size],
    do: "a positive integer up to #{@max_count} or :infinity"

  def expected(key) when key in [:max_bytes, :processing_batch_bytes],
    do: "a positive integer up to #{@max_bytes} (bytes) or :infinity"

  def expected(:when_full), do: ":raise, :error or :drop_newest"
  def expected(:full_timeout_ms), do: "a non-negative integer up to #{@max_ms} (milliseconds)"

  # `:erlang.start_timer/4` takes no time after the end of the VM's clock. The clock starts below 0
  # and stays there for years, so the current time plus this interval is before its end.
  defp max_interval_ms, do: System.convert_time_unit(:erlang.system_info(:end_time), :native, :millisecond)
end
