defmodule PartitionedBuffer.Cluster.ProcessesTest do
  # The death of each process of a buffer with `:cluster`, on one node.
  use PartitionedBuffer.Case, async: true

  import PartitionedBuffer.Clustered, only: [start: 0, start: 1, owning: 1, hold: 1]

  alias PartitionedBuffer.Buffer.Lookup
  alias PartitionedBuffer.{Cluster, Counter, Native, Routing}

  @moduletag :capture_log

  defp children(supervisor) do
    for {id, pid, _type, _modules} <- Supervisor.which_children(supervisor), into: %{}, do: {id, pid}
  end

  defp tree(buffer), do: buffer |> Lookup.supervisor() |> children()

  # All sums are added up, since a batch may be delivered in parts.
  defp assert_delivered(buffer, expected) do
    assert flushed(buffer) == :ok

    sums =
      Enum.reduce(received_entries(), %{}, fn {key, sum, _count}, sums ->
        Map.update(sums, key, sum, &(&1 + sum))
      end)

    assert sums == expected
  end

  # A flush raises while a stage restarts.
  defp flushed(buffer) do
    PartitionedBuffer.flush(buffer)
  rescue
    ArgumentError -> flushed(buffer)
  end

  defp add(buffer, key) do
    Counter.add(buffer, key)
  rescue
    ArgumentError -> add(buffer, key)
  end

  # What both stages have before each death.
  defp start_holding do
    buffer = start()
    Counter.add(buffer, :owned)
    hold(buffer)
    Counter.add(buffer, :collected)
    buffer
  end

  defp go_on(buffer) do
    PartitionedBuffer.resume(buffer)
  rescue
    ArgumentError -> go_on(buffer)
  end

  describe "the death of a process of the tree" do
    test "loses nothing and ends nothing else, whichever child it is" do
      ids = start() |> tree() |> Map.keys()
      assert length(ids) == 12

      for id <- ids do
        buffer = start_holding()
        supervisor = Lookup.supervisor(buffer)
        before = tree(buffer)
        kill_and_await_restart(before[id])
        later = tree(buffer)
        assert Lookup.supervisor(buffer) == supervisor or id == :collecting
        assert is_pid(later[id]) and later[id] != before[id]
        assert Map.delete(later, id) == Map.delete(before, id)

        add(buffer, :later)
        go_on(buffer)
        assert_delivered(buffer, %{owned: 1, collected: 1, later: 1})
        assert Cluster.members(buffer) == [node()]
        stop(buffer)
      end
    end

    test "leaves a member, also when the scope and those that use it die together" do
      buffer = start()
      children = tree(buffer)
      ids = [:scope, Cluster.Joiner, Cluster.Members]
      kill_processes(for id <- ids, do: children[id])
      await_restart(buffer, ids, children)
      await_joined(buffer)
      Counter.add(buffer, :a)
      assert_delivered(buffer, %{a: 1})
    end
  end

  defp stop(buffer), do: :ok = PartitionedBuffer.stop(buffer)

  defp await_restart(buffer, ids, before) do
    later = tree(buffer)

    if Enum.any?(ids, &(not is_pid(later[&1]) or later[&1] == before[&1])),
      do: await_restart(buffer, ids, before)
  end

  defp await_joined(buffer) do
    scope = Cluster.Joiner.scope(buffer)
    if :pg.get_members(scope, Cluster.Joiner.group(buffer)) == [], do: await_joined(buffer)
  end

  describe "the scope of the group" do
    test "has this member again after its death" do
      buffer = start()
      await_joined(buffer)
      kill_and_await_restart(tree(buffer)[:scope])
      await_joined(buffer)
      assert [joiner] = :pg.get_members(Cluster.Joiner.scope(buffer), Cluster.Joiner.group(buffer))
      assert joiner == tree(buffer)[Cluster.Joiner]
    end
  end

  describe "each stage" do
    test "goes on after the death of each of its processes" do
      for stage <- [& &1, &owning/1],
          id <- start() |> stage.() |> Lookup.owner() |> children() |> Map.keys() do
        # All others are those of a partition or a slot.
        if not match?({_module, number} when is_integer(number) and number > 0, id) do
          buffer = start_holding()
          kill_and_await_restart(children(Lookup.owner(stage.(buffer)))[id])
          add(buffer, :later)
          go_on(buffer)
          assert_delivered(buffer, %{owned: 1, collected: 1, later: 1})
          stop(buffer)
        end
      end
    end

    test "keeps its entries when a slot or partition dies, whichever has them" do
      for stage <- [& &1, &owning/1] do
        buffer = start(slots: 8)
        Counter.add_all(buffer, for(key <- 1..50, do: {key, 1}))
        hold(buffer)
        Counter.add_all(buffer, for(key <- 1..50, do: {key, 1}))
        for partition <- partitions(stage.(buffer)), do: kill_and_await_restart(partition)
        go_on(buffer)
        assert_delivered(buffer, for(key <- 1..50, into: %{}, do: {key, 2}))
      end
    end
  end

  describe "a task" do
    test "that dies in the processor is retried" do
      buffer = start(processor: asking_processor(), partitions: 1)
      Counter.add(buffer, :a)
      flush = Task.async(fn -> PartitionedBuffer.flush(buffer) end)
      assert {[{:a, 1, 1}], _ref} = answer(:kill)
      PartitionedBuffer.flush(buffer, async: true)
      assert {[{:a, 1, 1}], _ref} = answer(:return)
      Task.await(flush)
      assert PartitionedBuffer.flush(buffer) == :ok
      assert PartitionedBuffer.info(buffer).totals.processed >= 1
    end

    # A handler of the event runs in the task, before the owner has the batch, and after that.
    for {suffix, taken} <- [start: 0, stop: 1] do
      test "that dies at the :#{suffix} of a forward leaves its batch to the next, which forwards it once" do
        buffer = start(forward_ms: 1)
        id = {buffer, :kill}
        event = [:partitioned_buffer, :cluster, :forward, unquote(suffix)]
        :ok = :telemetry.attach(id, event, &__MODULE__.kill_once/4, {buffer, :counters.new(1, []), self()})
        on_exit(fn -> :telemetry.detach(id) end)
        Counter.add(buffer, :a, 5)
        assert_receive :killed
        PartitionedBuffer.flush(buffer)
        assert_delivered(buffer, %{a: 5})
        totals = PartitionedBuffer.info(buffer).cluster.totals
        assert totals.taken == 1 and totals.forwarded == 1
        assert totals.duplicates == unquote(taken)
      end
    end
  end

  def kill_once(_event, _measurements, metadata, {buffer, calls, test}) do
    if metadata.buffer == buffer do
      :counters.add(calls, 1, 1)

      if :counters.get(calls, 1) == 1 do
        send(test, :killed)
        Process.exit(self(), :kill)
      end
    end
  end

  test "the table and the numbers outlive all but the supervisor" do
    buffer = start(slots: 8)
    Counter.add(buffer, :a)
    assert_delivered(buffer, %{a: 1})
    info = PartitionedBuffer.info(buffer).cluster
    streams = Native.streams(run(owning(buffer)))
    assert [{_incarnation, _slot, _number}] = streams
    for {_id, pid} <- tree(buffer), do: kill_and_await_restart(pid)
    await_open(buffer)
    assert PartitionedBuffer.info(buffer).cluster.totals == info.totals
    assert Native.streams(run(owning(buffer))) == streams
    assert Process.whereis(Routing.cluster_name(buffer)) == Lookup.supervisor(buffer)
  end

  defp await_open(buffer) do
    PartitionedBuffer.info(buffer)
  rescue
    ArgumentError -> await_open(buffer)
  end
end
