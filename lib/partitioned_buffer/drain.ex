defmodule PartitionedBuffer.Drain do
  @moduledoc false
  # The end of a partition: the hand-over in flight is waited for, then the rest is processed, in that order. Writes are
  # taken until the hand-over in flight is done.

  require Logger

  alias PartitionedBuffer.{Identity, Native, Running}

  # What a batch may take at the least while the rest is processed: OTP's usual time for a worker's shutdown.
  @min_timeout 5_000

  @doc """
  Processes all that a partition has. `running` is the task at work, which the calling process monitors.
  """
  @spec run(Identity.t(), Running.t() | nil) :: :ok
  def run(%Identity{} = identity, running) do
    timeout = Identity.options(identity).processing_timeout_ms
    if running, do: await(identity, running, timeout)
    Native.close(identity.buffer, identity.number)
    rest(identity, max(timeout, @min_timeout))
  end

  defp rest(%Identity{} = identity, timeout) do
    case Native.hand_over(identity.buffer, identity.number) do
      {kind, batch} ->
        position = Native.position(batch)
        with {:ok, running} <- Running.start(identity, kind, batch), do: await(identity, running, timeout)

        if Native.position(batch) > position do
          rest(identity, timeout)
        else
          Logger.error(
            "#{Identity.describe(identity)} could not process all it had: the rest is kept until the buffer starts again"
          )
        end

      nothing when nothing in [:empty, :not_running] ->
        :ok
    end
  end

  # Waits until the task has ended. A batch may take `timeout` ms, then it is killed.
  defp await(%Identity{} = identity, %Running{ref: ref} = running, timeout) do
    position = progress(running)

    receive do
      {^ref, :ok} ->
        Process.demonitor(ref, [:flush])
        :ok

      {:DOWN, ^ref, :process, _pid, reason} ->
        Running.report(identity, reason)
    after
      timeout ->
        if progress(running) == position do
          Logger.error(
            "#{Identity.describe(identity)} kills its processor: a batch has taken longer than #{timeout} ms at the end"
          )

          Process.exit(running.pid, :kill)
        end

        await(identity, running, if(progress(running) == position, do: :infinity, else: timeout))
    end
  end

  defp progress(%Running{batch: nil}), do: :unknown
  defp progress(%Running{batch: batch}), do: Native.position(batch)
end
