defmodule PartitionedBuffer.Info do
  @moduledoc false
  # What a buffer holds, how late it is, and what it has counted. Nothing of it asks a process of the buffer: the counts are
  # native, and the partitions keep the rest in the settings of the buffer.

  alias PartitionedBuffer.{Identity, Native, Routing, Running, Supervisor, Telemetry}

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

    case Supervisor.settings(buffer) do
      # The buffer has ended during the call.
      nil -> Routing.not_running!(buffer)
      settings -> info(buffer, count, settings)
    end
  rescue
    error in [ArgumentError, MatchError] ->
      # The buffer has ended during the call, or the error says so itself.
      if Native.status(buffer) == :not_running,
        do: Routing.not_running!(buffer),
        else: reraise(error, __STACKTRACE__)
  end

  defp info(buffer, count, settings) do
    {partitions, counted} = Enum.unzip(for number <- 0..(count - 1), do: partition(buffer, number, settings))

    sum(buffer, settings, partitions, counted)
  end

  defp sum(buffer, settings, partitions, counted) do
    {kind, _count} = Native.status(buffer)
    {_held, refused, dropped} = Native.bound(buffer)
    [{:options, options}] = :ets.lookup(settings, :options)
    totals = Enum.zip_with(Enum.map(counted, & &1.totals), &Enum.sum/1)

    %{
      kind: kind,
      size: total(partitions, :size),
      in_flight: total(partitions, :in_flight),
      retrying: total(counted, :retrying),
      bytes: total(counted, :bytes),
      max_size: options.max_size,
      oldest_ms: counted |> Enum.map(& &1.oldest_ms) |> Enum.reject(&is_nil/1) |> Enum.max(fn -> nil end),
      waiting_writers: value(settings, :waiting_writers) || 0,
      last_error: value(settings, :last_error),
      totals: @totals |> Enum.zip(totals ++ [refused, dropped]) |> Map.new(),
      partitions: partitions
    }
  end

  defp total(maps, key), do: maps |> Enum.map(& &1[key]) |> Enum.sum()

  defp value(settings, key) do
    case :ets.lookup(settings, key) do
      [{_key, value}] -> value
      [] -> nil
    end
  end

  defp partition(buffer, number, settings) do
    case Native.info(buffer, number) do
      {{size, in_flight, retrying, bytes}, oldest_ms, writes, ended, closed?} ->
        name = Routing.partition_name(buffer, number)
        {state, next_ms} = state(name, number, settings, closed?)
        failures = Identity.get(settings, number, :failures) || 0

        {%{
           name: name,
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

      :not_running ->
        Routing.not_running!(buffer)
    end
  end

  # The next call of the processor is at the end of a pause, else at the next tick.
  defp state(name, number, settings, closed?) do
    pause = Identity.get(settings, number, :pause)

    cond do
      closed? -> {:closed, nil}
      Running.at_work?(name) -> {:processing, left(Identity.get(settings, number, :due))}
      pause != nil -> {:paused, left(elem(pause, 0))}
      true -> {:idle, left(Identity.get(settings, number, :due))}
    end
  end

  defp left(due) when is_integer(due), do: max(due - System.monotonic_time(:millisecond), 0)
  defp left(_no_tick), do: nil

  @doc """
  See `PartitionedBuffer.emit_info/1`.
  """
  @spec emit(atom()) :: :ok
  def emit(:all), do: Enum.each(Supervisor.buffers(), &emit/1)

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
