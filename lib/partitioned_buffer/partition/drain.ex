defmodule PartitionedBuffer.Partition.Drain do
  @moduledoc false
  # One pass of a stop over one partition, in a process of the drainer: waits for the running task,
  # then refuses writes and processes all entries. Processors may write to their own buffer, so
  # their writes are still accepted; `PartitionedBuffer.Buffer.Drainer` decides whether these need
  # another pass.
  #
  # A call of the processor that takes too long is killed, and the partition makes no other call:
  # the next call would most likely take as long, so the stop would take its time limit once per
  # batch.

  alias PartitionedBuffer.{Emitter, Native, Options, Processing, Ref}
  alias PartitionedBuffer.Partition.{Ending, Runner, Server}
  alias PartitionedBuffer.Processing.Backoff

  # The least time that a call may take if it begins during the stop: OTP's usual shutdown time of a
  # worker. With outcomes, a call has its usual time.
  @min_timeout 5_000

  # How often, in milliseconds, a stop looks whether `update_options/2` changed its limits. The
  # process of the partition may be dead, so nobody else could report this.
  @look_ms 250

  @typedoc """
  `:again` if another pass may process the rest; `:given_up` if a call was killed or the time for
  the stop is up, so no other call is made; `:closed` if a drainer that died already closed the partition.
  """
  @type outcome() :: :done | :again | :given_up | :closed

  @doc """
  Processes the entries of a partition. `began` is when the stop began, in nanoseconds of the VM's
  monotonic time. A `flush/2` during the stop gets the result of this pass.
  """
  @spec pass(Ref.t(), integer()) :: outcome()
  def pass(%Ref{} = ref, began) do
    lost = lost(ref)
    task = passive(ref, began)
    ended = if task, do: await(task, began), else: :ended

    outcome =
      case Native.drain(ref.run, ref.number) do
        :ok when ended == :killed -> :given_up
        :ok -> process_all(ref, began)
        closed when closed in [:closed, :not_running] -> :closed
      end

    Server.passed(ref, lost(ref) - lost + Ref.held(ref))
    outcome
  end

  # The process of the partition may be dead, and its task still running.
  defp passive(ref, began) do
    if task = Server.drain(ref), do: Runner.monitor(task), else: find(ref, began)
  catch
    :exit, _reason -> find(ref, began)
  end

  # The call of a found task began before the stop.
  defp find(ref, began) do
    with %Runner{} = task <- Runner.find(ref), do: %Runner{task | since: min(task.since, began)}
  end

  # The number of entries that the partition ever lost. With outcomes, a failed entry is not lost.
  defp lost(ref) do
    with %Options{} = options <- Ref.options(ref),
         false <- Options.outcomes?(options),
         {_held, _oldest, _writes, {_superseded, _processed, failed, _given_up}, _state} <-
           Native.info(ref.run, ref.number) do
      failed
    else
      _over_or_outcomes -> 0
    end
  end

  @doc """
  Makes the partition refuse reads and writes. Gives its entries up if they go to `:dead_letter`.
  """
  @spec finish(Ref.t(), Ending.leftovers()) :: :ok
  def finish(%Ref{} = ref, leftovers) do
    if leftovers == :dead_letter, do: bury(ref), else: Native.close(ref.run, ref.number)
    Server.passed(ref, Ref.held(ref))
  end

  @doc """
  Makes the partition refuse reads and writes, and gives all its entries to `:dead_letter`.
  """
  @spec bury(Ref.t()) :: :ok
  def bury(%Ref{} = ref) do
    Native.close(ref.run, ref.number)
    give_up(ref)
  end

  # Each call of `:dead_letter` may take the time that a call of the processor may take. `death` is
  # the reason for which the last task died.
  defp give_up(ref, death \\ nil) do
    case Native.flush(ref.run, ref.number) do
      {_kind, flush} ->
        case ref |> Runner.start_give_up(flush, :stopped, death) |> await(nil) do
          :ended -> give_up(ref)
          :killed -> :ok
          {:died, reason} -> give_up(ref, reason)
        end

      nothing when nothing in [:empty, :not_running] ->
        :ok
    end
  end

  # Processes the rest of the last flush, then the waiting entries. With outcomes, failed entries
  # may wait again. Entries that the processor itself wrote wait for the next pass: their number is
  # limited, so a stop ends.
  defp process_all(ref, began) do
    with {kind, flush} <- Native.flush(ref.run, ref.number),
         %Options{} = options <- Ref.options(ref) do
      outcomes? = Options.outcomes?(options)
      ended = if outcomes?, do: retry(ref, kind, flush, began), else: process(ref, kind, flush, began)
      again? = kind == :rest or (outcomes? and failed?(ref, flush))
      if ended == :done and again?, do: process_all(ref, began), else: ended
    else
      nothing when nothing in [:empty, :not_running, nil] -> :done
    end
  end

  defp failed?(ref, flush) do
    {_calls, _length, left, _called_at} = Native.seen(flush)

    left > 0 or
      match?({_failures, _ms, _pause_ms, failed} when failed > 0, Native.learned(ref.run, ref.number))
  end

  # A failed call ends its task, and the next task goes on behind the batch of that call.
  defp process(ref, kind, flush, began) do
    {calls, _length, _left, _called_at} = Native.seen(flush)

    case ref |> start(kind, flush) |> await(began) do
      :killed ->
        :given_up

      _ended ->
        case Native.seen(flush) do
          {_calls, _length, 0, _called_at} -> :done
          {more, _length, _left, _called_at} when more > calls -> process(ref, :rest, flush, began)
          _no_call -> :again
        end
    end
  end

  # With outcomes, a failed batch is tried again after the shortest pause.
  defp retry(ref, kind, flush, began) do
    # A call that began before the stop may have begun a pause in it.
    Native.end_pause(ref.run, ref.number)

    case ref |> start(kind, flush) |> await(began) do
      :killed -> settle(ref, flush, :timeout)
      {:died, reason} -> with :given_up <- settle(ref, flush, reason), do: wait(ref, began)
      :ended -> wait(ref, began)
    end
  end

  # Settles the batch of a dead task, which counts as failed.
  defp settle(ref, flush, reason) do
    ref |> start(:rest, flush, reason) |> await(nil)
    :given_up
  end

  # Waits for the end of a pause, unless the stop does not retry, or its time is up earlier.
  defp wait(ref, began) do
    case Native.learned(ref.run, ref.number) do
      {_failures, _failing_ms, pause_ms, _failed} when pause_ms != nil ->
        if Ending.retries?(ref) and drain_left(Ref.options(ref), began) > pause_ms,
          do: sleep(ref, began, System.monotonic_time(:nanosecond), pause_ms),
          else: :given_up

      _no_pause ->
        :done
    end
  end

  # New options may shorten the pause, or the time for the stop.
  defp sleep(ref, began, since, pause_ms) do
    options = Ref.options(ref)
    left = left(since, min(pause_ms, Backoff.shortest(options)))

    cond do
      left == 0 ->
        Native.end_pause(ref.run, ref.number)
        :done

      drain_left(options, began) == 0 ->
        :given_up

      true ->
        Process.sleep(min(left, @look_ms))
        sleep(ref, began, since, pause_ms)
    end
  end

  defp start(ref, kind, flush, reason \\ nil),
    do: Runner.start_anyhow(ref, flush, trigger: :stop, resumed?: kind == :rest, reason: reason)

  # Waits until the task ended, and kills it if a call of the processor takes too long. `began` is
  # nil for a task whose calls have only the time limit of a call.
  defp await(%Runner{monitor: monitor} = task, began) do
    {left, _limit} = time_left(task, began)

    receive do
      {^monitor, :done} ->
        Process.demonitor(monitor, [:flush])
        :ended

      {:DOWN, ^monitor, :process, _pid, reason} ->
        if Runner.died?(task), do: died(task, reason), else: :ended
    after
      min(left, @look_ms) ->
        case time_left(task, began) do
          {0, limit} -> kill(task, limit)
          _another_call -> await(task, began)
        end
    end
  end

  defp died(task, reason) do
    Processing.report_lost(task.ref, reason)
    {:died, Processing.cause(reason)}
  end

  defp kill(task, limit) do
    Emitter.log(
      task.ref.run,
      :error,
      "#{Ref.describe(task.ref)} kills its processor: #{limit} during a stop",
      Ref.log_metadata(task.ref)
    )

    Runner.kill(task)
    Processing.report_lost(task.ref, :killed)
    :killed
  end

  # The remaining time of the task in milliseconds, and the limit: of the current call, or of the
  # stop. An `update_options/2` during the stop changes both.
  defp time_left(%Runner{ref: ref} = task, began) do
    case Ref.options(ref) do
      # The run is over, so the task finds nothing more to do.
      nil -> {@min_timeout, "the buffer ended"}
      options when began == nil -> call_limit(Runner.called_at(task), options.processing_timeout_ms)
      options -> min(call_left(options, Runner.called_at(task), began), stop_left(options, began))
    end
  end

  defp stop_left(%Options{} = options, began) do
    {drain_left(options, began),
     "it took longer than #{options.drain_timeout_ms} ms, the limit for all of it,"}
  end

  defp call_left(%Options{processing_timeout_ms: timeout} = options, called_at, began) do
    cond do
      Options.outcomes?(options) -> call_limit(called_at, timeout)
      called_at <= began -> call_limit(began, timeout)
      true -> call_limit(called_at, max(timeout, @min_timeout))
    end
  end

  defp call_limit(from, limit), do: {left(from, limit), "a call took longer than #{limit} ms, the limit"}

  defp drain_left(nil, _began), do: 0
  defp drain_left(%Options{drain_timeout_ms: timeout}, began), do: left(began, timeout)

  defp left(_from, :infinity), do: :infinity

  defp left(from, limit) do
    passed = System.monotonic_time(:nanosecond) - from
    max(limit - System.convert_time_unit(passed, :nanosecond, :millisecond), 0)
  end
end
