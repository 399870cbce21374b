defmodule PartitionedBuffer.Telemetry do
  @moduledoc false
  # Emits the events that `PartitionedBuffer` documents. Each event looks whether `:telemetry` is loaded, so an app can add it
  # without compiling this package again. No handler can be attached before `:telemetry` is loaded, so none misses an event.

  @compile {:no_warn_undefined, :telemetry}

  @doc """
  Emits the event `[:partitioned_buffer, :partition | suffix]`.
  """
  @spec execute([atom()], map(), map()) :: :ok
  def execute(suffix, measurements, metadata) do
    if :erlang.function_exported(:telemetry, :execute, 3) do
      :telemetry.execute([:partitioned_buffer, :partition | suffix], measurements, metadata)
    end

    :ok
  end

  @doc """
  Emits `:start` before and `:stop` or `:exception` after `fun`, which returns more measurements for `:stop`.
  """
  @spec span([atom()], map(), (() -> map())) :: :ok
  def span(suffix, metadata, fun) do
    metadata = Map.put(metadata, :telemetry_span_context, make_ref())
    started = System.monotonic_time()
    execute(suffix ++ [:start], %{system_time: System.system_time(), monotonic_time: started}, metadata)

    try do
      fun.()
    else
      measurements -> execute(suffix ++ [:stop], Map.merge(since(started), measurements), metadata)
    catch
      kind, reason ->
        failure = %{kind: kind, reason: reason, stacktrace: __STACKTRACE__}
        execute(suffix ++ [:exception], since(started), Map.merge(metadata, failure))
        :erlang.raise(kind, reason, __STACKTRACE__)
    end
  end

  defp since(started) do
    now = System.monotonic_time()
    %{duration: now - started, monotonic_time: now}
  end
end
