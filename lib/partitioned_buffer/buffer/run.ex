defmodule PartitionedBuffer.Buffer.Run do
  @moduledoc false
  # Begins a run of a buffer, which lasts as long as the calling process.

  alias PartitionedBuffer.Buffer.Journaling
  alias PartitionedBuffer.{Emitter, Native, Options, Ref, Routing}
  alias PartitionedBuffer.Partition.Runner

  # The time, in milliseconds, that a start waits for the ending processes of the last run, and for
  # its emitter, which may hang in a handler.
  @former_ms 5_000
  @emitter_ms 1_000

  @doc """
  Ends the processes of the last run. Those of a killed supervisor may still run: the VM frees a
  name before it reports a death.

  The new partitions need the names of the old ones. With outcomes, the batch of a task is retried,
  so the task must end; without outcomes, the task finds no other batch.
  """
  @spec end_former(Options.t()) :: :ok
  def end_former(%Options{name: buffer, partitions: count} = options) do
    Native.hold()
    Native.end_run(buffer)
    {outcomes?, left} = Native.left(buffer)
    # The VM may have given the pid of a dead process to another one, so a process is also known by
    # its name, or by the buffer of its task.
    tasks = for {:task, pid} <- left, Runner.task_of?(pid, buffer), do: pid
    if outcomes? or Options.outcomes?(options), do: await_ends(tasks, 0)
    servers = MapSet.new(for {:server, pid} <- left, do: pid)

    await_ends(
      for(
        number <- 0..(count - 1)//1,
        pid = Process.whereis(Routing.partition_name(buffer, number)),
        pid in servers,
        do: pid
      ),
      @former_ms
    )

    # The partitions sent their last events.
    emitters = for {:events, pid} <- left, Emitter.emitter_of?(pid, buffer), do: pid
    Enum.each(emitters, &Emitter.finish/1)
    await_ends(emitters, @emitter_ms)
  end

  # Kills the processes that do not end within `ms` milliseconds.
  defp await_ends(pids, ms) do
    until = System.monotonic_time(:millisecond) + ms
    for {pid, ref} <- Enum.map(pids, &{&1, Process.monitor(&1)}), do: await_end(pid, ref, until)
    :ok
  end

  defp await_end(pid, ref, until) do
    receive do
      {:DOWN, ^ref, :process, ^pid, _reason} -> :ok
    after
      max(until - System.monotonic_time(:millisecond), 0) ->
        Process.exit(pid, :kill)
        receive do: ({:DOWN, ^ref, :process, ^pid, _reason} -> :ok)
    end
  end

  @doc """
  Begins a run, and returns its partitions, and what its journal replayed. Exits if the journal cannot be
  used.
  """
  @spec open(Options.t(), Options.Functions.t()) :: {Native.run(), [Ref.t()], Journaling.replay() | nil}
  def open(%Options{name: buffer, partitions: count} = options, %Options.Functions{} = functions) do
    {outcomes?, strict?} = {Options.outcomes?(options), options.order == :strict}
    versions = options.versions || :any
    replay = Journaling.open!(options)
    run = Native.open(buffer, options.kind, count, outcomes?, strict?, versions, Options.bound(options))
    if options.cluster, do: Native.collect(run)
    Native.put_options(run, 0, options, functions)
    {run, for(number <- 0..(count - 1)//1, do: Ref.new(run, buffer, number)), replay}
  end
end
