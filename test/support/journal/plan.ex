defmodule PartitionedBuffer.JournalLoop.Plan do
  @moduledoc false
  # What a round does: a buffer, its writers, its sink, and how each of its VMs ends. All by a seed.

  @doc "The plan of a seed."
  def new(seed) do
    :rand.seed(:exsss, {seed, seed * 7_919 + 1, 42})
    kind = one_of([:map, :map, :counter, :queue])
    # The order of a queue needs the same partitions; a map and a counter route by their keys.
    counts = if kind == :queue, do: [one_of([1, 4])], else: [1, 4, 3]
    kills = one_of([1, 2, 2, 3, 4])

    %{
      seed: seed,
      kind: kind,
      writes: one_of([:put, :put, :put_newer]),
      version_base: one_of([0, 0, 2 ** 70, -(2 ** 70)]),
      deletes?: one_of([true, false]),
      routing: one_of([:default, :by_writer]),
      writers: one_of([1, 2]),
      keys: one_of([3, 100, 2_000]),
      value_bytes: one_of([10, 200, 200, 5_000]),
      rest_ms: one_of([0, 0, 1]),
      options: [
        processing_interval_ms: one_of([20, 20, 100, 300, :infinity]),
        processing_batch_size: one_of([1, 10, 10, 100]),
        processing_threshold: one_of([:infinity, 200]),
        max_attempts: one_of([2, 3, 5, :infinity]),
        retry_backoff_ms: {10, 50},
        processing_timeout_ms: 400
      ],
      journal: [
        write_ms: :rand.uniform(5),
        sync_ms: one_of([5, 50, 1_000, :infinity]),
        max_bytes: one_of([1_048_576, 67_108_864])
      ],
      sink: one_of([:works, :fails_at_times, :fails_at_times, :fails_often, :is_down]),
      lives: for(number <- 1..kills, do: life(number, one_of(counts))),
      last_partitions: one_of(counts)
    }
  end

  defp life(number, partitions) do
    kill =
      one_of([
        {:after_ms, :rand.uniform(600)},
        {:after_ms, :rand.uniform(600)},
        {:after_ms, :rand.uniform(100)},
        {:at_call, :rand.uniform(30), one_of([:begin, :end])},
        {:at_call, :rand.uniform(300), one_of([:begin, :end])}
      ])

    # There is nothing to replay in the first life.
    kill = if number > 1 and :rand.uniform(5) == 1, do: {:at_start_ms, :rand.uniform(500)}, else: kill
    %{number: number, partitions: partitions, kill: kill}
  end

  def one_of(list), do: Enum.random(list)
end
