defmodule PartitionedBuffer.API.Start do
  @moduledoc false
  # Starts a buffer, of one node or of several.

  alias PartitionedBuffer.API.AtExit
  alias PartitionedBuffer.{Buffer, Cluster, Emitter, Native, Options}
  alias PartitionedBuffer.Options.Summary

  @doc """
  Starts a buffer of the kind of `module`, or of the option `:module`.
  """
  @spec start_link(module() | nil, keyword()) :: Supervisor.on_start()
  def start_link(module \\ nil, opts) do
    {%Options{cluster: cluster} = options, _functions} = init = Options.start!(opts, module)
    AtExit.register()
    result = if cluster, do: Cluster.Supervisor.start_link(init), else: Buffer.Supervisor.start_link(init)
    with {:ok, _pid} <- result, do: log(options)
    result
  end

  defp log(%Options{name: buffer} = options) do
    {level, text} = Summary.line(options)

    with run when run != :not_running <- Native.run(buffer),
         do: Emitter.log(run, level, text, buffer: buffer)
  end
end
