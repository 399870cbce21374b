defmodule PartitionedBuffer.Processing.Failure do
  @moduledoc false
  # Reports failures: in the telemetry event, in `info/1`, and in log lines without keys and values.

  require Logger

  alias PartitionedBuffer.{Native, Ref, Telemetry}
  alias PartitionedBuffer.Processing.Outcome

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
    Native.put_error(run, %{reason: Outcome.summary(reason), system_time: time, partition: name})
    :ok
  end

  @doc """
  Logs an exception, throw or exit of a function of the user.
  """
  @spec log_exception(Ref.t(), String.t(), :error | :exit | :throw, any(), Exception.stacktrace()) :: :ok
  def log_exception(%Ref{} = ref, what, kind, reason, stacktrace) do
    Logger.error(
      "#{Ref.describe(ref)}: #{what} failed:\n#{banner(kind, reason)}\n#{format_stacktrace(stacktrace)}",
      Ref.log_metadata(ref)
    )
  end

  # The arguments in a stack trace or of an exited call may be entries, and so may a thrown term.
  defp format_stacktrace(stacktrace) do
    Exception.format_stacktrace(
      for {module, function, arity_or_args, location} <- stacktrace do
        arity = if is_list(arity_or_args), do: length(arity_or_args), else: arity_or_args
        {module, function, arity, location}
      end
    )
  end

  defp banner(:exit, {reason, {module, function, args}})
       when is_atom(module) and is_atom(function) and is_list(args),
       do: "** (exit) in #{Exception.format_mfa(module, function, length(args))}: #{Outcome.describe(reason)}"

  defp banner(:error, reason), do: Exception.format_banner(:error, reason)
  defp banner(kind, reason), do: "** " <> Outcome.describe(Outcome.reason(kind, reason))
end
