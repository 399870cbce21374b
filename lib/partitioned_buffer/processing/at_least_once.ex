defmodule PartitionedBuffer.Processing.AtLeastOnce do
  @moduledoc false
  # Processes a flush of a buffer with `:max_attempts`: leases each batch, calls the processor with
  # it, and settles it by its outcome. A pause ends the task, and so does a hold of the buffer.
  #
  # A batch of several entries that failed as a whole is split: its entries are read again at once,
  # in smaller batches. So only a single entry fails for good. Native code decides how many entries
  # the next batch may have, and whether the failure of a single entry begins a pause.
  #
  # A dead process settles nothing, so each task begins with the leftover batch of the last task:
  # the processor failed with it. If the last task died before it called `:dead_letter`, this task
  # calls it. If the last task died in that call, this task calls it again only if the partition did
  # not see that death, since its process died as well, or if fewer entries may help.

  require Logger

  alias PartitionedBuffer.{Native, Options, Ref, Telemetry}
  alias PartitionedBuffer.Processing.{Backoff, Batch, DeadLetter, Failure, Job, Journal, Outcome, Reason}

  # The shortest and the longest pause, in milliseconds, that a processor can ask for.
  @shortest_ms 1_000
  @longest_ms 86_400_000

  @doc """
  Calls the processor with each batch, until the end of the flush or a pause. A job with a reason only
  settles the leftover batch.
  """
  @spec run(Job.t()) :: Job.t()
  def run(%Job{} = job) do
    # Only an earlier task leaves a batch behind.
    left = if job.resumed?, do: Native.inherit(job.flush, Job.death(job))

    case settle_left(job, left) do
      {:go_on, %Job{reason: nil} = job} -> if wait_together?(job), do: job, else: begin(job)
      {_go_on_or_pause, job} -> job
    end
  end

  # New entries do not wait for the rest of a flush that holds only refused entries, most likely. So
  # the rest joins them, and the next flush has all: it begins at once after a rest. This task calls
  # no processor, so it begins no pause.
  defp wait_together?(%Job{resumed?: true, waited?: false} = job) do
    gave_back? = Native.lease_rest(job.flush, true)

    if gave_back? do
      Batch.give_back(job.flush, :all, false, :infinity, nil)
      wait_together?(job)
    end

    gave_back?
  end

  defp wait_together?(_job), do: false

  # What the sink refused once it most likely refuses again, so it comes last.
  defp begin(%Job{} = job) do
    Native.defer(job.flush)
    deliver(job)
  end

  # The life of a batch: it is read and leased, the processor is called, and the outcome settles it. A
  # success is settled together with the lease of the next batch.
  # `succeeded?` if the processor succeeded with the batch before.
  defp deliver(%Job{} = job, succeeded? \\ false) do
    batch = Batch.lease_next(job, succeeded?)

    case batch.begun do
      _begun when batch.count == 0 -> finish(job)
      0 -> process(job, batch)
      # The next task reads the batch again.
      refused when refused in [:on_hold, :paused] -> job
      # Another task began a batch since the read.
      false -> deliver(job)
      _attempts -> if postponed?(job), do: postpone(job), else: process(%Job{job | tries?: true}, batch)
    end
  end

  defp process(job, batch) do
    case call(job, batch) do
      :ok ->
        deliver(Job.delivered(job, batch.count), true)

      outcome ->
        case settle(job, batch, outcome) do
          {:go_on, job} -> deliver(job)
          {:pause, job} -> job
        end
    end
  end

  # While the sink takes other entries, a tick or a threshold tries failed ones at most once in the
  # time of the shortest pause, and then only as many as begin no pause.
  defp postponed?(%Job{trigger: trigger}) when trigger in [:flush, :stop], do: false
  defp postponed?(%Job{options: %Options{kind: :queue, order: :strict}}), do: false

  defp postponed?(%Job{ref: ref} = job) do
    case Native.alone(ref.run, ref.number) do
      {_alone, exhausted?, _untried?, true = _success?, failed_ms} ->
        exhausted? or (not job.tries? and failed_ms != nil and failed_ms < shortest_ms(job))

      _no_success ->
        false
    end
  end

  defp postpone(job) do
    Batch.give_back(job.flush, :all, false, :infinity, nil)
    if Native.lease_rest(job.flush, false), do: postpone(job), else: finish(job)
  end

  # The function `:processing_batch_size` failed with the entry.
  defp call(_job, %Batch{failure: failure}) when failure != nil, do: failure

  defp call(job, %Batch{entries: entries, count: count, begun: attempts}) do
    Journal.await_begin(job)

    Telemetry.batch(job.ref, count, attempts + 1, fn ->
      job.functions.processor
      |> Job.call([entries])
      |> Outcome.new(job.options.kind, entries)
    end)
  catch
    kind, reason -> {:raised, kind, reason, __STACKTRACE__}
  end

  ## Outcomes but the success of all, which the lease of the next batch settles

  defp settle(job, %Batch{count: 1, failure: failure}, {:raised, kind, reason, stacktrace}) do
    what = if failure, do: ":processing_batch_size", else: "processor"
    Failure.log_exception(job.ref, what, kind, reason, stacktrace)
    fail(job, Reason.new(kind, reason, stacktrace), :all, 0)
  end

  defp settle(job, _batch, {:raised, kind, reason, stacktrace}),
    do: split(job, Reason.new(kind, reason, stacktrace))

  defp settle(job, %Batch{count: 1}, {:error, reason, :all}), do: fail(job, reason, :all, 0)
  defp settle(job, _batch, {:error, reason, :all}), do: split(job, reason)

  defp settle(job, batch, {outcome, reason, numbers}) when outcome in [:error, :partial],
    do: fail(job, reason, numbers, batch.count - length(numbers))

  defp settle(job, _batch, {:snooze, ms, scope}) do
    ms = snooze_ms(job, ms)
    # A stop does not wait that long.
    pause_ms = if job.trigger == :stop, do: min(ms, Backoff.pause(job, 0)), else: ms
    {retried, superseded, 0} = Batch.give_back(job.flush, :all, false, :infinity, pause_ms)
    if scope == :buffer, do: Native.pause_all(job.ref.run, pause_ms)
    report_retry(job, :snooze, {retried, superseded}, pause_ms, Backoff.failures(job))
    {:pause, job}
  end

  defp settle(job, batch, {:cancel, reason, cancelled}) do
    {0, _superseded, given_up} = Batch.give_back(job.flush, cancelled, true, 0, nil)
    succeeded = if cancelled == :all, do: 0, else: batch.count - length(cancelled)
    if given_up > 0, do: DeadLetter.bury(job, reason)
    {:go_on, Job.delivered(job, succeeded)}
  end

  # A smaller batch may succeed, so the task goes on, without a pause and without an attempt. The
  # entries are as new as those of a first attempt, so replaced ones are not left out: keys that are
  # rewritten all the time would never be stored beside a bad one.
  defp split(job, reason) do
    with {count, limit} <- Native.split(job.flush) do
      Failure.keep(job.ref, reason)
      Telemetry.split(job.ref, %{count: count, limit: limit, reason: reason})
    end

    {:go_on, job}
  end

  # Entries failed by themselves.
  defp fail(job, reason, failed, succeeded) do
    failures = if succeeded > 0, do: 0, else: Backoff.failures(job)
    pause_ms = if pauses?(job, succeeded), do: Backoff.pause(job, failures)
    give_back(job, reason, failed, pause_ms, failures)
    job = Job.failed(Job.delivered(job, succeeded), reason)
    if pause_ms, do: {:pause, job}, else: {:go_on, job}
  end

  # A failed item of a strict queue holds up all others, and a sink that hangs would hang again.
  # Otherwise the sink is tried with another entry, if there is one.
  defp pauses?(%Job{options: %Options{kind: :queue, order: :strict}}, _succeeded), do: true
  defp pauses?(%Job{reason: :timeout}, _succeeded), do: true
  defp pauses?(_job, succeeded) when succeeded > 0, do: false

  defp pauses?(%Job{ref: ref, flush: flush} = job, 0) do
    with {_alone, exhausted?, untried?, success?, _failed_ms} <- Native.alone(ref.run, ref.number) do
      {_calls, called_with, left, _called_at} = Native.seen(flush)
      exhausted? or (left == called_with and not others?(job, untried?, success?))
    else
      :not_running -> true
    end
  end

  defp give_back(job, reason, failed, pause_ms, failures) do
    max_attempts = Options.native_attempts(job.options)
    {retried, superseded, given_up} = Batch.give_back(job.flush, failed, true, max_attempts, pause_ms)
    if pause_ms, do: log_pause(job, reason, retried, pause_ms)
    Failure.report(job.ref, reason, retried)
    failures = if pause_ms, do: failures + 1, else: failures
    report_retry(job, reason, {retried, superseded}, pause_ms || 0, failures)
    if given_up > 0, do: DeadLetter.bury(job, reason)
  end

  defp log_pause(job, reason, count, pause_ms) do
    Logger.warning(
      "#{Ref.describe(job.ref)}: processor failed (#{Reason.describe(reason)}); " <>
        if(count > 0, do: "retrying #{count} entries in #{pause_ms} ms", else: "pausing for #{pause_ms} ms"),
      Ref.log_metadata(job.ref)
    )
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

  # Whether other entries show that the sink is there: waiting ones, or others in this flush.
  defp others?(%Job{trigger: trigger}, _untried?, true = _success?) when trigger not in [:flush, :stop],
    do: true

  defp others?(job, untried?, _success?), do: job.resumed? and untried?

  defp shortest_ms(%Job{options: %Options{retry_backoff_ms: {min, _max}}}), do: min
  defp shortest_ms(_job), do: @shortest_ms

  # The shortest pause of the options, or a day, in the place of a number beyond.
  defp snooze_ms(%Job{ref: ref} = job, ms) do
    shortest = shortest_ms(job)
    pause_ms = ms |> max(shortest) |> min(@longest_ms) |> ceil()

    if (ms < shortest or ms > @longest_ms) and Native.first_warning(ref.run, ref.number) == true do
      Logger.warning(
        "#{Ref.describe(ref)}: the processor asked for a pause of #{inspect(ms)} ms, and gets #{pause_ms} ms: " <>
          "the shortest pause is #{shortest} ms, and the longest #{@longest_ms} ms",
        Ref.log_metadata(ref)
      )
    end

    pause_ms
  end

  # Failed entries wait for the next flush, which begins at once after a rest. The partition pauses
  # before it if single entries failed last and no other is left, or if no tick begins it.
  defp finish(%Job{ref: ref, options: options} = job) do
    with {failures, _failing_ms, _pause_ms, failed} when failed > 0 <- Native.learned(ref.run, ref.number),
         {alone, _exhausted?, untried?, success?, _failed_ms} <- Native.alone(ref.run, ref.number),
         untimed? = job.trigger == :stop or options.processing_interval_ms == :infinity,
         true <- untimed? or (alone > 0 and not others?(job, untried?, success?)),
         false <- job.resumed? and untried? do
      pause_ms = Backoff.pause(job, failures)
      # Postponed entries did not fail now.
      Native.pause(ref.run, ref.number, pause_ms, job.failed?)
      if job.failed?, do: log_pause(job, job.failure, failed, pause_ms)
    else
      _goes_on -> log_failed(job)
    end

    job
  end

  defp log_failed(%Job{failed?: false}), do: :ok

  defp log_failed(job) do
    Logger.warning(
      "#{Ref.describe(job.ref)}: processor failed with some entries, last with " <>
        "#{Reason.describe(job.failure)}; they are retried later",
      Ref.log_metadata(job.ref)
    )
  end

  ## A batch that a dead task left

  defp settle_left(%Job{reason: nil} = job, nil), do: {:go_on, job}

  defp settle_left(%Job{ref: ref} = job, nil) do
    Native.pause(ref.run, ref.number, Backoff.pause(job, Backoff.failures(job)), true)
    {:pause, job}
  end

  defp settle_left(job, {:leased, 1}), do: fail(job, job.reason || :killed, :all, 0)

  defp settle_left(job, {:leased, _count}) do
    {:go_on, job} = split(job, job.reason || :killed)
    # The last task died while it gave the batch back.
    if Native.inherit(job.flush, nil) != nil, do: DeadLetter.bury(job, job.reason || :killed)
    # A smaller batch may take as long.
    if job.reason == :timeout, do: settle_left(job, nil), else: {:go_on, job}
  end

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
