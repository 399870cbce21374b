defmodule PartitionedBuffer.Cluster.Taking do
  @moduledoc false
  # Takes the batches of this member and of others: writes them to the owning stage, each once.

  alias PartitionedBuffer.Cluster.State
  alias PartitionedBuffer.{Emitter, Native, Routing}

  @typedoc """
  A batch of an origin: its stream, which is the incarnation of the origin and a slot, its number and its
  entries.
  """
  @type batch() ::
          {{incarnation :: pos_integer(), slot :: non_neg_integer()}, number :: pos_integer(), list()}

  @type answer() :: :ok | :duplicate | :full | :stopping | :not_running

  @doc """
  Takes a batch, unless one of this stream with the same or a greater number was taken: if the bound of
  the stage has room, or `:anyway`.
  """
  @spec take(atom(), batch(), :bounded | :anyway) :: answer()
  def take(buffer, {stream, number, entries}, bound) do
    # The stages of this node drain one after the other, so the owning stage takes batches while its
    # stop begins.
    modes = if bound == :anyway, do: [:force, :processor], else: [:processor]
    answer = absorb(buffer, entries, stream, number, modes)
    if total = %{ok: :taken, duplicate: :duplicates}[answer], do: State.count(buffer, total)
    answer
  end

  @doc """
  Takes entries that nobody else takes, whatever the bound.
  """
  @spec take_anyway(atom(), list()) :: answer()
  def take_anyway(buffer, entries), do: absorb(buffer, entries, nil, 1, [:force, :processor])

  defp absorb(buffer, entries, stream, number, modes) do
    case Native.run(Routing.owning_name(buffer)) do
      :not_running ->
        :not_running

      run ->
        with :large <- Native.absorb(run, entries, stream, number, modes),
             do: Native.absorb_large(run, entries, stream, number, modes)
    end
  end

  @doc """
  The version that this member sends with a batch or an answer; 0 for a counter.
  """
  @spec clock(atom(), non_neg_integer()) :: integer()
  def clock(buffer, slot) do
    with :map <- State.options(buffer).kind,
         run when run != :not_running <- Native.run(buffer),
         version when is_integer(version) <- Native.latest_version(run, slot) do
      version
    else
      _counter_or_over -> 0
    end
  end

  @doc """
  Lets the clock of this member follow that of another one, unless that is too far ahead: of this clock,
  and of most. A member whose clock was set back sees all others ahead, and follows them.
  """
  @spec see_clock(atom(), integer(), node()) :: :ok
  def see_clock(_buffer, 0, _node), do: :ok

  def see_clock(buffer, version, node) do
    most_ms = State.settings(buffer).max_skew_ms

    with run when run != :not_running <- Native.run(buffer),
         ahead_ms when is_integer(ahead_ms) <- Native.see_version(run, version, most_ms) do
      State.put(buffer, {:ahead, node}, ahead_ms)
      if ahead_ms > most_ms, do: see_far_clock(run, buffer, version, node, ahead_ms, most_ms)
    end

    :ok
  end

  defp see_far_clock(run, buffer, version, node, ahead_ms, most_ms) do
    {members, _owners} = State.view(buffer)
    others = for {member, ahead_ms} <- State.all(buffer, :ahead), member in members, do: ahead_ms
    # Of two clocks nobody can tell which one is wrong.
    usual_ms = Enum.at(Enum.sort([0 | others]), div(length(others), 2))

    if ahead_ms <= usual_ms + most_ms,
      do: Native.see_version(run, version, usual_ms + most_ms),
      else: report_skew(run, buffer, node, ahead_ms)
  end

  # Once a minute for each node.
  defp report_skew(run, buffer, node, ahead_ms) do
    if State.first_in?(buffer, {:skew, node}, System.monotonic_time(:millisecond), 60_000),
      do: Emitter.event(run, [:cluster, :skew], %{ahead_ms: ahead_ms}, %{buffer: buffer, node: node})
  end
end
