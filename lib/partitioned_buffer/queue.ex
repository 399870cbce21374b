defmodule PartitionedBuffer.Queue do
  @moduledoc """
  A buffer of items, which keep the order in which they were pushed.

  Any process can push items, at any rate. Each partition flushes its items every
  `:processing_interval_ms`, and a processor function receives them in batches: lists of items, each
  exactly as it was pushed. Equal items are all kept.

      defmodule MyApp.Events do
        def start_link(opts) do
          options = [name: :events, processor: &MyApp.Events.process/1]
          PartitionedBuffer.Queue.start_link(options ++ opts)
        end

        def process(batch) do
          MyApp.Broker.publish(batch)
        end
      end

      PartitionedBuffer.Queue.push(:events, {:signed_up, 7})

  `PartitionedBuffer` documents the options, [Guarantees](guarantees.md) the promises, and
  `PartitionedBuffer.Telemetry` the events.

  ## Order

  The processor gets the items of a partition in the order in which they were pushed, within a flush
  and from one flush to the next. An item comes before another one if its push returned before the
  other push began.

  Partitions have no order among each other. Without a partition key, an item chooses its own
  partition: equal items are in the same partition, different items may be in any. To keep the order
  of different items, push them with the same `:partition_key`, or start the buffer with one
  partition.

  With `:max_attempts` the option `:order` decides what a failed item does:

    * `:strict`, the default: it stays at the head of its partition, which pauses. Newer items wait
      until the processor succeeds with it, or it is given up. So items succeed in their order,
      unless the processor names failed items of a batch: then the others in the batch succeeded.
    * `:none`: it waits again, behind the others, and holds up no item. Use it if the order does not
      matter, or if items of many tenants share a partition.

  Both keep all items, and split a failed batch of several items first: see
  [Isolation](delivery.md#isolation).

  ## Tables

  With `processing_batch_size: :table` the [table](delivery.md#tables) is an
  `:ordered_set` of records `{:entry, {:key, monotonic_time, ref}, item, 0, 0}`, in the order of the
  items.
  """

  alias PartitionedBuffer.API.{Call, Definition}
  alias PartitionedBuffer.Native

  @typedoc "The name of a buffer."
  @type buffer() :: PartitionedBuffer.buffer()

  @typedoc "The argument of the processor."
  @type batch() :: [any()]

  @doc """
  Starts a buffer, linked to the calling process.

  Takes the [start options](`m:PartitionedBuffer#module-start-options`). Returns the pid of the
  buffer's supervisor, or `{:error, {:already_started, pid}}` if the name is taken. Raises if an
  option is missing or invalid.

      iex> {:ok, _pid} =
      ...>   PartitionedBuffer.Queue.start_link(
      ...>     name: :start_link_events,
      ...>     processor: &Function.identity/1
      ...>   )
      iex> PartitionedBuffer.Queue.push(:start_link_events, :event)
      :ok
  """
  @doc group: "Start and stop"
  @spec start_link(keyword()) :: Supervisor.on_start()
  def start_link(opts), do: PartitionedBuffer.API.Start.start_link(__MODULE__, opts)

  @doc false
  @spec __kind__() :: :queue
  def __kind__, do: :queue

  @doc """
  Returns the child specification of a buffer, for a supervision tree.

  Takes the same options as `start_link/1`, which checks them when the buffer starts. The id is the
  name of the buffer, or this module if the options have no name.

      iex> PartitionedBuffer.Queue.child_spec(name: :events, processor: &Function.identity/1).id
      :events
  """
  @doc group: "Start and stop"
  @spec child_spec(keyword()) :: Supervisor.child_spec()
  def child_spec(opts), do: PartitionedBuffer.Buffer.Supervisor.child_spec(__MODULE__, opts)

  @doc """
  Processes the items of a buffer and stops it. See `PartitionedBuffer.stop/4`.

      iex> {:ok, _pid} =
      ...>   PartitionedBuffer.Queue.start_link(name: :stop_events, processor: &Function.identity/1)
      iex> PartitionedBuffer.Queue.stop(:stop_events)
      :ok
  """
  @doc group: "Start and stop"
  @spec stop(buffer() | pid(), any(), timeout(), [PartitionedBuffer.stop_option()]) :: :ok
  def stop(buffer, reason \\ :normal, timeout \\ :infinity, opts \\ []),
    do: PartitionedBuffer.stop(buffer, reason, timeout, opts)

  @doc """
  Defines a buffer as a module. The buffer has the name of the module.

      defmodule MyApp.Events do
        use PartitionedBuffer.Queue, otp_app: :my_app, preset: :database, processor: &MyApp.Broker.publish/1
      end

      children = [MyApp.Events]
      MyApp.Events.push({:signed_up, 7})

  The options come from the same places as those of `PartitionedBuffer.Map.__using__/1`. The module
  has these functions:

    * `child_spec/1`, `start_link/0` and `start_link/1`, which can be overridden,
    * `stop/0` to `stop/2`, `size/0`, `flush/0` and `flush/1`, `sync/0` and `sync/1`, `pause/0`,
      `resume/0`, `info/0`, `watch/0`, `update_options/1`,
    * `push/1` and `push/2`.

      iex> defmodule DocEvents do
      ...>   use PartitionedBuffer.Queue, processor: &Function.identity/1, max_attempts: 3
      ...> end
      iex> {:ok, _pid} = DocEvents.start_link()
      iex> DocEvents.push([:first, :second])
      :ok
      iex> DocEvents.size()
      2
      iex> DocEvents.stop()
      :ok
  """
  @doc group: "Start and stop"
  defmacro __using__(opts) do
    quote location: :keep do
      unquote(Definition.functions(__MODULE__, opts))

      @doc """
      Pushes an item, or each item of a list in its order. See `PartitionedBuffer.Queue.push/3`.
      """
      @doc group: "Write"
      @spec push(any() | [any()], keyword()) :: :ok | {:error, :full | :journal}
      def push(item_or_items, opts \\ []) when is_list(opts),
        do: PartitionedBuffer.Queue.push(__MODULE__, item_or_items, opts)
    end
  end

  @doc """
  Pushes an item, or each item of a list in its order.

  In a buffer with `:max_size` the call may wait, raise a `PartitionedBuffer.FullError` or return
  `{:error, :full}`: see [Threshold and bound](configuring.md#threshold-and-bound).

  To push a list as one item, wrap it: `push(buffer, [item])`. Raises an `ArgumentError`, and pushes
  nothing, if the list is improper. Takes the
  [runtime options](`m:PartitionedBuffer#module-runtime-options`); a function given as
  `:partition_key` is called with each item, before the first is pushed.

      iex> PartitionedBuffer.Queue.push(:doc_queue, :item)
      :ok
      iex> PartitionedBuffer.Queue.push(:doc_queue, [:item, {:user, 7}])
      :ok
      iex> id = fn {_kind, id} -> id end
      iex> PartitionedBuffer.Queue.push(:doc_queue, {:user, 7}, partition_key: id)
      :ok
      iex> PartitionedBuffer.Queue.size(:doc_queue)
      4
  """
  @doc group: "Write"
  @spec push(buffer(), any() | [any()], keyword()) :: :ok | {:error, :full | :journal}
  def push(buffer, item_or_items, opts \\ [])

  def push(buffer, items, opts) when is_atom(buffer) and is_list(items),
    do: Call.write_list(buffer, :push_all, items, opts)

  def push(buffer, item, opts) when is_atom(buffer) do
    route = Call.route(buffer, item, opts)

    with refused when refused != :ok <- Native.push(buffer, route, item),
         do: Call.refused(refused, buffer, :queue, route, [:push, item])
  end

  @doc """
  Gives all items to the processor now, and waits until it is done. See `PartitionedBuffer.flush/2`.

      iex> PartitionedBuffer.Queue.flush(:doc_queue)
      :ok
  """
  @doc group: "Write"
  @spec flush(buffer(), timeout: timeout(), async: boolean()) ::
          :ok | {:error, :timeout | :paused | {:failed, non_neg_integer()}}
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

      iex> PartitionedBuffer.Queue.pause(:doc_queue)
      :ok
      iex> PartitionedBuffer.Queue.resume(:doc_queue)
      :ok
  """
  @doc group: "Start and stop"
  @spec pause(buffer()) :: :ok
  def pause(buffer), do: PartitionedBuffer.pause(buffer)

  @doc """
  Lets calls of the processor begin again. See `PartitionedBuffer.resume/1`.

      iex> PartitionedBuffer.Queue.resume(:doc_queue)
      :ok
  """
  @doc group: "Start and stop"
  @spec resume(buffer()) :: :ok
  def resume(buffer), do: PartitionedBuffer.resume(buffer)

  @doc """
  Returns how many items wait for the next flush, in all partitions.

      iex> PartitionedBuffer.Queue.size(:doc_queue)
      0
  """
  @doc group: "Read"
  @spec size(buffer()) :: non_neg_integer()
  def size(buffer), do: PartitionedBuffer.buffer_size(buffer)

  @doc """
  Returns the numbers of the buffer: its entries, its delay and its totals. See
  `PartitionedBuffer.info/1`.

      iex> PartitionedBuffer.Queue.info(:doc_queue).kind
      :queue
  """
  @doc group: "Observe"
  @spec info(buffer()) :: PartitionedBuffer.info()
  def info(buffer), do: PartitionedBuffer.info(buffer)

  @doc """
  Changes options of a running buffer. See `PartitionedBuffer.update_options/2`.

      iex> PartitionedBuffer.Queue.update_options(:doc_queue, processing_interval_ms: 100)
      :ok
  """
  @doc group: "Start and stop"
  @spec update_options(buffer(), keyword()) :: :ok
  def update_options(buffer, opts), do: PartitionedBuffer.update_options(buffer, opts)
end
