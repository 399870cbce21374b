defmodule PartitionedBuffer.Options do
  @moduledoc false
  # Checks the options of a start, of an update and of a single call: all of them before any is used.

  alias __MODULE__

  @enforce_keys [:name, :processor, :module]
  defstruct @enforce_keys ++
              [
                :partitions,
                processing_interval_ms: 5_000,
                processing_jitter_ms: 0,
                processing_timeout_ms: 60_000,
                processing_batch_size: 10
              ]

  @type t() :: %Options{
          name: atom(),
          processor: (list() -> any()) | {module(), atom(), list()},
          module: module(),
          partitions: non_neg_integer(),
          processing_interval_ms: pos_integer(),
          processing_jitter_ms: non_neg_integer(),
          processing_timeout_ms: timeout(),
          processing_batch_size: pos_integer() | :table
        }

  @updatable [
    :processing_interval_ms,
    :processing_jitter_ms,
    :processing_timeout_ms,
    :processing_batch_size
  ]
  @start [:name, :processor, :module, :partitions | @updatable]

  # The module of each kind of buffer, and the kind's name in the native library.
  @kinds %{PartitionedBuffer.Map => :map, PartitionedBuffer.Queue => :queue}

  # The longest timeout of `receive`.
  @max_ms 4_294_967_295

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
    struct!(%Options{name: nil, processor: nil, module: nil, partitions: System.schedulers_online()}, given)
  end

  @doc """
  The name in unchecked options; nil if there is none.
  """
  @spec name(any()) :: any()
  def name(options), do: if(Keyword.keyword?(options), do: options[:name])

  @doc """
  The kind of the buffer, by its name in the native library.
  """
  @spec kind(t()) :: :map | :queue
  def kind(%Options{module: module}), do: Map.fetch!(@kinds, module)

  @doc """
  The changes that `update_options/2` is to make.
  """
  @spec update!(atom(), keyword()) :: keyword()
  def update!(name, changes) do
    check_keyword!(changes, "the updated options of", name)
    check_known!(changes, @updatable, "update_options/2 of", name)
    changes = first_of_each(changes)
    Enum.each(changes, &check!(&1, name))
    changes
  end

  @doc """
  The `partition_key` among the options of a call.
  """
  @spec partition_key!(atom(), keyword()) :: any()
  def partition_key!(_name, []), do: nil
  def partition_key!(_name, partition_key: partition_key), do: partition_key

  def partition_key!(name, options) do
    check_keyword!(options, "the options of a call on", name)
    check_known!(options, [:partition_key], "a call on", name)
    Keyword.get(options, :partition_key)
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
  defp valid?(:processing_interval_ms, ms), do: is_integer(ms) and ms > 0 and ms <= max_interval_ms()
  defp valid?(:processing_jitter_ms, ms), do: is_integer(ms) and ms in 0..@max_ms
  defp valid?(:processing_timeout_ms, :infinity), do: true
  defp valid?(:processing_timeout_ms, ms), do: is_integer(ms) and ms in 0..@max_ms
  defp valid?(:processing_batch_size, :table), do: true
  defp valid?(:processing_batch_size, size), do: is_integer(size) and size > 0

  defp expected(:name), do: "an atom"
  defp expected(:module), do: "PartitionedBuffer.Map or PartitionedBuffer.Queue"
  defp expected(:processor), do: "a function of arity 1 or {module, function, args}"
  defp expected(:partitions), do: "a non-negative integer up to 4096"
  defp expected(:processing_interval_ms), do: "a positive integer up to #{max_interval_ms()} (milliseconds)"

  defp expected(:processing_jitter_ms),
    do: "a non-negative integer up to #{@max_ms} (milliseconds)"

  defp expected(:processing_timeout_ms),
    do: "a non-negative integer up to #{@max_ms} (milliseconds) or :infinity"

  defp expected(:processing_batch_size), do: "a positive integer or :table"

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
