defmodule PartitionedBuffer.QueueLawsTest do
  # Random commands on random items, against a list for each partition.
  #
  #     LAWS_SEQUENTIAL=100000 LAWS_SEED=1 mix test test/partitioned_buffer/queue_laws_test.exs

  use PartitionedBuffer.Case, async: true

  alias PartitionedBuffer.{Generators, Laws, Queue}

  @moduletag :proper
  @moduletag timeout: :infinity

  setup do
    {:ok, queues: for(n <- 1..3, into: %{}, do: {n, start_buffer(module: Queue, partitions: n)})}
  end

  test "commands do to a queue what they do to lists", %{queues: queues} do
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

  # Without what a failed case has left.
  defp empty(queues, partitions) do
    queue = Map.fetch!(queues, partitions)
    flush(queue)
    received_batches()
    queue
  end

  # The model after a command, or the command with what was wrong.
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
        {batches, _size} = Laws.hand_over(partition)
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
end
