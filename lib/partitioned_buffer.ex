defmodule PartitionedBuffer do
  @moduledoc """
  Write buffers for systems that are written to faster than their database, broker or API can be.

  Processes put entries into a buffer; every partition of it flushes what it holds at an interval, and a processor
  function receives that in batches. `PartitionedBuffer.Map` is the buffer of key–value entries, in which writes to the
  same key coalesce; `PartitionedBuffer.Queue` is that of items, which keep their order. This module has what does not
  depend on the kind of buffer: the options, the guarantees, the telemetry events.

  ## Start options

  For `start_link/1` and child specifications. Other keys are ignored.

  | option | type | default | meaning |
  |---|---|---|---|
  | `:name` | atom | required | the name of the buffer |
  | `:processor` | function of arity 1, or `{module, function, args}` | required | is called with each batch; an MFA gets it before `args` |
  | `:partitions` | integer from 0 to 4096 | `System.schedulers_online/0` | how many partitions keys or items are spread over; with 0 every operation raises a `RuntimeError` |
  | `:processing_interval_ms` | positive integer | 5000 | how often each partition flushes what it holds |
  | `:processing_jitter_ms` | non-negative integer | 0 | each interval is longer by a random time up to this: takes partitions, and nodes, out of step |
  | `:processing_timeout_ms` | integer from 0, or `:infinity` | 60000 | at a stop: how long a call of the processor may take; see [Guarantees](#module-guarantees) |
  | `:processing_batch_size` | positive integer, or `:table` | 10 | entries per call of the processor; see [Tables](#module-tables) |

  A function captured by name (`&MyApp.Users.process/1`) or an MFA survives code upgrades; an anonymous function is gone
  when its module has been loaded twice more.

  ## Runtime options

  Of single calls; another option raises.

    * `:partition_key` – what the partition is chosen by, instead of the key, or item of a queue. A function of arity 1 is
      called with the key or item, `{module, function, args}` with it before `args`, and any other term but `nil` is itself
      what all entries of the call are routed by. Entries with the same partition key are in one partition, and its flushes come one
      after the other. What was put with a partition key is found only with the same one.

  The partition of a partition key is `:erlang.phash2(partition_key, partitions)`; that of a key or item without
  one is `:erlang.phash2(:erlang.phash2(key), partitions)`.

  ## Guarantees

    * A write that has returned `:ok` is in exactly one flush, unless a later write has replaced it, a newer version
      was there, or it was deleted. The flush is a swap under the locks of the partition: a write comes before it, or
      after it with all that is written after it.
    * Each entry of a flush is given to the processor at most once. What a processor was called with when it
      raised, exited or was killed is not given to another; what lies behind it in the same flush is, at the next
      interval.
    * Processes may die: partition, task, supervisor. What was not yet given to a processor is kept in native memory,
      and processed when the buffer runs again, also after a restart of its whole supervision tree. It is lost with the
      VM, as everything is that is only in memory.
    * One batch of a partition is processed at a time, and flushes come to the processor in their order: a key that is
      written in the order of its versions is processed in that order. Partitions are independent of each other.
    * `stop/3`, or the end of the supervision tree, waits for the flush in flight and then processes the rest, in all
      partitions at the same time. A call of the processor that is at work when the stop begins may take
      `:processing_timeout_ms` from then on; each later one may take as long from its own beginning, at least 5 seconds. A
      call that takes longer is killed, and its partition makes no other. What it has left is kept until a buffer of the
      same name starts, and logged with its count. All of this holds as well when the process of a partition, its task
      supervisor or who takes their place has just died, or dies meanwhile.
    * During a stop, reads and deletes work to its end. Writes of a partition are refused when what was in flight there is
      done. Only a processor of the same buffer, or a task that it has started, can still write: that is processed by the
      same stop, in at most ten passes over all partitions, since a processor could go on writing for ever. What is left
      after these is kept and logged as well.
    * Terms come back exactly as they were put.
    * No call holds a scheduler for long: what takes more than half a millisecond is done in slices. Only the copy of a single
      key or value takes as long as its size demands, as in sending it in a message, and is charged to the process. In a list
      up to 32 large ones may be copied at once if there was no large one for a while. Of a binary that begins within a byte,
      which is rare, the VM makes a copy each time its size is asked for.
    * Large terms are copied without a lock, so writes of other processes do not wait for them. Only the first after a while
      is not known to be large before it is copied.
    * Memory follows the entries, not the writes: of the values that were replaced or deleted a partition keeps at most four for
      each that waits, and some hundreds beside. What an entry takes besides its key and value, some 50 bytes, is kept until
      the next flush if the entry is deleted.

  What is not promised: a bound to the memory used while the processor cannot keep up, the order of the entries of a
  map's flush, and any order between partitions.

  ## Tables

  With `processing_batch_size: :table` the processor is called once per flush, with the name of an ETS table that its
  process owns. It is a `:set` with `keypos: 2` of the records `{:entry, key, value, version, updates}`; for that of a queue
  see `PartitionedBuffer.Queue`. When the processor
  returns the table is deleted, unless it was renamed with `:ets.rename/2` and given away with `:ets.give_away/3`: then it
  is theirs, and the next table has the usual name again.

  ## Telemetry

  Where the application `:telemetry` is present. Times are in native units. `buffer` is the name, `partition` the name of
  the partition as by `get_partition/3`.

  | event | measurements | metadata |
  |---|---|---|
  | `[:partitioned_buffer, :partition, :start]` | `system_time` | `buffer`, `partition` |
  | `[:partitioned_buffer, :partition, :stop]` | `duration` | `buffer`, `partition`, `reason` |
  | `[:partitioned_buffer, :partition, :processing, :start]` | `system_time`, `monotonic_time` | `buffer`, `partition` |
  | `[:partitioned_buffer, :partition, :processing, :stop]` | `duration`, `monotonic_time`, `size` | `buffer`, `partition` |
  | `[:partitioned_buffer, :partition, :processing, :exception]` | `duration`, `monotonic_time` | `buffer`, `partition`, `kind`, `reason`, `stacktrace` |
  | `[:partitioned_buffer, :partition, :processing_failed]` | `system_time` | `buffer`, `partition`, `reason` |

  The `processing` events enclose one flush, of `size` entries, and have a `telemetry_span_context` in their metadata.
  `processing_failed` tells the exit reason of the task that the processor was called in. There is no event for an interval
  in which nothing came in.
  """

  alias PartitionedBuffer.{Native, Options, Partition, Routing}

  @typedoc "The name of a buffer."
  @type buffer() :: atom()

  @doc """
  Starts a buffer of the kind given as `:module`: `PartitionedBuffer.Map` or `PartitionedBuffer.Queue`, whose `start_link/1`
  add that option.

  Takes the [start options](#module-start-options).

      iex> {:ok, _pid} =
      ...>   PartitionedBuffer.start_link(
      ...>     module: PartitionedBuffer.Map,
      ...>     name: :started_directly,
      ...>     processor: &Function.identity/1
      ...>   )
      iex> PartitionedBuffer.buffer_size(:started_directly)
      0
  """
  @spec start_link(keyword()) :: Supervisor.on_start()
  def start_link(opts), do: opts |> Options.start!() |> PartitionedBuffer.Supervisor.start_link()

  @doc """
  The child specification of a buffer of the kind given as `:module`.

  Its id is the buffer's name, or this module where none is given. The options are checked when it is started.

      iex> PartitionedBuffer.child_spec(module: PartitionedBuffer.Map, name: :users, processor: &Function.identity/1)
      %{
        id: :users,
        start: {PartitionedBuffer, :start_link, [[module: PartitionedBuffer.Map, name: :users, processor: &Function.identity/1]]},
        type: :supervisor
      }
  """
  @spec child_spec(keyword()) :: Supervisor.child_spec()
  def child_spec(opts), do: PartitionedBuffer.Supervisor.child_spec(__MODULE__, opts)

  @doc """
  Stops a buffer, given by its name or its supervisor's pid, when all that it holds has been processed.

  Exits as `Supervisor.stop/3` does if there is no such buffer, or if it takes longer than `timeout` milliseconds. If the buffer
  is stopping already, it waits for its end.
  """
  @spec stop(buffer() | pid(), any(), timeout()) :: :ok
  def stop(buffer, reason \\ :normal, timeout \\ :infinity),
    do: PartitionedBuffer.Supervisor.stop(buffer, reason, timeout)

  @doc """
  How many entries wait for the next flush, in all partitions.

      iex> PartitionedBuffer.Map.put(:doc, :key, 1)
      iex> PartitionedBuffer.buffer_size(:doc)
      1
  """
  @spec buffer_size(buffer()) :: non_neg_integer()
  def buffer_size(buffer) when is_atom(buffer) do
    case Native.size(buffer) do
      :not_running -> Routing.not_running!(buffer)
      size -> size
    end
  end

  @doc """
  Changes options of a running buffer: `:processing_interval_ms`, `:processing_jitter_ms`, `:processing_timeout_ms`,
  `:processing_batch_size`.

  The others keep their values. A shorter interval or jitter takes effect at once, a longer one after the tick that is due; a
  new batch size counts from the next flush on.
  Raises, and changes nothing, if an option is unknown or invalid.

      iex> PartitionedBuffer.update_options(:doc, processing_batch_size: 500)
      :ok
  """
  @spec update_options(buffer(), keyword()) :: :ok
  def update_options(buffer, opts) when is_atom(buffer) do
    changes = Options.update!(buffer, opts)
    buffer |> Routing.partition_names() |> Enum.each(&Partition.update_options(&1, changes))
  end

  @doc """
  What the native library has allocated at the moment for all buffers together.

    * `:bytes` – for entries, indexes and what else it keeps, as asked for from the VM's allocators.
    * `:environments` – the number of pieces of the VM's memory that hold the copies of keys and values, some hundred
      each. When there are none, no term is held.

  `:erlang.memory/0` counts the memory of both, `:system` and binaries. What is given up is freed on a thread of its own,
  some milliseconds later. Of a buffer that holds nothing what its name takes is kept, until the VM ends: some kB for each
  partition.

      iex> %{bytes: bytes, environments: environments} = PartitionedBuffer.memory()
      iex> bytes > 0 and environments >= 0
      true
  """
  @spec memory() :: %{bytes: non_neg_integer(), environments: non_neg_integer()}
  def memory do
    {bytes, environments} = Native.memory()
    %{bytes: bytes, environments: environments}
  end

  @doc false
  # The options, as those of a buffer of this kind; what is no keyword list is told by the check of the options.
  @spec put_module(any(), module()) :: any()
  def put_module(opts, module),
    do: if(Keyword.keyword?(opts), do: Keyword.put(opts, :module, module), else: opts)

  @doc """
  The name of the partition that a key is put into with this `:partition_key`, `nil` for none.

      iex> PartitionedBuffer.get_partition(:doc, nil, :key) == PartitionedBuffer.get_partition(:doc, &:erlang.phash2/1, :key)
      true
      iex> PartitionedBuffer.get_partition(:doc, :all_to_one, :key) in [:"Elixir.doc.0", :"Elixir.doc.1"]
      true
  """
  @spec get_partition(buffer(), any(), any()) :: atom()
  def get_partition(buffer, partition_key, key) when is_atom(buffer),
    do: Routing.partition_name(buffer, partition_key, key)
end
