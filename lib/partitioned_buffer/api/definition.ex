defmodule PartitionedBuffer.API.Definition do
  @moduledoc false
  # Defines buffers as modules, for `use PartitionedBuffer.Map` and the like.
  #
  # The functions of a buffer module lack the argument `buffer`, so `get(a, b)` could mean a default
  # or options. Ambiguous arities like `get/2` are therefore left out, and options must
  # be lists.

  alias PartitionedBuffer.Options

  @doc """
  The functions that buffer modules of all kinds have: they start, stop, measure and update the
  buffer.
  """
  @spec functions(module(), Macro.t()) :: Macro.t()
  def functions(kind, use_options) do
    quote location: :keep do
      Module.put_attribute(__MODULE__, :partitioned_buffer_kind, unquote(kind))
      @before_compile PartitionedBuffer.API.Definition

      @doc """
      Returns the child specification, for a supervision tree: `children = [#{inspect(__MODULE__)}]`.

      Takes the options of `start_link/1`. The id is this module.
      """
      @doc group: "Start and stop"
      @spec child_spec(keyword()) :: Supervisor.child_spec()
      def child_spec(opts),
        do: %{id: __MODULE__, start: {__MODULE__, :start_link, [opts]}, type: :supervisor}

      @doc """
      Starts this buffer, linked to the calling process.

      The options replace those of the application environment, and these replace those of the `use`
      line. `PartitionedBuffer` lists them. Returns the pid of the supervisor of the buffer. See
      `#{inspect(unquote(kind))}.start_link/1`.
      """
      @doc group: "Start and stop"
      @spec start_link(keyword()) :: Supervisor.on_start()
      def start_link(opts \\ []) do
        __MODULE__
        |> PartitionedBuffer.API.Definition.start_options(unquote(use_options), opts)
        |> unquote(kind).start_link()
      end

      @doc """
      Processes the entries of this buffer and stops it.

      With `leftovers: :keep` the entries that the stop could not process wait for the next start. See
      `PartitionedBuffer.stop/4`.
      """
      @doc group: "Start and stop"
      @spec stop([PartitionedBuffer.stop_option()]) :: :ok
      def stop(opts \\ []) when is_list(opts),
        do: PartitionedBuffer.stop(__MODULE__, :normal, :infinity, opts)

      @doc """
      Processes the entries of this buffer and stops it, with a reason.

      Exits if the stop takes longer than `timeout` milliseconds; the stop then goes on. See
      `PartitionedBuffer.stop/4`.
      """
      @doc group: "Start and stop"
      @spec stop(any(), timeout()) :: :ok
      def stop(reason, timeout), do: PartitionedBuffer.stop(__MODULE__, reason, timeout)

      @doc """
      Returns how many entries wait for the next flush. See `PartitionedBuffer.buffer_size/1`.
      """
      @doc group: "Read"
      @spec size() :: non_neg_integer()
      def size, do: PartitionedBuffer.buffer_size(__MODULE__)

      @doc """
      Gives all entries to the processor now, and waits for the result.

      Returns `{:error, {:failed, count}}` if the processor failed, and `{:error, :paused}` during a
      `pause/0`. See `PartitionedBuffer.flush/2` for the options `:timeout` and `:async`.
      """
      @doc group: "Write"
      @spec flush(timeout: timeout(), async: boolean()) ::
              :ok | {:error, :timeout | :paused | {:failed, non_neg_integer()} | {:away, [node()]}}
      def flush(opts \\ []), do: PartitionedBuffer.flush(__MODULE__, opts)

      @doc """
      Waits until the journal has every write that returned before the call.

      With `level: :synced`, the default, they survive the end of the machine, with `level: :written`
      that of the VM. See `PartitionedBuffer.sync/2`.
      """
      @doc group: "Write"
      @spec sync(level: :written | :synced, timeout: timeout()) ::
              :ok | {:error, :timeout | File.posix()}
      def sync(opts \\ []), do: PartitionedBuffer.sync(__MODULE__, opts)

      @doc """
      Lets no call of the processor begin until `resume/0`. See `PartitionedBuffer.pause/1`.
      """
      @doc group: "Start and stop"
      @spec pause() :: :ok
      def pause, do: PartitionedBuffer.pause(__MODULE__)

      @doc "Lets calls of the processor begin again. See `PartitionedBuffer.resume/1`."
      @doc group: "Start and stop"
      @spec resume() :: :ok
      def resume, do: PartitionedBuffer.resume(__MODULE__)

      @doc """
      Returns the numbers of this buffer: its entries, its delay and its totals. See `PartitionedBuffer.info/1`.
      """
      @doc group: "Observe"
      @spec info() :: PartitionedBuffer.info()
      def info, do: PartitionedBuffer.info(__MODULE__)

      @doc "Shows a page about this buffer in the terminal. See `PartitionedBuffer.watch/2`."
      @doc group: "Observe"
      @spec watch() :: :ok
      def watch, do: PartitionedBuffer.watch(__MODULE__)

      @doc """
      Changes options of this buffer until its supervisor ends. Omitted options keep their values.

      See `PartitionedBuffer.update_options/2` for the options that can change.
      """
      @doc group: "Start and stop"
      @spec update_options(keyword()) :: :ok
      def update_options(opts), do: PartitionedBuffer.update_options(__MODULE__, opts)

      defoverridable child_spec: 1, start_link: 0, start_link: 1
    end
  end

  # Documents a buffer module, unless its author did, or wrote `@moduledoc false`.
  @doc false
  defmacro __before_compile__(env) do
    kind = Module.delete_attribute(env.module, :partitioned_buffer_kind)

    if Module.get_attribute(env.module, :moduledoc) == nil do
      doc = """
      A `#{inspect(kind)}` with the name of this module.

      The functions are those of `#{inspect(kind)}` without the argument `buffer`.
      """

      quote do: @moduledoc(unquote(doc))
    end
  end

  @doc """
  The start options of a buffer module. Options given at the start replace options of the
  application environment, which replace options of the `use` line.
  """
  @spec start_options(module(), keyword(), keyword()) :: keyword()
  def start_options(module, use_options, opts) do
    {known, child_spec} = Options.start_keys()
    known = known -- [:module]

    layers = [
      {"on the `use` line", use_options, [:otp_app | known]},
      {"in the application environment", environment(module, use_options), known},
      {"at the start", opts, known ++ child_spec}
    ]

    for {where, layer, known} <- layers, reduce: [] do
      options -> Keyword.merge(options, check!(layer, where, known, module))
    end
    |> Keyword.delete(:otp_app)
    |> Keyword.put(:name, module)
    |> delivery_chosen!(module)
  end

  # A buffer of version 0.4 is at most once. A module is new code, which should not be so by chance.
  defp delivery_chosen!(options, module) do
    unless Keyword.has_key?(options, :max_attempts) or options[:preset] != nil do
      raise ArgumentError,
            "buffer #{inspect(module)} needs the option :max_attempts: a number of attempts, or :infinity, for at least " <>
              "once; or nil for at most once, where a batch is lost if its processor fails"
    end

    options
  end

  defp environment(module, use_options) do
    case is_list(use_options) && use_options[:otp_app] do
      app when app in [nil, false] -> []
      app -> Application.get_env(app, module, [])
    end
  end

  defp check!(layer, where, known, module) do
    cond do
      not Keyword.keyword?(layer) ->
        raise ArgumentError,
              "the options of buffer #{inspect(module)} #{where} must be a keyword list, got: #{inspect(layer)}"

      Keyword.get(layer, :name, module) != module ->
        raise ArgumentError,
              "buffer #{inspect(module)} has the name of its module, but its options #{where} " <>
                "have name: #{inspect(layer[:name])}"

      unknown = Enum.find(Keyword.keys(layer), &(&1 not in known)) ->
        raise ArgumentError,
              "the options of buffer #{inspect(module)} #{where} have the unknown option #{inspect(unknown)}" <>
                Options.instead(unknown, known)

      true ->
        layer
    end
  end
end
