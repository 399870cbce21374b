defmodule PartitionedBuffer.Definition do
  @moduledoc false
  # Buffers that are modules: `use PartitionedBuffer.Map` and `use PartitionedBuffer.Queue`.
  #
  # A module has no function whose call could be meant for another arity, since its functions lack the buffer of those that
  # they stand for: there is `get(key)` and `get(key, default, opts)`, but no `get/2`, of which nobody could tell whether
  # the second is the default or the options; and neither `stop/1`. Options must be lists.

  @own [:otp_app]

  @doc """
  What every buffer module has, of this kind: the functions that start, stop and watch it.
  """
  @spec functions(module(), Macro.t()) :: Macro.t()
  def functions(kind, use_options) do
    quote location: :keep do
      @doc "The child specification of this buffer. See `#{inspect(unquote(kind))}.child_spec/1`."
      @spec child_spec(keyword()) :: Supervisor.child_spec()
      def child_spec(opts),
        do: %{id: __MODULE__, start: {__MODULE__, :start_link, [opts]}, type: :supervisor}

      @doc "Starts this buffer. See `#{inspect(unquote(kind))}.start_link/1`."
      @spec start_link(keyword()) :: Supervisor.on_start()
      def start_link(opts \\ []) do
        __MODULE__
        |> PartitionedBuffer.Definition.start_options(unquote(use_options), opts)
        |> unquote(kind).start_link()
      end

      @doc "Stops this buffer when all that it holds has been processed."
      @spec stop() :: :ok
      def stop, do: stop(:normal, :infinity)

      @doc "The same with the reason, and the milliseconds it may take. See `PartitionedBuffer.stop/3`."
      @spec stop(any(), timeout()) :: :ok
      def stop(reason, timeout), do: PartitionedBuffer.stop(__MODULE__, reason, timeout)

      @doc "How much waits for the next flush. See `PartitionedBuffer.buffer_size/1`."
      @spec size() :: non_neg_integer()
      def size, do: PartitionedBuffer.buffer_size(__MODULE__)

      @doc "Changes options of this buffer. See `PartitionedBuffer.update_options/2`."
      @spec update_options(keyword()) :: :ok
      def update_options(opts), do: PartitionedBuffer.update_options(__MODULE__, opts)

      defoverridable child_spec: 1, start_link: 0, start_link: 1
    end
  end

  @doc """
  The options to start a buffer module with: of the `use` line, over them those of the application environment, over
  them those given at the start.
  """
  @spec start_options(module(), keyword(), keyword()) :: keyword()
  def start_options(module, use_options, opts) do
    layers = [
      {"the `use` line", use_options},
      {"the application environment", environment(module, use_options)},
      {"the options at the start", opts}
    ]

    for {where, layer} <- layers, reduce: [] do
      options -> Keyword.merge(options, check!(layer, where, module))
    end
    |> Keyword.drop(@own)
    |> Keyword.put(:name, module)
  end

  defp environment(module, use_options) do
    case is_list(use_options) && use_options[:otp_app] do
      app when app in [nil, false] -> []
      app -> Application.get_env(app, module, [])
    end
  end

  defp check!(layer, where, module) do
    cond do
      not Keyword.keyword?(layer) ->
        raise ArgumentError,
              "#{where} of buffer #{inspect(module)} must be a keyword list, got: #{inspect(layer)}"

      Keyword.get(layer, :name, module) != module ->
        raise ArgumentError,
              "buffer #{inspect(module)} is named after its module, but #{where} has name: #{inspect(layer[:name])}"

      true ->
        layer
    end
  end
end
