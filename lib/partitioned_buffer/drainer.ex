defmodule PartitionedBuffer.Drainer do
  @moduledoc false
  # The last child of a buffer's supervisor, so the first that it ends: lets all partitions process what they have at the
  # same time, while a supervisor ends its children one after the other.

  use GenServer, shutdown: :infinity

  alias PartitionedBuffer.{Identity, Native, Partition}

  @doc """
  Starts the drainer of these partitions, which are all of a buffer.
  """
  @spec start_link([Identity.t()]) :: GenServer.on_start()
  def start_link(partitions), do: GenServer.start_link(__MODULE__, partitions)

  @impl GenServer
  def init(partitions) do
    Process.flag(:trap_exit, true)
    # The partitions are closed if this is not the first drainer of this supervisor.
    for partition <- partitions, do: Native.reopen(partition.buffer, partition.number)
    {:ok, partitions}
  end

  @impl GenServer
  def terminate(reason, partitions) do
    if reason == :shutdown do
      requests = Enum.map(partitions, &Partition.drain_request/1)
      # One that is dead has nothing more to say.
      Enum.each(requests, &:gen_server.wait_response(&1, :infinity))
    end
  end

  @impl GenServer
  def handle_info(_message, partitions), do: {:noreply, partitions}
end
