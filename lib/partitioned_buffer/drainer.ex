defmodule PartitionedBuffer.Drainer do
  @moduledoc false
  # The last child of a buffer's supervisor, so the first that it ends: lets all partitions process what they have at the
  # same time, while a supervisor ends its children one after the other.
  #
  # Processors may write to any partition of their own buffer meanwhile. So there is another pass as long as something is
  # left, and all partitions are closed together, when nothing is.

  use GenServer, shutdown: :infinity

  alias PartitionedBuffer.{Drain, Identity, Native, Partition}

  # A processor that writes an entry for each that it gets would never end.
  @passes 10

  @doc """
  Starts the drainer of these partitions, which are all of a buffer.
  """
  @spec start_link([Identity.t()]) :: GenServer.on_start()
  def start_link(partitions), do: GenServer.start_link(__MODULE__, partitions)

  @impl GenServer
  def init(partitions) do
    Process.flag(:trap_exit, true)
    # They have been drained if this is not the first drainer of this supervisor.
    Enum.each(partitions, &Partition.resume/1)
    {:ok, partitions}
  end

  @impl GenServer
  def terminate(reason, partitions) do
    if reason == :shutdown do
      drain(partitions, System.monotonic_time(:nanosecond), @passes)
      Enum.each(partitions, &Drain.finish/1)
    end
  end

  @impl GenServer
  def handle_info(_message, partitions), do: {:noreply, partitions}

  defp drain(_partitions, _began, 0), do: :ok

  defp drain(partitions, began, passes) do
    requests = for partition <- partitions, do: {partition, Partition.drain_request(partition, began)}

    # One that is dead has nothing more to say.
    partitions =
      for {partition, request} <- requests,
          :gen_server.wait_response(request, :infinity) != {:reply, :given_up},
          do: partition

    if Enum.any?(partitions, &holds_something?/1), do: drain(partitions, began, passes - 1), else: :ok
  end

  defp holds_something?(partition),
    do: Native.held(partition.buffer, partition.number) not in [0, :not_running]
end
