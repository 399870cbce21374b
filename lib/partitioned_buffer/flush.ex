defmodule PartitionedBuffer.Flush do
  @moduledoc false
  # Processes a flush, in a task: reads a batch and calls the processor with it.
  #
  # Without `:max_attempts` the batch is claimed just before the call. So no batch is given to a processor twice, and if this
  # process dies, the partition still has the batches that are not claimed. With it, `Delivery` leases the batch until it has
  # an outcome.

  alias PartitionedBuffer.{Delivery, Identity, Native, Options, Telemetry}

  # More entries than a flush can have.
  @max_batch_size 4_294_967_296

  @typedoc """
  How a task has ended. `pause` is how many milliseconds the partition pauses, nil if nothing has failed. `failures` is the
  number of failures in a row. `failed` is how many entries have failed and were not given up.
  """
  @type ended() :: %{
          pause: non_neg_integer() | nil,
          failures: non_neg_integer(),
          failed: non_neg_integer()
        }

  @typedoc """
  Why a task is started. `resumed?` says that other entries may have been written since a failure. `failures` is the number
  of failures in a row before. `reason` is why the last task has died: this one then only settles what it has left.
  """
  @type opts() :: [trigger: atom(), resumed?: boolean(), failures: non_neg_integer(), reason: any()]

  @doc """
  Processes what is left of a flush.
  """
  @spec process(reference(), Identity.t(), opts()) :: ended()
  def process(flush, %Identity{} = identity, opts) do
    options = Identity.options(identity)

    Telemetry.processing(identity, opts[:trigger], fn ->
      if Options.outcomes?(options),
        do: Delivery.process(flush, identity, options, opts),
        else: {deliver(flush, options, identity, opts), %{pause: nil, failures: 0, failed: 0}}
    end)
  end

  @doc """
  Reads a batch: its entries and their number. Both are empty at the end.
  """
  @spec read(reference(), Options.t(), boolean()) :: {list(), non_neg_integer()}
  def read(flush, %Options{} = options, resumed?),
    do: read(flush, 0, min(options.processing_batch_size, @max_batch_size), resumed?)

  # One call of the NIF may read fewer than `size` entries, even none, when its time is up.
  defp read(flush, length, size, resumed?) do
    case Native.read(flush, length, size, resumed?) do
      {entries, length, true} ->
        {entries, length}

      {entries, length, false} ->
        {more, length} = read(flush, length, size, resumed?)
        {entries ++ more, length}
    end
  end

  @doc """
  Calls a function of the options, `{m, f, args}` with `args` behind the arguments.
  """
  @spec call((... -> any()) | {module(), atom(), list()}, list()) :: any()
  def call(function, [argument]) when is_function(function), do: function.(argument)
  def call({module, function, args}, arguments), do: apply(module, function, arguments ++ args)
  def call(function, arguments), do: apply(function, arguments)

  # What a dead task has left of a buffer that had outcomes is given to the processor again.
  defp deliver(flush, %Options{} = options, identity, opts) do
    if opts[:resumed?], do: Delivery.settle_left(flush)

    if options.processing_batch_size == :table,
      do: deliver_table(flush, options, identity.name),
      else: deliver_batches(flush, options, 0)
  end

  defp deliver_batches(flush, options, delivered) do
    {entries, count} = read(flush, options, false)
    claimed? = Native.claim(flush)

    cond do
      count == 0 ->
        delivered

      claimed? ->
        call(options.processor, [entries])
        deliver_batches(flush, options, delivered + count)

      # Another task has begun a batch since.
      true ->
        deliver_batches(flush, options, delivered)
    end
  end

  defp deliver_table(flush, options, partition) do
    kind = Options.kind(options)
    table = :ets.new(table_name(partition), [table_type(kind), :public, :named_table, keypos: 2])
    fill(flush, table, kind)
    size = :ets.info(table, :size)
    call(options.processor, [table])
    # The processor may have renamed the table and given it away.
    if :ets.whereis(table) != :undefined, do: :ets.delete(table)
    size
  end

  # Reads all entries into the table, then claims them as a whole.
  defp fill(flush, table, kind) do
    length = insert(flush, table, kind, 0)

    unless Native.claim(flush) or length == 0 do
      :ets.delete_all_objects(table)
      fill(flush, table, kind)
    end
  end

  defp insert(flush, table, kind, length) do
    {entries, length, complete?} = Native.read(flush, length, @max_batch_size, false)
    :ets.insert(table, objects(kind, entries, table))
    if complete?, do: length, else: insert(flush, table, kind, length)
  end

  defp objects(:map, entries, _table) do
    for {key, value, version, updates} <- entries, do: {:entry, key, value, version, updates}
  end

  defp objects(:counter, entries, _table) do
    for {key, sum, count} <- entries, do: {:entry, key, sum, 0, count}
  end

  # Each item gets a later time than the one before, so the keys have the order of the items.
  defp objects(:queue, items, table) do
    earliest = max(System.monotonic_time(), last_time(:ets.last(table)) + 1)

    for {item, index} <- Enum.with_index(items),
        do: {:entry, {:key, earliest + index, make_ref()}, item, 0, 0}
  end

  defp last_time({:key, time, _ref}), do: time
  # The time may be negative.
  defp last_time(:"$end_of_table"), do: System.monotonic_time() - 1

  defp table_type(:queue), do: :ordered_set
  defp table_type(_with_keys), do: :set

  defp table_name(partition), do: Module.concat(partition, Table)
end
