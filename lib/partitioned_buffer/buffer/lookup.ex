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
  The process that opened a buffer; nil if the buffer is not running.
  """
  @spec owner(atom()) :: pid() | nil
  def owner(buffer) do
    with :not_running <- Native.owner(buffer), do: nil
  end

  @doc """
  The supervisor of all processes of a buffer; nil if the buffer is not running. Of a buffer of several
  nodes this is not the owner.
  """
  @spec supervisor(atom()) :: pid() | nil
  def supervisor(buffer) do
    if owner = owner(buffer),
      do: (cluster?(buffer) && Process.whereis(Routing.cluster_name(buffer))) || owner
  end

  @doc """
  Whether a buffer runs on several nodes.
  """
  @spec cluster?(atom()) :: boolean()
  def cluster?(buffer) do
    with run when run != :not_running <- Native.run(buffer),
         {_version, %Options{cluster: cluster}} <- Native.options(run) do
      cluster != nil
    else
      _over -> false
    end
  end

  @doc """
  The buffer of a supervisor; nil if the process supervises no running buffer.
  """
  @spec buffer(pid()) :: atom() | nil
  def buffer(supervisor), do: Enum.find(Native.buffers(), &(supervisor(&1) == supervisor))

  @doc """
  The names of all running buffers, sorted. Of a buffer of several nodes only one stage has its name.
  """
  @spec buffers() :: [atom()]
  def buffers do
    buffers = Native.buffers()
    owning = for buffer <- buffers, cluster?(buffer), do: Routing.owning_name(buffer)
    Enum.sort(buffers -- owning)
  end

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

    if supervisor = owner(buffer), do: GenServer.call(supervisor, :count_children, timeout)
    :ok
  catch
    :exit, {:timeout, _call} -> :timeout
    :exit, _ended -> :ok
  end
end
