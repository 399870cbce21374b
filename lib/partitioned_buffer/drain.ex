defmodule PartitionedBuffer.Drain do
  @moduledoc false
  # The end of a partition: the flush in flight is waited for, then the rest is processed, in that order. Writes are
  # taken until the flush in flight is done; then only those of processors are, which may write to their own buffer.
  # So it goes in passes, of which each processes what is there when it begins; `PartitionedBuffer.Drainer` decides whether
  # there is another.
  #
  # A call of the processor that takes too long is killed, and no other is made: it would most likely take too long as well,
  # and the stop as many times its limit as there are batches.

  require Logger

  alias PartitionedBuffer.{Identity, Native, Running}

  # What a call may take at the least that begins at the end: OTP's usual time for a worker's shutdown.
  @min_timeout 5_000

  @typedoc """
  `:again` if something may be left that another pass can process; `:given_up` if nothing more is to be tried, because of a
  call that was killed; `:closed` if the stop has finished with the partition before.
  """
  @type outcome() :: :done | :again | :given_up | :closed

  @doc """
  Processes what a partition has. `running` is the task at work, which the calling process monitors, and `began` when the
  stop has begun, by `System.monotonic_time(:nanosecond)`.
  """
  @spec pass(Identity.t(), Running.t() | nil, integer()) :: outcome()
  def pass(%Identity{} = identity, running, began) do
    ended = if running, do: await(identity, running, began), else: :ended

    case Native.drain(identity.buffer, identity.number) do
      :ok when ended == :ended -> process_all(identity, began)
      :ok -> :given_up
      closed when closed in [:closed, :not_running] -> :closed
    end
  end

  @doc """
  Refuses reads and writes from now on, and tells of what is left.
  """
  @spec finish(Identity.t()) :: :ok
  def finish(%Identity{} = identity) do
    Native.close(identity.buffer, identity.number)

    with left when left not in [0, :not_running] <- Native.held(identity.buffer, identity.number) do
      Logger.error(
        "#{Identity.describe(identity)} could not process all it had: " <>
          "#{left} entries are kept until a buffer of this name starts"
      )
    end

    :ok
  end

  # What is left of earlier flushes, then what has come in since.
  defp process_all(identity, began) do
    case Native.flush(identity.buffer, identity.number) do
      {:rest, flush} ->
        with :done <- process(identity, :rest, flush, began), do: process_all(identity, began)

      {:fresh, flush} ->
        process(identity, :fresh, flush, began)

      nothing when nothing in [:empty, :not_running] ->
        :done
    end
  end

  # To its end, whatever calls fail.
  defp process(identity, kind, flush, began) do
    before = Native.position(flush)

    case await(identity, start(identity, kind, flush), began) do
      :killed ->
        :given_up

      :ended ->
        case Native.progress(flush) do
          {position, position, _claimed_at} -> :done
          {^before, _end, _claimed_at} -> :again
          _some_claimed -> process(identity, kind, flush, began)
        end
    end
  end

  defp start(identity, kind, flush) do
    case Running.start(identity, kind, flush) do
      {:ok, running} -> running
      {:error, _no_task_supervisor} -> Running.start_alone(identity, kind, flush)
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
        Running.report(identity, running, reason)
        :ended
    after
      time_left ->
        case time_left(identity, running, began, since) do
          {0, limit} -> kill(identity, running, limit)
          _another_call -> await(identity, running, began, since)
        end
    end
  end

  defp kill(identity, %Running{pid: pid, ref: ref} = running, limit) do
    Logger.error(
      "#{Identity.describe(identity)} kills its processor: a batch has taken longer than #{limit} ms at the end"
    )

    Process.exit(pid, :kill)

    receive do
      {:DOWN, ^ref, :process, _pid, reason} -> Running.report(identity, running, reason)
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
