defmodule PartitionedBuffer.Processing.Failure do
  @moduledoc false
  # Reports failures: in the telemetry event, in `info/1`, and in log lines without keys and values.

  require Logger

  alias PartitionedBuffer.{Native, Ref, Telemetry}
  alias PartitionedBuffer.Processing.Reason

  @doc """
  Reports that a processor failed, and keeps the failure for `info/1`. `count` entries are lost, or
  will be retried.
  """
  @spec report(Ref.t(), any(), non_neg_integer()) :: :ok
  def report(%Ref{} = ref, reason, count) do
    keep(ref, reason)
    Telemetry.processing_failed(ref, reason, count)
  end

  @doc """
  Keeps a failure for `info/1`.
  """
  @spec keep(Ref.t(), any()) :: :ok
  def keep(%Ref{run: run, name: name}, reason) do
    time = System.system_time(:millisecond)
    Native.put_error(run, %{reason: Reason.summary(reason), system_time: time, partition: name})
    :ok
  end

  @doc """
  Logs and keeps the failure of which the calling task is about to die. Only the task can describe
  it with code of the user.
  """
  @spec last_words(Ref.t(), :error | :exit | :throw, any(), Exception.stacktrace()) :: :ok
  def last_words(%Ref{} = ref, kind, reason, stacktrace) do
    log_exception(ref, "processor", kind, reason, stacktrace)
    atom? = kind == :exit and is_atom(reason)
    keep(ref, if(atom?, do: reason, else: Reason.new(kind, reason, stacktrace)))
  end

  @doc """
  Warns of the first error that the processor of a partition returned in vain.
  """
  @spec ignored(Ref.t(), returned :: any()) :: :ok
  def ignored(%Ref{run: run, number: number} = ref, returned) do
    if error?(returned) and Native.first_warning(run, number) == true do
      Logger.warning(
        "#{Ref.describe(ref)}: the processor returned an error (#{Reason.describe(reason(returned))}), " <>
          "which is ignored without :max_attempts: the batch counts as processed",
        Ref.log_metadata(ref)
      )
    end

    :ok
  end

  defp error?(:error), do: true
  defp error?(returned), do: is_tuple(returned) and tuple_size(returned) > 0 and elem(returned, 0) == :error

  defp reason({:error, reason}), do: reason
  defp reason(returned), do: returned

  @doc """
  Logs an exception, throw or exit of a function of the user.
  """
  @spec log_exception(Ref.t(), String.t(), :error | :exit | :throw, any(), Exception.stacktrace()) :: :ok
  def log_exception(%Ref{} = ref, what, kind, reason, stacktrace) do
    description = Reason.describe(Reason.new(kind, reason, stacktrace))

    Logger.error(
      "#{Ref.describe(ref)}: #{what} failed:\n** #{description}\n#{format_stacktrace(stacktrace)}",
      Ref.log_metadata(ref)
    )
  end

  # The arguments in a stack trace may be entries, and the location may have a message about them.
  defp format_stacktrace(stacktrace) do
    Exception.format_stacktrace(
      for {module, function, arity_or_args, location} <- stacktrace do
        arity = if is_list(arity_or_args), do: length(arity_or_args), else: arity_or_args
        {module, function, arity, Keyword.take(location, [:file, :line])}
      end
    )
  end
end
