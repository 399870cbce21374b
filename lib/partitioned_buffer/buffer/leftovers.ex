defmodule PartitionedBuffer.Buffer.Leftovers do
  @moduledoc false
  # Takes care of the entries that stopped buffers keep, when the application of this package stops:
  # after the applications that use it, so most likely together with the VM. Such entries wait for a
  # start that no longer comes. For example, an application whose supervisor gave up takes its VM
  # down, but the buffer ended before the VM began to stop.
  #
  # The native run has the options and functions of these buffers, so no process must survive for
  # this. The work is done in one process for each name. It has the name of the buffer's supervisor:
  # a buffer that runs or starts is left alone, and no buffer starts during the work. The end of the
  # VM waits for it, so log handlers run elsewhere, with a time limit.

  alias PartitionedBuffer.Buffer.Run
  alias PartitionedBuffer.{Emitter, Library, Native, Options, Ref, Routing}
  alias PartitionedBuffer.Partition.Drain

  @doc """
  Gives all kept entries to the `:dead_letter` of their buffers, and logs lost ones.
  """
  @spec give_up() :: :ok
  def give_up do
    names =
      if Library.used?(), do: for({buffer, _, _, _} <- Native.leftovers(), uniq: true, do: buffer), else: []

    in_parallel(names, &give_up/1)
  end

  defp give_up(buffer) do
    if named?(buffer) do
      for {^buffer, kind, _count, _held} <- Native.leftovers() do
        give_up(buffer, kind)
        # The leftovers of another kind come next.
        Native.end_run(buffer)
      end
    end
  end

  defp named?(buffer) do
    Process.register(self(), Routing.supervisor_name(buffer))
  rescue
    ArgumentError -> false
  end

  # Read again, since the buffer may have run before this process had its name.
  defp give_up(buffer, kind) do
    with {_buffer, _kind, count, held} <- Enum.find(Native.leftovers(), &match?({^buffer, ^kind, _, _}, &1)) do
      case Native.left_terms(buffer, kind) do
        # The next VM has them.
        {%Options{journal: %{}}, _functions} ->
          :ok

        {%Options{dead_letter?: true} = options, functions} ->
          left = bury(%Options{options | partitions: count}, functions)
          report(buffer, max(held - left, 0), left)

        _without_dead_letter ->
          report(buffer, 0, held)
      end
    end
  end

  defp bury(options, functions) do
    Run.end_former(options)
    {run, partitions, _replay} = Run.open(options, functions)
    {:ok, emitter} = Emitter.start({run, options.name})
    in_parallel(partitions, &Drain.bury/1)
    Emitter.stop(emitter)
    Ref.held_by_all(partitions)
  end

  defp report(buffer, given_up, 0) do
    Emitter.log_alone(
      :warning,
      "buffer #{inspect(buffer)} no longer runs and gave up its #{given_up} entries",
      buffer: buffer
    )
  end

  defp report(buffer, given_up, lost) do
    Emitter.log_alone(
      :error,
      "buffer #{inspect(buffer)} no longer runs: it gave up #{given_up} entries, and #{lost} are lost with this VM",
      buffer: buffer
    )
  end

  # A process that fails fails alone.
  defp in_parallel(items, fun) do
    monitors = for item <- items, do: spawn_monitor(fn -> fun.(item) end)
    for {_pid, ref} <- monitors, do: receive(do: ({:DOWN, ^ref, :process, _dead, _reason} -> :ok))
    :ok
  end
end
