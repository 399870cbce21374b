defmodule PartitionedBuffer.Cluster.TelemetryTest do
  # The events of a buffer with `:cluster` on one node. Those that need others are in members_test.exs.
  use PartitionedBuffer.Case, async: true

  import PartitionedBuffer.Clustered, only: [start: 1, owning: 1, hold: 1, attach: 2]

  alias PartitionedBuffer.{Cluster, Clustered, Counter}

  @moduletag :capture_log

  @forward [:cluster, :forward]

  describe "a forward" do
    test "has its size, its bytes, its slot and its owner, and then its duration and outcome" do
      buffer = start([])
      attach(buffer, [@forward ++ [:start], @forward ++ [:stop]])
      entries = for(key <- 1..3, do: {key, key, 1})
      Counter.add_all(buffer, for({key, sum, 1} <- entries, do: {key, sum}), partition_key: :one)
      hold(buffer)

      assert_receive {[:cluster, :forward, :start], start, metadata}
      assert start == %{size: 3, bytes: start.bytes}
      assert start.bytes in 20..80
      assert metadata == %{buffer: buffer, slot: :erlang.phash2(:one, 64), to: node()}

      assert_receive {[:cluster, :forward, :stop], stop, stopped}
      assert stop == %{size: 3, bytes: start.bytes, duration: stop.duration}
      assert stop.duration > 0 and stopped == Map.put(metadata, :outcome, :ok)
    end

    test "to a full owner has the outcome :full" do
      buffer = start(max_size: 2)
      attach(buffer, [@forward ++ [:stop]])
      Counter.add_all(buffer, a: 1, b: 1)
      hold(buffer)
      Counter.add(buffer, :c)
      PartitionedBuffer.flush(buffer, async: true)
      assert_receive {[:cluster, :forward, :stop], %{size: 1}, %{outcome: :full}}
      PartitionedBuffer.resume(buffer)
      assert PartitionedBuffer.flush(buffer) == :ok
      assert PartitionedBuffer.info(buffer).cluster.totals.forwarded >= 2
    end

    test "to a member that is away has the outcome :moved until that is none, and goes to another owner" do
      buffer = start(forward_ms: 1)
      attach(buffer, [@forward ++ [:stop], [:cluster, :members]])
      Clustered.add_member(buffer, :"zz@nowhere.invalid")

      assert_receive {[:cluster, :members], %{count: 2, slots: 32, moved: 32}, metadata}
      assert metadata == %{buffer: buffer, joined: [:"zz@nowhere.invalid"], left: []}
      assert Cluster.members(buffer) == [node(), :"zz@nowhere.invalid"]
      away = Enum.find(1..100, &(Cluster.owner(buffer, &1) != node()))
      assert Cluster.owner(buffer, away) == :"zz@nowhere.invalid"

      Counter.add(buffer, away, 3)
      assert_receive {[:cluster, :forward, :stop], %{size: 1}, %{outcome: :moved, to: :"zz@nowhere.invalid"}}
      # What goes back coalesces with new entries.
      Counter.add(buffer, away, 4)
      Clustered.remove_member(buffer, :"zz@nowhere.invalid")

      assert_receive {[:cluster, :members], %{count: 1, slots: 64, moved: 32},
                      %{left: [:"zz@nowhere.invalid"]}}

      assert PartitionedBuffer.flush(buffer) == :ok
      assert received_entries() == [{away, 7, 2}]
      assert PartitionedBuffer.info(buffer).cluster.totals.rerouted > 0
    end
  end

  describe "a batch whose owner may have it, and is away" do
    @away :"zz@nowhere.invalid"

    # The task of the first forward dies after it asked, so nobody knows what the owner has.
    defp send_to_away(opts) do
      buffer = start([forward_ms: 1] ++ opts)
      Clustered.add_member(buffer, @away)
      attach(buffer, [[:cluster, :uncertain], @forward ++ [:stop]])
      Clustered.block_first_forward(buffer, self())
      key = Enum.find(1..100, &(Cluster.owner(buffer, &1) == @away))
      write(buffer, key)
      assert_receive {:blocked, task}
      kill_processes([task])
      PartitionedBuffer.flush(buffer, async: true)
      # The next task asks the same owner, though that cannot be reached.
      assert_receive {[:cluster, :forward, :stop], %{size: 1}, %{outcome: :moved, to: @away}}
      {buffer, key}
    end

    defp write(buffer, key) do
      if options(buffer).kind == :map, do: Buffer.put(buffer, key, 5), else: Counter.add(buffer, key, 5)
    end

    test "is kept for uncertain_ms and sent again, if it is one of a counter" do
      {buffer, key} = send_to_away(uncertain_ms: 600)
      assert %{uncertain: 0, away: []} = PartitionedBuffer.info(buffer).cluster
      Clustered.remove_member(buffer, @away)
      since = System.monotonic_time(:millisecond)
      await_uncertain(buffer)
      assert %{uncertain: 1, away: [@away], totals: %{resent: 0}} = PartitionedBuffer.info(buffer).cluster
      # Other slots go on, and new writes of the slot wait.
      others = for other <- 200..300, do: {other, 1}
      Counter.add_all(buffer, others)
      assert_receive {[:cluster, :uncertain], %{count: 1, duration: duration}, metadata}

      assert metadata == %{
               buffer: buffer,
               slot: :erlang.phash2(:erlang.phash2(key), 64),
               to: @away,
               outcome: :resent
             }

      assert System.convert_time_unit(duration, :native, :millisecond) >= 600
      assert System.monotonic_time(:millisecond) - since >= 600
      assert PartitionedBuffer.flush(buffer) == :ok
      assert {key, 5, 1} in received_entries()
      assert %{uncertain: 0, away: [], totals: %{resent: 1}} = PartitionedBuffer.info(buffer).cluster
    end

    test "is kept for the time since the last absence of the owner" do
      {buffer, _key} = send_to_away(uncertain_ms: 700)
      Clustered.remove_member(buffer, @away)
      await_uncertain(buffer)
      Process.send_after(self(), :again, 400)
      assert_receive :again
      # The owner is back for a moment, which the task does not see.
      Clustered.add_member(buffer, @away)
      Clustered.remove_member(buffer, @away)
      since = System.monotonic_time(:millisecond)
      assert_receive {[:cluster, :uncertain], %{count: 1}, %{outcome: :resent}}
      assert System.monotonic_time(:millisecond) - since >= 700
    end

    test "is sent again at once, if it is one of a map" do
      {buffer, key} = send_to_away(module: Buffer, uncertain_ms: 600_000)
      Clustered.remove_member(buffer, @away)
      assert PartitionedBuffer.flush(buffer) == :ok
      assert [{^key, 5, _version, _updates}] = received_entries()
      assert PartitionedBuffer.info(buffer).cluster.totals.resent == 1
    end

    defp await_uncertain(buffer),
      do: if(PartitionedBuffer.info(buffer).cluster.uncertain == 0, do: await_uncertain(buffer), else: :ok)
  end

  test "calls of the processor and of slots have the names of their stages" do
    buffer = start(partitions: 1)
    attach(owning(buffer), [[:partition, :batch, :stop], [:partition, :processing, :stop]])
    attach(buffer, [[:partition, :processing, :stop], [:partition, :batch, :stop]])
    Counter.add(buffer, :a)
    assert PartitionedBuffer.flush(buffer) == :ok
    owning = owning(buffer)
    assert_receive {[:partition, :batch, :stop], %{size: 1}, %{buffer: ^owning, outcome: :ok}}
    assert_receive {[:partition, :processing, :stop], %{size: 1}, %{buffer: ^owning, trigger: :flush}}
    assert_receive {[:partition, :processing, :stop], %{size: 1}, %{buffer: ^buffer, trigger: :flush}}
    refute_received {[:partition, :batch, :stop], _measurements, %{buffer: ^buffer}}
  end

  test "a handler that raises or writes back delays no forward" do
    buffer = start(forward_ms: 1)
    id = {buffer, :handler}
    :telemetry.attach(id, [:partitioned_buffer | @forward ++ [:stop]], &__MODULE__.write_back/4, buffer)
    on_exit(fn -> :telemetry.detach(id) end)
    Counter.add(buffer, :a)
    assert PartitionedBuffer.flush(buffer) == :ok
    # The handler is detached after its exception.
    assert PartitionedBuffer.flush(buffer) == :ok
    assert received_entries() |> keys() |> Enum.uniq() == [:a, :back]
  end

  def write_back(_event, _measurements, %{buffer: buffer}, buffer) do
    Counter.add(buffer, :back)
    raise "as a handler may"
  end

  def write_back(_event, _measurements, _metadata, _buffer), do: :ok
end
