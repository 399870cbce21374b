defmodule Bench.Cpu do
  @moduledoc """
  The processor time of the threads of an operating system's process, in nanoseconds, as Linux counts it. Unlike the time
  on a clock it leaves out most of what else the machine does.
  """

  @doc "Of the threads of this VM or of another process."
  def ns(who \\ :all, pid \\ "self") do
    for task <- tasks(pid),
        {name, ns} <- [thread(pid, task)],
        of?(who, name),
        reduce: 0,
        do: (sum -> sum + ns)
  end

  @doc "What a function takes on these threads, and its result."
  def of(who, pid \\ "self", function) do
    from = ns(who, pid)
    result = function.()
    {ns(who, pid) - from, result}
  end

  defp tasks(pid) do
    case File.ls("/proc/#{pid}/task") do
      {:ok, tasks} -> tasks
      {:error, _ended} -> []
    end
  end

  # A thread may end meanwhile.
  defp thread(pid, task) do
    with {:ok, name} <- File.read("/proc/#{pid}/task/#{task}/comm"),
         {:ok, times} <- File.read("/proc/#{pid}/task/#{task}/schedstat") do
      [ns | _waits] = String.split(times)
      {String.trim(name), String.to_integer(ns)}
    else
      {:error, _ended} -> {"", 0}
    end
  end

  defp of?(:all, _name), do: true
  # OTP 25 and before, then those after it.
  defp of?(:schedulers, name), do: name =~ ~r/^(\d+_scheduler|erts_sched_\d+)$/
  defp of?(:journal, name), do: name =~ ~r/^pb_journal/
end
