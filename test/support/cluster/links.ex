defmodule PartitionedBuffer.Test.Cluster.Links do
  @moduledoc false
  # Runs on each node, and records when connections to other nodes go down and come up. A split is as
  # long as the nodes saw it, which can be much longer than the controller meant it to be.

  use GenServer

  def start_link(_opts), do: GenServer.start_link(__MODULE__, [], name: __MODULE__)

  @doc "Events since the start, oldest first: `{microseconds, :up | :down, node}`."
  def events(node), do: GenServer.call({__MODULE__, node}, :events)

  @doc "Waits until `node` is connected to `other` (`:up`), or is not (`:down`)."
  def await(node, state, other), do: GenServer.call({__MODULE__, node}, {:await, state, other}, 60_000)

  @impl GenServer
  def init([]) do
    :ok = :net_kernel.monitor_nodes(true, node_type: :visible)
    {:ok, %{events: [], waiting: []}}
  end

  @impl GenServer
  def handle_call(:events, _from, state), do: {:reply, Enum.reverse(state.events), state}

  def handle_call({:await, wanted, other}, from, state) do
    if wanted == current(state, other),
      do: {:reply, :ok, state},
      else: {:noreply, %{state | waiting: [{wanted, other, from} | state.waiting]}}
  end

  @impl GenServer
  def handle_info({:nodeup, other, _info}, state), do: {:noreply, note(state, :up, other)}
  def handle_info({:nodedown, other, _info}, state), do: {:noreply, note(state, :down, other)}

  defp note(state, event, other) do
    {ready, waiting} = Enum.split_with(state.waiting, &match?({^event, ^other, _from}, &1))
    for {_event, _other, from} <- ready, do: GenServer.reply(from, :ok)
    %{state | events: [{System.os_time(:microsecond), event, other} | state.events], waiting: waiting}
  end

  # The last event, so that `await` agrees with the record.
  defp current(state, other) do
    case Enum.find(state.events, &match?({_at, _event, ^other}, &1)) do
      {_at, event, _other} -> event
      nil -> if other in Node.list(), do: :up, else: :down
    end
  end
end
