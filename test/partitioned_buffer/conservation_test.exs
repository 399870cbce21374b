defmodule PartitionedBuffer.ConservationTest do
  # Short runs of what bench/conservation.exs does at length. CONSERVATION_SEED sets the seed.

  use PartitionedBuffer.Case, async: true

  alias PartitionedBuffer.{Conservation, Routing}
  alias PartitionedBuffer.Conservation.{Accepted, Faults, Item, RetriedItems, Retries}

  @moduletag :capture_log
  @moduletag timeout: 300_000

  @seed String.to_integer(System.get_env("CONSERVATION_SEED", "#{:erlang.phash2(make_ref())}"))

  for {title, kind, faults, writes} <- [
        {"each write to a map is processed once, or replaced or deleted", Conservation.Maps, [], 600_000},
        {"a failing processor of a map loses only its batch, and is reported", Conservation.Maps,
         Faults.in_processor(), 400_000},
        {"deaths, stops and starts lose only batches of a map's processor", Conservation.Maps, Faults.all(),
         800_000},
        {"each addition to a counter is processed once, or deleted", Conservation.Counters, [], 400_000},
        {"a failing processor of a counter loses only its batch, and is reported", Conservation.Counters,
         Faults.in_processor(), 300_000},
        {"deaths, stops and starts lose only batches of a counter's processor", Conservation.Counters,
         Faults.all(), 500_000},
        {"each item of a queue is processed once, in the order of the pushes", Conservation.Queues, [],
         200_000},
        {"a failing processor of a queue loses only its batch, and is reported", Conservation.Queues,
         Faults.in_processor(), 100_000},
        {"deaths, stops and starts lose only batches of a queue, and keep order", Conservation.Queues,
         Faults.all(), 250_000}
      ] do
    test title do
      check(unquote(kind), @seed, 0, 0, writes: unquote(writes), faults: unquote(faults))
    end
  end

  # Seeds that follow each other have all options of retries, and other ways to refuse. Some have a
  # bound.
  for {title, kind, order, faults, writes} <- [
        {"a map with retries loses nothing, and retries nothing replaced", Conservation.Maps, :strict, [],
         40_000},
        {"a map with retries loses nothing through deaths, stops and starts", Conservation.Maps, :strict,
         Faults.all_with_retries(), 40_000},
        {"a counter with retries loses nothing and counts nothing twice", Conservation.Counters, :strict, [],
         40_000},
        {"a counter with retries counts once through deaths, stops and starts", Conservation.Counters,
         :strict, Faults.all_with_retries(), 40_000},
        {"a queue with retries loses nothing, and keeps its order", Conservation.Queues, :strict, [], 15_000},
        {"a queue with retries keeps its order through deaths, stops and starts", Conservation.Queues,
         :strict, Faults.all_with_retries(), 15_000},
        {"a queue without order loses nothing, and isolates bad items", Conservation.Queues, :none, [],
         15_000},
        {"a queue without order loses nothing through deaths and stops", Conservation.Queues, :none,
         Faults.all_with_retries(), 15_000}
      ] do
    test title do
      for seed <- @seed..(@seed + 2) do
        # Lists of 5,000 have to fit.
        max_size = if rem(seed, 2) == 0, do: 6_000, else: :infinity
        ways = Conservation.refuses()
        refuses = Enum.at(ways, rem(seed + div(seed, 6), length(ways)))
        opts = [writes: unquote(writes), faults: unquote(faults), order: unquote(order), refuses: refuses]
        check(unquote(kind), seed, 0, 0, [retries: true, max_size: max_size] ++ opts)
      end
    end
  end

  # The ledger gets the message of the heir first, as the order of a dying process's messages allows.
  test "the heir of a dead task may call :dead_letter before the ledger has the death" do
    assert given_up_by_heir(&kill_processes([&1])) == %{}
  end

  test "a call of :dead_letter without a failure and without a death is a violation" do
    assert %{given_up_early: {1, _what}} = given_up_by_heir(fn _task -> :ok end)
  end

  test "the limit of a killed tree's task does not hold for the next start" do
    {ledger, buffer, [task, next]} = start_ledger()
    Retries.started(ledger)
    began(ledger, buffer, task)
    Retries.arm(ledger, :raise)
    items = for number <- 1..64, do: Item.item(1, 0, number)
    now = System.monotonic_time()
    send(ledger, {:batch, task, now, items})
    send(ledger, {:returning, task, now})

    Retries.starting(ledger, 100)
    send(ledger, {:event, [:split], %{count: 64, limit: 16}, %{}, now, task})
    send(ledger, {:event, [:processing, :stop], %{size: 0}, %{rest?: true, pauses?: true}, now, task})
    began(ledger, buffer, next)
    send(ledger, {:batch, next, now, items})
    assert finish(ledger, [task, next]) == %{}
  end

  # `last` gets a task whose partition another one serves, which gives an item up.
  defp given_up_by_heir(last) do
    {ledger, buffer, [task, heir]} = start_ledger()
    began(ledger, buffer, task)
    # Now the ledger monitors the task.
    :sys.get_state(ledger)

    :erlang.suspend_process(ledger)
    began(ledger, buffer, heir)
    send(ledger, {:dead_letter, heir, [Item.item(1, 0, 1)], :killed})
    last.(task)
    :erlang.resume_process(ledger)
    finish(ledger, [task, heir])
  end

  # A ledger without a buffer, and two processes as tasks.
  defp start_ledger do
    buffer = unique_name("ledger")
    {:ok, ledger} = Retries.start_link(RetriedItems, buffer, 100, Accepted.new(4, true))
    {ledger, buffer, for(_ <- 1..2, do: spawn(fn -> Process.sleep(:infinity) end))}
  end

  defp finish(ledger, tasks) do
    # Now it has judged all messages.
    :sys.get_state(ledger)
    kill_processes(tasks)
    Retries.finish(ledger, []).violations
  end

  defp began(ledger, buffer, task) do
    now = System.monotonic_time()
    metadata = %{partition: Routing.partition_name(buffer, 0), partition_count: 2, trigger: :interval}
    send(ledger, {:event, [:processing, :start], %{monotonic_time: now}, metadata, now, task})
  end

  # On a busy machine there are few flushes to lose something at, and few faults: then again, with the next seed.
  defp check(kind, seed, flushes, faults, opts) do
    result = Conservation.package(kind, [seed: seed] ++ opts)
    assert result.violations == %{}, "CONSERVATION_SEED=#{seed}: #{inspect(result, pretty: true)}"
    flushes = flushes + result.counts.flushes
    faults = faults + Enum.sum(Map.values(result.faults))

    if flushes < 50 or (opts[:faults] != [] and faults < 20),
      do: check(kind, seed + 1, flushes, faults, opts)
  end
end
