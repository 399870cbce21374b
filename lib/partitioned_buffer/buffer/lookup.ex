defmodule PartitionedBuffer.Buffer.Lookup do
  @moduledoc false
  # Finds a running buffer by its name: its run, its options and its supervisor.

  alias PartitionedBuffer.{Native, Options, Routing}

  @doc """
  The present run of a buffer. Raises if it is not running.
  """
  @spec run!(atom()) :: Native.run()
  def run!(buffer) do
    with :not_running <- Native.run(buffer), do: Routing.not_running!(buffer)
  end

  @doc """
  The options of a running buffer. Raises if it is not running.
  """
  @spec options!(atom()) :: Options.t()
  def options!(buffer) do
    case Native.options(run!(buffer)) do
      {_version, options} -> options
      # A newly opened buffer has no options yet.
      nothing when nothing in [nil, :not_running] -> Routing.not_running!(buffer)
    end
  end

  @doc """
  The supervisor of a buffer; nil if the buffer is not running.
  """
  @spec supervisor(atom()) :: pid() | nil
  def supervisor(buffer) do
    with :not_running <- Native.owner(buffer), do: nil
  end

  @doc """
  The buffer of a supervisor; nil if the process supervises no running buffer.
  """
  @spec buffer(pid()) :: atom() | nil
  def buffer(supervisor), do: Enum.find(Native.buffers(), &(Native.owner(&1) == supervisor))

  @doc """
  The names of all running buffers, sorted.
  """
  @spec buffers() :: [atom()]
  def buffers, do: Enum.sort(Native.buffers())

  @doc """
  Waits until the supervisor of a buffer restarts the processes that died before this call, or ends.
  Gives up at `until`, a time of the VM in milliseconds.
  """
  @spec await_restarts(atom(), {:abs, integer()} | :infinity) :: :ok | :timeout
  def await_restarts(buffer, until \\ :infinity) do
    timeout =
      case until do
        :infinity -> :infinity
        {:abs, time} -> max(time - System.monotonic_time(:millisecond), 0)
      end

    if supervisor = supervisor(buffer), do: GenServer.call(supervisor, :count_children, timeout)
    :ok
  catch
    :exit, {:timeout, _call} -> :timeout
    :exit, _ended -> :ok
  end
end
