defmodule PartitionedBuffer.API.Start do
  @moduledoc false
  # Starts a buffer, of one node or of several.

  alias PartitionedBuffer.API.AtExit
  alias PartitionedBuffer.{Buffer, Cluster, Options}

  @doc """
  Starts a buffer of the kind of `module`, or of the option `:module`.
  """
  @spec start_link(module() | nil, keyword()) :: Supervisor.on_start()
  def start_link(module \\ nil, opts) do
    {%Options{cluster: cluster}, _functions} = init = Options.start!(opts, module)
    AtExit.register()
    if cluster, do: Cluster.Supervisor.start_link(init), else: Buffer.Supervisor.start_link(init)
  end
end
