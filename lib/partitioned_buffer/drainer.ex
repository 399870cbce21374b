defmodule PartitionedBuffer.Drainer do
  @moduledoc false
  # The last child of a buffer's supervisor, so the first that it ends: lets all partitions process what they have at the
  # same time, while a supervisor ends its children one after the other.

  use GenServer, shutdown: :infinity

  alias PartitionedBuffer.{Native, Partition, Routing}

  @doc """
  Starts the drainer of a buffer with so many partitions.
  """
  @spec start_link({atom(), non_neg_integer()}) :: GenServer.on_start()
  def start_link(init), do: GenServer.start_link(__MODULE__, init)

  @impl GenServer
  def init({buffer, partitions}) do
    Process.flag(:trap_exit, true)
    # The partitions are closed if this is not the first drainer of this supervisor.
    for number <- 0..(partitions - 1)//1, do: Native.reopen(buffer, number)
    {:ok, {buffer, partitions}}
  end

  @impl GenServer
  def terminate(reason, {buffer, partitions}) do
    if reason == :shutdown do
      requests =
        for n <- 0..(partitions - 1)//1, do: buffer |> Routing.partition_name(n) |> Partition.drain_request()

      # One that is dead has nothing more to say.
      Enum.each(requests, &:gen_server.wait_response(&1, :infinity))
    end
  end

  @impl GenServer
  def handle_info(_message, state), do: {:noreply, state}
end
