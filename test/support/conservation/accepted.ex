defmodule PartitionedBuffer.Conservation.Accepted do
  @moduledoc false
  # The notes of the writers and the ledger on the keys of a map with retries, in two tables that
  # both read.
  #
  # A writer notes a write after the return of the call, so the buffer had the entry before the
  # note. The ledger notes a batch before the processor returns, so an entry released by the buffer
  # is noted as such. An *effective* write changed the entry: every write but a stale one.

  # `writes` has the writes to each key, `batches` the batches with the key that the ledger saw.
  # `phase` counts how often the order of a key's entries was lost and found: it is lost after a
  # start with another partition count. `max_attempts` and `dead_letter?` are options of the buffer,
  # and `ledger` is the process that compares all.
  @enforce_keys [:writes, :batches, :phase, :max_attempts, :dead_letter?]
  defstruct @enforce_keys ++ [:ledger]

  @type t() :: %__MODULE__{}

  @doc "Tables owned by the calling process."
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

  @doc """
  Notes a writer's writes to a key up to this number. The last effective one is it, or the one
  before.
  """
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

  @doc "The number of done writes to a key."
  def written(%__MODULE__{writes: writes}, id) do
    case :ets.lookup(writes, id) do
      [{_id, number, _write}] -> number
      [] -> 0
    end
  end

  @doc """
  The number of the write that made the key's entry, or `:none` if it was deleted or never written.
  """
  def current(accepted, id) do
    case write(accepted, id) do
      {same, _at, same, _deleted_at} -> :none
      {effective, _at, _deleted, _deleted_at} -> effective
    end
  end

  ## Batches

  @doc "The last entry of a key that the processor got, as a map; nil without one."
  def batch(%__MODULE__{batches: batches}, id) do
    case :ets.lookup(batches, id) do
      [{_id, entry}] -> entry
      [] -> nil
    end
  end

  @doc "Notes an entry in the processor."
  def put_batch(%__MODULE__{batches: batches}, id, entry), do: :ets.insert(batches, {id, entry})

  @doc "Whether the buffer may have released the entry of this write."
  def gone?(accepted, id, number) do
    case batch(accepted, id) do
      %{number: ^number, mark: mark} when mark in [:ok, :cancelled, :dead] -> true
      %{number: ^number, mark: :failed, attempts: attempts} -> attempts + 1 >= accepted.max_attempts
      # A later write came, which the writer may note soon.
      %{number: last} -> last > number
      _other -> false
    end
  end

  ## Phases

  @doc "The phase, for a comparison after a call."
  def phase(%__MODULE__{phase: phase}), do: :atomics.get(phase, 1)

  @doc "Whether the order was kept since this phase was read."
  def ordered_since?(accepted, phase), do: rem(phase, 2) == 0 and phase(accepted) == phase

  @doc "The order is lost, or found again."
  def next_phase(%__MODULE__{phase: phase}), do: :atomics.add(phase, 1, 1)
end
