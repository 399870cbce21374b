defmodule PartitionedBuffer.Drain do
  @moduledoc false
  # The end of a partition: the hand-over in flight is waited for, then the rest is processed, in that order. Writes are
  # taken until the hand-over in flight is done.
  #
  # A call of the processor that takes too long is killed, and no other is made: it would most likely take too long as well,
  # and the stop as many times its limit as there are batches.

  require Logger

  alias PartitionedBuffer.{Identity, Native, Running}

  # What a call may take at the least that begins at the end: OTP's usual time for a worker's shutdown.
  @min_timeout 5_000

  @doc """
  Processes all that a partition has, unless a call is killed. `running` is the task at work, which the calling process
  monitors, and `began` when the stop has begun, by `System.monotonic_time(:nanosecond)`.
  """
  @spec run(Identity.t(), Running.t() | nil, integer()) :: :done | :given_up
  def run(%Identity{} = identity, running, began) do
    ended = if running, do: await(identity, running, began), else: :ended
    Native.close(identity.buffer, identity.number)
    outcome = if ended == :ended, do: rest(identity, began), else: :given_up

    with left when left > 0 <- Native.held(identity.buffer, identity.number) do
      Logger.error(
        "#{Identity.describe(identity)} could not process all it had: " <>
          "#{left} entries are kept until a buffer of this name starts"
      )
    end

    outcome
  end

  defp rest(%Identity{} = identity, began) do
    with {kind, batch} <- Native.hand_over(identity.buffer, identity.number),
         before = Native.position(batch),
         {:ok, running} <- Running.start(identity, kind, batch),
         :ended <- await(identity, running, began) do
      if Native.position(batch) > before, do: rest(identity, began), else: :done
    else
      :killed -> :given_up
      _nothing_or_error -> :done
    end
  end

  defp await(%Identity{} = identity, %Running{} = running, began),
    do: await(identity, running, began, System.monotonic_time(:nanosecond))

  # Waits until the task has ended. It is killed if a call of the processor takes too long: there is nothing to look at before
  # the time of the call is up that was at work when the waiting began.
  defp await(identity, %Running{ref: ref} = running, began, since) do
    {time_left, _limit} = time_left(identity, running, began, since)

    receive do
      {^ref, :ok} ->
        Process.demonitor(ref, [:flush])
        :ended

      {:DOWN, ^ref, :process, _pid, reason} ->
        Running.report(identity, reason)
        :ended
    after
      time_left ->
        case time_left(identity, running, began, since) do
          {0, limit} -> kill(identity, running, limit)
          _another_call -> await(identity, running, began, since)
        end
    end
  end

  defp kill(identity, %Running{pid: pid, ref: ref}, limit) do
    Logger.error(
      "#{Identity.describe(identity)} kills its processor: a batch has taken longer than #{limit} ms at the end"
    )

    Process.exit(pid, :kill)

    receive do
      {:DOWN, ^ref, :process, _pid, reason} -> Running.report(identity, reason)
    end

    :killed
  end

  # How many milliseconds the call at work has still, and how many it has in all.
  defp time_left(identity, running, began, since) do
    timeout = Identity.options(identity).processing_timeout_ms

    case Running.called_at(running) do
      # It is about to call the processor.
      nil -> time_left(since, max(timeout, @min_timeout))
      called_at when called_at <= began -> time_left(began, timeout)
      called_at -> time_left(called_at, max(timeout, @min_timeout))
    end
  end

  defp time_left(_from, :infinity), do: {:infinity, :infinity}

  defp time_left(from, limit) do
    passed = System.monotonic_time(:nanosecond) - from
    {max(limit - System.convert_time_unit(passed, :nanosecond, :millisecond), 0), limit}
  end
end
