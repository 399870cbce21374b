defmodule PartitionedBuffer.Laws do
  @moduledoc false
  # For the laws of all kinds of buffers: PropEr under ExUnit, commands of several processes at the
  # same time, flushes, and the documented routing.
  #
  # LAWS_SEQUENTIAL and LAWS_PARALLEL are the numbers of cases, and LAWS_REPEATS is the number of
  # runs of each parallel case.

  @compile {:no_warn_undefined, [:proper]}

  import PartitionedBuffer.Case

  def sequential, do: setting("LAWS_SEQUENTIAL", 10_000)
  def parallel, do: setting("LAWS_PARALLEL", 1_000)
  def repeats, do: setting("LAWS_REPEATS", 5)

  ## PropEr

  @doc """
  Fails unless the law returns `:ok` for each instance of a type.

  A law returns its failure, since PropEr does not understand the exceptions of this OTP.
  """
  def holds(what, cases, type, law, options \\ []) do
    seed = setting("LAWS_SEED", :erlang.phash2(make_ref()))

    holds? = fn instance ->
      result = attempt(law, instance)
      if result != :ok, do: Process.put(:failure, result)
      result == :ok
    end

    seeded = fn ->
      :rand.seed(:exsss, seed)
      fn -> :ok end
    end

    property = :proper.setup(seeded, :proper.forall(type, holds?))
    IO.puts("\n#{cases} cases of #{what}, LAWS_SEED=#{seed}")

    unless :proper.quickcheck(property, [:quiet, {:numtests, cases} | options]) == true do
      ExUnit.Assertions.flunk("""
      LAWS_SEED=#{seed} found:
      #{inspect(:proper.counterexample(), limit: :infinity, pretty: true)}
      #{inspect(Process.get(:failure), limit: :infinity, pretty: true)}
      """)
    end
  end

  @doc """
  As `holds/5`, but several times for each instance, without shrinking: instances fail by chance.
  """
  def holds_repeatedly(what, cases, type, law) do
    repeated = fn instance ->
      Enum.find_value(1..repeats(), :ok, fn _ ->
        result = law.(instance)
        if result != :ok, do: result
      end)
    end

    holds(what, cases, type, repeated, [:noshrink])
  end

  defp setting(name, default), do: name |> System.get_env("#{default}") |> String.to_integer()

  defp attempt(law, instance) do
    law.(instance)
  catch
    kind, reason -> Exception.format(kind, reason, __STACKTRACE__)
  end

  ## Calls

  @doc """
  Does the commands of each list in a separate process, and those of the first list in this one.
  They start when all are ready. Returns lists of `{called, returned, command, result}`.
  """
  def at_once([own | others], call) do
    start = :counters.new(1, [])
    processes = length(others) + 1
    tasks = for commands <- others, do: Task.async(fn -> timed(commands, call, start, processes) end)
    [timed(own, call, start, processes) | Task.await_many(tasks)]
  end

  defp timed(commands, call, start, processes) do
    :counters.add(start, 1, 1)
    await_start(start, processes)

    for command <- commands do
      called = System.monotonic_time()
      result = call.(command)
      {called, System.monotonic_time(), command, result}
    end
  end

  defp await_start(start, processes) do
    if :counters.get(start, 1) < processes do
      :erlang.yield()
      await_start(start, processes)
    end
  end

  @doc """
  A processor that fails in any way while the sink is away, that is, while the counter is 0. Else it
  sends its batch, with the number of the partition.
  """
  def processor_in_outage(sink, send) do
    fn batch ->
      case {:counters.get(sink, 1), :rand.uniform(4)} do
        {1, _any} -> send.({own_partition(), batch})
        {0, 1} -> {:error, :away}
        {0, 2} -> {:error, :away, batch}
        {0, 3} -> {:snooze, 0}
        {0, 4} -> Process.exit(self(), :kill)
      end
    end
  end

  # The partition whose task this process is.
  defp own_partition do
    buffer = Process.get(:"$partitioned_buffer")
    numbers = 0..(PartitionedBuffer.Native.partition_count(buffer) - 1)
    Enum.find(numbers, &(PartitionedBuffer.Native.process(run(buffer), &1, :task) == self()))
  end

  @doc "The entries of a flush, if only its last batch is short, and no key comes twice."
  def whole(batches, size) do
    entries = Enum.concat(batches)
    keys = MapSet.new(entries, &elem(&1, 0))

    if batches == Enum.chunk_every(entries, size) and MapSet.size(keys) == length(entries),
      do: {:ok, entries},
      else: {:malformed, batches}
  end

  ## Linearizability: some order of the effects on a place gives the results

  @doc """
  The places whose effects no order explains. A history has the effects of a process, `{place,
  {called, returned, effect}}`. `step` gives the state of a place after an effect, `{:ok, state}`,
  or `:error` if the effect has another result.
  """
  def unexplained(places, histories, states, step) do
    Enum.reject(places, fn place ->
      queues = for history <- histories, do: for({^place, effect} <- history, do: effect)
      explainable?([{states[place], queues}], queues |> Enum.map(&length/1) |> Enum.sum(), step)
    end)
  end

  # Tries all orders at once: the states after one effect, then after two, and so on.
  defp explainable?(states, 0, _step), do: states != []

  defp explainable?(states, left, step) do
    next =
      for {state, queues} <- states,
          {[{called, _returned, effect} | rest], number} <- Enum.with_index(queues),
          called <= first_return(queues),
          {:ok, state} <- [step.(state, effect)],
          uniq: true do
        {state, List.replace_at(queues, number, rest)}
      end

    explainable?(next, left - 1, step)
  end

  defp first_return(queues), do: Enum.min(for [{_called, returned, _effect} | _rest] <- queues, do: returned)

  @doc "Lets a partition of a buffer flush; returns the batches, and the size of each but the last."
  def flush(buffer, partition) do
    tick(partition)
    wait_idle(partition)
    {received_batches(), options(buffer).processing_batch_size}
  end

  ## Routing, as documented

  @doc "The options of a call for a way to choose the partition."
  def option(nil), do: []
  def option(:term), do: [partition_key: {:some, "term"}]
  def option(:function), do: [partition_key: &{:of, &1}]
  def option(:mfa), do: [partition_key: {__MODULE__, :route, [:and]}]

  def route(term, argument), do: {term, argument}

  @doc "The number of the partition of a key or item, of `n` partitions."
  def partition(nil, term, n), do: :erlang.phash2(:erlang.phash2(term), n)
  def partition(:term, _term, n), do: :erlang.phash2({:some, "term"}, n)
  def partition(:function, term, n), do: :erlang.phash2({:of, term}, n)
  def partition(:mfa, term, n), do: :erlang.phash2({term, :and}, n)
end
