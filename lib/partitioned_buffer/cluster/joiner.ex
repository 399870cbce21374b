defmodule PartitionedBuffer.Cluster.Joiner do
  @moduledoc false
  # Makes this node a member: joins the group of the buffer, and joins again when the scope was
  # restarted. It does not monitor the group, since a scope of OTP 25 dies with a member that does
  # (erlang/otp#7625).
  #
  # A group has the name of the protocol and of the kind. Members of another protocol, or of another
  # kind of buffer under this name, do not see each other.

  use GenServer

  alias PartitionedBuffer.Cluster.State
  alias PartitionedBuffer.{Label, Routing}

  # The version of the messages between members.
  @protocol 1

  # How soon, in milliseconds, to look for a restarted scope.
  @again_ms 50

  @spec start_link(atom()) :: GenServer.on_start()
  def start_link(buffer), do: GenServer.start_link(__MODULE__, buffer, name: name(buffer))

  defp name(buffer), do: Module.concat(Routing.cluster_name(buffer), Joiner)

  @doc """
  The name of the `:pg` scope of a buffer.
  """
  @spec scope(atom()) :: atom()
  def scope(buffer), do: Module.concat(Routing.cluster_name(buffer), Scope)

  @doc """
  The group of the members.
  """
  @spec group(atom()) :: {:partitioned_buffer, pos_integer(), atom()}
  def group(buffer), do: {:partitioned_buffer, @protocol, State.options(buffer).kind}

  @doc """
  Joins the group, unless `State.left?/1`, or leaves it.
  """
  @spec update(atom()) :: :ok
  def update(buffer) do
    GenServer.call(name(buffer), :update, :infinity)
  catch
    # The next process looks at the state by itself, and a dead one is no member.
    :exit, _reason -> :ok
  end

  @impl GenServer
  def init(buffer) do
    State.put(buffer, :joiner, self())
    Label.set(buffer, :joiner)
    {:ok, update_group(%{buffer: buffer, scope: nil, member?: false})}
  end

  @impl GenServer
  def handle_call(:update, _from, state), do: {:reply, :ok, update_group(state)}

  @impl GenServer
  def handle_info({:DOWN, ref, :process, _pid, _reason}, %{scope: ref} = state),
    do: {:noreply, update_group(%{state | scope: nil, member?: false})}

  def handle_info(:again, state), do: {:noreply, update_group(state)}
  def handle_info(_message, state), do: {:noreply, state}

  defp update_group(%{buffer: buffer, scope: nil} = state) do
    case Process.whereis(scope(buffer)) do
      nil ->
        Process.send_after(self(), :again, @again_ms)
        state

      pid ->
        update_group(%{state | scope: Process.monitor(pid)})
    end
  end

  defp update_group(%{buffer: buffer, member?: member?} = state) do
    member = not State.left?(buffer)

    cond do
      member and not member? -> :pg.join(scope(buffer), group(buffer), self())
      member? and not member -> :pg.leave(scope(buffer), group(buffer), self())
      true -> :ok
    end

    %{state | member?: member}
  catch
    # The scope just died.
    :exit, _reason ->
      Process.send_after(self(), :again, @again_ms)
      state
  end
end
