defmodule PartitionedBuffer.Cluster.TelemetryTest do
  # The events of a buffer with `:cluster`. Those that need other nodes are at the end.
  use PartitionedBuffer.Case, async: true

  import PartitionedBuffer.Clustered, only: [start: 1, owning: 1, hold: 1]

  alias PartitionedBuffer.{Cluster, Clustered, Counter}

  @moduletag :capture_log

  @forward [:cluster, :forward]

  defp attach(buffer, events) do
    id = {buffer, make_ref()}
    events = for event <- events, do: [:partitioned_buffer | event]
    :telemetry.attach_many(id, events, &__MODULE__.forward/4, {self(), buffer})
    on_exit(fn -> :telemetry.detach(id) end)
  end

  def forward([:partitioned_buffer | event], measurements, metadata, {test, buffer}),
    do: if(metadata.buffer == buffer, do: send(test, {event, measurements, metadata}))

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
