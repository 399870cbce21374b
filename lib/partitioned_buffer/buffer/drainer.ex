defmodule PartitionedBuffer.Buffer.Drainer do
  @moduledoc false
  # The owner of a stop. The last child of a buffer's supervisor is a drainer, and a stop ends it
  # first. It ends a hold of the buffer. It lets all partitions process their entries at the same
  # time, each in a linked process, and makes passes until no entries remain, since processors may
  # write to any partition of their buffer. It then closes all partitions together. The first child is the replacement: it drains, or
  # finishes, if the last child died before it finished.
  #
  # The last child also completes the start: it activates the partitions, which are passive before.
  # A failed start therefore calls no processor.
  #
  # If the supervisor is killed during a stop, its drainers end at once. The native run is over, so
  # none of their calls reaches the next run.

  use GenServer, shutdown: :infinity

  alias PartitionedBuffer.Buffer.{Journaling, StopLog}
  alias PartitionedBuffer.{Label, Native, Ref}
  alias PartitionedBuffer.Partition.{Drain, Ending, Server}

  # The limit of passes: a processor that writes an entry for each one it gets would never let a
  # stop end.
  @passes 10

  # The most time, in milliseconds, that a stop waits for lists that are being written.
  @lists_ms 5_000

  @doc """
  Starts a drainer of all partitions of a buffer, as the first or last child of its supervisor.
  """
  @spec start_link({:first | :last, Native.run(), [Ref.t()]}) :: GenServer.on_start()
  def start_link(init), do: GenServer.start_link(__MODULE__, init)

  @spec child_spec({:first | :last, Native.run(), [Ref.t()]}) :: Supervisor.child_spec()
  def child_spec({place, _run, _partitions} = init),
    do: Supervisor.child_spec(super(init), id: {__MODULE__, place})

  @impl GenServer
  def init({place, run, partitions}) do
    Process.flag(:trap_exit, true)
    for %Ref{buffer: buffer} <- Enum.take(partitions, 1), do: Label.set(buffer, {:drainer, place})

    if place == :last do
      Native.register(run, :drainer, :drainer)
      Enum.each(partitions, &Server.activate/1)
    end

    {:ok, {run, partitions}}
  end

  @impl GenServer
  def handle_info(_message, state), do: {:noreply, state}

  @impl GenServer
  def terminate(:shutdown, {run, [_ | _] = partitions}) do
    if is_pid(Native.process(run, :drainer, :drainer)) and Native.process(run, :drained, :drained) == nil do
      await_lists(Native.begin_stop(run))
      # A supervisor unlinks the child that it ends, so only a monitor reports that it was killed.
      supervisor = monitor_supervisor()
      log = StopLog.start_link(partitions)

      result =
        partitions
        |> drain(System.monotonic_time(:nanosecond), supervisor, @passes)
        |> finish(run, supervisor)

      Native.register(run, :drained, :drained)
      StopLog.stop(log, result)
    end
  catch
    :throw, :supervisor_died -> :ok
  end

  def terminate(_reason, _state), do: :ok

  # A list of which a part is written goes on to its end. Its writer may be suspended.
  defp await_lists(count) when is_integer(count) and count > 0 do
    receive do
      :lists_written -> :ok
    after
      @lists_ms -> :ok
    end
  end

  defp await_lists(_none), do: :ok

  defp monitor_supervisor do
    [supervisor | _] = Process.get(:"$ancestors")
    Process.monitor(supervisor)
  end

  # Returns the partitions to finish, with the partitions that a dead drainer closed.
  defp drain(partitions, _began, _supervisor, 0), do: partitions

  defp drain(partitions, began, supervisor, passes) do
    passed = in_parallel(partitions, &Drain.pass(&1, began), supervisor)
    given_up = for {partition, outcome} when outcome in [:given_up, :closed] <- passed, do: partition
    others = for {partition, outcome} <- passed, outcome not in [:given_up, :closed], do: partition

    if Enum.any?(passed, &match?({_partition, :died}, &1)) or Enum.any?(others, &(Ref.held(&1) > 0)),
      do: given_up ++ drain(others, began, supervisor, passes - 1),
      else: given_up ++ others
  end

  # The decision about leftovers is made once. If the VM begins to stop after it, the end of the
  # package's application takes care of kept entries.
  defp finish([%Ref{} = first | _] = partitions, run, supervisor) do
    vm_stops? = Ending.vm_stops?()
    leftovers = Ending.leftovers(run, Ref.options(first), vm_stops?)
    before = Ref.held_by_all(partitions)
    in_parallel(partitions, &Drain.finish(&1, leftovers), supervisor)
    left = Ref.held_by_all(partitions)
    if left == 0 or vm_stops?, do: Native.settle(run)
    saved = Journaling.close(run)
    {max(before - left, 0), left, kept(leftovers, vm_stops?, saved)}
  end

  defp kept(:journal, _vm_stops?, :ok), do: :journal
  defp kept(:journal, _vm_stops?, {:error, reason}), do: {:lost, reason}
  defp kept(_leftovers, true = _vm_stops?, _saved), do: :lost
  defp kept(_leftovers, false = _vm_stops?, {:error, reason}), do: {:keep, reason}
  defp kept(_leftovers, false = _vm_stops?, _saved), do: :keep

  # Calls `fun` for each partition, each in a linked process, so that no process outlives a killed
  # drainer.
  defp in_parallel(partitions, fun, supervisor) do
    for partition <- partitions do
      {partition, :erlang.spawn_opt(fn -> exit({:returned, fun.(partition)}) end, [:link, :monitor])}
    end
    |> Enum.map(&await(&1, supervisor))
  end

  defp await({partition, {pid, ref}}, supervisor) do
    receive do
      {:DOWN, ^ref, :process, ^pid, {:returned, outcome}} -> {partition, outcome}
      {:DOWN, ^ref, :process, ^pid, _reason} -> {partition, :died}
      {:DOWN, ^supervisor, :process, _pid, _killed} -> throw(:supervisor_died)
    end
  end
end
