defmodule PartitionedBuffer.Processing.Reason do
  @moduledoc false
  # The reasons of failures, and their descriptions for an operator: in log lines, in `info/1` and on
  # the page of `watch/2`.
  #
  # The function `:format_reason` and the messages of exceptions are code of the user. It runs only
  # for a task, which `in_task/1` marks. Elsewhere, for example in the process of a partition, a
  # description does without.

  require Logger

  alias PartitionedBuffer.Processing.{Guarded, Job, ReasonText}
  alias PartitionedBuffer.Ref

  # Keys in the dictionary of a task: its job, and its last reason with the description. A crash
  # report shows the dictionary, so functions hide both.
  @job :"$partitioned_buffer_job"
  @last :"$partitioned_buffer_reason"

  @doc """
  The failure reason of an exception, exit or throw.
  """
  @spec new(:error | :exit | :throw, any(), Exception.stacktrace()) :: any()
  defdelegate new(kind, reason, stacktrace), to: ReasonText

  @doc """
  Marks the calling process as the task of a job.
  """
  @spec in_task(Job.t()) :: :ok
  def in_task(%Job{} = job) do
    Process.put(@job, fn -> job end)
    :ok
  end

  @doc """
  A reason that shows no keys and values: an atom, or its description.
  """
  @spec summary(any()) :: atom() | String.t()
  def summary(reason) when is_atom(reason), do: reason
  def summary(reason), do: describe(reason)

  @doc """
  The description of a reason: in a task that of `:format_reason`, if the buffer has it.
  """
  @spec describe(any()) :: String.t()
  def describe(reason) do
    if job = Process.get(@job), do: describe_once(job.(), reason), else: ReasonText.text(reason)
  end

  # Several log lines may be about one failure.
  defp describe_once(job, reason) do
    {last, description} = Process.get(@last) || {nil, nil}

    if last != nil and last.() === reason do
      description
    else
      description = describe(job, reason)
      Process.put(@last, {fn -> reason end, description})
      description
    end
  end

  defp describe(%Job{functions: %{format_reason: nil}} = job, reason), do: guarded_text(job, reason)

  defp describe(%Job{functions: %{format_reason: function}} = job, reason) do
    case Guarded.call(job, function, [reason]) do
      {:ok, text} when is_binary(text) ->
        if String.valid?(text), do: text, else: fall_back(job, reason, "its text is not valid UTF-8")

      {:ok, _no_text} ->
        fall_back(job, reason, "it returned no text")

      {:error, failure} ->
        fall_back(job, reason, failure)
    end
  end

  defp fall_back(%Job{ref: ref} = job, reason, failure) do
    Logger.error(
      "the function :format_reason of buffer #{inspect(ref.buffer)} failed, so the usual text is used: #{failure}",
      Ref.log_metadata(ref)
    )

    guarded_text(job, reason)
  end

  # A message may hang or raise.
  defp guarded_text(_job, reason) when is_atom(reason), do: ReasonText.text(reason)

  defp guarded_text(job, reason) do
    case Guarded.call(job, &ReasonText.text(&1, fn %name{} = error -> name.message(error) end), [reason]) do
      {:ok, text} -> text
      {:error, _failure} -> ReasonText.text(reason)
    end
  end
end
