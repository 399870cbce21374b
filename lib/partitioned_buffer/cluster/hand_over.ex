defmodule PartitionedBuffer.Cluster.HandOver do
  @moduledoc false
  # The functions for dead letters of both stages. What a stop of the collecting stage leaves goes to the
  # owning stage of this member, and what that one leaves to other members. All else is for the function
  # of the user.

  alias PartitionedBuffer.Cluster.{Receiver, State, Taking}
  alias PartitionedBuffer.{Emitter, Native, Options, Routing}
  alias PartitionedBuffer.Partition.Runner
  alias PartitionedBuffer.Processing.{DeadLetter, Job}

  # The streams of handed over batches come after those of the slots: one for each partition, since
  # partitions do this at the same time.
  @first_stream 1_048_576

  # The most entries and bytes that are handed over together.
  @part_size 1_000
  @part_bytes 262_144

  # For how long, in milliseconds, members are asked that take nothing, and how often. It is the time of
  # all batches of a stop together, since the last one that a member took.
  @longest_ms 5_000
  @ask_ms 100

  @doc """
  Moves entries of the collecting stage to the owning stage of this member. Without that stage they are
  for the function of the user.
  """
  @spec keep(list(), any(), atom(), Options.Functions.t()) :: any()
  def keep(entries, reason, buffer, %Options.Functions{dead_letter: function}) do
    with answer when answer != :ok <- Taking.take_anyway(buffer, entries), do: call(function, entries, reason)
  end

  @doc """
  Hands entries that a stop could not deliver over to other members. `function` is the one of the user.
  """
  @spec give_up(list(), any(), atom(), Options.Functions.t()) :: any()
  def give_up(entries, reason, buffer, %Options.Functions{dead_letter: function}) do
    case if(reason == :stopped and State.stop(buffer) != nil, do: State.others(buffer), else: []) do
      [] -> call(function, entries, reason)
      _others -> hand_over(entries, reason, buffer, function)
    end
  end

  defp call(nil, _entries, _reason), do: DeadLetter.unhandled()
  defp call(_function, [], _reason), do: :ok
  defp call(function, entries, reason), do: Job.call(function, [entries, reason])

  defp hand_over(entries, reason, buffer, function) do
    slots = State.settings(buffer).slots

    left =
      entries
      |> Enum.group_by(fn entry -> State.owner(buffer, elem(Routing.route(nil, elem(entry, 0), slots), 0)) end)
      |> Enum.flat_map(fn {owner, entries} -> for part <- parts(entries), do: {owner, part} end)
      |> Enum.flat_map(fn {owner, part} -> give(part, [owner | State.others(buffer) -- [owner]], buffer) end)

    call(if(left == [], do: fn _entries, _reason -> :ok end, else: function), left, reason)
  end

  @doc """
  The entries in parts of the size of a forward: a batch of the processor may be larger, and a large one
  finds no room and holds up the connection.
  """
  @spec parts(list()) :: [list()]
  def parts(entries) do
    Enum.chunk_while(
      entries,
      {[], 0, 0},
      fn entry, {part, count, bytes} ->
        size = :erlang.external_size(entry)

        if part != [] and (count == @part_size or bytes + size > @part_bytes),
          do: {:cont, Enum.reverse(part), {[entry], 1, size}},
          else: {:cont, {[entry | part], count + 1, bytes + size}}
      end,
      fn
        {[], 0, 0} -> {:cont, nil}
        {part, _count, _bytes} -> {:cont, Enum.reverse(part), nil}
      end
    )
  end

  # Returns what no member took.
  defp give(entries, [node | others] = nodes, buffer) do
    number = :erlang.unique_integer([:monotonic, :positive])

    cond do
      taken?(buffer, node, entries, number) -> []
      others != [] -> give(entries, others, buffer)
      State.passed?(buffer, :handing_over, @longest_ms) -> entries
      true -> give_later(entries, nodes, buffer)
    end
  end

  defp give_later(entries, nodes, buffer) do
    Process.sleep(@ask_ms)
    # A member that was full may have room now.
    give(entries, Enum.uniq(nodes ++ State.others(buffer)), buffer)
  end

  defp taken?(buffer, node, entries, number) do
    stream = {State.incarnation(buffer), @first_stream + (Runner.partition() || 0)}
    clock = Taking.clock(buffer, 0)
    call_ms = State.settings(buffer).call_ms

    case not State.silent?(buffer, node) and
           Receiver.forward(buffer, node, stream, number, entries, clock, call_ms) do
      {answer, _clock, _incarnation} when answer in [:ok, :duplicate] ->
        State.put(buffer, :handing_over, System.monotonic_time(:millisecond))
        report(buffer, node, length(entries))
        true

      :unknown ->
        unknown(buffer, node, entries, number)

      _refused ->
        false
    end
  end

  # The node may have the batch, and then recognizes the number. One that is silent for long gets no
  # other batch.
  defp unknown(buffer, node, entries, number) do
    if not State.passed?(buffer, :handing_over, @longest_ms) and node in State.others(buffer) do
      taken?(buffer, node, entries, number)
    else
      State.put(buffer, {:silent, node}, true)
      false
    end
  end

  defp report(buffer, node, count) do
    with run when run != :not_running <- Native.run(Routing.owning_name(buffer)),
         do: Emitter.event(run, [:cluster, :hand_over], %{count: count}, %{buffer: buffer, to: node})
  end
end
