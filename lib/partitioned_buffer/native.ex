defmodule PartitionedBuffer.Native do
  @moduledoc false
  # The NIFs. They take a buffer by its name, an atom. `to` is a partition and the partition count that it was chosen by, or nil to
  # route by the key itself; `{:processor, to}` marks the write of a processor, and `{:next, to}` that of
  # a process that has waited for room. `:full` means that there is no room for another entry. `:not_running` means that the buffer was
  # never started, has ended, has no partitions, or has another partition count than `to`. Arguments of another form raise
  # an ArgumentError (badarg) and change nothing.
  #
  # A call takes at most a millisecond, plus the time to copy one key and one value, or one item. A list may copy up to 32
  # large ones, if no large term was written for a while (`pace.rs`). `open`, `held`, `batch` and `give_back_many` may take
  # longer, so they run on dirty schedulers, and so does `set_max_size`.

  # This module can be loaded again while the VM runs:
  #
  #   * While its current code is in use, the VM refuses ("upgrade not supported by this NIF library"): `load/0` fails, and
  #     the current code and all data stay in use. So `:code.load_file/1` and the hot upgrade of a release change nothing.
  #   * After `:code.delete/1`, which `mix compile` and `recompile` in IEx call, the module is loaded and finds the buffers
  #     with their entries: the buffers keep the library in memory. Calls in between raise an UndefinedFunctionError and
  #     write nothing. The new code does not know the references of earlier flushes, so their tasks fail, and the next
  #     flush gives the entries that these had not claimed. (OTP before 26.1 has a bug: processes that load a module with
  #     an `on_load` function at the same time may hang, erlang/otp#7466.)
  #   * If the file of the library has changed, the system still uses the library in memory: new native code needs a restart
  #     of the VM. A library of another path or version is refused while there are buffers: `load/0` fails, every call
  #     raises, and the data stays there for the right library.

  @on_load :load

  # Whether a buffer has been opened in this VM.
  @are_buffers {__MODULE__, :are_buffers}

  # Why the library could not be loaded. `Library` reads it, since this module is not there then.
  @failure {__MODULE__, :failure}

  @version Mix.Project.config()[:version]

  @typep kind() :: PartitionedBuffer.Options.kind()
  @typep partition() :: non_neg_integer()
  @typep to() :: PartitionedBuffer.Routing.route()
  @typep route() :: to() | {:processor | :next, to()}
  @typep limit() :: pos_integer() | :infinity
  @typep reservation() :: reference()
  @typep invalid() :: {:invalid, element :: term()} | {:improper, tail :: term()}
  @typep written() :: :ok | {:more, list()} | {:refused, list()} | :long | :bounded | invalid() | :not_running
  @typep flush() :: reference()
  @typep entry() ::
           {key :: term(), value :: term(), version :: integer(), updates :: non_neg_integer()}
           | {key :: term(), sum :: integer(), count :: pos_integer()}
           | (item :: term())

  @doc """
  Lets a buffer of this kind run until the calling process dies. The reference keeps it in memory. Entries that a buffer of
  the same name and another kind has left stay there for the next buffer of that kind. With outcomes, `get`, `put_new`,
  `put_newer` and `delete` also see what is in flight. With a `max_size` it holds no more entries than that, waiting and in
  flight, unless there are more already.
  """
  @spec open(atom(), kind(), non_neg_integer(), outcomes? :: boolean(), max_size :: limit()) ::
          reference()
  def open(_buffer, _kind, _partition_count, _outcomes, _max_size), do: not_loaded()

  @doc "Changes how many entries a buffer holds. It throws nothing away."
  @spec set_max_size(atom(), limit()) :: :ok | :not_running
  def set_max_size(_buffer, _max_size), do: not_loaded()

  @doc "Changes how many entries are enough for a partition to flush. Returns whether as many wait."
  @spec set_threshold(atom(), partition(), limit()) :: boolean() | :not_running
  def set_threshold(_buffer, _partition, _threshold), do: not_loaded()

  @doc """
  The calling process will be told of a partition, or of the room in the buffer, in the place of another one. It gets the
  message `:enough` from the write with which enough entries wait in the partition, once for each flush; `:full` from
  `has_room/2` or `reserve/3` if there is no room; `:room` if there may be room since.
  """
  @spec watch(atom(), partition() | :room) :: :ok | :not_running
  def watch(_buffer, _what), do: not_loaded()

  @doc """
  Takes room for so many entries of a list. While others wait for room only the `next?` one gets any. `release/1` gives back what
  the list does not need, and so does the end of the last process that has the reference.
  """
  @spec reserve(atom(), non_neg_integer(), next? :: boolean()) :: reservation() | :full | :not_running
  def reserve(_buffer, _count, _next), do: not_loaded()

  @spec release(reservation()) :: :ok
  def release(_reservation), do: not_loaded()

  @doc "Whether there is room for so many entries. A write that has found none may get what others have not used then."
  @spec has_room(atom(), non_neg_integer()) :: boolean() | :not_running
  def has_room(_buffer, _count), do: not_loaded()

  @doc "Says whether writers wait for room."
  @spec set_queued(atom(), boolean()) :: :ok | :not_running
  def set_queued(_buffer, _queued), do: not_loaded()

  @doc "Ends a time in which the buffer was full, unless there is still little room. Returns whether it has ended."
  @spec clear_full(atom()) :: boolean() | :not_running
  def clear_full(_buffer), do: not_loaded()

  @doc "Counts writes that were refused, or dropped, since there was no room."
  @spec count_refused(atom(), non_neg_integer(), non_neg_integer()) :: :ok | :not_running
  def count_refused(_buffer, _refused, _dropped), do: not_loaded()

  @doc """
  What a bound has counted: entries and room that was given out for others, which is 0 without a `max_size`; how many writes
  were refused, and how many were dropped.
  """
  @spec bound(atom()) :: {non_neg_integer(), non_neg_integer(), non_neg_integer()} | :not_running
  def bound(_buffer), do: not_loaded()

  @doc "Lets a partition that was closed take writes again."
  @spec reopen(atom(), partition()) :: :ok | :not_running
  def reopen(_buffer, _partition), do: not_loaded()

  @doc """
  Refuses writes to a partition from now on with `:not_running`, except those that are marked as a processor's. A closed
  partition stays closed.
  """
  @spec drain(atom(), partition()) :: :ok | :closed | :not_running
  def drain(_buffer, _partition), do: not_loaded()

  @doc "Refuses reads and writes of a partition from now on with `:not_running`."
  @spec close(atom(), partition()) :: :ok | :not_running
  def close(_buffer, _partition), do: not_loaded()

  @spec partition_count(atom()) :: pos_integer() | :not_running
  def partition_count(_buffer), do: not_loaded()

  @doc "The kind of a buffer and its partition count, which may be 0, while the process that opened it lives."
  @spec status(atom()) :: {kind(), partition_count :: non_neg_integer()} | :not_running
  def status(_buffer), do: not_loaded()

  @spec size(atom()) :: non_neg_integer() | :not_running
  def size(_buffer), do: not_loaded()

  @doc "How many entries of a partition wait, or are in flight without an outcome. Its time grows with the latter."
  @spec held(atom(), partition()) :: non_neg_integer() | :not_running
  def held(_buffer, _partition), do: not_loaded()

  @spec put(atom(), route(), term(), term()) :: :ok | :full | :not_running
  def put(_buffer, _to, _key, _value), do: not_loaded()

  @spec put_new(atom(), route(), term(), term()) :: :ok | :exists | :full | :not_running
  def put_new(_buffer, _to, _key, _value), do: not_loaded()

  @spec put_newer(atom(), route(), term(), term(), integer()) :: :ok | :stale | :full | :not_running
  def put_newer(_buffer, _to, _key, _value, _version), do: not_loaded()

  @spec get(atom(), route(), term()) :: {:ok, term()} | :error | :not_running
  def get(_buffer, _to, _key), do: not_loaded()

  @spec delete(atom(), route(), term()) :: :ok | :not_running
  def delete(_buffer, _to, _key), do: not_loaded()

  @doc """
  What a partition holds and has counted: how many entries wait, are in flight, and have failed and wait for another attempt,
  and the bytes of all; the age of the oldest in milliseconds; written, coalesced, stale and deleted; superseded, processed,
  failed and given up; whether it refuses writes.
  """
  @spec info(atom(), partition()) ::
          {{count, count, count, bytes :: count}, count | nil, {count, count, count, count},
           {count, count, count, count}, boolean()}
          | :not_running
        when count: non_neg_integer()
  def info(_buffer, _partition), do: not_loaded()

  @doc "Counts entries that a buffer without outcomes has lost."
  @spec failed(atom(), partition(), non_neg_integer()) :: :ok | :not_running
  def failed(_buffer, _partition, _count), do: not_loaded()

  @doc """
  Checks the elements of a list until the time is up. The caller checks the rest by another call.
  """
  @spec check(PartitionedBuffer.Call.shape(), list()) :: :ok | {:more, list()} | invalid()
  def check(_shape, _list), do: not_loaded()

  @doc """
  Puts entries until the time is up. The caller puts the rest by another call. If a partition refuses a write, the rest is
  the entries that are not written.

  A list that the caller has not `checked` is checked here, and nothing is written if it is invalid or `:long`, or if the buffer
  is `:bounded`. Room that is reserved for all entries of a list says that it is checked. A list that the caller says it has
  checked, but that is invalid, raises badarg; the entries before may be written.
  """
  @spec put_all(atom(), route(), [{term(), term()}], checked :: boolean() | reservation()) :: written()
  def put_all(_buffer, _to, _entries, _checked), do: not_loaded()

  @doc "As `put_all/4`, with versions."
  @spec put_all_newer(atom(), route(), [{term(), term(), integer()}], checked :: boolean() | reservation()) ::
          written()
  def put_all_newer(_buffer, _to, _entries, _checked), do: not_loaded()

  @doc "Adds to the sum of a key. An amount that is not an integer of 64 bits is invalid."
  @spec add(atom(), route(), term(), integer()) :: :ok | :invalid | :full | :not_running
  def add(_buffer, _to, _key, _amount), do: not_loaded()

  @doc "As `put_all/4`, for the keys and amounts of a counter."
  @spec add_all(atom(), route(), [{term(), integer()}], checked :: boolean() | reservation()) :: written()
  def add_all(_buffer, _to, _entries, _checked), do: not_loaded()

  @doc "The sum of a key: of what waits, and with outcomes also of what is in flight."
  @spec sum(atom(), route(), term()) :: {:ok, integer()} | :error | :not_running
  def sum(_buffer, _to, _key), do: not_loaded()

  @doc "As `delete/3`, for a counter."
  @spec delete_sum(atom(), route(), term()) :: :ok | :not_running
  def delete_sum(_buffer, _to, _key), do: not_loaded()

  @spec push(atom(), route(), term()) :: :ok | :full | :not_running
  def push(_buffer, _to, _item), do: not_loaded()

  @doc "As `put_all/4`, for the items of a queue. Only an improper list is invalid."
  @spec push_all(atom(), route(), [term()], checked :: boolean() | reservation()) :: written()
  def push_all(_buffer, _to, _items, _checked), do: not_loaded()

  @doc """
  Gives the oldest flush that has entries without an outcome (`:rest`), else a new flush of the entries that wait (`:fresh`).
  """
  @spec flush(atom(), partition()) :: {:rest | :fresh, flush()} | :empty | :not_running
  def flush(_buffer, _partition), do: not_loaded()

  @doc """
  The oldest flush of a partition, which a task may be processing. All of its entries may have an outcome.
  """
  @spec in_flight(atom(), partition()) :: flush() | :empty | :not_running
  def in_flight(_buffer, _partition), do: not_loaded()

  @doc """
  How many batches of a flush were claimed or leased, how many entries the last one had, how many positions have no outcome,
  and when the last one was claimed, leased or buried, in nanoseconds of `System.monotonic_time/1`; nil before the first.
  """
  @spec seen(flush()) :: {non_neg_integer(), non_neg_integer(), non_neg_integer(), integer() | nil}
  def seen(_flush), do: not_loaded()

  @doc """
  Reads entries for a batch of at most `size`, until it is complete or the time is up. Gives them, the length of the batch,
  and whether it is complete. `length` is 0 for a new batch, else the length that the last call gave. A batch that another
  process has begun to read is taken back. If another process has the batch, there are no entries. `resumed?` leaves out
  entries for whose keys newer ones wait.
  """
  @spec read(flush(), non_neg_integer(), pos_integer(), resumed? :: boolean()) ::
          {[entry()], non_neg_integer(), complete? :: boolean()}
  def read(_flush, _length, _size, _resumed), do: not_loaded()

  @doc """
  Gives away the batch that this process has read: its entries are never flushed again. Gives false and changes nothing if
  another process has begun a batch since.
  """
  @spec claim(flush()) :: boolean()
  def claim(_flush), do: not_loaded()

  @doc """
  Keeps the batch that this process has read, until `succeed/1` or `give_back/4`. Gives false as `claim/1` does.
  """
  @spec lease(flush()) :: boolean()
  def lease(_flush), do: not_loaded()

  @doc "Ends a batch that is leased or given up: nothing of it is in flight any more."
  @spec succeed(flush()) :: :ok
  def succeed(_flush), do: not_loaded()

  @doc """
  Ends a leased batch of which entries have failed: those with these numbers, from 0 on and in ascending order, or all. They
  are retried, unless they have failed `max_attempts` times, with this one if it is `counted?`. What has failed so often is
  the batch from then on, until `succeed/1`. Gives how many are retried, how many are superseded or deleted, and how many
  are given up.
  """
  @spec give_back(flush(), [non_neg_integer()] | :all, counted? :: boolean(), non_neg_integer() | :infinity) ::
          {non_neg_integer(), non_neg_integer(), non_neg_integer()}
  def give_back(_flush, _failed, _counted, _max_attempts), do: not_loaded()

  @doc """
  As `give_back/4`, on a dirty scheduler, for batches of more than a thousand entries. A process that is killed meanwhile may be
  dead before this has ended, so `give_back/4` is better for all others.
  """
  @spec give_back_many(flush(), [non_neg_integer()] | :all, boolean(), non_neg_integer() | :infinity) ::
          {non_neg_integer(), non_neg_integer(), non_neg_integer()}
  def give_back_many(_flush, _failed, _counted, _max_attempts), do: not_loaded()

  @doc """
  What a dead process has left, which is the caller's from now on: a batch of so many entries that is leased, given up, or with
  `:dead_letter`; or nil.
  """
  @spec inherit(flush()) :: {:leased | :given_up | :buried, pos_integer()} | nil
  def inherit(_flush), do: not_loaded()

  @doc "The entries of the present batch."
  @spec batch(flush()) :: [entry()]
  def batch(_flush), do: not_loaded()

  @doc "How often the entries of the present batch have failed, at most."
  @spec attempts(flush()) :: non_neg_integer()
  def attempts(_flush), do: not_loaded()

  @doc "Notes that `:dead_letter` is about to be called with the batch, which is given up."
  @spec bury(flush()) :: :ok
  def bury(_flush), do: not_loaded()

  @doc "How many bytes and environments the library has allocated. Environments hold the copies of terms."
  @spec memory() :: {non_neg_integer(), non_neg_integer()}
  def memory, do: not_loaded()

  @doc "Waits, on a dirty scheduler, until all unused memory is freed."
  @spec await_reclaimed() :: :ok
  def await_reclaimed, do: not_loaded()

  @doc """
  For each NIF its name, the nanoseconds of the longest call and the number of calls over a millisecond: first of calls without
  page faults in CPU time of the thread, then of calls with page faults, then of all calls in wall-clock time. The list is
  empty unless the library was built with the feature `timing`, which is for benchmarks.
  """
  @spec longest_calls() :: [{String.t(), longest, longest, longest}]
        when longest: {non_neg_integer(), non_neg_integer()}
  def longest_calls, do: not_loaded()

  @doc "Says that there are buffers: from now on no other library can replace this one."
  @spec hold() :: :ok
  def hold, do: :persistent_term.put(@are_buffers, true)

  @doc false
  def load do
    library = Application.app_dir(:partitioned_buffer, "priv/native/partitioned_buffer")
    info = {@version, :persistent_term.get(@are_buffers, false)}

    # A module that Mix has compiled again is left as old code. The soft purge kills no process: if one still runs the old
    # code, `load/0` fails, and the next call tries again.
    if :erlang.check_old_code(__MODULE__), do: :code.soft_purge(__MODULE__)

    # In a release this may be loaded before the other modules of the package, so it calls none of them.
    with {:error, {reason, text}} <- :erlang.load_nif(String.to_charlist(library), info) do
      failure = failure(reason, text, library)
      :persistent_term.put(@failure, failure)
      {:error, {reason, failure}}
    end
  end

  # The library itself has refused.
  defp failure(:load, _text, library) do
    "the native library #{library} does not have version #{@version}, or another library holds the buffers of this VM: " <>
      "build it again, or restart the VM"
  end

  defp failure(_reason, text, _library) do
    "the native library of PartitionedBuffer cannot be loaded: #{text}. It has to be built for this system " <>
      "(#{:erlang.system_info(:system_architecture)}), with the same libc or an older one: run " <>
      "`mix deps.compile partitioned_buffer --force` on such a system, or set PARTITIONED_BUFFER_NIF_PATH to a library that " <>
      "was built there when you compile"
  end

  defp not_loaded, do: :erlang.nif_error(:nif_not_loaded)
end
