defmodule PartitionedBuffer.API.Sync do
  @moduledoc false
  # The caller's side of `PartitionedBuffer.sync/2`.

  alias PartitionedBuffer.Buffer.{Journaling, Lookup}
  alias PartitionedBuffer.{Options, Routing}

  @doc """
  See `PartitionedBuffer.sync/2`.
  """
  @spec sync(atom(), keyword()) :: :ok | {:error, :timeout | File.posix()}
  def sync(buffer, opts) do
    {level, timeout} = Options.sync!(buffer, opts)
    run = Lookup.run!(buffer)

    case Journaling.sync(run, level, timeout) do
      nil -> no_journal!(buffer)
      {:error, :ebadf} -> Routing.not_running!(buffer)
      answer -> answer
    end
  end

  @spec no_journal!(atom()) :: no_return()
  defp no_journal!(buffer) do
    raise ArgumentError,
          "sync/2 needs a journal, and buffer #{inspect(buffer)} was started without the option :journal"
  end
end
