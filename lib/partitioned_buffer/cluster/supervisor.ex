defmodule PartitionedBuffer.Cluster.Supervisor do
  @moduledoc false
  # The processes of a buffer of several nodes: two stages, which are buffers, and what connects them.
  #
  #     name.Cluster
  #     ├── :pg                     the scope of the group of members
  #     ├── Ending                  ends last
  #     ├── name.Owning.Supervisor  the stage that calls the processor of the user
  #     ├── Ending                  ends before the owning stage
  #     ├── Receiver                several
  #     ├── Joiner, Members
  #     ├── name.Supervisor         the stage that takes the writes
  #     └── Ending                  ends first
  #
  # Entries and the numbers of batches are native, and the state of all else is a table of this process.
  # So a dead process loses nothing, and the others go on.

  use Supervisor

  alias PartitionedBuffer.{Buffer, Library, Native, Options, Routing}
  alias PartitionedBuffer.Buffer.Lookup
  alias PartitionedBuffer.Cluster.{Ending, Forward, HandOver, Joiner, Members, Receiver, State}

  # The most bytes of a forward.
  @forward_bytes 262_144

  @doc """
  Starts a buffer with checked options.
  """
  @spec start_link({Options.t(), Options.Functions.t()}) :: Supervisor.on_start()
  def start_link({%Options{name: buffer}, _functions} = init) do
    with :ok <- Library.check(),
         nil <- running(buffer) do
      Supervisor.start_link(__MODULE__, init, name: Routing.cluster_name(buffer))
    else
      pid when is_pid(pid) -> {:error, {:already_started, pid}}
      error -> error
    end
  end

  # A stage that outlives its killed supervisor does not run any more.
  defp running(buffer) do
    pid = Lookup.supervisor(buffer)
    if pid != nil and not child?(pid, buffer), do: pid
  end

  defp child?(pid, buffer) do
    case Process.info(pid, :dictionary) do
      {:dictionary, dictionary} ->
        List.first(dictionary[:"$ancestors"] || []) == Routing.cluster_name(buffer)

      nil ->
        false
    end
  end

  # Ends the processes of a killed supervisor, before others take their names. Entries and numbers stay.
  # The owning stage drains: a killed task might deliver its batch again. The collecting one cannot
  # forward without the table of its state.
  defp end_former(buffer) do
    for name <- Process.registered(),
        pid = Process.whereis(name),
        is_pid(pid) and pid != self() and child?(pid, buffer) do
      monitor = Process.monitor(pid)
      if name == Routing.supervisor_name(buffer), do: Process.exit(pid, :kill)
      receive do: ({:DOWN, ^monitor, :process, ^pid, _reason} -> :ok)
    end

    :ok
  end

  @impl Supervisor
  def init({%Options{name: buffer} = options, functions}) do
    Native.hold()
    end_former(buffer)
    State.new(options)
    dead_letter? = functions.dead_letter != nil

    children =
      [
        %{id: :scope, start: {:pg, :start_link, [Joiner.scope(buffer)]}},
        {Ending, {buffer, :all, dead_letter?}},
        stage(:owning, owning(options, functions)),
        {Ending, {buffer, :owning, dead_letter?}}
      ] ++
        Receiver.child_specs(buffer) ++
        [
          {Joiner, buffer},
          {Members, buffer},
          stage(:collecting, collecting(options, functions)),
          {Ending, {buffer, :collecting, dead_letter?}}
        ]

    Supervisor.init(children, strategy: :one_for_one, max_restarts: 20, max_seconds: 5)
  end

  defp stage(id, init),
    do: %{id: id, start: {Buffer.Supervisor, :start_link, [init]}, type: :supervisor}

  # The partitions are the slots.
  defp collecting(%Options{name: buffer, cluster: cluster} = options, %Options.Functions{} = functions) do
    {%Options{
       options
       | way: Forward,
         partitions: cluster.slots,
         dead_letter?: true,
         processing_interval_ms: cluster.forward_ms,
         processing_jitter_ms: 0,
         processing_timeout_ms: :infinity,
         processing_batch_size: Forward.batch_size(),
         processing_batch_bytes: @forward_bytes,
         processing_threshold: :infinity,
         max_attempts: :infinity,
         retry_backoff_ms: {100, 1_000}
     },
     %Options.Functions{
       functions
       | processor: {Forward, :run, []},
         dead_letter: {HandOver, :keep, [buffer, functions]},
         retry_backoff: nil,
         batch: nil
     }}
  end

  defp owning(%Options{name: buffer} = options, %Options.Functions{} = functions) do
    {%Options{
       options
       | name: Routing.owning_name(buffer),
         cluster: nil,
         dead_letter?: true,
         versions: options.versions && :own,
         when_full: :error,
         full_timeout_ms: 0
     }, %Options.Functions{functions | dead_letter: {HandOver, :give_up, [buffer, functions]}}}
  end

  @doc """
  The changes of `update_options/2` for each stage.
  """
  @spec changes(keyword()) :: {collecting :: keyword(), owning :: keyword()}
  def changes(changes) do
    {cluster, changes} = Keyword.pop(changes, :cluster, [])
    {collecting, owning} = Keyword.split(changes, [:max_size, :max_bytes, :when_full, :full_timeout_ms])
    bound = Keyword.take(collecting, [:max_size, :max_bytes])
    interval = if ms = cluster[:forward_ms], do: [processing_interval_ms: ms], else: []
    drain = Keyword.take(owning, [:drain_timeout_ms])
    {collecting ++ interval ++ drain, bound ++ owning}
  end
end
