defmodule PartitionedBuffer.Map do
  @moduledoc """
  A buffer of key–value entries. Writes to the same key coalesce, and a processor function receives
  the entries in batches.

      iex> alias PartitionedBuffer.Map, as: Buffer
      iex> me = self()
      iex> {:ok, _supervisor} =
      ...>   Buffer.start_link(name: :visits, processor: fn batch -> send(me, {:batch, batch}) end)
      iex> Buffer.put(:visits, :alice, 1)
      iex> Buffer.put(:visits, :alice, 2)
      iex> Buffer.get(:visits, :alice)
      2
      iex> Buffer.stop(:visits)
      :ok
      iex> receive do {:batch, batch} -> batch end
      [{:alice, 2, 0, 0}]

  Any process can write, at any rate: a write is one call into native code in the calling process.
  It sends no message and waits for no process. The key chooses the partition of an entry, and
  entries live outside of all process heaps. Each partition flushes its entries every
  `:processing_interval_ms` and goes on with an empty map. `PartitionedBuffer` documents the options,
  [Guarantees](guarantees.md) the promises, and `PartitionedBuffer.Telemetry` the events.

  ## Semantics

    * Keys and values are any terms. Keys are compared with `===`: `1` and `1.0` are two keys.
    * `put/4` and `put_all/3` replace the entry of a key: the last write wins. Their entries have
      version 0.
    * `put_newer/5` and `put_all_newer/3` replace an entry only if the new version is greater.
      Before a flush the newest version wins, in whatever order versions arrive. Versions are
      integers of any size.
    * The buffer forgets flushed versions. An old version that arrives after the flush of a newer
      one is flushed too. If that can happen, let the processor write conditionally, for example
      with `ON CONFLICT (id) DO UPDATE ... WHERE users.version < excluded.version`.
    * With [`versions: :clock`](#module-versions) `put/4` and the like give their entries versions, so
      that the sink can refuse older ones.
    * `get/4`, `fetch/3`, `put_new/4`, `put_newer/5`, `delete/3` and `size/1` see the entries
      waiting for the next flush, but no entries in flight. With `:max_attempts` all but `size/1`
      also see entries in flight; see [Delivery](delivery.md).
    * A call hashes its key as a whole, half a millisecond for a binary of a megabyte, and nothing
      can interrupt this. So use the hash of a document as its key; see
      [Locks and slices](architecture.md#locks-and-slices).
    * With `:cluster` the nodes share the buffer, and some functions differ: see
      `PartitionedBuffer.Cluster`.
    * A call that raises because of its arguments writes nothing.
    * Every operation except `stop/4` raises an `ArgumentError` if the buffer is not running, a
      `RuntimeError` if it has 0 partitions.

  ## Versions

  The option `:versions` chooses whose versions the entries have:

    * not given – `put/4`, `put_all/3` and `put_new/4` write version 0, and replace any entry.
      `put_newer/5` and `put_all_newer/3` write the version of the call.
    * `:clock` – `put/4`, `put_all/3` and `put_new/4` write the version of the clock, and replace only
      older entries. `put_newer/5` and `put_all_newer/3` raise an `ArgumentError`.
    * `:own` – `put/4`, `put_all/3` and `put_new/4` raise an `ArgumentError`. `put_newer/5` and
      `put_all_newer/3` write the version of the call.

  With `:clock` the statement of the processor can refuse older versions, without a version in the
  data. So a late retry, a statement that timed out, or a write of another node never replaces a
  newer value: see [Several nodes](several-nodes.html). The clock has these properties:

    * A version is the time of the write in microseconds since 1970, times 128: a `bigint` for a
      database, and a small integer for the VM until 2112.
    * The versions of a key on one node have the order of its writes, also within a microsecond and
      while the clock of the system is set back. They grow until the VM ends.
    * Of writes on two nodes the one with the greater version is the newer one, up to the difference
      of their clocks. All nodes, the sink and every retry agree on it.
    * After a restart of the VM with a clock that was set back, new versions are smaller than older
      ones, as with any wall clock.
    * Each replacement of a waiting entry adds 1 to its `updates`. `fetch/3` returns the version with
      the option `version: true`.
    * A waiting entry with a version ahead of the clock, from a start without `:clock`, stays: the
      write is dropped and counts as `:stale` in `PartitionedBuffer.info/1`.

  ## Processor

  The processor is called with a list of `{key, value, version, updates}` tuples. `version` is 0 for
  an entry written without a version. `updates` counts how often `put_newer/5` or `put_all_newer/3`
  replaced the value since the last flush; `put/4` and `put_all/3` set it to 0, unless the map has
  `versions: :clock`. Each entry of a
  flush is in one batch, and in another one only after a failure with `:max_attempts`. A batch has
  `:processing_batch_size` entries. The last batch of a flush may have fewer, and so may
  [batches after a failure](delivery.md#isolation). The return value of the
  processor is ignored, unless the buffer has `:max_attempts`.

      def process(batch) do
        # Sorted, so that statements of several nodes do not deadlock.
        rows = for {id, user, _, _} <- Enum.sort(batch), do: %{id: id, name: user.name}
        MyApp.Repo.insert_all("users", rows, on_conflict: :replace_all, conflict_target: :id)
      end
  """

  alias PartitionedBuffer.API.{Call, Definition}
  alias PartitionedBuffer.{Native, Options, Routing}

  @typedoc "The name of a buffer."
  @type buffer() :: PartitionedBuffer.buffer()

  @doc """
  Starts a buffer, linked to the calling process.

  Takes the [start options](`m:PartitionedBuffer#module-start-options`). Returns the pid of the
  buffer's supervisor, or `{:error, {:already_started, pid}}` if the name is taken. Raises if an
  option is missing or invalid.

      iex> options = [name: :start_link_doc, processor: &Function.identity/1]
      iex> {:ok, pid} = PartitionedBuffer.Map.start_link(options)
      iex> PartitionedBuffer.Map.start_link(options)
      {:error, {:already_started, pid}}
  """
  @doc group: "Start and stop"
  @spec start_link(keyword()) :: Supervisor.on_start()
  def start_link(opts), do: PartitionedBuffer.API.Start.start_link(__MODULE__, opts)

  @doc false
  @spec __kind__() :: :map
  def __kind__, do: :map

  @doc """
  Returns the child specification of a buffer, for a supervision tree.

  Takes the same options as `start_link/1`, which checks them when the buffer starts. The id is the
  name of the buffer, or this module if the options have no name.

      iex> PartitionedBuffer.Map.child_spec(name: :users, processor: &Function.identity/1).id
      :users

      children = [{PartitionedBuffer.Map, name: :users, processor: &MyApp.Users.process/1}]
      Supervisor.start_link(children, strategy: :one_for_one)
  """
  @doc group: "Start and stop"
  @spec child_spec(keyword()) :: Supervisor.child_spec()
  def child_spec(opts), do: PartitionedBuffer.Buffer.Supervisor.child_spec(__MODULE__, opts)

  @doc """
  Processes the entries of a buffer and stops it, with these
  [guarantees](guarantees.md).

  `buffer` is the name of the buffer or the pid of its supervisor. A partition refuses writes as
  soon as its flush in flight is done. Exits and raises as `PartitionedBuffer.stop/4` does.

      iex> {:ok, _pid} =
      ...>   PartitionedBuffer.Map.start_link(name: :stop_doc, processor: &Function.identity/1)
      iex> PartitionedBuffer.Map.stop(:stop_doc)
      :ok
  """
  @doc group: "Start and stop"
  @spec stop(buffer() | pid(), any(), timeout(), [PartitionedBuffer.stop_option()]) :: :ok
  def stop(buffer, reason \\ :normal, timeout \\ :infinity, opts \\ []),
    do: PartitionedBuffer.stop(buffer, reason, timeout, opts)

  @doc """
  Defines a buffer as a module. The buffer has the name of the module.

      defmodule MyApp.Users do
        use PartitionedBuffer.Map, otp_app: :my_app, preset: :database, processor: &MyApp.Repo.upsert_users/1
      end

      children = [MyApp.Users]
      MyApp.Users.put(7, %{name: "Ada"})

  The [start options](`m:PartitionedBuffer#module-start-options`) except `:name` come from three
  places. An option from a later place replaces the same option from an earlier one:

    1. the `use` line,
    2. the application environment, if the `use` line has `:otp_app`:
       `config :my_app, MyApp.Users, processing_interval_ms: 500`. It is read when the buffer
       starts.
    3. the options of `start_link/1` or of the child specification: `{MyApp.Users, partitions: 2}`.

  One of them must choose the delivery: `:max_attempts`, which is `nil` for at most once, or a
  `:preset`.

  The module has these functions:

    * `child_spec/1`, `start_link/0` and `start_link/1`, which can be overridden,
    * `stop/0` to `stop/2`, `size/0`, `flush/0` and `flush/1`, `sync/0` and `sync/1`, `pause/0`,
      `resume/0`, `info/0`, `watch/0`, `update_options/1`,
    * the functions of `PartitionedBuffer.Map` without the argument `buffer`: `put/2` and `put/3`,
      `put_all/1` and `put_all/2`, `put_new/2` and `put_new/3`, `put_newer/3` and `put_newer/4`,
      `put_all_newer/1` and `put_all_newer/2`, `get/1` and `get/3`, `fetch/1` and `fetch/2`,
      `delete/1` and `delete/2`. `get/2` does not exist, because its second argument could mean the
      default or the options.

      iex> defmodule DocUsers do
      ...>   use PartitionedBuffer.Map, processor: &Function.identity/1, max_attempts: 3
      ...> end
      iex> {:ok, _pid} = DocUsers.start_link(partitions: 2)
      iex> DocUsers.put(:ada, 1)
      :ok
      iex> DocUsers.get(:ada)
      1
      iex> PartitionedBuffer.Map.size(DocUsers)
      1
      iex> DocUsers.stop()
      :ok
  """
  @doc group: "Start and stop"
  defmacro __using__(opts) do
    quote location: :keep do
      unquote(Definition.functions(__MODULE__, opts))

      @doc """
      Puts a value for a key, and replaces the entry of the key. See `PartitionedBuffer.Map.put/4`.
      """
      @doc group: "Write"
      @spec put(any(), any(), keyword()) :: :ok | {:error, :full | :journal}
      def put(key, value, opts \\ []) when is_list(opts),
        do: PartitionedBuffer.Map.put(__MODULE__, key, value, opts)

      @doc """
      Puts a map, or an enumerable of `{key, value}` tuples. See `PartitionedBuffer.Map.put_all/3`.
      """
      @doc group: "Write"
      @spec put_all(Enumerable.t(), keyword()) :: :ok | {:error, :full | :journal}
      def put_all(entries, opts \\ []) when is_list(opts),
        do: PartitionedBuffer.Map.put_all(__MODULE__, entries, opts)

      @doc """
      Puts a value for a key, unless the key has an entry with the same or a greater version.

      With `stale: :error` it returns `{:error, :stale}` in that case. See
      `PartitionedBuffer.Map.put_newer/5`.
      """
      @doc group: "Write"
      @spec put_newer(any(), any(), integer(), keyword()) :: :ok | {:error, :stale | :full}
      def put_newer(key, value, version, opts \\ []) when is_list(opts),
        do: PartitionedBuffer.Map.put_newer(__MODULE__, key, value, version, opts)

      @doc """
      Puts a value for a key without an entry. Returns `{:error, :exists}` for a key with one.

      See `PartitionedBuffer.Map.put_new/4`.
      """
      @doc group: "Write"
      @spec put_new(any(), any(), keyword()) :: :ok | {:error, :exists | :full}
      def put_new(key, value, opts \\ []) when is_list(opts),
        do: PartitionedBuffer.Map.put_new(__MODULE__, key, value, opts)

      @doc """
      Puts an enumerable of `{key, value, version}` tuples, each as `put_newer/3` does.

      See `PartitionedBuffer.Map.put_all_newer/3`.
      """
      @doc group: "Write"
      @spec put_all_newer(Enumerable.t(), keyword()) :: :ok | {:error, :full | :journal}
      def put_all_newer(entries, opts \\ []) when is_list(opts),
        do: PartitionedBuffer.Map.put_all_newer(__MODULE__, entries, opts)

      @doc "Returns the value of a key, or `nil`. See `PartitionedBuffer.Map.get/4`."
      @doc group: "Read"
      @spec get(any()) :: any()
      def get(key), do: PartitionedBuffer.Map.get(__MODULE__, key)

      @doc "Returns the value of a key, or `default`. See `PartitionedBuffer.Map.get/4`."
      @doc group: "Read"
      @spec get(any(), any(), keyword()) :: any()
      def get(key, default, opts) when is_list(opts),
        do: PartitionedBuffer.Map.get(__MODULE__, key, default, opts)

      @doc """
      Returns `{:ok, value}`, or `:error` for a key without an entry.

      With `version: true` it returns `{:ok, value, version}`. See `PartitionedBuffer.Map.fetch/3`.
      """
      @doc group: "Read"
      @spec fetch(any(), keyword()) :: {:ok, any()} | {:ok, any(), integer()} | :error
      def fetch(key, opts \\ []) when is_list(opts), do: PartitionedBuffer.Map.fetch(__MODULE__, key, opts)

      @doc "Deletes the entry of a key. See `PartitionedBuffer.Map.delete/3`."
      @doc group: "Write"
      @spec delete(any(), keyword()) :: :ok
      def delete(key, opts \\ []) when is_list(opts), do: PartitionedBuffer.Map.delete(__MODULE__, key, opts)
    end
  end

  @doc """
  Puts a value for a key, and replaces the key's entry, if any.

  In a buffer with `:max_size` this and all other writes may wait, raise a
  `PartitionedBuffer.FullError` or return `{:error, :full}`: see
  [Threshold and bound](configuring.md#threshold-and-bound). Takes the
  [runtime options](`m:PartitionedBuffer#module-runtime-options`).

      iex> PartitionedBuffer.Map.put(:doc, :key, "value")
      :ok
      iex> region = fn {region, _id} -> region end
      iex> PartitionedBuffer.Map.put(:doc, {:eu, 7}, "value", partition_key: region)
      :ok
  """
  @doc group: "Write"
  @spec put(buffer(), any(), any(), keyword()) :: :ok | {:error, :full | :journal}
  def put(buffer, key, value, opts \\ [])

  def put(buffer, key, value, []) when is_atom(buffer) do
    with refused when refused != :ok <- Native.put(buffer, nil, key, value),
         do: Call.refused(refused, buffer, :map, nil, [:put, key, value])
  end

  def put(buffer, key, value, opts) when is_atom(buffer) do
    route = Call.route(buffer, key, opts)

    with refused when refused != :ok <- Native.put(buffer, route, key, value),
         do: Call.refused(refused, buffer, :map, route, [:put, key, value])
  end

  @doc """
  Puts the entries of a map, or of a list or another enumerable of `{key, value}` tuples in their
  order.

  The call reads an enumerable to its end before it writes the first entry. Raises an
  `ArgumentError`, and writes nothing, if the enumerable contains anything else; if the enumerable
  itself raises, nothing is written either. Takes the
  [runtime options](`m:PartitionedBuffer#module-runtime-options`); a function given as
  `:partition_key` is called for all entries before the first is written.

      iex> PartitionedBuffer.Map.put_all(:doc, %{a: 1, b: 2})
      :ok
      iex> PartitionedBuffer.Map.put_all(:doc, [{:a, 1}, {:a, 2}])
      :ok
      iex> PartitionedBuffer.Map.get(:doc, :a)
      2
      iex> PartitionedBuffer.Map.put_all(:doc, Stream.map(1..3, &{&1, &1 * &1}))
      :ok
  """
  @doc group: "Write"
  @spec put_all(buffer(), Enumerable.t(), keyword()) :: :ok | {:error, :full | :journal}
  def put_all(buffer, entries, opts \\ []) when is_atom(buffer),
    do: Call.write_list(buffer, :put_all, Call.to_list!(entries, buffer, :pair), opts)

  @doc """
  Puts a value for a key, unless the key has an entry with the same or a greater version.

  An entry written by `put/4` has version 0. Each replacement adds 1 to the entry's `updates`, which
  begin at 0. Returns `:ok` in both cases; with the option `stale: :error` it returns
  `{:error, :stale}` if it did not store the value. With `:max_attempts`, if no entry of the key
  waits, the version must be greater than the version of the key's entry in flight.

  Raises an `ArgumentError` if the version is not an integer. Takes the
  [runtime options](`m:PartitionedBuffer#module-runtime-options`).

      iex> PartitionedBuffer.Map.put_newer(:doc, :user, "new", 200)
      :ok
      iex> PartitionedBuffer.Map.put_newer(:doc, :user, "late", 100)
      :ok
      iex> PartitionedBuffer.Map.get(:doc, :user)
      "new"
      iex> PartitionedBuffer.Map.put_newer(:doc, :user, "late", 100, stale: :error)
      {:error, :stale}
  """
  @doc group: "Write"
  @spec put_newer(buffer(), any(), any(), integer(), keyword()) :: :ok | {:error, :stale | :full}
  def put_newer(buffer, key, value, version, opts \\ [])

  def put_newer(buffer, key, value, version, []) when is_atom(buffer) and is_integer(version) do
    with refused when refused not in [:ok, :stale] <- Native.put_newer(buffer, nil, key, value, version),
         do:
           refused
           |> Call.refused(buffer, :map, nil, [:put_newer, key, value, version])
           |> stored_or_stale(false),
         else: (_stored_or_stale -> :ok)
  end

  def put_newer(buffer, key, value, version, opts) when is_atom(buffer) and is_integer(version) do
    {stale_is_error?, opts} = Options.stale!(buffer, opts)
    route = Call.route(buffer, key, opts)

    stored_or_stale(
      with refused when refused not in [:ok, :stale] <- Native.put_newer(buffer, route, key, value, version) do
        Call.refused(refused, buffer, :map, route, [:put_newer, key, value, version])
      end,
      stale_is_error?
    )
  end

  def put_newer(buffer, key, value, version, _opts) when is_atom(buffer),
    do: Call.invalid!({:invalid, {key, value, version}}, buffer, :versioned)

  defp stored_or_stale(:stale, true = _stale_is_error?), do: {:error, :stale}
  defp stored_or_stale(:stale, false = _stale_is_error?), do: :ok
  defp stored_or_stale(stored_or_full, _stale_is_error?), do: stored_or_full

  @doc """
  Puts a value for a key without an entry. Returns `{:error, :exists}` for a key with one.

  With `:max_attempts` an entry in flight counts as well. Raises an `ArgumentError` with `:cluster`,
  since other nodes may have an entry of the key. Takes the
  [runtime options](`m:PartitionedBuffer#module-runtime-options`).

      iex> PartitionedBuffer.Map.put_new(:doc, :once, 1)
      :ok
      iex> PartitionedBuffer.Map.put_new(:doc, :once, 2)
      {:error, :exists}
  """
  @doc group: "Write"
  @spec put_new(buffer(), any(), any(), keyword()) :: :ok | {:error, :exists | :full}
  def put_new(buffer, key, value, opts \\ []) when is_atom(buffer) do
    route = Call.route(buffer, key, opts)

    result =
      with refused when refused not in [:ok, :exists] <- Native.put_new(buffer, route, key, value),
           do: Call.refused(refused, buffer, :map, route, [:put_new, key, value])

    case result do
      :exists -> {:error, :exists}
      :elsewhere -> Call.elsewhere!(buffer, "put_new/4")
      stored_or_full -> stored_or_full
    end
  end

  @doc """
  Puts the entries of a list or another enumerable of `{key, value, version}` tuples in their order,
  each as `put_newer/5` does.

  The call reads an enumerable to its end before it writes the first entry. Raises an
  `ArgumentError`, and writes nothing, if the enumerable contains anything else; if the enumerable
  itself raises, nothing is written either. Takes the
  [runtime options](`m:PartitionedBuffer#module-runtime-options`).

      iex> PartitionedBuffer.Map.put_all_newer(:doc, [{:x, "second", 2}, {:x, "first", 1}])
      :ok
      iex> PartitionedBuffer.Map.get(:doc, :x)
      "second"
  """
  @doc group: "Write"
  @spec put_all_newer(buffer(), Enumerable.t(), keyword()) :: :ok | {:error, :full | :journal}
  def put_all_newer(buffer, entries, opts \\ []) when is_atom(buffer),
    do: Call.write_list(buffer, :put_all_newer, Call.to_list!(entries, buffer, :versioned), opts)

  @doc """
  Returns the value of a key, or `default` if no entry with this key waits for the next flush.

  With `:max_attempts` it also sees an entry in flight, until the processor succeeds with it. Takes
  the [runtime options](`m:PartitionedBuffer#module-runtime-options`). They must choose the
  partition that the key was put into.

      iex> PartitionedBuffer.Map.put(:doc, :stored_nil, nil)
      iex> PartitionedBuffer.Map.get(:doc, :stored_nil, :default)
      nil
      iex> PartitionedBuffer.Map.get(:doc, :missing, :default)
      :default
  """
  @doc group: "Read"
  @spec get(buffer(), any(), any(), keyword()) :: any()
  def get(buffer, key, default \\ nil, opts \\ [])

  def get(buffer, key, default, []) when is_atom(buffer),
    do: buffer |> Native.get(nil, key) |> found(buffer, key, default)

  def get(buffer, key, default, opts) when is_atom(buffer),
    do: buffer |> Native.get(Call.route(buffer, key, opts), key) |> found(buffer, key, default)

  defp found({:ok, value}, _buffer, _key, _default), do: value
  defp found(:error, _buffer, _key, default), do: default
  # The keys of the owning stage choose their partitions.
  defp found(:elsewhere, buffer, key, default), do: get(Routing.owning_name(buffer), key, default)
  defp found(:not_running, buffer, _key, _default), do: Routing.not_running!(buffer, :map)

  @doc """
  Returns `{:ok, value}`, or `:error` if no entry with this key waits for the next flush. It sees
  what `get/4` sees.

  With `version: true` it returns `{:ok, value, version}`. Takes the
  [runtime options](`m:PartitionedBuffer#module-runtime-options`) as well.

      iex> PartitionedBuffer.Map.put(:doc, :fetched, nil)
      iex> PartitionedBuffer.Map.fetch(:doc, :fetched)
      {:ok, nil}
      iex> PartitionedBuffer.Map.fetch(:doc, :missing)
      :error
      iex> PartitionedBuffer.Map.put_newer(:doc, :versioned, "value", 7)
      iex> PartitionedBuffer.Map.fetch(:doc, :versioned, version: true)
      {:ok, "value", 7}
  """
  @doc group: "Read"
  @spec fetch(buffer(), any(), keyword()) :: {:ok, any()} | {:ok, any(), version :: integer()} | :error
  def fetch(buffer, key, opts \\ []) when is_atom(buffer) do
    {version?, opts} = Options.version!(buffer, opts)
    route = Call.route(buffer, key, opts)

    case if(version?, do: Native.get_versioned(buffer, route, key), else: Native.get(buffer, route, key)) do
      :not_running -> Routing.not_running!(buffer, :map)
      :elsewhere -> fetch(Routing.owning_name(buffer), key, version: version?)
      found -> found
    end
  end

  @doc """
  Deletes the waiting entry of a key, and with `:max_attempts` also its entry in flight.

  If the entry in flight is not in a batch yet, the processor does not get it. If it is in a batch,
  it is not retried. Reads no longer see it either way. Without `:max_attempts` the call does not
  affect entries in flight: the processor still gets them. Raises an `ArgumentError` with `:cluster`,
  since other nodes may have entries of the key: put a value that means "deleted".

  Takes the [runtime options](`m:PartitionedBuffer#module-runtime-options`). They must choose the
  partition that the key was put into.

      iex> PartitionedBuffer.Map.put(:doc, :deleted, 1)
      iex> PartitionedBuffer.Map.delete(:doc, :deleted)
      :ok
      iex> PartitionedBuffer.Map.get(:doc, :deleted)
      nil
  """
  @doc group: "Write"
  @spec delete(buffer(), any(), keyword()) :: :ok
  def delete(buffer, key, opts \\ []) when is_atom(buffer),
    do: buffer |> Native.delete(Call.route(buffer, key, opts), key) |> Call.deleted!(buffer, :map)

  @doc """
  Gives all entries to the processor now, and waits until it is done. See
  `PartitionedBuffer.flush/2`.

      iex> PartitionedBuffer.Map.flush(:doc)
      :ok
  """
  @doc group: "Write"
  @spec flush(buffer(), timeout: timeout(), async: boolean()) ::
          :ok | {:error, :timeout | :paused | {:failed, non_neg_integer()} | {:away, [node()]}}
  def flush(buffer, opts \\ []), do: PartitionedBuffer.flush(buffer, opts)

  @doc """
  Waits until the journal has all writes before. See `PartitionedBuffer.sync/2`.
  """
  @doc group: "Write"
  @spec sync(buffer(), level: :written | :synced, timeout: timeout()) ::
          :ok | {:error, :timeout | File.posix()}
  def sync(buffer, opts \\ []), do: PartitionedBuffer.sync(buffer, opts)

  @doc """
  Lets no call of the processor begin until `resume/1`. See `PartitionedBuffer.pause/1`.

      iex> PartitionedBuffer.Map.pause(:doc)
      :ok
      iex> PartitionedBuffer.Map.resume(:doc)
      :ok
  """
  @doc group: "Start and stop"
  @spec pause(buffer()) :: :ok
  def pause(buffer), do: PartitionedBuffer.pause(buffer)

  @doc """
  Lets calls of the processor begin again. See `PartitionedBuffer.resume/1`.

      iex> PartitionedBuffer.Map.resume(:doc)
      :ok
  """
  @doc group: "Start and stop"
  @spec resume(buffer()) :: :ok
  def resume(buffer), do: PartitionedBuffer.resume(buffer)

  @doc """
  Returns how many entries wait for the next flush, in all partitions.

      iex> PartitionedBuffer.Map.size(:doc)
      0
  """
  @doc group: "Read"
  @spec size(buffer()) :: non_neg_integer()
  def size(buffer), do: PartitionedBuffer.buffer_size(buffer)

  @doc """
  Returns the numbers of the buffer: its entries, its delay and its totals. See
  `PartitionedBuffer.info/1`.

      iex> PartitionedBuffer.Map.info(:doc).kind
      :map
  """
  @doc group: "Observe"
  @spec info(buffer()) :: PartitionedBuffer.info()
  def info(buffer), do: PartitionedBuffer.info(buffer)

  @doc """
  Changes options of a running buffer. See `PartitionedBuffer.update_options/2`.

      iex> PartitionedBuffer.Map.update_options(:doc, processing_interval_ms: 100)
      :ok
  """
  @doc group: "Start and stop"
  @spec update_options(buffer(), keyword()) :: :ok
  def update_options(buffer, opts), do: PartitionedBuffer.update_options(buffer, opts)
end
