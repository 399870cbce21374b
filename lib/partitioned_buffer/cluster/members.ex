defmodule PartitionedBuffer.Cluster.Members do
  @moduledoc false
  # Keeps the view of this node: the members, and the owner of each slot. Forwards read it from the
  # table.
  #
  # This node is a member until it leaves, whatever the group says. While the scope is dead the view
  # stays, for some seconds; then this node is alone.

  use GenServer

  alias PartitionedBuffer.Cluster.{Joiner, Slots, State}
  alias PartitionedBuffer.{Emitter, Label, Native, Routing}

  # How long, in milliseconds, a view outlives its scope.
  @orphaned_ms 5_000

  # How often, in milliseconds, to look for another name of this node, which has none before it is
  # distributed; and for members, where the scope does not report changes: before OTP 25.1.
  @look_ms 1_000

  # All numbers of batches.
  @all 0xFFFF_FFFF_FFFF_FFFF

  # How often, in milliseconds, to look for origins that are gone for good, and after how long they are.
  @prune_ms 60_000
  @gone_ms 3_600_000

  @enforce_keys [:buffer]
  defstruct [:buffer, :scope, :group, :orphaned, :node, :computed, pids: []]

  @spec start_link(atom()) :: GenServer.on_start()
  def start_link(buffer), do: GenServer.start_link(__MODULE__, buffer, name: name(buffer))

  defp name(buffer), do: Module.concat(Routing.cluster_name(buffer), Members)

  @doc """
  Computes the view again: this node left or joined, or the options changed.
  """
  @spec refresh(atom()) :: :ok
  def refresh(buffer) do
    GenServer.call(name(buffer), :refresh, :infinity)
  catch
    # The next process computes the view at its start.
    :exit, _reason -> :ok
  end

  @impl GenServer
  def init(buffer) do
    :net_kernel.monitor_nodes(true)
    Label.set(buffer, :members)
    Process.send_after(self(), :look, @look_ms)
    Process.send_after(self(), :prune, @prune_ms)
    for {node, _last} <- State.all(buffer, :forwarded), node != node(), do: expect_death(buffer, node)
    {:ok, watch(%__MODULE__{buffer: buffer, node: node()})}
  end

  @impl GenServer
  def handle_call(:refresh, _from, state), do: {:reply, :ok, publish(state)}

  @impl GenServer
  def handle_info({group, :join, _name, pids}, %__MODULE__{group: group} = state),
    do: {:noreply, publish(%__MODULE__{state | pids: Enum.uniq(pids ++ state.pids)})}

  def handle_info({group, :leave, _name, pids}, %__MODULE__{group: group} = state),
    do: {:noreply, publish(%__MODULE__{state | pids: state.pids -- pids})}

  def handle_info({:DOWN, scope, :process, _pid, _reason}, %__MODULE__{scope: scope} = state) do
    orphaned = :erlang.start_timer(@orphaned_ms, self(), :orphaned)
    {:noreply, watch(%__MODULE__{state | scope: nil, group: nil, orphaned: orphaned})}
  end

  def handle_info({:timeout, timer, :orphaned}, %__MODULE__{orphaned: timer} = state) do
    pids = if state.scope, do: pids(state.buffer), else: []
    {:noreply, publish(%__MODULE__{state | orphaned: nil, pids: pids})}
  end

  def handle_info(:watch, %__MODULE__{scope: nil} = state), do: {:noreply, watch(state)}

  def handle_info(:look, %__MODULE__{} = state) do
    Process.send_after(self(), :look, @look_ms)
    state = if state.group == :silent, do: %__MODULE__{state | pids: pids(state.buffer)}, else: state
    {:noreply, publish(state)}
  end

  def handle_info({:nodeup, _node}, state), do: {:noreply, publish(state)}

  def handle_info({:nodedown, node}, %__MODULE__{} = state) do
    expect_death(state.buffer, node)
    {:noreply, publish(%__MODULE__{state | pids: Enum.reject(state.pids, &(node(&1) == node))})}
  end

  # A dead node looks like one that is cut off. After this time it counts as dead.
  def handle_info({:dead?, node}, %__MODULE__{buffer: buffer} = state) do
    unless node in Node.list(:connected),
      do:
        for(
          key <- [:forwarded, :away, :ahead, :skew, :ended, :joined, :incarnation],
          do: State.delete(buffer, {key, node})
        )

    {:noreply, state}
  end

  def handle_info(:prune, state) do
    Process.send_after(self(), :prune, @prune_ms)
    prune(state.buffer)
    {:noreply, state}
  end

  def handle_info(_message, state), do: {:noreply, state}

  defp expect_death(buffer, node),
    do: Process.send_after(self(), {:dead?, node}, State.settings(buffer).uncertain_ms)

  ## The group

  defp watch(%__MODULE__{buffer: buffer} = state) do
    case Process.whereis(Joiner.scope(buffer)) do
      nil ->
        Process.send_after(self(), :watch, 50)
        publish(state)

      pid ->
        {group, pids} = monitor(Joiner.scope(buffer), Joiner.group(buffer))
        # A new scope does not know the others yet. The old ones stay for some seconds.
        pids = if state.orphaned, do: Enum.uniq(pids ++ state.pids), else: pids
        publish(%__MODULE__{state | scope: Process.monitor(pid), group: group, pids: pids})
    end
  catch
    # The scope just died.
    :exit, _reason ->
      Process.send_after(self(), :watch, 50)
      state
  end

  # A scope learns of the others by messages, so at its start it may know nobody yet.
  defp monitor(scope, group) do
    if function_exported?(:pg, :monitor, 2) do
      apply(:pg, :monitor, [scope, group])
    else
      {:silent, :pg.get_members(scope, group)}
    end
  end

  defp pids(buffer) do
    :pg.get_members(Joiner.scope(buffer), Joiner.group(buffer))
  rescue
    # The scope is dead.
    ArgumentError -> []
  end

  ## The view

  # What this node has, it has under its new name as well.
  defp publish(%__MODULE__{buffer: buffer, node: name} = state) when name != node() do
    State.note_forwarded(buffer, node())
    State.delete(buffer, {:forwarded, name})
    publish(%__MODULE__{state | node: node()})
  end

  defp publish(%__MODULE__{buffer: buffer, pids: pids} = state) do
    {before, old_owners} = State.view(buffer)
    %{slots: slots, owners: choice} = State.settings(buffer)
    members = members(buffer, Enum.map(pids, &node/1))
    owners = owners(state.computed, {slots, members, choice})
    # The newest process of a node comes first.
    for pid <- Enum.uniq_by(pids, &node/1), do: State.note_joined(buffer, pid)

    if {members, owners} != {before, old_owners} do
      now = System.monotonic_time(:millisecond)
      for node <- before -- members, do: State.put(buffer, {:away, node}, now)
      State.put(buffer, :view, {members, owners})
      report(buffer, members, owners, before, old_owners)
    end

    %__MODULE__{state | computed: {{slots, members, choice}, owners}}
  end

  # Many slots and members take a tenth of a second, and most looks find what the last one found.
  defp owners({arguments, owners}, arguments), do: owners
  defp owners(_computed, {slots, members, choice}), do: Slots.owners(slots, members, choice)

  defp members(buffer, nodes) do
    others = nodes |> Enum.uniq() |> List.delete(node())

    case {State.left?(buffer), others} do
      {true, [_ | _]} -> Enum.sort(others)
      _member_or_alone -> Enum.sort([node() | others])
    end
  end

  defp report(buffer, members, owners, before, old_owners) do
    moved =
      Enum.count(Enum.zip(Tuple.to_list(owners), Tuple.to_list(old_owners)), fn {new, old} -> new != old end)

    owned = owners |> Tuple.to_list() |> Enum.count(&(&1 == node()))

    with run when run != :not_running <- Native.run(Routing.owning_name(buffer)) do
      Emitter.event(
        run,
        [:cluster, :members],
        %{count: length(members), slots: owned, moved: moved},
        %{buffer: buffer, joined: members -- before, left: before -- members}
      )
    end
  end

  # A killed origin reports nothing. Its numbers are forgotten when none of its batches can come. A
  # member under its name is another origin.
  defp prune(buffer) do
    {members, _owners} = State.view(buffer)
    gone_ms = max(@gone_ms, 2 * State.settings(buffer).uncertain_ms)
    now = System.monotonic_time(:millisecond)
    origins = State.all(buffer, :origin)

    lasts =
      for {_incarnation, {node, last}} <- Enum.sort_by(origins, &elem(elem(&1, 1), 1)),
          into: %{},
          do: {node, last}

    for {incarnation, {node, last}} <- origins,
        node not in members or last < lasts[node],
        now - last > gone_ms do
      with run when run != :not_running <- Native.run(Routing.owning_name(buffer)) do
        Native.forget_streams(run, incarnation, @all)
        State.delete(buffer, {:origin, incarnation})
      end
    end
  end
end
