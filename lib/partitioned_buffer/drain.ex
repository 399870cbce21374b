defmodule PartitionedBuffer.Drain do
  @moduledoc false
  # One pass of a stop over one partition: waits for the flush in flight, then refuses writes and processes the rest. Writes
  # of processors are still taken, because they may write to their own buffer; `PartitionedBuffer.Drainer` decides whether
  # another pass is needed for them.
  #
  # A call of the processor that takes too long is killed, and the partition makes no other call. The next call would most
  # likely take too long as well, so the stop would take its time limit once per batch.

  require Logger

  alias PartitionedBuffer.{Delivery, Identity, Native, Options, Running}

  # The least time that a call may take if it begins during the stop: OTP's usual shutdown time of a worker. With outcomes a
  # call has the same time as always.
  @min_timeout 5_000

  @typedoc """
  `:again` if another pass may process what is left; `:given_up` if a call was killed or the time for the stop is up, so no
  other call is made; `:closed` if a stop has already closed the partition.
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
      :ok when ended == :killed -> :given_up
      :ok -> process_all(identity, began)
      closed when closed in [:closed, :not_running] -> :closed
    end
  end

  @doc """
  Refuses reads and writes from now on. Gives what is left to `:dead_letter`, if there is one. Else it is kept, and logged
  with its count.
  """
  @spec finish(Identity.t()) :: :ok
  def finish(%Identity{} = identity) do
    Native.close(identity.buffer, identity.number)
    if Identity.options(identity).dead_letter, do: give_up(identity)

    with left when left not in [0, :not_running] <- Native.held(identity.buffer, identity.number) do
      Logger.error(
        "#{Identity.describe(identity)} could not process all its entries: " <>
          "#{left} are kept until a buffer of this name and kind starts"
      )
    end

    :ok
  end

  # Each call may take the time that a call of the processor may take.
  defp give_up(identity) do
    case Native.flush(identity.buffer, identity.number) do
      {_kind, flush} ->
        running = Running.start_other(identity, flush, fn -> Delivery.give_up(flush, identity, :stopped) end)
        with :ended <- await_within(identity, running, &timeout_left/2), do: give_up(identity)

      nothing when nothing in [:empty, :not_running] ->
        :ok
    end
  end

  # First the rest of earlier flushes, then the entries that wait. With outcomes, some of them may wait again.
  defp process_all(identity, began) do
    case Native.flush(identity.buffer, identity.number) do
      {kind, flush} ->
        with :done <- process(identity, kind, flush, began) do
          if kind == :rest or Options.outcomes?(Identity.options(identity)),
            do: process_all(identity, began),
            else: :done
        end

      nothing when nothing in [:empty, :not_running] ->
        :done
    end
  end

  # Without outcomes, a failed call ends its task, and the next task goes on behind the batch of that call. With outcomes, the
  # next task waits for the shortest pause.
  defp process(identity, kind, flush, began) do
    running = start(identity, kind, flush)
    outcomes? = Options.outcomes?(Identity.options(identity))

    case await(identity, running, began) do
      :killed when outcomes? ->
        settle(identity, flush, :timeout)

      :killed ->
        :given_up

      :ended when outcomes? ->
        after_pause(identity, Running.ended(identity), began)

      {:died, reason} when outcomes? ->
        with :given_up <- settle(identity, flush, reason), do: sleep(identity, began)

      _ended ->
        go_on(identity, running, began)
    end
  end

  defp go_on(identity, running, began) do
    cond do
      Running.finished?(running) -> :done
      Running.called?(running) -> process(identity, running.kind, running.flush, began)
      true -> :again
    end
  end

  defp after_pause(_identity, %{pause: nil, failed: 0}, _began), do: :done
  defp after_pause(identity, _ended, began), do: sleep(identity, began)

  # A dead task has left a batch, which has failed.
  defp settle(identity, flush, reason) do
    running = start(identity, :rest, flush, reason)
    await_within(identity, running, &timeout_left/2)
    :given_up
  end

  # The shortest pause, unless the time for the stop is up before its end.
  defp sleep(identity, began) do
    options = Identity.options(identity)
    pause = Options.shortest_backoff(options)

    case drain_left(options, began) do
      left when left > pause ->
        Process.sleep(pause)
        :done

      _left ->
        :given_up
    end
  end

  defp start(identity, kind, flush, reason \\ nil) do
    opts = [trigger: :stop, failures: 0, reason: reason]

    case Running.start(identity, kind, flush, opts) do
      {:ok, running} -> running
      {:error, _no_task_supervisor} -> Running.start_alone(identity, kind, flush, opts)
    end
  end

  defp await(identity, running, began), do: await_within(identity, running, &time_left(&1, &2, began))

  # Waits until the task has ended, and kills it if a call of the processor takes too long. When the time of one call is
  # up, the task may be at another call, which has time left.
  defp await_within(%Identity{} = identity, %Running{ref: ref} = running, time_left) do
    {left, _limit} = time_left.(identity, running)

    receive do
      {^ref, :ok} ->
        Process.demonitor(ref, [:flush])
        :ended

      {:DOWN, ^ref, :process, _pid, :normal} ->
        :ended

      {:DOWN, ^ref, :process, _pid, reason} ->
        Running.report(identity, running, reason)
        {:died, reason}
    after
      left ->
        case time_left.(identity, running) do
          {0, limit} -> kill(identity, running, limit)
          _another_call -> await_within(identity, running, time_left)
        end
    end
  end

  defp kill(identity, running, limit) do
    Logger.error("#{Identity.describe(identity)} kills its processor: #{limit} during a stop")
    Running.kill(running)
    Running.report(identity, running, :killed)
    :killed
  end

  # How many milliseconds the task has left, and what the limit is: the time of the current call, or that of the stop.
  defp time_left(identity, running, began) do
    options = Identity.options(identity)

    min(
      call_left(options, Running.called_at(running), began),
      {drain_left(options, began),
       "it took longer than #{options.drain_timeout_ms} ms, the limit for all of it,"}
    )
  end

  defp call_left(%Options{processing_timeout_ms: timeout} = options, called_at, began) do
    cond do
      Options.outcomes?(options) -> call_left(called_at, timeout)
      called_at <= began -> call_left(began, timeout)
      true -> call_left(called_at, max(timeout, @min_timeout))
    end
  end

  defp call_left(from, limit), do: {left(from, limit), "a call took longer than #{limit} ms, the limit"}

  defp timeout_left(identity, running),
    do: call_left(Running.called_at(running), Identity.options(identity).processing_timeout_ms)

  defp drain_left(%Options{drain_timeout_ms: timeout}, began), do: left(began, timeout)

  defp left(_from, :infinity), do: :infinity

  defp left(from, limit) do
    passed = System.monotonic_time(:nanosecond) - from
    max(limit - System.convert_time_unit(passed, :nanosecond, :millisecond), 0)
  end
end
