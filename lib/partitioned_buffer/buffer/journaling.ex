defmodule PartitionedBuffer.Buffer.Journaling do
  @moduledoc false
  # The journal of a buffer: its start and its end, and a process that gets its reports, for events. The
  # native library writes and syncs it on other threads, and needs this process for none of that.

  use GenServer

  alias PartitionedBuffer.{Emitter, Label, Native, Options, Routing}
  alias PartitionedBuffer.Options.Journal
  alias PartitionedBuffer.Partition.Server

  # The longest time, in milliseconds, between two looks at the lag.
  @look_ms 1_000

  # The time, in milliseconds, that a stop waits until the journal has the entries that it leaves.
  @leave_ms 5_000

  @typedoc "Whether the event of a replay was sent, its measurements and its metadata."
  @type replay() :: {:atomics.atomics_ref(), map(), map()}

  ## Start and end

  @doc """
  Lets a buffer that does not run have its journal, or none. Replays what a former VM left, and returns
  the report of that. Exits if it is impossible.
  """
  @spec open!(Options.t()) :: replay() | nil
  def open!(%Options{name: buffer, kind: kind, partitions: count} = options) when count > 0 do
    {place, settings, max_attempts} = native(options)

    case Native.open_journal(buffer, kind, count, place, settings, max_attempts) do
      :ok -> nil
      {:ok, replayed} -> replay(options, replayed)
      {:error, reason} -> exit({:journal, reason})
    end
  end

  def open!(%Options{}), do: nil

  # Without a journal, nobody looks at the settings.
  defp native(%Options{journal: nil}), do: {nil, {1, :infinity, 1}, :infinity}

  defp native(%Options{name: buffer, kind: kind, journal: %Journal{dir: dir} = journal} = options) do
    settings = {journal.write_ms, journal.sync_ms, journal.max_bytes}
    {{dir, Journal.path(dir, buffer, kind)}, settings, Options.native_attempts(options)}
  end

  # The report is sent once, also if the process that sends it dies.
  defp replay(%Options{name: buffer, kind: kind, journal: journal}, replayed) do
    {entries, records, bytes, torn_bytes, {damaged_bytes, damaged_records}, duration} = replayed

    measurements = %{
      entries: entries,
      records: records,
      bytes: bytes,
      torn_bytes: torn_bytes,
      damaged_bytes: damaged_bytes,
      damaged_records: damaged_records,
      duration: System.convert_time_unit(duration, :nanosecond, :native)
    }

    {:atomics.new(1, []), measurements, %{buffer: buffer, dir: Journal.path(journal.dir, buffer, kind)}}
  end

  @doc """
  Lets the options `:write_ms` and `:sync_ms` take effect. The last of concurrent calls sees the latest
  options.
  """
  @spec set_times(Native.run()) :: :ok
  def set_times(run) do
    with {version, %Options{journal: %Journal{} = journal}} <- Native.options(run),
         :ok <- Native.set_journal_times(run, journal.write_ms, journal.sync_ms),
         {newer, _options} when newer != version <- Native.options(run),
         do: set_times(run),
         else: (_set_or_over -> :ok)
  end

  @doc """
  Ends the journal at a stop. If the stop leaves entries, the files stay. Returns `:ok` if they have all
  entries, and `nil` without a journal.
  """
  @spec close(Native.run()) :: :ok | nil | {:error, atom()}
  def close(run) do
    synced = sync(run, :synced, @leave_ms)
    if synced, do: Native.close_journal(run)
    synced
  end

  ## Waiting

  @doc """
  Waits until the journal has all that was written before; see `PartitionedBuffer.sync/2`. Returns `nil`
  without a journal.
  """
  @spec sync(Native.run(), :written | :synced, timeout()) :: :ok | nil | {:error, atom()}
  def sync(run, level, timeout) do
    # An answer that comes too late goes to a dead process.
    {pid, monitor} =
      spawn_monitor(fn ->
        ref = make_ref()

        exit(
          {:answer,
           with(:ok <- Native.journal_wait(run, level, ref), do: receive(do: ({^ref, answer} -> answer)))}
        )
      end)

    receive do
      {:DOWN, ^monitor, :process, ^pid, {:answer, answer}} -> answer
      {:DOWN, ^monitor, :process, ^pid, _killed} -> {:error, :timeout}
    after
      timeout ->
        Process.demonitor(monitor, [:flush])
        Process.exit(pid, :kill)
        {:error, :timeout}
    end
  end

  @doc """
  The age of the oldest change that the journal does not have, in milliseconds.
  """
  @spec lag_ms(Native.run()) :: non_neg_integer()
  def lag_ms(run), do: run |> behind() |> elem(0)

  ## Reports

  @spec start_link({Native.run(), atom(), replay() | nil}) :: GenServer.on_start()
  def start_link({_run, _buffer, _replay} = init), do: GenServer.start_link(__MODULE__, init)

  @impl GenServer
  def init({run, buffer, replay}) do
    Native.watch_journal(run)
    Label.set(buffer, :journal)
    report_replay(run, replay)
    # The caller of `update_options/2` may have died before it set the times.
    set_times(run)
    send(self(), :look)
    {:ok, {run, buffer}}
  end

  # The threads of the journal may hang with the disk, so this process looks whether it is behind.
  @impl GenServer
  def handle_info(:look, {run, buffer} = state) do
    with {_version, %Options{journal: %Journal{when_behind: what, max_lag_ms: max_lag_ms}}} <-
           Native.options(run) do
      behind? = what == :refuse and lag_ms(run) > max_lag_ms
      if behind? != Native.refuses_writes(buffer), do: Native.refuse_writes(run, behind?)
      Process.send_after(self(), :look, max_lag_ms |> div(10) |> max(1) |> min(@look_ms))
    end

    {:noreply, state}
  end

  def handle_info({:journal, report}, {run, buffer} = state) do
    report(report, run, buffer)
    {:noreply, state}
  end

  def handle_info(_message, state), do: {:noreply, state}

  defp report_replay(_run, nil), do: :ok

  defp report_replay(run, {sent, measurements, metadata}) do
    if :atomics.exchange(sent, 1, 1) == 0,
      do: Emitter.event(run, [:journal, :replay], measurements, metadata)
  end

  defp report({:failed, {operation, reason}}, run, buffer) do
    # Entries that are done need no room.
    if reason in [:enospc, :edquot], do: flush_all(buffer)
    {lag_ms, unwritten} = behind(run)

    Emitter.event(run, [:journal, :error], %{lag_ms: lag_ms, unwritten: unwritten}, %{
      buffer: buffer,
      reason: reason,
      operation: operation
    })
  end

  defp report({:recovered, duration}, run, buffer) do
    {lag_ms, unwritten} = behind(run)
    duration = System.convert_time_unit(duration, :nanosecond, :native)
    measurements = %{lag_ms: lag_ms, unwritten: unwritten, duration: duration}
    Emitter.event(run, [:journal, :recovered], measurements, %{buffer: buffer})
  end

  defp report({:rewritten, {entries, bytes, duration}}, run, buffer) do
    duration = System.convert_time_unit(duration, :nanosecond, :native)

    Emitter.event(run, [:journal, :rewrite], %{entries: entries, bytes: bytes, duration: duration}, %{
      buffer: buffer
    })
  end

  defp behind(run) do
    case Native.journal_status(run) do
      {_failing?, {lag_ms, unwritten, _written, _synced}, _log, _failure} -> {lag_ms, unwritten}
      _none_or_over -> {0, 0}
    end
  end

  defp flush_all(buffer) do
    with count when is_integer(count) <- Native.partition_count(buffer) do
      for partition <- 0..(count - 1)//1, do: Server.flush_full(Routing.partition_name(buffer, partition))
    end
  end
end
