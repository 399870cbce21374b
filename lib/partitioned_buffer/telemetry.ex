defmodule PartitionedBuffer.Telemetry do
  @moduledoc false
  # Emits the events that `PartitionedBuffer` documents. Each call checks whether `:telemetry` is
  # loaded, so an app can add it without compiling this package again. No handler can be attached
  # before `:telemetry` is loaded, so no handler misses an event.

  alias PartitionedBuffer.Processing.Outcome
  alias PartitionedBuffer.Ref

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
    if loaded?(), do: :telemetry.execute([:partitioned_buffer | suffix], measurements, metadata)
    :ok
  end

  defp loaded?, do: :erlang.function_exported(:telemetry, :execute, 3)

  @doc """
  Emits the events `processing` around `fun`, which returns how many entries were processed.
  """
  @spec processing(Ref.t(), atom(), (() -> non_neg_integer())) :: :ok
  def processing(%Ref{} = ref, trigger, fun) do
    metadata = ref |> Ref.metadata() |> Map.put(:trigger, trigger)

    span([:processing], %{}, metadata, %{}, fn ->
      {:ok, %{size: fun.()}, %{}}
    end)
  end

  @doc """
  Emits the events `batch` around a call of the processor with a batch. `fun` returns the outcome.
  """
  @spec batch(Ref.t(), pos_integer(), pos_integer(), (() -> Outcome.t())) :: Outcome.t()
  def batch(%Ref{} = ref, size, attempt, fun) do
    # The terms of the events take longer than a small batch.
    if loaded?(), do: span_of_batch(ref, %{size: size}, attempt, fun), else: fun.()
  end

  defp span_of_batch(ref, size, attempt, fun) do
    metadata = ref |> Ref.metadata() |> Map.put(:attempt, attempt)

    span([:batch], size, metadata, %{outcome: :error}, fn ->
      outcome = fun.()
      {outcome, size, outcome_metadata(outcome)}
    end)
  end

  defp outcome_metadata(:ok), do: %{outcome: :ok, reason: nil}
  defp outcome_metadata({:snooze, _ms, _scope}), do: %{outcome: :snooze, reason: nil}
  # Some entries succeeded.
  defp outcome_metadata({:error, reason, [_ | _]}), do: %{outcome: :error, reason: reason}
  defp outcome_metadata({outcome, reason, _numbers}), do: %{outcome: outcome, reason: reason}

  @doc """
  Emits the event `processing_failed`, by `emit`. `count` entries are lost, or will be retried.
  """
  @spec processing_failed(Ref.t(), any(), non_neg_integer(), ([atom()], map(), map() -> :ok)) :: :ok
  def processing_failed(%Ref{} = ref, reason, count, emit \\ &execute_of_buffer/3) do
    metadata = ref |> Ref.metadata() |> Map.put(:reason, reason)
    measurements = %{system_time: System.system_time(), count: count}
    emit.([:partition, :processing_failed], measurements, metadata)
  end

  @doc """
  Emits the event `split`.
  """
  @spec split(Ref.t(), map()) :: :ok
  def split(%Ref{} = ref, event) do
    {measurements, metadata} = Map.split(event, [:count, :limit])
    execute([:split], measurements, Map.merge(Ref.metadata(ref), metadata))
  end

  @doc """
  Emits the event `retry`.
  """
  @spec retry(Ref.t(), map()) :: :ok
  def retry(%Ref{} = ref, event) do
    {measurements, metadata} = Map.split(event, [:count, :superseded, :delay])
    execute([:retry], measurements, Map.merge(Ref.metadata(ref), metadata))
  end

  @doc """
  Emits the event `dead_letter`.
  """
  @spec dead_letter(Ref.t(), map()) :: :ok
  def dead_letter(%Ref{} = ref, event) do
    {measurements, metadata} = Map.split(event, [:count])
    execute([:dead_letter], measurements, Map.merge(Ref.metadata(ref), metadata))
  end

  @doc """
  Emits the events `forward` around a call of another member, or of this one. `fun` returns the
  outcome.
  """
  @spec forward(Ref.t(), node(), list(), (() -> outcome)) :: outcome when outcome: atom()
  def forward(%Ref{} = ref, to, entries, fun) do
    if loaded?() do
      metadata = %{buffer: ref.buffer, slot: ref.number, to: to}
      measurements = %{size: length(entries), bytes: :erlang.external_size(entries)}
      started = System.monotonic_time()
      execute_of_buffer([:cluster, :forward, :start], measurements, metadata)
      outcome = fun.()
      stop = Map.put(measurements, :duration, System.monotonic_time() - started)
      execute_of_buffer([:cluster, :forward, :stop], stop, Map.put(metadata, :outcome, outcome))
      outcome
    else
      fun.()
    end
  end

  # `fun` returns its result, and measurements and metadata for `:stop`. `failed` is metadata for
  # `:exception`.
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
