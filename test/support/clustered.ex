defmodule PartitionedBuffer.Clustered do
  @moduledoc false
  # For the tests of buffers with `:cluster` on one node. The processor of such a buffer runs on
  # request only, as that of `PartitionedBuffer.Case`; its forwards run as always.

  import PartitionedBuffer.Case

  alias PartitionedBuffer.Routing

  @doc "Options of a counter with `:cluster`. Those of `:cluster` may be among the others."
  def cluster_options(opts \\ []) do
    {cluster, opts} =
      Keyword.split(opts, [:forward_ms, :owners, :slots, :uncertain_ms, :call_ms, :max_skew_ms])

    cluster = if cluster == [], do: true, else: cluster

    [module: PartitionedBuffer.Counter, max_attempts: 5, retry_backoff_ms: {1, 1}, cluster: cluster]
    |> Keyword.merge(opts)
    |> buffer_options()
  end

  @doc "Starts it under the test's supervisor, and returns its name."
  def start(opts \\ []), do: opts |> cluster_options() |> start_buffer()

  def owning(buffer), do: Routing.owning_name(buffer)

  @doc "Moves all entries to the owning stage, whose processor is then paused."
  def hold(buffer) do
    :ok = PartitionedBuffer.pause(buffer)
    {:error, :paused} = PartitionedBuffer.flush(buffer)
    :ok
  end

  @doc """
  Sends the events `[:partitioned_buffer | event]` of a buffer to a process as `{event, measurements,
  metadata}`, from the node that calls this.
  """
  def attach(buffer, events, to \\ self()) do
    events = for event <- events, do: [:partitioned_buffer | event]
    :telemetry.attach_many({buffer, make_ref()}, events, &__MODULE__.forward_event/4, {to, buffer})
  end

  def forward_event([:partitioned_buffer | event], measurements, metadata, {to, buffer}),
    do: if(metadata.buffer == buffer, do: send(to, {event, measurements, metadata}))

  @doc "Lets the first forward of a buffer wait until its task is killed. Sends `{:blocked, task}` to a process."
  def block_first_forward(buffer, to) do
    event = [:partitioned_buffer, :cluster, :forward, :start]
    :telemetry.attach({buffer, :block}, event, &__MODULE__.block/4, {to, buffer, :counters.new(1, [])})
  end

  def block(_event, _measurements, metadata, {to, buffer, calls}) do
    if metadata.buffer == buffer do
      :counters.add(calls, 1, 1)

      if :counters.get(calls, 1) == 1 do
        send(to, {:blocked, self()})
        Process.sleep(:infinity)
      end
    end
  end

  @doc "Adds a node that does not exist to the view of this node."
  def add_member(buffer, node), do: change_group(buffer, :join, node)

  @doc "Ends that."
  def remove_member(buffer, node), do: change_group(buffer, :leave, node)

  # Reports a change as the scope does.
  defp change_group(buffer, change, node) do
    members = Process.whereis(Module.concat(Routing.cluster_name(buffer), Members))
    %{group: group} = :sys.get_state(members)
    send(members, {group, change, :group, [pid_of(node)]})
    :sys.get_state(members)
    :ok
  end

  # The external format of a pid has the name of its node as an atom.
  defp pid_of(node) do
    <<131, atom::binary>> = :erlang.term_to_binary(node)
    :erlang.binary_to_term(<<131, 88, atom::binary, 1::32, 0::32, 1::32>>)
  end
end
