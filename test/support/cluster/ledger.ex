defmodule PartitionedBuffer.Test.Cluster.Ledger do
  @moduledoc false
  # What was written, kept by the controller, so it outlives a killed node.
  #
  # A writer writes in chunks of some milliseconds. Before each chunk it reports the outcome of the
  # last one and announces the next, and it waits for the answer. So of a killed writer only one
  # announced chunk is uncertain: those writes may have been made, and no others.

  use GenServer

  alias PartitionedBuffer.Test.Cluster.Written

  def start_link(opts \\ []), do: GenServer.start_link(__MODULE__, [], opts)

  @doc "Reports the last chunk of a writer (a `Written`), and announces the next, `%{key => sum or nil}`."
  def announce(ledger, node, written, plan),
    do: GenServer.call(ledger, {:announce, node, written, plan}, :infinity)

  @doc """
  Everything reported until now: `written` of all nodes together, `nodes` of each, and `uncertain`,
  the plans of the writers that never reported: `%{key => sum or nil}`.
  """
  def read(ledger), do: GenServer.call(ledger, :read, :infinity)

  @doc "Waits until the fun of `read/1`'s result is true. It is asked after each report."
  def await(ledger, fun, timeout \\ 60_000), do: GenServer.call(ledger, {:await, fun}, timeout)

  @impl GenServer
  def init([]), do: {:ok, %{nodes: %{}, plans: %{}, waiting: []}}

  @impl GenServer
  def handle_call({:announce, node, written, plan}, {writer, _tag}, state) do
    nodes = Map.update(state.nodes, node, written, &Written.merge(&1, written))
    plans = if plan == %{}, do: Map.delete(state.plans, writer), else: Map.put(state.plans, writer, plan)
    {:reply, :ok, wake(%{state | nodes: nodes, plans: plans})}
  end

  def handle_call(:read, _from, state), do: {:reply, result(state), state}

  def handle_call({:await, fun}, from, state),
    do: {:noreply, wake(%{state | waiting: [{fun, from} | state.waiting]})}

  # Merging all reports for each wish would cost too much with none.
  defp wake(%{waiting: []} = state), do: state

  defp wake(state) do
    result = result(state)
    {ready, waiting} = Enum.split_with(state.waiting, fn {fun, _from} -> fun.(result) end)
    for {_fun, from} <- ready, do: GenServer.reply(from, :ok)
    %{state | waiting: waiting}
  end

  defp result(state) do
    written = state.nodes |> Map.values() |> Enum.reduce(%Written{}, &Written.merge/2)
    uncertain = state.plans |> Map.values() |> Enum.reduce(%{}, &Written.add_sums/2)
    %{written: written, nodes: state.nodes, uncertain: uncertain}
  end
end
