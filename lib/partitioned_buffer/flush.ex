defmodule PartitionedBuffer.Flush do
  @moduledoc false
  # Processes a flush, in a task: reads a batch, claims it, and calls the processor with it.
  #
  # The claim comes just before the call. So no batch is given to a processor twice, and if this process dies, the partition
  # still has the batches that are not claimed.

  alias PartitionedBuffer.{Native, Options, Telemetry}

  # More entries than a flush can have.
  @max_batch_size 4_294_967_296

  # The key in the dictionary of a process that works on a flush. Its value is the name of the buffer.
  @processing :"$partitioned_buffer"

  # How many entries are read at once to fill a table.
  @table_slice 500

  @doc """
  Processes the unclaimed entries of a flush.
  """
  @spec process(reference(), Options.t(), atom()) :: :ok
  def process(flush, %Options{} = options, partition) do
    Process.put(@processing, options.name)

    Telemetry.span([:processing], %{buffer: options.name, partition: partition}, fn ->
      %{size: deliver(flush, options, partition)}
    end)

    Process.delete(@processing)
    :ok
  end

  @doc """
  Whether the calling process runs a processor of this buffer, or is a task that one has started: `$callers` says so.
  """
  @spec in_processor?(atom()) :: boolean()
  def in_processor?(buffer) do
    Process.get(@processing) == buffer or Enum.any?(Process.get(:"$callers", []), &processing?(&1, buffer))
  end

  @doc """
  Whether a process works on a flush of this buffer.
  """
  @spec processing?(pid(), atom()) :: boolean()
  def processing?(pid, buffer) when node(pid) == node() do
    case Process.info(pid, :dictionary) do
      {:dictionary, dictionary} -> List.keyfind(dictionary, @processing, 0) == {@processing, buffer}
      nil -> false
    end
  end

  def processing?(_on_another_node, _buffer), do: false

  defp deliver(flush, %Options{processing_batch_size: :table} = options, partition) do
    kind = Options.kind(options)
    table = :ets.new(table_name(partition), [table_type(kind), :public, :named_table, keypos: 2])
    fill(flush, table, kind)
    size = :ets.info(table, :size)
    call(options.processor, table)
    # The processor may have renamed the table and given it away.
    if :ets.whereis(table) != :undefined, do: :ets.delete(table)
    size
  end

  defp deliver(flush, %Options{} = options, _partition) do
    size = min(options.processing_batch_size, @max_batch_size)
    deliver_batches(flush, Native.position(flush), size, options.processor, 0)
  end

  defp deliver_batches(flush, from, size, processor, delivered) do
    {entries, count, to} = read(flush, from, size)

    cond do
      # Another task has claimed it: one of a killed supervision tree is still at work.
      not Native.claim(flush, from, to) ->
        deliver_batches(flush, Native.position(flush), size, processor, delivered)

      count > 0 ->
        call(processor, entries)
        deliver_batches(flush, to, size, processor, delivered + count)

      true ->
        delivered
    end
  end

  # Reads `size` entries, or fewer at the end. One call of the NIF may return fewer, even none, when its time is up.
  defp read(flush, position, size) do
    case Native.read(flush, position, size) do
      {[], ^position} ->
        {[], 0, position}

      {entries, position} when length(entries) == size ->
        {entries, size, position}

      {entries, position} ->
        count = length(entries)
        {more, more_count, position} = read(flush, position, size - count)
        {entries ++ more, count + more_count, position}
    end
  end

  # Reads all unclaimed entries into the table, then claims them as a whole.
  defp fill(flush, table, kind) do
    from = Native.position(flush)

    unless Native.claim(flush, from, insert_from(flush, from, table, kind)) do
      :ets.delete_all_objects(table)
      fill(flush, table, kind)
    end
  end

  defp insert_from(flush, from, table, kind) do
    case read(flush, from, @table_slice) do
      {[], 0, to} ->
        to

      {entries, _count, to} ->
        :ets.insert(table, objects(kind, entries, table))
        insert_from(flush, to, table, kind)
    end
  end

  defp objects(:map, entries, _table) do
    for {key, value, version, updates} <- entries, do: {:entry, key, value, version, updates}
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

  defp table_type(:map), do: :set
  defp table_type(:queue), do: :ordered_set

  defp call({module, function, args}, batch), do: apply(module, function, [batch | args])
  defp call(processor, batch), do: processor.(batch)

  defp table_name(partition), do: Module.concat(partition, Table)
end
