defmodule PartitionedBuffer.Supervisor do
  @moduledoc false
  # The processes of one buffer. For each partition a task supervisor and the partition itself, and a drainer as the first
  # and as the last:
  #
  #     name.Supervisor
  #     ├── PartitionedBuffer.Drainer
  #     ├── name.0.TaskSupervisor   the processor is called here
  #     ├── name.0                  PartitionedBuffer.Partition
  #     ├── name.1.TaskSupervisor
  #     ├── name.1
  #     └── PartitionedBuffer.Drainer
  #
  # The native buffer runs as long as this process lives. What a crash of all of it leaves unprocessed is found by the next
  # supervisor of the same name.

  use Supervisor

  alias PartitionedBuffer.{Drainer, Identity, Native, Options, Partition}

  @spec start_link(Options.t()) :: Supervisor.on_start()
  def start_link(%Options{} = options) do
    Supervisor.start_link(__MODULE__, options, name: name(options.name))
  end

  @doc """
  The name of a buffer's supervisor.
  """
  @spec name(atom()) :: atom()
  def name(buffer), do: Module.concat(buffer, Supervisor)

  @impl Supervisor
  def init(%Options{name: buffer, partitions: partitions} = options) do
    Native.hold()
    Native.open(buffer, Options.kind(options), partitions)
    # Here, not in the partitions, so that updated options outlive a partition.
    settings = :ets.new(:partitioned_buffer_settings, [:public, read_concurrency: true])
    :ets.insert(settings, {:options, options})

    partitions = for number <- 0..(partitions - 1)//1, do: Identity.new(buffer, number, settings)

    children =
      for partition <- partitions, child <- [task_supervisor(partition), {Partition, partition}], do: child

    first = Supervisor.child_spec({Drainer, partitions}, id: {Drainer, :first})
    Supervisor.init([first] ++ children ++ [{Drainer, partitions}], strategy: :one_for_one)
  end

  defp task_supervisor(%Identity{buffer: buffer, number: number}) do
    Supervisor.child_spec({Task.Supervisor, name: Partition.task_supervisor(buffer, number)},
      id: {Task.Supervisor, number}
    )
  end
end
