defmodule PartitionedBuffer.LawsTest do
  # Random commands on random terms do to a map what they do to the model of an entry.
  #
  #     LAWS_SEQUENTIAL=100000 LAWS_PARALLEL=10000 LAWS_REPEATS=20 LAWS_SEED=1 mix test test/partitioned_buffer/laws_test.exs

  use PartitionedBuffer.Case, async: true

  alias PartitionedBuffer.{Generators, Laws, Model}

  @moduletag :proper
  @moduletag timeout: :infinity

  @absent {:absent, __MODULE__}

  setup do
    {:ok, buffers: for(n <- 1..3, into: %{}, do: {n, start_buffer(partitions: n)})}
  end

  test "a map does what the model does", %{buffers: buffers} do
    Laws.holds("maps", Laws.sequential(), Generators.sequential(), fn {partitions, keys, commands} ->
      context = context(buffers, partitions, keys)
      with {:ok, entries} <- run(commands ++ [:size, :flush], %{}, context), do: explained(entries == %{})
    end)
  end

  test "the commands of several processes on a map are linearizable for each key", %{buffers: buffers} do
    Laws.holds_repeatedly("parallel maps", Laws.parallel(), Generators.parallel(), fn case ->
      {partitions, keys, before, suffixes} = case
      run_parallel(before, Tuple.to_list(suffixes), context(buffers, partitions, keys))
    end)
  end

  defp explained(true), do: :ok
  defp explained(false), do: :left_over

  ## A case

  defp context(buffers, partitions, keys) do
    buffer = Map.fetch!(buffers, partitions)
    # A failed case may have left entries.
    if Buffer.size(buffer) > 0, do: flush(buffer)
    received_batches()
    %{buffer: buffer, partitions: partitions, keys: List.to_tuple(keys)}
  end

  # Does commands in this process alone; returns the entries after them.
  defp run(commands, entries, context) do
    Enum.reduce_while(commands, {:ok, entries}, fn command, {:ok, entries} ->
      command = with_keys(command, context.keys)
      result = call(command, context)

      case explain(command, result, entries, context) do
        {:ok, entries} -> {:cont, {:ok, entries}}
        :error -> {:halt, {command, got: result, entries: entries}}
      end
    end)
  end

  defp explain(:size, size, entries, _context) do
    if size == map_size(entries), do: {:ok, entries}, else: :error
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

  # The size tells nothing of a single key.
  defp in_parallel(commands, context),
    do: for(command <- commands, command != :size, do: with_keys(command, context.keys))

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

    wrong =
      Enum.reject(places, fn place ->
        queues = for history <- histories, do: for({^place, effect} <- history, do: effect)
        explainable?([{entries[place], queues}], queues |> Enum.map(&length/1) |> Enum.sum())
      end)

    if wrong == [], do: :ok, else: {:not_linearizable, wrong, Enum.zip(1..9, histories)}
  end

  defp touched(command, result, context),
    do: command |> effects(result, [], context.partitions) |> Enum.map(&elem(&1, 0))

  # Tries all orders at once: the states after one effect, then after two, and so on.
  defp explainable?(states, 0), do: states != []

  defp explainable?(states, left) do
    next =
      for {entry, queues} <- states,
          {[{called, _returned, effect} | rest], number} <- Enum.with_index(queues),
          called <= first_return(queues),
          {:ok, entry} <- [step(entry, effect)],
          uniq: true do
        {entry, List.replace_at(queues, number, rest)}
      end

    explainable?(next, left - 1)
  end

  defp first_return(queues), do: Enum.min(for [{_called, returned, _effect} | _rest] <- queues, do: returned)

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
  defp effects({:delete, key, route}, :ok, _places, n), do: [{place(route, key, n), :delete}]
  defp effects({:invalid, _pairs, _route}, :raised, _places, _n), do: []
  defp effects({:batch_size, _size}, :ok, _places, _n), do: []

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

  defp call(:flush, %{buffer: buffer}) do
    for {partition, number} <- Enum.with_index(partitions(buffer)) do
      {batches, size} = Laws.flush(partition)
      {number, whole(batches, size)}
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
  defp call({:delete, key, route}, %{buffer: buffer}), do: Buffer.delete(buffer, key, option(route))

  defp call({:invalid, pairs, route}, %{buffer: buffer}) do
    Buffer.put_all(buffer, pairs ++ [:invalid], option(route))
  rescue
    ArgumentError -> :raised
  end

  # The entries, if only the last batch is short, and no key comes twice.
  defp whole(batches, size) do
    entries = Enum.concat(batches)
    keys = MapSet.new(entries, &elem(&1, 0))

    if batches == Enum.chunk_every(entries, size) and MapSet.size(keys) == length(entries),
      do: {:ok, entries},
      else: {:malformed, batches}
  end

  defp option(route), do: Laws.option(route)

  defp place(route, key, n), do: {Laws.partition(route, key, n), key}
end
