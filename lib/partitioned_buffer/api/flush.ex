defmodule PartitionedBuffer.API.Flush do
  @moduledoc false
  # The caller's side of `PartitionedBuffer.flush/2`: requests a flush from each partition and adds
  # up the answers.

  alias PartitionedBuffer.Buffer.Lookup
  alias PartitionedBuffer.{Native, Options, Routing}
  alias PartitionedBuffer.Partition.{Runner, Server}

  @doc """
  See `PartitionedBuffer.flush/2`.
  """
  @spec flush(atom(), keyword()) :: :ok | {:error, :timeout | :paused | {:failed, pos_integer()}}
  def flush(buffer, opts) do
    {timeout, async?} = Options.flush!(buffer, opts)
    unless async?, do: Runner.refuse!(buffer, "flush")

    until =
      if timeout == :infinity, do: :infinity, else: {:abs, System.monotonic_time(:millisecond) + timeout}

    all = Routing.partition_names(buffer)
    flush(%{buffer: buffer, async?: async?, until: until, lost: lost(buffer), again?: false}, all, all)
  end

  defp flush(call, all, partitions) do
    callers = [self() | Process.get(:"$callers", [])]

    requests =
      for partition <- partitions, do: {partition, Server.request_flush(partition, callers, call.async?)}

    answers = for {partition, request} <- requests, do: {partition, Server.await_flush(request, call.until)}
    failed = Enum.sum(for {_partition, {:ok, failed}} <- answers, do: failed)

    [timeout?, on_hold?] =
      for answer <- [:timeout, :on_hold], do: Enum.any?(answers, &(elem(&1, 1) == answer))

    case for {partition, :died} <- answers, do: partition do
      _any when failed > 0 -> {:error, {:failed, failed}}
      _any when on_hold? -> {:error, :paused}
      _any when timeout? -> {:error, :timeout}
      [] when call.again? -> unless_lost(call)
      [] -> :ok
      died -> flush_again(call, all, died)
    end
  end

  # The processes of the `died` partitions are restarted, or the buffer ends. After a start with
  # another number of partitions, any partition may have the entries.
  defp flush_again(call, all, died) do
    case Lookup.await_restarts(call.buffer, call.until) do
      :timeout ->
        {:error, :timeout}

      :ok ->
        now = Routing.partition_names(call.buffer)
        flush(%{call | again?: true}, now, if(now == all, do: died, else: now))
    end
  end

  # Without outcomes, a batch may get lost while the process of its partition is dead.
  defp unless_lost(call) do
    case lost(call.buffer) - call.lost do
      lost when lost > 0 -> {:error, {:failed, lost}}
      _nothing -> :ok
    end
  end

  # The number of entries that the buffer ever lost. With outcomes, a failed entry is not lost.
  defp lost(buffer) do
    options = Lookup.options!(buffer)

    if Options.outcomes?(options) do
      0
    else
      run = Lookup.run!(buffer)

      Enum.sum(
        for number <- 0..(options.partitions - 1),
            {_held, _oldest, _writes, {_superseded, _processed, failed, _given_up}, _now} <- [
              Native.info(run, number)
            ],
            do: failed
      )
    end
  end
end
