defmodule PartitionedBuffer.Test.Cluster.Victims do
  @moduledoc false
  # Kills processes of the buffer at random. Runs on its node.

  alias PartitionedBuffer.Test.Cluster.{Gate, Host}

  @doc """
  Kills one process below the supervisor of the buffer, chosen at random, while no batch is on its
  way to the sink (`Gate`). Returns what it was, or `nil` if the buffer is restarting.
  """
  def kill_one do
    # Looks for processes before the gate closes: a supervisor cannot answer while it waits for a task.
    processes =
      Enum.flat_map(children(Host.supervisor()), fn {_id, buffer, _type, _modules} -> below(buffer) end)

    if processes != [], do: processes |> Enum.random() |> kill()
  end

  # It may have ended in the meantime.
  defp kill({id, pid}) do
    Gate.quietly(fn -> Process.exit(pid, :kill) end)
    id
  end

  # All descendants of a supervisor, each with its id, or that of its supervisor.
  defp below(supervisor) do
    for {id, pid, type, _modules} <- children(supervisor),
        is_pid(pid),
        found <- [{id, pid} | under(type, id, pid)],
        do: found
  end

  defp under(:worker, _id, _pid), do: []

  defp under(:supervisor, id, pid) do
    for {child, pid} <- below(pid), do: {if(child == :undefined, do: {:task_of, id}, else: child), pid}
  end

  defp children(supervisor) do
    Supervisor.which_children(supervisor)
  catch
    :exit, _restarting -> []
  end
end
