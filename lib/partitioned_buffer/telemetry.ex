defmodule PartitionedBuffer.Telemetry do
  @moduledoc false
  # Emits the events that `PartitionedBuffer` documents. Each event looks whether `:telemetry` is loaded, so an app can add it
  # without compiling this package again. No handler can be attached before `:telemetry` is loaded, so none misses an event.

  alias PartitionedBuffer.{Identity, Outcome}

  @compile {:no_warn_undefined, :telemetry}

  @doc """
  Emits the event `[:partitioned_buffer, :partition | suffix]`.
  """
  @spec execute([atom()], map(), map()) :: :ok
  def execute(suffix, measurements, metadata),
    do: execute_of_buffer([:partition | suffix], measurements, metadata)

  @doc """
  Emits the event `[:partitioned_buffer | suffix]`.
  """
  @spec execute_of_buffer([atom()], map(), map()) :: :ok
  def execute_of_buffer(suffix, measurements, metadata) do
    if :erlang.function_exported(:telemetry, :execute, 3),
      do: :telemetry.execute([:partitioned_buffer | suffix], measurements, metadata)

    :ok
  end

  @doc """
  Emits the events `processing` around `fun`, which returns how many entries were processed, and a result.
  """
  @spec processing(Identity.t(), atom(), (() -> {non_neg_integer(), result})) :: result when result: var
  def processing(%Identity{} = identity, trigger, fun) do
    metadata = identity |> Identity.metadata() |> Map.put(:trigger, trigger)

    span([:processing], %{}, metadata, %{}, fn ->
      {size, result} = fun.()
      {result, %{size: size}, %{}}
    end)
  end

  @doc """
  Emits the events `batch` around a call of the processor with a batch. `fun` returns the outcome.
  """
  @spec batch(Identity.t(), pos_integer(), pos_integer(), (() -> Outcome.t())) :: Outcome.t()
  def batch(%Identity{} = identity, size, attempt, fun) do
    size = %{size: size}
    metadata = identity |> Identity.metadata() |> Map.put(:attempt, attempt)

    span([:batch], size, metadata, %{outcome: :error}, fn ->
      outcome = fun.()
      {outcome, size, outcome_metadata(outcome)}
    end)
  end

  defp outcome_metadata(:ok), do: %{outcome: :ok, reason: nil}
  defp outcome_metadata({:snooze, _ms}), do: %{outcome: :snooze, reason: nil}
  defp outcome_metadata({outcome, reason, _numbers}), do: %{outcome: outcome, reason: reason}

  @doc """
  Emits the event `processing_failed`. `count` entries are lost, or will be retried.
  """
  @spec processing_failed(Identity.t(), any(), non_neg_integer()) :: :ok
  def processing_failed(%Identity{} = identity, reason, count) do
    metadata = identity |> Identity.metadata() |> Map.put(:reason, reason)
    execute([:processing_failed], %{system_time: System.system_time(), count: count}, metadata)
  end

  @doc """
  Emits the event `retry`.
  """
  @spec retry(Identity.t(), map()) :: :ok
  def retry(%Identity{} = identity, event) do
    {measurements, metadata} = Map.split(event, [:count, :superseded, :delay])
    execute([:retry], measurements, Map.merge(Identity.metadata(identity), metadata))
  end

  @doc """
  Emits the event `dead_letter`.
  """
  @spec dead_letter(Identity.t(), map()) :: :ok
  def dead_letter(%Identity{} = identity, event) do
    {measurements, metadata} = Map.split(event, [:count])
    execute([:dead_letter], measurements, Map.merge(Identity.metadata(identity), metadata))
  end

  # `fun` returns its result, and measurements and metadata for `:stop`. `failed` is metadata for `:exception`.
  defp span(suffix, measurements, metadata, failed, fun) do
    metadata = Map.put(metadata, :telemetry_span_context, make_ref())
    started = System.monotonic_time()
    times = %{system_time: System.system_time(), monotonic_time: started}
    execute(suffix ++ [:start], Map.merge(measurements, times), metadata)

    try do
      fun.()
    else
      {result, more, outcome} ->
        execute(suffix ++ [:stop], Map.merge(since(started), more), Map.merge(metadata, outcome))
        result
    catch
      kind, reason ->
        failure = Map.merge(failed, %{kind: kind, reason: reason, stacktrace: __STACKTRACE__})
        execute(suffix ++ [:exception], Map.merge(since(started), measurements), Map.merge(metadata, failure))
        :erlang.raise(kind, reason, __STACKTRACE__)
    end
  end

  defp since(started) do
    now = System.monotonic_time()
    %{duration: now - started, monotonic_time: now}
  end
end
