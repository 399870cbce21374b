defmodule PartitionedBuffer.Observe.Info do
  @moduledoc false
  # Reads the numbers of a buffer, all of which are native: it calls no process of the buffer.

  alias PartitionedBuffer.Buffer.Lookup
  alias PartitionedBuffer.{Native, Options, Routing, Telemetry}
  alias PartitionedBuffer.Options.Journal

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
    run = Lookup.run!(buffer)
    count = Routing.partition_count!(buffer)
    paused? = Native.on_hold(run)
    partitions = for number <- 0..(count - 1), do: {number, Native.info(run, number)}
    options = Lookup.options!(buffer)
    last_error = Native.last_error(run)
    journal = journal(buffer, run, options)
    # During the call, the buffer may end, and may start again.
    if Native.run(buffer) != run, do: Routing.not_running!(buffer)
    {shown, counted} = partitions |> Enum.map(&partition(buffer, paused?, &1)) |> Enum.unzip()

    buffer
    |> sum(options, shown, counted)
    |> Map.merge(%{paused?: paused?, last_error: last_error, journal: journal})
  end

  defp sum(buffer, options, partitions, counted) do
    {held, refused, dropped, waiting_writers, _waited} = bound(buffer)
    {size, in_flight} = held(options, held, total(partitions, :size), total(partitions, :in_flight))
    totals = Enum.zip_with(Enum.map(counted, & &1.totals), &Enum.sum/1)
    {_bytes, _environments, reclaiming} = Native.memory()

    %{
      kind: options.kind,
      size: size,
      in_flight: in_flight,
      retrying: total(counted, :retrying),
      bytes: total(counted, :bytes),
      reclaiming: reclaiming,
      max_size: options.max_size,
      max_bytes: options.max_bytes,
      oldest_ms: counted |> Enum.map(& &1.oldest_ms) |> Enum.reject(&is_nil/1) |> Enum.max(fn -> nil end),
      failing_ms: counted |> Enum.map(& &1.failing_ms) |> Enum.max(),
      waiting_writers: waiting_writers,
      totals: @totals |> Enum.zip(totals ++ [refused, dropped]) |> Map.new(),
      partitions: for(partition <- partitions, do: %{partition | limit: limit(partition.limit, options)})
    }
  end

  defp journal(_buffer, _run, %Options{journal: nil}), do: nil

  defp journal(buffer, run, %Options{journal: %Journal{} = journal, kind: kind}) do
    case Native.journal_status(run) do
      {failing?, {lag_ms, unwritten, written_ms_ago, synced_ms_ago}, {bytes, segments, replayed}, failure} ->
        %{
          dir: Journal.path(journal.dir, buffer, kind),
          state: journal_state(failing?, lag_ms > journal.max_lag_ms),
          lag_ms: lag_ms,
          unwritten: unwritten,
          written_ms_ago: written_ms_ago,
          synced_ms_ago: synced_ms_ago,
          bytes: bytes,
          segments: segments,
          replayed: replayed,
          last_error: journal_error(failure)
        }

      nil ->
        nil

      :not_running ->
        Routing.not_running!(buffer)
    end
  end

  defp journal_state(true = _failing?, _behind?), do: :failed
  defp journal_state(false = _failing?, true = _behind?), do: :behind
  defp journal_state(false = _failing?, false = _behind?), do: :ok

  defp journal_error(nil), do: nil

  defp journal_error({{operation, reason}, ms_ago}),
    do: %{reason: reason, operation: operation, system_time: System.system_time(:millisecond) - ms_ago}

  @doc """
  The numbers of two stages of a buffer together. The second one has the processor of the user.
  """
  @spec add(PartitionedBuffer.info(), PartitionedBuffer.info()) :: PartitionedBuffer.info()
  def add(first, second) do
    sums =
      for key <- [:size, :in_flight, :retrying, :bytes, :waiting_writers],
          into: %{},
          do: {key, first[key] + second[key]}

    ages = Enum.reject([first.oldest_ms, second.oldest_ms], &is_nil/1)

    first
    |> Map.merge(sums)
    |> Map.merge(%{
      oldest_ms: Enum.max(ages, fn -> nil end),
      failing_ms: max(first.failing_ms, second.failing_ms),
      paused?: second.paused?,
      last_error: second.last_error || first.last_error,
      totals: Map.merge(first.totals, second.totals, fn _total, a, b -> a + b end),
      partitions: first.partitions ++ second.partitions
    })
  end

  # The partitions are read one after the other, so an entry that leaves one and an entry that comes
  # to another may both be seen. A bounded buffer held no more at any time than the bound counts.
  defp held(%Options{max_size: :infinity, max_bytes: :infinity}, _held, size, in_flight),
    do: {size, in_flight}

  defp held(%Options{}, held, size, in_flight) do
    in_flight = min(in_flight, held)
    {min(size, held - in_flight), in_flight}
  end

  # How many entries the next batch may have; nil without a limit.
  defp limit(limit, %Options{processing_batch_size: size}) when is_integer(size), do: min(limit, size)
  defp limit(limit, %Options{}), do: limit

  defp bound(buffer) do
    with :not_running <- Native.bound(buffer), do: Routing.not_running!(buffer)
  end

  defp total(maps, key), do: maps |> Enum.map(& &1[key]) |> Enum.sum()

  defp partition(buffer, _paused?, {_number, :not_running}), do: Routing.not_running!(buffer)

  defp partition(
         buffer,
         paused?,
         {number, {{size, in_flight, retrying, bytes}, oldest_ms, writes, ended, now}}
       ) do
    {closed?, task?, failures, failing_ms, pause_ms, next, limit} = now
    {state, next_ms} = state(closed?, task?, paused?, pause_ms, next)

    {%{
       name: Routing.partition_name(buffer, number),
       size: size,
       in_flight: in_flight,
       state: state,
       limit: limit,
       failures: failures,
       next_ms: next_ms
     },
     %{
       retrying: retrying,
       bytes: bytes,
       oldest_ms: oldest_ms,
       # Nothing is left to succeed after the last failed entry was given up.
       failing_ms: if(size + in_flight > 0, do: failing_ms, else: 0),
       totals: Tuple.to_list(writes) ++ Tuple.to_list(ended)
     }}
  end

  # The next call of the processor is at the end of a pause, or else at the next tick. Nobody knows
  # when a hold ends.
  defp state(true = _closed?, _task?, _paused?, _pause_ms, _next), do: {:closed, nil}
  defp state(_closed?, true = _task?, _paused?, _pause_ms, next), do: {:processing, left(next)}
  defp state(_closed?, _task?, true = _paused?, _pause_ms, _next), do: {:on_hold, nil}
  defp state(_closed?, _task?, _paused?, nil, next), do: {:idle, left(next)}
  defp state(_closed?, _task?, _paused?, pause_ms, _next), do: {:paused, pause_ms}

  defp left(nil), do: nil
  defp left(next), do: max(next - System.monotonic_time(:millisecond), 0)

  @doc """
  See `PartitionedBuffer.emit_info/1`.
  """
  @spec emit(atom()) :: :ok
  def emit(buffer), do: emit(buffer, &info/1)

  @doc """
  The same with the info that a function returns.
  """
  @spec emit(atom(), (atom() -> map())) :: :ok
  def emit(buffer, info) do
    if info = info_if_running(buffer, info) do
      measurements =
        info
        |> Map.take([:size, :in_flight, :retrying, :bytes, :failing_ms, :waiting_writers])
        |> Map.merge(info.totals)

      bound =
        for {key, limit} <- Map.take(info, [:max_size, :max_bytes]),
            limit != :infinity,
            into: %{},
            do: {key, limit}

      measurements = Map.merge(Map.put(measurements, :oldest_ms, info.oldest_ms || 0), bound)
      measurements = measurements |> Map.merge(of_cluster(info)) |> Map.merge(of_journal(info))
      Telemetry.execute_of_buffer([:info], measurements, %{buffer: buffer, kind: info.kind})
    end

    :ok
  end

  defp of_cluster(%{cluster: cluster}),
    do: %{members: length(cluster.members), owned_slots: cluster.owns, uncertain: cluster.uncertain}

  defp of_cluster(_info), do: %{}

  defp of_journal(%{journal: %{} = journal}),
    do: %{journal_lag_ms: journal.lag_ms, journal_bytes: journal.bytes}

  defp of_journal(_info), do: %{}

  defp info_if_running(buffer, info) do
    info.(buffer)
  rescue
    _not_running in [ArgumentError, RuntimeError] -> nil
  end
end
