defmodule PartitionedBuffer.Native do
  @moduledoc false
  # The NIFs. A buffer is named by its atom; `to` is the number of a partition with that of all that it was chosen among,
  # or nil to route by the key itself, and `{:processor, to}` marks the write of a processor. `:not_running` stands for a
  # buffer that was never started, has ended, has no partitions, or another number of them than that of `to`. Arguments
  # of another form raise an ArgumentError (badarg) and change nothing.
  #
  # None takes longer than a millisecond, apart from what copying one key and one value, or one item, takes; of a list up to 32
  # of them, if there was no large term for a while (`pace.rs`). `open`, for starting, and `held`, for stopping, run on dirty
  # schedulers.

  # Loading this module again, in a VM that goes on:
  #
  #   * While the code before it is in use the VM refuses ("upgrade not supported by this NIF library"): `load/0` fails,
  #     and that code stays in use with all its data. So a hot upgrade by a release handler and `:code.load_file/1`
  #     change nothing.
  #   * After `:code.delete/1`, which `mix compile` and `recompile` in IEx do, it is loaded, and finds the buffers and what
  #     they hold: the library was never unloaded, since its buffers keep it in memory. Calls in between raise an
  #     UndefinedFunctionError and write nothing. (OTP before 26.1 has a bug: processes that load a module with an `on_load`
  #     function at the same time may hang, erlang/otp#7466.) Batches that were flushed before are unknown to it; their task fails,
  #     and what they had not claimed comes with the next flush.
  #   * If the file has been replaced meanwhile, the system still gives the library in memory, not the file: new native
  #     code runs after a restart of the VM. Another library (of another path, or version) is refused where there are
  #     buffers: `load/0` fails, every call raises, and the data is there for the library that fits.

  @on_load :load

  # Whether a buffer has been opened in this VM.
  @are_buffers {__MODULE__, :are_buffers}

  @version Mix.Project.config()[:version]

  @typep partition() :: non_neg_integer()
  @typep to() :: PartitionedBuffer.Routing.route()
  @typep route() :: to() | {:processor, to()}
  @typep position() :: non_neg_integer()
  @typep invalid() :: {:invalid, element :: term()} | {:improper, tail :: term()}
  @typep written() :: :ok | {:more, list()} | {:refused, list()} | :long | invalid() | :not_running
  @typep flush() :: reference()

  @doc """
  Lets a buffer of a kind run until the calling process dies; the reference keeps it in memory. What a buffer of the same
  name and another kind has left stays there for the next of its kind.
  """
  @spec open(atom(), :map | :queue, non_neg_integer()) :: reference()
  def open(_buffer, _kind, _partitions), do: not_loaded()

  @doc "Lets a partition that was closed take writes again."
  @spec reopen(atom(), partition()) :: :ok | :not_running
  def reopen(_buffer, _partition), do: not_loaded()

  @doc """
  Refuses writes of a partition from now on, as those of a buffer that is not running, but for those that are marked as a
  processor's. What is closed stays closed.
  """
  @spec drain(atom(), partition()) :: :ok | :closed | :not_running
  def drain(_buffer, _partition), do: not_loaded()

  @doc "Refuses reads and writes of a partition from now on: they are answered `:not_running`."
  @spec close(atom(), partition()) :: :ok | :not_running
  def close(_buffer, _partition), do: not_loaded()

  @spec partition_count(atom()) :: pos_integer() | :not_running
  def partition_count(_buffer), do: not_loaded()

  @doc "What a buffer runs as, and its number of partitions, 0 as well, while the process that opened it lives."
  @spec status(atom()) :: {:map | :queue, partitions :: non_neg_integer()} | :not_running
  def status(_buffer), do: not_loaded()

  @spec size(atom()) :: non_neg_integer() | :not_running
  def size(_buffer), do: not_loaded()

  @doc "How many entries a partition holds, those flushed and not claimed as well. It looks at each of these."
  @spec held(atom(), partition()) :: non_neg_integer() | :not_running
  def held(_buffer, _partition), do: not_loaded()

  @spec put(atom(), route(), term(), term()) :: :ok | :not_running
  def put(_buffer, _to, _key, _value), do: not_loaded()

  @spec put_newer(atom(), route(), term(), term(), integer()) :: :ok | :not_running
  def put_newer(_buffer, _to, _key, _value, _version), do: not_loaded()

  @spec get(atom(), route(), term()) :: {:ok, term()} | :error | :not_running
  def get(_buffer, _to, _key), do: not_loaded()

  @spec delete(atom(), route(), term()) :: :ok | :not_running
  def delete(_buffer, _to, _key), do: not_loaded()

  @doc """
  Checks the elements of a list until the time is up. The caller checks the rest by another call.
  """
  @spec check(:pair | :versioned | :item, list()) :: :ok | {:more, list()} | invalid()
  def check(_shape, _list), do: not_loaded()

  @doc """
  Puts entries until the time is up. The caller puts the rest by another call. If a partition refuses a write, the rest is
  the entries that are not written.

  A list that the caller has not `checked` is checked here, and nothing is written if it is invalid or `:long`. A list that
  the caller says it has checked, but that is invalid, raises badarg; the entries before may be written.
  """
  @spec put_all(atom(), route(), [{term(), term()}], checked :: boolean()) :: written()
  def put_all(_buffer, _to, _entries, _checked), do: not_loaded()

  @doc "As `put_all/4`, with versions."
  @spec put_all_newer(atom(), route(), [{term(), term(), integer()}], checked :: boolean()) :: written()
  def put_all_newer(_buffer, _to, _entries, _checked), do: not_loaded()

  @spec push(atom(), route(), term()) :: :ok | :not_running
  def push(_buffer, _to, _item), do: not_loaded()

  @doc "As `put_all/4`, for the items of a queue. Only an improper list is invalid."
  @spec push_all(atom(), route(), [term()], checked :: boolean()) :: written()
  def push_all(_buffer, _to, _items, _checked), do: not_loaded()

  @doc """
  Flushes what nobody has claimed of the last flush (`:rest`), else all that came in since (`:fresh`).
  """
  @spec flush(atom(), partition()) :: {:rest | :fresh, flush()} | :empty | :not_running
  def flush(_buffer, _partition), do: not_loaded()

  @doc """
  What a partition has flushed last, while it is worked on, and for a while longer: all of it may have been claimed.
  """
  @spec in_flight(atom(), partition()) :: flush() | :empty | :not_running
  def in_flight(_buffer, _partition), do: not_loaded()

  @doc "Up to which position entries have been claimed."
  @spec position(flush()) :: position()
  def position(_flush), do: not_loaded()

  @doc """
  Up to which position entries have been claimed, that of the last one's end, and when the last batch was claimed, in nanoseconds
  of `System.monotonic_time/1`; nil before the first.
  """
  @spec progress(flush()) :: {position(), position(), integer() | nil}
  def progress(_flush), do: not_loaded()

  @doc """
  Entries of a map, or items of a queue, from `position` on, at most `count`, and the position behind them. Fewer than that, even none, when its time is
  up; at the end the position is the one it was given.
  """
  @spec read(flush(), position(), pos_integer()) ::
          {[{term(), term(), integer(), non_neg_integer()} | term()], position()}
  def read(_flush, _position, _count), do: not_loaded()

  @doc """
  Takes the entries between two positions as handed to the processor: they are never flushed again. False, and without
  effect, if another process has claimed what is at `from`.
  """
  @spec claim(flush(), from :: position(), to :: position()) :: boolean()
  def claim(_flush, _from, _to), do: not_loaded()

  @doc "Bytes that the library has allocated, and environments, which hold the copies of the terms."
  @spec memory() :: {non_neg_integer(), non_neg_integer()}
  def memory, do: not_loaded()

  @doc "Waits, on a dirty scheduler, until all memory that has been given up is freed."
  @spec await_reclaimed() :: :ok
  def await_reclaimed, do: not_loaded()

  @doc """
  Of each NIF its name, then nanoseconds of the longest call and number of calls over a millisecond: first in processor
  time of the thread, then on the clock. Empty but in a library built with the feature `timing`, which is for benchmarks.
  """
  @spec longest_calls() :: [{String.t(), longest, longest}]
        when longest: {non_neg_integer(), non_neg_integer()}
  def longest_calls, do: not_loaded()

  @doc "Tells that there are buffers: from now on no other library takes the place of this one."
  @spec hold() :: :ok
  def hold, do: :persistent_term.put(@are_buffers, true)

  @doc false
  def load do
    library = Application.app_dir(:partitioned_buffer, "priv/native/partitioned_buffer")
    info = {@version, :persistent_term.get(@are_buffers, false)}

    # Mix deletes a module that it compiles again, which leaves it as old code. A process that is in it is not killed: then
    # this fails, and the next call tries again.
    if :erlang.check_old_code(__MODULE__), do: :code.soft_purge(__MODULE__)

    with {:error, {:load, _text}} <- :erlang.load_nif(String.to_charlist(library), info) do
      {:error,
       {:load,
        "#{library} is not of version #{@version}, or is not the library that holds the buffers of this VM: " <>
          "build it again, or restart the VM"}}
    end
  end

  defp not_loaded, do: :erlang.nif_error(:nif_not_loaded)
end
