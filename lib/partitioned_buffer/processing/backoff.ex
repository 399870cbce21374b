defmodule PartitionedBuffer.Processing.Backoff do
  @moduledoc false
  # Chooses the pause of a partition after a failure.

  require Logger

  alias PartitionedBuffer.{Native, Options, Ref}
  alias PartitionedBuffer.Processing.{Guarded, Job}

  # The longest timeout of `receive`.
  @max_ms 4_294_967_295

  # Fallback pause when the function of the user fails.
  @fallback_ms 30_000

  @doc """
  The pause in milliseconds after another failure. A stop takes the shortest pause.
  """
  @spec pause(Job.t(), failures_before :: non_neg_integer()) :: non_neg_integer()
  def pause(%Job{trigger: :stop, options: %Options{retry_backoff_ms: {min, _max}}}, _failures), do: min

  def pause(%Job{options: %Options{retry_backoff_ms: {min, max}}}, failures) do
    longest = min(max, min * 2 ** min(failures, 32))
    half = div(longest, 2)
    longest - half + :rand.uniform(half + 1) - 1
  end

  def pause(%Job{trigger: :stop} = job, _failures), do: call(job, 1)
  def pause(%Job{} = job, failures), do: call(job, failures + 1)

  @doc """
  The shortest pause in milliseconds; `:infinity` if a function chooses it.
  """
  @spec shortest(Options.t() | nil) :: timeout()
  def shortest(%Options{retry_backoff_ms: {min, _max}}), do: min
  def shortest(_function_or_over), do: :infinity

  @doc """
  The failures in a row of the partition.
  """
  @spec failures(Job.t()) :: non_neg_integer()
  def failures(%Job{ref: ref}) do
    case Native.learned(ref.run, ref.number) do
      {failures, _failing_ms, _pause_ms, _failed} -> failures
      :not_running -> 0
    end
  end

  defp call(%Job{functions: %{retry_backoff: function}} = job, failures) do
    case Guarded.call(job, function, [failures]) do
      {:ok, ms} when is_integer(ms) and ms in 0..@max_ms ->
        ms

      {:ok, other} ->
        fall_back(job, "expected an integer from 0 to #{@max_ms} (milliseconds), got: #{inspect(other)}")

      {:error, failure} ->
        fall_back(job, failure)
    end
  end

  defp fall_back(%Job{ref: ref, options: options}, failure) do
    Logger.error(
      "the function :retry_backoff_ms of buffer #{inspect(options.name)} failed, so the pause is #{@fallback_ms} ms: #{failure}",
      Ref.log_metadata(ref)
    )

    @fallback_ms
  end
end
