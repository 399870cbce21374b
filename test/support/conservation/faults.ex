defmodule PartitionedBuffer.Conservation.Faults do
  @moduledoc false
  # A process that owns the buffer, by another process, and lets things go wrong, one every few milliseconds.

  alias PartitionedBuffer.Conservation
  alias PartitionedBuffer.Conservation.{Code, Ledger}
  alias PartitionedBuffer.{Partition, Routing}

  # In the processor. Each is told exactly: by an event, and by the death of its task.
  @in_processor [:raise, :throw, :exit, :kill, :slow, :hang]

  @all @in_processor ++
         [
           :stop_while_hanging,
           :kill_task,
           :kill_partition,
           :kill_task_supervisor,
           :kill_supervisor,
           :kill_tree,
           :stop,
           :kill_at_stop,
           :change_partitions,
           :owner_dies,
           :write_list,
           :kill_writer,
           :update_options,
           :collect_garbage,
           :purge_code
         ]

  # `unreported`: how many failures of tasks nobody may have told, because their partitions died at the same time.
  # `unseen`: how many of them the ledger may not know, because the tasks were killed before they had said anything.
  defstruct [
    :kind,
    :options,
    :ledger,
    :batch_sizes,
    :faults,
    :code,
    :owner,
    lists: %{},
    written: [],
    counts: %{},
    unreported: 0,
    unseen: 0,
    number: 0
  ]

  @doc "All faults."
  def all, do: @all

  @doc "Those of the processor."
  def in_processor, do: @in_processor

  @doc "Starts the buffer, which runs when this returns, and these faults."
  def start_link(seed, fields) do
    :proc_lib.start_link(__MODULE__, :init, [seed, struct!(__MODULE__, fields)])
  end

  @doc false
  def init(seed, state) do
    :rand.seed(:exsss, {seed, 0, 1})
    code = if :purge_code in state.faults, do: Code.compile()
    state = %{state | code: code, owner: start_owner(state.options)}
    :proc_lib.init_ack(self())
    loop(state)
  end

  @doc "Ends the faults and the buffer: counts, what was written, how many failures may be unreported or unseen."
  def stop(faults) do
    send(faults, {:stop, self()})

    receive do
      {:stopped, ^faults, result} -> result
    end
  end

  defp loop(faults) do
    pause = if faults.faults == [], do: :infinity, else: :rand.uniform(8)

    receive do
      {:stop, from} ->
        faults = faults |> ensure_running() |> await_lists() |> stop_buffer()
        send(from, {:stopped, self(), Map.take(faults, [:counts, :written, :unreported, :unseen])})

      # Later than it was waited for.
      {:hanging, pid} ->
        Process.exit(pid, :kill)
        loop(faults)

      {:DOWN, ref, :process, _pid, reason} when is_map_key(faults.lists, ref) ->
        loop(list_ended(faults, ref, reason))
    after
      pause ->
        kind = Enum.random(faults.faults)
        # What it does is kept whatever comes of the fault.
        faults = ensure_running(faults)

        # The buffer may be restarting, or be gone because its supervisor has given up: then there is no fault.
        try do
          Conservation.refusable(fn -> inject(faults, kind) end)
        catch
          :exit, _reason -> faults
        else
          nothing when nothing in [:nothing, :refused] -> faults
          faults -> count(faults, kind)
        end
        |> loop()
    end
  end

  ## Kinds

  defp inject(faults, kind) when kind in [:raise, :throw, :exit, :kill] do
    Ledger.arm(faults.ledger, kind)
    faults
  end

  defp inject(faults, :slow) do
    Ledger.arm(faults.ledger, {:slow, :rand.uniform(20)})
    faults
  end

  defp inject(faults, :hang) do
    Process.exit(hanging(faults), :kill)
    faults
  end

  defp inject(faults, :stop_while_hanging) do
    pid = hanging(faults)
    PartitionedBuffer.update_options(name(faults), processing_timeout_ms: 20)
    faults = inject(faults, :stop)
    if Process.alive?(pid), do: raise("a stop has left a hanging processor")
    faults
  end

  defp inject(faults, :kill_task) do
    case Task.Supervisor.children(Partition.task_supervisor(name(faults), any_partition(faults))) do
      [] ->
        :nothing

      [pid | _] ->
        Process.exit(pid, :kill)
        unseen(faults, 1)
    end
  end

  defp inject(faults, :kill_partition) do
    kill(Routing.partition_name(name(faults), any_partition(faults)))
    unreported(faults, 1)
  end

  defp inject(faults, :kill_task_supervisor) do
    kill(Partition.task_supervisor(name(faults), any_partition(faults)))
    unseen(faults, 1)
  end

  defp inject(faults, :kill_supervisor) do
    kill(PartitionedBuffer.Supervisor.name(name(faults)))
    faults |> start_again() |> unreported(faults.options[:partitions])
  end

  defp inject(faults, :kill_tree) do
    buffer = name(faults)

    names =
      for n <- 0..(faults.options[:partitions] - 1),
          name <- [Routing.partition_name(buffer, n), Partition.task_supervisor(buffer, n)],
          do: name

    # With the first of them the others begin to die.
    pids = Enum.map([PartitionedBuffer.Supervisor.name(buffer) | names], &Process.whereis/1)
    for pid <- pids, pid != nil, do: Process.exit(pid, :kill)

    faults |> start_again() |> unreported(faults.options[:partitions])
  end

  defp inject(faults, :stop) do
    stop_running(faults)
    %{faults | owner: start_owner(faults.options)}
  end

  # Before it, while the supervisor cannot start again what dies, and meanwhile.
  defp inject(faults, :kill_at_stop) do
    {:ok, drainer} = drainer(faults)
    Ledger.arm(faults.ledger, {:slow, :rand.uniform(10)})
    suspended? = :rand.uniform(2) == 1
    if suspended?, do: :sys.suspend(PartitionedBuffer.Supervisor.name(name(faults)))
    faults = if suspended?, do: kill_any(faults, drainer), else: faults
    {stop, ref} = spawn_monitor(fn -> PartitionedBuffer.stop(name(faults)) end)

    faults =
      for _ <- 1..:rand.uniform(4), reduce: faults do
        faults ->
          Process.sleep(:rand.uniform(4) - 1)
          kill_any(faults, drainer)
      end

    receive do
      {:DOWN, ^ref, :process, ^stop, _reason} -> %{faults | owner: start_owner(faults.options)}
    end
  end

  # A stop leaves nothing, whose order against what is new would not be promised.
  defp inject(faults, :change_partitions) do
    PartitionedBuffer.stop(name(faults))
    options = Keyword.put(faults.options, :partitions, Enum.random(faults.kind.partitions()))
    %{faults | options: options, owner: start_owner(options)}
  end

  defp inject(faults, :owner_dies) do
    Process.exit(faults.owner, :kill)
    start_again(faults)
  end

  defp inject(faults, :write_list) do
    {number, kind, buffer} = {faults.number, faults.kind, name(faults)}
    list = kind.list(number)
    me = self()

    {pid, ref} =
      spawn_monitor(fn ->
        send(me, {:writing, self()})

        if Conservation.refusable(fn -> kind.write_list(buffer, list) end) == :refused, do: exit(:refused)
      end)

    receive(do: ({:writing, ^pid} -> :ok))
    %{faults | number: number + 1, lists: Map.put(faults.lists, ref, {pid, number})}
  end

  # Within the write, or when it has returned.
  defp inject(faults, :kill_writer) do
    faults = inject(faults, :write_list)
    {pid, _number} = faults.lists |> Map.values() |> Enum.max_by(&elem(&1, 1))
    Process.sleep(:rand.uniform(4) - 1)
    Process.exit(pid, :kill)
    faults
  end

  defp inject(faults, :update_options) do
    option =
      Enum.random(
        processing_batch_size: Enum.random(faults.batch_sizes),
        processing_interval_ms: :rand.uniform(3),
        processing_timeout_ms: 1_000
      )

    PartitionedBuffer.update_options(name(faults), [option])
    faults
  end

  defp inject(faults, :collect_garbage) do
    for n <- 0..(faults.options[:partitions] - 1),
        pid <- [
          Process.whereis(Routing.partition_name(name(faults), n))
          | Task.Supervisor.children(Partition.task_supervisor(name(faults), n))
        ],
        pid != nil do
      :erlang.garbage_collect(pid)
    end

    faults
  end

  # With a long interval, so that the value is in the buffer, and in no process, when its module is purged.
  defp inject(faults, :purge_code) do
    {number, kind, buffer} = {faults.number, faults.kind, name(faults)}
    PartitionedBuffer.update_options(buffer, processing_interval_ms: 60_000)
    # The tick that was due comes before it.
    Process.sleep(5)
    written = in_process(fn -> kind.write_code(buffer, number, Code.value(faults.code, number)) end)
    purged = Code.purge()
    waits = in_process(fn -> kind.code_waits?(buffer, number, faults.ledger) || exit(:flushed) end)
    PartitionedBuffer.update_options(buffer, processing_interval_ms: 1)

    faults = if written == :normal, do: written(faults, {:code, number}), else: faults
    faults = %{faults | number: number + 1}
    if written == :normal and purged and waits == :normal, do: faults, else: count(faults, :purge_code, -1)
  end

  ## Helpers

  defp name(faults), do: faults.options[:name]

  defp any_partition(faults), do: :rand.uniform(faults.options[:partitions]) - 1

  defp kill(name), do: Process.exit(Process.whereis(name) || exit(:restarting), :kill)

  # What has died already is not killed again.
  defp kill_any(faults, drainer) do
    number = any_partition(faults)
    partition = Process.whereis(Routing.partition_name(name(faults), number))
    task_supervisor = Process.whereis(Partition.task_supervisor(name(faults), number))
    {:monitors, monitored} = Process.info(drainer, :monitors) || {:monitors, []}
    in_its_place = for {:process, pid} <- monitored, do: pid

    [[partition], [task_supervisor], [partition, task_supervisor], Enum.take_random(in_its_place, 1)]
    |> Enum.random()
    |> Enum.reduce(faults, &kill_pid(&2, &1))
  end

  defp kill_pid(faults, nil), do: faults

  defp kill_pid(faults, pid) do
    Process.exit(pid, :kill)
    faults |> unreported(1) |> unseen(1)
  end

  # The last child, which ends first.
  defp drainer(faults) do
    children = Supervisor.which_children(PartitionedBuffer.Supervisor.name(name(faults)))

    for {{PartitionedBuffer.Drainer, :last}, pid, _type, _modules} when is_pid(pid) <- children,
        reduce: :error do
      :error -> {:ok, pid}
    end
  end

  defp hanging(faults) do
    Ledger.arm(faults.ledger, {:hang, self()})

    # The buffer may have gone before a batch came, or the task that was told to hang.
    receive do
      {:hanging, pid} -> pid
    after
      200 ->
        Ledger.disarm(faults.ledger)
        exit(:no_batch)
    end
  end

  defp in_process(function) do
    {pid, ref} = spawn_monitor(fn -> function.() end)

    receive do
      {:DOWN, ^ref, :process, ^pid, reason} -> reason
    end
  end

  defp list_ended(faults, ref, reason) do
    {{_pid, number}, lists} = Map.pop!(faults.lists, ref)
    outcome = if reason == :normal, do: :done, else: :cut_short
    written(%{faults | lists: lists}, faults.kind.written_list(number, outcome))
  end

  defp written(faults, what), do: %{faults | written: [what | faults.written]}

  defp await_lists(%{lists: lists} = faults) when lists == %{}, do: faults

  defp await_lists(%{lists: lists} = faults) do
    receive do
      {:DOWN, ref, :process, _pid, reason} when is_map_key(lists, ref) ->
        faults |> list_ended(ref, reason) |> await_lists()
    end
  end

  ## The buffer

  # A supervisor gives up when its children die too often.
  defp ensure_running(faults) do
    if Process.alive?(faults.owner), do: faults, else: faults |> count(:gave_up) |> start_again()
  end

  # Its supervisor may be about to give up: what it leaves is the next one's.
  defp stop_buffer(faults) do
    faults = ensure_running(faults)
    stop_running(faults)
    faults
  catch
    :exit, _given_up -> stop_buffer(faults)
  end

  # Exits if the supervisor gives up meanwhile, which a stop takes for one by another.
  defp stop_running(faults) do
    ref = faults |> name() |> PartitionedBuffer.Supervisor.name() |> Process.monitor()
    PartitionedBuffer.stop(name(faults))

    receive do
      {:DOWN, ^ref, :process, _supervisor, :normal} -> :ok
      {:DOWN, ^ref, :process, _supervisor, gave_up} -> exit(gave_up)
    end
  end

  defp start_again(faults) do
    unseen(%{faults | owner: start_owner(faults.options)}, faults.options[:partitions])
  end

  # The names of the one before may still be taken.
  defp start_owner(options) do
    me = self()

    {owner, ref} =
      spawn_monitor(fn ->
        {:ok, _supervisor} = PartitionedBuffer.start_link(options)
        send(me, {:started, self()})
        Process.sleep(:infinity)
      end)

    receive do
      {:started, ^owner} ->
        Process.demonitor(ref, [:flush])
        owner

      {:DOWN, ^ref, :process, ^owner, _reason} ->
        Process.sleep(1)
        start_owner(options)
    end
  end

  defp unseen(faults, more), do: %{faults | unseen: faults.unseen + more}
  defp unreported(faults, more), do: %{faults | unreported: faults.unreported + more}

  defp count(faults, kind, by \\ 1), do: %{faults | counts: Map.update(faults.counts, kind, by, &(&1 + by))}
end
