defmodule PartitionedBuffer.Buffer.StopLog do
  @moduledoc false
  # Logs the progress of a stop with entries: its beginning, every 10 seconds how many entries are
  # left, and its end. A process waits for the next line, since the stop waits for passes.

  alias PartitionedBuffer.{Emitter, Options, Ref}

  @every_ms 10_000

  @typedoc "What becomes of the entries that a stop leaves; with a reason if the journal fails."
  @type fate() :: :keep | :lost | :journal | {:keep | :lost, reason :: atom()}

  @typedoc "How many entries a stop gave up, how many it left, and what becomes of these."
  @type result() :: {given_up :: non_neg_integer(), left :: non_neg_integer(), fate()}

  @doc """
  Begins the log of a stop. The process is linked to the caller.
  """
  @spec start_link([Ref.t()]) :: pid()
  def start_link([%Ref{} = first | _] = partitions) do
    {held, began} = {Ref.held_by_all(partitions), System.monotonic_time(:millisecond)}
    if held > 0, do: log(:info, first, "is stopping with #{held} entries; #{longest(Ref.options(first))}")
    spawn_link(fn -> wait(partitions, began, held > 0) end)
  end

  @doc """
  Ends the log.
  """
  @spec stop(pid(), result()) :: :ok
  def stop(pid, result) do
    ref = Process.monitor(pid)
    send(pid, {:stopped, result})

    receive do
      {:DOWN, ^ref, :process, ^pid, _reason} -> :ok
    end
  end

  defp wait([first | _] = partitions, began, told?) do
    receive do
      {:stopped, {given_up, left, fate}} ->
        if told? or given_up > 0 or left > 0, do: log_end(first, passed(began), given_up, left, fate)
    after
      @every_ms ->
        {seconds, held} = {div(passed(began), 1_000), Ref.held_by_all(partitions)}
        log(:warning, first, "is still stopping after #{seconds} s: #{held} entries are left")
        wait(partitions, began, true)
    end
  end

  defp longest(%Options{drain_timeout_ms: limit, dead_letter?: dead_letter?}) do
    time = if limit == :infinity, do: "this has no time limit", else: "this may take up to #{limit} ms"
    if dead_letter?, do: time <> ", and calls of :dead_letter come on top", else: time
  end

  defp longest(nil), do: "its run is over"

  defp log_end(first, ms, given_up, left, fate) do
    lost? = left > 0 and fate != :journal
    level = if lost?, do: :error, else: if(given_up > 0, do: :warning, else: :info)
    log(level, first, "stopped after #{ms} ms: " <> result(given_up, left, fate))
  end

  defp result(0, 0, _fate), do: "no entries are left"
  defp result(given_up, 0, _fate), do: "it gave up #{given_up} entries"
  defp result(0, left, :keep), do: "#{left} entries are kept until a buffer of this name and kind starts"
  defp result(0, left, :journal), do: "#{left} entries are in the journal, for the next start"
  defp result(0, left, :lost), do: "#{left} entries are lost with this VM"

  defp result(0, left, {:lost, reason}),
    do: "#{left} entries are left, and may be lost with this VM: its journal fails (#{reason})"

  defp result(0, left, {:keep, reason}),
    do: "#{result(0, left, :keep)}, in memory only: its journal fails (#{reason})"

  defp result(given_up, left, fate), do: result(given_up, 0, fate) <> ", and " <> result(0, left, fate)

  defp log(level, %Ref{run: run, buffer: buffer}, text),
    do: Emitter.log(run, level, "buffer #{inspect(buffer)} #{text}", buffer: buffer)

  defp passed(began), do: System.monotonic_time(:millisecond) - began
end
