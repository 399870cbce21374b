defmodule PartitionedBuffer.Observe.Info do
  @moduledoc false
  # Reads the numbers of a buffer, all of which are native: it calls no process of the buffer.

  alias PartitionedBuffer.Buffer.Lookup
  alias PartitionedBuffer.{Native, Routing, Telemetry}

  @totals [
    :written,
    :coalesced,
    :stale,
    :deleted,
    :superseded,
    :processed,
    :failed,
    :given_up,
    :refused,
    :dropped
  ]

  @doc """
  See `PartitionedBuffer.info/1`.
  """
  @spec info(atom()) :: PartitionedBuffer.info()
  def info(buffer) do
    count = Routing.partition_count!(buffer)
    run = Lookup.run!(buffer)
    # The buffer may end during the call.
    partitions = for number <- 0..(count - 1), do: {number, Native.info(run, number)}
    options = Lookup.options!(buffer)
    last_error = Native.last_error(run)
    if Native.run(buffer) == :not_running, do: Routing.not_running!(buffer)
    {shown, counted} = partitions |> Enum.map(&partition(buffer, &1)) |> Enum.unzip()
    sum(buffer, options, last_error, shown, counted)
  end

  defp sum(buffer, options, last_error, partitions, counted) do
    {_held, refused, dropped, waiting_writers} = bound(buffer)
    totals = Enum.zip_with(Enum.map(counted, & &1.totals), &Enum.sum/1)

    %{
      kind: options.kind,
      size: total(partitions, :size),
      in_flight: total(partitions, :in_flight),
      retrying: total(counted, :retrying),
      bytes: total(counted, :bytes),
      max_size: options.max_size,
      oldest_ms: counted |> Enum.map(& &1.oldest_ms) |> Enum.reject(&is_nil/1) |> Enum.max(fn -> nil end),
      waiting_writers: waiting_writers,
      last_error: last_error,
      totals: @totals |> Enum.zip(totals ++ [refused, dropped]) |> Map.new(),
      partitions: partitions
    }
  end

  defp bound(buffer) do
    with :not_running <- Native.bound(buffer), do: Routing.not_running!(buffer)
  end

  defp total(maps, key), do: maps |> Enum.map(& &1[key]) |> Enum.sum()

  defp partition(buffer, {_number, :not_running}), do: Routing.not_running!(buffer)

  defp partition(buffer, {number, {{size, in_flight, retrying, bytes}, oldest_ms, writes, ended, now}}) do
    {state, failures, next_ms} = state(now)

    {%{
       name: Routing.partition_name(buffer, number),
       size: size,
       in_flight: in_flight,
       state: state,
       failures: failures,
       next_ms: next_ms
     },
     %{
       retrying: retrying,
       bytes: bytes,
       oldest_ms: oldest_ms,
       totals: Tuple.to_list(writes) ++ Tuple.to_list(ended)
     }}
  end

  # The next call of the processor is at the end of a pause, or else at the next tick.
  defp state({closed?, task?, failures, _failing_ms, pause_ms, next}) do
    cond do
      closed? -> {:closed, failures, nil}
      task? -> {:processing, failures, left(next)}
      pause_ms != nil -> {:paused, failures, pause_ms}
      true -> {:idle, failures, left(next)}
    end
  end

  defp left(nil), do: nil
  defp left(next), do: max(next - System.monotonic_time(:millisecond), 0)

  @doc """
  See `PartitionedBuffer.emit_info/1`.
  """
  @spec emit(atom()) :: :ok
  def emit(:all), do: Enum.each(Native.buffers(), &emit/1)

  def emit(buffer) do
    if info = info_if_running(buffer) do
      measurements =
        info |> Map.take([:size, :in_flight, :retrying, :bytes, :waiting_writers]) |> Map.merge(info.totals)

      bound = if info.max_size == :infinity, do: %{}, else: %{max_size: info.max_size}
      measurements = Map.merge(Map.put(measurements, :oldest_ms, info.oldest_ms || 0), bound)
      Telemetry.execute_of_buffer([:info], measurements, %{buffer: buffer, kind: info.kind})
    end

    :ok
  end

  defp info_if_running(buffer) do
    info(buffer)
  rescue
    _not_running in [ArgumentError, RuntimeError] -> nil
  end
end
