defmodule PartitionedBuffer.Observe.DefaultLogger do
  @moduledoc false
  # Logs events for operators that the library does not log itself. Failures, pauses, and entries
  # given up without a taker already have log lines where they happen. No line has a key, a value or
  # another term of an entry.

  alias PartitionedBuffer.Processing.Reason

  require Logger

  @compile {:no_warn_undefined, :telemetry}

  @id :partitioned_buffer_default_logger

  @levels [:emergency, :alert, :critical, :error, :warning, :notice, :info, :debug]

  @names %{
    full: [[:full, :start], [:full, :stop]],
    dead_letter: [[:partition, :dead_letter]],
    journal: [[:journal, :replay], [:journal, :error], [:journal, :recovered]],
    cluster: [[:cluster, :members], [:cluster, :uncertain], [:cluster, :hand_over], [:cluster, :skew]],
    processing: [[:partition, :processing, :stop]]
  }

  @defaults [level: :info, events: [:full, :dead_letter, :cluster, :journal]]

  @doc """
  Attaches the logger. See `PartitionedBuffer.attach_default_logger/1`.
  """
  @spec attach(keyword()) :: :ok | {:error, :already_exists | :no_telemetry}
  def attach(opts \\ []) do
    {level, events} = options!(opts)

    # The module may exist without being loaded yet.
    if Code.ensure_loaded?(:telemetry) and :erlang.function_exported(:telemetry, :attach_many, 4),
      do: :telemetry.attach_many(@id, events, &__MODULE__.handle/4, %{level: level}),
      else: {:error, :no_telemetry}
  end

  @doc """
  Detaches the logger.
  """
  @spec detach() :: :ok | {:error, :not_found | :no_telemetry}
  def detach do
    if Code.ensure_loaded?(:telemetry) and :erlang.function_exported(:telemetry, :detach, 1),
      do: :telemetry.detach(@id),
      else: {:error, :no_telemetry}
  end

  defp options!(opts) do
    opts = Keyword.validate!(opts, @defaults)
    known = Map.keys(@names)

    unless opts[:level] in @levels do
      raise ArgumentError,
            "invalid option :level of the default logger: expected one of #{inspect(@levels)}, " <>
              "got: #{inspect(opts[:level])}"
    end

    names = if opts[:events] == :all, do: known, else: opts[:events]

    unless is_list(names) and Enum.all?(names, &(&1 in known)) do
      raise ArgumentError,
            "invalid option :events of the default logger: expected :all or a list of #{inspect(known)}, " <>
              "got: #{inspect(names)}"
    end

    {opts[:level], for(name <- Enum.uniq(names), suffix <- @names[name], do: [:partitioned_buffer | suffix])}
  end

  @doc false
  # `:telemetry` detaches a handler that raises, so the clauses cover all attached events.
  def handle([:partitioned_buffer, :full, :start], _measurements, %{reason: :journal} = metadata, _config) do
    log(
      :warning,
      :full_start,
      metadata,
      [],
      "#{buffer(metadata)} refuses writes: its journal is too far behind"
    )
  end

  def handle([:partitioned_buffer, :full, :start], _measurements, metadata, _config) do
    log(
      :warning,
      :full_start,
      metadata,
      [],
      "#{buffer(metadata)} is full: new entries wait for room, or are refused"
    )
  end

  def handle([:partitioned_buffer, :full, :stop], measurements, metadata, config) do
    %{duration: duration, refused: refused, dropped: dropped, waited: waited} = measurements
    level = if refused + dropped > 0, do: :warning, else: config.level

    log(
      level,
      :full_stop,
      metadata,
      [duration_ms: ms(duration), refused: refused, dropped: dropped, waited: waited],
      "#{buffer(metadata)} has room again after #{ms(duration)} ms: " <>
        "writers that waited: #{waited}, writes refused: #{refused}, dropped: #{dropped}"
    )
  end

  # Entries that the function :dead_letter did not take already have an error line.
  def handle([:partitioned_buffer, :partition, :dead_letter], _measurements, %{handled: false}, _config),
    do: :ok

  def handle([:partitioned_buffer, :partition, :dead_letter], %{count: count}, metadata, _config) do
    log(
      :error,
      :dead_letter,
      metadata,
      [count: count],
      "#{partition(metadata)} has given #{count} entries to its function :dead_letter: " <>
        Reason.describe(metadata.reason)
    )
  end

  # Every entry failed, and the failures already have log lines.
  def handle([:partitioned_buffer, :partition, :processing, :stop], %{size: 0}, _metadata, _config), do: :ok

  def handle([:partitioned_buffer, :partition, :processing, :stop], measurements, metadata, config) do
    %{duration: duration, size: size} = measurements

    log(
      config.level,
      :processing_stop,
      metadata,
      [size: size, duration_ms: ms(duration)],
      "#{partition(metadata)} has processed #{size} entries in #{ms(duration)} ms"
    )
  end

  def handle([:partitioned_buffer, :cluster, :members], measurements, metadata, config) do
    %{count: count, slots: slots} = measurements

    changes =
      for key <- [:joined, :left], metadata[key] != [], do: ", #{key}: #{Enum.join(metadata[key], ", ")}"

    log(
      config.level,
      :cluster_members,
      metadata,
      [members: count, slots: slots],
      "#{buffer(metadata)} has #{count} members, and this node owns #{slots} slots#{changes}"
    )
  end

  # The owner answered in the end, so nothing is doubled.
  def handle([:partitioned_buffer, :cluster, :uncertain], _measurements, %{outcome: :taken}, _config), do: :ok

  def handle([:partitioned_buffer, :cluster, :uncertain], measurements, metadata, _config) do
    %{count: count, duration: duration} = measurements

    log(
      :warning,
      :cluster_uncertain,
      metadata,
      [count: count, duration_ms: ms(duration)],
      "#{buffer(metadata)} sends #{count} entries again: node #{metadata.to}, which may have taken them, " <>
        "has been away for #{ms(duration)} ms"
    )
  end

  def handle([:partitioned_buffer, :cluster, :hand_over], %{count: count}, metadata, _config) do
    log(
      :warning,
      :cluster_hand_over,
      metadata,
      [count: count],
      "#{buffer(metadata)} stopped and handed #{count} entries, which its processor did not take, " <>
        "over to node #{metadata.to}"
    )
  end

  def handle([:partitioned_buffer, :cluster, :skew], %{ahead_ms: ahead_ms}, metadata, _config) do
    log(
      :warning,
      :cluster_skew,
      metadata,
      [ahead_ms: ahead_ms],
      "#{buffer(metadata)} does not follow the clock of node #{metadata.node}, which is #{ahead_ms} ms ahead"
    )
  end

  def handle([:partitioned_buffer, :journal, :replay], measurements, metadata, config) do
    %{entries: entries, damaged_bytes: bytes, damaged_records: records, duration: duration} = measurements
    numbers = [entries: entries, damaged_bytes: bytes, damaged_records: records, duration_ms: ms(duration)]
    replayed = "#{buffer(metadata)} has #{entries} entries from its journal, after #{ms(duration)} ms"

    if bytes + records > 0 do
      log(
        :error,
        :journal_replay,
        metadata,
        numbers,
        "#{replayed}; #{bytes} bytes and #{records} records there are damaged: the damaged files are kept in #{metadata.dir}"
      )
    else
      log(config.level, :journal_replay, metadata, numbers, replayed)
    end
  end

  def handle([:partitioned_buffer, :journal, :error], measurements, metadata, _config) do
    log(
      :error,
      :journal_error,
      metadata,
      [unwritten: measurements.unwritten, lag_ms: measurements.lag_ms],
      "the journal of #{buffer(metadata)} fails to #{metadata.operation}: #{metadata.reason}; " <>
        "the buffer goes on in memory, and #{measurements.unwritten} changes would not survive the VM"
    )
  end

  def handle([:partitioned_buffer, :journal, :recovered], %{duration: duration}, metadata, config) do
    log(
      config.level,
      :journal_recovered,
      metadata,
      [duration_ms: ms(duration)],
      "the journal of #{buffer(metadata)} works again, after #{ms(duration)} ms"
    )
  end

  defp log(level, event, metadata, numbers, message) do
    about = metadata |> Map.take([:buffer, :partition, :trigger, :slot, :to]) |> Map.to_list()
    Logger.log(level, message, [event: event] ++ about ++ numbers)
    :ok
  end

  defp buffer(metadata), do: "buffer #{inspect(metadata.buffer)}"
  defp partition(metadata), do: "partition #{inspect(metadata.partition)} of #{buffer(metadata)}"

  defp ms(native), do: System.convert_time_unit(native, :native, :millisecond)
end
