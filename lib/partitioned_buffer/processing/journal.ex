defmodule PartitionedBuffer.Processing.Journal do
  @moduledoc false
  # What a task of a buffer with a journal waits for: nothing comes to the sink that the journal does
  # not have, and a call of the processor counts although it ends the VM.
  #
  # A disk that hangs or fails does not stop the delivery. The task goes on after a while then.

  alias PartitionedBuffer.{Native, Options, Ref}
  alias PartitionedBuffer.Processing.Job

  # The time, in milliseconds, that a call of the processor waits until the journal has its beginning.
  @begin_ms 100

  # The task says in these intervals, in milliseconds, that it goes on: a call of the processor is limited, not
  # this.
  @touch_ms 250

  @doc """
  Waits until the journal has the entries of the flush and all outcomes before.
  """
  @spec await_entries(Job.t()) :: :ok
  def await_entries(%Job{options: %Options{journal: nil}}), do: :ok

  def await_entries(%Job{options: %Options{journal: journal}} = job),
    do: await(job, if(journal.sync_ms == :infinity, do: :written, else: :synced), journal.max_lag_ms)

  @doc """
  Waits until the journal has the beginning of the call that follows.
  """
  @spec await_begin(Job.t()) :: :ok
  def await_begin(%Job{options: %Options{journal: nil}}), do: :ok
  def await_begin(%Job{} = job), do: await(job, :written, @begin_ms)

  defp await(%Job{ref: %Ref{run: run}} = job, level, ms) do
    ref = make_ref()

    if Native.journal_wait(run, level, ref) == :ok,
      do: receive_answer(job, ref, System.monotonic_time(:millisecond) + ms)

    :ok
  end

  # An answer that comes too late stays in the mailbox of the task, which soon ends.
  defp receive_answer(job, ref, until) do
    left = max(until - System.monotonic_time(:millisecond), 0)

    receive do
      {^ref, _written_or_failed} -> :ok
    after
      min(left, @touch_ms) ->
        Native.touch(job.flush)
        if left > @touch_ms, do: receive_answer(job, ref, until), else: :ok
    end
  end
end
