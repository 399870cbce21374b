defmodule PartitionedBuffer.Conservation.Writer do
  @moduledoc false
  # A process that makes calls of all kinds. A single write refused by a buffer that is not running
  # is not done, and is repeated. A part of a refused list may be written.

  alias PartitionedBuffer.Conservation.{Accepted, Retries}

  # `target` does a call with options. `left` is the number of remaining writes. `accepted` has the
  # notes for the ledger of a buffer with retries, nil for other buffers.
  defstruct [:kind, :number, :writers, :target, :hibernate, :left, :report_to, :state, :accepted, counts: %{}]

  @type t() :: %__MODULE__{}

  @doc "Starts a writer, which sends `{:written, written, counts}` when no writes are left."
  def start_link(number, seed, fields) do
    writer = struct!(__MODULE__, [number: number, report_to: self()] ++ fields)

    spawn_link(fn ->
      :rand.seed(:exsss, {seed, number, 0})
      loop(%{writer | state: writer.kind.new()})
    end)
  end

  defp loop(%{left: left} = writer) when left <= 0 do
    send(writer.report_to, {:written, writer.kind.written(writer), writer.counts})
  end

  defp loop(writer) do
    case :rand.uniform(1_000) do
      n when n <= 15 -> writer |> writer.kind.write_many() |> loop()
      n when n <= 60 -> writer |> writer.kind.read() |> loop()
      n when n <= 80 -> writer |> yield() |> loop()
      81 when writer.hibernate -> hibernate(writer)
      82 when writer.accepted != nil -> writer |> flush() |> loop()
      _ -> writer |> writer.kind.write_one() |> loop()
    end
  end

  # Hibernation shrinks the heap. The message wakes the process up at once.
  defp hibernate(writer) do
    send(self(), :wake_up)
    :erlang.hibernate(__MODULE__, :woken_up, [writer])
  end

  @doc false
  def woken_up(writer) do
    receive(do: (:wake_up -> loop(count(writer, :hibernations))))
  end

  # A time slice is thousands of calls. Without a yield the partitions would seldom run.
  defp yield(writer) do
    :erlang.yield()
    writer
  end

  # Longer than a flush takes, in milliseconds.
  @patience 20_000

  # After `:ok` all earlier writes of this writer are through.
  defp flush(%{accepted: accepted} = writer) do
    phase = Accepted.phase(accepted)
    opts = Enum.random([[timeout: @patience], [timeout: @patience], [timeout: 1], [async: true]])

    {time, result} =
      :timer.tc(fn -> Retries.flushing(accepted.ledger, fn -> writer.target.(:flush, opts) end) end)

    writer = count(writer, if(is_tuple(result), do: :flush_failed, else: :flush))

    cond do
      time >= 1_000 * @patience ->
        Retries.report(accepted.ledger, :flush_hangs, {result, opts})

      result == :ok and opts[:async] != true and Accepted.ordered_since?(accepted, phase) ->
        for what <- writer.kind.not_through(writer),
            do: Retries.report(accepted.ledger, :flush_is_not_through, what)

      true ->
        :ok
    end

    writer
  end

  @doc "Does a single write, if need be several times. Calls `note` with the writer and the result."
  def single(writer, call, opts, note \\ fn writer, :ok -> writer end) do
    case writer.target.(call, opts) do
      :refused ->
        Process.sleep(1)
        writer |> count(:refused) |> single(call, opts, note)

      result ->
        writer |> done(elem(call, 0), 1) |> note.(result)
    end
  end

  @doc "Counts the writes of a call."
  def done(writer, call, writes), do: count(%{writer | left: writer.left - writes}, call, writes)

  @doc "Counts another event."
  def count(writer, what, by \\ 1), do: %{writer | counts: Map.update(writer.counts, what, by, &(&1 + by))}
end
