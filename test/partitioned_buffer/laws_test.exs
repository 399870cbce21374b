defmodule PartitionedBuffer.LawsTest do
  # Random commands on random terms do to a map what they do to the model of an entry. `KeyedLaws` has what is the same for
  # counters.
  #
  #     LAWS_SEQUENTIAL=100000 LAWS_PARALLEL=10000 LAWS_REPEATS=20 LAWS_SEED=1 mix test test/partitioned_buffer/laws_test.exs

  use PartitionedBuffer.Case, async: true

  import PartitionedBuffer.KeyedLaws, only: [place: 3]
  import PartitionedBuffer.Laws, only: [option: 1]

  alias PartitionedBuffer.{Generators, KeyedLaws, Laws, Model}

  @behaviour KeyedLaws

  @moduletag :proper
  @moduletag timeout: :infinity

  @absent {:absent, __MODULE__}

  setup context, do: KeyedLaws.start(__MODULE__, context)

  test "a map does what the model does", setup do
    Laws.holds("maps", Laws.sequential(), Generators.sequential(), &KeyedLaws.sequential(&1, setup))
  end

  test "concurrent commands on a map are linearizable per key", setup do
    law = &KeyedLaws.parallel(&1, setup)
    Laws.holds_repeatedly("parallel maps", Laws.parallel(), Generators.parallel(), law)
  end

  @tag :away
  @tag :capture_log
  test "a map whose sink is away does what the model does", setup do
    cases = div(Laws.sequential(), 10)
    Laws.holds("maps in an outage", cases, Generators.sequential(), &KeyedLaws.sequential(&1, setup))
  end

  @tag :away
  @tag :capture_log
  test "concurrent commands on a map in an outage are linearizable per key", setup do
    law = &KeyedLaws.parallel(&1, setup)
    Laws.holds_repeatedly("parallel maps in an outage", div(Laws.parallel(), 4), Generators.parallel(), law)
  end

  @impl KeyedLaws
  def buffer, do: Buffer

  # They overwrite four of five keys.
  @impl KeyedLaws
  def churn(count, rounds) do
    entries =
      for round <- 1..rounds,
          n <- 1..count,
          round == 1 or rem(n, 5) != 0,
          do: {{:churn, n}, {n, round}, round}

    {:put_all_newer, entries, nil}
  end

  # Some commands are done in another way, which tells more.
  @impl KeyedLaws
  def variant(command) do
    case {command, :erlang.phash2(command, 2)} do
      {{:put, key, value, route}, 0} -> {:put_new, key, value, route}
      {{:put_newer, key, value, version, route}, 0} -> {:put_if_newer, key, value, version, route}
      {{:get, key, route}, 0} -> {:fetch, key, route}
      {command, _any} -> command
    end
  end

  ## Effects

  @impl KeyedLaws
  def effects({:put, key, value, route}, :ok, n), do: [{place(route, key, n), {:put, value}}]

  def effects({:put_newer, key, value, version, route}, :ok, n),
    do: [{place(route, key, n), {:put_newer, value, version}}]

  def effects({:put_all, pairs, route}, :ok, n),
    do: for({key, value} <- pairs, do: {place(route, key, n), {:put, value}})

  def effects({:put_all_newer, entries, route}, :ok, n) do
    for {key, value, version} <- entries, do: {place(route, key, n), {:put_newer, value, version}}
  end

  def effects({:get, key, route}, value, n), do: [{place(route, key, n), {:get, value}}]
  def effects({:fetch, key, route}, :error, n), do: [{place(route, key, n), {:get, @absent}}]
  def effects({:fetch, key, route}, {:ok, value}, n), do: [{place(route, key, n), {:get, value}}]

  def effects({:put_new, key, value, route}, result, n),
    do: [{place(route, key, n), {:put_new, value, result}}]

  def effects({:put_if_newer, key, value, version, route}, result, n),
    do: [{place(route, key, n), {:put_if_newer, value, version, result}}]

  def effects({:delete, key, route}, :ok, n), do: [{place(route, key, n), :delete}]

  # The sink may have got an older entry of a key before.
  @impl KeyedLaws
  def taken_at_last(entries), do: {:take_last, entries |> List.last() |> Tuple.delete_at(0)}

  @impl KeyedLaws
  def step(nil, {:get, value}), do: if(value === @absent, do: {:ok, nil}, else: :error)
  def step({value, _, _} = entry, {:get, got}), do: if(value === got, do: {:ok, entry}, else: :error)

  # Those updates count that were made since the last failure.
  def step({value, version, updates}, {:take_last, {got, at, counted}}),
    do: if({value, version} === {got, at} and counted <= updates, do: {:ok, nil}, else: :error)

  def step(nil, {:take_last, _taken}), do: :error
  def step(nil, {:put_new, value, :ok}), do: {:ok, Model.write(nil, {:put, value})}
  def step(nil, {:put_new, _value, {:error, :exists}}), do: :error

  def step(entry, {:put_new, _value, result}),
    do: if(result == {:error, :exists}, do: {:ok, entry}, else: :error)

  def step(entry, {:put_if_newer, value, version, result}) do
    newer? = entry == nil or version > elem(entry, 1)
    expected = if newer?, do: :ok, else: {:error, :stale}
    if result == expected, do: step(entry, {:put_newer, value, version}), else: :error
  end

  def step(entry, write), do: {:ok, Model.write(entry, write)}

  ## Calls

  @impl KeyedLaws
  def call(buffer, {:put, key, value, route}), do: Buffer.put(buffer, key, value, option(route))

  def call(buffer, {:put_newer, key, value, version, route}),
    do: Buffer.put_newer(buffer, key, value, version, option(route))

  def call(buffer, {:put_all, pairs, route}), do: Buffer.put_all(buffer, pairs, option(route))
  def call(buffer, {:put_all_newer, entries, route}), do: Buffer.put_all_newer(buffer, entries, option(route))
  def call(buffer, {:get, key, route}), do: Buffer.get(buffer, key, @absent, option(route))
  def call(buffer, {:fetch, key, route}), do: Buffer.fetch(buffer, key, option(route))
  def call(buffer, {:put_new, key, value, route}), do: Buffer.put_new(buffer, key, value, option(route))

  def call(buffer, {:put_if_newer, key, value, version, route}),
    do: Buffer.put_newer(buffer, key, value, version, [stale: :error] ++ option(route))

  def call(buffer, {:delete, key, route}), do: Buffer.delete(buffer, key, option(route))

  def call(buffer, {:invalid, pairs, route}) do
    Buffer.put_all(buffer, pairs ++ [:invalid], option(route))
  rescue
    ArgumentError -> :raised
  end
end
