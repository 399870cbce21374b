defmodule PartitionedBuffer.Processing.Batch do
  @moduledoc false
  # A batch: the entries of one call of the processor.

  alias PartitionedBuffer.{Native, Options}
  alias PartitionedBuffer.Processing.Job

  # More entries than a flush can have.
  @max_size 4_294_967_296

  # The most entries of a batch that a function of the user ends.
  @max_size_of_function 10_000

  @bad_result "the function :processing_batch_size must return {:cont, acc} or {:emit, acc}"

  # The entries that are read for the function at first. The function often ends the batch before,
  # and the others are read again for the next one.
  @first 32

  @enforce_keys [:entries, :count]
  defstruct @enforce_keys ++ [:begun, :failure]

  @typedoc """
  `begun` is the result of its claim or lease, if there was one. With a `failure` the function
  `:processing_batch_size` failed with the only entry.
  """
  @type t() :: %__MODULE__{
          entries: list(),
          count: non_neg_integer(),
          begun: Native.leased() | boolean() | nil,
          failure: {:raised, :error | :exit | :throw, any(), Exception.stacktrace()} | nil
        }

  @doc """
  Reads the next batch. It has no entries at the end of the flush. With `superseded?` it leaves out
  entries for whose keys newer ones wait.
  """
  @spec read(Job.t(), superseded? :: boolean()) :: t()
  def read(%Job{flush: flush} = job, superseded?) do
    case ending(job) do
      nil ->
        {entries, count} = read(flush, 0, size(job), superseded?)
        %__MODULE__{entries: entries, count: count}

      {acc, function, most} ->
        read_for({acc, function}, flush, superseded?, {[], 0, min(@first, most), most})
    end
  end

  # The function that ends a batch, with its accumulator and the most entries.
  defp ending(%Job{options: %Options{processing_batch_size: :function}} = job) do
    {acc, function} = job.functions.batch
    {acc, function, @max_size_of_function}
  end

  defp ending(%Job{options: %Options{processing_batch_bytes: :infinity}}), do: nil

  defp ending(%Job{options: %Options{processing_batch_bytes: bytes}} = job),
    do: {0, {:bytes, bytes}, min(size(job), @max_size_of_function)}

  @doc """
  Reads the next batch, and claims it.
  """
  @spec claim_next(Job.t()) :: t()
  def claim_next(%Job{flush: flush} = job) do
    if whole?(job) do
      claim_next(job, 0)
    else
      # Each entry was written, so each is given to the processor, also one that was replaced since.
      %__MODULE__{} = batch = read(job, false)
      %__MODULE__{batch | begun: Native.claim(flush)}
    end
  end

  # Whether one native call may read a batch and begin its call of the processor.
  defp whole?(%Job{options: %Options{processing_batch_size: size, processing_batch_bytes: bytes}}),
    do: size != :function and bytes == :infinity

  defp claim_next(job, length) do
    case Native.claim_next(job.flush, length, size(job)) do
      {entries, length, :more} -> more(entries, claim_next(job, length))
      {entries, length, claimed} -> %__MODULE__{entries: entries, count: length, begun: claimed}
    end
  end

  @doc """
  Reads the next batch, and leases it. Before that it ends the batch with which the processor
  `succeeded?`.
  """
  @spec lease_next(Job.t(), succeeded? :: boolean()) :: t()
  def lease_next(%Job{flush: flush} = job, succeeded?) do
    if whole?(job) do
      lease_next(job, 0, succeeded?)
    else
      if succeeded?, do: Native.succeed(flush)
      %__MODULE__{} = batch = read(job, job.resumed?)
      %__MODULE__{batch | begun: Native.lease(flush, Job.in_pause?(job.trigger))}
    end
  end

  defp lease_next(job, length, succeeded?) do
    in_pause? = Job.in_pause?(job.trigger)

    case Native.lease_next(job.flush, length, size(job), job.resumed?, in_pause?, succeeded?) do
      {entries, length, :more} -> more(entries, lease_next(job, length, false))
      {entries, length, leased} -> %__MODULE__{entries: entries, count: length, begun: leased}
    end
  end

  # The time of a call may be up before the batch is complete, or its call begins.
  defp more(entries, %__MODULE__{} = batch), do: %__MODULE__{batch | entries: entries ++ batch.entries}

  defp size(%Job{options: options}), do: min(options.processing_batch_size, @max_size)

  # `before` has the entries of the batch so far, in reverse order.
  defp read_for({acc, function}, flush, superseded?, {before, count, size, most}) do
    {entries, total} = read(flush, count, size, superseded?)

    case take(entries, acc, function, before, count) do
      {:cont, _acc, taken} when total == count or size == most ->
        %__MODULE__{entries: Enum.reverse(taken), count: total}

      {:cont, acc, taken} ->
        read_for({acc, function}, flush, superseded?, {taken, total, min(2 * size, most), most})

      {:emit, taken, count} ->
        Native.shorten(flush, count)
        %__MODULE__{entries: Enum.reverse(taken), count: count}

      {:failed, entry, failure} ->
        Native.shorten(flush, 1)
        %__MODULE__{entries: [entry], count: 1, failure: failure}
    end
  end

  defp take([], acc, _function, taken, _count), do: {:cont, acc, taken}

  defp take([entry | entries], acc, function, taken, count) do
    case call(function, entry, acc) do
      {:cont, acc} -> take(entries, acc, function, [entry | taken], count + 1)
      {:emit, _acc} -> {:emit, [entry | taken], count + 1}
      :exceeds when count == 0 -> {:emit, [entry], 1}
      :exceeds -> {:emit, taken, count}
      {:raised, _kind, _reason, _stacktrace} = failure when count == 0 -> {:failed, entry, failure}
      # The entry is the first one of the next batch.
      {:raised, _kind, _reason, _stacktrace} -> {:emit, taken, count}
    end
  end

  # An entry that is larger than the limit is alone.
  defp call({:bytes, most}, entry, bytes) do
    bytes = bytes + :erlang.external_size(entry)
    if bytes <= most, do: {:cont, bytes}, else: :exceeds
  end

  defp call(function, entry, acc) do
    case function.(entry, acc) do
      {next, _acc} = result when next in [:cont, :emit] -> result
      _other -> {:raised, :error, %RuntimeError{message: @bad_result}, []}
    end
  catch
    kind, reason -> {:raised, kind, reason, __STACKTRACE__}
  end

  # One call of the NIF may read fewer than `size` entries, even none, when its time is up.
  defp read(flush, length, size, superseded?) do
    case Native.read(flush, length, size, superseded?) do
      {entries, length, true} ->
        {entries, length}

      {entries, length, false} ->
        {more, length} = read(flush, length, size, superseded?)
        {entries ++ more, length}
    end
  end

  @doc """
  Ends a leased batch with failed entries, given by their numbers. A cancelled entry has the number
  `-1 - number`. Returns how many entries will be
  retried, how many are superseded or deleted, and how many are given up. The entries given up
  become the batch.

  With `counted?` the failure counts as an attempt, and as a failure in a row if the partition
  pauses. The partition pauses for `pause_ms`, unless that is nil.
  """
  @spec give_back(
          Native.flush(),
          [integer()] | :all,
          boolean(),
          non_neg_integer() | :infinity,
          non_neg_integer() | nil
        ) :: {non_neg_integer(), non_neg_integer(), non_neg_integer()}
  def give_back(flush, failed, counted?, max_attempts, pause_ms) do
    case Native.give_back(flush, failed, counted?, max_attempts, pause_ms) do
      {:done, counts} ->
        counts

      {:more, rest, {retried, superseded, given_up}} ->
        {more_retried, more_superseded, more_given_up} =
          give_back(flush, rest, counted?, max_attempts, pause_ms)

        {retried + more_retried, superseded + more_superseded, given_up + more_given_up}
    end
  end
end
