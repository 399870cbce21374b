defmodule PartitionedBuffer.Processing do
  @moduledoc false
  # Processes a flush, in a task: calls the processor with one batch after the other. A buffer
  # without `:max_attempts` gives away each batch before the call; a buffer with `:max_attempts`
  # keeps the batch until its outcome.

  alias PartitionedBuffer.{Native, Options, Ref, Telemetry}
  alias PartitionedBuffer.Processing.{AtLeastOnce, AtMostOnce, DeadLetter, Failure, Job, Table}

  @typedoc """
  `trigger` is the cause of the start. `resumed?`: the flush is a rest. `reason` is the cause of the
  last task's death; with one, this task only settles the leftover batch.
  """
  @type opts() :: [trigger: atom(), resumed?: boolean(), reason: any(), callers: [pid()] | nil]

  @doc """
  Processes the rest of a flush.
  """
  @spec process(Native.flush(), Ref.t(), opts()) :: :ok
  def process(flush, %Ref{} = ref, opts) do
    with %Job{} = job <- Job.new(flush, ref, opts), do: run(job)
    :ok
  end

  @doc """
  Runs a job.
  """
  @spec run(Job.t()) :: :ok
  def run(%Job{} = job),
    do: Telemetry.processing(job.ref, job.trigger, fn -> way(job.options).run(job).delivered end)

  defp way(%Options{processing_batch_size: :table}), do: Table
  defp way(%Options{} = options), do: if(Options.outcomes?(options), do: AtLeastOnce, else: AtMostOnce)

  @doc """
  Gives up all entries of a flush without another call of the processor.
  """
  @spec give_up(Native.flush(), Ref.t(), any()) :: :ok
  def give_up(flush, %Ref{} = ref, reason) do
    with %Job{} = job <- Job.new(flush, ref, resumed?: true), do: DeadLetter.bury_all(job, reason)
    :ok
  end

  @doc """
  Counts and reports the batch of a task without outcomes that died for `reason`. Returns how many
  entries are lost. A task that died without a batch is reported with 0 entries, and nothing is
  reported without a reason and a loss.
  """
  @spec report_lost(Ref.t(), any()) :: non_neg_integer()
  def report_lost(%Ref{run: run, number: number} = ref, reason) do
    with %Options{} = options <- Ref.options(ref),
         false <- Options.outcomes?(options),
         lost when is_integer(lost) <- Native.lost(run, number) do
      # The death of a task that nobody monitored has no known reason.
      if lost > 0 or reason != nil, do: Failure.report(ref, reason || :killed, lost)
      lost
    else
      _over_or_outcomes -> 0
    end
  end
end
