defmodule PartitionedBuffer.Drain do
  @moduledoc false
  # One pass of a stop over one partition: waits for the flush in flight, then refuses writes and processes the rest. Writes
  # of processors are still taken, because they may write to their own buffer; `PartitionedBuffer.Drainer` decides whether
  # another pass is needed for them.
  #
  # A call of the processor that takes too long is killed, and the partition makes no other call. The next call would most
  # likely take too long as well, so the stop would take its time limit once per batch.

  require Logger

  alias PartitionedBuffer.{Identity, Native, Running}

  # The least time that a call may take if it begins during the stop: OTP's usual shutdown time of a worker.
  @min_timeout 5_000

  @typedoc """
  `:again` if another pass may process what is left; `:given_up` if a call was killed, so no other call is made; `:closed` if
  a stop has already closed the partition.
  """
  @type outcome() :: :done | :again | :given_up | :closed

  @doc """
  Processes the entries of a partition. `running` is the task at work, which the calling process monitors. `began` is when
  the stop began, by `System.monotonic_time(:nanosecond)`.
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
  Refuses reads and writes from now on, and logs how many entries are left.
  """
  @spec finish(Identity.t()) :: :ok
  def finish(%Identity{} = identity) do
    Native.close(identity.buffer, identity.number)

    with left when left not in [0, :not_running] <- Native.held(identity.buffer, identity.number) do
      Logger.error(
        "#{Identity.describe(identity)} could not process all its entries: " <>
          "#{left} are kept until a buffer of this name and kind starts"
      )
    end

    :ok
  end

  # First the rest of earlier flushes, then the entries that wait.
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

  # A failed call ends its task: the next task goes on behind the batch of that call.
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

  # Waits until the task has ended, and kills it if a call of the processor takes too long. When the time of one call is
  # up, the task may be at another call, which has time left.
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
      "#{Identity.describe(identity)} kills its processor: a call took longer than #{limit} ms, the limit during a stop"
    )

    Process.exit(pid, :kill)

    receive do
      {:DOWN, ^ref, :process, _pid, reason} -> Running.report(identity, running, reason)
    end

    :killed
  end

  # How many milliseconds the current call has left, and how many it has in all.
  defp time_left(identity, running, began, since) do
    timeout = Identity.options(identity).processing_timeout_ms

    case Running.called_at(running) do
      # The task has not called the processor yet.
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
