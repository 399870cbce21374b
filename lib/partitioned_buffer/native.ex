defmodule PartitionedBuffer.Native do
  @moduledoc false
  # The NIFs.
  #
  # Writes and reads take a buffer by its name, an atom. Calls that act for a *run* of a buffer take
  # the run that `open/7` returned, and change nothing once that run is over. A partition is
  # given by its number.
  #
  # `to` is a partition and the partition count by which the caller chose it, or nil: the key or
  # item chooses. `{:processor, to}` marks the write of a
  # processor.
  #
  # `:full`: no room for another entry. `:not_running`: the buffer was never started, has ended, has
  # no partitions, or has another partition count than `to`, or the run is over. `:versions`: the
  # entries of the map have versions of another source than the write. Arguments of
  # another form raise an ArgumentError (badarg) and change nothing.
  #
  # A call takes at most a millisecond, plus the time for one key and one value, or one item. What
  # cannot be sliced: hashing, comparing and copying one key or value. The caller is charged for it
  # (`KeyClock` in `pace.rs`, and `charge` in `vm/large.rs`). `open`, `end_run`, `buffers`, `left`,
  # `held`, `close`, `batch`, `set_bound`, `put_options`, `functions_large`, `resume_run`, `refuse_writes`, `pause_all`,
  # `leftovers`, `left_terms`, `absorb_large`, `streams`, `forget_streams` and those of journals but
  # `journal_wait`, `set_journal_times` and `watch_journal` may take longer, so they
  # run on dirty schedulers.

  # This module can be loaded again while the VM runs:
  #
  #   * While its current code is in use, the VM refuses ("upgrade not supported by this NIF
  #     library"): `load/0` fails, and the current code and all data stay in use. So
  #     `:code.load_file/1` and the hot upgrade of a release change nothing.
  #   * After `:code.delete/1`, which `mix compile` and `recompile` in IEx call, the module is
  #     loaded and finds the buffers with their entries: the buffers keep the library in memory.
  #     Calls in between raise an UndefinedFunctionError and write nothing. The new code does not
  #     accept the references of earlier flushes, so their tasks fail, and the next flush goes on
  #     behind them. (OTP before 26.1 has a bug: processes that load a module with an `on_load`
  #     function at the same time may hang, erlang/otp#7466.)
  #   * If the file of the library changed, the system still uses the library in memory: new native
  #     code needs a restart of the VM. A library of another path or version is refused while
  #     buffers exist: `load/0` fails, every call raises, and the data stays there for the right
  #     library.

  @on_load :load

  # Whether a buffer has been opened in this VM. `Library` reads it as well.
  @are_buffers {__MODULE__, :are_buffers}

  # Why the library could not be loaded. `Library` reads it, since this module does not exist then.
  @failure {__MODULE__, :failure}

  @version Mix.Project.config()[:version]

  @type run() :: {atom(), non_neg_integer()}
  @type flush() :: reference()

  @typep kind() :: PartitionedBuffer.Options.kind()
  @typep partition() :: non_neg_integer()
  @typep to() :: PartitionedBuffer.Routing.route()
  @typep route() :: to() | {:processor, to()}
  @typep limit() :: pos_integer() | :infinity
  @typep bound() :: {max_size :: limit(), max_bytes :: limit()}
  @type reservation() :: reference()
  @type journal_error() :: :locked | :held | {:format, pos_integer()} | File.posix() | pos_integer()
  @type replayed() ::
          {entries :: non_neg_integer(), records :: non_neg_integer(), bytes :: non_neg_integer(),
           torn_bytes :: non_neg_integer(),
           {damaged_bytes :: non_neg_integer(), damaged_records :: non_neg_integer()},
           duration :: non_neg_integer()}
  @typep place() :: pos_integer()
  @typep invalid() :: {:invalid, element :: term()} | {:improper, tail :: term()}
  @typep written() ::
           :ok
           | {:more, list()}
           | {:refused, list()}
           | :long
           | :bounded
           | :lapsed
           | :versions
           | invalid()
           | :not_running
  @type leased() :: attempts :: non_neg_integer() | false | :on_hold | :paused
  @typep role() :: :server | :tasks | :task | :events | :room | :drainer | :drained
  @typep counts() :: {non_neg_integer(), non_neg_integer(), non_neg_integer()}
  @typep entry() ::
           {key :: term(), value :: term(), version :: integer(), updates :: non_neg_integer()}
           | {key :: term(), sum :: integer(), count :: non_neg_integer()}
           | (item :: term())

  ## Runs

  @doc """
  Starts a run of a buffer of this kind, which lasts until the calling process dies.

  Entries that a buffer of the same name and another kind left stay there for the next buffer of
  that kind. With outcomes, `get`, `put_new`, `put_newer` and `delete` also see entries in flight.
  With a `max_size` the buffer holds no more entries than that, waiting and in flight, unless it has
  more already. With `max_bytes` writes that need memory find no room while it has as many. Failed
  items of a `strict?` queue stay before all others. A map with the versions of the `:clock` stamps
  its entries, and refuses writes with versions; one with its `:own` versions refuses all others. No
  partition pauses; their failures in a row and the limits of their batches go on. With another partition count
  than the last run, each entry waits in the partition that its key or item chooses now, and
  failures in a row start at 0.
  """
  @spec open(
          atom(),
          kind(),
          non_neg_integer(),
          outcomes? :: boolean(),
          strict? :: boolean(),
          :any | :clock | :own,
          bound()
        ) ::
          run() | :not_running
  def open(_buffer, _kind, _partition_count, _outcomes, _strict, _versions, _bound), do: not_loaded()

  @doc "The present run of a buffer."
  @spec run(atom()) :: run() | :not_running
  def run(_buffer), do: not_loaded()

  @doc "The process that opened the running buffer."
  @spec owner(atom()) :: pid() | :not_running
  def owner(_buffer), do: not_loaded()

  @doc "The names of all running buffers."
  @spec buffers() :: [atom()]
  def buffers, do: not_loaded()

  @doc "The kind of a running buffer and its partition count, which may be 0."
  @spec status(atom()) :: {kind(), partition_count :: non_neg_integer()} | :not_running
  def status(_buffer), do: not_loaded()

  @spec partition_count(atom()) :: pos_integer() | :not_running
  def partition_count(_buffer), do: not_loaded()

  @doc """
  Gives the calling process a role: `:server` of a partition gets the message `:enough` from the
  write with which enough entries wait, once for each flush, and the
  news of `resume_run/1` and `pause_all/2`; `:room` of the buffer gets `:full` when
  a write finds no room, and `:room` when the buffer may have some since; `:events`, `:drainer` and
  `:drained` of the buffer get nothing, and nothing is pending at a new `:events`. A role of the
  buffer is its own `partition`. The other roles are not taken here.
  """
  @spec register(run(), partition() | role(), role()) :: :ok | :not_running
  def register(_run, _partition, _role), do: not_loaded()

  @doc """
  Counts an event of this weight as pending, and returns the process `:events`, alive or dead; nil
  if none registered. If the pending events reach `limit`, all are dropped and counted until none is
  pending.
  """
  @spec begin_event(run(), weight :: pos_integer(), limit :: pos_integer()) ::
          pid() | nil | :full | :not_running
  def begin_event(_run, _weight, _limit), do: not_loaded()

  @doc """
  Ends events of this weight. Returns how many were dropped since the last report: 0 while others are
  pending.
  """
  @spec end_event(run(), weight :: non_neg_integer()) :: dropped :: non_neg_integer() | :not_running
  def end_event(_run, _weight), do: not_loaded()

  @doc "Notes the task supervisor of a partition."
  @spec set_tasks(run(), partition(), pid()) :: :ok | :not_running
  def set_tasks(_run, _partition, _supervisor), do: not_loaded()

  @doc "The process that last took a role, alive or dead; nil if none did."
  @spec process(run(), partition() | role(), role()) :: pid() | nil | :not_running
  def process(_run, _partition, _role), do: not_loaded()

  @doc "Makes the calling process the task of a partition, unless another task is alive."
  @spec begin_task(run(), partition()) :: :ok | {:busy, pid()} | :not_running
  def begin_task(_run, _partition), do: not_loaded()

  @doc "Ends the calling process's role as the task of a partition, also after the end of the run."
  @spec end_task(run(), partition()) :: :ok
  def end_task(_run, _partition), do: not_loaded()

  @doc "Ends the run of a buffer. No other task begins in it after that."
  @spec end_run(atom()) :: :ok
  def end_run(_buffer), do: not_loaded()

  @doc "The processes of the last run, alive or dead, and whether that was with outcomes."
  @spec left(atom()) :: {outcomes? :: boolean(), [{role(), pid()}]}
  def left(_buffer), do: not_loaded()

  @doc """
  Puts a run on hold until `resume_run/1` or its stop: `flush/2`, `claim/1` and `lease/2` return
  `:on_hold`.
  """
  @spec hold_run(run()) :: :ok | :not_running
  def hold_run(_run), do: not_loaded()

  @doc "Ends the hold, and sends the `:server` of each partition `:resumed`."
  @spec resume_run(run()) :: :ok | :not_running
  def resume_run(_run), do: not_loaded()

  @doc """
  Ends the hold for good, at the beginning of a stop, and all waits for room. Returns how many lists
  with reserved room are being written. If there are any, the calling process gets the message
  `:lists_written` at the end of the last one. No further list begins.
  """
  @spec begin_stop(run()) :: non_neg_integer() | :not_running
  def begin_stop(_run), do: not_loaded()

  @doc "Whether a run is on hold."
  @spec on_hold(run()) :: boolean() | :not_running
  def on_hold(_run), do: not_loaded()

  @doc "The options of a run with their version; nil before the first."
  @spec options(run()) :: {version :: non_neg_integer(), term()} | nil | :not_running
  def options(_run), do: not_loaded()

  @doc """
  Replaces the options of this version, which is 0 before the first, and the functions unless they
  are nil. Options of over 32 kB are badarg.
  """
  @spec put_options(run(), non_neg_integer(), term(), functions :: term() | nil) ::
          :ok | :changed | :not_running
  def put_options(_run, _version, _options, _functions), do: not_loaded()

  @doc "The functions of a run; `:large` if only `functions_large/1` may copy them."
  @spec functions(run()) :: term() | :large | :not_running
  def functions(_run), do: not_loaded()

  @spec functions_large(run()) :: term() | :not_running
  def functions_large(_run), do: not_loaded()

  @doc "The last failure of a processor; nil if none failed in this run."
  @spec last_error(run()) :: term() | nil | :not_running
  def last_error(_run), do: not_loaded()

  @doc """
  Keeps the last failure: a term of a few parts, with binaries of any size. Another term is badarg.
  """
  @spec put_error(run(), term()) :: :ok | :not_running
  def put_error(_run, _error), do: not_loaded()

  @doc """
  Notes that a partition warns of what its processor returned. Returns whether it is the first time in
  this run.
  """
  @spec first_warning(run(), partition()) :: boolean() | :not_running
  def first_warning(_run, _partition), do: not_loaded()

  @doc """
  Notes that the application stops the buffer, and what becomes of the leftovers. The first note
  counts.
  """
  @spec put_stop(run(), :dead_letter | :keep) :: :ok | :not_running
  def put_stop(_run, _leftovers), do: not_loaded()

  @doc "What `put_stop/2` noted; nil if the application does not stop the buffer."
  @spec stop(run()) :: :dead_letter | :keep | nil | :not_running
  def stop(_run), do: not_loaded()

  @doc """
  Notes that the run leaves no entries to take care of. At its end its options and functions are
  freed. Those of another run stay until the next start of that kind.
  """
  @spec settle(run()) :: :ok | :not_running
  def settle(_run), do: not_loaded()

  @doc """
  The leftovers of all names that do not run: the partition count of the last run of that kind, and
  how many entries it left. Leaves out settled runs.
  """
  @spec leftovers() :: [{atom(), kind(), partition_count :: pos_integer(), held :: pos_integer()}]
  def leftovers, do: not_loaded()

  @doc "The options and functions of the last run of a kind, if it is over and not settled; else nil."
  @spec left_terms(atom(), kind()) :: {options :: term(), functions :: term()} | nil
  def left_terms(_buffer, _kind), do: not_loaded()

  @doc "Notes that a buffer was opened: no other library can replace this one then."
  @spec hold() :: :ok
  def hold, do: :persistent_term.put(@are_buffers, true)

  ## Partitions

  @doc "Lets a drained or closed partition accept writes again."
  @spec reopen(run(), partition()) :: :ok | :not_running
  def reopen(_run, _partition), do: not_loaded()

  @doc """
  Refuses writes to a partition with `:not_running`, except for writes marked as a processor's.
  A closed partition stays closed.
  """
  @spec drain(run(), partition()) :: :ok | :closed | :not_running
  def drain(_run, _partition), do: not_loaded()

  @doc """
  Refuses reads and writes of a partition with `:not_running`. Waits for the end of `absorb/5`.
  """
  @spec close(run(), partition()) :: :ok | :not_running
  def close(_run, _partition), do: not_loaded()

  @doc """
  How many entries of a partition wait, or are in flight without an outcome. Its time grows with the
  latter.
  """
  @spec held(run(), partition()) :: non_neg_integer() | :not_running
  def held(_run, _partition), do: not_loaded()

  @doc "Changes how many waiting entries are enough for a flush. Returns whether as many wait."
  @spec set_threshold(run(), partition(), limit()) :: boolean() | :not_running
  def set_threshold(_run, _partition, _threshold), do: not_loaded()

  @doc "Notes when the partition ticks next, in milliseconds of the VM's monotonic time."
  @spec set_next(run(), partition(), integer() | nil) :: :ok | :not_running
  def set_next(_run, _partition, _time), do: not_loaded()

  @doc """
  The numbers of a partition: waiting, in flight, retrying, and the bytes of all; the age of the
  oldest entry in milliseconds; written, coalesced, stale and deleted; superseded, processed, failed
  and given up; whether it refuses writes, whether its task is alive, the failures in a row and for
  how many milliseconds it has been failing, the rest of the pause, the time of the next tick, and
  how many entries the next batch may have, nil without a limit.
  """
  @spec info(run(), partition()) ::
          {{count, count, count, bytes :: count}, count | nil, {count, count, count, count},
           {count, count, count, count},
           {boolean(), boolean(), failures :: count, failing_ms :: count, pause_ms :: count | nil,
            next :: integer() | nil, limit :: count | nil}}
          | :not_running
        when count: non_neg_integer()
  def info(_run, _partition), do: not_loaded()

  @doc """
  The lessons of a partition from failures: failures in a row, for how many milliseconds it has been
  failing, the rest of its pause, and how many entries failed since the last flush and were not
  given up.
  """
  @spec learned(run(), partition()) ::
          {failures :: count, failing_ms :: count, pause_ms :: count | nil, failed :: count} | :not_running
        when count: non_neg_integer()
  def learned(_run, _partition), do: not_loaded()

  @doc "Lets the next batch of a partition have any size."
  @spec forget_limit(run(), partition()) :: :ok | :not_running
  def forget_limit(_run, _partition), do: not_loaded()

  @doc """
  How many single entries failed since the last success, whether the failure of another one begins a
  pause, whether entries wait that did not fail yet, whether the processor succeeded with an entry of
  the last flush, and how many milliseconds ago an entry failed, nil if none did.
  """
  @spec alone(run(), partition()) ::
          {non_neg_integer(), boolean(), boolean(), boolean(), non_neg_integer() | nil} | :not_running
  def alone(_run, _partition), do: not_loaded()

  @doc "Begins a pause, which counts as a failure in a row if it is `counted`."
  @spec pause(run(), partition(), non_neg_integer(), counted :: boolean()) :: :ok | :not_running
  def pause(_run, _partition, _ms, _counted), do: not_loaded()

  @doc """
  Begins an uncounted pause in all partitions, or prolongs the present one, and sends the `:server`
  of each partition `:paused`. A task ends before its next batch, unless it goes on in a pause: see
  `lease/2`.
  """
  @spec pause_all(run(), non_neg_integer()) :: :ok | :not_running
  def pause_all(_run, _ms), do: not_loaded()

  @spec end_pause(run(), partition()) :: :ok | :not_running
  def end_pause(_run, _partition), do: not_loaded()

  @doc """
  Ends the pause of a partition if its time is over. Returns the rest of it otherwise, in milliseconds:
  another partition may have prolonged it.
  """
  @spec pass_pause(run(), partition()) :: nil | non_neg_integer() | :not_running
  def pass_pause(_run, _partition), do: not_loaded()

  @doc """
  Counts the claimed batch of a call that never returned as failed. Returns how many entries are
  lost. No task of the partition may be running.
  """
  @spec lost(run(), partition()) :: non_neg_integer() | :not_running
  def lost(_run, _partition), do: not_loaded()

  ## Room

  @doc "Changes how much a buffer holds. It throws nothing away."
  @spec set_bound(run(), bound()) :: :ok | :not_running
  def set_bound(_run, _bound), do: not_loaded()

  @doc """
  Reserves room for some entries, if nobody waits for room. Else the calling process waits, if it
  `waits?`: it gets the message `{:"$partitioned_buffer_room", place, answer}`. The answer is
  `:granted`, `:too_long` if the bound became too low, or `:ended` with the buffer.

  `release/1` gives back unused room, or the place, and so does the end of the last process that has
  the reference. If a writer does not write within 100 ms after `:granted`, and others wait, the room
  goes to them: then the writes with it return `:lapsed`, and `wait_again/1` takes the old place.
  """
  @spec reserve(atom(), non_neg_integer(), waits? :: boolean()) ::
          reservation() | {:wait, reservation(), place()} | :full | :not_running
  def reserve(_buffer, _count, _waits), do: not_loaded()

  @spec wait_again(reservation()) :: {:wait, reservation(), place()}
  def wait_again(_reservation), do: not_loaded()

  @doc "Ends a wait. Returns false if the answer was sent."
  @spec leave(reservation()) :: boolean()
  def leave(_reservation), do: not_loaded()

  @spec release(reservation()) :: :ok
  def release(_reservation), do: not_loaded()

  @doc """
  Calls the native function that writes a single entry, `:put` for example, with its arguments, and
  with reserved room.
  """
  @spec write(reservation(), atom(), [any()]) :: atom()
  def write(_reservation, _operation, _arguments), do: not_loaded()

  @doc """
  Answers writers that wait for room. Returns how many still wait, and the time in milliseconds until
  the next call: 0 if others may be answered at once.
  """
  @spec serve(run()) :: {non_neg_integer(), non_neg_integer() | :infinity} | :not_running
  def serve(_run), do: not_loaded()

  @doc """
  Ends the time in which the buffer is full, unless its room is still low. Returns whether it ended.
  """
  @spec clear_full(run()) :: boolean() | :not_running
  def clear_full(_run), do: not_loaded()

  @doc "Lets the buffer refuse all writes, as if it were full, or no longer."
  @spec refuse_writes(run(), boolean()) :: :ok | :not_running
  def refuse_writes(_run, _refuses), do: not_loaded()

  @doc "Whether the buffer refuses all writes."
  @spec refuses_writes(atom()) :: boolean()
  def refuses_writes(_buffer), do: not_loaded()

  @doc "Counts writes that were refused, or dropped, for lack of room."
  @spec count_refused(atom(), non_neg_integer(), non_neg_integer()) :: :ok | :not_running
  def count_refused(_buffer, _refused, _dropped), do: not_loaded()

  @doc """
  The counts of a bound: entries and reserved room, which is 0 without a bound; refused and dropped
  writes; writers that wait, and all that ever waited.
  """
  @spec bound(atom()) ::
          {non_neg_integer(), non_neg_integer(), non_neg_integer(), non_neg_integer(), non_neg_integer()}
          | :not_running
  def bound(_buffer), do: not_loaded()

  ## Entries

  @spec size(atom()) :: non_neg_integer() | {:elsewhere, non_neg_integer() | :not_running} | :not_running
  def size(_buffer), do: not_loaded()

  @spec put(atom(), route(), term(), term()) :: :ok | :full | :versions | :not_running
  def put(_buffer, _to, _key, _value), do: not_loaded()

  @spec put_new(atom(), route(), term(), term()) ::
          :ok | :exists | :full | :versions | :elsewhere | :not_running
  def put_new(_buffer, _to, _key, _value), do: not_loaded()

  @spec put_newer(atom(), route(), term(), term(), integer()) ::
          :ok | :stale | :full | :versions | :not_running
  def put_newer(_buffer, _to, _key, _value, _version), do: not_loaded()

  @spec get(atom(), route(), term()) :: {:ok, term()} | :error | :elsewhere | :not_running
  def get(_buffer, _to, _key), do: not_loaded()

  @spec get_versioned(atom(), route(), term()) ::
          {:ok, term(), version :: integer()} | :error | :elsewhere | :not_running
  def get_versioned(_buffer, _to, _key), do: not_loaded()

  @spec delete(atom(), route(), term()) :: :ok | :elsewhere | :not_running
  def delete(_buffer, _to, _key), do: not_loaded()

  @doc "Adds to the sum of a key. An amount that is not an integer of 64 bits is invalid."
  @spec add(atom(), route(), term(), integer()) :: :ok | :invalid | :full | :not_running
  def add(_buffer, _to, _key, _amount), do: not_loaded()

  @doc "As `add/4`, with the count that the amount brings: at least 0 and below 2^63, else it is invalid."
  @spec add_counted(atom(), route(), term(), integer(), non_neg_integer()) ::
          :ok | :invalid | :full | :not_running
  def add_counted(_buffer, _to, _key, _amount, _count), do: not_loaded()

  @doc "The sum of a key: of waiting entries, and with outcomes also of entries in flight."
  @spec sum(atom(), route(), term()) ::
          {:ok | :elsewhere, integer()} | :error | :elsewhere | :not_running
  def sum(_buffer, _to, _key), do: not_loaded()

  @doc "As `delete/3`, for a counter."
  @spec delete_sum(atom(), route(), term()) :: :ok | :elsewhere | :not_running
  def delete_sum(_buffer, _to, _key), do: not_loaded()

  @spec push(atom(), route(), term()) :: :ok | :full | :not_running
  def push(_buffer, _to, _item), do: not_loaded()

  ## Lists

  @doc """
  Checks the elements of a list until the time is up. The caller checks the rest by another call.
  """
  @spec check(:pair | :versioned | :item | :amount, list()) :: :ok | {:more, list()} | invalid()
  def check(_shape, _list), do: not_loaded()

  @doc """
  Puts entries until the time is up. The caller puts the rest by another call. If a partition
  refuses a write, the rest is the unwritten entries.

  A list that the caller has not `checked` is checked here, and nothing is written if it is invalid
  or `:long`, or if the buffer is `:bounded`. A reservation of this buffer for all entries of a list
  also means that it is checked. A checked list is written in steps of at most 128 entries. The call
  for a rest that begins with an invalid step, or with a step that the reservation has no room for,
  raises badarg.
  """
  @spec put_all(atom(), route(), [{term(), term()}], checked :: boolean() | reservation()) :: written()
  def put_all(_buffer, _to, _entries, _checked), do: not_loaded()

  @doc "As `put_all/4`, with versions."
  @spec put_all_newer(atom(), route(), [{term(), term(), integer()}], checked :: boolean() | reservation()) ::
          written()
  def put_all_newer(_buffer, _to, _entries, _checked), do: not_loaded()

  @doc "As `put_all/4`, for the keys and amounts of a counter."
  @spec add_all(atom(), route(), [{term(), integer()}], checked :: boolean() | reservation()) :: written()
  def add_all(_buffer, _to, _entries, _checked), do: not_loaded()

  @doc "As `put_all/4`, for the items of a queue. Only an improper list is invalid."
  @spec push_all(atom(), route(), [term()], checked :: boolean() | reservation()) :: written()
  def push_all(_buffer, _to, _items, _checked), do: not_loaded()

  ## Flushes. A partition has one in flight at most.

  @doc """
  Returns the unfinished flush (`:rest`), else a new flush of the waiting entries (`:fresh`);
  `:on_hold` while the run is on hold.
  """
  @spec flush(run(), partition()) :: {:rest | :fresh, flush()} | :empty | :on_hold | :not_running
  def flush(_run, _partition), do: not_loaded()

  @doc "The last flush of a partition. All its entries may have an outcome."
  @spec in_flight(run(), partition()) :: flush() | :empty | :not_running
  def in_flight(_run, _partition), do: not_loaded()

  @doc "Notes that the task is at work, so the time limit of a call starts again."
  @spec touch(flush()) :: :ok
  def touch(_flush), do: not_loaded()

  @doc """
  How many batches of a flush were claimed or leased, how many entries the last one had, how many
  positions have no outcome, and how many nanoseconds ago the last one was claimed, leased or buried,
  or its task was at work later; nil before the first.
  """
  @spec seen(flush()) :: {non_neg_integer(), non_neg_integer(), non_neg_integer(), integer() | nil}
  def seen(_flush), do: not_loaded()

  @doc """
  Reads entries for a batch of at most `size`, until it is complete or the time is up. Returns them,
  the length of the batch, and whether it is complete. `length` is 0 for a new batch, else the
  length that the last call returned. A batch that another process began to read is taken back. If
  another process leased a batch, this returns no entries. `resumed?` leaves out entries for whose
  keys newer ones wait. A read confirms the last claimed batch of the calling process.
  """
  @spec read(flush(), non_neg_integer(), pos_integer(), resumed? :: boolean()) ::
          {[entry()], non_neg_integer(), complete? :: boolean()}
  def read(_flush, _length, _size, _resumed), do: not_loaded()

  @doc """
  Gives away the batch that this process has read: its entries are never flushed again. Changes
  nothing, and returns false if another process began a batch since, `:on_hold` while the run is on
  hold. A refused batch is read again later.
  """
  @spec claim(flush()) :: boolean() | :on_hold
  def claim(_flush), do: not_loaded()

  @doc """
  Keeps the batch that this process has read, until `succeed/1` or `give_back/5`. Returns the most
  attempts of an entry. Changes nothing as `claim/1` does, and also, with `:paused`, if the partition
  pauses and the caller does not go on `in_pause?`.
  """
  @spec lease(flush(), in_pause? :: boolean()) :: leased()
  def lease(_flush, _in_pause), do: not_loaded()

  @doc """
  Reads a batch as `read/4` does, and claims it when it is complete. If that is not yet done, it
  returns `:more`, and the caller calls again.
  """
  @spec claim_next(flush(), non_neg_integer(), pos_integer()) ::
          {[entry()], non_neg_integer(), boolean() | :on_hold | :more}
  def claim_next(_flush, _length, _size), do: not_loaded()

  @doc """
  As `claim_next/3`, for a lease. Ends the leased batch before if the processor `succeeded?`.
  """
  @spec lease_next(
          flush(),
          non_neg_integer(),
          pos_integer(),
          resumed? :: boolean(),
          in_pause? :: boolean(),
          succeeded? :: boolean()
        ) :: {[entry()], non_neg_integer(), leased() | :more}
  def lease_next(_flush, _length, _size, _resumed, _in_pause, _succeeded), do: not_loaded()

  @doc """
  Ends a leased batch: the processor succeeded. Of a batch that is given up it ends the entries that
  `batch/1` returned. Returns how many entries the batch still has.
  """
  @spec succeed(flush()) :: non_neg_integer()
  def succeed(_flush), do: not_loaded()

  @doc """
  Takes a leased batch back, to be read again in smaller batches: the processor failed with all of
  it. Returns its length, and how many entries the next batch may have; nil without a leased batch.
  """
  @spec split(flush()) :: {pos_integer(), pos_integer()} | nil
  def split(_flush), do: not_loaded()

  @doc "Shortens the batch that this process has read to its first entries."
  @spec shorten(flush(), non_neg_integer()) :: :ok
  def shorten(_flush, _length), do: not_loaded()

  @doc "Lets failed entries of a flush wait for the others."
  @spec defer(flush()) :: :ok
  def defer(_flush), do: not_loaded()

  @doc """
  Leases entries of a flush, so that `give_back/5` lets them wait together with newer ones, which
  need not wait for these. It leases none if the sink may be away: the flush has entries that did not
  fail, and none that succeeded; and with `others?` also if no newer ones wait. Returns whether it
  leased some. The caller calls again after giving them back.
  """
  @spec lease_rest(flush(), others? :: boolean()) :: boolean()
  def lease_rest(_flush, _others), do: not_loaded()

  @doc """
  Ends a leased batch with failed entries: those with these numbers, from 0 on and in ascending
  order, or all. They are retried, unless they failed `max_attempts` times, with this one if it is
  `counted?`. An entry with the number `-1 - number` is cancelled. Exhausted and cancelled entries
  are the batch until `succeed/1`.

  Does as much as its time allows, and returns how many entries it let be retried, how many are
  superseded or deleted, and how many are given up. While there is `:more`, the caller calls again
  with the numbers that this returns, and else the same arguments. A call looks at 4,096 numbers at
  most. With `:done` the partition pauses for `pause` milliseconds, if that is not nil, which counts
  as a failure in a row if the failure is `counted?`.
  """
  @spec give_back(
          flush(),
          [integer()] | :all,
          counted? :: boolean(),
          non_neg_integer() | :infinity,
          pause :: non_neg_integer() | nil
        ) :: {:done, counts()} | {:more, [integer()] | :all, counts()}
  def give_back(_flush, _failed, _counted, _max_attempts, _pause), do: not_loaded()

  @doc """
  Makes the batch of a dead process the caller's. Returns its number of entries, and whether it is
  leased, given up, or with `:dead_letter`; nil without a batch.

  If that process died for the size of its batch, perhaps, a batch that it had read counts as leased,
  and `batch/1` returns fewer entries of a batch that is given up.
  """
  @spec inherit(flush(), death :: :killed | :timeout | nil) ::
          {:leased | :given_up | :buried, pos_integer()} | nil
  def inherit(_flush, _death), do: not_loaded()

  @doc """
  The entries of the present batch; of a batch that is given up, only the entries that
  `:dead_letter` gets together.
  """
  @spec batch(flush()) :: [entry()]
  def batch(_flush), do: not_loaded()

  @doc "Notes that a call of `:dead_letter` with the abandoned batch is about to begin."
  @spec bury(flush()) :: :ok
  def bury(_flush), do: not_loaded()

  ## Stages of a buffer of several nodes

  @doc """
  Notes that entries of the keys of this run may also be elsewhere: reads that find none return
  `:elsewhere`, `sum/3` returns `{:elsewhere, sum}`, and `put_new/4`, `delete/3` and `delete_sum/3`
  do nothing but return `:elsewhere`. `size/1` returns `{:elsewhere, size}`.
  """
  @spec collect(run()) :: :ok | :not_running
  def collect(_run), do: not_loaded()

  @doc """
  Marks the leased batch of the calling process with a number and a node, or removes the mark. Returns
  false without such a batch. The mark ends with the batch.
  """
  @spec mark(flush(), {non_neg_integer(), node()} | nil) :: boolean()
  def mark(_flush, _mark), do: not_loaded()

  @doc "The mark of the leased batch."
  @spec marked(flush()) :: {non_neg_integer(), node()} | nil
  def marked(_flush), do: not_loaded()

  @doc "A version that is at least as great as all that the clock gave to entries of a partition of a map."
  @spec latest_version(run(), partition()) :: integer() | :not_running
  def latest_version(_run, _partition), do: not_loaded()

  @doc """
  Lets all later versions of a map's clock be greater than one of another node, unless that is more
  than `most_ms` milliseconds ahead of the wall clock. Returns how far it is ahead.
  """
  @spec see_version(run(), integer(), most_ms :: non_neg_integer()) ::
          ahead_ms :: non_neg_integer() | :not_running
  def see_version(_run, _version, _most_ms), do: not_loaded()

  ## Entries of other nodes

  @typep stream() :: {first :: non_neg_integer(), second :: non_neg_integer()} | nil
  @typep absorbed() ::
           {key :: term(), value :: term(), version :: integer(), updates :: non_neg_integer()}
           | {key :: term(), sum :: integer(), count :: non_neg_integer()}
  @typep absorption() ::
           :ok | :duplicate | :full | :large | :stopping | :not_running | invalid()

  @doc """
  Writes entries of the same buffer on another node: all or none, and those of a stream once. The
  keys choose the partitions.

  A map takes `{key, value, version, updates}`, as `put_newer/5` does. A new entry has these `updates`,
  at most 2^63 - 1, and a replacement adds them and one to those before. A counter takes
  `{key, sum, count}`, where sum and count are below 2^120, and so are the sums and counts of its
  entries: what would be beyond that stays there. A queue is badarg.

  The stream has two parts of 64 bits, and its numbers are positive and of 64 bits. A number that is
  not above the last one taken is a `:duplicate`, also if the buffer is full or stops. The numbers of a
  name and kind outlive a run. Without a stream the number has no meaning.

    * `:full`: the bound has no room for all entries, or writers wait for some. With the mode `:force`
      the buffer takes the entries nevertheless, and then holds more than its bound.
    * `:stopping`: the stop of the run began. With the mode `:processor` the entries are taken until
      their partitions are closed, as writes of a processor are.
    * `:large`: there are over 512 entries, large terms, versions beyond 64 bits, or many empty
      partitions, or another call holds the stream. `absorb_large/5` takes the entries.
  """
  @spec absorb(run(), [absorbed()], stream(), pos_integer(), [:force | :processor]) :: absorption()
  def absorb(_run, _entries, _stream, _number, _modes), do: not_loaded()

  @doc "The same for entries of any number and size."
  @spec absorb_large(run(), [absorbed()], stream(), pos_integer(), [:force | :processor]) :: absorption()
  def absorb_large(_run, _entries, _stream, _number, _modes), do: not_loaded()

  @doc "The streams of a name and kind, each with the last number taken."
  @spec streams(run()) :: [{non_neg_integer(), non_neg_integer(), pos_integer()}] | :not_running
  def streams(_run), do: not_loaded()

  @doc """
  Forgets the streams with this first part whose last number is at most `most`. If they go on, any number
  is new.
  """
  @spec forget_streams(run(), first :: non_neg_integer(), most :: non_neg_integer()) :: :ok | :not_running
  def forget_streams(_run, _first, _most), do: not_loaded()

  @doc """
  A random positive number of 58 bits, which stays the same while this VM lives: as long as the entries
  and streams of the name.
  """
  @spec incarnation(atom()) :: pos_integer()
  def incarnation(_buffer), do: not_loaded()

  ## Library

  @doc """
  How many bytes and environments the library has allocated, and an estimate of the bytes that are
  to be freed. Environments hold the copies of terms.
  """
  @spec memory() :: {non_neg_integer(), non_neg_integer(), non_neg_integer()}
  def memory, do: not_loaded()

  @doc "Waits, on a dirty scheduler, until all unused memory is freed."
  @spec await_reclaimed() :: :ok
  def await_reclaimed, do: not_loaded()

  @doc "Shifts the wall clock that maps stamp their entries with, in this VM, for tests."
  @spec shift_clock(milliseconds :: integer()) :: :ok
  def shift_clock(_milliseconds), do: not_loaded()

  @doc """
  For each NIF its name, the nanoseconds of the longest call and the number of calls over a
  millisecond: first of calls without page faults in CPU time of the thread, then of calls with page
  faults, then of all calls in wall-clock time. The list is empty unless the library was built with
  the feature `timing`, which is for benchmarks.
  """
  @spec longest_calls() :: [{String.t(), longest, longest, longest}]
        when longest: {non_neg_integer(), non_neg_integer()}
  def longest_calls, do: not_loaded()

  @doc false
  def load do
    library = Application.app_dir(:partitioned_buffer, "priv/native/partitioned_buffer")
    info = {@version, :persistent_term.get(@are_buffers, false)}

    # A module that Mix has compiled again is left as old code. The soft purge kills no process: if
    # one still runs the old code, `load/0` fails, and the next call tries again.
    if :erlang.check_old_code(__MODULE__), do: :code.soft_purge(__MODULE__)

    # In a release this may be loaded before the other modules of the package, so it calls none of
    # them.
    with {:error, {reason, text}} <- :erlang.load_nif(String.to_charlist(library), info) do
      failure = failure(reason, text, library)
      :persistent_term.put(@failure, failure)
      {:error, {reason, failure}}
    end
  end

  # The library itself refused.
  defp failure(:load, _text, library) do
    "the native library #{library} does not have version #{@version}, or another library holds the buffers of this VM: " <>
      "build it again, or restart the VM"
  end

  defp failure(_reason, text, _library) do
    "the native library of PartitionedBuffer cannot be loaded: #{text}. It has to be built for this system " <>
      "(#{:erlang.system_info(:system_architecture)}), with the same libc or an older one: run " <>
      "`PARTITIONED_BUFFER_BUILD=1 mix deps.compile partitioned_buffer --force` on such a system, which builds it with cargo, " <>
      "or set PARTITIONED_BUFFER_NIF_PATH to a library that was built there when you compile"
  end

  # Journals

  @doc """
  Lets a buffer that does not run have a journal in a directory, `{dir, path}`, or none. Locks `path`,
  and lets the entries that a former VM left there wait: call `open/7` next. Entries with
  `max_attempts` are given up. `dir` has the threads of all journals below it.

  Returns what was replayed, with the duration in nanoseconds, or `:ok` if the journal is there
  already. `:held`: the buffer has entries, and another journal or none.
  """
  @spec open_journal(
          atom(),
          kind(),
          pos_integer(),
          {String.t(), String.t()} | nil,
          {write_ms :: pos_integer(), sync_ms :: pos_integer() | :infinity, max_bytes :: pos_integer()},
          pos_integer() | :infinity
        ) :: :ok | {:ok, replayed()} | {:error, journal_error()}
  def open_journal(_name, _kind, _partition_count, _place, _settings, _max_attempts), do: not_loaded()

  @doc """
  Ends the journal if the buffer holds nothing. Its directory has only the lock file then. Waits for a
  disk for some seconds.
  """
  @spec close_journal(run()) :: :ok
  def close_journal(_run), do: not_loaded()

  @doc """
  Sends the caller `{ref, :ok | {:error, posix}}` when all that was written to the buffer before is
  written to its journal, or synced. Returns `nil` without a journal.
  """
  @spec journal_wait(run(), :written | :synced, reference()) :: :ok | nil
  def journal_wait(_run, _level, _ref), do: not_loaded()

  @doc """
  The state of the journal. Times are in milliseconds. The last failure has its operation, its reason and
  its age.
  """
  @spec journal_status(run()) ::
          {failing? :: boolean(),
           {lag_ms :: non_neg_integer(), unwritten :: non_neg_integer(), written_ms_ago :: non_neg_integer(),
            synced_ms_ago :: non_neg_integer()},
           {bytes :: non_neg_integer(), segments :: non_neg_integer(), replayed :: non_neg_integer()},
           {{atom(), File.posix() | pos_integer()}, non_neg_integer()} | nil}
          | nil
          | :not_running
  def journal_status(_run), do: not_loaded()

  @doc """
  Changes how often the journal is written and synced.
  """
  @spec set_journal_times(run(), pos_integer(), pos_integer() | :infinity) :: :ok | :not_running
  def set_journal_times(_run, _write_ms, _sync_ms), do: not_loaded()

  @doc """
  Lets the caller get the reports of the journal: `{:journal, report}`.
  """
  @spec watch_journal(run()) :: :ok | :not_running
  def watch_journal(_run), do: not_loaded()

  @doc """
  What the journal in a directory holds: its entries with their terms in the external format, without
  its first byte, then `{segment, offset, bytes}` of the damage, and the bytes of a torn tail.
  """
  @spec read_journal(String.t(), kind()) ::
          {:ok, {[tuple()], [tuple()], non_neg_integer(), non_neg_integer()}} | {:error, journal_error()}
  def read_journal(_path, _kind), do: not_loaded()

  @doc """
  Removes a directory with a journal that no buffer uses.
  """
  @spec delete_journal(String.t()) :: :ok | {:error, journal_error()}
  def delete_journal(_path), do: not_loaded()

  defp not_loaded, do: :erlang.nif_error(:nif_not_loaded)
end
