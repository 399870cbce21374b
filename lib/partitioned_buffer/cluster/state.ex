defmodule PartitionedBuffer.Cluster.State do
  @moduledoc false
  # The state that the processes of a buffer of several nodes share. It is a table of the buffer's
  # supervisor, so it outlives each process.
  #
  # | key | value |
  # |---|---|
  # | `:options` | the options of the buffer, as `update_options/2` changed them |
  # | `:incarnation` | the number of the buffer in this VM, which its entries have as well |
  # | `:totals` | the counts of `info/1` |
  # | `:view` | the members, and the owner of each slot |
  # | `:left` | whether `PartitionedBuffer.Cluster.leave/1` was called |
  # | `:stop` | when a stop began, and what the application wants with leftovers |
  # | `:handed_over` | when a member last took a batch of a hand-over, or when the first one began |
  # | `{:handed_over, node}` | how many entries this member took in the hand-over |
  # | `{:silent, node}` | a member did not answer for long in the hand-over |
  # | `{:uncertain, slot}` | a batch whose owner is away and may have it: the owner, and since when |
  # | `{:forwarded, node}` | this node may have entries of this member: a number of the last batch |
  # | `:joiner` | the process with which this member is in the group |
  # | `{:joined, node}` | the same of another member, and the number at which it joined |
  # | `{:ended, node}` | the process of a member that stopped, and the last numbers that it took, by slot |
  # | `{:incarnation, node}` | the incarnation that last answered a forward |
  # | `{:origin, incarnation}` | the node of an origin, and when its last batch came |
  # | `{:away, node}` | when a node was last seen to be no member any longer |
  # | `{:ahead, node}` | how many milliseconds the clock of a node was last ahead |
  # | `{:skew, node}` | when a clock that is too far ahead was last reported |

  alias PartitionedBuffer.{Native, Options, Routing}

  @totals [:forwarded, :taken, :duplicates, :rerouted, :resent]

  @type view() :: {members :: [node()], owners :: tuple()}

  @doc """
  Makes the table, of the calling process.
  """
  @spec new(Options.t()) :: :ok
  def new(%Options{name: buffer, cluster: cluster} = options) do
    table = :ets.new(Routing.cluster_name(buffer), [:named_table, :public, :set, read_concurrency: true])

    :ets.insert(table, [
      {:options, options},
      {:incarnation, Native.incarnation(buffer)},
      {:totals, :counters.new(length(@totals), [:write_concurrency])},
      {:view, {[node()], Tuple.duplicate(node(), cluster.slots)}},
      {:left, false},
      # A buffer of this name may have kept entries.
      {{:forwarded, node()}, 0}
    ])

    :ok
  end

  @doc """
  Whether the table exists. Entries that a finished buffer left outlive it.
  """
  @spec any?(atom()) :: boolean()
  def any?(buffer), do: :ets.whereis(Routing.cluster_name(buffer)) != :undefined

  @spec options(atom()) :: Options.t()
  def options(buffer), do: get(buffer, :options)

  @spec settings(atom()) :: Options.Cluster.t()
  def settings(buffer), do: options(buffer).cluster

  @spec incarnation(atom()) :: pos_integer()
  def incarnation(buffer), do: get(buffer, :incarnation)

  @spec view(atom()) :: view()
  def view(buffer), do: get(buffer, :view)

  @doc """
  All members but this node.
  """
  @spec others(atom()) :: [node()]
  def others(buffer), do: elem(view(buffer), 0) -- [node()]

  @spec owner(atom(), non_neg_integer()) :: node()
  def owner(buffer, slot), do: buffer |> view() |> elem(1) |> elem(slot)

  @doc """
  When a node ceased to be a member, in milliseconds of the VM's monotonic time; nil without a note.
  """
  @spec away_since(atom(), node()) :: integer() | nil
  def away_since(buffer, node), do: get(buffer, {:away, node})

  @spec left?(atom()) :: boolean()
  def left?(buffer), do: get(buffer, :left) or stop(buffer) != nil

  @doc """
  When the stop of this member began, in milliseconds of the VM's monotonic time, and what
  `Native.stop/1` returned then; nil before, and when the table is gone: kept entries are given up
  without it.
  """
  @spec stop(atom()) :: {integer(), :dead_letter | :keep | nil} | nil
  def stop(buffer), do: if(:ets.whereis(Routing.cluster_name(buffer)) != :undefined, do: get(buffer, :stop))

  @spec put(atom(), atom() | {atom(), any()}, any()) :: :ok
  def put(buffer, key, value) do
    :ets.insert(Routing.cluster_name(buffer), {key, value})
    :ok
  end

  @doc """
  The value of a key, which gets this one if it has none.
  """
  @spec put_new(atom(), atom(), any()) :: any()
  def put_new(buffer, key, value) do
    :ets.insert_new(Routing.cluster_name(buffer), {key, value})
    get(buffer, key)
  end

  @doc """
  Adds to the value of a key, which begins at 0.
  """
  @spec add(atom(), {atom(), any()}, pos_integer()) :: :ok
  def add(buffer, key, count) do
    :ets.update_counter(Routing.cluster_name(buffer), key, count, {key, 0})
    :ok
  end

  @spec delete(atom(), {atom(), any()}) :: :ok
  def delete(buffer, key) do
    :ets.delete(Routing.cluster_name(buffer), key)
    :ok
  end

  @doc """
  Deletes a row unless its value changed.
  """
  @spec delete_if(atom(), {atom(), any()}, any()) :: :ok
  def delete_if(buffer, key, value) do
    :ets.delete_object(Routing.cluster_name(buffer), {key, value})
    :ok
  end

  @doc """
  Notes that a node may have entries of this member.
  """
  @spec note_forwarded(atom(), node()) :: :ok
  def note_forwarded(buffer, node), do: put(buffer, {:forwarded, node}, :erlang.unique_integer())

  @doc """
  Notes that what a node had of this member may be at any other member.
  """
  @spec replace_forwarded(atom(), node()) :: :ok
  def replace_forwarded(buffer, node) do
    if get(buffer, {:forwarded, node}) do
      for member <- [node() | others(buffer)], member != node, do: note_forwarded(buffer, member)
      delete(buffer, {:forwarded, node})
    end

    :ok
  end

  @doc """
  Whether a member did not answer for long to a hand-over of this stop.
  """
  @spec silent?(atom(), node()) :: boolean()
  def silent?(buffer, node), do: get(buffer, {:silent, node}) == true

  @doc """
  The next number of a batch. In one incarnation numbers grow, in whichever process.
  """
  @spec next_number() :: pos_integer()
  def next_number, do: :erlang.unique_integer([:monotonic, :positive])

  @doc """
  Notes that a member joined with this process. Batches with later numbers are for this life of the member.
  """
  @spec note_joined(atom(), pid()) :: :ok
  def note_joined(buffer, joiner) do
    case get(buffer, {:joined, node(joiner)}) do
      {^joiner, _number} -> :ok
      _earlier_life -> put(buffer, {:joined, node(joiner)}, {joiner, next_number()})
    end
  end

  @doc """
  Whether an ended member took a batch; nil without a report of the life that the batch was for.
  """
  @spec ended(atom(), node(), slot :: non_neg_integer(), number :: pos_integer()) ::
          :taken | :not_taken | nil
  def ended(buffer, node, slot, number) do
    with {joiner, numbers} <- get(buffer, {:ended, node}),
         {^joiner, first} when number > first <- get(buffer, {:joined, node}) do
      if Map.get(numbers, slot, 0) >= number, do: :taken, else: :not_taken
    else
      _unknown -> nil
    end
  end

  @doc """
  The process with which this member joined; nil before.
  """
  @spec joiner(atom()) :: pid() | nil
  def joiner(buffer), do: get(buffer, :joiner)

  @doc """
  The rows whose key is a pair that begins with this atom: the rest of the key, and the value.
  """
  @spec all(atom(), atom()) :: [{any(), any()}]
  def all(buffer, kind),
    do: :ets.select(Routing.cluster_name(buffer), [{{{kind, :"$1"}, :"$2"}, [], [{{:"$1", :"$2"}}]}])

  @doc """
  Notes the incarnation of a node, and returns whether it had another one before.
  """
  @spec other_incarnation?(atom(), node(), pos_integer()) :: boolean()
  def other_incarnation?(buffer, node, incarnation) do
    before = get(buffer, {:incarnation, node})
    if before != incarnation, do: put(buffer, {:incarnation, node}, incarnation)
    before not in [nil, incarnation]
  end

  @doc """
  Whether this is the first call for a key in as many milliseconds before `now`.
  """
  @spec first_in?(atom(), {atom(), any()}, integer(), pos_integer()) :: boolean()
  def first_in?(buffer, key, now, ms) do
    last = get(buffer, key)
    first? = last == nil or now - last >= ms
    if first?, do: put(buffer, key, now)
    first?
  end

  @doc """
  Counts in one of the totals.
  """
  @spec count(atom(), :forwarded | :taken | :duplicates | :rerouted | :resent) :: :ok
  def count(buffer, total) do
    :counters.add(get(buffer, :totals), Enum.find_index(@totals, &(&1 == total)) + 1, 1)
  end

  @spec totals(atom()) :: %{atom() => non_neg_integer()}
  def totals(buffer) do
    counters = get(buffer, :totals)
    for {total, index} <- Enum.with_index(@totals, 1), into: %{}, do: {total, :counters.get(counters, index)}
  end

  defp get(buffer, key) do
    case :ets.lookup(Routing.cluster_name(buffer), key) do
      [{^key, value}] -> value
      [] -> nil
    end
  end
end
