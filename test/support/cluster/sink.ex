defmodule PartitionedBuffer.Test.Cluster.Sink do
  @moduledoc false
  # The sink of all nodes, on the controller: a table as a database has it.
  #
  #   * Counters: it adds the sums.
  #   * Maps: it stores an entry unless it holds a greater version (`refused`), and `repeated` counts
  #     entries that it holds already. `back` counts stored values written earlier than the
  #     values they replace, by more than the nodes' clocks may differ: with versions there is none.
  #
  # It can be `:up`, `:down` (an error at once), `{:slow, ms}` (stores, then answers late), or
  # `:hanging` (neither stores nor answers; what hangs gets an error with the next mode).
  #
  # `PostgresSink` answers the same calls.

  use GenServer

  @enforce_keys [:kind]
  defstruct [
    :kind,
    mode: :up,
    table: %{},
    rows: [],
    calls: 0,
    failed: 0,
    refused: 0,
    repeated: 0,
    back: 0,
    given_up: [],
    hanging: []
  ]

  @typedoc "A stored row: key, node, microseconds since 1970, age of the value in microseconds (maps)."
  @type row :: {term(), node(), integer(), integer() | nil}

  # Microseconds that clocks of two VMs of one machine may differ.
  @skew 5_000

  def skew, do: @skew

  def start_link(kind, _opts \\ []), do: GenServer.start_link(__MODULE__, kind)

  @doc "Stores a batch; called by a processor. Returns `:ok` or `{:error, :down}`."
  def store(sink, entries), do: GenServer.call(sink, {:store, node(), entries}, :infinity)

  @doc "Notes entries that are given up."
  def give_up(sink, entries, reason), do: GenServer.call(sink, {:give_up, node(), entries, reason}, :infinity)

  @doc "Sets the mode."
  def switch(sink, mode), do: GenServer.call(sink, {:switch, mode}, :infinity)

  @doc "All it has, as the struct; `rows` newest first."
  def read(sink), do: GenServer.call(sink, :read, :infinity)

  @doc "Forgets its rows, not its table. The next `read/1` has those of the time after."
  def forget_rows(sink), do: GenServer.call(sink, :forget_rows, :infinity)

  @impl GenServer
  def init(kind), do: {:ok, %__MODULE__{kind: kind}}

  @impl GenServer
  def handle_call({:store, _node, _entries}, _from, %{mode: :down} = state),
    do: {:reply, {:error, :down}, %{state | failed: state.failed + 1}}

  def handle_call({:store, _node, _entries}, from, %{mode: :hanging} = state),
    do: {:noreply, %{state | failed: state.failed + 1, hanging: [from | state.hanging]}}

  def handle_call({:store, node, entries}, from, %{mode: {:slow, ms}} = state) do
    Process.send_after(self(), {:answer, from}, ms)
    {:noreply, store_all(state, node, entries)}
  end

  def handle_call({:store, node, entries}, _from, %{mode: :up} = state),
    do: {:reply, :ok, store_all(state, node, entries)}

  def handle_call({:give_up, node, entries, reason}, _from, state) do
    given_up = for entry <- entries, do: {elem(entry, 0), elem(entry, 1), node, reason}
    {:reply, :ok, %{state | given_up: given_up ++ state.given_up}}
  end

  def handle_call({:switch, mode}, _from, state) do
    for hanging <- state.hanging, do: GenServer.reply(hanging, {:error, :down})
    {:reply, :ok, %{state | mode: mode, hanging: []}}
  end

  def handle_call(:read, _from, state), do: {:reply, state, state}
  def handle_call(:forget_rows, _from, state), do: {:reply, :ok, %{state | rows: []}}

  @impl GenServer
  def handle_info({:answer, from}, state) do
    GenServer.reply(from, :ok)
    {:noreply, state}
  end

  defp store_all(state, node, entries) do
    now = System.os_time(:microsecond)
    Enum.reduce(entries, %{state | calls: state.calls + 1}, &store_one(&2, &1, node, now))
  end

  defp store_one(%{kind: :counter} = state, {key, sum, _count}, node, now) do
    table = Map.update(state.table, key, sum, &(&1 + sum))
    %{state | table: table, rows: [{key, node, now, nil} | state.rows]}
  end

  defp store_one(%{kind: :map} = state, {key, value, version, _updates}, node, now) do
    case state.table do
      %{^key => {held, _value}} when held > version ->
        %{state | refused: state.refused + 1}

      %{^key => {_held, ^value}} ->
        %{state | repeated: state.repeated + 1}

      %{^key => {_held, old}} ->
        put_value(%{state | back: state.back + back(old, value)}, key, version, value, node, now)

      _absent ->
        put_value(state, key, version, value, node, now)
    end
  end

  defp put_value(state, key, version, value, node, now) do
    row = {key, node, now, now - written_at(value)}
    %{state | table: Map.put(state.table, key, {version, value}), rows: [row | state.rows]}
  end

  defp back(old, new), do: if(written_at(new) < written_at(old) - @skew, do: 1, else: 0)

  defp written_at({_index, _writer, _number, at}), do: at
end
