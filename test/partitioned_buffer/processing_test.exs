defmodule PartitionedBuffer.ProcessingTest do
  use PartitionedBuffer.Case, async: true

  alias PartitionedBuffer.{Flush, Native, Options}

  @moduletag :capture_log

  # A processor that tells the test what it got and does what the test answers.
  defp asking_processor do
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

  defp answer(answer) do
    assert_receive {:asked, pid, batch}
    ref = Process.monitor(pid)
    if answer == :kill, do: Process.exit(pid, :kill), else: send(pid, answer)
    {batch, ref}
  end

  def process(batch, test, tag), do: send(test, {tag, batch})

  test "an interval flushes what is there, in batches of which only the last is short" do
    buffer = start_buffer(partitions: 1, processing_interval_ms: 20)
    Buffer.put_all(buffer, for(n <- 1..25, do: {n, n}))
    assert_receive {:batch, first}
    assert_receive {:batch, second}
    assert_receive {:batch, third}
    assert Enum.map([first, second, third], &length/1) == [10, 10, 5]
    assert keys(first ++ second ++ third) == Enum.to_list(1..25)
    assert Buffer.size(buffer) == 0
  end

  # A task of a killed supervision tree may still be at work when the next one has started.
  test "two tasks at work on one flush give no entry to the processor twice" do
    buffer = start_buffer(partitions: 1)
    Buffer.put_all(buffer, for(n <- 1..8, do: {n, n}))
    {:fresh, flush} = Native.flush(buffer, 0)
    options = %Options{name: buffer, module: Buffer, processing_batch_size: 2, processor: asking_processor()}
    process = fn -> Flush.process(flush, options, :partition) end
    first = Task.async(process)
    assert_receive {:asked, pid, one}
    %Task{pid: second_pid} = second = Task.async(process)
    # Both are in a batch of theirs; the first goes on where the second already is.
    assert_receive {:asked, ^second_pid, two}
    send(pid, :return)
    assert_receive {:asked, ^pid, three}
    send(second_pid, :return)
    assert_receive {:asked, last_pid, four}
    for pid <- [pid, last_pid], do: send(pid, :return)
    Task.await_many([first, second])
    assert keys(one ++ two ++ three ++ four) == Enum.to_list(1..8)
  end

  test "of two tasks that read the same entries at the same time one gives them to the processor" do
    buffer = start_buffer(partitions: 1)
    Buffer.put_all(buffer, for(n <- 1..20_000, do: {n, n}))
    {:fresh, flush} = Native.flush(buffer, 0)
    given = :counters.new(20_000, [])
    processor = fn [{n, n, 0, 0}] -> :counters.add(given, n, 1) end
    options = %Options{name: buffer, module: Buffer, processing_batch_size: 1, processor: processor}
    task = fn _ -> Task.async(fn -> Flush.process(flush, options, :partition) end) end
    1..2 |> Enum.map(task) |> Task.await_many()
    assert Enum.frequencies_by(1..20_000, &:counters.get(given, &1)) == %{1 => 20_000}
  end

  test "of two tasks that fill a table at the same time one has all entries in it" do
    buffer = start_buffer(partitions: 1)
    Buffer.put_all(buffer, for(n <- 1..20_000, do: {n, n}))
    {:fresh, flush} = Native.flush(buffer, 0)
    test = self()
    processor = fn table -> send(test, {:size, :ets.info(table, :size)}) end
    options = %Options{name: buffer, module: Buffer, processing_batch_size: :table, processor: processor}
    task = fn n -> Task.async(fn -> Flush.process(flush, options, :"#{buffer}.#{n}") end) end
    1..2 |> Enum.map(task) |> Task.await_many()
    assert_received {:size, one}
    assert_received {:size, other}
    assert Enum.sort([one, other]) == [0, 20_000]
  end

  test "an MFA processor gets the batch before its arguments" do
    buffer = start_buffer(processor: {__MODULE__, :process, [self(), :tag]})
    Buffer.put(buffer, 1, 2)
    flush(buffer)
    assert_received {:tag, [{1, 2, 0, 0}]}
  end

  test "a batch size may be any positive integer" do
    buffer = start_buffer(processing_batch_size: Integer.pow(10, 30))
    Buffer.put(buffer, 1, 1)
    flush(buffer)
    assert_received {:batch, [{1, 1, 0, 0}]}
  end

  test "batches larger than a time slice of the reading NIF are whole" do
    buffer = start_buffer(partitions: 1, processing_batch_size: 100_000)
    Buffer.put_all(buffer, for(n <- 1..150_000, do: {n, {n, "value", [n]}}))
    flush(buffer)
    assert_received {:batch, first}
    assert_received {:batch, second}
    assert length(first) == 100_000
    assert keys(first ++ second) == Enum.to_list(1..150_000)
  end

  test "a flush in which most entries were deleted gives the others" do
    buffer = start_buffer(partitions: 1, processing_batch_size: 3)
    Buffer.put_all(buffer, for(n <- 1..300_000, do: {n, n}))
    kept = [1, 2, 150_000, 299_999]
    for n <- 1..300_000, n not in kept, do: Buffer.delete(buffer, n)
    flush(buffer)
    assert_received {:batch, [_, _, _] = first}
    assert_received {:batch, [_] = second}
    refute_received {:batch, _batch}
    assert keys(first ++ second) == kept
  end

  test "writes go on while a batch is processed, and are in the next flush" do
    buffer = start_buffer(partitions: 1, processor: asking_processor())
    Buffer.put(buffer, :key, 1)
    [partition] = partitions(buffer)
    tick(partition)
    assert_receive {:asked, pid, [{:key, 1, 0, 0}]}
    assert Buffer.get(buffer, :key) == nil
    Buffer.put(buffer, :key, 2)
    assert Buffer.get(buffer, :key) == 2
    refute_received {:asked, _pid, _batch}
    send(pid, :return)
    wait_idle(partition)
    assert Buffer.get(buffer, :key) == 2
    tick(partition)
    assert {[{:key, 2, 0, 0}], _ref} = answer(:return)
  end

  for {how, answer} <- [
        raises: {:raise, "no"},
        throws: {:throw, :ball},
        exits: {:exit, :reason},
        "is killed": :kill
      ] do
    test "a processor that #{how} loses what it was called with, and nothing else" do
      buffer = start_buffer(partitions: 1, processor: asking_processor())
      Buffer.put_all(buffer, for(n <- 1..25, do: {n, n}))
      [partition] = partitions(buffer)
      tick(partition)
      {first, _ref} = answer(:return)
      {second, ref} = answer(unquote(Macro.escape(answer)))
      assert_receive {:DOWN, ^ref, :process, _pid, _reason}
      wait_idle(partition)

      Buffer.put(buffer, :later, 1)
      tick(partition)
      {rest, _ref} = answer(:return)
      assert Enum.map([first, second, rest], &length/1) == [10, 10, 5]
      assert keys(first ++ second ++ rest) == Enum.to_list(1..25)
      # What came in since follows without waiting for another interval.
      assert {[{:later, 1, 0, 0}], _ref} = answer(:return)
    end
  end

  test "a killed partition loses nothing: the task goes on, what came in is kept" do
    buffer = start_buffer(partitions: 1, processor: asking_processor())
    Buffer.put_all(buffer, for(n <- 1..15, do: {n, n}))
    [partition] = partitions(buffer)
    tick(partition)
    assert_receive {:asked, task, first}
    Buffer.put(buffer, :later, 1)
    kill_and_await_restart(partition)
    # The task of the former process counts as in flight.
    tick(partition)
    assert Buffer.get(buffer, :later) == 1
    refute_received {:asked, _pid, _batch}
    send(task, :return)
    {second, _ref} = answer(:return)
    assert keys(first ++ second) == Enum.to_list(1..15)
    # The tick that came meanwhile is made good.
    assert {[{:later, 1, 0, 0}], _ref} = answer(:return)
  end

  test "a killed task supervisor takes only the batch in flight along" do
    buffer = start_buffer(partitions: 1, processor: asking_processor())
    Buffer.put_all(buffer, for(n <- 1..15, do: {n, n}))
    [partition] = partitions(buffer)
    supervisor = PartitionedBuffer.Partition.task_supervisor(buffer, 0)
    tick(partition)
    assert_receive {:asked, task, first}
    ref = Process.monitor(task)
    kill_and_await_restart(supervisor)
    assert_receive {:DOWN, ^ref, :process, _pid, _reason}
    wait_idle(partition)
    tick(partition)
    {rest, _ref} = answer(:return)
    assert length(first) == 10
    assert keys(first ++ rest) == Enum.to_list(1..15)
  end

  test "a killed supervision tree loses nothing that was not flushed, with any number of partitions after" do
    for after_partitions <- [3, 1, 5] do
      name = unique_name()
      opts = [name: name, processor: asking_processor(), partitions: 3, processing_interval_ms: 86_400_000]

      sup =
        start_supervised!(%{
          id: :tree,
          start: {Buffer, :start_link, [opts]},
          type: :supervisor,
          restart: :temporary
        })

      Buffer.put_all(name, for(n <- 1..100, do: {n, n}))
      tree = [sup | for({_id, pid, _type, _modules} <- Supervisor.which_children(sup), do: pid)]
      refs = Enum.map(tree, &Process.monitor/1)
      for pid <- tree, do: Process.exit(pid, :kill)
      for ref <- refs, do: assert_receive({:DOWN, ^ref, :process, _pid, _reason})

      start_buffer(name: name, partitions: after_partitions, processing_batch_size: 1_000)
      Buffer.put(name, :new, 1)
      # What was left comes first, then what is new; each needs a flush of its own.
      for _ <- 1..4, do: flush(name)
      keys = Enum.map(received_entries(), &elem(&1, 0))
      assert Enum.sort(keys) == Enum.to_list(1..100) ++ [:new]
      stop_supervised!(name)
    end
  end

  describe "a partition that is killed" do
    test "ends the buffer at the fourth time, and at three times more for each partition" do
      for {partitions, times} <- [{1, 6}, {4, 15}] do
        buffer = start_buffer(partitions: partitions)
        supervisor = PartitionedBuffer.Supervisor.whereis(buffer)
        ref = Process.monitor(supervisor)
        [partition | _] = partitions(buffer)
        for _ <- 1..times, do: kill_and_await_restart(partition)
        assert PartitionedBuffer.Supervisor.whereis(buffer) == supervisor

        Process.exit(Process.whereis(partition), :kill)
        assert_receive {:DOWN, ^ref, :process, ^supervisor, :shutdown}, 5_000
      end
    end
  end

  describe "a buffer whose supervisor would have the name of another process" do
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
      for stop <- [&Buffer.stop/1, &PartitionedBuffer.stop/1, &PartitionedBuffer.Queue.stop/1] do
        assert catch_exit(stop.(name)) == {:noproc, {GenServer, :stop, [supervisor, :normal, :infinity]}}
      end

      assert Process.whereis(supervisor) == app
      assert Supervisor.which_children(app) == []
    end
  end

  describe "stop/3" do
    test "returns from all calls that come while the buffer is stopping" do
      {:ok, owner} = ExUnit.fetch_test_supervisor()

      for first <- [&Buffer.stop/1, &Buffer.stop(&1, :shutdown), &Supervisor.terminate_child(owner, &1)] do
        buffer = start_buffer(partitions: 1, processor: asking_processor())
        supervisor = PartitionedBuffer.Supervisor.whereis(buffer)
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
      supervisor = PartitionedBuffer.Supervisor.whereis(buffer)
      Buffer.put(buffer, :key, 1)
      stop = fn timeout -> catch_exit(Buffer.stop(buffer, :normal, timeout)) end
      stops = [Task.async(fn -> stop.(:infinity) end)]
      assert_receive {:asked, _processor, _batch}
      assert {:timeout, {GenServer, :stop, _}} = stop.(10)
      {:message_queue_len, messages} = Process.info(supervisor, :message_queue_len)
      stops = [Task.async(fn -> stop.(:infinity) end) | stops]
      await_messages(supervisor, messages + 1)
      children = [hd(partitions(buffer)), PartitionedBuffer.Partition.task_supervisor(buffer, 0)]
      refs = for child <- children, do: Process.monitor(child)
      Process.exit(supervisor, :kill)

      assert [{{:killed, _}, {GenServer, :stop, _}}, {:killed, {GenServer, :stop, _}}] =
               Task.await_many(stops)

      # What they log of their end is this test's.
      for ref <- refs, do: assert_receive({:DOWN, ^ref, :process, _pid, _reason}, 5_000)
    end

    test "exits in the process that it would stop" do
      assert {:calling_self, _call} = catch_exit(Buffer.stop(self()))
    end

    # What a process is asked while it is busy.
    defp await_messages(pid, number) do
      Process.info(pid, :message_queue_len) == {:message_queue_len, number} || await_messages(pid, number)
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

    test "waits for the batch in flight, then processes the rest, in that order" do
      buffer = start_buffer(partitions: 1, processor: asking_processor())
      Buffer.put_newer(buffer, :key, :old, 1)
      [partition] = partitions(buffer)
      tick(partition)
      assert_receive {:asked, first, [{:key, :old, 1, 0}]}
      Buffer.put_newer(buffer, :key, :new, 2)
      stop = Task.async(fn -> Buffer.stop(buffer) end)
      # The rest does not come while the batch in flight is at work.
      refute_receive {:asked, _pid, _batch}, 200
      assert Process.alive?(first)
      send(first, :return)
      assert {[{:key, :new, 2, 0}], _ref} = answer(:return)
      assert Task.await(stop) == :ok
      assert_raise ArgumentError, fn -> Buffer.put(buffer, :key, 1) end
    end

    test "ends all partitions at the same time" do
      buffer = start_buffer(partitions: 4, processor: asking_processor())
      Buffer.put_all(buffer, for(n <- 1..4, do: {n, n}), partition_key: nil)
      for n <- 0..3, do: Buffer.put(buffer, {:in, n}, n, partition_key: partition_key_of(n, 4))
      stop = Task.async(fn -> Buffer.stop(buffer) end)
      # None has been answered, so these four are at work at once.
      pids = for _ <- 1..4, do: assert_receive({:asked, _pid, _batch}) |> elem(1)
      assert length(Enum.uniq(pids)) == 4
      for pid <- pids, do: send(pid, :return)
      assert Task.await(stop) == :ok
    end

    test "returns when everything has been processed, failures of single batches notwithstanding" do
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

    test "takes longer than the five seconds of OTP's default if the processor does" do
      test = self()
      # Held until the test lets it go, after the time that a worker of OTP has.
      buffer =
        start_buffer(
          partitions: 1,
          processor: fn batch -> send(test, {:held, self(), batch}) && receive(do: (:go -> :ok)) end
        )

      Buffer.put(buffer, 1, 1)
      stop = Task.async(fn -> Buffer.stop(buffer) end)
      assert_receive {:held, pid, [{1, 1, 0, 0}]}
      ref = Process.monitor(pid)
      refute_receive {:DOWN, ^ref, :process, ^pid, _reason}, 5_500
      send(pid, :go)
      assert_receive {:DOWN, ^ref, :process, ^pid, :normal}
      assert Task.await(stop) == :ok
    end

    test "gives each batch its time, also of a task that has outlived its partition" do
      test = self()

      processor = fn batch ->
        send(test, {:batch, self(), batch})
        # Slow: all of them together take longer than one may.
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

  test "a supervisor that ends the buffer lets it process all it has" do
    buffer = start_buffer(partitions: 3)
    Buffer.put_all(buffer, for(n <- 1..1_000, do: {n, n}))
    stop_supervised!(buffer)
    assert Enum.sort(for {key, _, _, _} <- received_entries(), do: key) == Enum.to_list(1..1_000)
  end

  test "the same name is started once" do
    name = unique_name()
    opts = [name: name, processor: &Function.identity/1]
    {:ok, pid} = Buffer.start_link(opts)
    Buffer.put(name, 1, 1)
    assert Buffer.start_link(opts) == {:error, {:already_started, pid}}
    assert Buffer.get(name, 1) == 1
    assert Process.whereis(Module.concat(name, Supervisor)) == pid
  end

  test "writers that race with ticks lose nothing" do
    buffer = start_buffer(processing_interval_ms: 1, processing_batch_size: 100)
    writers = 4
    writes = 20_000

    1..writers
    |> Task.async_stream(
      fn writer -> for n <- 1..writes, do: :ok = Buffer.put_newer(buffer, {writer, rem(n, 500)}, n, n) end,
      timeout: :infinity
    )
    |> Stream.run()

    Buffer.stop(buffer)
    entries = received_entries()
    # What was coalesced is in the count of updates: each write is in exactly one flush.
    assert Enum.sum(for {_, _, _, updates} <- entries, do: updates + 1) == writers * writes

    for {_key, versions} <- Enum.group_by(entries, &elem(&1, 0), &elem(&1, 2)) do
      assert versions == Enum.sort(versions)
    end
  end

  # Their order within a flush is not promised.
  defp keys(entries), do: entries |> Enum.map(&elem(&1, 0)) |> Enum.sort()

  # A term that routes to the partition `number` of so many.
  defp partition_key_of(number, partitions),
    do: Enum.find(1..1_000, &(:erlang.phash2(&1, partitions) == number))
end
