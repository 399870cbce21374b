defmodule PartitionedBuffer.Processing.AtLeastOnce do
  @moduledoc false
  # Processes a flush of a buffer with `:max_attempts`: leases each batch, calls the processor with
  # it, and settles it by its outcome. A pause ends the task.
  #
  # A dead process settles nothing, so each task begins with the leftover batch of the last task:
  # the processor failed with it. If the last task died before it called `:dead_letter`, this task
  # calls it. If the last task died in that call, this task calls it again only if the partition did
  # not see that death: its process died as well.

  require Logger

  alias PartitionedBuffer.{Native, Options, Ref, Telemetry}
  alias PartitionedBuffer.Processing.{Backoff, Batch, DeadLetter, Failure, Job, Outcome, Reason}

  @doc """
  Calls the processor with each batch, until the end of the flush or a pause.
  """
  @spec run(Job.t()) :: Job.t()
  def run(%Job{} = job) do
    # Only an earlier task leaves a batch behind.
    left = if job.resumed?, do: Native.inherit(job.flush)

    case settle_left(job, left) do
      {:go_on, job} -> deliver(job)
      {:pause, job} -> job
    end
  end

  # The life of a batch: it is read and leased, the processor is called, and the outcome settles it.
  defp deliver(%Job{} = job) do
    batch = Batch.read(job, job.resumed?)

    case {Native.lease(job.flush), batch.count} do
      {_leased?, 0} ->
        finish(job)

      # Another task began a batch since the read.
      {false, _count} ->
        deliver(job)

      {true, _count} ->
        outcome = call(job, batch)

        case settle(job, batch, outcome) do
          {:go_on, job} -> deliver(job)
          {:pause, job} -> job
        end
    end
  end

  defp call(job, %Batch{entries: entries, count: count}) do
    Telemetry.batch(job.ref, count, Native.attempts(job.flush) + 1, fn ->
      job.functions.processor
      |> Job.call([entries])
      |> Outcome.new(job.options.kind, entries)
    end)
  catch
    kind, reason ->
      Failure.log_exception(job.ref, "processor", kind, reason, __STACKTRACE__)
      {:error, Reason.new(kind, reason, __STACKTRACE__), :all}
  end

  ## Outcomes

  defp settle(job, batch, :ok) do
    Native.succeed(job.flush)
    {:go_on, Job.delivered(job, batch.count)}
  end

  defp settle(job, _batch, {:error, reason, :all}), do: fail(job, reason, :all, 0)

  defp settle(job, batch, {:error, reason, failed}) do
    succeeded = batch.count - length(failed)

    if job.options.kind == :queue,
      do: fail(job, reason, failed, succeeded),
      else: retry(job, reason, failed, succeeded)
  end

  defp settle(job, _batch, {:snooze, ms}) do
    # A stop does not wait that long.
    pause_ms = if job.trigger == :stop, do: min(ms, Backoff.pause(job, 0)), else: ms
    {retried, superseded, 0} = Batch.give_back(job.flush, :all, false, :infinity, pause_ms)
    report_retry(job, :snooze, {retried, superseded}, ms, Backoff.failures(job))
    {:pause, job}
  end

  defp settle(job, batch, {:cancel, reason, cancelled}) do
    {0, _superseded, given_up} = Batch.give_back(job.flush, cancelled, true, 0, nil)
    succeeded = if cancelled == :all, do: 0, else: batch.count - length(cancelled)
    if given_up > 0, do: DeadLetter.bury(job, reason)
    {:go_on, Job.delivered(job, succeeded)}
  end

  # The partition pauses.
  defp fail(job, reason, failed, succeeded) do
    failures = if succeeded > 0, do: 0, else: Backoff.failures(job)
    pause_ms = Backoff.pause(job, failures)
    give_back(job, reason, failed, pause_ms, failures + 1)
    {:pause, Job.delivered(job, succeeded)}
  end

  # The sink took other entries of the batch, so the task goes on.
  defp retry(job, reason, failed, succeeded) do
    give_back(job, reason, failed, nil, Backoff.failures(job))
    {:go_on, Job.delivered(job, succeeded)}
  end

  defp give_back(job, reason, failed, pause_ms, failures) do
    max_attempts = Options.native_attempts(job.options)

    {retried, superseded, given_up} = Batch.give_back(job.flush, failed, true, max_attempts, pause_ms)

    Logger.warning(
      "#{Ref.describe(job.ref)}: processor failed (#{Reason.describe(reason)}); " <>
        "retrying #{retried} entries" <> if(pause_ms, do: " in #{pause_ms} ms", else: " with the next flush"),
      Ref.log_metadata(job.ref)
    )

    Failure.report(job.ref, reason, retried)
    report_retry(job, reason, {retried, superseded}, pause_ms || 0, failures)
    if given_up > 0, do: DeadLetter.bury(job, reason)
  end

  defp report_retry(job, reason, {retried, superseded}, delay, failures) do
    Telemetry.retry(job.ref, %{
      count: retried,
      superseded: superseded,
      delay: delay,
      reason: reason,
      failures: failures
    })
  end

  # Failed entries wait for the next flush. A stop, or a partition without ticks, retries them after
  # a pause.
  defp finish(%Job{ref: ref, options: options} = job) do
    with true <- job.trigger == :stop or options.processing_interval_ms == :infinity,
         {failures, _failing_ms, _pause_ms, failed} when failed > 0 <- Native.learned(ref.run, ref.number) do
      Native.pause(ref.run, ref.number, Backoff.pause(job, failures), true)
    end

    job
  end

  ## A batch that a dead task left

  defp settle_left(%Job{reason: nil} = job, nil), do: {:go_on, job}

  defp settle_left(%Job{ref: ref} = job, nil) do
    Native.pause(ref.run, ref.number, Backoff.pause(job, Backoff.failures(job)), true)
    {:pause, job}
  end

  defp settle_left(job, {:leased, _count}), do: fail(job, job.reason || :killed, :all, 0)

  defp settle_left(%Job{reason: nil} = job, {given_up, _count}) when given_up in [:given_up, :buried] do
    DeadLetter.bury(job, :killed)
    {:go_on, job}
  end

  defp settle_left(job, {:given_up, _count}) do
    DeadLetter.bury(job, job.reason)
    settle_left(job, nil)
  end

  # The last task died in the call of `:dead_letter`.
  defp settle_left(job, {:buried, count}) do
    DeadLetter.abandon(job, count, job.reason)
    settle_left(job, nil)
  end
end
