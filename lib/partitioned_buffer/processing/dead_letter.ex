defmodule PartitionedBuffer.Processing.DeadLetter do
  @moduledoc false
  # Gives up entries: passes them to `:dead_letter`, or logs that they are gone.

  require Logger

  alias PartitionedBuffer.{Native, Ref, Telemetry}
  alias PartitionedBuffer.Processing.{Batch, Failure, Job, Journal, Reason}

  # The result of a function of this package that took nothing, and the beginning of that of one whose
  # entries are in other hands.
  @unhandled :"$partitioned_buffer_unhandled"
  @elsewhere :"$partitioned_buffer_elsewhere"

  @doc """
  The result of a function for dead letters that stands for none.
  """
  @spec unhandled() :: atom()
  def unhandled, do: @unhandled

  @doc """
  The result of a function for dead letters of which another buffer has `count` entries. `result` is
  that for the others.
  """
  @spec elsewhere(non_neg_integer(), any()) :: tuple()
  def elsewhere(count, result), do: {@elsewhere, count, result}

  @doc """
  Passes the abandoned batch to `:dead_letter`, and ends it: all together, or in parts if a process
  died of its size.
  """
  @spec bury(Job.t(), any()) :: :ok
  def bury(%Job{flush: flush} = job, reason) do
    entries = Native.batch(flush)
    {handled?, elsewhere} = call(job, entries, reason)
    finish(job, length(entries) - elsewhere, reason, handled?)
  end

  @doc """
  Ends the abandoned batch of `count` entries without a call of `:dead_letter`.
  """
  @spec abandon(Job.t(), pos_integer(), any()) :: :ok
  def abandon(%Job{} = job, count, reason), do: finish(job, count, reason, false)

  @doc """
  Gives up all entries of a flush without another call of the processor.
  """
  @spec bury_all(Job.t(), any()) :: :ok
  def bury_all(%Job{ref: ref, flush: flush} = job, reason) do
    # The sink set the limit. The first death of a reader sets another one.
    if job.reason == nil, do: Native.forget_limit(ref.run, ref.number)

    case Native.inherit(flush, Job.death(job)) do
      nil ->
        bury_rest(job, reason)

      {:leased, count} when count > 1 and job.reason != nil ->
        Native.split(flush)
        bury_rest(job, reason)

      {:buried, count} when job.reason != nil ->
        abandon(job, count, reason)
        bury_rest(job, reason)

      _batch ->
        bury_batch(job, reason)
    end
  end

  defp bury_rest(job, reason) do
    batch = Batch.read(job, true)
    # A stop gives up the entries, and it ended a hold.
    leased? = is_integer(Native.lease(job.flush, true))
    if leased? and batch.count > 0, do: bury_batch(job, reason), else: :ok
  end

  defp bury_batch(job, reason) do
    Batch.give_back(job.flush, :all, true, 0, nil)
    bury(job, reason)
    bury_rest(job, reason)
  end

  defp call(%Job{functions: %{dead_letter: nil}}, _entries, _reason), do: {false, 0}

  defp call(job, entries, reason) do
    Journal.await_begin(job)
    Native.bury(job.flush)

    case Job.call(job.functions.dead_letter, [entries, reason]) do
      {@elsewhere, count, result} -> {result != @unhandled, count}
      result -> {result != @unhandled, 0}
    end
  catch
    kind, cause ->
      Failure.log_exception(job.ref, ":dead_letter", kind, cause, __STACKTRACE__)
      {false, 0}
  end

  # The log line comes first: a death in between must not give entries up in silence.
  defp finish(job, count, reason, handled?) do
    unless handled? or count == 0 do
      Logger.error(
        "#{Ref.describe(job.ref)} gives up #{count} entries: #{Reason.describe(reason)}",
        Ref.log_metadata(job.ref)
      )
    end

    left = Native.succeed(job.flush)
    if count > 0, do: Telemetry.dead_letter(job.ref, %{count: count, reason: reason, handled: handled?})
    if left > 0, do: bury(job, reason), else: :ok
  end
end
