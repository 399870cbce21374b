defmodule PartitionedBuffer.Cluster.ReceiverTest do
  # What other members send, which may be of another release, or have another time.
  use PartitionedBuffer.Case, async: true

  import PartitionedBuffer.Clustered, only: [start: 0, start: 1]

  alias PartitionedBuffer.Cluster.{State, Taking}
  alias PartitionedBuffer.{Native, Routing}

  @max 0xFFFF_FFFF_FFFF_FFFF

  defp process(buffer, name), do: Process.whereis(Module.concat(Routing.cluster_name(buffer), name))

  test "a receiver refuses what no member sends, keeps nothing of it, and goes on" do
    buffer = start()
    receiver = process(buffer, "Receiver0")
    stream = {1, 0}

    for forward <- [
          {{{-1, 0}, 1, []}, :anyway, 0},
          {{{1, @max + 1}, 1, []}, :anyway, 0},
          {{stream, 0, []}, :anyway, 0},
          {{stream, @max + 1, []}, :anyway, 0},
          {{stream, 1, %{}}, :anyway, 0},
          {{stream, 1, []}, :sometimes, 0},
          {{stream, 1, []}, :anyway, 0x8000_0000_0000_0000},
          {{stream, 1, []}, :anyway, -0x8000_0000_0000_0001},
          {{stream, 1, []}, :anyway, 1.0}
        ] do
      {batch, bound, clock} = forward
      assert {forward, GenServer.call(receiver, {:forward, batch, bound, clock})} == {forward, :invalid}
    end

    assert State.all(buffer, :origin) == []
    assert {:ok, _clock, _incarnation} = GenServer.call(receiver, {:forward, {stream, 1, []}, :anyway, 0})
    assert process(buffer, "Receiver0") == receiver
  end

  test "a member whose clock was reset follows others that are decades ahead" do
    buffer = start(module: PartitionedBuffer.Map)
    members = process(buffer, "Members")
    {[own], owners} = State.view(buffer)
    decades = 50 * 365 * 86_400_000_000
    far = (System.os_time(:microsecond) + decades) * 128
    :ok = :sys.suspend(members)
    State.put(buffer, :view, {[own, :a@far, :b@far, :c@far], owners})

    for node <- [:a@far, :b@far, :c@far], do: :ok = Taking.see_clock(buffer, far, node)

    State.put(buffer, :view, {[own], owners})
    :ok = :sys.resume(members)
    assert Native.latest_version(Native.run(buffer), 0) >= far
  end
end
