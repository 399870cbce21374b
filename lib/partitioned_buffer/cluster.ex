defmodule PartitionedBuffer.Cluster do
  @moduledoc """
  The members of a buffer that several nodes share.

  A `PartitionedBuffer.Map` or `PartitionedBuffer.Counter` with the option `:cluster` collects a key on
  each node that writes it, and adds it up on the one node that *owns* it. From there the processor
  stores it:

      children = [{PartitionedBuffer.Counter, name: :views, processor: &store/1, max_attempts: 100, cluster: true}]

  The functions of the buffer's own module work on this node alone, at their usual price. The functions
  here ask other nodes, so they may take as long as a remote call. All of them raise an `ArgumentError`
  if the buffer is not running, or runs without `:cluster`. The guide
  [Several nodes](several-nodes.html) says when to use it, and what happens when nodes come and go.

  Here, a *member* is a node that runs the buffer. A *slot* is a part of the keys: the partition that
  the key has among the `:slots`. The *owner* of a slot delivers its keys. The *collecting* stage takes
  the writes and *forwards* them in batches to the owners; it has the name of the buffer. The *owning*
  stage of the owner calls the processor; it is a buffer with the name `Module.concat(name, Owning)`,
  which its telemetry events have.

  ## Options

  `:cluster` is `true` or a keyword list of these. All but `:slots` can be changed with
  `PartitionedBuffer.update_options/2`, as in `update_options(:views, cluster: [owners: 1])`.

  | option | type | default | meaning |
  |---|---|---|---|
  | `:forward_ms` | positive integer | 100 | how long an entry waits at most before it is forwarded, in milliseconds: what a `kill -9` of the writing node can lose |
  | `:owners` | `:all`, or positive integer | `:all` | only so many members own slots, the others collect. With 1 the sink has one writer, so `:partitions` and a rate limit hold for the cluster |
  | `:slots` | power of 2 from 8 to 1024 | 64 | how finely the keys are divided. If it differs between members, keys have several owners |
  | `:uncertain_ms` | integer from 0 | 15000 | of a counter: how long a batch whose owner is away, and may have it, is kept from others. Other slots go on |
  | `:call_ms` | positive integer | 5000 | how long a forward waits for its answer before it asks again |
  | `:max_skew_ms` | integer from 0 | 10000 | a clock that is further ahead of this one, and of most, is not followed, and is reported |

  `:processor`, `:partitions`, `:processing_*`, `:retry_backoff_ms`, `:dead_letter` and `:max_attempts`
  are those of the owning stage. `:max_size`, `:max_bytes`, `:when_full` and `:full_timeout_ms` are those
  of the collecting stage; the owning stage has the same `:max_size` and `:max_bytes`, and makes nobody
  wait. `:cluster` needs `:max_attempts`, and excludes `processing_batch_size: :table`. A forward has at
  most 1,000 entries, and 256 KB unless it has one entry.

  ## Differences to a buffer of one node

  | call | with `:cluster` |
  |---|---|
  | `put`, `put_all` | as before, with a version of the clock |
  | `put_newer`, `put_all_newer` | as before, with `versions: :own`; `stale: :error` returns what this member knows |
  | `add`, `add_all` | as before; the `count` of the processor is the number of additions of all members |
  | `get`, `fetch` | the collecting stage of this member, and what it owns itself |
  | `put_new`, `delete` | raise an `ArgumentError`, since no member has all entries. A map deletes with a value that means "deleted" |
  | `PartitionedBuffer.flush/2` | `:ok` when every write of this member that returned before is through the processor, wherever that runs. May also return `{:error, {:away, nodes}}`: these nodes have some of the writes and cannot be reached. A node that is away for `:uncertain_ms` counts as dead |
  | `PartitionedBuffer.stop/4` | this member leaves: it forwards, delivers, and hands over the rest |
  | `PartitionedBuffer.info/1`, `buffer_size/1` | both stages of this member added up, and `:cluster` |
  | `PartitionedBuffer.pause/1` | pauses the processor of this member |

  ## Telemetry

  | event | measurements | metadata |
  |---|---|---|
  | `[:partitioned_buffer, :cluster, :members]` | `count`, `slots` owned here, `moved` | `buffer`, `joined`, `left` |
  | `[:partitioned_buffer, :cluster, :forward, :start]` | `size`, `bytes` | `buffer`, `slot`, `to` |
  | `[:partitioned_buffer, :cluster, :forward, :stop]` | `size`, `bytes`, `duration` | `buffer`, `slot`, `to`, `outcome`: `:ok`, `:duplicate`, `:full`, `:moved` or `:uncertain` |
  | `[:partitioned_buffer, :cluster, :uncertain]` | `count`, `duration` | `buffer`, `slot`, `to`, `outcome`: `:taken` or `:resent` |
  | `[:partitioned_buffer, :cluster, :hand_over]` | `count` | `buffer`, `to` |
  | `[:partitioned_buffer, :cluster, :skew]` | `ahead_ms` | `buffer`, `node` |

  Handlers of `forward` run in the task that forwards, all others in the emitter: see
  [Handlers](`m:PartitionedBuffer#module-handlers`).
  """

  alias PartitionedBuffer.API.Call
  alias PartitionedBuffer.Buffer.Lookup
  alias PartitionedBuffer.Cluster.{Requests, State}
  alias PartitionedBuffer.{Counter, Map, Options, Routing}

  # How long a remote read may take, in milliseconds.
  @timeout 5_000

  @typedoc "The name of a buffer."
  @type buffer() :: PartitionedBuffer.buffer()

  @doc """
  Returns the sorted nodes that this node knows as members, itself included unless it left.

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

  Of a map it is the value with the greater version, of a counter the sum of both. A batch that is being
  forwarded may be seen twice or not at all. Exits as `:erpc.call/5` does if the owner is away.

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

    mine =
      if kind == :map,
        do: Map.fetch(buffer, key, [version: true] ++ opts),
        else: Counter.fetch(buffer, key, opts)

    theirs =
      cond do
        owner != node() -> :erpc.call(owner, Requests, :owned, [buffer, key, kind], timeout)
        # The sum of this member has both stages.
        kind == :counter -> :error
        true -> Requests.owned(buffer, key, kind)
      end

    newest(mine, theirs)
  end

  defp newest({:ok, value, version}, {:ok, _value, other}) when version >= other, do: {:ok, value}
  defp newest(_older, {:ok, value, _version}), do: {:ok, value}
  defp newest({:ok, value, _version}, :error), do: {:ok, value}
  defp newest({:ok, sum}, {:ok, other}), do: {:ok, sum + other}
  defp newest(:error, other), do: other
  defp newest(mine, :error), do: mine

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

  If it is the only member, it still owns all slots.

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
