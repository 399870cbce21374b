defmodule PartitionedBuffer.Cluster.Receiver do
  @moduledoc false
  # Answers the forwards of other members. A member has several receivers, among which slots choose.
  # They keep nothing: the numbers of batches are native, as the entries are.

  use GenServer

  alias PartitionedBuffer.Cluster.{State, Taking}
  alias PartitionedBuffer.{Native, Routing}

  # All members must have the same number.
  @receivers 4

  # The values that the NIFs take: of incarnations and slots, of the numbers of batches, and of clocks.
  @unsigned 0..0xFFFF_FFFF_FFFF_FFFF
  @numbers 1..0xFFFF_FFFF_FFFF_FFFF
  @clocks -0x8000_0000_0000_0000..0x7FFF_FFFF_FFFF_FFFF

  @doc """
  The child specifications of the receivers of a buffer.
  """
  @spec child_specs(atom()) :: [Supervisor.child_spec()]
  def child_specs(buffer) do
    for number <- 0..(@receivers - 1),
        do: Supervisor.child_spec({__MODULE__, {buffer, number}}, id: {__MODULE__, number})
  end

  @spec start_link({atom(), non_neg_integer()}) :: GenServer.on_start()
  def start_link({buffer, number}), do: GenServer.start_link(__MODULE__, buffer, name: name(buffer, number))

  defp name(buffer, number), do: Module.concat(Routing.cluster_name(buffer), "Receiver#{number}")

  @doc """
  Gives a batch to another member. `:not_taken` is certain, `:unknown` is not.
  """
  @spec forward(atom(), node(), Taking.batch(), :bounded | :anyway, integer(), pos_integer()) ::
          {Taking.answer(), clock :: integer(), incarnation :: pos_integer()} | :not_taken | :unknown
  def forward(buffer, node, {{_incarnation, slot}, _number, _entries} = batch, bound, clock, call_ms) do
    # A call would connect to a node that is away, and wait for that.
    if node in Node.list(:connected) do
      GenServer.call({name(buffer, rem(slot, @receivers)), node}, {:forward, batch, bound, clock}, call_ms)
    else
      :not_taken
    end
  catch
    # A receiver that ends by itself answers each call that it took before.
    :exit, {reason, _call} when reason in [:noproc, :normal, :shutdown] -> :not_taken
    :exit, {{:shutdown, _reason}, _call} -> :not_taken
    :exit, _reason -> :unknown
  end

  @doc """
  Tells another member that this one ended: no batch of this incarnation comes again, and what it had
  was delivered, or other members have it.
  """
  @spec forget(atom(), node(), pos_integer()) :: :ok
  def forget(buffer, node, incarnation),
    do: GenServer.cast({name(buffer, 0), node}, {:forget, incarnation, node(), State.next_number()})

  @doc """
  Tells another member which numbers of its batches this one took, by slot. The member that had the
  process `joiner` takes nothing after that.
  """
  @spec ended(atom(), node(), pos_integer(), pid(), %{non_neg_integer() => pos_integer()}) :: :ok
  def ended(buffer, node, incarnation, joiner, numbers),
    do: GenServer.cast({name(buffer, 0), node}, {:ended, incarnation, joiner, numbers})

  # It traps exits, so that it answers the calls that came before the order to end.
  @impl GenServer
  def init(buffer) do
    Process.flag(:trap_exit, true)
    {:ok, buffer}
  end

  @impl GenServer
  def handle_call(
        {:forward, {{incarnation, slot}, number, entries} = batch, bound, clock},
        {pid, _tag},
        buffer
      )
      when incarnation in @unsigned and slot in @unsigned and number in @numbers and is_list(entries) and
             bound in [:bounded, :anyway] and clock in @clocks do
    State.put(buffer, {:origin, incarnation}, {node(pid), System.monotonic_time(:millisecond)})
    Taking.see_clock(buffer, clock, node(pid))
    answer = Taking.take(buffer, batch, bound)
    own_slot = rem(slot, State.settings(buffer).slots)
    {:reply, {answer, Taking.clock(buffer, own_slot), State.incarnation(buffer)}, buffer}
  end

  # A member of this protocol sends nothing else.
  def handle_call(_call, _from, buffer), do: {:reply, :invalid, buffer}

  @impl GenServer
  # The next life of the member may have begun already, with later numbers.
  def handle_cast({:forget, incarnation, node, number}, buffer) do
    State.replace_forwarded(buffer, node)

    with run when run != :not_running <- Native.run(Routing.owning_name(buffer)),
         do: Native.forget_streams(run, incarnation, number)

    State.delete(buffer, {:origin, incarnation})
    {:noreply, buffer}
  end

  def handle_cast({:ended, incarnation, joiner, numbers}, buffer) do
    if incarnation == State.incarnation(buffer),
      do: State.put(buffer, {:ended, node(joiner)}, {joiner, numbers})

    {:noreply, buffer}
  end

  def handle_cast(_message, buffer), do: {:noreply, buffer}

  @impl GenServer
  def handle_info(_message, buffer), do: {:noreply, buffer}
end
