defmodule PartitionedBuffer.Conservation.Faults do
  @moduledoc false
  # The process that owns the buffer, by another process, and injects a fault every few
  # milliseconds.

  alias PartitionedBuffer.Conservation.{Code, Kind, Ledger, Retries}
  alias PartitionedBuffer.{Native, Routing}

  # An event and the death of the task report each such fault.
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
           :pause,
           :collect_garbage,
           :purge_code
         ]

  # `lists` are the running writers of long lists, by their monitors, and `number` is that of the
  # next list or value. `accepted` is set for a buffer with retries. `unreported` is the number of
  # failures of tasks perhaps without a report, since their partitions died at the same time.
  # `unseen` is the number of unreported ones that the ledger perhaps missed, since the tasks were
  # killed before any message.
  defstruct [
    :kind,
    :options,
    :ledger,
    :batch_sizes,
    :faults,
    :code,
    :owner,
    :accepted,
    lists: %{},
    written: [],
    counts: %{},
    unreported: 0,
    unseen: 0,
    number: 0
  ]

  # Faults for a buffer with retries only, whose leftovers of a killed tree are not lost.
  @with_retries @all ++ [:kill_tree_at_work, :change_partitions_at_work, :flush]

  @doc "All kinds of faults."
  def all, do: @all

  @doc "All kinds of faults of a buffer with retries."
  def all_with_retries, do: @with_retries

  @doc "The kinds of faults in the processor."
  def in_processor, do: @in_processor

  @doc "Starts the buffer, which runs when this returns, and the faults."
  def start_link(seed, fields) do
    :proc_lib.start_link(__MODULE__, :init, [seed, struct!(__MODULE__, fields)])
  end

  @doc false
  def init(seed, state) do
    :rand.seed(:exsss, {seed, 0, 1})
    code = if :purge_code in state.faults, do: Code.compile()
    state = start_owner(%{state | code: code})
    :proc_lib.init_ack(self())
    loop(state)
  end

  @doc """
  Ends the faults and the buffer, after the writers; returns counts, what was written, and how many
  failures may be unreported or unseen.
  """
  def stop(faults, written) do
    send(faults, {:stop, self(), written})

    receive do
      {:stopped, ^faults, result} -> result
    end
  end

  defp loop(faults) do
    pause = if faults.faults == [], do: :infinity, else: :rand.uniform(8)

    receive do
      {:stop, from, written} ->
        faults = faults |> ensure_running() |> await_lists() |> isolate(written) |> heal() |> stop_buffer()
        send(from, {:stopped, self(), Map.take(faults, [:counts, :written, :unreported, :unseen])})

      # `hanging/1` did not wait long enough for it.
      {:hanging, pid} ->
        Process.exit(pid, :kill)
        loop(faults)

      {:DOWN, ref, :process, _pid, reason} when is_map_key(faults.lists, ref) ->
        faults |> list_ended(ref, reason) |> loop()
    after
      pause -> faults |> ensure_running() |> try_fault(Enum.random(faults.faults)) |> loop()
    end
  end

  # The fault fails if the buffer is restarting, or gone because its supervisor gave up.
  defp try_fault(faults, kind) do
    if faults.accepted, do: Retries.fault(faults.ledger, kind)

    case Kind.refusable(fn -> inject(faults, kind) end) do
      nothing when nothing in [:nothing, :refused] -> faults
      faults -> count(faults, kind)
    end
  catch
    :exit, _reason -> faults
  end

  ## In the processor

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

  ## Deaths

  defp inject(faults, :kill_task) do
    case Task.Supervisor.children(task_supervisor(faults, any_partition(faults))) do
      [] ->
        :nothing

      [pid | _] ->
        Process.exit(pid, :kill)
        unseen(faults, 1)
    end
  end

  defp inject(faults, :kill_partition) do
    kill(partition(faults, any_partition(faults)))
    unreported(faults, 1)
  end

  defp inject(faults, :kill_task_supervisor) do
    kill(task_supervisor(faults, any_partition(faults)))
    unseen(faults, 1)
  end

  defp inject(faults, :kill_supervisor) do
    kill(supervisor(faults))
    faults |> start_again() |> unreported(faults.options[:partitions])
  end

  defp inject(faults, :kill_tree) do
    kill_tree(faults)
    faults |> start_again() |> unreported(faults.options[:partitions])
  end

  # A processor that traps exits outlives its tree.
  defp inject(faults, :kill_tree_at_work) do
    at_work(faults)
    kill_tree(faults)
    start_again(faults)
  end

  defp inject(faults, :owner_dies) do
    Process.exit(faults.owner, :kill)
    start_again(faults)
  end

  ## Stops

  defp inject(faults, :stop) do
    stop_running(faults)
    start_owner(faults)
  end

  defp inject(faults, :stop_while_hanging) do
    pid = hanging(faults)
    PartitionedBuffer.update_options(name(faults), processing_timeout_ms: 300)
    faults = inject(faults, :stop)
    if Process.alive?(pid), do: raise("a stop has left a hanging processor")
    faults
  end

  # Processes are killed during the stop, and some before it, when the supervisor can no longer
  # restart them.
  defp inject(faults, :kill_at_stop) do
    drainer = drainer(faults)
    Ledger.arm(faults.ledger, {:slow, :rand.uniform(10)})
    supervisor = Process.whereis(supervisor(faults))
    suspended? = :rand.uniform(2) == 1
    if suspended?, do: :erlang.suspend_process(supervisor)
    {stop, ref} = spawn_monitor(fn -> PartitionedBuffer.stop(name(faults)) end)

    # The supervisor notices the stop before these deaths.
    faults =
      if suspended? do
        await_message(supervisor, stop)
        faults = try_kill_any(faults, drainer)
        :erlang.resume_process(supervisor)
        faults
      else
        faults
      end

    faults =
      for _ <- 1..:rand.uniform(4), reduce: faults do
        faults ->
          Process.sleep(:rand.uniform(4) - 1)
          try_kill_any(faults, drainer)
      end

    receive do
      {:DOWN, ^ref, :process, ^stop, _reason} -> start_owner(faults)
    end
  end

  # A stop may leave failed entries. Until they are processed, the order is lost.
  defp inject(%{accepted: accepted} = faults, :change_partitions) when accepted != nil do
    Retries.disorder(faults.ledger)
    PartitionedBuffer.stop(name(faults))
    start_disordered(faults)
  end

  defp inject(faults, :change_partitions_at_work) do
    pid = at_work(faults)
    Retries.disorder(faults.ledger)
    kill_tree(faults)
    faults = start_disordered(faults)
    if Process.alive?(pid), do: Retries.report(faults.ledger, :task_outlives_its_entries, pid)
    faults
  end

  # The stop leaves no items, which would have no order with new ones under another partition count.
  defp inject(faults, :change_partitions) do
    PartitionedBuffer.stop(name(faults))
    options = Keyword.put(faults.options, :partitions, Enum.random(faults.kind.partitions()))
    start_owner(%{faults | options: options})
  end

  ## Writes

  defp inject(faults, :write_list) do
    {number, kind, buffer} = {faults.number, faults.kind, name(faults)}
    call = kind.list(number)
    me = self()

    {pid, ref} =
      spawn_monitor(fn ->
        send(me, {:writing, self()})
        if Kind.refusable(fn -> kind.call(buffer, call, []) end) == :refused, do: exit(:refused)
      end)

    receive(do: ({:writing, ^pid} -> :ok))
    %{faults | number: number + 1, lists: Map.put(faults.lists, ref, {pid, number})}
  end

  # The writer is killed during its write or after it.
  defp inject(faults, :kill_writer) do
    faults = inject(faults, :write_list)
    {pid, _number} = faults.lists |> Map.values() |> Enum.max_by(&elem(&1, 1))
    Process.sleep(:rand.uniform(4) - 1)
    Process.exit(pid, :kill)
    faults
  end

  # The interval is long, so that the value is only in the buffer, and in no process, when its
  # module is purged.
  defp inject(faults, :purge_code) do
    {number, kind, buffer} = {faults.number, faults.kind, name(faults)}
    PartitionedBuffer.update_options(buffer, processing_interval_ms: 60_000)
    # The scheduled tick comes first.
    Process.sleep(5)
    written = in_process(fn -> kind.call(buffer, kind.code(number, Code.value(faults.code, number)), []) end)
    purged? = Code.purge()
    waits = in_process(fn -> kind.code_waits?(buffer, number, faults.ledger) || exit(:flushed) end)
    PartitionedBuffer.update_options(buffer, processing_interval_ms: 1)

    faults = if written == :normal, do: written(faults, {:code, number}), else: faults
    faults = %{faults | number: number + 1}
    if written == :normal and purged? and waits == :normal, do: faults, else: count(faults, :purge_code, -1)
  end

  ## Others

  defp inject(faults, :pause) do
    buffer = name(faults)

    hold = fn ->
      PartitionedBuffer.pause(buffer)
      Process.sleep(:rand.uniform(5) - 1)
      PartitionedBuffer.resume(buffer)
    end

    hold = fn -> Kind.refusable(hold) end
    if faults.accepted, do: spawn(fn -> Retries.holding(faults.ledger, hold) end), else: spawn(hold)
    faults
  end

  defp inject(faults, :flush) do
    opts = [timeout: :rand.uniform(30) - 1, async: :rand.uniform(2) == 1]
    flush = fn -> Kind.refusable(fn -> PartitionedBuffer.flush(name(faults), opts) end) end
    spawn(fn -> Retries.flushing(faults.ledger, flush) end)
    faults
  end

  defp inject(%{accepted: accepted} = faults, :update_options) when accepted != nil do
    {name, value} =
      option =
      Enum.random(
        processing_batch_size: Enum.random(faults.batch_sizes),
        processing_interval_ms: :rand.uniform(3),
        processing_timeout_ms: Enum.random([600, 1_000, 2_000]),
        drain_timeout_ms: Enum.random([30, 60_000]),
        retry_backoff_ms: Enum.random([{6, 20}, {10, 30}, &__MODULE__.backoff/1]),
        processing_threshold: Enum.random([50, 2_000, :infinity]),
        max_size: max_size(faults.options[:max_size])
      )

    if name == :processing_batch_size, do: Retries.batch_size(faults.ledger, value)
    PartitionedBuffer.update_options(name(faults), [option])
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
    for n <- all_partitions(faults) do
      pids = [Process.whereis(partition(faults, n)) | Task.Supervisor.children(task_supervisor(faults, n))]
      for pid <- pids, pid != nil, do: :erlang.garbage_collect(pid)
    end

    faults
  end

  defp max_size(:infinity), do: :infinity
  defp max_size(max_size), do: Enum.random([max_size, 6_000, 2 * max_size])

  @doc false
  def backoff(failures), do: 6 + rem(failures, 5)

  ## Processes of the buffer

  defp name(faults), do: faults.options[:name]
  defp supervisor(faults), do: Routing.supervisor_name(name(faults))
  defp partition(faults, number), do: Routing.partition_name(name(faults), number)

  defp task_supervisor(faults, number) do
    with run when run != :not_running <- Native.run(name(faults)),
         pid when is_pid(pid) <- Native.process(run, number, :tasks) do
      pid
    else
      _none -> exit(:restarting)
    end
  end

  defp all_partitions(faults), do: 0..(faults.options[:partitions] - 1)
  defp any_partition(faults), do: :rand.uniform(faults.options[:partitions]) - 1

  # The last child, which ends first.
  defp drainer(faults) do
    children = Supervisor.which_children(supervisor(faults))

    drainers =
      for {{PartitionedBuffer.Buffer.Drainer, :last}, pid, _, _} when is_pid(pid) <- children, do: pid

    List.first(drainers) || exit(:restarting)
  end

  # Waits until a processor hangs. No batch may come, or the task about to hang may be killed
  # before.
  defp hanging(faults, verdict \\ &{:hang, &1}) do
    Ledger.arm(faults.ledger, verdict.(self()))

    receive do
      {:hanging, pid} -> pid
    after
      200 ->
        Ledger.disarm(faults.ledger)
        exit(:no_batch)
    end
  end

  # A processor that traps exits, and takes some time.
  defp at_work(faults), do: hanging(faults, &{:trap, &1, 20 + :rand.uniform(40)})

  defp kill_tree(faults) do
    children =
      for n <- all_partitions(faults),
          pid <- [Process.whereis(partition(faults, n)), task_supervisor(faults, n)],
          do: pid

    # Once the first is killed, the others begin to die.
    pids = [Process.whereis(supervisor(faults)) | children]
    for pid <- pids, pid != nil, do: Process.exit(pid, :kill)
  end

  defp kill(pid) when is_pid(pid), do: Process.exit(pid, :kill)
  defp kill(name), do: kill(Process.whereis(name) || exit(:restarting))

  # The run may be over already.
  defp try_kill_any(faults, drainer) do
    kill_any(faults, drainer)
  catch
    :exit, :restarting -> faults
  end

  # Waits for a message in the queue, unless its sender dies first.
  defp await_message(pid, sender) do
    Process.alive?(sender) and Process.info(pid, :message_queue_len) == {:message_queue_len, 0} and
      await_message(pid, sender)
  end

  # Kills a partition, its task supervisor, both, or a process that does a pass for the drainer.
  defp kill_any(faults, drainer) do
    number = any_partition(faults)
    partition = Process.whereis(partition(faults, number))
    task_supervisor = task_supervisor(faults, number)
    {:monitors, monitored} = Process.info(drainer, :monitors) || {:monitors, []}
    passes = for {:process, pid} when is_pid(pid) <- monitored, do: pid

    victims =
      Enum.random([[partition], [task_supervisor], [partition, task_supervisor], Enum.take_random(passes, 1)])

    for pid <- victims, pid != nil, reduce: faults do
      faults ->
        Process.exit(pid, :kill)
        faults |> unreported(1) |> unseen(1)
    end
  end

  ## Lists and values

  defp in_process(function) do
    {pid, ref} = spawn_monitor(fn -> function.() end)

    receive do
      {:DOWN, ^ref, :process, ^pid, reason} -> reason
    end
  end

  defp list_ended(faults, ref, reason) do
    {{_pid, number}, lists} = Map.pop!(faults.lists, ref)
    outcome = if reason == :normal, do: :done, else: :cut_short
    written(%{faults | lists: lists}, {:list, number, outcome})
  end

  defp await_lists(%{lists: lists} = faults) when lists == %{}, do: faults

  defp await_lists(%{lists: lists} = faults) do
    receive do
      {:DOWN, ref, :process, _pid, reason} when is_map_key(lists, ref) ->
        faults |> list_ended(ref, reason) |> await_lists()
    end
  end

  defp written(faults, what), do: %{faults | written: [what | faults.written]}

  ## The buffer

  # A supervisor gives up if its children die too often.
  defp ensure_running(faults) do
    if Process.alive?(faults.owner), do: faults, else: faults |> count(:gave_up) |> start_again()
  end

  # If the supervisor gives up instead, the next one processes the rest.
  defp stop_buffer(faults) do
    faults = ensure_running(faults)
    stop_running(faults)
    faults
  catch
    :exit, _given_up -> stop_buffer(faults)
  end

  # Exits if the supervisor gives up during the stop. `PartitionedBuffer.stop/1` takes this for
  # another stop.
  defp stop_running(faults) do
    ref = faults |> supervisor() |> Process.monitor()
    PartitionedBuffer.stop(name(faults))

    receive do
      {:DOWN, ^ref, :process, _supervisor, :normal} -> :ok
      {:DOWN, ^ref, :process, _supervisor, gave_up} -> exit(gave_up)
    end
  end

  # With another partition count, until all leftovers are processed.
  defp start_disordered(faults) do
    partitions = Enum.random(faults.kind.partitions())
    faults = start_owner(%{faults | options: Keyword.put(faults.options, :partitions, partitions)})
    until_flushed(faults, 1_000)
    Retries.order(faults.ledger)
    faults
  end

  defp until_flushed(_faults, 0), do: raise("a healthy sink does not get all")

  defp until_flushed(faults, tries) do
    flushed = Kind.refusable(fn -> PartitionedBuffer.flush(name(faults), timeout: 60_000) end)

    if flushed != :ok do
      Process.sleep(1)
      until_flushed(faults, tries - 1)
    end
  end

  # The sink still refuses bad entries, but that does not keep the good ones.
  defp isolate(%{accepted: nil} = faults, _written), do: faults

  defp isolate(faults, written) do
    Retries.calm(faults.ledger)
    until_stored(faults, written ++ faults.written, 5_000)
  end

  defp until_stored(faults, written, tries) do
    faults = ensure_running(faults)
    Kind.refusable(fn -> PartitionedBuffer.flush(name(faults), timeout: 60_000) end)

    case Retries.good_ones_left(faults.ledger, written) do
      [] ->
        faults

      left when tries == 0 ->
        Retries.report(faults.ledger, :not_isolated, Enum.take(left, 5))
        faults

      _left ->
        until_stored(faults, written, tries - 1)
    end
  end

  # After this the processor succeeds, so a stop leaves nothing.
  defp heal(%{accepted: nil} = faults), do: faults

  defp heal(faults) do
    Retries.heal(faults.ledger)
    options = [drain_timeout_ms: :infinity, processing_timeout_ms: 10_000]

    case Kind.refusable(fn -> PartitionedBuffer.update_options(name(faults), options) end) do
      :ok ->
        until_flushed(faults, 1_000)
        check_info(faults)
        faults

      # The supervisor just gave up.
      :refused ->
        faults |> ensure_running() |> heal()
    end
  end

  # All is through, and all writers ended.
  defp check_info(faults) do
    %{totals: totals} = info = PartitionedBuffer.info(name(faults))
    added = totals.written - totals.coalesced
    ended = totals.deleted + totals.superseded + totals.processed + totals.given_up
    {held, _refused, _dropped, _waiting, _waited} = Native.bound(name(faults))

    unless added == ended and {info.size, info.in_flight, info.waiting_writers, held} == {0, 0, 0, 0},
      do: Retries.report(faults.ledger, :info, {info, added - ended, held})
  end

  # After a buffer that did not stop.
  defp start_again(faults), do: faults |> start_owner() |> unseen(faults.options[:partitions])

  # Processes of the last buffer may still have the names.
  defp start_owner(%{options: options} = faults) do
    me = self()
    if faults.accepted, do: Retries.starting(faults.ledger, options[:processing_batch_size])

    {owner, ref} =
      spawn_monitor(fn ->
        {:ok, _supervisor} = PartitionedBuffer.start_link(options)
        send(me, {:started, self()})
        Process.sleep(:infinity)
      end)

    receive do
      {:started, ^owner} ->
        Process.demonitor(ref, [:flush])
        if faults.accepted, do: Retries.started(faults.ledger)
        %{faults | owner: owner}

      {:DOWN, ^ref, :process, ^owner, _reason} ->
        Process.sleep(1)
        start_owner(faults)
    end
  end

  ## Counts

  defp unseen(faults, more), do: %{faults | unseen: faults.unseen + more}
  defp unreported(faults, more), do: %{faults | unreported: faults.unreported + more}
  defp count(faults, kind, by \\ 1), do: %{faults | counts: Map.update(faults.counts, kind, by, &(&1 + by))}
end
