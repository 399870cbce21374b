defmodule PartitionedBuffer.Drainer do
  @moduledoc false
  # The last child of a buffer's supervisor, so the first that it ends: lets all partitions process what they have at the
  # same time, while a supervisor ends its children one after the other. Processors may write to any partition of their own
  # buffer meanwhile. So there is another pass as long as something is left, and all partitions are closed together.
  #
  # A process that has just died is not started again by a supervisor that stops. So the pass of a partition is done by a
  # process of the drainer's where that of the partition is dead, or dies meanwhile, and by another where that dies too. The
  # first child is a drainer as well, which finds something to do only if the last is dead. It does nothing at the end of a
  # start that has failed: the processes whose names were taken may still be at work.

  use GenServer, shutdown: :infinity

  alias PartitionedBuffer.{Drain, Identity, Native, Partition, Running}

  # A processor that writes an entry for each that it gets would never end.
  @passes 10

  @doc """
  Starts a drainer of these partitions, which are all of a buffer, as the first or last child.
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

  # A partition has been drained if this is not the first drainer of this supervisor.
  defp started(partition) do
    :ets.insert(partition.settings, {:started})
    Partition.resume(partition)
  end

  @impl GenServer
  def terminate(reason, partitions) do
    if reason == :shutdown and Enum.any?(partitions, &:ets.member(&1.settings, :started)) do
      partitions |> drain(System.monotonic_time(:nanosecond), @passes) |> Enum.each(&Drain.finish/1)
    end
  end

  @impl GenServer
  def handle_info(_message, partitions), do: {:noreply, partitions}

  # Those that are to be closed then.
  defp drain(partitions, _began, 0), do: partitions

  defp drain(partitions, began, passes) do
    passed = partitions |> Enum.map(&start_pass(&1, began)) |> Enum.map(&await_pass/1)
    given_up = for {partition, :given_up} <- passed, do: partition
    others = for {partition, outcome} <- passed, outcome not in [:given_up, :closed], do: partition

    if Enum.any?(passed, &match?({_partition, :died}, &1)) or Enum.any?(others, &holds_something?/1),
      do: given_up ++ drain(others, began, passes - 1),
      else: given_up ++ others
  end

  # Linked, so that none is left behind by a drainer that is killed.
  defp start_pass(partition, began) do
    pass = fn -> exit({:passed, pass(partition, began)}) end
    {partition, :erlang.spawn_opt(pass, [:link, :monitor])}
  end

  defp await_pass({partition, {pid, ref}}) do
    receive do
      {:DOWN, ^ref, :process, ^pid, {:passed, outcome}} -> {partition, outcome}
      {:DOWN, ^ref, :process, ^pid, _reason} -> {partition, :died}
    end
  end

  defp pass(partition, began) do
    Partition.drain(partition, began)
  catch
    # It is dead. Its task may still be at work.
    :exit, _reason -> Drain.pass(partition, Running.find(partition), began)
  end

  defp holds_something?(partition),
    do: Native.held(partition.buffer, partition.number) not in [0, :not_running]
end
