defmodule PartitionedBuffer.Cluster.Ending do
  @moduledoc false
  # Lets this member leave at a stop, in order: it leaves the group, the collecting stage drains to the
  # others, the receivers answer what came, the owning stage drains to the sink, and what is left is
  # handed over. A supervisor ends its children in that order, and this module decides before each stage
  # how long its drain may take: together `:drain_timeout_ms`, and the first a third at most.

  use GenServer

  alias PartitionedBuffer.Buffer.Settings
  alias PartitionedBuffer.Cluster.{HandOver, Joiner, Members, Receiver, State}
  alias PartitionedBuffer.{Label, Native, Routing}

  @typedoc "The stage that ends after this process; `:all` for the last of all."
  @type place() :: :collecting | :owning | :all

  @spec child_spec({atom(), place(), user_dead_letter? :: boolean()}) :: Supervisor.child_spec()
  def child_spec({_buffer, place, _dead_letter?} = init),
    do: %{id: {__MODULE__, place}, start: {__MODULE__, :start_link, [init]}, shutdown: :infinity}

  @spec start_link({atom(), place(), boolean()}) :: GenServer.on_start()
  def start_link(init), do: GenServer.start_link(__MODULE__, init)

  @impl GenServer
  def init(init) do
    Process.flag(:trap_exit, true)
    Label.set(elem(init, 0), {:ending, elem(init, 1)})
    {:ok, init}
  end

  @impl GenServer
  def handle_info(_message, init), do: {:noreply, init}

  @impl GenServer
  def terminate(:shutdown, {buffer, place, dead_letter?}), do: leave(place, buffer, dead_letter?)
  def terminate(_reason, _init), do: :ok

  defp leave(:collecting, buffer, _dead_letter?) do
    stop = with run when run != :not_running <- Native.run(buffer), do: Native.stop(run)
    State.put(buffer, :stop, {System.monotonic_time(:millisecond), if(stop != :not_running, do: stop)})
    Joiner.update(buffer)
    Members.refresh(buffer)

    with ms when is_integer(ms) <- State.options(buffer).drain_timeout_ms,
         do: limit(buffer, div(ms, 3))
  end

  defp leave(:owning, buffer, dead_letter?) do
    owning = Routing.owning_name(buffer)

    with {began, stop} <- State.stop(buffer), run when run != :not_running <- Native.run(owning) do
      tell_taken(buffer, Native.streams(run))
      # Without a function of the user, only other members can have the leftovers.
      alone? = State.others(buffer) == [] and not dead_letter?
      if stop, do: Native.put_stop(run, if(alone?, do: :keep, else: stop))

      # A killed task may end late, which must not take the time of this stage.
      with ms when is_integer(ms) <- State.options(buffer).drain_timeout_ms,
           do: limit(owning, max(ms - (System.monotonic_time(:millisecond) - began), div(ms, 3)))
    end
  end

  # A batch that waits here may go to the same owner after the next start, with the same number. And
  # entries of other members that wait here are nowhere else.
  defp leave(:all, buffer, _dead_letter?) do
    HandOver.report(buffer)

    if not Enum.any?(Native.leftovers(), &(elem(&1, 0) in [buffer, Routing.owning_name(buffer)])),
      do: for(node <- State.others(buffer), do: Receiver.forget(buffer, node, State.incarnation(buffer)))
  end

  # The receivers ended, so nothing more is taken. A member whose question got no answer learns it here.
  defp tell_taken(buffer, streams) do
    for {incarnation, {node, _last}} <- State.all(buffer, :origin) do
      numbers = for {^incarnation, slot, last} <- streams, into: %{}, do: {slot, last}
      Receiver.ended(buffer, node, incarnation, State.joiner(buffer), numbers)
    end
  end

  defp limit(stage, ms) do
    Settings.update!(stage, drain_timeout_ms: ms)
  rescue
    # The stage ended by itself.
    _not_running in [ArgumentError, RuntimeError] -> :ok
  end
end
