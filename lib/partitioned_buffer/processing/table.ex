defmodule PartitionedBuffer.Processing.Table do
  @moduledoc false
  # Processes a flush with `processing_batch_size: :table`: the processor gets the name of an ETS
  # table with all entries.

  alias PartitionedBuffer.Native
  alias PartitionedBuffer.Processing.{AtMostOnce, Failure, Job}

  # More entries than a flush can have.
  @all 4_294_967_296

  @doc """
  Calls the processor with a table.
  """
  @spec run(Job.t()) :: Job.t()
  def run(%Job{flush: flush, ref: ref, options: options} = job) do
    # The flush may come from a run with outcomes.
    if job.resumed?, do: AtMostOnce.settle_left(job)
    table = :ets.new(name(ref.name), [type(options.kind), :public, :named_table, keypos: 2])
    job = if fill(flush, table, options.kind) == :on_hold, do: job, else: call(job, table)
    # The processor may rename the table and give it away.
    if :ets.whereis(table) != :undefined, do: :ets.delete(table)
    job
  end

  defp call(job, table) do
    size = :ets.info(table, :size)
    returned = Job.call(job.functions.processor, [table])
    # Reading the end of the flush confirms the call.
    Native.read(job.flush, 0, 1, false)
    Failure.ignored(job.ref, returned)
    Job.delivered(job, size)
  end

  # Reads all entries into the table, then claims them as a whole.
  defp fill(flush, table, kind) do
    length = insert(flush, table, kind, 0)

    case Native.claim(flush) do
      false when length > 0 ->
        :ets.delete_all_objects(table)
        fill(flush, table, kind)

      claimed_or_on_hold ->
        claimed_or_on_hold
    end
  end

  defp insert(flush, table, kind, length) do
    {entries, length, complete?} = Native.read(flush, length, @all, false)
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

  defp type(:queue), do: :ordered_set
  defp type(_with_keys), do: :set

  defp name(partition), do: Module.concat(partition, Table)
end
