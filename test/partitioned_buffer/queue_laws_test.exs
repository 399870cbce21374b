defmodule PartitionedBuffer.QueueLawsTest do
  # Random commands on random items do to a queue what they do to a list for each partition. Those of several processes do
  # what the times of their calls allow.
  #
  #     LAWS_SEQUENTIAL=100000 LAWS_PARALLEL=10000 LAWS_REPEATS=20 LAWS_SEED=1 mix test test/partitioned_buffer/queue_laws_test.exs

  use PartitionedBuffer.Case, async: true

  alias PartitionedBuffer.{Generators, Laws, Queue}

  @moduletag :proper
  @moduletag timeout: :infinity

  setup do
    {:ok, queues: for(n <- 1..3, into: %{}, do: {n, start_buffer(module: Queue, partitions: n)})}
  end

  test "a queue does what lists do", %{queues: queues} do
    Laws.holds("queues", Laws.sequential(), Generators.queue(), fn {partitions, commands} ->
      queue = empty(queues, partitions)
      Queue.update_options(queue, processing_batch_size: 100)

      model = %{
        lists: Map.new(0..(partitions - 1), &{&1, []}),
        size: 100,
        queue: queue,
        partitions: partitions
      }

      result = Enum.reduce_while(commands ++ [:size, :flush, :size], model, &step/2)
      if is_map(result), do: :ok, else: result
    end)
  end

  test "concurrent pushes to a queue are linearizable in each partition", %{queues: queues} do
    Laws.holds_repeatedly("parallel queues", Laws.parallel(), Generators.parallel_queue(), fn case ->
      {partitions, before, suffixes} = case
      run_parallel(before, Tuple.to_list(suffixes), empty(queues, partitions), partitions)
    end)
  end

  # A queue without the items that a failed case may have left.
  defp empty(queues, partitions) do
    queue = Map.fetch!(queues, partitions)
    flush(queue)
    received_batches()
    queue
  end

  # The model after a command, or the command with the wrong result.
  defp step({:push, item_or_items, route} = command, model) do
    items = if is_list(item_or_items), do: item_or_items, else: [item_or_items]

    if List.improper?(items) do
      step(put_elem(command, 0, :improper_item), model)
    else
      got = Queue.push(model.queue, item_or_items, Laws.option(route))

      lists =
        Enum.reduce(
          items,
          model.lists,
          &Map.update!(&2, Laws.partition(route, &1, model.partitions), fn l -> [&1 | l] end)
        )

      go_on(got == :ok, command, got, %{model | lists: lists})
    end
  end

  defp step({:improper_item, items, route} = command, model), do: refused(command, items, route, model)
  defp step({:improper, items, route} = command, model), do: refused(command, items ++ :tail, route, model)

  defp step(:size, model) do
    got = Queue.size(model.queue)
    go_on(got == model.lists |> Map.values() |> Enum.map(&length/1) |> Enum.sum(), :size, got, model)
  end

  defp step({:batch_size, size} = command, model) do
    got = Queue.update_options(model.queue, processing_batch_size: size)
    go_on(got == :ok, command, got, %{model | size: size})
  end

  defp step(:flush, model) do
    got =
      for {partition, number} <- Enum.with_index(partitions(model.queue)), into: %{} do
        {batches, _size} = Laws.flush(model.queue, partition)
        {number, batches}
      end

    expected =
      Map.new(model.lists, fn {number, list} ->
        {number, list |> Enum.reverse() |> Enum.chunk_every(model.size)}
      end)

    go_on(got === expected, :flush, {got, expected}, %{
      model
      | lists: Map.new(model.lists, &{elem(&1, 0), []})
    })
  end

  defp refused(command, items, route, model) do
    got = Queue.push(model.queue, items, Laws.option(route))
    {:halt, {command, got}}
  rescue
    error in ArgumentError -> go_on(error.message =~ "proper list", command, error, model)
  end

  defp go_on(true, _command, _got, model), do: {:cont, model}
  defp go_on(false, command, got, model), do: {:halt, {command, got: got, lists: model.lists}}

  ## Several processes

  # Items of a process are numbered from a multiple of this.
  @items_of_process 1_000_000

  # This process does the first suffix, since it receives the batches.
  defp run_parallel(before, suffixes, queue, partitions) do
    [before | suffixes] = [before | suffixes] |> Enum.with_index() |> Enum.map(&numbered/1)
    phases = for lists <- [[before], suffixes, [[:flush, :size]]], do: Laws.at_once(lists, &call(&1, queue))
    histories = Enum.concat(phases)

    case wrong(Enum.concat(histories), partitions) do
      [] -> :ok
      wrong -> {wrong, histories}
    end
  end

  defp numbered({commands, process}) do
    {commands, _next} = Enum.map_reduce(commands, process * @items_of_process, &distinct/2)
    commands
  end

  defp distinct({:push, with_it, route}, next), do: {{:push, item(with_it, next), route}, next + 1}

  defp distinct({push_all, list, route}, next) do
    {items, next} = Enum.map_reduce(list, next, &{item(&1, &2), &2 + 1})
    {{push_all, items, route}, next}
  end

  defp distinct(command, next), do: {command, next}

  defp item(:nothing, number), do: number
  defp item(term, number), do: {number, term}

  defp number({number, _term}), do: number
  defp number(number), do: number

  defp call(:size, queue), do: Queue.size(queue)
  defp call({:batch_size, size}, queue), do: Queue.update_options(queue, processing_batch_size: size)

  defp call({:improper, items, route}, queue) do
    Queue.push(queue, items ++ :tail, Laws.option(route))
  rescue
    ArgumentError -> :raised
  end

  defp call({_push, item_or_items, route}, queue), do: Queue.push(queue, item_or_items, Laws.option(route))

  defp call(:flush, queue) do
    for {partition, number} <- Enum.with_index(partitions(queue)) do
      called = System.monotonic_time()
      {batches, size} = Laws.flush(queue, partition)
      returned = System.monotonic_time()
      items = Enum.concat(batches)
      full? = batches == Enum.chunk_every(items, size)
      %{partition: number, called: called, returned: returned, items: items, full?: full?}
    end
  end

  # The laws of a queue that the calls of all processes contradict.
  defp wrong(done, partitions) do
    pushed =
      for {called, returned, command, _result} <- done, {item, route} <- items(command), into: %{} do
        {item, {Laws.partition(route, item, partitions), called, returned}}
      end

    flushes = for {_, _, :flush, flushes} <- done, flush <- flushes, do: flush
    each = for number <- 0..(partitions - 1), do: Enum.filter(flushes, &(&1.partition == number))

    Enum.reject(
      [
        results: for({_, _, command, result} <- done, not possible?(command, result), do: {command, result}),
        not_full: Enum.reject(flushes, & &1.full?),
        not_once: Enum.flat_map(each, &not_once(&1, pushed)),
        out_of_order: Enum.flat_map(each, &out_of_order/1),
        overtaken: Enum.flat_map(each, &overtaken(&1, pushed)),
        sizes: sizes(done, flushes, pushed)
      ],
      fn {_law, exceptions} -> exceptions == [] end
    )
  end

  defp items({:push, item, route}), do: [{item, route}]
  defp items({:push_all, items, route}), do: Enum.map(items, &{&1, route})
  defp items(_command), do: []

  defp possible?(:size, size), do: is_integer(size)
  defp possible?(:flush, flushes), do: is_list(flushes)
  defp possible?({:improper, _items, _route}, result), do: result == :raised
  defp possible?(_command, result), do: result == :ok

  # A partition flushes each item that was pushed to it once and unchanged, and no other.
  defp not_once([%{partition: partition} | _] = flushes, pushed) do
    got = flushes |> Enum.flat_map(& &1.items) |> Enum.frequencies()
    expected = for {item, {^partition, _, _}} <- pushed, into: %{}, do: {item, 1}

    for item <- Map.keys(Map.merge(expected, got)), got[item] != expected[item] do
      {item, partition: partition, times: Map.get(got, item, 0)}
    end
  end

  # The items of a process, and those of a list, keep their order.
  defp out_of_order(flushes) do
    numbers = for %{items: items} <- flushes, item <- items, do: number(item)

    for {process, numbers} <- Enum.group_by(numbers, &div(&1, @items_of_process)),
        numbers != Enum.sort(numbers) do
      {process, numbers}
    end
  end

  # Pushes and flushes of a partition, in the order in which they took effect. None may have returned before an earlier one
  # was called. Then each call has a moment that gives this order.
  defp overtaken(flushes, pushed) do
    events = Enum.flat_map(flushes, &events(&1, pushed))
    latest = events |> Enum.map(&elem(&1, 1)) |> Enum.scan(&max/2)
    for {{_, _, returned} = event, latest} <- Enum.zip(events, latest), latest > returned, do: {event, latest}
  end

  defp events(flush, pushed) do
    pushes =
      for item <- flush.items, %{^item => {_, called, returned}} <- [pushed], do: {item, called, returned}

    pushes ++ [{:flush, flush.called, flush.returned}]
  end

  # A size counts all items that certainly waited during its call, and none that certainly did not.
  defp sizes(done, flushes, pushed) do
    waits =
      for flush <- flushes,
          item <- flush.items,
          %{^item => push} <- [pushed],
          do: {push, flush}

    for {called, returned, :size, size} <- done,
        least =
          Enum.count(waits, fn {{_, _, pushed}, taken} -> pushed < called and taken.called > returned end),
        most =
          Enum.count(waits, fn {{_, pushed, _}, taken} -> pushed <= returned and taken.returned >= called end),
        size not in least..most//1 do
      {size, least: least, most: most}
    end
  end
end
