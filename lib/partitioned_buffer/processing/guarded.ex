defmodule PartitionedBuffer.Processing.Guarded do
  @moduledoc false
  # Calls a function of the user that is not the processor, in a separate process with a time limit.
  # Whatever the function does, the task goes on.

  alias PartitionedBuffer.{Native, Options}
  alias PartitionedBuffer.Processing.{Job, ReasonText}

  # The time limit. It is below that of a call of the processor, whose timer starts again with the
  # function.
  @limit_ms 5_000

  @doc """
  The result of a function, or a sentence that says why it has none.
  """
  @spec call(Job.t(), (... -> any()) | {module(), atom(), list()}, list()) ::
          {:ok, any()} | {:error, String.t()}
  def call(%Job{} = job, function, arguments) do
    Native.touch(job.flush)
    {task, callers, limit} = {self(), [self() | Process.get(:"$callers", [])], limit(job.options)}
    tag = make_ref()

    {pid, monitor} =
      spawn_monitor(fn ->
        end_with(task)
        Process.put(:"$callers", callers)
        exit({tag, attempt(function, arguments)})
      end)

    receive do
      {:DOWN, ^monitor, :process, ^pid, {^tag, result}} -> result
      {:DOWN, ^monitor, :process, ^pid, reason} -> {:error, "it ended: #{ReasonText.text(reason)}"}
    after
      limit ->
        Process.exit(pid, :kill)
        receive do: ({:DOWN, ^monitor, :process, ^pid, _reason} -> :ok)
        {:error, "it took longer than #{limit} ms"}
    end
  end

  # The process does not outlive a killed task. A link would also end the task with the process.
  defp end_with(task) do
    caller = self()

    spawn(fn ->
      for pid <- [task, caller], do: Process.monitor(pid)
      receive do: ({:DOWN, _ref, :process, _pid, _reason} -> Process.exit(caller, :kill))
    end)
  end

  defp attempt(function, arguments) do
    {:ok, Job.call(function, arguments)}
  catch
    kind, reason -> {:error, ReasonText.text(ReasonText.new(kind, reason, __STACKTRACE__))}
  end

  defp limit(%Options{processing_timeout_ms: :infinity}), do: @limit_ms

  # Without outcomes no call is limited but those of a stop, which have this time at least.
  defp limit(%Options{processing_timeout_ms: ms} = options) do
    ms = if Options.outcomes?(options), do: ms, else: max(ms, @limit_ms)
    min(div(ms, 2), @limit_ms)
  end
end
