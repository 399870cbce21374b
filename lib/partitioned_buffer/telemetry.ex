defmodule PartitionedBuffer.Telemetry do
  @moduledoc """
  The telemetry events of all buffers.

  Events are emitted if the application `:telemetry` is present. An application can add it without
  compiling this package again. `PartitionedBuffer.attach_default_logger/1` logs some of the events, and
  the guide [Watching](watching.md) has metrics and alerts.

  Times are in native units. `buffer` is the name of the buffer, and `partition` the name of the
  partition, as `PartitionedBuffer.get_partition/3` returns it. The list of an event has its
  measurements first, and its metadata second.

  ## Partitions

  `[:partitioned_buffer, :partition, :start]`: a partition started.

    * Measurements: `system_time`
    * Metadata: `buffer`, `partition`

  `[:partitioned_buffer, :partition, :stop]`: a partition ended.

    * Measurements: `duration`
    * Metadata: `buffer`, `partition`, `reason`

  ## Flushes

  The `processing` events span the work of a task on one flush. An interval without writes has no
  event. The metadata also has a `telemetry_span_context`.

  `[:partitioned_buffer, :partition, :processing, :start]`

    * Measurements: `system_time`, `monotonic_time`
    * Metadata: `buffer`, `partition`, `trigger`: `:interval`, `:threshold`, `:full`, `:flush` or
      `:stop`

  `[:partitioned_buffer, :partition, :processing, :stop]`

    * Measurements: `duration`, `monotonic_time`, `size`: the number of processed entries
    * Metadata: `buffer`, `partition`, `trigger`

  `[:partitioned_buffer, :partition, :processing, :exception]`

    * Measurements: `duration`, `monotonic_time`
    * Metadata: `buffer`, `partition`, `trigger`, `kind`, `reason`, `stacktrace`

  `[:partitioned_buffer, :partition, :processing_failed]`: the processor failed.

    * Measurements: `system_time`, `count`: the number of lost entries, or with `:max_attempts` of
      entries that will be retried
    * Metadata: `buffer`, `partition`, `reason`: the exit reason of the processor,
      `{exception, stacktrace}` after a raise; with `:max_attempts` the reason of the failure

  A split has no `processing_failed`.

  ## Batches

  With `:max_attempts`, buffers also emit these events. A `batch` spans one call of the processor. A
  killed call has no `:stop`, but a `split` or a `retry`.

  `[:partitioned_buffer, :partition, :batch, :start]`

    * Measurements: `system_time`, `monotonic_time`, `size`
    * Metadata: `buffer`, `partition`, `attempt`: 1 for a batch without failed entries; otherwise the
      attempt of the entry with the most failures

  `[:partitioned_buffer, :partition, :batch, :stop]`

    * Measurements: `duration`, `monotonic_time`, `size`
    * Metadata: `buffer`, `partition`, `attempt`, `reason`, `outcome`: `:ok`, `:error`, `:partial`,
      `:snooze` or `:cancel`

  `[:partitioned_buffer, :partition, :batch, :exception]`

    * Measurements: `duration`, `monotonic_time`, `size`
    * Metadata: `buffer`, `partition`, `attempt`, `outcome`, `kind`, `reason`, `stacktrace`

  `[:partitioned_buffer, :partition, :split]`: a failed batch is tried again in smaller ones.

    * Measurements: `count`: the entries of the failed batch; `limit`: how many entries the next batch
      may have
    * Metadata: `buffer`, `partition`, `reason`

  `[:partitioned_buffer, :partition, :retry]`: failed entries will be retried.

    * Measurements: `count`; `superseded`: the entries superseded by a newer write or a delete;
      `delay`: the pause in milliseconds, 0 if the partition goes on
    * Metadata: `buffer`, `partition`, `reason`, `failures`: the failures in a row

  `[:partitioned_buffer, :partition, :dead_letter]`: entries were given up.

    * Measurements: `count`
    * Metadata: `buffer`, `partition`, `reason`, `handled`: whether `:dead_letter` took the entries

  ## A full buffer

  `full` spans the time from the first write that found no room until an eighth of `:max_size`, and of
  `:max_bytes`, is free and no writer waits. With `reason: :journal` in its metadata, a buffer refuses
  writes because of its journal.

  `[:partitioned_buffer, :full, :start]`

    * Measurements: `system_time`
    * Metadata: `buffer`

  `[:partitioned_buffer, :full, :stop]`

    * Measurements: `duration`; `refused` and `dropped`: entries, as the totals of
      `PartitionedBuffer.info/1` count them; `waited`: the writers that waited for room
    * Metadata: `buffer`

  ## Numbers

  `[:partitioned_buffer, :info]`: `PartitionedBuffer.emit_info/1` emits it.

    * Measurements: the numbers of `PartitionedBuffer.info/1` and its totals; `oldest_ms` is 0 without
      an entry. With `:cluster` also `members`, `owned_slots` and `uncertain`, with `:journal` also
      `journal_lag_ms` and `journal_bytes`
    * Metadata: `buffer`, `kind`

  ## The journal

  With `:journal`, buffers also emit these events.

  `[:partitioned_buffer, :journal, :replay]`: a start found its directory. It comes once for each such
  start.

    * Measurements: `entries`, `records`, `bytes`, `torn_bytes`, `damaged_bytes`, `damaged_records`,
      `duration`
    * Metadata: `buffer`, `dir`

  `[:partitioned_buffer, :journal, :error]`: the first failure. The next failures have no event until
  `recovered`.

    * Measurements: `lag_ms`, `unwritten`
    * Metadata: `buffer`, `reason`, `operation`

  `[:partitioned_buffer, :journal, :recovered]`: the journal works again.

    * Measurements: `lag_ms`, `unwritten`, `duration`
    * Metadata: `buffer`

  `[:partitioned_buffer, :journal, :rewrite]`: all entries were written anew, and the old files went.

    * Measurements: `entries`, `bytes`, `duration`
    * Metadata: `buffer`

  ## Several nodes

  With `:cluster`, buffers also emit
  [events about their members](`m:PartitionedBuffer.Cluster#module-telemetry`).

  ## Handlers

  Telemetry handlers and log handlers run in processes that no writer and no other flush waits for,
  so a handler may write to the buffer or flush it:

    * **In the task of the flush**: handlers of `processing`, `batch`, `split`, `retry`, `dead_letter`,
      and of `processing_failed` with `:max_attempts`; log lines about the processor and functions of
      the options. The next flush of the partition waits for the handlers.
    * **In the calling process**: handlers of `info`; log lines about options.
    * **In the *emitter***, one process for each buffer: handlers of `start` and `stop` of a partition,
      `full`, `journal`, and `processing_failed` without `:max_attempts`; log lines about a killed
      call, a task that cannot start, or a stop.

  The emitter calls the handlers in the order in which the events come, a moment after the event.
  Times in measurements and log lines are those of the event. If 20,000 events are pending, the
  emitter drops the next ones until none is pending, and logs how many. A large event counts once for
  each kilobyte. A stop of the buffer waits for the pending handlers, at most a second; then it
  kills the emitter.

  Reports by OTP itself, for example about a dead process, run log handlers in the process that
  reports, such as the supervisor. So a log handler must not hang: let it send to another process.
  """

  # Each call checks whether `:telemetry` is loaded. No handler can be attached before `:telemetry` is
  # loaded, so no handler misses an event.

  alias PartitionedBuffer.Processing.Outcome
  alias PartitionedBuffer.Ref

  @compile {:no_warn_undefined, :telemetry}

  # Emits the event `[:partitioned_buffer, :partition | suffix]`.
  @doc false
  @spec execute([atom()], map(), map()) :: :ok
  def execute(suffix, measurements, metadata),
    do: execute_of_buffer([:partition | suffix], measurements, metadata)

  # Emits the event `[:partitioned_buffer | suffix]`.
  @doc false
  @spec execute_of_buffer([atom()], map(), map()) :: :ok
  def execute_of_buffer(suffix, measurements, metadata) do
    if loaded?(), do: :telemetry.execute([:partitioned_buffer | suffix], measurements, metadata)
    :ok
  end

  defp loaded?, do: :erlang.function_exported(:telemetry, :execute, 3)

  # Emits the events `processing` around `fun`, which returns how many entries were processed.
  @doc false
  @spec processing(Ref.t(), atom(), (() -> non_neg_integer())) :: :ok
  def processing(%Ref{} = ref, trigger, fun) do
    metadata = ref |> Ref.metadata() |> Map.put(:trigger, trigger)

    span([:processing], %{}, metadata, %{}, fn ->
      {:ok, %{size: fun.()}, %{}}
    end)
  end

  # Emits the events `batch` around a call of the processor with a batch. `fun` returns the outcome.
  @doc false
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

  # Emits the event `processing_failed`, by `emit`. `count` entries are lost, or will be retried.
  @doc false
  @spec processing_failed(Ref.t(), any(), non_neg_integer(), ([atom()], map(), map() -> :ok)) :: :ok
  def processing_failed(%Ref{} = ref, reason, count, emit \\ &execute_of_buffer/3) do
    metadata = ref |> Ref.metadata() |> Map.put(:reason, reason)
    measurements = %{system_time: System.system_time(), count: count}
    emit.([:partition, :processing_failed], measurements, metadata)
  end

  # Emits the event `split`.
  @doc false
  @spec split(Ref.t(), map()) :: :ok
  def split(%Ref{} = ref, event) do
    {measurements, metadata} = Map.split(event, [:count, :limit])
    execute([:split], measurements, Map.merge(Ref.metadata(ref), metadata))
  end

  # Emits the event `retry`.
  @doc false
  @spec retry(Ref.t(), map()) :: :ok
  def retry(%Ref{} = ref, event) do
    {measurements, metadata} = Map.split(event, [:count, :superseded, :delay])
    execute([:retry], measurements, Map.merge(Ref.metadata(ref), metadata))
  end

  # Emits the event `dead_letter`.
  @doc false
  @spec dead_letter(Ref.t(), map()) :: :ok
  def dead_letter(%Ref{} = ref, event) do
    {measurements, metadata} = Map.split(event, [:count])
    execute([:dead_letter], measurements, Map.merge(Ref.metadata(ref), metadata))
  end

  # Emits the events `forward` around a call of another member, or of this one. `fun` returns the
  # outcome.
  @doc false
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
