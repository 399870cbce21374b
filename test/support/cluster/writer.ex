defmodule PartitionedBuffer.Test.Cluster.Writer do
  @moduledoc false
  # Writes to the buffer of its node, at a rate or as fast as it can, and reports each chunk to the
  # ledger of the controller.
  #
  # A counter's writers add to random keys. A map's keys have one writer at a time, and another one
  # after each turn, so that at every time it is certain which write of a key is the newest, though
  # all nodes write all keys.

  use GenServer

  alias PartitionedBuffer.Test.Cluster.{Amounts, Ledger, Written}

  @type config :: %{
          adapter: module(),
          kind: :counter | :map,
          buffer: atom(),
          ledger: pid(),
          # The index of the node, of how many nodes.
          index: non_neg_integer(),
          nodes: pos_integer(),
          # The number of the writer, of how many writers on a node.
          writer: non_neg_integer(),
          writers: pos_integer(),
          keys: pos_integer(),
          # Writes in a second, or `:max`.
          rate: pos_integer() | :max
        }

  # In milliseconds.
  @chunk_ms 20
  @turn_ms 40

  # A chunk that takes longer ends early.
  @report_ms 200

  # At the greatest rate.
  @chunk 500

  def start_link(config), do: GenServer.start_link(__MODULE__, config)

  @impl GenServer
  def init(config) do
    # For the last report.
    Process.flag(:trap_exit, true)
    {:ok, Map.merge(config, %{written: %Written{}, next: now_ms(), number: 0}), {:continue, :chunk}}
  end

  @impl GenServer
  def handle_continue(:chunk, state), do: {:noreply, chunk(state)}

  @impl GenServer
  def handle_info(:chunk, state), do: {:noreply, chunk(state)}
  def handle_info(:stop, state), do: {:stop, :normal, state}

  @impl GenServer
  def terminate(_reason, state), do: announce(state, [])

  defp chunk(state) do
    plan = plan(state, state.number, size(state))
    announce(state, plan)
    written = write_until(state, plan, %Written{}, now_ms() + @report_ms)
    schedule(%{state | written: written, number: state.number + length(plan)})
  end

  # Writes that wait for room take long. The rest of their chunk is given up: nobody made those writes.
  defp write_until(state, [planned | plan], written, deadline) do
    written = write(state, planned, written)
    if now_ms() < deadline, do: write_until(state, plan, written, deadline), else: written
  end

  defp write_until(_state, [], written, _deadline), do: written

  defp announce(state, plan), do: :ok = Ledger.announce(state.ledger, node(), state.written, sums(plan))

  defp sums(plan) do
    Enum.reduce(plan, %{}, fn
      {:counter, key, amount}, sums -> Map.update(sums, key, amount, &(&1 + amount))
      {:map, key, _number}, sums -> Map.put(sums, key, nil)
    end)
  end

  defp size(%{rate: :max}), do: @chunk
  defp size(%{rate: rate}), do: max(1, div(rate * @chunk_ms, 1_000))

  defp schedule(%{rate: :max} = state) do
    send(self(), :chunk)
    state
  end

  # A delayed writer does not catch up: the rate is the greatest.
  defp schedule(state) do
    next = max(state.next + @chunk_ms, now_ms())
    Process.send_after(self(), :chunk, next, abs: true)
    %{state | next: next}
  end

  defp now_ms, do: System.monotonic_time(:millisecond)

  defp plan(%{kind: :counter} = state, _number, size) do
    amount = Amounts.amount(state.index, state.nodes)
    for _ <- 1..size, do: {:counter, :rand.uniform(state.keys), amount}
  end

  # The turn is the same on all nodes: they have one clock, which is that of the machine.
  defp plan(%{kind: :map} = state, number, size) do
    all = state.nodes * state.writers
    turn = div(System.os_time(:millisecond), @turn_ms)
    mine = rem(state.index * state.writers + state.writer + turn, all)
    for n <- 1..size, do: {:map, mine + all * (:rand.uniform(max(1, div(state.keys, all))) - 1), number + n}
  end

  defp write(state, planned, written) do
    began = System.os_time(:microsecond)
    {kind, key, what} = write = stamp(state, planned, began)
    outcome = try_write(state, kind, key, what)
    Written.note(written, write, outcome, began, System.os_time(:microsecond))
  end

  # A value holds its writer and its time.
  defp stamp(state, {:map, key, number}, began), do: {:map, key, {state.index, state.writer, number, began}}
  defp stamp(_state, addition, _began), do: addition

  defp try_write(state, kind, key, what) do
    case state.adapter.write(kind, state.buffer, key, what) do
      :ok -> :ok
      {:error, :full} -> :full
      other -> {:returned, other}
    end
  rescue
    PartitionedBuffer.FullError -> :full
    # The buffer does not run.
    ArgumentError -> :stopped
    error -> {:raised, error}
  catch
    kind, reason -> {kind, reason}
  end
end
