defmodule PartitionedBuffer.Conservation.Accepted do
  @moduledoc false
  # What the writers and the ledger know of the keys of a map with retries, in two tables that all of them read.
  #
  # A writer notes a write after the call has returned, so what is noted has been in the buffer for longer. The ledger notes a
  # batch before the processor returns, so an entry that the buffer has let go is noted as such. An *effective* write is one
  # that has changed the entry: all but stale ones.

  # `writes` has what was written to each key, `batches` what the ledger has seen of it. `phase` counts how often the order of
  # a key's entries was lost and found: it is lost after a start with another number of partitions.
  # `max_attempts` and `dead_letter?` are options of the buffer, and `ledger` is the process that compares all.
  @enforce_keys [:writes, :batches, :phase, :max_attempts, :dead_letter?]
  defstruct @enforce_keys ++ [:ledger]

  @type t() :: %__MODULE__{}

  @doc "Tables that the calling process owns."
  def new(max_attempts, dead_letter?) do
    %__MODULE__{
      writes: :ets.new(:writes, [:public, write_concurrency: true, read_concurrency: true]),
      batches: :ets.new(:batches, [:public, read_concurrency: true]),
      phase: :atomics.new(1, []),
      max_attempts: max_attempts,
      dead_letter?: dead_letter?
    }
  end

  ## Writes

  @doc "Notes that a writer has done the writes to a key up to this number. The last effective one is it, or the one before."
  def wrote(%__MODULE__{writes: writes} = accepted, id, number, effect) do
    now = System.monotonic_time()
    {_effective, _at, deleted, deleted_at} = old = write(accepted, id)

    new =
      case effect do
        :set -> {number, now, deleted, deleted_at}
        :delete -> {number, now, number, now}
        :none -> old
      end

    :ets.insert(writes, {id, number, new})
  end

  @doc "The last effective write of a key, when it was noted, and both of the last delete."
  def write(%__MODULE__{writes: writes}, id) do
    case :ets.lookup(writes, id) do
      [{_id, _number, write}] -> write
      [] -> {0, nil, 0, nil}
    end
  end

  @doc "How many writes of a key are done."
  def written(%__MODULE__{writes: writes}, id) do
    case :ets.lookup(writes, id) do
      [{_id, number, _write}] -> number
      [] -> 0
    end
  end

  @doc "The number of the write that made the key's entry, or `:none` if it was deleted or never written."
  def current(accepted, id) do
    case write(accepted, id) do
      {same, _at, same, _deleted_at} -> :none
      {effective, _at, _deleted, _deleted_at} -> effective
    end
  end

  ## Batches

  @doc "The last entry of a key that the processor has had, as a map; nil if there is none."
  def batch(%__MODULE__{batches: batches}, id) do
    case :ets.lookup(batches, id) do
      [{_id, entry}] -> entry
      [] -> nil
    end
  end

  @doc "Notes an entry that the processor has."
  def put_batch(%__MODULE__{batches: batches}, id, entry), do: :ets.insert(batches, {id, entry})

  @doc "Whether the buffer may have let go of the entry that this write has made."
  def gone?(accepted, id, number) do
    case batch(accepted, id) do
      %{number: ^number, mark: mark} when mark in [:ok, :cancelled, :dead] -> true
      %{number: ^number, mark: :failed, attempts: attempts} -> attempts >= accepted.max_attempts
      # A later one has come, which the writer has not noted yet.
      %{number: last} -> last > number
      _other -> false
    end
  end

  ## Phases

  @doc "The phase, to be compared with that after a call."
  def phase(%__MODULE__{phase: phase}), do: :atomics.get(phase, 1)

  @doc "Whether the order was kept since this phase was asked for."
  def ordered_since?(accepted, phase), do: rem(phase, 2) == 0 and phase(accepted) == phase

  @doc "The order is lost, or found again."
  def next_phase(%__MODULE__{phase: phase}), do: :atomics.add(phase, 1, 1)
end
