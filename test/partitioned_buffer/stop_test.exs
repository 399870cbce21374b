defmodule PartitionedBuffer.StopTest do
  use PartitionedBuffer.Case, async: true

  import ExUnit.CaptureLog

  alias PartitionedBuffer.Buffer.Lookup
  alias PartitionedBuffer.Queue

  @moduletag :capture_log

  describe "stop/3" do
    test "returns from every call that comes while the buffer is stopping" do
      {:ok, owner} = ExUnit.fetch_test_supervisor()

      for first <- [&Buffer.stop/1, &Buffer.stop(&1, :shutdown), &Supervisor.terminate_child(owner, &1)] do
        buffer = start_buffer(partitions: 1, processor: asking_processor())
        supervisor = Lookup.supervisor(buffer)
        Buffer.put(buffer, :key, 1)
        first = Task.async(fn -> first.(buffer) end)
        assert_receive {:asked, processor, _batch}
        stops = for server <- [buffer, supervisor], do: Task.async(fn -> Buffer.stop(server) end)
        await_messages(supervisor, 2)
        send(processor, :return)
        assert Task.await_many([first | stops]) == [:ok, :ok, :ok]
      end
    end

    test "exits after its timeout, and if the buffer ends for another reason" do
      buffer = start_buffer(partitions: 1, processor: asking_processor())
      supervisor = Lookup.supervisor(buffer)
      Buffer.put(buffer, :key, 1)
      stop = fn timeout -> catch_exit(Buffer.stop(buffer, :normal, timeout)) end
      stops = [Task.async(fn -> stop.(:infinity) end)]
      assert_receive {:asked, _processor, _batch}
      assert {:timeout, {GenServer, :stop, _}} = stop.(10)
      {:message_queue_len, messages} = Process.info(supervisor, :message_queue_len)
      stops = [Task.async(fn -> stop.(:infinity) end) | stops]
      await_messages(supervisor, messages + 1)
      children = [Process.whereis(hd(partitions(buffer))), task_supervisor(buffer, 0)]
      refs = for child <- children, do: Process.monitor(child)
      Process.exit(supervisor, :kill)

      assert [{{:killed, _}, {GenServer, :stop, _}}, {:killed, {GenServer, :stop, _}}] =
               Task.await_many(stops)

      # Their deaths are logged, and the log is captured only during the test.
      for ref <- refs, do: assert_receive({:DOWN, ^ref, :process, _pid, _reason}, 5_000)
    end

    test "raises on a timeout that is none, and the buffer goes on" do
      buffer = start_buffer()

      for server <- [buffer, Lookup.supervisor(buffer)], timeout <- [nil, -1, 1.5, 10_000_000_000, :soon] do
        error = assert_raise ArgumentError, fn -> Buffer.stop(server, :normal, timeout) end
        assert error.message =~ "of a call on buffer #{inspect(buffer)}"
        assert error.message =~ inspect(timeout)
      end

      assert Buffer.put(buffer, :key, 1) == :ok
    end

    test "exits if a process stops itself" do
      assert {:calling_self, _call} = catch_exit(Buffer.stop(self()))
    end

    test "exits as Supervisor.stop/3 does if the buffer is not running" do
      stopped = start_buffer()
      Buffer.stop(stopped)

      for name <- [unique_name(), stopped] do
        supervisor = Module.concat(name, Supervisor)

        assert catch_exit(Buffer.stop(name, :normal, 9)) ==
                 catch_exit(Supervisor.stop(supervisor, :normal, 9))
      end

      {dead, ref} = spawn_monitor(fn -> :ok end)
      assert_receive {:DOWN, ^ref, :process, ^dead, :normal}
      assert catch_exit(Buffer.stop(dead)) == catch_exit(Supervisor.stop(dead))
    end

    test "waits for the flush in flight, and then processes the waiting entries" do
      buffer = start_buffer(partitions: 1, processor: asking_processor())
      Buffer.put_newer(buffer, :key, :old, 1)
      [partition] = partitions(buffer)
      tick(partition)
      assert_receive {:asked, first, [{:key, :old, 1, 0}]}
      Buffer.put_newer(buffer, :key, :new, 2)
      stop = Task.async(fn -> Buffer.stop(buffer) end)
      # The rest does not come while the first batch is processed.
      refute_receive {:asked, _pid, _batch}, 200
      assert Process.alive?(first)
      send(first, :return)
      assert {[{:key, :new, 2, 0}], _ref} = answer(:return)
      assert Task.await(stop) == :ok
      assert_raise ArgumentError, fn -> Buffer.put(buffer, :key, 1) end
    end

    test "lets all partitions process at the same time" do
      buffer = start_buffer(partitions: 4, processor: asking_processor())
      Buffer.put_all(buffer, for(n <- 1..4, do: {n, n}), partition_key: nil)
      for n <- 0..3, do: Buffer.put(buffer, {:in, n}, n, partition_key: partition_key_of(n, 4))
      stop = Task.async(fn -> Buffer.stop(buffer) end)
      # No processor has returned, so these four work at once.
      pids = for _ <- 1..4, do: assert_receive({:asked, _pid, _batch}) |> elem(1)
      assert length(Enum.uniq(pids)) == 4
      for pid <- pids, do: send(pid, :return)
      assert Task.await(stop) == :ok
    end

    test "processes everything though a batch fails" do
      test = self()

      processor = fn batch ->
        send(test, {:batch, batch})
        if Enum.any?(batch, &match?({11, _, _, _}, &1)), do: raise("no")
      end

      buffer = start_buffer(partitions: 1, processor: processor)
      Buffer.put_all(buffer, for(n <- 1..35, do: {n, n}))
      assert Buffer.stop(buffer) == :ok
      assert keys(received_entries()) == Enum.to_list(1..35)
    end

    test "waits beyond a worker's usual five seconds for a slow processor" do
      buffer = start_buffer(partitions: 1, processor: asking_processor())
      Buffer.put(buffer, 1, 1)
      stop = Task.async(fn -> Buffer.stop(buffer) end)
      assert_receive {:asked, pid, [{1, 1, 0, 0}]}
      ref = Process.monitor(pid)
      refute_receive {:DOWN, ^ref, :process, ^pid, _reason}, 5_500
      send(pid, :return)
      assert_receive {:DOWN, ^ref, :process, ^pid, :normal}
      assert Task.await(stop) == :ok
    end

    test "gives a task that outlives its partition the full timeout per batch" do
      test = self()

      processor = fn batch ->
        send(test, {:batch, self(), batch})
        # All batches together take longer than one of them may.
        Process.sleep(100)
      end

      buffer =
        start_buffer(
          partitions: 1,
          processor: processor,
          processing_timeout_ms: 1_000,
          processing_batch_size: 1
        )

      Buffer.put_all(buffer, for(n <- 1..15, do: {n, n}))
      [partition] = partitions(buffer)
      tick(partition)
      assert_receive {:batch, task, _first}
      kill_and_await_restart(partition)
      assert Buffer.stop(buffer) == :ok
      for _ <- 2..15, do: assert_received({:batch, ^task, _batch})
    end

    test "takes a pid as well" do
      {:ok, pid} = Buffer.start_link(name: unique_name(), processor: &Function.identity/1)
      assert Buffer.stop(pid) == :ok
      refute Process.alive?(pid)
    end
  end

  describe "a stop" do
    test "processes everything if it comes from a supervisor" do
      buffer = start_buffer(partitions: 3)
      Buffer.put_all(buffer, for(n <- 1..1_000, do: {n, n}))
      stop_supervised!(buffer)
      assert keys(received_entries()) == Enum.to_list(1..1_000)
    end

    for {what, victims} <- [
          partition: [:partition],
          "task supervisor": [:task_supervisor],
          "partition and its task supervisor": [:partition, :task_supervisor],
          drainer: [:drainer],
          "drainer and partition": [:drainer, :partition],
          "drainer, partition and its task supervisor": [:drainer, :partition, :task_supervisor]
        ] do
      test "processes everything though the #{what} died just before" do
        for partitions <- [1, 3] do
          buffer = start_buffer(partitions: partitions)
          attach_telemetry(buffer)
          Buffer.put_all(buffer, for(n <- 1..100, do: {n, n}))

          victims = %{
            partition: Process.whereis(hd(partitions(buffer))),
            task_supervisor: task_supervisor(buffer, 0),
            drainer: drainer(buffer)
          }

          log =
            capture_log(fn ->
              stop = stop_with_dead(buffer, for(victim <- unquote(victims), do: victims[victim]))
              assert Task.await(stop) == :ok
            end)

          # Other tests log as well.
          refute log =~ ~r/buffer #{inspect(buffer)} stopped after .* are kept/
          assert keys(received_entries()) == Enum.to_list(1..100)
          refute_received {[:processing_failed], _measurements, _metadata}
        end
      end
    end

    test "processes waiting entries after a dead partition's flush in flight" do
      buffer = start_buffer(partitions: 1, processor: asking_processor())
      Buffer.put_all(buffer, for(n <- 1..15, do: {n, n}))
      [partition] = partitions(buffer)
      tick(partition)
      {task, first} = await_batch()
      Buffer.put(buffer, :later, 1)
      stop = stop_with_dead(buffer, [Process.whereis(partition)])

      refute_receive {:asked, _pid, _batch}, 100
      send(task, :return)
      {^task, second} = await_batch()
      send(task, :return)
      {last, [{:later, 1, 0, 0}]} = await_batch()
      send(last, :return)
      assert Task.await(stop) == :ok
      assert keys(first ++ second) == Enum.to_list(1..15)
    end

    test "loses only the batch of a task that dies, though drainers die as well" do
      buffer =
        start_buffer(partitions: 1, processor: asking_and_returning_processor(), processing_batch_size: 1)

      Buffer.put_all(buffer, for(n <- 1..4, do: {n, n}))
      {partition, drainer} = {Process.whereis(hd(partitions(buffer))), drainer(buffer)}
      stop = Task.async(fn -> Buffer.stop(buffer) end)

      {task, _batch} = await_batch()
      kill_processes([partition])
      assert Process.alive?(task)
      # The task dies with its supervisor, and loses its batch.
      kill_processes([task_supervisor(buffer, 0)])

      {alone, _batch} = await_batch()
      {:monitors, monitored} = Process.info(drainer, :monitors)
      [in_its_place] = for {:process, pid} when is_pid(pid) <- monitored, do: pid
      kill_processes([in_its_place])
      # The next process waits for this one.
      refute_receive {:asked, _pid, _batch}, 100
      send(alone, :return)

      for _ <- 1..2 do
        {pid, _batch} = await_batch()
        send(pid, :return)
      end

      assert Task.await(stop) == :ok
      assert length(received_batches()) == 3
    end
  end

  describe "a pause at a stop" do
    for {how, cause} <- [{"that a call begins during the stop", :in_stop}, {"of a dead partition", :before}] do
      test "#{how} is ended by the stop" do
        test = self()

        processor = fn batch ->
          send(test, {:asked, self(), batch})
          receive(do: ({:answer, answer} -> answer))
        end

        buffer =
          start_buffer(
            partitions: 1,
            processor: processor,
            max_attempts: :infinity,
            drain_timeout_ms: :infinity
          )

        [partition] = partitions(buffer)
        Buffer.put(buffer, :key, 1)
        tick(partition)
        assert_receive {:asked, task, [{:key, 1, 0, 0}]}
        stop = stop_in_pause(unquote(cause), buffer, partition, task)
        # In a stop a snooze is at most the shortest pause, not ten minutes.
        assert_receive {:asked, task, [{:key, 1, 0, 0}]}, 5_000
        send(task, {:answer, :ok})
        assert Task.await(stop) == :ok
      end
    end

    defp stop_in_pause(:in_stop, buffer, partition, task) do
      stop = Task.async(fn -> Buffer.stop(buffer) end)
      await_passive(partition)
      send(task, {:answer, {:snooze, 600_000}})
      stop
    end

    defp stop_in_pause(:before, buffer, partition, task) do
      send(task, {:answer, {:snooze, 600_000}})
      wait_idle(partition)
      kill_and_await_restart(partition)
      Task.async(fn -> Buffer.stop(buffer) end)
    end

    # A passive partition leaves its task to the stop.
    defp await_passive(partition) do
      if PartitionedBuffer.Partition.Server.task(partition) != nil do
        Process.sleep(1)
        await_passive(partition)
      end
    end
  end

  describe "flush/2 during a stop" do
    # Partition 0 hangs, and the stop kills it. Partition 1 keeps the stop from ending.
    for {how, opts} <- [
          without: [processing_timeout_ms: 50],
          with: [processing_timeout_ms: 2_000, max_attempts: :infinity, retry_backoff_ms: {20, 20}]
        ] do
      test "calls no given-up partition, #{how} outcomes" do
        opts = unquote(opts)
        {test, given_up} = {self(), :atomics.new(1, [])}

        processor = fn [{key, _, _, _}] = batch ->
          cond do
            key != :other ->
              send(test, {:hangs, self(), key})
              receive(do: (:never -> :ok))

            # With outcomes each call has its own time, so the last one begins late.
            opts[:max_attempts] != nil and :atomics.get(given_up, 1) == 0 ->
              {:error, :again}

            true ->
              send(test, {:asked, self(), batch})
              receive(do: (:return -> :ok))
          end
        end

        buffer = start_buffer([processor: processor, processing_batch_size: 1] ++ opts)
        for n <- 1..3, do: Buffer.put(buffer, n, n, partition_key: partition_key_of(0, 2))
        tick(hd(partitions(buffer)))
        assert_receive {:hangs, hanging, _key}
        ref = Process.monitor(hanging)
        Buffer.put(buffer, :other, 1, partition_key: partition_key_of(1, 2))
        drainer = drainer(buffer)
        stop = Task.async(fn -> Buffer.stop(buffer) end)
        assert_receive {:DOWN, ^ref, :process, ^hanging, :killed}
        await_passes(drainer, 1)
        :atomics.put(given_up, 1, 1)
        assert_receive {:asked, other, _batch}

        pids = Enum.map(partitions(buffer), &Process.whereis/1)
        for pid <- pids, do: :erlang.trace(pid, true, [:receive])
        # The first one would only settle the batch of the killed call, and pause.
        flushes = for _ <- 1..2, do: Task.async(fn -> Buffer.flush(buffer) end)

        for pid <- pids,
            _flush <- flushes,
            do: assert_receive({:trace, ^pid, :receive, {_call, _from, {:flush, _callers, false}}})

        send(other, :return)

        # Without outcomes the killed call loses its entry.
        left = if opts[:max_attempts], do: 3, else: 2
        assert Task.await_many(flushes) == List.duplicate({:error, {:failed, left}}, 2)
        assert Task.await(stop) == :ok
        refute_received {:hangs, _pid, _key}
      end
    end
  end

  describe "update_options/2 in a stop" do
    test "takes effect, also if a processor calls it" do
      test = self()
      buffer = unique_name()

      processor = fn _batch ->
        changed = Buffer.update_options(buffer, processing_batch_size: 7, max_size: 100)
        send(test, {:changed, changed, options(buffer).processing_batch_size})
        :error
      end

      opts = [
        processor: processor,
        max_attempts: :infinity,
        retry_backoff_ms: {1, 1},
        drain_timeout_ms: :infinity
      ]

      start_buffer([name: buffer, partitions: 1] ++ opts)
      Buffer.put(buffer, :key, 1)
      stop = Task.async(fn -> Buffer.stop(buffer) end)
      # Without a change the stop would never end.
      for _ <- 1..3, do: assert_receive({:changed, :ok, 7})
      assert Buffer.update_options(buffer, drain_timeout_ms: 0) == :ok
      assert Task.await(stop) == :ok
    end
  end

  describe "a stop in an outage" do
    test "gives up entries in batches of the processor's size" do
      test = self()

      buffer =
        start_buffer(
          partitions: 1,
          processor: fn _batch -> {:error, :down} end,
          processing_batch_size: 50,
          retry_backoff_ms: {60_000, 60_000},
          max_attempts: :infinity,
          dead_letter: fn entries, :stopped -> send(test, {:dead, length(entries)}) end,
          drain_timeout_ms: 100
        )

      Buffer.put_all(buffer, for(n <- 1..100, do: {n, n}))
      capture_log(fn -> Buffer.stop(buffer) end)

      sizes = fn sizes, all ->
        receive(do: ({:dead, size} -> sizes.(sizes, [size | all])), after: (0 -> all))
      end

      sizes = sizes.(sizes, [])
      assert Enum.sum(sizes) == 100
      assert Enum.max(sizes) == 50
      assert length(sizes) <= 4
    end
  end

  describe "a drainer that dies while it finishes" do
    test "is replaced: all entries left are given up" do
      test = self()

      dead_letter = fn entries, :stopped ->
        send(test, {:dead, self(), entries})
        receive(do: (:return -> :ok))
      end

      buffer =
        start_buffer(
          module: Queue,
          partitions: 1,
          processor: fn _batch -> {:error, :down} end,
          processing_batch_size: 1,
          max_attempts: :infinity,
          dead_letter: dead_letter,
          drain_timeout_ms: 2_000
        )

      Queue.push(buffer, [1, 2, 3])
      drainer = PartitionedBuffer.Native.process(run(buffer), :drainer, :drainer)
      stop = Task.async(fn -> Buffer.stop(buffer) end)
      assert_receive {:dead, task, [1]}
      kill_processes([drainer])
      # The task lives on, and its call is not made again if it returns in time.
      send(task, :return)

      for item <- [2, 3] do
        assert_receive {:dead, task, [^item]}
        send(task, :return)
      end

      assert Task.await(stop) == :ok
      refute_received {:dead, _task, _entries}
    end
  end

  describe "a killed stop" do
    for {how, opts} <- [without: [], with: [max_attempts: 3]] do
      test "never closes the next buffer, #{how} outcomes" do
        ask = asking_processor()

        # A task that outlives its supervisor.
        processor = fn batch ->
          Process.flag(:trap_exit, true)
          ask.(batch)
        end

        opts = [processor: processor, processing_batch_size: 1] ++ unquote(opts)
        buffer = start_buffer([partitions: 2] ++ opts)
        for n <- 0..1, do: Buffer.put(buffer, n, n, partition_key: partition_key_of(n, 2))
        {supervisor, drainer} = {Lookup.supervisor(buffer), drainer(buffer)}
        refs = for pid <- [supervisor, drainer], do: Process.monitor(pid)
        stop = Task.async(fn -> catch_exit(Buffer.stop(buffer)) end)
        tasks = for _ <- 1..2, do: assert_receive({:asked, _pid, _batch}) |> elem(1)
        Process.exit(supervisor, :kill)
        assert {_killed, {GenServer, :stop, _args}} = Task.await(stop)

        start_buffer(name: buffer, partitions: 2, processing_batch_size: 1)
        # The stop waited for these tasks.
        for task <- tasks, do: send(task, :return)
        for ref <- refs, do: assert_receive({:DOWN, ^ref, :process, _pid, _reason})
        for n <- 0..1, do: assert(Buffer.put(buffer, n, :new, partition_key: partition_key_of(n, 2)) == :ok)
        refute Enum.any?(Buffer.info(buffer).partitions, &(&1.state == :closed))
        assert Buffer.flush(buffer) == :ok
        assert {0, :new, 0, 0} in received_entries()
      end
    end
  end

  describe "a list" do
    test "is whole when a stop comes in the middle, with a bound and without" do
      for max_size <- [:infinity, 300_000], _round <- 1..5, do: stop_in_list(200_000, max_size)
    end

    test "of a suspended writer holds up a stop for a limited time" do
      buffer = start_buffer(max_size: 300_000)
      list = for n <- 1..200_000, do: {n, {n}}
      writer = spawn(fn -> Buffer.put_all(buffer, list) end)
      await_first(buffer)
      :erlang.suspend_process(writer)
      # The list may be through.
      is_whole = Buffer.size(buffer) == 200_000
      {us, :ok} = :timer.tc(fn -> Buffer.stop(buffer) end)
      assert is_whole or us in 5_000_000..8_000_000
      Process.exit(writer, :kill)
    end
  end

  describe "the processor of a buffer that stops" do
    for {how, call} <- [
          itself: quote(do: & &1.()),
          "in a task of its own": quote(do: &Task.await(Task.async(&1)))
        ] do
      test "writes to its buffer by any call, #{how}; all of it is processed" do
        call = unquote(call)

        for {partitions, opts} <- [{1, []}, {3, []}, {3, [partition_key: :all]}, {3, [partition_key: & &1]}] do
          buffer = unique_name()
          # In one chunk of the NIF, and in several.
          pairs = for n <- 1..5_000, do: {{:listed, n}, n}

          writes = fn ->
            :ok = Buffer.put(buffer, :put, 1, opts)
            :ok = Buffer.put_newer(buffer, :newer, 1, 1, opts)
            :ok = Buffer.put_newer(buffer, :newer, 2, 2, opts)
            :ok = Buffer.put_all(buffer, %{in_map: 1}, opts)
            :ok = Buffer.put_all(buffer, [{:in_list, 1}], opts)
            :ok = Buffer.put_all(buffer, pairs, opts)
            :ok = Buffer.put_all_newer(buffer, [{:in_newer, 1, 1}], opts)
          end

          processor = processor_that(fn -> call.(writes) end)

          start_buffer(
            name: buffer,
            partitions: partitions,
            processor: processor,
            processing_batch_size: 10_000
          )

          Buffer.put(buffer, :first, 1)
          assert Buffer.stop(buffer) == :ok
          entries = received_entries()
          assert {:newer, 2, 2, 1} in entries
          others = [:first, :put, :newer, :in_map, :in_list, :in_newer]
          assert keys(entries) == Enum.sort(others ++ for({key, _value} <- pairs, do: key))
        end
      end

      test "pushes to its queue, #{how}, and the stop processes all of it in order" do
        call = unquote(call)

        for {partitions, opts} <- [{1, []}, {3, []}, {3, [partition_key: :all]}, {3, [partition_key: & &1]}] do
          queue = unique_name()

          writes = fn ->
            :ok = Queue.push(queue, 1, opts)
            :ok = Queue.push(queue, [2, 3], opts)
            :ok = Queue.push(queue, Enum.to_list(4..5_000), opts)
          end

          processor = processor_that(fn -> call.(writes) end)

          start_buffer(
            module: Queue,
            name: queue,
            partitions: partitions,
            processor: processor,
            processing_batch_size: 10_000
          )

          Queue.push(queue, 0)
          assert Queue.stop(queue) == :ok
          [[0] | batches] = received_batches()
          assert Enum.sort(Enum.concat(batches)) == Enum.to_list(1..5_000)
          assert Enum.all?(batches, &(&1 == Enum.sort(&1)))
        end
      end
    end

    test "writes each list entry once, while other partitions have nothing left" do
      test = self()
      queue = unique_name()

      processor = fn
        [:held] ->
          send(test, {:held, self()})
          receive(do: (:write -> Queue.push(queue, Enum.to_list(1..3_000))))

        batch ->
          send(test, {:batch, batch})
      end

      start_buffer(module: Queue, name: queue, processor: processor, processing_batch_size: 10_000)
      Queue.push(queue, :held, partition_key: partition_key_of(0, 2))
      [held | _] = partitions(queue)
      tick(held)
      assert_receive {:held, task}
      Queue.push(queue, :rest, partition_key: partition_key_of(1, 2))
      stop = Task.async(fn -> Queue.stop(queue) end)
      # From now on this partition refuses all writes but those of processors, and the other takes them all.
      assert_receive {:batch, [:rest]}
      assert refused?(fn -> Queue.push(queue, :other, partition_key: partition_key_of(1, 2)) end)
      assert Queue.push(queue, :other, partition_key: partition_key_of(0, 2)) == :ok
      send(task, :write)
      assert Task.await(stop) == :ok
      items = Enum.sort(received_entries())
      assert items == Enum.to_list(1..3_000) ++ [:other]
    end

    test "lets other processes read and delete, while their writes are refused" do
      buffer = start_buffer(partitions: 2, processor: asking_processor())
      for n <- 0..1, do: Buffer.put(buffer, n, n, partition_key: partition_key_of(n, 2))
      stop = Task.async(fn -> Buffer.stop(buffer) end)
      assert_receive {:asked, one, [{n, n, 0, 0}]}
      assert_receive {:asked, other, _batch}
      # The first partition has nothing left to process.
      ref = Process.monitor(one)
      send(one, :return)
      assert_receive {:DOWN, ^ref, :process, ^one, :normal}

      opts = [partition_key: partition_key_of(n, 2)]
      assert Buffer.get(buffer, n, :none, opts) == :none
      assert Buffer.size(buffer) == 0
      assert Buffer.delete(buffer, n, opts) == :ok
      assert refused?(fn -> Buffer.put(buffer, n, n, opts) end)
      assert refused?(fn -> Buffer.put_all(buffer, [{n, n}], opts) end)
      send(other, :return)
      assert Task.await(stop) == :ok
      assert refused?(fn -> Buffer.get(buffer, n) end)
    end

    for {label, opts} <- [no: [], with: [max_attempts: 3, drain_timeout_ms: :infinity]] do
      test "gets ten passes if it always writes (#{label} outcomes); logs it" do
        test = self()
        buffer = unique_name()

        writes_again = fn batch ->
          send(test, {:batch, batch})
          Buffer.put_all(buffer, for({n, n, 0, 0} <- batch, do: {n + 2, n + 2}))
        end

        start_buffer([name: buffer, partitions: 1, processor: writes_again] ++ unquote(opts))
        Buffer.put_all(buffer, [{1, 1}, {2, 2}])
        log = capture_log(fn -> assert Buffer.stop(buffer) == :ok end)

        assert log =~
                 ~r/buffer #{inspect(buffer)} stopped after \d+ ms: 2 entries are kept/

        assert keys(received_entries()) == Enum.to_list(1..20)

        start_buffer(name: buffer, partitions: 1)
        assert Buffer.stop(buffer) == :ok
        assert keys(received_entries()) == [21, 22]
      end
    end
  end

  describe "a processor that hangs at a stop" do
    test "is killed after its timeout if called before a stop; the rest is kept" do
      test = self()

      processor = fn [{key, _, _, _}] = batch ->
        if key == :hang, do: never_returns(batch, test), else: send(test, {:batch, batch})
      end

      opts = [partitions: 1, processor: processor, processing_batch_size: 1]
      buffer = start_buffer([processing_timeout_ms: 10] ++ opts)
      Buffer.put(buffer, :hang, 1)
      tick(hd(partitions(buffer)))
      assert_receive {:batch, [{:hang, 1, 0, 0}]}
      for n <- 1..3, do: Buffer.put(buffer, n, n)

      log = capture_log(fn -> assert Buffer.stop(buffer) == :ok end)
      assert log =~ "partition 0 of buffer #{inspect(buffer)} kills its processor"
      assert log =~ "longer than 10 ms"

      assert log =~
               ~r/buffer #{inspect(buffer)} stopped after \d+ ms: 3 entries are kept/

      refute_received {:batch, _batch}

      start_buffer([name: buffer] ++ opts)
      assert Buffer.stop(buffer) == :ok
      assert keys(received_entries()) == [1, 2, 3]
    end

    test "is killed after five seconds if called in the stop; the rest is kept" do
      test = self()
      calls = :counters.new(1, [])

      second_hangs = fn batch ->
        :counters.add(calls, 1, 1)
        if :counters.get(calls, 1) == 2, do: never_returns(batch, test), else: send(test, {:batch, batch})
      end

      stops =
        for {processor, size, left} <- [{second_hangs, 10, 15}, {&never_returns(&1, test), :table, 0}] do
          opts = [partitions: 1, processor: processor, processing_batch_size: size, processing_timeout_ms: 50]
          buffer = start_buffer(opts)
          Buffer.put_all(buffer, for(n <- 1..35, do: {n, n}))
          {buffer, left, Task.async(fn -> :timer.tc(fn -> Buffer.stop(buffer) end) end)}
        end

      log =
        capture_log(fn ->
          for {_buffer, _left, stop} <- stops do
            assert {microseconds, :ok} = Task.await(stop, 30_000)
            assert microseconds in 5_000_000..8_000_000
          end
        end)

      for {buffer, left, _stop} <- stops do
        assert log =~
                 "partition 0 of buffer #{inspect(buffer)} kills its processor: a call took longer than 5000 ms"

        kept = ~r/buffer #{inspect(buffer)} stopped after \d+ ms: #{left} entries are kept/

        assert log =~ kept == left > 0
      end

      assert length(received_batches()) == 3
    end
  end

  ## Processors

  # Sends each batch to the test, and calls `function` with the first.
  defp processor_that(function) do
    test = self()
    calls = :counters.new(1, [])

    fn batch ->
      :counters.add(calls, 1, 1)
      send(test, {:batch, batch})
      if :counters.get(calls, 1) == 1, do: function.()
    end
  end

  # Sends each batch to the test when it is called, and again when it returns.
  defp asking_and_returning_processor do
    test = self()
    ask = asking_processor()

    fn batch ->
      ask.(batch)
      send(test, {:batch, batch})
    end
  end

  defp never_returns(batch, test) do
    send(test, {:batch, batch})
    receive(do: (:never -> :ok))
  end

  defp await_batch do
    assert_receive {:asked, pid, batch}
    {pid, batch}
  end

  ## Writes

  defp refused?(write) do
    error = catch_error(write.())
    Exception.message(error) =~ "no partitions available"
  end

  # Whether a stop cut short a list of this size. Up to 128 entries are written at once, lock by lock. So there may be gaps
  # among the last ones.
  defp stop_in_list(size, max_size) do
    buffer = start_buffer(processing_batch_size: 1_000, max_size: max_size)
    list = for n <- 1..size, do: {n, {n}}
    writer = Task.async(fn -> Buffer.put_all(buffer, list) end)
    await_first(buffer)
    Buffer.stop(buffer)
    assert Task.await(writer) == :ok
    assert Enum.sort(for {key, {key}, 0, 0} <- received_entries(), do: key) == Enum.to_list(1..size)
  end

  defp await_first(buffer), do: if(Buffer.size(buffer) == 0, do: await_first(buffer))

  ## Processes

  # Stops a buffer whose supervisor learns too late that these processes are dead, and restarts
  # none.
  defp stop_with_dead(buffer, pids) do
    supervisor = Lookup.supervisor(buffer)
    :erlang.suspend_process(supervisor)
    stop = Task.async(fn -> Buffer.stop(buffer) end)
    await_messages(supervisor, 1)
    kill_processes(pids)
    :erlang.resume_process(supervisor)
    stop
  end

  # The last child, which a supervisor ends first.
  defp drainer(buffer) do
    children = Supervisor.which_children(PartitionedBuffer.Routing.supervisor_name(buffer))

    Enum.find_value(children, fn {id, pid, _type, _modules} ->
      if id == {PartitionedBuffer.Buffer.Drainer, :last}, do: pid
    end)
  end

  # Waits until a stop has this number of passes under way. The drainer monitors the passes and its
  # supervisor.
  defp await_passes(drainer, count) do
    {:monitors, monitored} = Process.info(drainer, :monitors)
    length(monitored) == count + 1 || await_passes(drainer, count)
  end

  # Waits until this number of messages is in the queue of a busy process.
  defp await_messages(pid, number) do
    Process.info(pid, :message_queue_len) == {:message_queue_len, number} || await_messages(pid, number)
  end
end
