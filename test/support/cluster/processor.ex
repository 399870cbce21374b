defmodule PartitionedBuffer.Test.Cluster.Processor do
  @moduledoc false
  # The functions that the buffer of each node calls. Both call the sink of the controller.

  alias PartitionedBuffer.Test.Cluster.{Gate, Sink}

  @doc "The processor. `gate?` lets a scenario kill tasks between two batches only."
  def deliver(entries, sink, gate?) do
    if gate?, do: Gate.pass()
    Sink.store(sink, entries)
  end

  @doc "The function for entries that are given up."
  def give_up(entries, reason, sink), do: Sink.give_up(sink, entries, reason)
end
