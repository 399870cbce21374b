defmodule PartitionedBuffer.Drainer do
  @moduledoc false
  # The last child of a buffer's supervisor, so the first that a stop ends. The supervisor would end its partitions one
  # after the other; the drainer lets all of them process their entries at the same time. Processors may write to any
  # partition of their own buffer, so the drainer makes passes until no entries are left, and then closes all partitions
  # together.
  #
  # A supervisor that stops does not restart a process that has just died. So if the process of a partition is dead or dies,
  # a process of the drainer does its pass, and if that dies too, the next pass starts another one. The first child is also a
  # drainer, which takes over if the last child is dead. It does nothing after a start that has failed, because processes
  # of an earlier buffer with the same names may still be at work.

  use GenServer, shutdown: :infinity

  alias PartitionedBuffer.{Drain, Identity, Native, Partition, Running}

  # A limit, because a processor that writes an entry for each one it gets would never end.
  @passes 10

  @doc """
  Starts a drainer of all partitions of a buffer, as the first or last child of its supervisor.
  """
  @spec start_link({:first | :last, [Identity.t()]}) :: GenServer.on_start()
  def start_link(init), do: GenServer.start_link(__MODULE__, init)

  @spec child_spec({:first | :last, [Identity.t()]}) :: Supervisor.child_spec()
  def child_spec({place, _partitions} = init), do: Supervisor.child_spec(super(init), id: {__MODULE__, place})

  @impl GenServer
  def init({place, partitions}) do
    Process.flag(:trap_exit, true)
    if place == :last, do: Enum.each(partitions, &started/1)
    {:ok, partitions}
  end

  # If this drainer replaces one that has died, the partitions may be drained.
  defp started(partition) do
    :ets.insert(partition.settings, {:started})
    Partition.resume(partition)
  end

  @impl GenServer
  def terminate(reason, partitions) do
    if reason == :shutdown and Enum.any?(partitions, &:ets.member(&1.settings, :started)) do
      partitions
      |> drain(System.monotonic_time(:nanosecond), @passes)
      |> in_parallel(&Drain.finish/1)
    end
  end

  @impl GenServer
  def handle_info(_message, partitions), do: {:noreply, partitions}

  # Returns the partitions to close.
  defp drain(partitions, _began, 0), do: partitions

  defp drain(partitions, began, passes) do
    passed = in_parallel(partitions, &pass(&1, began))
    given_up = for {partition, :given_up} <- passed, do: partition
    others = for {partition, outcome} <- passed, outcome not in [:given_up, :closed], do: partition

    if Enum.any?(passed, &match?({_partition, :died}, &1)) or Enum.any?(others, &holds_entries?/1),
      do: given_up ++ drain(others, began, passes - 1),
      else: given_up ++ others
  end

  # Does `fun` for each partition in a process of its own. It is linked, so that none outlives a drainer that is killed.
  defp in_parallel(partitions, fun) do
    for partition <- partitions do
      {partition, :erlang.spawn_opt(fn -> exit({:returned, fun.(partition)}) end, [:link, :monitor])}
    end
    |> Enum.map(&await/1)
  end

  defp await({partition, {pid, ref}}) do
    receive do
      {:DOWN, ^ref, :process, ^pid, {:returned, outcome}} -> {partition, outcome}
      {:DOWN, ^ref, :process, ^pid, _reason} -> {partition, :died}
    end
  end

  defp pass(partition, began) do
    Partition.drain(partition, began)
  catch
    # The process of the partition is dead. Its task may still be at work.
    :exit, _reason -> Drain.pass(partition, Running.find(partition), began)
  end

  defp holds_entries?(partition),
    do: Native.held(partition.buffer, partition.number) not in [0, :not_running]
end
