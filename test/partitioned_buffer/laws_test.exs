defmodule PartitionedBuffer.LawsTest do
  # Random commands on random terms do to a map what they do to the model of an entry. If the map has outcomes and its sink is
  # away, they do the same: what waits and what is in flight are one map, though every partition flushes all the time and each
  # flush fails. When the sink is back, it gets the last entry of each key.
  #
  #     LAWS_SEQUENTIAL=100000 LAWS_PARALLEL=10000 LAWS_REPEATS=20 LAWS_SEED=1 mix test test/partitioned_buffer/laws_test.exs

  use PartitionedBuffer.Case, async: true

  alias PartitionedBuffer.{Generators, Laws, Model}

  @moduletag :proper
  @moduletag timeout: :infinity

  @absent {:absent, __MODULE__}

  setup context do
    sink = if context[:away], do: :counters.new(1, [])

    {:ok,
     sink: sink, buffers: for(n <- 1..3, into: %{}, do: {n, start_buffer([partitions: n] ++ outage(sink))})}
  end

  defp outage(nil), do: []

  # 0 in the counter means that the sink is away.
  defp outage(sink) do
    test = self()

    processor = Laws.processor_in_outage(sink, &send(test, {:batch, &1}))

    [
      processor: processor,
      max_attempts: :infinity,
      retry_backoff_ms: {0, 1},
      processing_interval_ms: 1,
      processing_batch_size: 3
    ]
  end

  test "a map does what the model does", setup do
    Laws.holds("maps", Laws.sequential(), Generators.sequential(), &sequential(&1, setup))
  end

  test "the commands of several processes on a map are linearizable for each key", setup do
    Laws.holds_repeatedly("parallel maps", Laws.parallel(), Generators.parallel(), &parallel(&1, setup))
  end

  @tag :away
  @tag :capture_log
  test "a map whose sink is away does what the model does", setup do
    cases = div(Laws.sequential(), 10)
    Laws.holds("maps in an outage", cases, Generators.sequential(), &sequential(&1, setup))
  end

  @tag :away
  @tag :capture_log
  test "the commands of several processes on a map whose sink is away are linearizable for each key", setup do
    cases = div(Laws.parallel(), 4)
    Laws.holds_repeatedly("parallel maps in an outage", cases, Generators.parallel(), &parallel(&1, setup))
  end

  defp sequential({partitions, keys, commands}, setup) do
    context = context(setup, partitions, keys)
    with {:ok, entries} <- run(commands ++ [:size, :flush], %{}, context), do: explained(entries == %{})
  end

  defp parallel({partitions, keys, before, suffixes}, setup),
    do: run_parallel(before, Tuple.to_list(suffixes), context(setup, partitions, keys))

  defp explained(true), do: :ok
  defp explained(false), do: :left_over

  ## A case

  defp context(%{buffers: buffers, sink: sink}, partitions, keys) do
    buffer = Map.fetch!(buffers, partitions)
    context = %{buffer: buffer, partitions: partitions, keys: List.to_tuple(keys), sink: sink}
    # A failed case may have left entries.
    if sink || Buffer.size(buffer) > 0, do: call(:flush, context)
    received_batches()
    context
  end

  # Does commands in this process alone; returns the entries after them.
  defp run(commands, entries, context) do
    Enum.reduce_while(commands, {:ok, entries}, fn command, {:ok, entries} ->
      command = command |> with_keys(context.keys) |> variant(context)
      result = call(command, context)

      case explain(command, result, entries, context) do
        {:ok, entries} -> {:cont, {:ok, entries}}
        :error -> {:halt, {command, got: result, entries: entries}}
      end
    end)
  end

  # What is in flight has no size.
  defp explain(:size, size, entries, %{sink: sink}) do
    if size == map_size(entries) or (sink && size <= map_size(entries)), do: {:ok, entries}, else: :error
  end

  defp explain(command, result, entries, context) do
    command
    |> effects(result, Map.keys(entries), context.partitions)
    |> Enum.reduce_while({:ok, entries}, fn {place, effect}, {:ok, entries} ->
      case step(entries[place], effect) do
        {:ok, nil} -> {:cont, {:ok, Map.delete(entries, place)}}
        {:ok, entry} -> {:cont, {:ok, Map.put(entries, place, entry)}}
        :error -> {:halt, :error}
      end
    end)
  end

  # The first process is this one. Only it flushes and sets the batch size, since it receives the batches.
  defp run_parallel(before, [own | others], context) do
    with {:ok, entries} <- run(before, %{}, context) do
      suffixes =
        for commands <- [own | Enum.map(others, &writes_and_reads/1)], do: in_parallel(commands, context)

      histories = Laws.at_once(suffixes, &call(&1, context)) ++ Laws.at_once([[:flush]], &call(&1, context))
      linearizable(histories, entries, context)
    end
  end

  defp writes_and_reads(commands),
    do: Enum.reject(commands, &(&1 == :flush or match?({:batch_size, _size}, &1)))

  # The size tells nothing of a single key. If the sink was back meanwhile, nobody would know when it got an entry.
  defp in_parallel(commands, context) do
    for command <- commands, command != :size, command != :flush or context.sink == nil do
      command |> with_keys(context.keys) |> variant(context)
    end
  end

  # With outcomes, some commands are done in another way, which tells more.
  defp variant(command, %{sink: nil}), do: command

  defp variant(command, _context) do
    case {command, :erlang.phash2(command, 2)} do
      {{:put, key, value, route}, 0} -> {:put_new, key, value, route}
      {{:put_newer, key, value, version, route}, 0} -> {:put_if_newer, key, value, version, route}
      {{:get, key, route}, 0} -> {:fetch, key, route}
      {command, _any} -> command
    end
  end

  ## Linearizability: some order of the effects on a key obeys their times, and gives their results.

  defp linearizable(histories, entries, context) do
    places =
      for history <- histories,
          {_, _, command, result} <- history,
          place <- touched(command, result, context),
          do: place

    places = Enum.uniq(places ++ Map.keys(entries))

    histories =
      for history <- histories do
        for {called, returned, command, result} <- history,
            {place, effect} <- effects(command, result, places, context.partitions) do
          {place, {called, returned, effect}}
        end
      end

    wrong = Laws.unexplained(places, histories, entries, &step/2)
    if wrong == [], do: :ok, else: {:not_linearizable, wrong, Enum.zip(1..9, histories)}
  end

  defp touched(command, result, context),
    do: command |> effects(result, [], context.partitions) |> Enum.map(&elem(&1, 0))

  ## Effects of a command on places, which are a key in a partition

  defp effects({:put, key, value, route}, :ok, _places, n), do: [{place(route, key, n), {:put, value}}]

  defp effects({:put_newer, key, value, version, route}, :ok, _places, n),
    do: [{place(route, key, n), {:put_newer, value, version}}]

  defp effects({:put_all, pairs, route}, :ok, _places, n),
    do: for({key, value} <- pairs, do: {place(route, key, n), {:put, value}})

  defp effects({:put_all_newer, entries, route}, :ok, _places, n) do
    for {key, value, version} <- entries, do: {place(route, key, n), {:put_newer, value, version}}
  end

  defp effects({:get, key, route}, value, _places, n), do: [{place(route, key, n), {:get, value}}]
  defp effects({:fetch, key, route}, :error, _places, n), do: [{place(route, key, n), {:get, @absent}}]
  defp effects({:fetch, key, route}, {:ok, value}, _places, n), do: [{place(route, key, n), {:get, value}}]

  defp effects({:put_new, key, value, route}, result, _places, n),
    do: [{place(route, key, n), {:put_new, value, result}}]

  defp effects({:put_if_newer, key, value, version, route}, result, _places, n),
    do: [{place(route, key, n), {:put_if_newer, value, version, result}}]

  defp effects({:delete, key, route}, :ok, _places, n), do: [{place(route, key, n), :delete}]
  defp effects({:invalid, _pairs, _route}, :raised, _places, _n), do: []
  defp effects({:batch_size, _size}, :ok, _places, _n), do: []

  # The sink may have got an older entry of a key before.
  defp effects(:flush, {:last, batches}, places, _n) do
    taken =
      for {partition, batch} <- batches, {key, value, version, updates} <- batch, into: %{} do
        {{partition, key}, {value, version, updates}}
      end

    for place <- Enum.uniq(places ++ Map.keys(taken)), do: {place, {:take_last, taken[place]}}
  end

  defp effects(:flush, flushes, places, _n) do
    for({_partition, {:malformed, _batches} = wrong} <- flushes, do: {wrong, :impossible}) ++
      take(flushes, places)
  end

  defp take(flushes, places) do
    taken =
      for {partition, {:ok, entries}} <- flushes, {key, value, version, updates} <- entries, into: %{} do
        {{partition, key}, {value, version, updates}}
      end

    for place <- Enum.uniq(places ++ Map.keys(taken)), do: {place, {:take, taken[place]}}
  end

  defp step(_entry, :impossible), do: :error
  defp step(nil, {:get, value}), do: if(value === @absent, do: {:ok, nil}, else: :error)
  defp step({value, _, _} = entry, {:get, got}), do: if(value === got, do: {:ok, entry}, else: :error)
  defp step(entry, {:take, taken}), do: if(entry === taken, do: {:ok, nil}, else: :error)

  # Those updates count that were made since the last failure.
  defp step({value, version, updates}, {:take_last, {got, at, counted}}),
    do: if({value, version} === {got, at} and counted <= updates, do: {:ok, nil}, else: :error)

  defp step(entry, {:take_last, taken}), do: if(entry === taken, do: {:ok, nil}, else: :error)
  defp step(nil, {:put_new, value, :ok}), do: {:ok, Model.write(nil, {:put, value})}
  defp step(nil, {:put_new, _value, {:error, :exists}}), do: :error

  defp step(entry, {:put_new, _value, result}),
    do: if(result == {:error, :exists}, do: {:ok, entry}, else: :error)

  defp step(entry, {:put_if_newer, value, version, result}) do
    newer? = entry == nil or version > elem(entry, 1)
    expected = if newer?, do: :ok, else: {:error, :stale}
    if result == expected, do: step(entry, {:put_newer, value, version}), else: :error
  end

  defp step(entry, write), do: {:ok, Model.write(entry, write)}

  ## Calls

  # So many writes that memory is cleaned. They are to other keys than those of the case, and overwrite four of five.
  defp with_keys({:churn, count, rounds}, _keys) do
    {:put_all_newer,
     for(
       round <- 1..rounds,
       n <- 1..count,
       round == 1 or rem(n, 5) != 0,
       do: {{:churn, n}, {n, round}, round}
     ), nil}
  end

  defp with_keys({:put_all_newer, entries, route}, keys),
    do: {:put_all_newer, for({key, value, version} <- entries, do: {at(keys, key), value, version}), route}

  defp with_keys({many, pairs, route}, keys) when many in [:put_all, :invalid],
    do: {many, for({key, value} <- pairs, do: {at(keys, key), value}), route}

  defp with_keys({:batch_size, _size} = command, _keys), do: command
  defp with_keys(command, _keys) when is_atom(command), do: command
  defp with_keys(command, keys), do: put_elem(command, 1, at(keys, elem(command, 1)))

  defp at(keys, place), do: elem(keys, rem(place, tuple_size(keys)))

  defp call(:size, %{buffer: buffer}), do: Buffer.size(buffer)

  defp call(:flush, %{buffer: buffer, sink: sink}) when sink != nil do
    :counters.put(sink, 1, 1)
    :ok = Buffer.flush(buffer)
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
    do: Buffer.update_options(buffer, processing_batch_size: size)

  defp call({:put, key, value, route}, %{buffer: buffer}), do: Buffer.put(buffer, key, value, option(route))

  defp call({:put_newer, key, value, version, route}, %{buffer: buffer}),
    do: Buffer.put_newer(buffer, key, value, version, option(route))

  defp call({:put_all, pairs, route}, %{buffer: buffer}), do: Buffer.put_all(buffer, pairs, option(route))

  defp call({:put_all_newer, entries, route}, %{buffer: buffer}),
    do: Buffer.put_all_newer(buffer, entries, option(route))

  defp call({:get, key, route}, %{buffer: buffer}), do: Buffer.get(buffer, key, @absent, option(route))
  defp call({:fetch, key, route}, %{buffer: buffer}), do: Buffer.fetch(buffer, key, option(route))

  defp call({:put_new, key, value, route}, %{buffer: buffer}),
    do: Buffer.put_new(buffer, key, value, option(route))

  defp call({:put_if_newer, key, value, version, route}, %{buffer: buffer}),
    do: Buffer.put_newer(buffer, key, value, version, [stale: :error] ++ option(route))

  defp call({:delete, key, route}, %{buffer: buffer}), do: Buffer.delete(buffer, key, option(route))

  defp call({:invalid, pairs, route}, %{buffer: buffer}) do
    Buffer.put_all(buffer, pairs ++ [:invalid], option(route))
  rescue
    ArgumentError -> :raised
  end

  defp option(route), do: Laws.option(route)

  defp place(route, key, n), do: {Laws.partition(route, key, n), key}
end
