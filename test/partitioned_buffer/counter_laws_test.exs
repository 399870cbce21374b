defmodule PartitionedBuffer.CounterLawsTest do
  # Random commands on random keys do to a counter what they do to a sum and a count for each key. `KeyedLaws` has what is the same
  # for maps.
  #
  #     LAWS_SEQUENTIAL=100000 LAWS_PARALLEL=10000 LAWS_REPEATS=20 LAWS_SEED=1 mix test test/partitioned_buffer/counter_laws_test.exs

  use PartitionedBuffer.Case, async: true

  import PartitionedBuffer.KeyedLaws, only: [place: 3]
  import PartitionedBuffer.Laws, only: [option: 1]

  alias PartitionedBuffer.{Counter, Generators, KeyedLaws, Laws}

  @behaviour KeyedLaws

  @moduletag :proper
  @moduletag timeout: :infinity

  @absent {:absent, __MODULE__}

  setup context, do: KeyedLaws.start(__MODULE__, context)

  test "a counter does what the model does", setup do
    Laws.holds("counters", Laws.sequential(), Generators.counter(), &KeyedLaws.sequential(&1, setup))
  end

  test "concurrent commands on a counter are linearizable per key", setup do
    law = &KeyedLaws.parallel(&1, setup)
    Laws.holds_repeatedly("parallel counters", Laws.parallel(), Generators.parallel_counter(), law)
  end

  @tag :away
  @tag :capture_log
  test "a counter whose sink is away does what the model does", setup do
    cases = div(Laws.sequential(), 10)
    Laws.holds("counters in an outage", cases, Generators.counter(), &KeyedLaws.sequential(&1, setup))
  end

  @tag :away
  @tag :capture_log
  test "concurrent commands on a counter in an outage are linearizable per key",
       setup do
    law = &KeyedLaws.parallel(&1, setup)
    cases = div(Laws.parallel(), 4)
    Laws.holds_repeatedly("parallel counters in an outage", cases, Generators.parallel_counter(), law)
  end

  @impl KeyedLaws
  def buffer, do: Counter

  @impl KeyedLaws
  def churn(count, rounds),
    do: {:add_all, for(round <- 1..rounds, n <- 1..count, do: {{:churn, n}, n + round}), nil}

  @impl KeyedLaws
  def variant(command), do: command

  ## Effects

  @impl KeyedLaws
  def effects({:add, key, amount, route}, :ok, n), do: [{place(route, key, n), {:add, amount, 1}}]

  def effects({:add_counted, key, amount, count, route}, :ok, n),
    do: [{place(route, key, n), {:add, amount, count}}]

  def effects({:add_all, pairs, route}, :ok, n),
    do: for({key, amount} <- pairs, do: {place(route, key, n), {:add, amount, 1}})

  def effects({:get, key, route}, value, n), do: [{place(route, key, n), {:get, value}}]
  def effects({:fetch, key, route}, :error, n), do: [{place(route, key, n), {:get, @absent}}]
  def effects({:fetch, key, route}, {:ok, sum}, n), do: [{place(route, key, n), {:get, sum}}]
  def effects({:delete, key, route}, :ok, n), do: [{place(route, key, n), :delete}]

  # A key may come twice: what was in flight, and what has waited.
  @impl KeyedLaws
  def taken_at_last(entries) do
    {_keys, sums, counts} = entries |> Enum.map(&Tuple.to_list/1) |> Enum.zip_with(& &1) |> List.to_tuple()
    {:take, {Enum.sum(sums), Enum.sum(counts)}}
  end

  @impl KeyedLaws
  def step(_sum, :delete), do: {:ok, nil}
  def step(nil, {:add, amount, count}), do: {:ok, {amount, count}}
  def step({sum, before}, {:add, amount, count}), do: {:ok, {sum + amount, before + count}}
  def step(nil, {:get, value}), do: if(value === @absent, do: {:ok, nil}, else: :error)
  def step({sum, _count} = entry, {:get, got}), do: if(sum === got, do: {:ok, entry}, else: :error)

  ## Calls

  @impl KeyedLaws
  def call(buffer, {:add, key, amount, route}), do: Counter.add(buffer, key, amount, option(route))

  def call(buffer, {:add_counted, key, amount, count, route}),
    do: Counter.add(buffer, key, amount, [count: count] ++ option(route))

  def call(buffer, {:add_all, pairs, route}), do: Counter.add_all(buffer, pairs, option(route))
  def call(buffer, {:get, key, route}), do: Counter.get(buffer, key, @absent, option(route))
  def call(buffer, {:fetch, key, route}), do: Counter.fetch(buffer, key, option(route))
  def call(buffer, {:delete, key, route}), do: Counter.delete(buffer, key, option(route))

  def call(buffer, {:invalid, pairs, route}) do
    Counter.add_all(buffer, pairs ++ [:invalid], option(route))
  rescue
    ArgumentError -> :raised
  end
end
