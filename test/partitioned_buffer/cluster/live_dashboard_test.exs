defmodule PartitionedBuffer.Cluster.LiveDashboardTest do
  # The page about the buffers of another node, by the functions of `PartitionedBuffer.LiveDashboard`.
  use ExUnit.Case, async: false

  alias PartitionedBuffer.LiveDashboard
  alias PartitionedBuffer.Test.Cluster.{Controller, Host, Peer}

  @moduletag :cluster

  setup do
    Controller.start()
    on_exit(&Controller.stop/0)

    [peer] =
      Peer.start([:"dashboard_#{System.unique_integer([:positive])}_#{System.pid()}@#{Controller.host()}"])

    Peer.call(peer, Host, :boot, [])

    Peer.call(peer, Host, :start_buffer, [
      {PartitionedBuffer.Map, name: :far, processor: {Function, :identity, []}, max_size: 9}
    ])

    {:ok,
     peer: peer, page: %{node: peer.node, params: %{"buffer" => ":far"}, allow_destructive_actions: true}}
  end

  defp assigns(page),
    do:
      LiveDashboard.first_assigns()
      |> Map.new()
      |> Map.put(:page, page)
      |> LiveDashboard.assigns()
      |> Map.new()

  test "shows them, and pauses, resumes and flushes them there", %{peer: peer, page: page} do
    :ok = Peer.call(peer, PartitionedBuffer.Map, :put, [:far, 1, 1])
    assert %{error: nil, detail: %{fields: fields}, rows: [%{buffer: :far, held: 1}]} = assigns(page)
    assert {"Held", "1 of 9"} in fields
    assert LiveDashboard.act(page, "pause") == "The buffer is paused."
    assert Peer.call(peer, PartitionedBuffer, :info, [:far]).paused?
    assert LiveDashboard.act(page, "resume") == "The buffer goes on."
    assert LiveDashboard.act(page, "flush") =~ "The flush begins."
  end

  test "has a text for a buffer and a node that ended", %{peer: peer, page: page} do
    Peer.call(peer, Host, :stop_buffer, [])
    assert assigns(page).error == "The buffer :far is not running on #{peer.node}."
    Peer.kill(peer)
    assert assigns(page).error == "#{peer.node} does not answer: :noconnection."
  end

  test "has a text for a node without this module", %{page: page} do
    args = Enum.map(Controller.peer_args(), &String.to_charlist/1)
    name = ~c"plain_#{System.unique_integer([:positive])}_#{System.pid()}"
    host = String.to_charlist(Controller.host())
    {:ok, _pid, node} = :peer.start_link(%{name: name, host: host, longnames: true, args: args})
    page = %{page | node: node}
    assert assigns(page).error == "#{node} has no PartitionedBuffer, or another version."
    assert LiveDashboard.act(page, "pause") == "#{node} has no PartitionedBuffer, or another version."
  end
end
