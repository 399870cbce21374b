defmodule PartitionedBuffer do
  @moduledoc """
  Write buffers, for processes that write faster than a database, broker or API accepts writes.

  A buffer has partitions. Each partition *flushes* at an interval: it takes out its waiting entries
  and gives them to the *processor*, a function that takes one batch of entries at a time.

    * `PartitionedBuffer.Map` holds key–value entries. The last or the newest value of a key stays.
    * `PartitionedBuffer.Counter` holds sums. Amounts for the same key add up.
    * `PartitionedBuffer.Queue` holds items, which keep their order.

  This module has the common functions of all kinds. Here, "entry" also means an item of a queue.
  `PartitionedBuffer.Telemetry` lists the events. The guides [Guarantees](guarantees.md),
  [Delivery](delivery.md) and [Configuring](configuring.md) describe the promises, the outcomes of
  a batch and the limits.

  ## Start options

  `start_link/1` and child specifications take these options. Times are in milliseconds.
  Numbers are positive integers; "from 0" allows 0 as well.

    * `:name` – an atom: the name of the buffer. Required.
    * `:processor` – a function of arity 1, or `{module, function, args}`: is called with each batch,
      which comes before `args`. Required.
    * `:preset` – `:database`, `:api` or `:metrics`: sets other options for a kind of sink; options
      beside it take precedence. [Presets](configuring.md#presets) lists them.
    * `:partitions` – 0 to 4096. With 0 every operation except `stop/4` and `emit_info/1` raises a
      `RuntimeError`. Default: `System.schedulers_online/0`.
    * `:processing_interval_ms` – how often each partition flushes. With `:infinity` only a threshold,
      a full buffer, `flush/2` and a stop flush, and failed entries are still retried. Default: 5000.
    * `:processing_jitter_ms` – from 0: each interval is longer by a random time up to this, so
      partitions and nodes do not flush in step. Default: 0.
    * `:processing_timeout_ms` – from 0, or `:infinity`: how long a call of the processor may take:
      during a stop, and with `:max_attempts` always. See [Guarantees](guarantees.md). Default: 60000.
    * `:processing_batch_size` – entries per batch. Also `:table`, see
      [Tables](delivery.md#tables), or `{acc, function of arity 2}`, see
      [Batch functions](delivery.md#batch-functions). Default: 10.
    * `:processing_batch_bytes` – the most bytes of a batch with several entries, by
      `:erlang.external_size/1` of each entry. Not with a table or a batch function. A batch then has
      at most 10,000 entries. Default: `:infinity`.
    * `:processing_threshold` – the count of waiting entries at which a partition flushes at once.
      Default: `:infinity`.
    * `:max_size` – the most entries that the buffer holds, waiting and in flight. See
      [Threshold and bound](configuring.md#threshold-and-bound). Default: `:infinity`.
    * `:max_bytes` – the most memory of the entries, as `info/1` counts it. Default: `:infinity`.
    * `:full_timeout_ms` – from 0: how long a write waits for room in a full buffer. Default: 5000.
    * `:when_full` – what a write without room does: `:raise`, the default, raises a
      `PartitionedBuffer.FullError`; `:error` returns `{:error, :full}`; `:drop_newest` drops the write
      and returns `:ok`.
    * `:max_attempts` – a positive integer, or `:infinity`: how often the processor may fail with an
      entry, alone or named, before the entry is given up. Without it, or with `nil`, nothing is
      retried. See [Delivery](delivery.md).
    * `:retry_backoff_ms` – `{min, max}`, from 0: the pause after
      [failures that are not isolated](delivery.md#isolation). Its base doubles from `min` to `max` with
      each failure in a row; a random time from half the base to the base is taken. Also a function of
      arity 1, see [Pauses](delivery.md#pauses). Default: `{1000, 30000}`.
    * `:dead_letter` – a function of arity 2, or `{module, function, args}`: is called with a list of
      entries given up, and the reason. Needs `:max_attempts`. See
      [Dead letters](delivery.md#dead-letters).
    * `:order` – `:strict`, the default, or `:none`: whether newer items wait behind a failed item. Only
      of a queue, with `:max_attempts`.
    * `:versions` – `:clock` or `:own`: whose versions the entries have. Only of a map, see
      [Versions](`m:PartitionedBuffer.Map#module-versions`).
    * `:cluster` – `true`, or a keyword list: the nodes share the buffer. Only of a map or counter, with
      `:max_attempts`. See `PartitionedBuffer.Cluster`.
    * `:journal` – a path, or a keyword list: a copy of the entries in files survives the VM. With
      `:max_attempts`, without `:cluster`. See [Surviving a crash](surviving-a-crash.md).
    * `:format_reason` – a function of arity 1, or `{module, function, args}`: returns the text of a
      failure reason for log lines and `info/1`. See [Reasons](delivery.md#reasons).
    * `:drain_timeout_ms` – from 0, or `:infinity`: how long a stop may take in all to process the
      entries. Default: `:infinity`; with `:max_attempts` 60000.

  A missing or invalid option raises an `ArgumentError`, or a `NimbleOptions.ValidationError` if
  that module is available. An unknown option raises the same error at the start of a
  `PartitionedBuffer.Counter`. At that of a map or queue it is ignored, as in version 0.4, and a
  warning is logged. Buffers defined with `use` raise an `ArgumentError`. A function captured by name, or
  of an MFA, that does not exist at the start is a warning too.

  ## Runtime options

  Single calls take this option. An unknown or invalid option raises the same error as an invalid
  start option.

    * `:partition_key` – chooses the partition in place of the key or item. A function of arity 1 is
      called with the key or item and returns the partition key; `{module, function, args}` is
      called with the key or item before `args`. Any other term except `nil` is the partition key of
      all entries of the call. Entries with the same partition key are in the same partition. Reads
      find an entry only with the partition key of its write.

  `PartitionedBuffer.Map.put_newer/5` also takes `stale: :error`, and `flush/2` has separate options.

  The partition of a partition key is `:erlang.phash2(partition_key, partitions)`. Without a
  partition key, a key or item is in the partition
  `:erlang.phash2(:erlang.phash2(key), partitions)`.
  """

  alias PartitionedBuffer.API.{Flush, Sync}
  alias PartitionedBuffer.Buffer.{Hold, Lookup, Settings}
  alias PartitionedBuffer.Cluster.Requests
  alias PartitionedBuffer.{Native, Options, Routing}
  alias PartitionedBuffer.Observe.{DefaultLogger, Info, Watch}

  @typedoc "The name of a buffer."
  @type buffer() :: atom()

  @doc """
  Starts a buffer, linked to the calling process.

  Takes the [start options](#module-start-options), and as `:module` the kind of the buffer:
  `PartitionedBuffer.Map`, `PartitionedBuffer.Queue` or `PartitionedBuffer.Counter`. The
  `start_link/1` of these modules adds `:module`. Returns the pid of the buffer's supervisor, or
  `{:error, {:already_started, pid}}` if the name is taken. Raises if an option is missing or
  invalid.

      iex> {:ok, _pid} =
      ...>   PartitionedBuffer.start_link(
      ...>     module: PartitionedBuffer.Map,
      ...>     name: :started_directly,
      ...>     processor: &Function.identity/1
      ...>   )
      iex> PartitionedBuffer.buffer_size(:started_directly)
      0
  """
  @doc group: "Start and stop"
  @spec start_link(keyword()) :: Supervisor.on_start()
  def start_link(opts), do: PartitionedBuffer.API.Start.start_link(opts)

  @doc """
  Returns the child specification of a buffer, for a supervision tree.

  Takes the same options as `start_link/1`, which checks them when the buffer starts. The id is the
  name of the buffer, or this module if the options have no name. The type is `:supervisor`, so the
  supervisor waits for the stop without a limit. The keys `:id`, `:start`, `:restart`, `:shutdown`,
  `:type`, `:modules` and `:significant` of a child specification may be among the options, and have
  no effect there.

      iex> processor = &Function.identity/1
      iex> options = [module: PartitionedBuffer.Map, name: :users, processor: processor]
      iex> PartitionedBuffer.child_spec(options)
      %{
        id: :users,
        start: {PartitionedBuffer, :start_link, [options]},
        type: :supervisor
      }
  """
  @doc group: "Start and stop"
  @spec child_spec(keyword()) :: Supervisor.child_spec()
  def child_spec(opts), do: PartitionedBuffer.Buffer.Supervisor.child_spec(__MODULE__, opts)

  @typedoc """
  An option of `stop/4`.
  """
  @type stop_option() :: {:leftovers, :dead_letter | :keep} | {:reason, any()} | {:timeout, timeout()}

  @doc """
  Processes the entries of a buffer and stops it, with these [guarantees](guarantees.md).

  `buffer` is the name of the buffer or the pid of its supervisor. If the buffer is already
  stopping, the call waits for the end of that stop. Exits as `Supervisor.stop/3` does if the buffer
  is not running, or if the stop takes longer than `timeout` milliseconds; the stop then goes on.

  Options, also in place of `reason`, as in `stop(:users, leftovers: :keep)`:

    * `:leftovers` – what becomes of entries that the stop could not process. `:dead_letter`, the
      default, gives them to that function, and keeps them without it. `:keep` keeps them until a
      buffer of the same name and kind starts. Of several calls during a stop the first one counts.
      If the VM stops, they always go to `:dead_letter`.
    * `:reason`, `:timeout` – the same as the arguments.

  Raises an `ArgumentError` in a processor of the same buffer, and in a task started by one: the
  call would wait for the processor itself. An invalid timeout or option raises the same error as an
  invalid start option.

      iex> PartitionedBuffer.Map.start_link(name: :kept_doc, processor: &Function.identity/1)
      iex> PartitionedBuffer.stop(:kept_doc, leftovers: :keep)
      :ok
  """
  @doc group: "Start and stop"
  @spec stop(buffer() | pid(), any(), timeout(), [stop_option()]) :: :ok
  def stop(buffer, reason \\ :normal, timeout \\ :infinity, opts \\ []),
    do: PartitionedBuffer.Buffer.Supervisor.stop(buffer, reason, timeout, opts)

  @doc """
  Returns how many entries wait for the next flush, in all partitions.

  Raises an `ArgumentError` if the buffer is not running, a `RuntimeError` if it has 0 partitions.

      iex> PartitionedBuffer.Map.put(:doc, :key, 1)
      iex> PartitionedBuffer.buffer_size(:doc)
      1
  """
  @doc group: "Read"
  @spec buffer_size(buffer()) :: non_neg_integer()
  def buffer_size(buffer) when is_atom(buffer) do
    case Native.size(buffer) do
      :not_running -> Routing.not_running!(buffer)
      {:elsewhere, size} -> size + buffer_size(Routing.owning_name(buffer))
      size -> size
    end
  end

  @doc """
  Changes options of a running buffer: `:processing_interval_ms`, `:processing_jitter_ms`,
  `:processing_timeout_ms`, `:processing_batch_size`, `:processing_batch_bytes`,
  `:processing_threshold`, `:max_size`, `:max_bytes`, `:when_full`, `:full_timeout_ms`,
  `:retry_backoff_ms`, `:drain_timeout_ms`, and `:max_attempts`, `:cluster` and `:journal` if the
  buffer was started with them. The lists of `:cluster` and `:journal` have only the settings that
  change; `:slots` cannot, and of a journal only `:write_ms`, `:sync_ms` and `:when_behind` can.

  Omitted options keep their values. A shorter interval or jitter takes effect at once, a longer one
  after the scheduled tick; `:infinity` cancels that tick. A new batch size applies from the next
  flush or retry on. During a stop, `:drain_timeout_ms`, `:processing_timeout_ms`,
  `:retry_backoff_ms` and `:max_attempts` take effect in that stop. The call does not wait for a
  processor. The changes last until the supervisor of the buffer ends.

  Raises and changes nothing if an option is unknown or invalid, with the same error as a start.
  Logs a warning if a captured function does not exist.
  Raises an `ArgumentError` if the buffer is not running, a `RuntimeError` if it has 0 partitions.

      iex> PartitionedBuffer.update_options(:doc, processing_batch_size: 500)
      :ok
  """
  @doc group: "Start and stop"
  @spec update_options(buffer(), keyword()) :: :ok
  def update_options(buffer, opts) when is_atom(buffer) do
    if Lookup.cluster?(buffer),
      do: Requests.update_options!(buffer, opts),
      else: Settings.update!(buffer, opts)
  end

  @doc """
  Processes all entries now, and waits for the result.

  Returns `:ok` when the processor is done with every write that returned before the call; with
  `:max_attempts`, when each of those writes succeeded, or was superseded, deleted or given up.
  Returns `{:error, {:failed, count}}` if the processor failed: with `:max_attempts`, `count`
  entries failed or wait behind failed ones, and will be retried; otherwise they are lost or wait
  for the next flush. During a pause after a failure the call tries again at once. Returns
  `{:error, :paused}` if `pause/1` paused the buffer, and entries may be left. With `:cluster` it
  flushes the writes of this node, wherever their owner is, and returns `{:error, {:away, nodes}}` if
  these nodes may have some and cannot be reached. Concurrent calls share a flush. A call during a stop returns the result of the stop's work.

  Options:

    * `:timeout` – how many milliseconds to wait at most, or `:infinity`. The default is 60000.
      After this time the call returns `{:error, :timeout}`, and the flush goes on.
    * `:async` – with `true` the call returns `:ok` once the partitions have its request; if
      `pause/1` paused the buffer, they flush after `resume/1`.

  Raises an `ArgumentError` if the buffer is not running, or if a processor of the buffer calls it
  without `async: true`; a `RuntimeError` if the buffer has 0 partitions. An invalid option raises
  the same error as an invalid start option.

      iex> PartitionedBuffer.Map.put(:doc, :key, 1)
      iex> PartitionedBuffer.flush(:doc)
      :ok
      iex> PartitionedBuffer.buffer_size(:doc)
      0
  """
  @doc group: "Write"
  @spec flush(buffer(), timeout: timeout(), async: boolean()) ::
          :ok | {:error, :timeout | :paused | {:failed, non_neg_integer()} | {:away, [node()]}}
  def flush(buffer, opts \\ []) when is_atom(buffer),
    do: if(Lookup.cluster?(buffer), do: Requests.flush(buffer, opts), else: Flush.flush(buffer, opts))

  @doc """
  Waits until the journal has every write and delete that returned before the call. The buffer has the
  option `:journal`.

  With `level: :synced`, the default, they survive the end of the machine: the device has them. With
  `level: :written` they survive the end of the VM. Callers that come together share one write and one
  sync. No scheduler is held.

  Returns `{:error, :timeout}` after `:timeout` milliseconds, 5000 unless given, or `{:error, posix}` if
  the file system refuses, for example `:enospc`; the buffer keeps all entries in memory then, and goes on
  trying. So `put` and `sync/1` together are a write that waits for the disk.

  Raises an `ArgumentError` if the buffer is not running or has no journal.
  """
  @doc group: "Write"
  @spec sync(buffer(), level: :written | :synced, timeout: timeout()) ::
          :ok | {:error, :timeout | File.posix()}
  def sync(buffer, opts \\ []) when is_atom(buffer), do: Sync.sync(buffer, opts)

  @doc """
  Pauses a buffer: no call of the processor begins until `resume/1`. Use it while the sink is
  maintained.

  A call under way ends, and its outcome counts; a call that just begins is under way. Reads and
  writes go on, and the bound holds, so writers may have to wait for room. Intervals, thresholds and
  a full buffer call nothing. `flush/2` returns `{:error, :paused}`. If it waits already, it returns
  so once the call under way ended, unless that call was the last of its flush. Retries wait. Calls
  of `:dead_letter` with entries already given up still take place.

  The pause also survives the death of each process but the supervisor of the buffer. It ends with
  `resume/1`, with a stop, which processes all entries as always, or with the supervisor. During a
  stop the call changes nothing. To pause a paused buffer changes nothing either.

  The call waits for no process, so processors of the buffer may also call it. Raises an
  `ArgumentError` if the buffer is not running, a `RuntimeError` if it has 0 partitions.

      iex> PartitionedBuffer.pause(:doc)
      :ok
      iex> PartitionedBuffer.flush(:doc)
      {:error, :paused}
      iex> PartitionedBuffer.resume(:doc)
      :ok
  """
  @doc group: "Start and stop"
  @spec pause(buffer()) :: :ok
  def pause(buffer) when is_atom(buffer),
    do: if(Lookup.cluster?(buffer), do: Requests.pause!(buffer), else: Hold.pause!(buffer))

  @doc """
  Ends the pause of `pause/1`.

  A partition that missed a flush, or has entries of one in flight, goes on at once. A pause after a
  failure lasts as long as it would have. To resume a buffer that is not paused changes nothing.

  The call waits for no process. Raises as `pause/1` does.

      iex> PartitionedBuffer.resume(:doc)
      :ok
  """
  @doc group: "Start and stop"
  @spec resume(buffer()) :: :ok
  def resume(buffer) when is_atom(buffer),
    do: if(Lookup.cluster?(buffer), do: Requests.resume!(buffer), else: Hold.resume!(buffer))

  @doc """
  Returns the names of all running buffers of this VM, sorted. A buffer runs from its start to the
  end of its stop.

      iex> :doc in PartitionedBuffer.buffers()
      true
  """
  @doc group: "Observe"
  @spec buffers() :: [buffer()]
  def buffers, do: Lookup.buffers()

  @typedoc """
  The numbers of a buffer, as `info/1` returns them.
  """
  @type info() :: %{
          optional(:cluster) => PartitionedBuffer.Cluster.numbers(),
          kind: :map | :queue | :counter,
          size: non_neg_integer(),
          in_flight: non_neg_integer(),
          retrying: non_neg_integer(),
          bytes: non_neg_integer(),
          reclaiming: non_neg_integer(),
          max_size: pos_integer() | :infinity,
          max_bytes: pos_integer() | :infinity,
          oldest_ms: non_neg_integer() | nil,
          failing_ms: non_neg_integer(),
          waiting_writers: non_neg_integer(),
          paused?: boolean(),
          last_error: %{reason: atom() | String.t(), system_time: integer(), partition: atom()} | nil,
          totals: %{
            written: non_neg_integer(),
            coalesced: non_neg_integer(),
            stale: non_neg_integer(),
            deleted: non_neg_integer(),
            superseded: non_neg_integer(),
            processed: non_neg_integer(),
            failed: non_neg_integer(),
            given_up: non_neg_integer(),
            refused: non_neg_integer(),
            dropped: non_neg_integer()
          },
          journal: journal_info() | nil,
          partitions: [
            %{
              name: atom(),
              size: non_neg_integer(),
              in_flight: non_neg_integer(),
              state: :idle | :processing | :paused | :on_hold | :closed,
              limit: pos_integer() | nil,
              failures: non_neg_integer(),
              next_ms: non_neg_integer() | nil
            }
          ]
        }

  @typedoc "The state of a journal, in `t:info/0`."
  @type journal_info() :: %{
          dir: Path.t(),
          state: :ok | :behind | :failed,
          lag_ms: non_neg_integer(),
          unwritten: non_neg_integer(),
          written_ms_ago: non_neg_integer(),
          synced_ms_ago: non_neg_integer(),
          bytes: non_neg_integer(),
          segments: non_neg_integer(),
          replayed: non_neg_integer(),
          last_error:
            %{
              reason: File.posix() | pos_integer(),
              operation: :open | :write | :sync | :delete,
              system_time: integer()
            }
            | nil
        }

  @doc """
  Returns the numbers of a buffer: its entries, its delay and its totals. They show no keys and
  values.

    * `:kind` – `:map`, `:queue` or `:counter`.
    * `:size` – entries that wait for the next flush, as `buffer_size/1` returns.
    * `:in_flight` – flushed entries without an outcome; without `:max_attempts`, flushed entries
      that no processor got. A deleted entry counts until its flush reaches it.
    * `:retrying` – entries that failed and wait for their next attempt, among `:size` and
      `:in_flight`: of a queue with its order at the head of the flush. A split or a snooze alone
      does not count, and an entry in a batch does not.
    * `:bytes` – an estimate of the memory of the entries, in bytes. It falls as a flush progresses.
    * `:reclaiming` – an estimate of the bytes that no buffer needs and that are not free yet, of
      all buffers together; see `memory/0`.
    * `:max_size`, `:max_bytes` – the options.
    * `:oldest_ms` – an upper bound, in milliseconds, of the age of the oldest write without an
      outcome: the age of the first write of its flush, also after failures. A newer write inherits
      the age of a failed entry that it replaces. `nil` without an entry.
    * `:failing_ms` – how long the processor has been failing, in milliseconds: the time since the
      first of the failures in a row, splits included, of the partition where it is longest; 0
      without failures, and in an empty partition. A success ends it; a snooze neither begins nor
      ends it.
    * `:waiting_writers` – processes that wait for room.
    * `:paused?` – whether `pause/1` paused the buffer; `false` during a stop.
    * `:last_error` – the last failure of a processor: `:reason`, an atom or the
      [text](delivery.md#reasons) of another reason, `:system_time` in milliseconds, and the
      `:partition`; `nil` without a failure since the start. A snooze or a cancellation is no
      failure.
    * `:totals` – counts that only grow, from the first start of this name and kind in the VM on.
    * `:journal` – the [state of the journal](#info/1-the-journal); `nil` without one.
    * `:cluster` – only with this option: the [numbers of the member](`m:PartitionedBuffer.Cluster#module-numbers`).
      All others are then those of both of its stages, added up.
    * `:partitions` – for each partition its `:name`, `:size`, `:in_flight`, `:state`, `:limit`,
      `:failures` in a row, and `:next_ms`.

  The `:state` of a partition is `:processing` while its task runs, `:paused` after a failure or a
  snooze, `:on_hold` while `pause/1` keeps it from calls, `:closed` from the moment a stop makes it
  refuse writes, otherwise `:idle`. `:next_ms` is the time to the end of the pause, or else to the
  next tick. It is `nil` in a partition that is closed or on hold, and without a pause if
  `:processing_interval_ms` is `:infinity`.

  `:limit` is how many entries the next batch may have: the batch size, or fewer after
  [failures](delivery.md#isolation). It is `nil` if a function or a table chooses the size and no
  failure does.

  ### The journal

    * `:dir` – its directory.
    * `:state` – `:ok`; `:behind` if the lag is above `max_lag_ms`; `:failed` while the file system
      refuses.
    * `:lag_ms` – the age of the oldest change that is not written, in milliseconds, or a little
      more.
    * `:unwritten` – the number of changed entries that are not written.
    * `:written_ms_ago`, `:synced_ms_ago` – the time since the last write, and the last sync, that
      succeeded, in milliseconds.
    * `:bytes`, `:segments` – the size of its files, and their number.
    * `:replayed` – the number of entries that a former VM left.
    * `:last_error` – the last failure: `:reason`, `:operation` (`:open`, `:write`, `:sync`,
      `:delete`), `:system_time` in milliseconds; or `nil`.

  ### The totals

  Each element of a list counts as a write.

    * `:written` – accepted writes.
    * `:coalesced` – accepted writes that replaced a waiting entry, or were added to it; of a
      counter also failed entries added to a waiting one.
    * `:stale` – writes of `PartitionedBuffer.Map.put_newer/5` and `put_all_newer/3` that were not
      accepted, since the present version was as high or higher.
    * `:deleted` – entries deleted while they waited.
    * `:superseded` – entries dropped in flight: a newer write replaced them, or they were deleted.
      Also leftovers of a map replaced by another one of their key, after a start with another
      partition count.
    * `:processed` – entries that the processor succeeded with; without `:max_attempts`, entries
      given to it.
    * `:given_up` – entries given up, counted after the call of `:dead_letter`.
    * `:failed` – failures of entries: an entry counts once for each attempt that failed. A split, a
      snooze, a cancellation and a stop that gives entries up do not count. Without `:max_attempts`
      failed entries are lost, and `:processed` counts them as well.
    * `:refused` – writes that found no room in time and raised a `PartitionedBuffer.FullError` or
      returned `{:error, :full}`.
    * `:dropped` – writes that found no room in time and were dropped, with
      `when_full: :drop_newest`.

  While nothing is written or processed, each entry is counted once:

      written - coalesced == size + in_flight + deleted + superseded + processed + given_up

  With a journal, `journal.replayed` is added to the left side: the entries that a former VM left are
  not written again.

  The call takes some microseconds for each partition, however many entries the buffer holds, and
  calls no process of the buffer. Raises an `ArgumentError` if the buffer is not running, a
  `RuntimeError` if it has 0 partitions.

      iex> PartitionedBuffer.Map.put(:doc, :key, 1)
      iex> %{size: 1, in_flight: 0, totals: totals} = PartitionedBuffer.info(:doc)
      iex> totals.written >= 1
      true
  """
  @doc group: "Observe"
  @spec info(buffer()) :: info()
  def info(buffer) when is_atom(buffer),
    do: if(Lookup.cluster?(buffer), do: Requests.info(buffer), else: Info.info(buffer))

  @doc """
  Emits the telemetry event `[:partitioned_buffer, :info]` with the numbers of `info/1`, for one
  buffer, or with `:all` for each running buffer.

  Returns `:ok` also if the buffer is not running, so `:telemetry_poller` can call it:

      {:telemetry_poller, measurements: [{PartitionedBuffer, :emit_info, [:all]}], period: 10_000}

      iex> PartitionedBuffer.emit_info(:all)
      :ok
  """
  @doc group: "Observe"
  @spec emit_info(buffer() | :all) :: :ok
  def emit_info(:all), do: Enum.each(buffers(), &emit_info/1)
  def emit_info(buffer) when is_atom(buffer), do: Info.emit(buffer, &info/1)

  @doc """
  Shows a page about a running buffer in the terminal, and replaces it once a second: its entries,
  the rates of writes, the failures, and a line for each partition. With `:all` the page has a line
  for each running buffer of this node: its entries and memory with their limits, `:oldest_ms` and
  `:failing_ms` of `info/1`, the rates, and its state. The first true line counts:

  | state | meaning |
  |---|---|
  | `closed` | a stop processes its last entries |
  | `on hold` | `pause/1` paused it |
  | `journal failed` | the file system refuses its journal |
  | `failing` | its processor fails |
  | `journal behind` | the lag of its journal is above `max_lag_ms` |
  | `full` | it has no room, or writers wait for room |
  | `paused` | a partition pauses after a snooze |
  | `processing` | a partition has a task |
  | `idle` | otherwise |
  | `not running`, `no partitions` | `info/1` raises |

  All values come from `info/1`. The call returns `:ok` when somebody presses Enter, after the last
  round, or when the buffer is no longer running; with `:all` it waits for the next one to start. Where
  nobody can press Enter, since the device is no terminal, it also ends with its process. In a
  terminal a buffer that ends shows the reason, and the call still waits for Enter.

  Log lines and other output that come between two pages stay above the next page. If more lines
  come than the page has empty lines above it, three to ten, the lines may have the rest of the old
  page at their right.

  Options:

    * `:interval` – milliseconds between two pages. The default is 1000.
    * `:rounds` – how many pages, or `:infinity`, the default. Enter has no effect with a number.
    * `:device` – where to print. The default is `:stdio`.
    * `:ansi` – whether a page replaces the one before, or comes below it. The default is
      `IO.ANSI.enabled?/0` of the node of the buffer, which may be false in a remote shell.

  Raises an `ArgumentError` if an option is unknown.
  """
  @doc group: "Observe"
  @spec watch(buffer() | :all, keyword()) :: :ok
  def watch(buffer, opts \\ []) when is_atom(buffer),
    do: Watch.run(buffer, [info: &info/1, buffers: &buffers/0] ++ Options.watch!(buffer, opts))

  @doc """
  Attaches a logger to the events of all buffers. Call it at the start of the application.

  The library itself logs failures, pauses, and entries lost or given up. This logger adds:

    * `:full`, at `:warning` – a buffer is full.
    * `:full`, at `:level`, or `:warning` if writes were refused or dropped – the buffer has room
      again: for how long it was full, and how many writers waited.
    * `:dead_letter`, at `:error` – `:dead_letter` took entries given up: their count and the
      reason.
    * `:cluster`, at `:level` – the members of a buffer changed: their number, the slots that this
      node owns, and the nodes that joined or left.
    * `:cluster`, at `:warning` – entries are sent again whose owner may have taken them; a stop
      handed entries over to another node; the clock of a node is not followed.
    * `:journal`, at `:level`, or `:error` with damage – a start restored entries from a journal:
      their number.
    * `:journal`, at `:error`, then `:level` – a journal cannot be written or synced: the operation
      and the reason; it works again.
    * `:processing`, at `:level` – a flush: its size and duration.

  The lines show no keys, values or other terms of entries: see [Reasons](delivery.md#reasons). Their
  Logger metadata are `buffer`, `partition`, `event` (`:full_start`, `:full_stop`, `:dead_letter`,
  `:cluster_members`, `:cluster_uncertain`, `:cluster_hand_over`, `:cluster_skew`,
  `:journal_replay`, `:journal_error`, `:journal_recovered` or `:processing_stop`), the numbers of
  the line, and the `slot` and the node `to`, if any.

  Options:

    * `:level` – the level of lines about normal work. The default is `:info`.
    * `:events` – which of `:full`, `:dead_letter`, `:cluster`, `:journal` and `:processing` to log, or `:all`.
      The default is all but `:processing`, which is a line for each flush.

  Returns `{:error, :already_exists}` if the logger is already attached, and
  `{:error, :no_telemetry}` if the application `:telemetry` is not present. Raises an
  `ArgumentError` if an option is invalid.

      iex> PartitionedBuffer.attach_default_logger(level: :debug)
      :ok
      iex> PartitionedBuffer.detach_default_logger()
      :ok
  """
  @doc group: "Observe"
  @spec attach_default_logger(
          level: Logger.level(),
          events: :all | [:full | :dead_letter | :cluster | :journal | :processing]
        ) ::
          :ok | {:error, :already_exists | :no_telemetry}
  def attach_default_logger(opts \\ []), do: DefaultLogger.attach(opts)

  @doc """
  Detaches the logger of `attach_default_logger/1`. Returns `{:error, :not_found}` if it is not
  attached.
  """
  @doc group: "Observe"
  @spec detach_default_logger() :: :ok | {:error, :not_found | :no_telemetry}
  def detach_default_logger, do: DefaultLogger.detach()

  @doc """
  Returns the memory allocated by the native library for all buffers together.

    * `:bytes` – the bytes of entries, indexes and all else, as requested from the VM's allocators.
    * `:environments` – the number of heaps that hold the copies of keys and values. Most of them
      hold some hundred copies. With 0 the library holds no terms.
    * `:reclaiming` – an estimate of the bytes that no buffer needs and that are not free yet. Above
      64 MB writers and processors help the thread that frees them.

  `:erlang.memory/0` includes this memory in `:system` and `:binary`. A thread frees unused memory
  some milliseconds later. An empty buffer keeps some kB for each partition until the VM ends, even
  when it is stopped.

      iex> %{bytes: bytes, reclaiming: reclaiming} = PartitionedBuffer.memory()
      iex> bytes > 0 and reclaiming >= 0
      true
  """
  @doc group: "Observe"
  @spec memory() :: %{
          bytes: non_neg_integer(),
          environments: non_neg_integer(),
          reclaiming: non_neg_integer()
        }
  def memory do
    {bytes, environments, reclaiming} = Native.memory()
    %{bytes: bytes, environments: environments, reclaiming: reclaiming}
  end

  @doc """
  Returns the number of the partition whose batch the calling processor has, from 0 on; `nil` outside
  of a processor. A function as `:dead_letter` has it as well.

  A processor has one batch of a partition at a time. So it can use the number to choose a connection,
  a shard of the sink or a producer that no other call uses.

      iex> PartitionedBuffer.processing_partition()
      nil
  """
  @doc group: "Read"
  @spec processing_partition() :: non_neg_integer() | nil
  defdelegate processing_partition(), to: PartitionedBuffer.Partition.Runner, as: :partition

  @doc """
  Returns the name of the partition that a key or item is written to with this `:partition_key`.
  `nil` means none.

  Raises an `ArgumentError` if the buffer is not running, a `RuntimeError` if it has 0 partitions.

      iex> hashed = PartitionedBuffer.get_partition(:doc, &:erlang.phash2/1, :key)
      iex> PartitionedBuffer.get_partition(:doc, nil, :key) == hashed
      true
      iex> partition = PartitionedBuffer.get_partition(:doc, :all_to_one, :key)
      iex> partition in [:"Elixir.doc.0", :"Elixir.doc.1"]
      true
  """
  @doc group: "Read"
  @spec get_partition(buffer(), any(), any()) :: atom()
  def get_partition(buffer, partition_key, key) when is_atom(buffer),
    do: Routing.partition_name(buffer, partition_key, key)
end
