defmodule PartitionedBuffer.Options.Summary do
  @moduledoc false
  # What is in force in a buffer, in a sentence for its log.

  alias PartitionedBuffer.Options

  @doc """
  The level and the text of the line of a start.
  """
  @spec line(Options.t()) :: {:debug | :info, String.t()}
  def line(%Options{} = options) do
    level = if Options.outcomes?(options), do: :debug, else: :info
    {level, "buffer #{inspect(options.name)} is a #{options.kind} that #{Enum.join(parts(options), "; ")}"}
  end

  defp parts(options),
    do:
      Enum.reject(
        [flushes(options), retries(options), bound(options), stop(options) | more(options)],
        &is_nil/1
      )

  defp flushes(options) do
    "flushes #{interval(options)} from #{count(options.partitions, "partition")}, in batches of #{batch(options)}"
  end

  defp interval(%Options{processing_interval_ms: :infinity}), do: "on request"
  defp interval(%Options{processing_interval_ms: ms}), do: "every #{ms} ms"

  defp batch(%Options{processing_batch_size: size}) when is_integer(size), do: size
  defp batch(%Options{processing_batch_size: :function}), do: "a size that a function chooses"
  defp batch(%Options{processing_batch_size: :table}), do: "all, as a table"

  defp retries(%Options{max_attempts: nil}),
    do: "without :max_attempts, so a batch is lost if the processor fails"

  defp retries(%Options{max_attempts: :infinity} = options), do: "retries without end" <> dead_letter(options)

  defp retries(%Options{max_attempts: count} = options),
    do: "at most #{count(count, "attempt")}" <> dead_letter(options)

  defp dead_letter(%Options{dead_letter?: true}), do: ", then :dead_letter"
  defp dead_letter(_options), do: ", without :dead_letter"

  defp bound(%Options{max_size: :infinity, max_bytes: :infinity}), do: "no bound"
  defp bound(%Options{max_bytes: :infinity} = options), do: "at most #{options.max_size} entries"
  defp bound(%Options{max_size: :infinity} = options), do: "at most #{options.max_bytes} bytes"

  defp bound(options), do: "at most #{options.max_size} entries and #{options.max_bytes} bytes"

  defp stop(%Options{drain_timeout_ms: :infinity}), do: "a stop has no time limit"
  defp stop(%Options{drain_timeout_ms: ms}), do: "a stop takes at most #{ms} ms"

  defp more(options) do
    [
      options.journal && "with a journal in #{inspect(options.journal.dir)}",
      options.cluster && "with the other nodes of its cluster"
    ]
  end

  defp count(1, what), do: "1 #{what}"
  defp count(count, what), do: "#{count} #{what}s"
end
