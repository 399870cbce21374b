defmodule Shop.Application do
  @moduledoc false
  use Application

  @impl Application
  def start(_type, _args) do
    children = [
      # It starts before the buffer, whose last batches are written to it.
      {Agent, fn -> %{} end}
      |> Supervisor.child_spec(start: {Agent, :start_link, [fn -> %{} end, [name: Shop.Stock]]}),
      {PartitionedBuffer.Map,
       name: Shop.Changes,
       processor: &Shop.Stock.store/1,
       processing_interval_ms: 20,
       processing_batch_size: 100}
    ]

    Supervisor.start_link(children, strategy: :one_for_one, name: Shop.Supervisor)
  end
end
