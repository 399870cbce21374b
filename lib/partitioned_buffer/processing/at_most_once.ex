defmodule PartitionedBuffer.Processing.AtMostOnce do
  @moduledoc false
  # Processes a flush of a buffer without `:max_attempts`. A batch is claimed just before the call:
  # no batch is given to a processor twice, and if the task dies, the partition still has the
  # unclaimed batches.

  alias PartitionedBuffer.Native
  alias PartitionedBuffer.Processing.{Batch, DeadLetter, Failure, Job}

  @doc """
  Calls the processor with each batch.
  """
  @spec run(Job.t()) :: Job.t()
  def run(%Job{} = job) do
    # The flush may come from a run with outcomes.
    if job.resumed?, do: settle_left(job)
    deliver(job)
  end

  @doc """
  Settles the leftover batch of a task with outcomes. Reports a batch of entries given up, since
  this run has no `:dead_letter`.
  """
  @spec settle_left(Job.t()) :: :ok
  def settle_left(%Job{flush: flush} = job) do
    case Native.inherit(flush, nil) do
      nil ->
        :ok

      {:leased, _count} ->
        {_retried, _superseded, 0} = Batch.give_back(flush, :all, false, :infinity, nil)
        :ok

      {_given_up_or_buried, count} ->
        DeadLetter.abandon(job, count, :killed)
    end
  end

  # Reading the next batch confirms the call before. A batch without a confirmed call is lost.
  defp deliver(%Job{} = job) do
    # Each entry was written, so each is given to the processor, also one that was replaced since.
    batch = Batch.claim_next(job)

    cond do
      batch.count == 0 -> job
      # The next task reads the batch again.
      batch.begun == :on_hold -> job
      batch.begun -> job |> call(batch) |> deliver()
      # Another task began a batch since the read.
      true -> deliver(job)
    end
  end

  # The function `:processing_batch_size` failed with the entry, which is lost.
  defp call(_job, %Batch{failure: {:raised, kind, reason, stacktrace}}),
    do: :erlang.raise(kind, reason, stacktrace)

  defp call(job, %Batch{entries: entries, count: count}) do
    Failure.ignored(job.ref, Job.call(job.functions.processor, [entries]))
    Job.delivered(job, count)
  end
end
