defmodule PartitionedBuffer.Options do
  @moduledoc false
  # Checks the options of a start, of an update and of a single call: all of them before any is used.

  require Logger

  alias __MODULE__

  @enforce_keys [:name, :processor, :module]
  defstruct @enforce_keys ++
              [
                :partitions,
                :max_attempts,
                :dead_letter,
                :drain_timeout_ms,
                processing_interval_ms: 5_000,
                processing_jitter_ms: 0,
                processing_timeout_ms: 60_000,
                processing_batch_size: 10,
                processing_threshold: :infinity,
                max_size: :infinity,
                when_full: :raise,
                full_timeout_ms: 5_000,
                retry_backoff_ms: {1_000, 30_000}
              ]

  @type t() :: %Options{
          name: atom(),
          processor: (list() -> any()) | {module(), atom(), list()},
          module: module(),
          partitions: non_neg_integer(),
          max_attempts: pos_integer() | :infinity | nil,
          dead_letter: (list(), any() -> any()) | {module(), atom(), list()} | nil,
          drain_timeout_ms: timeout(),
          retry_backoff_ms: {non_neg_integer(), non_neg_integer()} | (pos_integer() -> non_neg_integer()),
          processing_interval_ms: pos_integer() | :infinity,
          processing_jitter_ms: non_neg_integer(),
          processing_timeout_ms: timeout(),
          processing_batch_size: pos_integer() | :table,
          processing_threshold: pos_integer() | :infinity,
          max_size: pos_integer() | :infinity,
          when_full: :raise | :error | :drop_newest,
          full_timeout_ms: non_neg_integer()
        }

  @typedoc "The kind of a buffer."
  @type kind() :: :map | :queue | :counter

  @updatable [
    :processing_interval_ms,
    :processing_jitter_ms,
    :processing_timeout_ms,
    :processing_batch_size,
    :processing_threshold,
    :max_size,
    :when_full,
    :full_timeout_ms,
    :max_attempts,
    :retry_backoff_ms,
    :drain_timeout_ms
  ]
  @start [:name, :processor, :module, :partitions, :dead_letter | @updatable]

  # The module of each kind of buffer, and the kind's name in the native library.
  @kinds %{
    PartitionedBuffer.Map => :map,
    PartitionedBuffer.Queue => :queue,
    PartitionedBuffer.Counter => :counter
  }

  # The longest timeout of `receive`.
  @max_ms 4_294_967_295

  # The most entries that a bound or a threshold can count.
  @max_count 4_294_967_295

  # The pause if the user's function of it fails.
  @fallback_ms 30_000

  @doc """
  The options to start a buffer with. Other keys are ignored: a child specification may carry more.
  """
  @spec start!(keyword()) :: t()
  def start!(options) do
    name = name(options)
    check_keyword!(options, "the options of", name)
    given = options |> Keyword.take(@start) |> first_of_each()

    for key <- [:name, :processor, :module], not Keyword.has_key?(given, key) do
      raise!(
        key,
        nil,
        "required option #{inspect(key)} of #{buffer(name)} is missing: expected #{expected(key)}"
      )
    end

    Enum.each(given, &check!(&1, name))

    given
    |> Keyword.put_new_lazy(:partitions, &System.schedulers_online/0)
    |> Keyword.put_new(:drain_timeout_ms, if(given[:max_attempts], do: 60_000, else: :infinity))
    |> then(&struct!(Options, &1))
    |> consistent!()
  end

  @doc """
  Whether the processor's outcomes count.
  """
  @spec outcomes?(t()) :: boolean()
  def outcomes?(%Options{max_attempts: max_attempts}), do: max_attempts != nil

  @doc """
  The name in unchecked options; nil if there is none.
  """
  @spec name(any()) :: any()
  def name(options), do: if(Keyword.keyword?(options), do: options[:name])

  @doc """
  The kind of the buffer, by its name in the native library.
  """
  @spec kind(t()) :: kind()
  def kind(%Options{module: module}), do: Map.fetch!(@kinds, module)

  @doc """
  The changes that `update_options/2` is to make.
  """
  @spec changes!(atom(), keyword()) :: keyword()
  def changes!(name, changes) do
    check_keyword!(changes, "the updated options of", name)
    check_known!(changes, @updatable, "update_options/2 of", name)
    changes = first_of_each(changes)
    Enum.each(changes, &check!(&1, name))
    changes
  end

  @doc """
  The options with changes, or the exception that `update_options/2` raises.
  """
  @spec update(t(), keyword()) :: {:ok, t()} | {:error, Exception.t()}
  def update(%Options{name: name} = options, changes) do
    if Keyword.has_key?(changes, :max_attempts) and not outcomes?(options) do
      raise!(
        :max_attempts,
        changes[:max_attempts],
        "update_options/2 of #{buffer(name)} cannot set :max_attempts: the buffer was started without it"
      )
    end

    {:ok, options |> struct!(changes) |> consistent!()}
  rescue
    error -> {:error, error}
  end

  defp consistent!(%Options{max_attempts: nil, dead_letter: dead_letter, name: name})
       when dead_letter != nil do
    raise!(
      :dead_letter,
      dead_letter,
      "option :dead_letter of #{buffer(name)} needs :max_attempts: without it, nothing is given up"
    )
  end

  defp consistent!(%Options{processing_batch_size: :table, max_attempts: max_attempts, name: name})
       when max_attempts != nil do
    raise!(
      :processing_batch_size,
      :table,
      "option processing_batch_size: :table of #{buffer(name)} excludes :max_attempts: a table has no outcome for each entry"
    )
  end

  defp consistent!(%Options{} = options), do: options

  @doc """
  How many milliseconds a partition pauses after so many failures in a row.
  """
  @spec backoff(t(), pos_integer()) :: non_neg_integer()
  def backoff(%Options{retry_backoff_ms: {min, max}}, failures) do
    longest = min(max, min * 2 ** min(failures - 1, 32))
    half = div(longest, 2)
    longest - half + :rand.uniform(half + 1) - 1
  end

  def backoff(%Options{retry_backoff_ms: function, name: name}, failures) do
    case function.(failures) do
      ms when is_integer(ms) and ms in 0..@max_ms ->
        ms

      other ->
        raise ArgumentError,
              "expected an integer from 0 to #{@max_ms} (milliseconds), got: #{inspect(other)}"
    end
  rescue
    error ->
      Logger.error(
        "the function :retry_backoff_ms of buffer #{inspect(name)} has failed, so the pause is #{@fallback_ms} ms: " <>
          Exception.message(error)
      )

      @fallback_ms
  end

  @doc """
  The shortest pause, for a stop.
  """
  @spec shortest_backoff(t()) :: non_neg_integer()
  def shortest_backoff(%Options{retry_backoff_ms: {min, _max}}), do: min
  def shortest_backoff(%Options{} = options), do: backoff(options, 1)

  @doc """
  The `partition_key` among the options of a call.
  """
  @spec partition_key!(atom(), keyword()) :: any()
  def partition_key!(_name, []), do: nil
  def partition_key!(_name, partition_key: partition_key), do: partition_key

  def partition_key!(name, options) do
    check_call!(name, options, [:partition_key])
    Keyword.get(options, :partition_key)
  end

  defp check_call!(name, options, known) do
    check_keyword!(options, "the options of a call on", name)
    check_known!(options, known, "a call on", name)
  end

  @doc """
  The timeout and `async` among the options of a flush.
  """
  @spec flush!(atom(), keyword()) :: {timeout(), boolean()}
  def flush!(name, options) do
    check_call!(name, options, [:timeout, :async])
    {timeout, async?} = {Keyword.get(options, :timeout, 60_000), Keyword.get(options, :async, false)}

    unless valid?(:drain_timeout_ms, timeout),
      do: invalid!(name, :timeout, timeout, expected(:drain_timeout_ms))

    unless is_boolean(async?), do: invalid!(name, :async, async?, "a boolean")
    {timeout, async?}
  end

  @doc """
  The options of `put_newer/5`: whether a stale write is an error, and the others.
  """
  @spec stale!(atom(), keyword()) :: {stale_is_error? :: boolean(), keyword()}
  def stale!(name, options) do
    check_keyword!(options, "the options of a call on", name)

    case Keyword.pop(options, :stale) do
      {nil, options} -> {false, options}
      {:error, options} -> {true, options}
      {other, _options} -> invalid!(name, :stale, other, ":error")
    end
  end

  @spec invalid!(atom(), atom(), any(), String.t()) :: no_return()
  defp invalid!(name, key, value, expected) do
    raise!(
      key,
      value,
      "invalid value for option #{inspect(key)} of a call on #{buffer(name)}: expected #{expected}, " <>
        "got: #{inspect(value)}"
    )
  end

  # The first of duplicate options counts, as in `Keyword.get/2`.
  defp first_of_each(options), do: Enum.uniq_by(options, &elem(&1, 0))

  defp check_keyword!(options, what, name) do
    Keyword.keyword?(options) ||
      raise!(nil, options, "#{what} #{buffer(name)} must be a keyword list, got: #{inspect(options)}")
  end

  defp check_known!(options, known, call, name) do
    for {key, value} <- options, key not in known do
      known = Enum.map_join(known, ", ", &inspect/1)
      raise!(key, value, "#{call} #{buffer(name)} does not take option #{inspect(key)}, only #{known}")
    end
  end

  defp check!({key, value}, name) do
    valid?(key, value) ||
      raise!(
        key,
        value,
        "invalid value for option #{inspect(key)} of #{buffer(name)}: expected #{expected(key)}, " <>
          "got: #{inspect(value)}"
      )
  end

  defp buffer(nil), do: "a buffer"
  defp buffer(name), do: "buffer #{inspect(name)}"

  defp valid?(:name, name), do: is_atom(name) and name != nil
  defp valid?(:module, module), do: is_map_key(@kinds, module)

  defp valid?(:processor, {m, f, args}),
    do: is_atom(m) and is_atom(f) and is_list(args) and List.improper?(args) == false

  defp valid?(:processor, processor), do: is_function(processor, 1)
  defp valid?(:partitions, count), do: is_integer(count) and count in 0..4_096
  defp valid?(:max_attempts, attempts), do: attempts == :infinity or (is_integer(attempts) and attempts > 0)

  defp valid?(:retry_backoff_ms, {min, max}),
    do: is_integer(min) and is_integer(max) and min >= 0 and min <= max and max <= @max_ms

  defp valid?(:retry_backoff_ms, function), do: is_function(function, 1)
  defp valid?(:dead_letter, {_m, _f, _args} = mfa), do: valid?(:processor, mfa)
  defp valid?(:dead_letter, function), do: is_function(function, 2)
  defp valid?(:processing_interval_ms, :infinity), do: true
  defp valid?(:processing_interval_ms, ms), do: is_integer(ms) and ms > 0 and ms <= max_interval_ms()
  defp valid?(:processing_jitter_ms, ms), do: is_integer(ms) and ms in 0..@max_ms
  defp valid?(key, :infinity) when key in [:processing_timeout_ms, :drain_timeout_ms], do: true

  defp valid?(key, ms) when key in [:processing_timeout_ms, :drain_timeout_ms],
    do: is_integer(ms) and ms in 0..@max_ms

  defp valid?(:processing_batch_size, :table), do: true
  defp valid?(:processing_batch_size, size), do: is_integer(size) and size > 0

  defp valid?(key, :infinity) when key in [:processing_threshold, :max_size], do: true

  defp valid?(key, count) when key in [:processing_threshold, :max_size],
    do: is_integer(count) and count in 1..@max_count

  defp valid?(:when_full, what), do: what in [:raise, :error, :drop_newest]
  defp valid?(:full_timeout_ms, ms), do: is_integer(ms) and ms in 0..@max_ms

  defp expected(:name), do: "an atom"

  defp expected(:module),
    do: "PartitionedBuffer.Map, PartitionedBuffer.Queue or PartitionedBuffer.Counter"

  defp expected(:processor), do: "a function of arity 1 or {module, function, args}"
  defp expected(:partitions), do: "a non-negative integer up to 4096"
  defp expected(:max_attempts), do: "a positive integer or :infinity"

  defp expected(:retry_backoff_ms),
    do: "{min, max} with 0 <= min <= max <= #{@max_ms} (milliseconds), or a function of arity 1"

  defp expected(:dead_letter), do: "a function of arity 2 or {module, function, args}"

  defp expected(:processing_interval_ms),
    do: "a positive integer up to #{max_interval_ms()} (milliseconds) or :infinity"

  defp expected(:processing_jitter_ms),
    do: "a non-negative integer up to #{@max_ms} (milliseconds)"

  defp expected(key) when key in [:processing_timeout_ms, :drain_timeout_ms],
    do: "a non-negative integer up to #{@max_ms} (milliseconds) or :infinity"

  defp expected(:processing_batch_size), do: "a positive integer or :table"

  defp expected(key) when key in [:processing_threshold, :max_size],
    do: "a positive integer up to #{@max_count} or :infinity"

  defp expected(:when_full), do: ":raise, :error or :drop_newest"
  defp expected(:full_timeout_ms), do: "a non-negative integer up to #{@max_ms} (milliseconds)"

  # `:erlang.start_timer/4` takes no time after the end of the VM's clock. The clock starts below 0 and stays there for
  # years, so the current time plus this interval is before its end.
  defp max_interval_ms, do: System.convert_time_unit(:erlang.system_info(:end_time), :native, :millisecond)

  # Version 0.4 of this package raised the error of NimbleOptions, so an app that has NimbleOptions may rescue it.
  @compile {:no_warn_undefined, NimbleOptions.ValidationError}
  @spec raise!(atom(), any(), String.t()) :: no_return()
  defp raise!(key, value, message) do
    if Code.ensure_loaded?(NimbleOptions.ValidationError) do
      raise struct!(NimbleOptions.ValidationError, key: key, value: value, message: message)
    else
      raise ArgumentError, message
    end
  end
end
