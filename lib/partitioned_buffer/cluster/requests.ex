defmodule PartitionedBuffer.Cluster.Requests do
  @moduledoc false
  # The calls of a buffer of several nodes that concern more than one stage: of this member, and what
  # members ask each other. A member that is asked has the same module.

  alias PartitionedBuffer.API.Flush
  alias PartitionedBuffer.Buffer.{Hold, Lookup, Settings}
  alias PartitionedBuffer.Cluster.{Joiner, Members, State, Supervisor}
  alias PartitionedBuffer.Observe.Info
  alias PartitionedBuffer.{Options, Routing}
  alias PartitionedBuffer.Partition.Runner

  @type flushed() :: :ok | {:error, :timeout | :paused | {:failed, pos_integer()} | {:away, [node()]}}

  # The longest timeout of `receive`.
  @longest_ms 4_294_967_295

  ## Of this member

  @doc """
  Flushes the entries of this member: the collecting stage, then the owning stages of all members that
  took some.
  """
  @spec flush(atom(), keyword()) :: flushed()
  def flush(buffer, opts) do
    {timeout, async?} = Options.flush!(buffer, opts)

    if async? do
      Flush.flush(buffer, opts)
      Flush.flush(Routing.owning_name(buffer), opts)
    else
      Runner.refuse!(buffer, "flush")
      until = if timeout == :infinity, do: :infinity, else: System.monotonic_time(:millisecond) + timeout

      with :ok <- Flush.flush(buffer, timeout: timeout),
           do: flush_owners(buffer, State.all(buffer, :forwarded), until)
    end
  end

  # A node with a later batch keeps its row.
  defp flush_owners(buffer, forwarded, until) do
    {near, away} =
      Enum.split_with(forwarded, fn {node, _last} -> node == node() or node in Node.list(:connected) end)

    answers = ask(for({node, _last} <- near, do: node), :flush_owning, [buffer, left(until)], left(until))

    for {node, last} <- near, answers[node] == :ok, do: State.delete_if(buffer, {:forwarded, node}, last)
    gone = for {node, {:error, reason}} <- answers, reason in [:away, :not_running], do: node
    away = Enum.sort(gone ++ for({node, _last} <- away, do: node))

    case for({_node, {:error, reason}} <- answers, reason not in [:away, :not_running], do: reason) do
      [] when away != [] -> {:error, {:away, away}}
      [] -> :ok
      reasons -> {:error, worst(reasons)}
    end
  end

  defp worst(reasons) do
    case Enum.sum(for {:failed, count} <- reasons, do: count) do
      0 -> if :paused in reasons, do: :paused, else: :timeout
      failed -> {:failed, failed}
    end
  end

  @doc """
  Changes options of both stages and of the cluster.
  """
  @spec update_options!(atom(), keyword()) :: :ok
  def update_options!(buffer, changes) do
    changes = Options.changes!(buffer, changes)
    {options, _functions} = Options.update!(State.options(buffer), changes)
    {collecting, owning} = Supervisor.changes(changes)
    Settings.update!(buffer, collecting)
    Settings.update!(Routing.owning_name(buffer), owning)
    State.put(buffer, :options, options)
    Members.refresh(buffer)
  end

  @doc """
  Puts the processor of this member on hold. Batches of other members still come.
  """
  @spec pause!(atom()) :: :ok
  def pause!(buffer), do: Hold.pause!(Routing.owning_name(buffer))

  @doc """
  Ends the hold.
  """
  @spec resume!(atom()) :: :ok
  def resume!(buffer), do: Hold.resume!(Routing.owning_name(buffer))

  @doc """
  The numbers of both stages of this member, and those of the cluster.
  """
  @spec info(atom()) :: map()
  def info(buffer) do
    {collecting, owning} = {Info.info(buffer), Info.info(Routing.owning_name(buffer))}
    {members, owners} = State.view(buffer)
    owners = Tuple.to_list(owners)
    uncertain = State.all(buffer, :uncertain)

    collecting
    |> Info.add(owning)
    |> Map.put(:cluster, %{
      members: members,
      owns: Enum.count(owners, &(&1 == node())),
      slots: length(owners),
      owning: Map.take(owning, [:size, :in_flight, :oldest_ms]),
      uncertain: length(uncertain),
      away: uncertain |> Enum.map(fn {_slot, {to, _since}} -> to end) |> Enum.uniq() |> Enum.sort(),
      clock_ahead_ms: buffer |> State.all(:ahead) |> Enum.map(&elem(&1, 1)) |> Enum.max(fn -> 0 end),
      totals: State.totals(buffer)
    })
  end

  @doc """
  Makes this member leave the group, or join it again.
  """
  @spec set_left(atom(), boolean()) :: :ok
  def set_left(buffer, left?) do
    State.put(buffer, :left, left?)
    Joiner.update(buffer)
    Members.refresh(buffer)
    if left?, do: Flush.flush(buffer, async: true)
    :ok
  end

  ## Of all members

  @doc """
  Calls a function of this module on members, and returns the result of each. `{:error, :away}` is that
  of a member that cannot be reached.
  """
  @spec ask([node()], atom(), list(), timeout()) :: %{node() => any()}
  def ask(nodes, function, arguments, timeout) do
    # An answer comes later than what it waits for.
    timeout = if timeout == :infinity, do: :infinity, else: min(timeout + 1_000, @longest_ms)

    # The libraries that find a test by the `$callers` of a processor find it here too.
    callers = [self() | Process.get(:"$callers", [])]

    nodes
    |> Enum.zip(:erpc.multicall(nodes, __MODULE__, :answer, [callers, function, arguments], timeout))
    |> Map.new(fn
      {node, {:ok, result}} -> {node, result}
      {node, {:error, {:erpc, :timeout}}} -> {node, {:error, :timeout}}
      {node, {:error, {:erpc, _noconnection}}} -> {node, {:error, :away}}
      # The buffer stops there, and drains by itself.
      {node, {:error, {:exception, _not_running, _stacktrace}}} -> {node, {:error, :not_running}}
      {node, {_kind, reason}} -> {node, {:error, reason}}
    end)
  end

  @doc "Calls a function of this module for a process of another member, or of this one."
  @spec answer([pid()], atom(), list()) :: any()
  def answer(callers, function, arguments) do
    Process.put(:"$callers", callers)
    apply(__MODULE__, function, arguments)
  end

  @doc "Flushes the collecting stage of a member."
  @spec flush_collecting(atom(), timeout()) :: flushed()
  def flush_collecting(buffer, timeout), do: Flush.flush(buffer, timeout: timeout)

  @doc "Flushes the owning stage of a member."
  @spec flush_owning(atom(), timeout()) :: flushed()
  def flush_owning(buffer, timeout), do: Flush.flush(Routing.owning_name(buffer), timeout: timeout)

  @doc """
  Flushes both stages of all members.
  """
  @spec flush_all(atom(), keyword()) :: :ok | {:error, %{node() => any()}}
  def flush_all(buffer, opts) do
    {timeout, _async?} = Options.flush!(buffer, opts)
    Runner.refuse!(buffer, "flush")
    until = if timeout == :infinity, do: :infinity, else: System.monotonic_time(:millisecond) + timeout

    with :ok <- all_ok(ask(members(buffer), :flush_collecting, [buffer, timeout], timeout)),
         do: all_ok(ask(members(buffer), :flush_owning, [buffer, left(until)], left(until)))
  end

  defp all_ok(answers) do
    case for({node, {:error, reason}} <- answers, into: %{}, do: {node, reason}) do
      errors when errors == %{} -> :ok
      errors -> {:error, errors}
    end
  end

  @doc """
  The numbers of all members.
  """
  @spec info_all(atom(), timeout()) :: %{node() => map() | {:error, any()}}
  def info_all(buffer, timeout), do: ask(members(buffer), :info, [buffer], timeout)

  @doc """
  The members, and this node if it left them.
  """
  @spec members(atom()) :: [node()]
  def members(buffer) do
    unless Lookup.cluster?(buffer), do: not_clustered!(buffer)
    Enum.uniq([node() | elem(State.view(buffer), 0)])
  end

  @doc """
  Raises for a buffer without `:cluster`.
  """
  @spec not_clustered!(atom()) :: no_return()
  def not_clustered!(buffer) do
    _runs = Lookup.run!(buffer)
    raise ArgumentError, "buffer #{inspect(buffer)} was started without the option :cluster"
  end

  defp left(:infinity), do: :infinity
  defp left(until), do: max(until - System.monotonic_time(:millisecond), 0)
end
