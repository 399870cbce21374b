defmodule PartitionedBuffer.Cluster.HandOver do
  @moduledoc false
  # The functions for dead letters of both stages. What a stop of the collecting stage leaves goes to the
  # owning stage of this member, and what that one leaves to other members. All else is for the function
  # of the user.

  alias PartitionedBuffer.Cluster.{Receiver, State, Taking}
  alias PartitionedBuffer.{Emitter, Options, Routing}
  alias PartitionedBuffer.Partition.Runner
  alias PartitionedBuffer.Processing.{DeadLetter, Job}

  # The streams of handed over batches come after those of the slots: one for each partition, since
  # partitions do this at the same time.
  @first_stream 1_048_576

  # The most entries and bytes that are handed over together.
  @part_size 1_000
  @part_bytes 262_144

  # For how long, in milliseconds, members are asked after one took a batch, and how often. All batches
  # share this time, so a stop ends though all members hang.
  @longest_ms 5_000
  @ask_ms 100

  @doc """
  Moves entries of the collecting stage to the owning stage of this member. `function` is the one of the
  user. It gets them at the end of the VM, if the buffer ended before and left them.
  """
  @spec keep(list(), any(), atom(), Options.Functions.t()) :: any()
  def keep(entries, reason, buffer, %Options.Functions{dead_letter: function}) do
    if State.any?(buffer) and Taking.take_anyway(buffer, entries) == :ok,
      do: DeadLetter.elsewhere(length(entries), :ok),
      else: call(function, entries, reason)
  end

  @doc """
  Hands entries that a stop could not deliver over to other members, whatever their bounds: no other node
  has these entries. `function` is the one of the user, for what no member takes.
  """
  @spec give_up(list(), any(), atom(), Options.Functions.t()) :: any()
  def give_up(entries, reason, buffer, %Options.Functions{dead_letter: function}) do
    if reason == :stopped and State.any?(buffer) and State.stop(buffer) != nil and State.others(buffer) != [],
      do: hand_over(entries, reason, buffer, function),
      else: call(function, entries, reason)
  end

  defp call(nil, _entries, _reason), do: DeadLetter.unhandled()
  defp call(function, entries, reason), do: Job.call(function, [entries, reason])

  defp hand_over(entries, reason, buffer, function) do
    slots = State.settings(buffer).slots

    left =
      entries
      |> Enum.group_by(fn entry -> State.owner(buffer, elem(Routing.route(nil, elem(entry, 0), slots), 0)) end)
      |> Enum.flat_map(fn {owner, entries} -> for part <- parts(entries), do: {owner, part} end)
      |> Enum.flat_map(fn {owner, part} -> give(part, [owner], buffer) end)

    result = if left == [], do: :ok, else: call(function, left, reason)
    DeadLetter.elsewhere(length(entries) - length(left), result)
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
  defp give(entries, nodes, buffer) do
    number = State.next_number()
    # Members come and go.
    nodes = Enum.uniq(nodes ++ State.others(buffer))

    cond do
      not in_time?(buffer) ->
        entries

      Enum.any?(nodes, &taken?(buffer, &1, entries, number)) ->
        []

      true ->
        Process.sleep(@ask_ms)
        give(entries, nodes, buffer)
    end
  end

  defp in_time?(buffer) do
    now = System.monotonic_time(:millisecond)
    now - State.put_new(buffer, :handed_over, now) < @longest_ms
  end

  defp taken?(buffer, node, entries, number) do
    stream = {State.incarnation(buffer), @first_stream + (Runner.partition() || 0)}
    clock = Taking.clock(buffer, 0)
    call_ms = State.settings(buffer).call_ms

    case not State.silent?(buffer, node) and
           Receiver.forward(buffer, node, {stream, number, entries}, :anyway, clock, call_ms) do
      {answer, _clock, _incarnation} when answer in [:ok, :duplicate] ->
        State.put(buffer, :handed_over, System.monotonic_time(:millisecond))
        State.add(buffer, {:handed_over, node}, length(entries))
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
    if in_time?(buffer) and node in State.others(buffer) do
      taken?(buffer, node, entries, number)
    else
      State.put(buffer, {:silent, node}, true)
      false
    end
  end

  @doc """
  Reports the entries that each member took. A hand-over may have many batches, so
  a stop does this at its end.
  """
  @spec report(atom()) :: :ok
  def report(buffer) do
    for {node, count} <- State.all(buffer, :handed_over),
        do: Emitter.event_alone([:cluster, :hand_over], %{count: count}, %{buffer: buffer, to: node})

    :ok
  end
end
