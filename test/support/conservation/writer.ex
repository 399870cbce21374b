defmodule PartitionedBuffer.Conservation.Writer do
  @moduledoc false
  # A process that writes, with every kind of call. A single write that raises because the buffer is not running has not
  # been done, and is tried again. Of a list some may have been written.

  defstruct [:kind, :number, :writers, :target, :hibernate, :left, :report_to, :state, counts: %{}]

  @type t() :: %__MODULE__{}

  @doc "Starts one of so many writers, which sends `{:written, written, counts}` after `left` writes."
  def start_link(number, opts) do
    writer = struct!(__MODULE__, [number: number, report_to: self()] ++ Keyword.delete(opts, :seed))

    spawn_link(fn ->
      :rand.seed(:exsss, {opts[:seed], number, 0})
      loop(%{writer | state: writer.kind.new()})
    end)
  end

  @doc false
  def loop(%{left: left} = writer) when left <= 0 do
    send(writer.report_to, {:written, writer.kind.written(writer), writer.counts})
  end

  def loop(writer) do
    case :rand.uniform(1_000) do
      n when n <= 15 -> writer |> writer.kind.write_many() |> loop()
      n when n <= 60 -> writer |> writer.kind.read() |> loop()
      n when n <= 80 -> writer |> yield() |> loop()
      81 when writer.hibernate -> hibernate(writer)
      _ -> writer |> writer.kind.write_one() |> loop()
    end
  end

  # The message wakes it up at once, from a heap that has shrunk to what is alive.
  defp hibernate(writer) do
    send(self(), :wake_up)
    :erlang.hibernate(__MODULE__, :woken_up, [writer])
  end

  @doc false
  def woken_up(writer) do
    receive(do: (:wake_up -> loop(count(writer, :hibernations))))
  end

  # A writer's time slice is thousands of calls: partitions would seldom have their turn.
  defp yield(writer) do
    :erlang.yield()
    writer
  end

  @doc "Does a single write, until it is done."
  def single(writer, call, opts) do
    case writer.target.(call, opts) do
      :ok ->
        done(writer, elem(call, 0), 1)

      :refused ->
        Process.sleep(1)
        writer |> count(:refused) |> single(call, opts)
    end
  end

  @doc "Counts so many writes that were done by a call."
  def done(writer, call, writes), do: count(%{writer | left: writer.left - writes}, call, writes)

  @doc "Counts something else."
  def count(writer, what, by \\ 1), do: %{writer | counts: Map.update(writer.counts, what, by, &(&1 + by))}
end
