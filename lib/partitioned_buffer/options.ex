defmodule PartitionedBuffer.Options do
  @moduledoc false
  # Checks the options of a start, of an update and of a single call: all options before any is
  # used.
  #
  # A running buffer keeps its options in two pieces. `%Options{}` has plain values, which many
  # processes read. `%Options.Functions{}` has the functions of the user, whose closures may be
  # large: only the task that calls them reads these.

  require Logger

  alias __MODULE__
  alias PartitionedBuffer.Options.{Cluster, FunctionCheck, Journal, Preset, Values}

  defmodule Functions do
    @moduledoc false
    # The functions of the user, and no other option.
    @enforce_keys [:processor]
    defstruct [:processor, :dead_letter, :retry_backoff, :batch, :format_reason]

    @type t() :: %__MODULE__{
            processor: (list() -> any()) | {module(), atom(), list()},
            dead_letter: (list(), any() -> any()) | {module(), atom(), list()} | nil,
            retry_backoff: (pos_integer() -> any()) | nil,
            format_reason: (any() -> any()) | {module(), atom(), list()} | nil,
            batch: {acc :: any(), (entry :: any(), acc :: any() -> any())} | nil
          }
  end

  @enforce_keys [:name, :kind]
  defstruct @enforce_keys ++
              [
                :partitions,
                :max_attempts,
                :drain_timeout_ms,
                :versions,
                :cluster,
                :journal,
                :way,
                dead_letter?: false,
                order: :strict,
                processing_interval_ms: 5_000,
                processing_jitter_ms: 0,
                processing_timeout_ms: 60_000,
                processing_batch_size: 10,
                processing_batch_bytes: :infinity,
                processing_threshold: :infinity,
                max_size: :infinity,
                max_bytes: :infinity,
                when_full: :raise,
                full_timeout_ms: 5_000,
                retry_backoff_ms: {1_000, 30_000}
              ]

  @type t() :: %Options{
          name: atom(),
          kind: kind(),
          partitions: non_neg_integer(),
          max_attempts: pos_integer() | :infinity | nil,
          dead_letter?: boolean(),
          order: :strict | :none,
          versions: :clock | :own | nil,
          cluster: Options.Cluster.t() | nil,
          journal: Options.Journal.t() | nil,
          way: module() | nil,
          drain_timeout_ms: timeout(),
          retry_backoff_ms: {non_neg_integer(), non_neg_integer()} | :function,
          processing_interval_ms: pos_integer() | :infinity,
          processing_jitter_ms: non_neg_integer(),
          processing_timeout_ms: timeout(),
          processing_batch_size: pos_integer() | :table | :function,
          processing_batch_bytes: pos_integer() | :infinity,
          processing_threshold: pos_integer() | :infinity,
          max_size: pos_integer() | :infinity,
          max_bytes: pos_integer() | :infinity,
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
    :processing_batch_bytes,
    :processing_threshold,
    :max_size,
    :max_bytes,
    :when_full,
    :full_timeout_ms,
    :max_attempts,
    :retry_backoff_ms,
    :drain_timeout_ms,
    :cluster,
    :journal
  ]
  @start [
    :name,
    :processor,
    :module,
    :preset,
    :partitions,
    :dead_letter,
    :format_reason,
    :order,
    :versions | @updatable
  ]

  # A module passes on the options of its `child_spec/1`, so these keys may be among them.
  @child_spec [:id, :start, :restart, :shutdown, :type, :modules, :significant]

  # The least similarity of two names, from 0 to 1, of which one may be meant by the other.
  @similar 0.77

  # The native library counts the attempts of an entry up to this number. No entry fails that often.
  @max_attempts 2_147_483_646

  @doc """
  The options of a start, and the keys of a child specification, which may be among them.
  """
  @spec start_keys() :: {options :: [atom()], child_spec :: [atom()]}
  def start_keys, do: {@start, @child_spec}

  @doc """
  Checks and splits the options of a start. The kind is that of `module`, or of the option
  `:module`. Warns of functions that do not exist, and of unknown options; a counter takes none.
  """
  @spec start!(keyword(), module() | nil) :: {t(), Functions.t()}
  def start!(options, module \\ nil) do
    name = name(options)
    check_keyword!(options, "the options of", name)
    options = if module, do: Keyword.put(options, :module, module), else: options
    given = options |> Keyword.take(@start) |> first_of_each()
    if Keyword.has_key?(given, :preset), do: check!({:preset, given[:preset]}, name)
    # Without attempts the processor's outcomes do not count.
    given = given |> Preset.apply_to() |> Keyword.reject(&(&1 == {:max_attempts, nil}))

    for key <- [:name, :processor, :module], not Keyword.has_key?(given, key) do
      raise!(
        key,
        nil,
        "required option #{inspect(key)} of #{buffer(name)} is missing: expected #{Values.expected(key)}"
      )
    end

    Enum.each(given, &check!(&1, name))
    consistent!(given)
    unknown!(options, given[:module].__kind__(), name)
    FunctionCheck.warn(given, name)

    given
    |> with_cluster()
    |> Keyword.replace_lazy(:journal, &(&1 && Journal.new(&1)))
    |> Keyword.put_new_lazy(:partitions, &System.schedulers_online/0)
    |> Keyword.put_new(:drain_timeout_ms, if(given[:max_attempts], do: 60_000, else: :infinity))
    |> split()
  end

  # The clock is the default of a map of several nodes.
  defp with_cluster(given) do
    case {given[:cluster], given[:module].__kind__()} do
      {cluster, _kind} when cluster in [nil, false] ->
        Keyword.delete(given, :cluster)

      {cluster, :map} ->
        Keyword.put_new(Keyword.put(given, :cluster, Cluster.new(cluster)), :versions, :clock)

      {cluster, _kind} ->
        Keyword.put(given, :cluster, Cluster.new(cluster))
    end
  end

  # Version 0.4 of this package, which has no counters, ignores unknown options.
  defp unknown!(options, :counter, name),
    do: options |> Keyword.drop(@child_spec) |> check_known!(@start, "the start of", name)

  defp unknown!(options, _kind, name) do
    for {key, _value} <- first_of_each(options), key not in @start, key not in @child_spec do
      Logger.warning("#{buffer(name)} ignores the unknown option #{inspect(key)}#{instead(key, @start)}",
        buffer: name
      )
    end
  end

  defp split(given) do
    {functions, plain} = Keyword.split(given, [:processor, :dead_letter, :format_reason])
    {module, plain} = Keyword.pop!(plain, :module)
    {plain, more} = split_functions(plain)

    options =
      struct!(Options, [kind: module.__kind__(), dead_letter?: functions[:dead_letter] != nil] ++ plain)

    {options, struct!(Functions, functions ++ more)}
  end

  # A function among the plain options is replaced by the atom `:function`.
  defp split_functions(plain) do
    Enum.reduce(plain, {plain, []}, fn option, {plain, functions} ->
      case option do
        {:retry_backoff_ms, function} when is_function(function) ->
          {Keyword.put(plain, :retry_backoff_ms, :function), [retry_backoff: function] ++ functions}

        {:processing_batch_size, {_acc, _function} = batch} ->
          {Keyword.put(plain, :processing_batch_size, :function), [batch: batch] ++ functions}

        _plain ->
          {plain, functions}
      end
    end)
  end

  @doc """
  The bound of a buffer, for the native library.
  """
  @spec bound(t()) :: {max_size :: pos_integer() | :infinity, max_bytes :: pos_integer() | :infinity}
  def bound(%Options{max_size: max_size, max_bytes: max_bytes}), do: {max_size, max_bytes}

  @doc """
  Whether the buffer has a bound.
  """
  @spec bound?(t()) :: boolean()
  def bound?(%Options{} = options), do: bound(options) != {:infinity, :infinity}

  @doc """
  Whether the processor's outcomes count.
  """
  @spec outcomes?(t()) :: boolean()
  def outcomes?(%Options{max_attempts: max_attempts}), do: max_attempts != nil

  @doc """
  The name in unchecked options, or nil.
  """
  @spec name(any()) :: any()
  def name(options), do: if(Keyword.keyword?(options), do: options[:name])

  @doc """
  The number of failures after which the native library gives up an entry.
  """
  @spec native_attempts(t()) :: pos_integer() | :infinity
  def native_attempts(%Options{max_attempts: max_attempts})
      when is_integer(max_attempts) and max_attempts > @max_attempts,
      do: :infinity

  def native_attempts(%Options{max_attempts: max_attempts}), do: max_attempts

  @doc """
  Checks the changes of `update_options/2`, and returns them.
  """
  @spec changes!(atom(), keyword()) :: keyword()
  def changes!(name, changes) do
    check_keyword!(changes, "the updated options of", name)
    check_known!(changes, @updatable, "update_options/2 of", name)
    changes = first_of_each(changes)
    Enum.each(changes, &check!(&1, name, :update))
    FunctionCheck.warn(changes, name)
    changes
  end

  @doc """
  The options with checked changes, and the changed fields of `Functions`. Raises if a change does
  not fit the start options.
  """
  @spec update!(t(), keyword()) :: {t(), keyword()}
  def update!(%Options{name: name} = options, changes) do
    if Keyword.has_key?(changes, :max_attempts) and not outcomes?(options) do
      raise!(
        :max_attempts,
        changes[:max_attempts],
        "update_options/2 of #{buffer(name)} cannot set :max_attempts: the buffer was started without it"
      )
    end

    if changes[:processing_batch_size] == :table and outcomes?(options), do: table_excluded!(name)

    if changes[:cluster] != nil and options.cluster == nil do
      raise!(
        :cluster,
        changes[:cluster],
        "update_options/2 of #{buffer(name)} cannot set :cluster: the buffer was started without it"
      )
    end

    if changes[:journal] != nil and options.journal == nil do
      raise!(
        :journal,
        changes[:journal],
        "update_options/2 of #{buffer(name)} cannot set :journal: the buffer was started without it"
      )
    end

    changes =
      changes
      |> Keyword.replace_lazy(:cluster, &Cluster.update(options.cluster, &1))
      |> Keyword.replace_lazy(:journal, &Journal.update(options.journal, &1))

    {plain, functions} = split_functions(changes)
    options = struct!(options, plain)
    batch_bytes_fit!(name, options.processing_batch_size, options.processing_batch_bytes)
    {options, functions}
  end

  defp consistent!(given) do
    if given[:dead_letter] != nil and given[:max_attempts] == nil do
      raise!(
        :dead_letter,
        given[:dead_letter],
        "option :dead_letter of #{buffer(given[:name])} needs :max_attempts: without it, nothing is given up"
      )
    end

    if given[:processing_batch_size] == :table and given[:max_attempts] != nil,
      do: table_excluded!(given[:name])

    if given[:cluster], do: cluster_fits!(given, given[:name])
    if given[:journal], do: journal_fits!(given, given[:name])
    batch_bytes_fit!(given[:name], given[:processing_batch_size], given[:processing_batch_bytes])
    only!(given, :order, :queue, "PartitionedBuffer.Queue", "has no order")
    only!(given, :versions, :map, "PartitionedBuffer.Map", "has no versions")
  end

  # A table already excludes :max_attempts.
  defp cluster_fits!(given, name) do
    reason =
      cond do
        given[:module].__kind__() == :queue ->
          "is none of PartitionedBuffer.Queue: an order of items holds on one node only"

        given[:max_attempts] == nil ->
          "needs :max_attempts: a buffer without it loses what another node does not take"

        given[:partitions] == 0 ->
          "needs partitions"

        true ->
          nil
      end

    if reason, do: raise!(:cluster, given[:cluster], "option :cluster of #{buffer(name)} #{reason}")
  end

  defp journal_fits!(given, name) do
    reason =
      cond do
        given[:max_attempts] == nil ->
          "needs :max_attempts: only an outcome shows that an entry is done"

        given[:partitions] == 0 ->
          "needs partitions"

        given[:cluster] ->
          "excludes :cluster: after a crash, another node may or may not have a batch"

        true ->
          nil
      end

    if reason, do: raise!(:journal, given[:journal], "option :journal of #{buffer(name)} #{reason}")
  end

  defp batch_bytes_fit!(name, size, bytes) do
    if bytes not in [nil, :infinity] and (size in [:table, :function] or is_tuple(size)) do
      raise!(
        :processing_batch_bytes,
        bytes,
        "option :processing_batch_bytes of #{buffer(name)} needs a number as :processing_batch_size: " <>
          "a table or a function has its own end of a batch"
      )
    end
  end

  defp only!(given, key, kind, module, otherwise) do
    if given[key] != nil and given[:module].__kind__() != kind do
      raise!(
        key,
        given[key],
        "option #{inspect(key)} of #{buffer(given[:name])} is one of #{module} only: " <>
          "a #{given[:module].__kind__()} #{otherwise}"
      )
    end
  end

  @spec table_excluded!(atom()) :: no_return()
  defp table_excluded!(name) do
    raise!(
      :processing_batch_size,
      :table,
      "option processing_batch_size: :table of #{buffer(name)} excludes :max_attempts: a table has no outcome for each entry"
    )
  end

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
  Checks the options of a page in the terminal, and returns them.
  """
  @spec watch!(atom(), keyword()) :: keyword()
  def watch!(name, options) do
    check_call!(name, options, [:interval, :rounds, :device, :ansi])

    for {key, expected, valid?} <- [
          {:interval, "a non-negative integer (milliseconds)", &(is_integer(&1) and &1 >= 0)},
          {:rounds, "a positive integer or :infinity", &(&1 == :infinity or (is_integer(&1) and &1 > 0))},
          {:ansi, "a boolean", &(&1 in [true, false, nil])}
        ],
        {:ok, value} <- [Keyword.fetch(options, key)],
        not valid?.(value),
        do: invalid!(name, key, value, expected)

    options
  end

  @doc """
  The timeout and `async` among the options of a flush.
  """
  @spec flush!(atom(), keyword()) :: {timeout(), boolean()}
  def flush!(name, options) do
    check_call!(name, options, [:timeout, :async])
    {timeout, async?} = {Keyword.get(options, :timeout, 60_000), Keyword.get(options, :async, false)}

    timeout!(name, timeout)
    unless is_boolean(async?), do: invalid!(name, :async, async?, "a boolean")
    {timeout, async?}
  end

  @doc """
  The level and the timeout among the options of a sync.
  """
  @spec sync!(atom(), keyword()) :: {:written | :synced, timeout()}
  def sync!(name, options) do
    check_call!(name, options, [:level, :timeout])
    level = Keyword.get(options, :level, :synced)
    unless level in [:written, :synced], do: invalid!(name, :level, level, ":written or :synced")
    {level, timeout!(name, Keyword.get(options, :timeout, 5_000))}
  end

  @doc """
  The reason, the timeout and what becomes of leftovers, among the arguments of a stop. A keyword
  list in place of the reason has the options.
  """
  @spec stop!(atom(), any(), any(), any()) :: {any(), timeout(), :dead_letter | :keep}
  def stop!(name, [{key, _value} | _] = options, :infinity, []) when is_atom(key),
    do: stop!(name, :normal, :infinity, options)

  def stop!(name, reason, timeout, options) do
    check_call!(name, options, [:reason, :timeout, :leftovers])
    leftovers = Keyword.get(options, :leftovers, :dead_letter)

    unless leftovers in [:dead_letter, :keep],
      do: invalid!(name, :leftovers, leftovers, ":dead_letter or :keep")

    {Keyword.get(options, :reason, reason), timeout!(name, Keyword.get(options, :timeout, timeout)),
     leftovers}
  end

  @doc """
  Checks the timeout of a call.
  """
  @spec timeout!(atom(), any()) :: timeout()
  def timeout!(name, timeout) do
    unless Values.valid?(:drain_timeout_ms, timeout),
      do: invalid!(name, :timeout, timeout, Values.expected(:drain_timeout_ms))

    timeout
  end

  @doc """
  Splits the options of `put_newer/5`: whether a stale write is an error, and the other options.
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

  @doc """
  Splits the options of `fetch/3`: whether the result has the version, and the other options.
  """
  @spec version!(atom(), keyword()) :: {version? :: boolean(), keyword()}
  def version!(_name, []), do: {false, []}

  def version!(name, options) do
    check_keyword!(options, "the options of a call on", name)

    case Keyword.pop(options, :version, false) do
      {version?, options} when is_boolean(version?) -> {version?, options}
      {other, _options} -> invalid!(name, :version, other, "a boolean")
    end
  end

  @doc """
  Splits the options of `add/4`: the count, if it is given, and the other options.
  """
  @spec count!(atom(), keyword()) :: {{:ok, any()} | :error, keyword()}
  def count!(name, options) do
    check_keyword!(options, "the options of a call on", name)
    {Keyword.fetch(options, :count), Keyword.delete(options, :count)}
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
      raise!(
        key,
        value,
        "#{call} #{buffer(name)} does not take option #{inspect(key)}#{instead(key, known)}"
      )
    end
  end

  @doc """
  The end of a sentence about an unknown option: the known option that may be meant, or all.
  """
  @spec instead(atom(), [atom()]) :: String.t()
  def instead(key, known) do
    {similarity, nearest} =
      known |> Enum.map(&{String.jaro_distance(Atom.to_string(key), Atom.to_string(&1)), &1}) |> Enum.max()

    if similarity > @similar,
      do: ": did you mean #{inspect(nearest)}?",
      else: "; the options are #{Enum.map_join(known, ", ", &inspect/1)}"
  end

  defp check!(option, name, at \\ :start)

  defp check!({:cluster, value}, name, at) do
    if reason = Cluster.invalid(value, at),
      do: raise!(:cluster, value, "invalid value for option :cluster of #{buffer(name)}: #{reason}")
  end

  defp check!({:journal, value}, name, at) do
    if reason = Journal.invalid(value, at),
      do: raise!(:journal, value, "invalid value for option :journal of #{buffer(name)}: #{reason}")
  end

  defp check!({key, value}, name, _at) do
    Values.valid?(key, value) ||
      raise!(
        key,
        value,
        "invalid value for option #{inspect(key)} of #{buffer(name)}: expected #{Values.expected(key)}, " <>
          "got: #{inspect(value)}"
      )
  end

  defp buffer(nil), do: "a buffer"
  defp buffer(name), do: "buffer #{inspect(name)}"

  # Version 0.4 of this package raised the error of NimbleOptions, so an app with NimbleOptions may
  # rescue it.
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
