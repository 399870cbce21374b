defmodule PartitionedBuffer.Counter do
  @moduledoc """
  A buffer of sums. Amounts for the same key add up, and a processor function receives the sums in
  batches.

      iex> alias PartitionedBuffer.Counter
      iex> me = self()
      iex> {:ok, _supervisor} =
      ...>   Counter.start_link(
      ...>     name: :page_views,
      ...>     processor: fn batch -> send(me, {:batch, batch}) end
      ...>   )
      iex> Counter.add(:page_views, "/pricing")
      iex> Counter.add(:page_views, "/pricing", 2)
      iex> Counter.get(:page_views, "/pricing")
      3
      iex> Counter.stop(:page_views)
      :ok
      iex> receive do {:batch, batch} -> batch end
      [{"/pricing", 3, 2}]

  Any process can add, at any rate: `add/4` is one call into native code in the calling process,
  which finds the sum of the key and adds to it. It sends no message, waits for no process, and
  copies nothing but a new key. Use it for page views, metering, likes, stock movements, and for
  means, since each sum has its count. A process that reads a value and writes it back one higher
  loses the amounts that others add in between; a counter loses nothing.

  `PartitionedBuffer` documents the options, [Guarantees](guarantees.md) the promises, and
  `PartitionedBuffer.Telemetry` the events. The guide [Counting](counting.html) has recipes.

  ## Semantics

    * Keys are any terms, and are compared with `===`: `1` and `1.0` are two keys.
    * An amount is an integer from -2^63 to 2^63 - 1. Sums and counts are exact, however large they
      become: they do not wrap, overflow or saturate.
    * An `add/4` of 0 makes an entry, if the key has none. A sum that comes to 0 is still an entry,
      which the processor gets.
    * Each flush begins new sums: the processor gets the amounts added since the flush before.
    * `get/4`, `fetch/3`, `delete/3` and `size/1` see the sums waiting for the next flush, but no
      sums in flight. With `:max_attempts` all but `size/1` also see sums in flight: `get/4` returns
      the total of both.
    * With `:cluster` the nodes share the buffer, and some functions differ: see
      `PartitionedBuffer.Cluster`.
    * A call that raises because of its arguments adds nothing.
    * Every operation except `stop/4` raises an `ArgumentError` if the buffer is not running, a
      `RuntimeError` if it has 0 partitions.

  ## Processor

  The processor is called with a list of `{key, sum, count}` tuples. `count` is the number of
  additions, each of which counts as its option `:count` says, by default once. Each entry of a
  flush is in one batch, and in another one only after a failure with `:max_attempts`. The return
  value of the processor is ignored, unless the buffer has `:max_attempts`.

      def process(batch) do
        # Sorted, so that statements of several nodes do not deadlock.
        rows = for {path, views, _count} <- Enum.sort(batch), do: %{path: path, views: views}

        MyApp.Repo.insert_all("page_views", rows,
          conflict_target: :path,
          on_conflict: from(t in "page_views", update: [inc: [views: fragment("EXCLUDED.views")]])
        )
      end

  With `processing_batch_size: :table` the [table](delivery.md#tables) is a `:set`
  of records `{:entry, key, sum, 0, count}`.

  ## Delivery

  Without `:max_attempts`, the batch of a failed call is lost: the sink counts too little. With
  `:max_attempts` a failed batch of several entries is tried again at once, in smaller ones. When a
  single entry fails, its sum and count are added to the waiting entry of its key, if any, and the
  entry keeps the higher number of attempts.

  A failed processor may have stored a sum all the same: it was killed, or its connection broke,
  after the database committed. The retry then counts twice. Both ways, only a sink that recognizes
  a batch counts exactly; see [Counting](counting.html#exactly-once).
  """

  alias PartitionedBuffer.API.{Call, Definition}
  alias PartitionedBuffer.{Native, Options, Routing}

  @typedoc "The name of a buffer."
  @type buffer() :: PartitionedBuffer.buffer()

  @typedoc "An amount to add: an integer of 64 bits, from -2^63 to 2^63 - 1."
  @type amount() :: integer()

  @typedoc "The argument of the processor."
  @type batch() :: [{key :: any(), sum :: integer(), count :: non_neg_integer()}]

  @doc """
  Starts a buffer, linked to the calling process.

  Takes the [start options](`m:PartitionedBuffer#module-start-options`). Returns the pid of the
  buffer's supervisor, or `{:error, {:already_started, pid}}` if the name is taken. Raises if an
  option is missing or invalid.

      iex> {:ok, _pid} =
      ...>   PartitionedBuffer.Counter.start_link(
      ...>     name: :start_link_counter,
      ...>     processor: &Function.identity/1
      ...>   )
      iex> PartitionedBuffer.Counter.add(:start_link_counter, :key)
      :ok
  """
  @doc group: "Start and stop"
  @spec start_link(keyword()) :: Supervisor.on_start()
  def start_link(opts), do: PartitionedBuffer.API.Start.start_link(__MODULE__, opts)

  @doc false
  @spec __kind__() :: :counter
  def __kind__, do: :counter

  @doc """
  Returns the child specification of a buffer, for a supervision tree.

  Takes the same options as `start_link/1`, which checks them when the buffer starts. The id is the
  name of the buffer, or this module if the options have no name.

      iex> PartitionedBuffer.Counter.child_spec(name: :views, processor: &Function.identity/1).id
      :views
  """
  @doc group: "Start and stop"
  @spec child_spec(keyword()) :: Supervisor.child_spec()
  def child_spec(opts), do: PartitionedBuffer.Buffer.Supervisor.child_spec(__MODULE__, opts)

  @doc """
  Processes the sums of a buffer and stops it. See `PartitionedBuffer.stop/4`.

      iex> {:ok, _pid} =
      ...>   PartitionedBuffer.Counter.start_link(
      ...>     name: :stop_counter,
      ...>     processor: &Function.identity/1
      ...>   )
      iex> PartitionedBuffer.Counter.stop(:stop_counter)
      :ok
  """
  @doc group: "Start and stop"
  @spec stop(buffer() | pid(), any(), timeout(), [PartitionedBuffer.stop_option()]) :: :ok
  def stop(buffer, reason \\ :normal, timeout \\ :infinity, opts \\ []),
    do: PartitionedBuffer.stop(buffer, reason, timeout, opts)

  @doc """
  Defines a buffer as a module. The buffer has the name of the module.

      defmodule MyApp.PageViews do
        use PartitionedBuffer.Counter, otp_app: :my_app, preset: :database, processor: &MyApp.Pages.add_views/1
      end

      children = [MyApp.PageViews]
      MyApp.PageViews.add("/pricing")

  The options come from the same places as those of `PartitionedBuffer.Map.__using__/1`. The module
  has these functions:

    * `child_spec/1`, `start_link/0` and `start_link/1`, which can be overridden,
    * `stop/0` to `stop/2`, `size/0`, `flush/0` and `flush/1`, `sync/0` and `sync/1`, `pause/0`,
      `resume/0`, `info/0`, `watch/0`, `update_options/1`,
    * the functions of `PartitionedBuffer.Counter` without the argument `buffer`: `add/1`, `add/2`
      and `add/3`, `add_all/1` and `add_all/2`, `get/1` and `get/3`, `fetch/1` and `fetch/2`,
      `delete/1` and `delete/2`. `get/2` does not exist, because its second argument could mean the
      default or the options.

      iex> defmodule DocViews do
      ...>   use PartitionedBuffer.Counter, processor: &Function.identity/1, max_attempts: 3
      ...> end
      iex> {:ok, _pid} = DocViews.start_link(partitions: 2)
      iex> DocViews.add("/", 2)
      iex> DocViews.add("/")
      iex> DocViews.get("/")
      3
      iex> DocViews.stop()
      :ok
  """
  @doc group: "Start and stop"
  defmacro __using__(opts) do
    quote location: :keep do
      unquote(Definition.functions(__MODULE__, opts))

      @doc """
      Adds an amount, by default 1, to the sum of a key. See `PartitionedBuffer.Counter.add/4`.
      """
      @doc group: "Write"
      @spec add(any(), PartitionedBuffer.Counter.amount(), keyword()) :: :ok | {:error, :full | :journal}
      def add(key, amount \\ 1, opts \\ []) when is_list(opts),
        do: PartitionedBuffer.Counter.add(__MODULE__, key, amount, opts)

      @doc """
      Adds each amount of a map, or of an enumerable of `{key, amount}` tuples.

      See `PartitionedBuffer.Counter.add_all/3`.
      """
      @doc group: "Write"
      @spec add_all(Enumerable.t(), keyword()) :: :ok | {:error, :full | :journal}
      def add_all(entries, opts \\ []) when is_list(opts),
        do: PartitionedBuffer.Counter.add_all(__MODULE__, entries, opts)

      @doc "Returns the sum of a key, or 0. See `PartitionedBuffer.Counter.get/4`."
      @doc group: "Read"
      @spec get(any()) :: integer()
      def get(key), do: PartitionedBuffer.Counter.get(__MODULE__, key)

      @doc "Returns the sum of a key, or `default`. See `PartitionedBuffer.Counter.get/4`."
      @doc group: "Read"
      @spec get(any(), default, keyword()) :: integer() | default when default: any()
      def get(key, default, opts) when is_list(opts),
        do: PartitionedBuffer.Counter.get(__MODULE__, key, default, opts)

      @doc """
      Returns `{:ok, sum}`, or `:error` if nothing was added to the key.

      See `PartitionedBuffer.Counter.fetch/3`.
      """
      @doc group: "Read"
      @spec fetch(any(), keyword()) :: {:ok, integer()} | :error
      def fetch(key, opts \\ []) when is_list(opts),
        do: PartitionedBuffer.Counter.fetch(__MODULE__, key, opts)

      @doc "Deletes the sum of a key, with its count. See `PartitionedBuffer.Counter.delete/3`."
      @doc group: "Write"
      @spec delete(any(), keyword()) :: :ok
      def delete(key, opts \\ []) when is_list(opts),
        do: PartitionedBuffer.Counter.delete(__MODULE__, key, opts)
    end
  end

  @doc """
  Adds an amount to the sum of a key.

  Raises an `ArgumentError` if the amount is not an integer of 64 bits. In a buffer with `:max_size`
  the call may wait, raise a `PartitionedBuffer.FullError` or return `{:error, :full}`, but never
  for a key with a waiting sum: see
  [Threshold and bound](configuring.md#threshold-and-bound).

  Takes the [runtime options](`m:PartitionedBuffer#module-runtime-options`), and `:count`: how much
  the call adds to the count of the key, an integer from 0 to 2^63 - 1. The default is 1. Use it for
  amounts that are sums already, such as the entries that `:dead_letter` got. The call is one write
  in the totals of `PartitionedBuffer.info/1`. An invalid count raises an `ArgumentError`.

      iex> PartitionedBuffer.Counter.add(:doc_counter, :clicks)
      :ok
      iex> PartitionedBuffer.Counter.add(:doc_counter, :stock, -3)
      :ok
      iex> region = fn {region, _id} -> region end
      iex> PartitionedBuffer.Counter.add(:doc_counter, {:eu, 7}, 1, partition_key: region)
      :ok
      iex> {key, sum, count} = {:clicks, 500, 120}
      iex> PartitionedBuffer.Counter.add(:doc_counter, key, sum, count: count)
      :ok
  """
  @doc group: "Write"
  @spec add(buffer(), any(), amount(), keyword()) :: :ok | {:error, :full | :journal}
  def add(buffer, key, amount \\ 1, opts \\ [])

  def add(buffer, key, amount, []) when is_atom(buffer) do
    with refused when refused != :ok <- Native.add(buffer, nil, key, amount),
         do: refused(refused, buffer, nil, key, amount)
  end

  def add(buffer, key, amount, opts) when is_atom(buffer) do
    {count, opts} = Options.count!(buffer, opts)
    route = Call.route(buffer, key, opts)
    add(buffer, route, key, amount, count)
  end

  defp add(buffer, route, key, amount, :error) do
    with refused when refused != :ok <- Native.add(buffer, route, key, amount),
         do: refused(refused, buffer, route, key, amount)
  end

  defp add(buffer, route, key, amount, {:ok, count}) do
    case Native.add_counted(buffer, route, key, amount, count) do
      :ok ->
        :ok

      :invalid ->
        Call.invalid!({:invalid, {key, amount, count}}, buffer, :counted)

      refused ->
        Call.refused(refused, buffer, :counter, route, [:add_counted, key, amount, count])
    end
  end

  defp refused(:invalid, buffer, _route, key, amount),
    do: Call.invalid!({:invalid, {key, amount}}, buffer, :amount)

  defp refused(refused, buffer, route, key, amount),
    do: Call.refused(refused, buffer, :counter, route, [:add, key, amount])

  @doc """
  Adds each amount of a map, or of a list or another enumerable of `{key, amount}` tuples. The same
  key may occur several times.

  The call reads an enumerable to its end before it adds the first amount. Raises an
  `ArgumentError`, and adds nothing, if the enumerable contains anything else; if the enumerable
  itself raises, nothing is added either. Takes the
  [runtime options](`m:PartitionedBuffer#module-runtime-options`); a function given as
  `:partition_key` is called for all entries before the first is added.

      iex> PartitionedBuffer.Counter.add_all(:doc_counter, %{red: 1, green: 2})
      :ok
      iex> PartitionedBuffer.Counter.add_all(:doc_counter, [red: 1, red: 1])
      :ok
      iex> PartitionedBuffer.Counter.get(:doc_counter, :red)
      3
  """
  @doc group: "Write"
  @spec add_all(buffer(), Enumerable.t(), keyword()) :: :ok | {:error, :full | :journal}
  def add_all(buffer, entries, opts \\ []) when is_atom(buffer),
    do: Call.write_list(buffer, :add_all, Call.to_list!(entries, buffer, :amount), opts)

  @doc """
  Returns the sum of a key that waits for the next flush, or `default` if nothing was added.

  With `:max_attempts` the sum includes the sum in flight, until the processor succeeds with it.
  Takes the [runtime options](`m:PartitionedBuffer#module-runtime-options`). They must choose the
  partition that the key was added in.

      iex> PartitionedBuffer.Counter.add(:doc_counter, :seen, 5)
      iex> PartitionedBuffer.Counter.get(:doc_counter, :seen)
      5
      iex> PartitionedBuffer.Counter.get(:doc_counter, :missing)
      0
      iex> PartitionedBuffer.Counter.get(:doc_counter, :missing, nil)
      nil
  """
  @doc group: "Read"
  @spec get(buffer(), any(), default, keyword()) :: integer() | default when default: any()
  def get(buffer, key, default \\ 0, opts \\ []) when is_atom(buffer) do
    case fetch(buffer, key, opts) do
      {:ok, sum} -> sum
      :error -> default
    end
  end

  @doc """
  Returns `{:ok, sum}`, or `:error` if nothing was added to the key. It sees what `get/4` sees.

      iex> PartitionedBuffer.Counter.add(:doc_counter, :balanced, 2)
      iex> PartitionedBuffer.Counter.add(:doc_counter, :balanced, -2)
      iex> PartitionedBuffer.Counter.fetch(:doc_counter, :balanced)
      {:ok, 0}
      iex> PartitionedBuffer.Counter.fetch(:doc_counter, :missing)
      :error
  """
  @doc group: "Read"
  @spec fetch(buffer(), any(), keyword()) :: {:ok, integer()} | :error
  def fetch(buffer, key, opts \\ []) when is_atom(buffer) do
    case Native.sum(buffer, Call.route(buffer, key, opts), key) do
      :not_running -> Routing.not_running!(buffer, :counter)
      :elsewhere -> fetch(Routing.owning_name(buffer), key)
      {:elsewhere, sum} -> {:ok, sum + get(Routing.owning_name(buffer), key)}
      found -> found
    end
  end

  @doc """
  Deletes the waiting sum of a key with its count, and with `:max_attempts` also its sum in flight.

  If the sum in flight is not in a batch yet, the processor does not get it. If it is in a batch, it
  is not retried. Reads no longer see it either way. Without `:max_attempts` the call does not
  affect sums in flight: the processor still gets them. Raises an `ArgumentError` with `:cluster`, since
  other nodes may have sums of the key.

  Takes the [runtime options](`m:PartitionedBuffer#module-runtime-options`). They must choose the
  partition that the key was added in.

      iex> PartitionedBuffer.Counter.add(:doc_counter, :deleted)
      iex> PartitionedBuffer.Counter.delete(:doc_counter, :deleted)
      :ok
      iex> PartitionedBuffer.Counter.get(:doc_counter, :deleted)
      0
  """
  @doc group: "Write"
  @spec delete(buffer(), any(), keyword()) :: :ok
  def delete(buffer, key, opts \\ []) when is_atom(buffer),
    do: buffer |> Native.delete_sum(Call.route(buffer, key, opts), key) |> Call.deleted!(buffer, :counter)

  @doc """
  Gives all sums to the processor now, and waits until it is done. See `PartitionedBuffer.flush/2`.

      iex> PartitionedBuffer.Counter.flush(:doc_counter)
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

      iex> PartitionedBuffer.Counter.pause(:doc_counter)
      :ok
      iex> PartitionedBuffer.Counter.resume(:doc_counter)
      :ok
  """
  @doc group: "Start and stop"
  @spec pause(buffer()) :: :ok
  def pause(buffer), do: PartitionedBuffer.pause(buffer)

  @doc """
  Lets calls of the processor begin again. See `PartitionedBuffer.resume/1`.

      iex> PartitionedBuffer.Counter.resume(:doc_counter)
      :ok
  """
  @doc group: "Start and stop"
  @spec resume(buffer()) :: :ok
  def resume(buffer), do: PartitionedBuffer.resume(buffer)

  @doc """
  Returns how many sums wait for the next flush, in all partitions.

      iex> PartitionedBuffer.Counter.size(:doc_counter)
      0
  """
  @doc group: "Read"
  @spec size(buffer()) :: non_neg_integer()
  def size(buffer), do: PartitionedBuffer.buffer_size(buffer)

  @doc """
  Returns the numbers of the buffer: its entries, its delay and its totals. See
  `PartitionedBuffer.info/1`.

      iex> PartitionedBuffer.Counter.info(:doc_counter).kind
      :counter
  """
  @doc group: "Observe"
  @spec info(buffer()) :: PartitionedBuffer.info()
  def info(buffer), do: PartitionedBuffer.info(buffer)

  @doc """
  Changes options of a running buffer. See `PartitionedBuffer.update_options/2`.

      iex> PartitionedBuffer.Counter.update_options(:doc_counter, processing_interval_ms: 100)
      :ok
  """
  @doc group: "Start and stop"
  @spec update_options(buffer(), keyword()) :: :ok
  def update_options(buffer, opts), do: PartitionedBuffer.update_options(buffer, opts)
end
