defmodule PartitionedBuffer.StartTest do
  # Starting a buffer: child specifications, names, and what the name's last buffer has left. Options are in OptionsTest.
  use PartitionedBuffer.Case, async: true

  alias PartitionedBuffer.Buffer.Lookup
  alias PartitionedBuffer.{Queue, Routing}

  defmodule HalfWay do
    @moduledoc false
    use Supervisor

    @impl Supervisor
    def init({options, _functions} = init) do
      {:ok, {flags, children}} = PartitionedBuffer.Buffer.Supervisor.init(init)
      last = {PartitionedBuffer.Partition.Server, options.partitions - 1}
      {:ok, {flags, Enum.map(children, &if(&1.id == last, do: refuse(&1), else: &1))}}
    end

    def refuse(child) when is_map(child), do: %{child | start: {__MODULE__, :refuse, []}}
    def refuse, do: {:error, :refused}
  end

  @moduletag :capture_log

  describe "child_spec/1" do
    @modules [PartitionedBuffer, PartitionedBuffer.Map, PartitionedBuffer.Queue]

    test "has the buffer's name or else the module as its id, checks no options" do
      for module <- @modules, name <- [:users, MyApp.Users] do
        opts = [name: name, processor: :none]
        spec = %{id: name, start: {module, :start_link, [opts]}, type: :supervisor}
        assert module.child_spec(opts) == spec
      end

      for module <- @modules, opts <- [[], [partitions: -1], [name: nil], :users, %{name: :users}, nil] do
        spec = %{id: module, start: {module, :start_link, [opts]}, type: :supervisor}
        assert module.child_spec(opts) == spec
      end
    end

    test "lets the supervisor that starts it fail if the options are invalid" do
      supervisor = start_supervised!({DynamicSupervisor, strategy: :one_for_one})

      for module <- @modules,
          {opts, message} <- [
            {[], ~r/required option :name of a buffer is missing: expected an atom/},
            {[name: :no_good], ~r/required option :processor of buffer :no_good is missing/},
            {:no_good, ~r/the options of a buffer must be a keyword list, got: :no_good/}
          ] do
        assert {:error, {%ArgumentError{message: raised}, [_ | _]}} =
                 DynamicSupervisor.start_child(supervisor, {module, opts})

        assert raised =~ message
      end

      Process.flag(:trap_exit, true)

      assert {:error, {:shutdown, {:failed_to_start_child, :no_good, {:EXIT, {%ArgumentError{}, _}}}}} =
               Supervisor.start_link([{Buffer, name: :no_good}], strategy: :one_for_one)
    end

    test "may be completed before it is started" do
      name = unique_name()
      %{start: {module, function, [opts]}} = spec = Buffer.child_spec(name: name)
      opts = [processor: &Function.identity/1] ++ opts
      start_supervised!(%{spec | start: {module, function, [opts]}})
      assert Buffer.size(name) == 0
    end
  end

  describe "start_link/1" do
    test "starts no second buffer of the same name" do
      name = unique_name()
      opts = [name: name, processor: &Function.identity/1]
      {:ok, pid} = Buffer.start_link(opts)
      Buffer.put(name, 1, 1)
      assert Buffer.start_link(opts) == {:error, {:already_started, pid}}
      assert Buffer.get(name, 1) == 1
      assert Process.whereis(Module.concat(name, Supervisor)) == pid
    end

    test "calls no processor if it fails half way, and leaves all entries" do
      for outcomes <- [[], [max_attempts: 3]] do
        opts = buffer_options([partitions: 2] ++ outcomes)
        buffer = start_buffer(opts)
        for n <- 0..1, do: Buffer.put(buffer, n, n, partition_key: partition_key_of(n, 2))
        kill_tree(buffer)

        Process.flag(:trap_exit, true)
        assert {:error, {:shutdown, {:failed_to_start_child, _id, reason}}} = start_half_way(opts)
        assert reason == :refused
        refute_received {:batch, _batch}

        start_buffer(opts)
        assert Buffer.stop(buffer) == :ok
        assert keys(received_entries()) == [0, 1]
      end
    end

    test "leaves the entries of a partition that it could not start" do
      buffer = start_buffer(partitions: 2)
      Buffer.put(buffer, :left, 1, partition_key: partition_key_of(1, 2))
      kill_tree(buffer)

      # A task of the killed tree may still work.
      name_of_second = Routing.partition_name(buffer, 1)
      Process.register(self(), name_of_second)
      Process.flag(:trap_exit, true)
      opts = buffer_options(name: buffer, partitions: 2)
      assert {:error, {%ArgumentError{message: message}, []}} = Buffer.start_link(opts)
      assert message =~ "its partition 1 would be named #{inspect(name_of_second)}, but that is the name of"
      refute_received {:batch, _batch}

      Process.unregister(name_of_second)
      start_buffer(opts)
      assert Buffer.stop(buffer) == :ok
      assert received_entries() == [{:left, 1, 0, 0}]
    end
  end

  describe "the processes of a buffer" do
    setup do
      buffer = start_buffer(partitions: 2, processor: asking_processor(), max_size: 10)
      Buffer.put(buffer, :key, 1)
      Buffer.flush(buffer, async: true)
      assert_receive {:asked, task, _batch}
      supervisor = Lookup.supervisor(buffer)
      children = for {_id, pid, _type, _modules} <- Supervisor.which_children(supervisor), do: pid
      {:ok, buffer: buffer, task: task, processes: [task, supervisor | children]}
    end

    test "have names if they are its supervisor or a partition", %{buffer: buffer} = context do
      # A process without a name has an empty list.
      named =
        for pid <- context.processes,
            {_key, name} = Process.info(pid, :registered_name),
            name != [],
            do: name

      assert Enum.sort(named) == Enum.sort([Routing.supervisor_name(buffer) | partitions(buffer)])
      send(context.task, :return)
    end

    test "own no ETS table, which others could change", %{task: task, processes: processes} do
      assert for(table <- :ets.all(), :ets.info(table, :owner) in processes, do: table) == []
      send(task, :return)
    end
  end

  describe "a buffer" do
    test "leaves similar names to the application, whose processes go on" do
      name = Module.concat([unique_name("App")])
      parts = ~w(Room Writers Drainer Tasks Task TaskSupervisor Settings 0.Task 0.TaskSupervisor 0.Supervisor)

      apps =
        for part <- parts do
          others = Module.concat([name, part])
          start_supervised!(%{id: part, start: {Agent, :start_link, [fn -> part end, [name: others]]}})
        end

      for outcomes <- [[], [max_attempts: 1]] do
        buffer =
          start_buffer([name: name, partitions: 1, max_size: 1, processing_timeout_ms: 60_000] ++ outcomes)

        # The second write waits for room, and its flush for a task.
        for n <- 1..2, do: assert(Buffer.put(buffer, n, n) == :ok)
        assert Buffer.flush(buffer) == :ok
        assert Buffer.stop(buffer) == :ok
        assert keys(received_entries()) == [1, 2]
      end

      assert Enum.map(apps, &Agent.get(&1, fn part -> part end)) == parts
    end

    test "does not take the names of another one with the same text" do
      other = start_buffer(name: Module.concat([unique_name("Users")]))
      supervisor = Lookup.supervisor(other)
      name = other |> Module.split() |> hd() |> String.to_atom()
      assert {:error, {%ArgumentError{message: message}, []}} = Buffer.start_link(buffer_options(name: name))
      assert message =~ "buffer #{inspect(name)} cannot start: its supervisor would be named"
      assert {:noproc, {GenServer, :stop, _args}} = catch_exit(Buffer.stop(name))
      assert Lookup.supervisor(other) == supervisor
      assert Buffer.put(other, :key, 1) == :ok
    end
  end

  describe "a buffer whose supervisor's name is taken by another process" do
    setup do
      name = Module.concat(unique_name("App"), Buffer)
      supervisor = Module.concat(name, Supervisor)
      spec = %{id: :app, start: {Supervisor, :start_link, [[], [strategy: :one_for_one, name: supervisor]]}}
      {:ok, name: name, supervisor: supervisor, app: start_supervised!(spec)}
    end

    test "does not start, and says why", %{name: name, supervisor: supervisor, app: app} do
      message =
        "buffer #{inspect(name)} cannot start: its supervisor would be named #{inspect(supervisor)}, " <>
          "but that is the name of #{inspect(app)}, which is not the supervisor of a buffer: " <>
          "give the buffer another :name"

      assert Buffer.start_link(name: name, processor: &Function.identity/1) ==
               {:error, {%ArgumentError{message: message}, []}}
    end

    test "cannot be stopped, and the other process goes on", %{name: name, supervisor: supervisor, app: app} do
      for stop <- [&Buffer.stop/1, &PartitionedBuffer.stop/1, &Queue.stop/1] do
        assert catch_exit(stop.(name)) == {:noproc, {GenServer, :stop, [supervisor, :normal, :infinity]}}
      end

      assert Process.whereis(supervisor) == app
      assert Supervisor.which_children(app) == []
    end
  end

  describe "a buffer whose name was used before" do
    test "has the leftovers of the last one of its kind, and none of the other" do
      name = unique_name()
      options = buffer_options(name: name, partitions: 1)
      Process.flag(:trap_exit, true)

      {:ok, map} = Buffer.start_link(options)
      Buffer.put(name, :key, :value)
      kill(map)
      {:ok, queue} = Queue.start_link(options)
      assert Queue.size(name) == 0
      Queue.push(name, :item)
      kill(queue)
      {:ok, _map} = Buffer.start_link(options)
      assert Buffer.get(name, :key) == :value
      :ok = Buffer.stop(name)
      {:ok, _queue} = Queue.start_link(options)
      :ok = Queue.stop(name)
      assert received_batches() == [[{:key, :value, 0, 0}], [:item]]
    end
  end

  # When the partition `first` starts, the test takes the name `second`.
  # Starts a buffer whose last partition does not start.
  defp start_half_way(opts) do
    {options, _functions} = init = PartitionedBuffer.Options.start!(opts, Buffer)
    Supervisor.start_link(HalfWay, init, name: Routing.supervisor_name(options.name))
  end

  # The children die with their supervisor. The next one needs their names.
  defp kill(supervisor) do
    children = for {_id, pid, _type, _modules} <- Supervisor.which_children(supervisor), do: pid
    refs = for pid <- [supervisor | children], do: Process.monitor(pid)
    Process.exit(supervisor, :kill)
    for ref <- refs, do: assert_receive({:DOWN, ^ref, :process, _pid, _reason}, 5_000)
  end
end
