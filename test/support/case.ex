defmodule PartitionedBuffer.Case do
  @moduledoc false
  # The common parts of the tests: buffers, their flushes and batches, deaths of their processes,
  # and their telemetry events.

  use ExUnit.CaseTemplate

  # In milliseconds. Each test chooses the intervals that it waits for.
  @never 86_400_000

  using do
    quote do
      import PartitionedBuffer.Case
      alias PartitionedBuffer.Map, as: Buffer
    end
  end

  def unique_name(prefix \\ "buffer"), do: :"#{prefix}_#{System.unique_integer([:positive])}"

  ## Buffers

  @doc """
  The options of a buffer that flushes on request only, and sends each batch as `{:batch, batch}`.
  """
  def buffer_options(opts \\ []) do
    test = self()

    defaults = [
      name: unique_name(),
      processor: &send(test, {:batch, &1}),
      processing_interval_ms: @never,
      partitions: 2
    ]

    Keyword.merge(defaults, opts)
  end

  @doc "Starts a buffer with `buffer_options/1` under the test's supervisor, and returns its name."
  def start_buffer(opts \\ []) do
    {restart, opts} = opts |> buffer_options() |> Keyword.pop(:restart, :temporary)
    {module, opts} = Keyword.pop(opts, :module, PartitionedBuffer.Map)
    start_supervised!(Supervisor.child_spec({module, opts}, restart: restart))
    opts[:name]
  end

  def partitions(buffer), do: PartitionedBuffer.Routing.partition_names(buffer)

  @doc "A partition key that routes to the partition with this number."
  def partition_key_of(number, partition_count),
    do: Enum.find(1..1_000, &(:erlang.phash2(&1, partition_count) == number))

  ## Flushes

  @doc "Lets all partitions flush, one after the other, and waits until their tasks ended."
  def flush(buffer) do
    for partition <- partitions(buffer) do
      tick(partition)
      wait_idle(partition)
    end

    :ok
  end

  @doc "Lets a partition flush as if its interval were over."
  def tick(partition), do: PartitionedBuffer.Partition.Server.tick(partition)

  @doc "Waits until the partitions have the options of the last update."
  def await_options(buffer), do: Enum.each(partitions(buffer), &PartitionedBuffer.Partition.Server.task/1)

  @doc "Waits until no task of the partition runs."
  def wait_idle(partition) do
    if pid = PartitionedBuffer.Partition.Server.task(partition) do
      await_down(Process.monitor(pid))
      wait_idle(partition)
    else
      :ok
    end
  end

  @doc "The reference to a partition of a running buffer."
  def ref(buffer, number \\ 0), do: PartitionedBuffer.Ref.new(run(buffer), buffer, number)

  @doc "The present run of a buffer."
  def run(buffer), do: PartitionedBuffer.Native.run(buffer)

  @doc "The present options of a buffer."
  def options(buffer), do: PartitionedBuffer.Buffer.Lookup.options!(buffer)

  @doc "The lessons of a partition from failures."
  def learned(buffer, number \\ 0) do
    {failures, _failing_ms, pause_ms, failed} = PartitionedBuffer.Native.learned(run(buffer), number)
    %{failures: failures, pause_ms: pause_ms, failed: failed}
  end

  @doc "The work of a task with a flush, with other options and functions than those of the buffer."
  def job(buffer, flush, opts, fields \\ []) do
    {functions, options} = Keyword.split(opts, [:processor, :dead_letter])

    struct!(
      PartitionedBuffer.Processing.Job,
      [
        ref: ref(buffer),
        flush: flush,
        options: struct!(options(buffer), options),
        functions: struct!(PartitionedBuffer.Ref.functions(ref(buffer)), functions),
        trigger: :interval
      ] ++ fields
    )
  end

  @doc "The task supervisor of a partition."
  def task_supervisor(buffer, number), do: PartitionedBuffer.Native.process(run(buffer), number, :tasks)

  ## Batches

  @doc "All batches that the test received."
  def received_batches(batches \\ []) do
    receive do
      {:batch, batch} -> received_batches([batch | batches])
    after
      0 -> Enum.reverse(batches)
    end
  end

  @doc "All entries that the test received, as one list."
  def received_entries, do: Enum.concat(received_batches())

  @doc "The keys of entries, sorted, since a flush of a map promises no order."
  def keys(entries), do: entries |> Enum.map(&elem(&1, 0)) |> Enum.sort()

  @doc """
  A processor that sends `{:asked, pid, batch}` to the test, and obeys the answer to that pid.
  """
  def asking_processor do
    test = self()

    fn batch ->
      send(test, {:asked, self(), batch})

      receive do
        :return -> :ok
        {:return, value} -> value
        {:raise, message} -> raise message
        {:throw, value} -> throw(value)
        {:exit, reason} -> exit(reason)
      end
    end
  end

  @doc """
  Answers the next question of `asking_processor/0`; returns its batch, and a monitor of its
  process.
  """
  def answer(answer) do
    assert_receive {:asked, pid, batch}
    ref = Process.monitor(pid)
    if answer == :kill, do: Process.exit(pid, :kill), else: send(pid, answer)
    {batch, ref}
  end

  ## Deaths

  @doc "Kills processes, and waits until they are dead."
  def kill_processes(pids) do
    refs = Enum.map(pids, &Process.monitor/1)
    Enum.each(pids, &Process.exit(&1, :kill))
    Enum.each(refs, &await_down/1)
  end

  @doc "Kills a buffer's supervisor together with its children, and waits until they are dead."
  def kill_tree(buffer) do
    supervisor = PartitionedBuffer.Buffer.Lookup.supervisor(buffer)
    children = for {_id, pid, _type, _modules} <- Supervisor.which_children(supervisor), do: pid
    kill_processes([supervisor | children])
  end

  @doc "Kills a process of a buffer, and waits until its supervisor started the next one."
  def kill_and_await_restart(name) when is_atom(name) do
    kill_and_await_restart(Process.whereis(name))
    Process.whereis(name) || raise "#{inspect(name)} was not restarted"
  end

  def kill_and_await_restart(pid) when is_pid(pid) do
    {:dictionary, dictionary} = Process.info(pid, :dictionary)
    [supervisor | _] = dictionary[:"$ancestors"]
    kill_processes([pid])

    # The supervisor handles the exit before it answers: the exit signal came before our message.
    Supervisor.which_children(supervisor)
    :ok
  end

  defp await_down(ref) do
    receive do
      {:DOWN, ^ref, :process, _pid, _reason} -> :ok
    after
      10_000 -> raise "a process is still alive"
    end
  end

  ## Telemetry

  @doc """
  Sends the telemetry events of a buffer to the test as `{event, measurements, metadata}`, without
  prefix.
  """
  def attach_telemetry(buffer) do
    id = {buffer, self()}
    spans = for span <- [:processing, :batch], suffix <- [:start, :stop, :exception], do: [span, suffix]
    suffixes = [[:start], [:stop], [:processing_failed], [:split], [:retry], [:dead_letter] | spans]
    events = for suffix <- suffixes, do: [:partitioned_buffer, :partition | suffix]
    :telemetry.attach_many(id, events, &__MODULE__.forward_event/4, {self(), buffer})
    on_exit(fn -> :telemetry.detach(id) end)
  end

  @doc "Waits until the handlers saw all events and log lines of the partitions and drainers so far."
  def await_events(buffer), do: PartitionedBuffer.Emitter.await(run(buffer))

  def forward_event([:partitioned_buffer, :partition | suffix], measurements, metadata, {test, buffer}) do
    if metadata.buffer == buffer, do: send(test, {suffix, measurements, metadata})
  end
end
