defmodule PartitionedBuffer.Test.Cluster.Gate do
  @moduledoc false
  # Lets a scenario kill processes while no batch is on its way to the sink.
  #
  # A task killed between the sink's answer and the note of its success delivers again, which a
  # counter's sink counts twice: at least once, as documented. So that other double deliveries show, a
  # task calls `pass/0` before each batch. It holds its pass until its next batch or its end, when the
  # success of the batch is noted. `quietly/1` closes the gate, waits for all passes, runs a function and
  # opens the gate.

  use GenServer

  def start_link(_opts), do: GenServer.start_link(__MODULE__, [], name: __MODULE__)

  @doc "Called by a task before it delivers a batch."
  def pass, do: GenServer.call(__MODULE__, :pass, :infinity)

  @doc "Runs a function while no batch is on its way, and returns its result."
  def quietly(fun), do: GenServer.call(__MODULE__, {:quietly, fun}, :infinity)

  @impl GenServer
  def init([]), do: {:ok, %{passes: %{}, waiting: [], quiet: nil}}

  @impl GenServer
  def handle_call(:pass, {pid, _tag} = from, state) do
    state = give_back(state, pid)

    if state.quiet,
      do: {:noreply, run(%{state | waiting: [from | state.waiting]})},
      else: {:reply, :ok, grant(state, pid)}
  end

  def handle_call({:quietly, fun}, from, state), do: {:noreply, run(%{state | quiet: {fun, from}})}

  @impl GenServer
  def handle_info({:DOWN, _monitor, :process, pid, _reason}, state),
    do: {:noreply, run(%{state | passes: Map.delete(state.passes, pid)})}

  defp grant(state, pid), do: put_in(state.passes[pid], Process.monitor(pid))

  defp give_back(state, pid) do
    {monitor, passes} = Map.pop(state.passes, pid)
    if monitor, do: Process.demonitor(monitor, [:flush])
    %{state | passes: passes}
  end

  defp run(%{quiet: {fun, from}, passes: passes} = state) when passes == %{} do
    GenServer.reply(from, fun.())
    for waiting <- state.waiting, do: GenServer.reply(waiting, :ok)

    Enum.reduce(state.waiting, %{state | waiting: [], quiet: nil}, fn {pid, _tag}, state ->
      grant(state, pid)
    end)
  end

  defp run(state), do: state
end
