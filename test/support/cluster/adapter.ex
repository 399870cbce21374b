defmodule PartitionedBuffer.Test.Cluster.Adapter do
  @moduledoc """
  The buffer under test, as the harness sees it. All functions run on the node in question.

  The options are those of `t:options/0`, whatever the buffer calls them; an adapter leaves out those
  that its buffer does not have.
  """

  @type kind :: :counter | :map

  @typedoc """
  `name`, `processor` and `dead_letter` are set by the harness. `forward_ms`, `call_ms`,
  `uncertain_ms`, `slots` and `owners` are those of `:cluster`. All others are options of a buffer
  today.
  """
  @type options :: keyword()

  @callback child_spec(kind(), options()) :: Supervisor.child_spec()

  @doc "Puts a value into a map, or adds an amount to a counter. Returns and raises as the buffer does."
  @callback write(kind(), buffer :: atom(), key :: term(), value :: term()) :: :ok | {:error, term()}

  @doc "Flushes all that this node wrote and holds."
  @callback flush(buffer :: atom(), timeout()) :: :ok | {:error, term()}

  @doc "How many entries this node holds, in all stages."
  @callback held(buffer :: atom()) :: non_neg_integer()

  @doc "The members that this node sees, sorted; `:alone` if the buffer has none."
  @callback members(buffer :: atom()) :: [node()] | :alone

  @doc "The node that owns a key, as this node sees it."
  @callback owner(kind(), buffer :: atom(), key :: term()) :: node()

  @doc "`info(buffer).cluster` of this node, with at least `totals`, which only grow."
  @callback info(buffer :: atom()) :: %{required(:totals) => map(), optional(atom()) => term()}

  @doc "Puts this node's clock ahead by so many milliseconds, or behind."
  @callback shift_clock(buffer :: atom(), integer()) :: :ok

  @cluster_options [:forward_ms, :call_ms, :uncertain_ms, :slots, :owners, :max_skew_ms]

  @doc "The names of the options that are in `cluster: [...]`."
  def cluster_options, do: @cluster_options

  @doc "The options outside of `cluster: [...]`, with the defaults of the harness."
  def common(options) do
    defaults = [
      partitions: 2,
      processing_interval_ms: 1_000,
      processing_batch_size: 1_000,
      max_attempts: :infinity,
      retry_backoff_ms: {100, 1_000},
      drain_timeout_ms: 5_000
    ]

    Keyword.merge(defaults, Keyword.drop(options, @cluster_options))
  end
end
