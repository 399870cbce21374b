defmodule PartitionedBuffer.KeyedLaws do
  @moduledoc false
  # The laws of maps and counters: the effects of random commands on each key. Each kind defines the
  # effects of its commands.
  #
  # If the buffer has outcomes and its sink is away, the same laws hold, though every partition
  # flushes all the time and each flush fails. When the sink is back, it gets the remaining entry of
  # each key.

  import PartitionedBuffer.Case

  alias PartitionedBuffer.Laws

  @typedoc "A key in a partition."
  @type place() :: {partition :: non_neg_integer(), key :: any()}

  @typedoc "The effect of a command on a place, with its result; `{:take, entry}` for a flush."
  @type effect() :: any()

  @doc "The module of the buffer."
  @callback buffer() :: module()

  @doc "Writes to many other keys, in several rounds, until memory is moved or grows."
  @callback churn(pos_integer(), pos_integer()) :: tuple()

  @doc "The command done in the place of this one if the buffer has outcomes."
  @callback variant(tuple()) :: tuple()

  @doc "Does a command."
  @callback call(atom(), tuple()) :: any()

  @doc "The effects of a command that writes or reads, for a partition count."
  @callback effects(tuple(), result :: any(), pos_integer()) :: [{place(), effect()}]

  @doc """
  The entries of a place for the processor after an outage, in the order of the batches; nil without
  any.
  """
  @callback taken_at_last([tuple()]) :: effect()

  @doc """
  The state of a place after an effect, nil if it has no entry; `:error` if the effect has another
  result.
  """
  @callback step(state :: any(), effect()) :: {:ok, any()} | :error

  @doc """
  For `setup`: buffers of one to three partitions, with a sink that is away for the tag `:away`.
  """
  def start(kind, context) do
    sink = if context[:away], do: :counters.new(1, [])
    start = &start_buffer([module: kind.buffer(), partitions: &1] ++ outage(sink))
    {:ok, kind: kind, sink: sink, buffers: for(n <- 1..3, into: %{}, do: {n, start.(n)})}
  end

  defp outage(nil), do: []

  # 0 in the counter means that the sink is away.
  defp outage(sink) do
    test = self()

    [
      processor: Laws.processor_in_outage(sink, &send(test, {:batch, &1})),
      max_attempts: :infinity,
      retry_backoff_ms: {0, 1},
      processing_interval_ms: 1,
      processing_batch_size: 3
    ]
  end

  @doc "The law of commands in one process."
  def sequential({partitions, keys, commands}, setup) do
    context = context(setup, partitions, keys)

    with {:ok, entries} <- run(commands ++ [:size, :flush], %{}, context),
         do: if(entries == %{}, do: :ok, else: :left_over)
  end

  @doc """
  The law of commands in several processes. The first, this one, alone flushes and sets the batch
  size.
  """
  def parallel({partitions, keys, before, suffixes}, setup) do
    context = context(setup, partitions, keys)
    [own | others] = Tuple.to_list(suffixes)

    with {:ok, entries} <- run(before, %{}, context) do
      suffixes =
        for commands <- [own | Enum.map(others, &writes_and_reads/1)], do: in_parallel(commands, context)

      histories = Laws.at_once(suffixes, &call(&1, context)) ++ Laws.at_once([[:flush]], &call(&1, context))
      linearizable(histories, entries, context)
    end
  end

  defp writes_and_reads(commands),
    do: Enum.reject(commands, &(&1 == :flush or match?({:batch_size, _size}, &1)))

  # The size reveals nothing about a single key. With the sink back in between, the time at which it
  # got an entry would be unknown.
  defp in_parallel(commands, context) do
    for command <- commands,
        command != :size,
        command != :flush or context.sink == nil,
        do: prepared(command, context)
  end

  ## A case

  defp context(%{kind: kind, buffers: buffers, sink: sink}, partitions, keys) do
    buffer = Map.fetch!(buffers, partitions)
    context = %{kind: kind, buffer: buffer, partitions: partitions, keys: List.to_tuple(keys), sink: sink}
    # A failed case may leave entries.
    if sink || PartitionedBuffer.buffer_size(buffer) > 0, do: call(:flush, context)
    received_batches()
    context
  end

  # Does commands in this process alone; returns the entries after them.
  defp run(commands, entries, context) do
    Enum.reduce_while(commands, {:ok, entries}, fn command, {:ok, entries} ->
      command = prepared(command, context)
      result = call(command, context)

      case explain(command, result, entries, context) do
        {:ok, entries} -> {:cont, {:ok, entries}}
        :error -> {:halt, {command, got: result, entries: entries}}
      end
    end)
  end

  # Entries in flight have no size.
  defp explain(:size, size, entries, %{sink: sink}) do
    if size == map_size(entries) or (sink && size <= map_size(entries)), do: {:ok, entries}, else: :error
  end

  defp explain(command, result, entries, context) do
    command
    |> effects(result, Map.keys(entries), context)
    |> Enum.reduce_while({:ok, entries}, fn {place, effect}, {:ok, entries} ->
      case step(context.kind, entries[place], effect) do
        {:ok, nil} -> {:cont, {:ok, Map.delete(entries, place)}}
        {:ok, entry} -> {:cont, {:ok, Map.put(entries, place, entry)}}
        :error -> {:halt, :error}
      end
    end)
  end

  # Some order of the effects on a place obeys their times, and gives their results.
  defp linearizable(histories, entries, context) do
    places =
      for history <- histories,
          {_, _, command, result} <- history,
          {place, _effect} <- effects(command, result, [], context),
          do: place

    places = Enum.uniq(places ++ Map.keys(entries))

    histories =
      for history <- histories do
        for {called, returned, command, result} <- history,
            {place, effect} <- effects(command, result, places, context) do
          {place, {called, returned, effect}}
        end
      end

    wrong = Laws.unexplained(places, histories, entries, &step(context.kind, &1, &2))
    if wrong == [], do: :ok, else: {:not_linearizable, wrong, Enum.zip(1..9, histories)}
  end

  ## Effects of a command on places

  defp effects({:batch_size, _size}, :ok, _places, _context), do: []
  defp effects({:invalid, _pairs, _route}, :raised, _places, _context), do: []

  defp effects(:flush, {:last, batches}, places, context) do
    for({partition, batch} <- batches, entry <- batch, do: {{partition, elem(entry, 0)}, entry})
    |> Enum.group_by(&elem(&1, 0), &elem(&1, 1))
    |> Map.new(fn {place, entries} -> {place, context.kind.taken_at_last(entries)} end)
    |> take(places)
  end

  defp effects(:flush, flushes, places, _context) do
    taken =
      for {partition, {:ok, entries}} <- flushes, entry <- entries, into: %{} do
        {{partition, elem(entry, 0)}, {:take, Tuple.delete_at(entry, 0)}}
      end

    for({_partition, {:malformed, _batches} = wrong} <- flushes, do: {wrong, :impossible}) ++
      take(taken, places)
  end

  defp effects(command, result, _places, context),
    do: context.kind.effects(command, result, context.partitions)

  defp take(taken, places),
    do: for(place <- Enum.uniq(places ++ Map.keys(taken)), do: {place, taken[place] || {:take, nil}})

  defp step(_kind, _entry, :impossible), do: :error
  defp step(_kind, entry, {:take, taken}), do: if(entry === taken, do: {:ok, nil}, else: :error)
  defp step(kind, entry, effect), do: kind.step(entry, effect)

  @doc "The place of a key, routed in a way of `Laws`."
  def place(route, key, n), do: {Laws.partition(route, key, n), key}

  ## Commands

  # A command names its keys by their places in the case.
  defp prepared({:churn, count, rounds}, context), do: context.kind.churn(count, rounds)
  defp prepared(command, _context) when is_atom(command) or elem(command, 0) == :batch_size, do: command

  defp prepared({many, entries, route}, context) when is_list(entries),
    do: {many, for(entry <- entries, do: with_key(entry, 0, context)), route}

  defp prepared(command, context) do
    command = with_key(command, 1, context)
    if context.sink, do: context.kind.variant(command), else: command
  end

  defp with_key(tuple, at, %{keys: keys}),
    do: put_elem(tuple, at, elem(keys, rem(elem(tuple, at), tuple_size(keys))))

  defp call(:size, %{buffer: buffer}), do: PartitionedBuffer.buffer_size(buffer)

  defp call(:flush, %{buffer: buffer, sink: sink}) when sink != nil do
    # A batch of before may have an entry that was deleted since. Its call fails, too.
    PartitionedBuffer.pause(buffer)
    await_calls(buffer)
    :counters.put(sink, 1, 1)
    PartitionedBuffer.resume(buffer)
    # A failure of before may be the result of the first flush.
    with {:error, {:failed, _count}} <- PartitionedBuffer.flush(buffer),
         do: :ok = PartitionedBuffer.flush(buffer)

    :counters.put(sink, 1, 0)
    {:last, received_batches()}
  end

  defp call(:flush, %{buffer: buffer}) do
    for {partition, number} <- Enum.with_index(partitions(buffer)) do
      {batches, size} = Laws.flush(buffer, partition)
      {number, Laws.whole(batches, size)}
    end
  end

  defp call({:batch_size, size}, %{buffer: buffer}),
    do: PartitionedBuffer.update_options(buffer, processing_batch_size: size)

  defp call(command, %{kind: kind, buffer: buffer}), do: kind.call(buffer, command)

  defp await_calls(buffer) do
    if Enum.any?(PartitionedBuffer.info(buffer).partitions, &(&1.state == :processing)),
      do: await_calls(buffer)
  end
end
