defmodule PartitionedBuffer.Observe.Overview do
  @moduledoc false
  # All buffers of a node as rows of a table, for `PartitionedBuffer.watch/2` and
  # `PartitionedBuffer.LiveDashboard`. All numbers come from `PartitionedBuffer.info/1`; the rates
  # are differences of two infos.

  alias PartitionedBuffer.Observe.Text

  # A page may be refreshed twice at almost the same time, for example after a click. A rate over a
  # shorter time than this, in milliseconds, would be noise, so the row keeps the rates before.
  @least_ms 500

  @typedoc "The info of a buffer, or why it has none."
  @type reading() :: {atom(), {:ok, map()} | {:error, :not_running | :no_partitions}}

  @typedoc "For each buffer the totals that its next rates are differences to."
  @type memory() :: %{optional(atom()) => %{at: integer(), totals: map(), rates: map()}}

  @typedoc "The state of a buffer in one word: see `state/1`."
  @type state() ::
          :not_running
          | :no_partitions
          | :closed
          | :on_hold
          | :journal_failed
          | :failing
          | :journal_behind
          | :full
          | :paused
          | :processing
          | :idle

  @type row() :: %{
          buffer: atom(),
          name: String.t(),
          kind: atom() | nil,
          held: non_neg_integer() | nil,
          max_size: pos_integer() | :infinity | nil,
          bytes: non_neg_integer() | nil,
          max_bytes: pos_integer() | :infinity | nil,
          oldest_ms: non_neg_integer() | nil,
          failing_ms: non_neg_integer() | nil,
          written: float() | nil,
          processed: float() | nil,
          state: state()
        }

  @doc """
  Reads the infos of buffers. A buffer that just stopped has an error in place of its info.
  """
  @spec read([atom()], (atom() -> map())) :: [reading()]
  def read(buffers, info), do: for(buffer <- buffers, do: {buffer, read_one(buffer, info)})

  defp read_one(buffer, info) do
    {:ok, info.(buffer)}
  rescue
    ArgumentError -> {:error, :not_running}
    RuntimeError -> {:error, :no_partitions}
  end

  @doc """
  The rows of readings made at `now`, a monotonic time in milliseconds, and the memory for the next
  call. The memory of buffers without a reading is dropped.
  """
  @spec rows([reading()], memory(), integer()) :: {[row()], memory()}
  def rows(readings, memory, now) do
    {rows, kept} =
      readings
      |> Enum.map(fn {buffer, reading} -> row(buffer, reading, memory[buffer], now) end)
      |> Enum.unzip()

    {rows, for({buffer, %{} = kept} <- kept, into: %{}, do: {buffer, kept})}
  end

  defp row(buffer, {:error, state}, _before, _now) do
    row = %{
      buffer: buffer,
      name: inspect(buffer),
      kind: nil,
      held: nil,
      max_size: nil,
      bytes: nil,
      max_bytes: nil,
      oldest_ms: nil,
      failing_ms: nil,
      written: nil,
      processed: nil,
      state: state
    }

    {row, {buffer, nil}}
  end

  defp row(buffer, {:ok, info}, before, now) do
    kept = remember(info.totals, before, now)

    row = %{
      buffer: buffer,
      name: inspect(buffer),
      kind: info.kind,
      held: info.size + info.in_flight,
      max_size: info.max_size,
      bytes: info.bytes,
      max_bytes: info.max_bytes,
      oldest_ms: info.oldest_ms,
      failing_ms: info.failing_ms,
      written: kept.rates[:written],
      processed: kept.rates[:processed],
      state: state(info)
    }

    {row, {buffer, kept}}
  end

  defp remember(totals, %{at: at} = before, now) when now - at < @least_ms do
    # The buffer was started again after the end of its VM.
    if totals.written < before.totals.written, do: remember(totals, nil, now), else: before
  end

  defp remember(totals, before, now), do: %{at: now, totals: totals, rates: rates(totals, before, now)}

  defp rates(_totals, nil, _now), do: %{}

  defp rates(totals, before, now) do
    for key <- [:written, :processed],
        rate = rate(totals, before.totals, now - before.at, key),
        into: %{},
        do: {key, rate}
  end

  @doc """
  The growth of a total in a second, from two maps of totals; nil if that is unknown.
  """
  @spec rate(map(), map(), non_neg_integer(), atom()) :: float() | nil
  def rate(_totals, _previous, 0, _total), do: nil

  def rate(totals, previous, passed_ms, total) do
    case Map.fetch!(totals, total) - Map.fetch!(previous, total) do
      # The buffer was started again.
      difference when difference < 0 -> nil
      difference -> difference * 1_000 / passed_ms
    end
  end

  @doc """
  The state of a buffer in one word, for what it needs first: `:closed` by a stop, `:on_hold` by
  `pause/1`, `:journal_failed`, `:failing` processor, `:journal_behind`, `:full`, `:paused` by a
  snooze, `:processing`, `:idle`.
  """
  @spec state(map()) :: state()
  def state(info) do
    states = Enum.map(info.partitions, & &1.state)
    journal = info.journal && info.journal.state

    cond do
      Enum.all?(states, &(&1 == :closed)) -> :closed
      info.paused? -> :on_hold
      journal == :failed -> :journal_failed
      info.failing_ms > 0 -> :failing
      journal == :behind -> :journal_behind
      full?(info) -> :full
      :paused in states -> :paused
      :processing in states -> :processing
      true -> :idle
    end
  end

  # An atom is greater than any number.
  defp full?(info) do
    info.waiting_writers > 0 or info.size + info.in_flight >= info.max_size or info.bytes >= info.max_bytes
  end

  @doc """
  The row as texts, by the names of its columns.
  """
  @spec texts(row()) :: %{atom() => String.t()}
  def texts(row) do
    %{
      name: row.name,
      kind: if(row.kind, do: Atom.to_string(row.kind), else: "-"),
      held: limited(row.held, row.max_size, &Text.grouped/1),
      bytes: limited(row.bytes, row.max_bytes, &Text.bytes/1),
      oldest_ms: Text.duration(row.oldest_ms),
      failing_ms: Text.failing(row.failing_ms),
      written: Text.rate(row.written),
      processed: Text.rate(row.processed),
      state: row.state |> Atom.to_string() |> String.replace("_", " ")
    }
  end

  defp limited(number, limit, text) when limit in [nil, :infinity], do: text.(number)
  defp limited(number, limit, text), do: "#{text.(number)} of #{text.(limit)}"
end
