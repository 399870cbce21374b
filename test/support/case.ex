defmodule PartitionedBuffer.Case do
  @moduledoc false
  # What the tests share: buffers under the test's supervisor, whose processor sends the batches to the test.

  use ExUnit.CaseTemplate

  # No test waits for an interval that it did not ask for.
  @never 86_400_000

  using do
    quote do
      import PartitionedBuffer.Case
      alias PartitionedBuffer.Map, as: Buffer
    end
  end

  def unique_name(prefix \\ "buffer"), do: :"#{prefix}_#{System.unique_integer([:positive])}"

  @doc "Starts a buffer; its batches come as `{:batch, batch}`."
  def start_buffer(opts \\ []) do
    test = self()

    opts =
      Keyword.merge(
        [
          name: unique_name(),
          processor: &send(test, {:batch, &1}),
          processing_interval_ms: @never,
          partitions: 2
        ],
        opts
      )

    {restart, opts} = Keyword.pop(opts, :restart, :temporary)
    {module, opts} = Keyword.pop(opts, :module, PartitionedBuffer.Map)
    start_supervised!(Supervisor.child_spec({module, opts}, restart: restart))
    opts[:name]
  end

  @doc "Lets all partitions flush now, as if their interval had passed, and waits until it has been processed."
  def flush(buffer) do
    for partition <- partitions(buffer) do
      %{timer: timer} = :sys.get_state(partition)
      send(partition, {:timeout, timer, :tick})
      wait_idle(partition)
    end

    :ok
  end

  @doc "Lets one partition flush now."
  def tick(partition) do
    %{timer: timer} = :sys.get_state(partition)
    send(partition, {:timeout, timer, :tick})
  end

  @doc "Waits until no task of the partition runs."
  def wait_idle(partition) do
    case :sys.get_state(partition) do
      %{running: nil} ->
        :ok

      %{running: %{pid: pid}} ->
        ref = Process.monitor(pid)

        receive do
          {:DOWN, ^ref, :process, _pid, _reason} -> wait_idle(partition)
        after
          5_000 -> raise "a task of #{inspect(partition)} is still running"
        end
    end
  end

  @doc "Kills processes, and waits until they are dead."
  def kill_processes(pids) do
    refs = Enum.map(pids, &Process.monitor/1)
    Enum.each(pids, &Process.exit(&1, :kill))

    for ref <- refs do
      receive do
        {:DOWN, ^ref, :process, _pid, _reason} -> :ok
      after
        5_000 -> raise "a process was not killed"
      end
    end
  end

  @doc "Kills a registered process and waits until its supervisor has started the next one."
  def kill_and_await_restart(name) do
    pid = Process.whereis(name)
    {:dictionary, dictionary} = Process.info(pid, :dictionary)
    [supervisor | _] = dictionary[:"$ancestors"]
    ref = Process.monitor(pid)
    Process.exit(pid, :kill)

    receive do
      {:DOWN, ^ref, :process, _pid, _reason} -> await_restart(supervisor, name)
    after
      5_000 -> raise "#{inspect(name)} was not killed"
    end
  end

  defp await_restart(supervisor, name) do
    # The supervisor handles the exit, which was sent to it before the message to us, before it answers.
    Supervisor.which_children(supervisor)
    Process.whereis(name) || raise "#{inspect(name)} was not restarted"
  end

  def partitions(buffer), do: PartitionedBuffer.Routing.partition_names(buffer)

  @doc "All batches that have come in, one after the other."
  def received_batches(batches \\ []) do
    receive do
      {:batch, batch} -> received_batches([batch | batches])
    after
      0 -> Enum.reverse(batches)
    end
  end

  @doc "All batches that have come in, as one list of entries."
  def received_entries, do: Enum.concat(received_batches())

  @doc "Sends the telemetry events of a buffer to the test as `{event, measurements, metadata}`, without their prefix."
  def attach_telemetry(buffer) do
    id = {buffer, self()}

    suffixes = [
      [:start],
      [:stop],
      [:processing_failed] | for(s <- [:start, :stop, :exception], do: [:processing, s])
    ]

    events = for suffix <- suffixes, do: [:partitioned_buffer, :partition | suffix]
    :telemetry.attach_many(id, events, &__MODULE__.forward_event/4, {self(), buffer})
    on_exit(fn -> :telemetry.detach(id) end)
  end

  def forward_event([:partitioned_buffer, :partition | suffix], measurements, metadata, {test, buffer}) do
    if metadata.buffer == buffer, do: send(test, {suffix, measurements, metadata})
  end
end
