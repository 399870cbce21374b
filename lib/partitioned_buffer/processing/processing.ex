defmodule PartitionedBuffer.Processing do
  @moduledoc false
  # Processes a flush, in a task: calls the processor with one batch after the other. A buffer
  # without `:max_attempts` gives away each batch before the call; a buffer with `:max_attempts`
  # keeps the batch until its outcome.

  alias PartitionedBuffer.{Emitter, Native, Options, Ref, Telemetry}

  alias PartitionedBuffer.Processing.{
    AtLeastOnce,
    AtMostOnce,
    DeadLetter,
    Failure,
    Job,
    Journal,
    Reason,
    Table
  }

  @doc "Works on a flush as the options of its buffer ask for."
  @callback run(Job.t()) :: Job.t()

  # Marks the exit reason of a task whose work failed.
  @failed :"$partitioned_buffer_failed"

  @typedoc """
  `trigger` is the cause of the start. `resumed?`: the flush is a rest. `waited?`: the task waited
  for another one. `reason` is the cause of the last task's death; with one, this task only settles the leftover batch.
  """
  @type opts() :: [
          trigger: atom(),
          resumed?: boolean(),
          waited?: boolean(),
          reason: any(),
          callers: [pid()] | nil
        ]

  @doc """
  Processes the rest of a flush.
  """
  @spec process(Native.flush(), Ref.t(), opts()) :: :ok
  def process(flush, %Ref{} = ref, opts) do
    with %Job{} = job <- Job.new(flush, ref, opts) do
      Reason.in_task(job)
      run_or_die(job)
    end

    :ok
  end

  # OTP would log the death of the task with the terms of its reason, unless it is a shutdown.
  defp run_or_die(%Job{} = job) do
    run(job)
  catch
    kind, reason ->
      Failure.last_words(job.ref, kind, reason, __STACKTRACE__)
      exit({:shutdown, {@failed, exit_reason(kind, reason, __STACKTRACE__)}})
  end

  defp exit_reason(:error, reason, stacktrace), do: {reason, stacktrace}
  defp exit_reason(:throw, value, stacktrace), do: {{:nocatch, value}, stacktrace}
  defp exit_reason(:exit, reason, _stacktrace), do: reason

  @doc """
  The cause of the death of a task, by its exit reason.
  """
  @spec cause(any()) :: any()
  def cause({:shutdown, {@failed, reason}}), do: reason
  def cause(reason), do: reason

  @doc """
  Runs a job.
  """
  @spec run(Job.t()) :: :ok
  def run(%Job{} = job) do
    Telemetry.processing(job.ref, job.trigger, fn ->
      Journal.await_entries(job)
      way(job.options).run(job).delivered
    end)
  end

  defp way(%Options{way: way}) when way != nil, do: way
  defp way(%Options{processing_batch_size: :table}), do: Table
  defp way(%Options{} = options), do: if(Options.outcomes?(options), do: AtLeastOnce, else: AtMostOnce)

  @doc """
  Gives up all entries of a flush without another call of the processor.
  """
  @spec give_up(Native.flush(), Ref.t(), any(), death :: any()) :: :ok
  def give_up(flush, %Ref{} = ref, reason, death) do
    with %Job{} = job <- Job.new(flush, ref, resumed?: true, reason: death) do
      Reason.in_task(job)
      DeadLetter.bury_all(job, reason)
    end

    :ok
  end

  @doc """
  Counts and reports the batch of a task without outcomes that died for `reason`. Returns how many
  entries are lost. A task that died without a batch is reported with 0 entries, and nothing is
  reported without a reason and a loss. Others wait for the calling process, so it only sends the
  event.
  """
  @spec report_lost(Ref.t(), any()) :: non_neg_integer()
  def report_lost(%Ref{run: run, number: number} = ref, reason) do
    with %Options{} = options <- Ref.options(ref),
         false <- Options.outcomes?(options),
         lost when is_integer(lost) <- Native.lost(run, number) do
      # The death of a task that nobody monitored has no known reason.
      if lost > 0 or reason != nil, do: report(ref, reason, lost)
      lost
    else
      _over_or_outcomes -> 0
    end
  end

  # The task kept its last words itself.
  defp report(ref, {:shutdown, {@failed, reason}}, lost), do: emit(ref, reason, lost)

  defp report(ref, reason, lost) do
    reason = reason || :killed
    Failure.keep(ref, reason)
    emit(ref, reason, lost)
  end

  defp emit(ref, reason, lost),
    do: Telemetry.processing_failed(ref, reason, lost, &Emitter.event(ref.run, &1, &2, &3))
end
