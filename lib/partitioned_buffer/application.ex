defmodule PartitionedBuffer.Application do
  @moduledoc false
  # The application of the package. Buffers run in the supervision trees of their users, also without
  # it. Its end takes care of entries that no buffer will have again.

  use Application

  @impl Application
  def start(_type, _args), do: Supervisor.start_link([], strategy: :one_for_one)

  @impl Application
  def stop(_state), do: PartitionedBuffer.Buffer.Leftovers.give_up()
end
