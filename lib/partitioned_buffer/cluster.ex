defmodule PartitionedBuffer.Cluster do
  @moduledoc """
  The members of a buffer that several nodes share.

  A `PartitionedBuffer.Map` or `PartitionedBuffer.Counter` with the option `:cluster` collects a key on
  each node that writes it, and adds it up on the one node that *owns* it. From there the processor
  stores it:

      children = [{PartitionedBuffer.Counter, name: :views, processor: &store/1, max_attempts: 100, cluster: true}]

  The functions of the buffer's own module work on this node alone, at their usual price. The functions
  here concern all members, and some ask other nodes, so they may take as long as a remote call. All
  raise an `ArgumentError` if the buffer is not running, or runs without `:cluster`. The guide
  [Several nodes](several-nodes.html) shows when to use it, and what happens when nodes come and go.

  Here, a *member* is a node that runs the buffer, and did not leave. A *slot* is a part of the keys.
  The *owner* of a slot delivers its keys. The buffer has two stages on each node. The *collecting*
  stage takes the writes and *forwards* them in batches to the owners. It has the name of the buffer,
  and its partitions are the slots. The *owning* stage calls the processor. It is a buffer with the name
  `Module.concat(name, Owning)`, which its events, log lines and partitions have.

  Two nodes are members together if OTP's distribution connects them, and both run a buffer of this
  name and kind. Hidden nodes are no members. Without distribution the node is the only member; it joins the
  others when distribution starts.

  ## Options

  `:cluster` is `true`, a keyword list of settings, or `false` for a buffer of one node. All but `:slots`
  can be changed with
  `PartitionedBuffer.update_options/2`, as in `update_options(:views, cluster: [owners: 1])`.

    * `:forward_ms` – a positive integer, by default 100: how many milliseconds an entry waits at most
      before it is forwarded. A `kill -9` of the writing node can lose these entries.
    * `:owners` – `:all`, or a positive integer, by default `:all`: how many members own slots; the
      others only collect. With 1 the sink has one writer, so `:partitions` and a rate limit hold
      for the cluster.
    * `:slots` – a power of 2 from 8 to 1024, by default 64: how finely the keys are divided; 64 is
      fine enough for 16 members. While it differs between members, keys have several owners, which
      costs rows.
    * `:uncertain_ms` – an integer from 0, by default 15000: only of a counter: how long a batch is
      kept from other members after its owner, which may have it, went away. Other slots go on.
    * `:call_ms` – a positive integer, by default 5000: how many milliseconds a forward waits for its
      answer before the batch is sent again, with the same number.
    * `:max_skew_ms` – an integer from 0, by default 10000: only of a map: a clock that runs further
      ahead is reported, and not followed.

  `:processor`, `:partitions`, `:processing_*`, `:retry_backoff_ms`, `:dead_letter` and `:max_attempts`
  are those of the owning stage. `:max_size`, `:max_bytes`, `:when_full` and `:full_timeout_ms` are those
  of the collecting stage; the owning stage has the same `:max_size` and `:max_bytes`, and makes nobody
  wait. `:cluster` needs `:max_attempts`, and excludes `processing_batch_size: :table`. A forward has at
  most 1,000 entries, and 256 KB unless it has one entry.

  ## Differences to a buffer of one node

    * `put`, `put_all` – need `versions: :clock`, the default, and give the version of the clock.
    * `put_newer`, `put_all_newer` – need `versions: :own`; `stale: :error` compares with the
      entries of this member.
    * `add`, `add_all` – no difference; the `count` of the processor is the number of additions of
      all members.
    * `get`, `fetch` – see the collecting stage of this member, and the entries that it owns.
    * `put_new`, `delete` – raise an `ArgumentError`, since no member has all entries. A map deletes
      with a value that means "deleted".
    * with `:partition_key` – it chooses the slot, and so the owner. In the owning stage the key
      chooses the partition.
    * `PartitionedBuffer.flush/2` – returns `:ok` when every write of this member that returned
      before is through the processor, wherever that runs; `{:error, {:away, nodes}}` if these nodes
      may have some of the writes and cannot be reached. A node that is away for `:uncertain_ms`
      counts as dead.
    * `PartitionedBuffer.stop/4`, or the end of the VM – this member leaves: it forwards its
      entries, delivers what it owns, and hands over to other members what the sink did not take.
      Both stages share one `:drain_timeout_ms`, and a hand-over may take 5 seconds more.
    * `PartitionedBuffer.info/1`, `buffer_size/1` – both stages of this member added up, and
      [`:cluster`](#module-numbers).
    * `PartitionedBuffer.pause/1` – pauses the processor of this member. Batches of others still
      come.

  ## Numbers

  `:cluster` in `PartitionedBuffer.info/1` is a map:

    * `:members` – the nodes, as `members/1` returns them.
    * `:owns`, `:slots` – how many slots this member owns, and how many there are.
    * `:owning` – `:size`, `:in_flight` and `:oldest_ms` of the owning stage alone. The age of an
      entry begins again there.
    * `:uncertain` – slots with a batch whose owner is away and may have it.
    * `:away` – these owners.
    * `:clock_ahead_ms` – how far the clock of another member was ahead at its last batch or answer,
      of the members the most; 0 for a counter.
    * `:totals` – counts of batches that only grow: `:forwarded` to their owners, this one included;
      `:taken` as the owner; `:duplicates`, which came again and were not taken; `:rerouted`, given
      back as their owner changed; `:resent` to another owner though the first may have them.

  An entry counts in the totals of both of its stages, so `written` and `processed` of a node that owns
  all slots are twice those of a buffer without `:cluster`.

  ## Telemetry

    * `[:partitioned_buffer, :cluster, :members]`. Measurements: `count`, `slots` owned by this
      node, `moved` slots. Metadata: `buffer`, `joined`, `left`.
    * `[:partitioned_buffer, :cluster, :forward, :start]`. Measurements: `size`, `bytes`. Metadata:
      `buffer`, `slot`, `to`.
    * `[:partitioned_buffer, :cluster, :forward, :stop]`. Measurements: `size`, `bytes`, `duration`.
      Metadata: `buffer`, `slot`, `to`, `outcome`: `:ok`, `:duplicate`, `:full`, `:moved` or
      `:uncertain`.
    * `[:partitioned_buffer, :cluster, :uncertain]`. Measurements: `count`, `duration`. Metadata:
      `buffer`, `slot`, `to`, `outcome`: `:taken` or `:resent`.
    * `[:partitioned_buffer, :cluster, :hand_over]`. Measurements: `count`. Metadata: `buffer`,
      `to`.
    * `[:partitioned_buffer, :cluster, :skew]`. Measurements: `ahead_ms`. Metadata: `buffer`,
      `node`.

  `members` comes when the members or owners changed. `forward` spans a call of the owner, which may be
  this node: `:duplicate` if it took the batch before, `:moved` if it is no owner any longer,
  `:uncertain` without an answer. `uncertain` comes when a batch is no longer uncertain: the owner has
  it, or it is sent to another one. At the end of a stop `hand_over` comes for each member that took
  entries. `skew` comes at most once a minute for each node. Durations are in native units.

  Handlers of `forward` run in the task that forwards, those of `hand_over` in a process that the stop
  waits for, at most a second, and all others in an emitter: see
  [Handlers](`m:PartitionedBuffer.Telemetry#module-handlers`).
  """

  alias PartitionedBuffer.API.Call
  alias PartitionedBuffer.Buffer.Lookup
  alias PartitionedBuffer.Cluster.{Requests, State}
  alias PartitionedBuffer.{Counter, Map, Options, Routing}

  # How long a remote read may take, in milliseconds.
  @timeout 5_000

  @typedoc "The name of a buffer."
  @type buffer() :: PartitionedBuffer.buffer()

  @typedoc "The [numbers](#module-numbers) of a member."
  @type numbers() :: %{
          members: [node()],
          owns: non_neg_integer(),
          slots: pos_integer(),
          owning: %{
            size: non_neg_integer(),
            in_flight: non_neg_integer(),
            oldest_ms: non_neg_integer() | nil
          },
          uncertain: non_neg_integer(),
          away: [node()],
          clock_ahead_ms: non_neg_integer(),
          totals: %{
            forwarded: non_neg_integer(),
            taken: non_neg_integer(),
            duplicates: non_neg_integer(),
            rerouted: non_neg_integer(),
            resent: non_neg_integer()
          }
        }

  @doc """
  Returns the members that this node sees, sorted: itself included, unless it left and there
  are others.

      iex> PartitionedBuffer.Cluster.members(:doc_cluster)
      [node()]
  """
  @spec members(buffer()) :: [node()]
  def members(buffer) when is_atom(buffer), do: buffer |> view!() |> elem(0)

  @doc """
  Returns the owner of a key. Entries that it owned a moment ago may be elsewhere.

  Takes the [runtime options](`m:PartitionedBuffer#module-runtime-options`).

      iex> PartitionedBuffer.Cluster.owner(:doc_cluster, :key)
      node()
  """
  @spec owner(buffer(), any(), keyword()) :: node()
  def owner(buffer, key, opts \\ []) when is_atom(buffer) do
    {_members, owners} = view!(buffer)
    {slot, _slots} = Call.route(buffer, key, opts) || Routing.route(nil, key, tuple_size(owners))
    elem(owners, slot)
  end

  @doc """
  Returns the value or sum of a key that this member or the owner has, or `default`.

  Of a map it is the value with the greater version, of a counter the sum of both. A batch on its way
  may be seen twice or not at all. Raises an `ErlangError` as `:erpc.call/5` does, with the
  reason `{:erpc, :noconnection}` or `{:erpc, :timeout}`, if the owner is away.

  Takes the [runtime options](`m:PartitionedBuffer#module-runtime-options`) and `:timeout`, in
  milliseconds. The default is 5000.

      iex> PartitionedBuffer.Counter.add(:doc_cluster, :read, 2)
      iex> PartitionedBuffer.Cluster.get(:doc_cluster, :read)
      2
  """
  @spec get(buffer(), any(), any(), keyword()) :: any()
  def get(buffer, key, default \\ nil, opts \\ []) do
    case fetch(buffer, key, opts) do
      {:ok, value} -> value
      :error -> default
    end
  end

  @doc """
  Returns `{:ok, value}` or `{:ok, sum}`, or `:error` if neither this member nor the owner has the key.
  See `get/4`.

      iex> PartitionedBuffer.Cluster.fetch(:doc_cluster, :missing)
      :error
  """
  @spec fetch(buffer(), any(), keyword()) :: {:ok, any()} | :error
  def fetch(buffer, key, opts \\ []) when is_atom(buffer) do
    {timeout, opts} = Keyword.pop(opts, :timeout, @timeout)
    Options.timeout!(buffer, timeout)
    owner = owner(buffer, key, opts)
    kind = Lookup.options!(buffer).kind

    mine = held(buffer, key, kind, opts)

    theirs =
      if owner != node(),
        do: :erpc.call(owner, __MODULE__, :held, [buffer, key, kind, opts], timeout),
        else: :error

    newest(mine, theirs)
  end

  # The entry in both stages of this member.
  @doc false
  @spec held(buffer(), any(), :map | :counter, keyword()) ::
          {:ok, any(), integer()} | {:ok, integer()} | :error
  def held(buffer, key, :counter, opts), do: Counter.fetch(buffer, key, opts)

  def held(buffer, key, :map, opts) do
    owned = Map.fetch(Routing.owning_name(buffer), key, version: true)
    buffer |> Map.fetch(key, [version: true] ++ opts) |> newer(owned)
  end

  defp newer({:ok, _value, version}, {:ok, _newer, other} = newer) when other > version, do: newer
  defp newer(:error, other), do: other
  defp newer(entry, _older), do: entry

  defp newest({:ok, sum}, {:ok, other}), do: {:ok, sum + other}
  defp newest({:ok, _sum} = mine, :error), do: mine
  defp newest(:error, {:ok, _sum} = theirs), do: theirs

  defp newest(mine, theirs) do
    with {:ok, value, _version} <- newer(mine, theirs), do: {:ok, value}
  end

  @doc """
  Flushes both stages on all members, and waits.

  Returns `:ok`, or `{:error, reasons}` with the reason of each member whose flush failed, as
  `PartitionedBuffer.flush/2` returns it, `:away` or `:not_running`. Takes `:timeout` as that function
  does. Raises an `ArgumentError` in a processor of the buffer.

      iex> PartitionedBuffer.Cluster.flush(:doc_cluster)
      :ok
  """
  @spec flush(buffer(), timeout: timeout()) :: :ok | {:error, %{node() => any()}}
  def flush(buffer, opts \\ []) when is_atom(buffer), do: Requests.flush_all(buffer, opts)

  @doc """
  Returns `PartitionedBuffer.info/1` of each member, or `{:error, reason}` in its place.

  Takes `:timeout`, in milliseconds. The default is 5000.

      iex> %{members: [_node]} = PartitionedBuffer.Cluster.info(:doc_cluster)[node()].cluster
  """
  @spec info(buffer(), timeout: timeout()) :: %{node() => PartitionedBuffer.info() | {:error, any()}}
  def info(buffer, opts \\ []) when is_atom(buffer),
    do: Requests.info_all(buffer, Options.timeout!(buffer, Keyword.get(opts, :timeout, @timeout)))

  @doc """
  Makes this node own nothing, before a maintenance: it forwards all that it collects, and delivers what
  it already owns. It goes on collecting.

  If it is the only member, it still owns all slots. It stays away until `join/1`, or until the
  supervisor of the buffer starts again.

      iex> PartitionedBuffer.Cluster.leave(:doc_cluster)
      :ok
  """
  @spec leave(buffer()) :: :ok
  def leave(buffer) when is_atom(buffer) do
    view!(buffer)
    Requests.set_left(buffer, true)
  end

  @doc """
  Makes this node a member again, after `leave/1`.

      iex> PartitionedBuffer.Cluster.join(:doc_cluster)
      :ok
  """
  @spec join(buffer()) :: :ok
  def join(buffer) when is_atom(buffer) do
    view!(buffer)
    Requests.set_left(buffer, false)
  end

  defp view!(buffer) do
    if Lookup.cluster?(buffer), do: State.view(buffer), else: Requests.not_clustered!(buffer)
  end
end
