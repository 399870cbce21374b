defmodule PartitionedBuffer.Case do
  @moduledoc false
  # What the tests share: buffers, their flushes and batches, deaths of their processes, and their telemetry events.

  use ExUnit.CaseTemplate

  # In milliseconds. No test waits for an interval that it did not ask for.
  @never 86_400_000

  using do
    quote do
      import PartitionedBuffer.Case
      alias PartitionedBuffer.Map, as: Buffer
    end
  end

  def unique_name(prefix \\ "buffer"), do: :"#{prefix}_#{System.unique_integer([:positive])}"

  ## Buffers

  @doc "The options of a buffer that flushes only when it is told to, and sends each batch to the test as `{:batch, batch}`."
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

  @doc "Lets all partitions flush, one after the other, and waits until their tasks have ended."
  def flush(buffer) do
    for partition <- partitions(buffer) do
      tick(partition)
      wait_idle(partition)
    end

    :ok
  end

  @doc "Lets a partition flush as if its interval had passed."
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
        await_down(Process.monitor(pid))
        wait_idle(partition)
    end
  end

  @doc "The identity of the only partition of a buffer, with options of its own."
  def identity(buffer, opts) do
    options = struct!(PartitionedBuffer.Options, [name: buffer, module: PartitionedBuffer.Map] ++ opts)
    settings = :ets.new(:settings, [:public])
    :ets.insert(settings, {:options, options})
    PartitionedBuffer.Identity.new(buffer, 0, settings)
  end

  ## Batches

  @doc "All batches that the test has received."
  def received_batches(batches \\ []) do
    receive do
      {:batch, batch} -> received_batches([batch | batches])
    after
      0 -> Enum.reverse(batches)
    end
  end

  @doc "All entries that the test has received, as one list."
  def received_entries, do: Enum.concat(received_batches())

  @doc "The keys of entries, sorted, since a flush of a map promises no order."
  def keys(entries), do: entries |> Enum.map(&elem(&1, 0)) |> Enum.sort()

  @doc "A processor that sends `{:asked, pid, batch}` to the test, and does what the test answers to that pid."
  def asking_processor do
    test = self()

    fn batch ->
      send(test, {:asked, self(), batch})

      receive do
        :return -> :ok
        {:raise, message} -> raise message
        {:throw, value} -> throw(value)
        {:exit, reason} -> exit(reason)
      end
    end
  end

  @doc "Answers the next question of `asking_processor/0`; returns its batch, and a monitor of its process."
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
    supervisor = PartitionedBuffer.Supervisor.whereis(buffer)
    children = for {_id, pid, _type, _modules} <- Supervisor.which_children(supervisor), do: pid
    kill_processes([supervisor | children])
  end

  @doc "Kills a registered process, and waits until its supervisor has started the next one."
  def kill_and_await_restart(name) do
    pid = Process.whereis(name)
    {:dictionary, dictionary} = Process.info(pid, :dictionary)
    [supervisor | _] = dictionary[:"$ancestors"]
    kill_processes([pid])

    # The supervisor handles the exit before it answers: the exit was sent to it before the monitor's message to us.
    Supervisor.which_children(supervisor)
    Process.whereis(name) || raise "#{inspect(name)} was not restarted"
  end

  defp await_down(ref) do
    receive do
      {:DOWN, ^ref, :process, _pid, _reason} -> :ok
    after
      10_000 -> raise "a process is still alive"
    end
  end

  ## Telemetry

  @doc "Sends the telemetry events of a buffer to the test as `{event, measurements, metadata}`, without their prefix."
  def attach_telemetry(buffer) do
    id = {buffer, self()}
    spans = for span <- [:processing, :batch], suffix <- [:start, :stop, :exception], do: [span, suffix]
    suffixes = [[:start], [:stop], [:processing_failed], [:retry], [:dead_letter] | spans]
    events = for suffix <- suffixes, do: [:partitioned_buffer, :partition | suffix]
    :telemetry.attach_many(id, events, &__MODULE__.forward_event/4, {self(), buffer})
    on_exit(fn -> :telemetry.detach(id) end)
  end

  def forward_event([:partitioned_buffer, :partition | suffix], measurements, metadata, {test, buffer}) do
    if metadata.buffer == buffer, do: send(test, {suffix, measurements, metadata})
  end
end
