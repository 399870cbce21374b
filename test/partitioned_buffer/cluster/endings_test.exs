# What becomes of entries and callers when a buffer of several nodes, or its supervisor, ends.
defmodule PartitionedBuffer.ClusterEndingsTest do
  # Not async: one test gives up what all tests left.
  use PartitionedBuffer.Case, async: false

  alias PartitionedBuffer.{Cluster, Counter, Native, Options, Routing}
  alias PartitionedBuffer.Buffer.Leftovers
  alias PartitionedBuffer.Cluster.{HandOver, Receiver, State}
  alias PartitionedBuffer.Test.Cluster.Until

  setup do
    {:ok, sink} = Agent.start_link(fn -> %{up?: true, stored: %{}, given_up: %{}} end)
    %{sink: sink, name: unique_name()}
  end

  test "a supervisor that is killed starts again, with all entries", %{sink: sink, name: name} do
    start(name, sink)
    for key <- 1..100, do: Counter.add(name, key, 1)
    killed = Process.whereis(Routing.cluster_name(name))
    Process.exit(killed, :kill)
    await(fn -> Process.whereis(Routing.cluster_name(name)) not in [nil, killed] and running?(name) end)
    for key <- 1..100, do: Counter.add(name, key, 1)
    assert PartitionedBuffer.flush(name) == :ok
    assert read(sink).stored == Map.new(1..100, &{&1, 2})
  end

  test "entries that a stop kept go to the function of the user at the end", %{sink: sink, name: name} do
    keep(name, sink)
    :ok = Leftovers.give_up()
    assert read(sink) == %{up?: false, stored: %{}, given_up: Map.new(1..20, &{&1, 1})}
  end

  test "entries of the first stage go to the function of the user when the second one is over", %{name: name} do
    functions = %Options.Functions{processor: & &1, dead_letter: fn entries, reason -> {entries, reason} end}
    entries = [{:key, 1, 1}]
    assert HandOver.keep(entries, :stopped, name, functions) == {entries, :stopped}
    assert HandOver.give_up(entries, :stopped, name, functions) == {entries, :stopped}
  end

  test "a flush after a new start delivers the entries that a stop kept", %{sink: sink, name: name} do
    keep(name, sink)
    Agent.update(sink, &%{&1 | up?: true})
    start(name, sink)
    assert PartitionedBuffer.flush(name) == :ok
    assert read(sink).stored == Map.new(1..20, &{&1, 1})
  end

  test "a call may have the longest timeout", %{sink: sink, name: name} do
    start(name, sink)
    longest = 4_294_967_295
    assert PartitionedBuffer.flush(name, timeout: longest) == :ok
    assert Cluster.flush(name, timeout: longest) == :ok
    assert is_map_key(Cluster.info(name, timeout: longest), node())
  end

  test "a member that stopped tells what it took", %{sink: sink, name: name} do
    start(name, sink)
    incarnation = State.incarnation(name)
    State.put(name, {:joined, node()}, {self(), 5})
    # A member that did not report anything.
    assert State.ended(name, node(), 3, 7) == nil
    :ok = Receiver.ended(name, node(), incarnation + 1, self(), %{3 => 7})
    await_receiver(name)
    # That was for another incarnation.
    assert State.ended(name, node(), 3, 7) == nil

    :ok = Receiver.ended(name, node(), incarnation, self(), %{3 => 7})
    await_receiver(name)
    assert State.ended(name, node(), 3, 7) == :taken
    assert State.ended(name, node(), 3, 8) == :not_taken
    assert State.ended(name, node(), 4, 6) == :not_taken
    # A batch for an earlier life of the member, and one for a later life.
    assert State.ended(name, node(), 3, 5) == nil
    State.put(name, {:joined, node()}, {spawn(fn -> :ok end), 5})
    assert State.ended(name, node(), 3, 7) == nil
  end

  test "the numbers of a killed member are forgotten, though its name is a member again", %{
    sink: sink,
    name: name
  } do
    start(name, sink)
    now = System.monotonic_time(:millisecond)
    State.put(name, {:origin, 1}, {node(), now - 2 * 3_600_000})
    State.put(name, {:origin, 2}, {node(), now - 3_600_001})
    refresh(name, :prune)
    assert State.all(name, :origin) == [{2, {node(), now - 3_600_001}}]
  end

  test "what this node took under its old name is not away", %{sink: sink, name: name} do
    start(name, sink)
    for key <- 1..10, do: Counter.add(name, key, 1)
    await(fn -> PartitionedBuffer.info(name).cluster.totals.taken > 0 end)
    State.delete(name, {:forwarded, node()})
    State.note_forwarded(name, :old@name)
    :sys.replace_state(members(name), &%{&1 | node: :old@name})
    refresh(name, {:nodeup, node()})
    assert [{node, _last}] = State.all(name, :forwarded)
    assert node == node()
    assert PartitionedBuffer.flush(name) == :ok
  end

  test "hand-overs are as small as forwards" do
    assert HandOver.parts([]) == []

    assert for(part <- HandOver.parts(Enum.map(1..2_500, &{&1, 1, 1})), do: length(part)) == [
             1_000,
             1_000,
             500
           ]

    large = for key <- 1..3, do: {key, :binary.copy("v", 200_000), 1, 0}
    assert HandOver.parts(large) == Enum.map(large, &[&1])
  end

  defp start(name, sink) do
    options = [
      name: name,
      processor: &store(sink, &1),
      dead_letter: fn entries, _reason -> give_up(sink, entries) end,
      max_attempts: :infinity,
      processing_interval_ms: 20,
      retry_backoff_ms: {10, 20},
      drain_timeout_ms: 300,
      partitions: 2,
      cluster: [forward_ms: 10, slots: 8]
    ]

    start_supervised!(Supervisor.child_spec({Counter, options}, id: name))
  end

  # Both stages have entries when the supervisor of the test ends the buffer.
  defp keep(name, sink) do
    Agent.update(sink, &%{&1 | up?: false})
    start(name, sink)
    for key <- 1..10, do: Counter.add(name, key, 1)
    await(fn -> PartitionedBuffer.info(name).cluster.owning.size == 10 end)
    PartitionedBuffer.update_options(name, cluster: [forward_ms: 60_000])
    for key <- 11..20, do: Counter.add(name, key, 1)
    :ok = stop_supervised(name)
    assert Enum.sum(for {stage, _kind, _count, held} <- Native.leftovers(), of?(stage, name), do: held) == 20
  end

  defp of?(stage, name), do: stage in [name, Routing.owning_name(name)]

  defp await(fun), do: assert(Until.true?(10_000, fun))

  defp store(sink, entries) do
    Agent.get_and_update(sink, fn
      %{up?: true} = state -> {:ok, %{state | stored: add(state.stored, entries)}}
      state -> {{:error, :down}, state}
    end)
  end

  defp give_up(sink, entries), do: Agent.update(sink, &%{&1 | given_up: add(&1.given_up, entries)})

  defp add(sums, entries),
    do: Enum.reduce(entries, sums, fn {key, sum, _count}, sums -> Map.update(sums, key, sum, &(&1 + sum)) end)

  defp read(sink), do: Agent.get(sink, & &1)

  defp running?(name) do
    is_map(PartitionedBuffer.info(name))
  rescue
    ArgumentError -> false
  end

  defp refresh(name, message) do
    send(members(name), message)
    :sys.get_state(members(name))
  end

  defp members(name), do: Module.concat(Routing.cluster_name(name), Members)

  # A receiver answers in order.
  defp await_receiver(name), do: :sys.get_state(receiver(name))

  defp receiver(name), do: Module.concat(Routing.cluster_name(name), "Receiver0")
end
