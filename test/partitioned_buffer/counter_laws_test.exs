defmodule PartitionedBuffer.CounterLawsTest do
  # Random commands on random keys do to a counter what they do to a sum and a count for each key, also while the sink is away:
  # what waits and what is in flight are one counter, though every partition flushes all the time and each flush fails. When
  # the sink is back, it gets all that was added.
  #
  #     LAWS_SEQUENTIAL=100000 LAWS_PARALLEL=10000 LAWS_REPEATS=20 LAWS_SEED=1 mix test test/partitioned_buffer/counter_laws_test.exs

  use PartitionedBuffer.Case, async: true

  alias PartitionedBuffer.{Counter, Generators, Laws}

  @moduletag :proper
  @moduletag timeout: :infinity

  @absent {:absent, __MODULE__}

  setup context do
    sink = if context[:away], do: :counters.new(1, [])
    start = &start_buffer([module: Counter, partitions: &1] ++ outage(sink))
    {:ok, sink: sink, buffers: for(n <- 1..3, into: %{}, do: {n, start.(n)})}
  end

  defp outage(nil), do: []

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

  test "a counter does what the model does", setup do
    Laws.holds("counters", Laws.sequential(), Generators.counter(), &sequential(&1, setup))
  end

  test "the commands of several processes on a counter are linearizable for each key", setup do
    Laws.holds_repeatedly(
      "parallel counters",
      Laws.parallel(),
      Generators.parallel_counter(),
      &parallel(&1, setup)
    )
  end

  @tag :away
  @tag :capture_log
  test "a counter whose sink is away does what the model does", setup do
    cases = div(Laws.sequential(), 10)
    Laws.holds("counters in an outage", cases, Generators.counter(), &sequential(&1, setup))
  end

  @tag :away
  @tag :capture_log
  test "the commands of several processes on a counter whose sink is away are linearizable for each key",
       setup do
    cases = div(Laws.parallel(), 4)
    type = Generators.parallel_counter()
    Laws.holds_repeatedly("parallel counters in an outage", cases, type, &parallel(&1, setup))
  end

  defp sequential({partitions, keys, commands}, setup) do
    context = context(setup, partitions, keys)

    with {:ok, sums} <- run(commands ++ [:size, :flush], %{}, context),
         do: if(sums == %{}, do: :ok, else: :left_over)
  end

  # The first process is this one. Only it flushes and sets the batch size, since it receives the batches.
  defp parallel({partitions, keys, before, suffixes}, setup) do
    context = context(setup, partitions, keys)
    [own | others] = Tuple.to_list(suffixes)

    with {:ok, sums} <- run(before, %{}, context) do
      suffixes =
        for commands <- [own | Enum.map(others, &not_of_others/1)], do: in_parallel(commands, context)

      histories = Laws.at_once(suffixes, &call(&1, context)) ++ Laws.at_once([[:flush]], &call(&1, context))
      linearizable(histories, sums, context)
    end
  end

  defp not_of_others(commands),
    do: Enum.reject(commands, &(&1 == :flush or match?({:batch_size, _size}, &1)))

  # The size tells nothing of a single key. If the sink was back meanwhile, nobody would know when it got an entry.
  defp in_parallel(commands, context) do
    for command <- commands,
        command != :size,
        command != :flush or context.sink == nil,
        do: with_keys(command, context.keys)
  end

  ## A case

  defp context(%{buffers: buffers, sink: sink}, partitions, keys) do
    buffer = Map.fetch!(buffers, partitions)
    context = %{buffer: buffer, partitions: partitions, keys: List.to_tuple(keys), sink: sink}
    # A failed case may have left entries.
    if sink || Counter.size(buffer) > 0, do: call(:flush, context)
    received_batches()
    context
  end

  # Does commands in this process alone; returns the sums after them.
  defp run(commands, sums, context) do
    Enum.reduce_while(commands, {:ok, sums}, fn command, {:ok, sums} ->
      command = with_keys(command, context.keys)
      result = call(command, context)

      case explain(command, result, sums, context) do
        {:ok, sums} -> {:cont, {:ok, sums}}
        :error -> {:halt, {command, got: result, sums: sums}}
      end
    end)
  end

  # What is in flight has no size.
  defp explain(:size, size, sums, %{sink: sink}) do
    if size == map_size(sums) or (sink && size <= map_size(sums)), do: {:ok, sums}, else: :error
  end

  defp explain(command, result, sums, context) do
    command
    |> effects(result, Map.keys(sums), context.partitions)
    |> Enum.reduce_while({:ok, sums}, fn {place, effect}, {:ok, sums} ->
      case step(sums[place], effect) do
        {:ok, nil} -> {:cont, {:ok, Map.delete(sums, place)}}
        {:ok, sum} -> {:cont, {:ok, Map.put(sums, place, sum)}}
        :error -> {:halt, :error}
      end
    end)
  end

  defp linearizable(histories, sums, context) do
    places =
      for history <- histories,
          {_, _, command, result} <- history,
          {place, _effect} <- effects(command, result, [], context.partitions),
          do: place

    places = Enum.uniq(places ++ Map.keys(sums))

    histories =
      for history <- histories do
        for {called, returned, command, result} <- history,
            {place, effect} <- effects(command, result, places, context.partitions) do
          {place, {called, returned, effect}}
        end
      end

    wrong = Laws.unexplained(places, histories, sums, &step/2)
    if wrong == [], do: :ok, else: {:not_linearizable, wrong, Enum.zip(1..9, histories)}
  end

  ## Effects of a command on places, which are a key in a partition

  defp effects({:add, key, amount, route}, :ok, _places, n), do: [{place(route, key, n), {:add, amount}}]

  defp effects({:add_all, pairs, route}, :ok, _places, n),
    do: for({key, amount} <- pairs, do: {place(route, key, n), {:add, amount}})

  defp effects({:get, key, route}, value, _places, n), do: [{place(route, key, n), {:get, value}}]
  defp effects({:fetch, key, route}, :error, _places, n), do: [{place(route, key, n), {:get, @absent}}]
  defp effects({:fetch, key, route}, {:ok, sum}, _places, n), do: [{place(route, key, n), {:get, sum}}]
  defp effects({:delete, key, route}, :ok, _places, n), do: [{place(route, key, n), :delete}]
  defp effects({:invalid, _pairs, _route}, :raised, _places, _n), do: []
  defp effects({:batch_size, _size}, :ok, _places, _n), do: []

  # After an outage a key may come twice: what was in flight, and what has waited.
  defp effects(:flush, {:last, batches}, places, _n) do
    for({partition, batch} <- batches, {key, sum, count} <- batch, do: {{partition, key}, sum, count})
    |> Enum.group_by(&elem(&1, 0))
    |> Map.new(fn {place, parts} ->
      {place, {Enum.sum(Enum.map(parts, &elem(&1, 1))), Enum.sum(Enum.map(parts, &elem(&1, 2)))}}
    end)
    |> take(places)
  end

  defp effects(:flush, flushes, places, _n) do
    taken =
      for {partition, {:ok, entries}} <- flushes, {key, sum, count} <- entries, into: %{} do
        {{partition, key}, {sum, count}}
      end

    for({_partition, {:malformed, _batches} = wrong} <- flushes, do: {wrong, :impossible}) ++
      take(taken, places)
  end

  defp take(taken, places),
    do: for(place <- Enum.uniq(places ++ Map.keys(taken)), do: {place, {:take, taken[place]}})

  defp step(_sum, :impossible), do: :error
  defp step(_sum, :delete), do: {:ok, nil}
  defp step(nil, {:add, amount}), do: {:ok, {amount, 1}}
  defp step({sum, count}, {:add, amount}), do: {:ok, {sum + amount, count + 1}}
  defp step(nil, {:get, value}), do: if(value === @absent, do: {:ok, nil}, else: :error)
  defp step({sum, _count} = entry, {:get, got}), do: if(sum === got, do: {:ok, entry}, else: :error)
  defp step(entry, {:take, taken}), do: if(entry === taken, do: {:ok, nil}, else: :error)

  ## Calls

  # So many keys that the index and the entries grow. They are others than those of the case.
  defp with_keys({:churn, count, rounds}, _keys),
    do: {:add_all, for(round <- 1..rounds, n <- 1..count, do: {{:churn, n}, n + round}), nil}

  defp with_keys({many, pairs, route}, keys) when many in [:add_all, :invalid],
    do: {many, for({key, amount} <- pairs, do: {at(keys, key), amount}), route}

  defp with_keys({:batch_size, _size} = command, _keys), do: command
  defp with_keys(command, _keys) when is_atom(command), do: command
  defp with_keys(command, keys), do: put_elem(command, 1, at(keys, elem(command, 1)))

  defp at(keys, place), do: elem(keys, rem(place, tuple_size(keys)))

  defp call(:size, %{buffer: buffer}), do: Counter.size(buffer)

  defp call(:flush, %{buffer: buffer, sink: sink}) when sink != nil do
    :counters.put(sink, 1, 1)
    :ok = Counter.flush(buffer)
    :counters.put(sink, 1, 0)
    {:last, received_batches()}
  end

  defp call(:flush, %{buffer: buffer}) do
    for {partition, number} <- Enum.with_index(partitions(buffer)) do
      {batches, size} = Laws.flush(partition)
      {number, Laws.whole(batches, size)}
    end
  end

  defp call({:batch_size, size}, %{buffer: buffer}),
    do: Counter.update_options(buffer, processing_batch_size: size)

  defp call({:add, key, amount, route}, %{buffer: buffer}),
    do: Counter.add(buffer, key, amount, option(route))

  defp call({:add_all, pairs, route}, %{buffer: buffer}), do: Counter.add_all(buffer, pairs, option(route))
  defp call({:get, key, route}, %{buffer: buffer}), do: Counter.get(buffer, key, @absent, option(route))
  defp call({:fetch, key, route}, %{buffer: buffer}), do: Counter.fetch(buffer, key, option(route))
  defp call({:delete, key, route}, %{buffer: buffer}), do: Counter.delete(buffer, key, option(route))

  defp call({:invalid, pairs, route}, %{buffer: buffer}) do
    Counter.add_all(buffer, pairs ++ [:invalid], option(route))
  rescue
    ArgumentError -> :raised
  end

  defp option(route), do: Laws.option(route)

  defp place(route, key, n), do: {Laws.partition(route, key, n), key}
end
