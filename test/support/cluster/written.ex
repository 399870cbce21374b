defmodule PartitionedBuffer.Test.Cluster.Written do
  @moduledoc false
  # The outcomes of writes: of one chunk, of a node, or of all nodes.
  #
  #   * `sums`: of a counter, by key, what `add` acknowledged.
  #   * `newest`: of a map, by key, the acknowledged write that began last: `{began, value}`.
  #   * `waited`: keys of a map with a write that took long. Its version is later than its begin.
  #   * `ok`, `full`, `stopped`: how many writes returned `:ok`, were refused for want of room, or raised
  #     because the buffer does not run. Refused writes are in no sum.
  #   * `longest`: how long the slowest write took, in microseconds.
  #   * `unexpected`: other outcomes. They make a result void.

  defstruct sums: %{},
            newest: %{},
            waited: MapSet.new(),
            ok: 0,
            full: 0,
            stopped: 0,
            longest: 0,
            unexpected: []

  @unexpected 5

  # Microseconds.
  @long 5_000

  @doc "Adds a write that took from `began` to `ended`, in microseconds."
  def note(written, write, outcome, began, ended),
    do: outcome(%{written | longest: max(written.longest, ended - began)}, write, outcome, began, ended)

  defp outcome(written, {:counter, key, amount}, :ok, _began, _ended),
    do: %{written | ok: written.ok + 1, sums: Map.update(written.sums, key, amount, &(&1 + amount))}

  defp outcome(written, {:map, key, value}, :ok, began, ended) do
    waited = if ended - began > @long, do: MapSet.put(written.waited, key), else: written.waited
    %{written | ok: written.ok + 1, newest: Map.put(written.newest, key, {began, value}), waited: waited}
  end

  defp outcome(written, _write, :full, _began, _ended), do: %{written | full: written.full + 1}
  defp outcome(written, _write, :stopped, _began, _ended), do: %{written | stopped: written.stopped + 1}

  defp outcome(written, write, outcome, _began, _ended),
    do: %{written | unexpected: Enum.take([{write, outcome} | written.unexpected], @unexpected)}

  def merge(one, other) do
    %__MODULE__{
      sums: add_sums(one.sums, other.sums),
      newest: Map.merge(one.newest, other.newest, fn _key, one, other -> max(one, other) end),
      waited: MapSet.union(one.waited, other.waited),
      ok: one.ok + other.ok,
      full: one.full + other.full,
      stopped: one.stopped + other.stopped,
      longest: max(one.longest, other.longest),
      unexpected: Enum.take(one.unexpected ++ other.unexpected, @unexpected)
    }
  end

  @doc "Adds sums by key. The plans of maps have no sums, but `nil`."
  def add_sums(one, other), do: Map.merge(one, other, fn _key, one, other -> one && one + other end)
end
