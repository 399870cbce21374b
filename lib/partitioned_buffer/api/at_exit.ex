defmodule PartitionedBuffer.API.AtExit do
  @moduledoc false
  # The end of a script, a Mix task or `bin/my_app eval`. Each halts the VM, which stops no application
  # and loses all entries. So a hook stops what holds entries: first the buffers of no application, then
  # the VM, whose applications drain theirs as in any stop.
  #
  # `System.halt/1` calls no hook. Tests call hooks, but their entries are no data, and the sink is gone
  # with the test that owns it.

  alias PartitionedBuffer.Buffer.{Lookup, Supervisor}
  alias PartitionedBuffer.{Library, Native, Routing}

  @doc """
  Adds the hook, once in this VM.
  """
  @spec register() :: :ok
  def register do
    if :persistent_term.get(__MODULE__, nil) == nil and Process.whereis(:elixir_config) != nil do
      :persistent_term.put(__MODULE__, true)
      System.at_exit(&run/1)
    end

    :ok
  end

  defp run(status) do
    if Library.used?() and Process.whereis(ExUnit.Server) == nil do
      supervisors = for buffer <- Lookup.buffers(), holds?(buffer), do: Lookup.supervisor(buffer)
      {owned, others} = supervisors |> Enum.reject(&is_nil/1) |> Enum.split_with(&owned?/1)
      stop(others)
      if owned != [], do: stop_vm(status)
    end
  end

  defp holds?(buffer) do
    stages = if Lookup.cluster?(buffer), do: [buffer, Routing.owning_name(buffer)], else: [buffer]
    Enum.any?(stages, &(held(&1) > 0))
  end

  defp held(buffer) do
    with run when run != :not_running <- Native.run(buffer),
         count when is_integer(count) <- Native.partition_count(buffer) do
      Enum.sum(
        for(partition <- 0..(count - 1)//1, held = Native.held(run, partition), is_integer(held), do: held)
      )
    else
      _over -> 0
    end
  end

  defp owned?(supervisor), do: match?({:ok, _application}, :application.get_application(supervisor))

  # All know that no later start finds their entries, also those that end with their parent.
  defp stop(supervisors) do
    Enum.each(supervisors, &Supervisor.note_stop(&1, :dead_letter))
    monitors = for supervisor <- supervisors, do: spawn_monitor(fn -> stop_one(supervisor) end)
    for {pid, ref} <- monitors, do: receive(do: ({:DOWN, ^ref, :process, ^pid, _reason} -> :ok))
  end

  defp stop_one(supervisor) do
    Supervisor.stop(supervisor, :normal, :infinity, leftovers: :dead_letter)
  catch
    :exit, _ended -> :ok
  end

  @spec stop_vm(non_neg_integer()) :: no_return()
  defp stop_vm(status) do
    System.stop(status)
    Process.sleep(:infinity)
  end
end
