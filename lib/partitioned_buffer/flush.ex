defmodule PartitionedBuffer.Flush do
  @moduledoc false
  # What is done with what a partition flushes: it is read in batches, each is claimed, and the processor is called
  # with it. Runs in a task.
  #
  # A batch is claimed just before the processor is called: it is never handed to a processor twice, and what lies
  # behind it is still the partition's if this process dies.

  alias PartitionedBuffer.{Native, Options, Telemetry}

  # More than a flush can have.
  @max_batch_size 4_294_967_296

  # In the dictionary of a process that works on a flush: the name of the buffer.
  @processing :"$partitioned_buffer"

  # How many entries are read at once to fill a table.
  @table_slice 500

  @doc """
  Processes all that is left of a flush.
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
  Whether the calling process is in a processor of this buffer, or was started by one as a task, which its `$callers` tell.
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
    # Unless it has been renamed and is somebody else's now.
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
      # A task of a supervision tree that was killed is still at work.
      not Native.claim(flush, from, to) ->
        deliver_batches(flush, Native.position(flush), size, processor, delivered)

      count > 0 ->
        call(processor, entries)
        deliver_batches(flush, to, size, processor, delivered + count)

      true ->
        delivered
    end
  end

  # A full batch, unless the end is reached: a single read may return less, even nothing, when its time is up.
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

  # All that nobody has claimed: read, then claimed as a whole.
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

  # No two items have the same time, so that their keys have their order.
  defp objects(:queue, items, table) do
    earliest = max(System.monotonic_time(), last_time(:ets.last(table)) + 1)

    for {item, number} <- Enum.with_index(items),
        do: {:entry, {:key, earliest + number, make_ref()}, item, 0, 0}
  end

  defp last_time({:key, time, _ref}), do: time
  # Times may be below zero.
  defp last_time(:"$end_of_table"), do: System.monotonic_time() - 1

  defp table_type(:map), do: :set
  defp table_type(:queue), do: :ordered_set

  defp call({module, function, args}, batch), do: apply(module, function, [batch | args])
  defp call(processor, batch), do: processor.(batch)

  defp table_name(partition), do: Module.concat(partition, Table)
end
