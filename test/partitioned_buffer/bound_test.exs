defmodule PartitionedBuffer.BoundTest do
  # `:max_size`, `:when_full`, `:full_timeout_ms` and `:processing_threshold`.
  use PartitionedBuffer.Case, async: true

  import ExUnit.CaptureLog

  alias PartitionedBuffer.{FullError, Native, Queue, Routing}

  # A processor that waits for an answer is killed at the end of its test.
  @moduletag :capture_log

  # Flushes only when it is asked to, or when it is full.
  defp start(opts) do
    [
      partitions: 1,
      processing_interval_ms: :infinity,
      processor: &Function.identity/1,
      full_timeout_ms: 60_000,
      drain_timeout_ms: 0
    ]
    |> Keyword.merge(opts)
    |> start_buffer()
  end

  # A buffer whose processor waits for an answer of the test, and nobody flushes it by itself: the first batch is in the
  # processor, and `size` entries are held.
  defp start_full(size, opts) do
    buffer = start([processor: asking(), max_size: size, processing_batch_size: 1] ++ opts)
    put = if opts[:module] == Queue, do: &Queue.push(buffer, &1), else: &Buffer.put(buffer, &1, &1)
    put.(1)
    PartitionedBuffer.flush(buffer, async: true)
    task = asked()
    if size > 1, do: for(n <- 2..size, do: put.(n))
    {buffer, task}
  end

  defp asking do
    test = self()

    fn batch ->
      send(test, {:asked, self(), batch})
      receive(do: ({:answer, outcome} -> outcome))
    end
  end

  defp sending do
    test = self()
    &send(test, {:batch, &1})
  end

  defp asked do
    assert_receive {:asked, task, _batch}
    task
  end

  defp reply(task), do: send(task, {:answer, :ok})

  # The next batch.
  defp reply_and_await(task) do
    reply(task)
    asked()
  end

  # Answers until the processor is not called any more.
  defp answer_all(buffer) do
    %Task{ref: ref} = Task.async(fn -> PartitionedBuffer.flush(buffer) end)
    answer_until(ref)
  end

  defp answer_until(ref) do
    receive do
      {:asked, task, _batch} ->
        reply(task)
        answer_until(ref)

      {^ref, result} ->
        Process.demonitor(ref, [:flush])
        result
    end
  end

  # A process that writes, and waits for room. It tells the test its result.
  defp writer(fun) do
    test = self()

    spawn(fn ->
      result =
        try do
          fun.()
        rescue
          error -> error
        end

      send(test, {:wrote, self(), result})
    end)
  end

  # Answers the processor until this writer has written.
  defp answer_until_written(writer) do
    receive do
      {:asked, task, _batch} ->
        reply(task)
        answer_until_written(writer)

      {:wrote, ^writer, result} ->
        assert result == :ok
    end
  end

  # Until so many writers wait.
  defp await_waiting(buffer, count) do
    if PartitionedBuffer.info(buffer).waiting_writers != count, do: await_waiting(buffer, count)
  end

  defp held(buffer) do
    info = PartitionedBuffer.info(buffer)
    info.size + info.in_flight
  end

  defp attach_full(buffer) do
    test = self()
    id = {__MODULE__, make_ref()}
    events = for suffix <- [:start, :stop], do: [:partitioned_buffer, :full, suffix]

    forward = fn [_, :full, what], measurements, metadata, _config ->
      if metadata.buffer == buffer, do: send(test, {:full, what, measurements})
    end

    :telemetry.attach_many(id, events, forward, nil)
    on_exit(fn -> :telemetry.detach(id) end)
  end

  describe "a full buffer" do
    test "makes a write wait until there is room" do
      {buffer, task} = start_full(2, max_attempts: 3)
      pid = writer(fn -> Buffer.put(buffer, 3, 3) end)
      await_waiting(buffer, 1)
      assert {held(buffer), Buffer.get(buffer, 3)} == {2, nil}
      reply(task)
      assert_receive {:wrote, ^pid, :ok}
      assert {held(buffer), Buffer.get(buffer, 3)} == {2, 3}
      assert answer_all(buffer) == :ok

      assert %{waiting_writers: 0, totals: %{written: 3, processed: 3, refused: 0}} =
               PartitionedBuffer.info(buffer)
    end

    test "updates a waiting key, and reports :stale and :exists before :full" do
      {buffer, _task} = start_full(2, max_attempts: 3, when_full: :error, full_timeout_ms: 0)
      assert Buffer.put(buffer, 2, :newer) == :ok
      assert Buffer.put_newer(buffer, 2, :newest, 5) == :ok
      assert Buffer.put_newer(buffer, 2, :stale, 5, stale: :error) == {:error, :stale}
      assert Buffer.put_newer(buffer, 1, :stale, 0, stale: :error) == {:error, :stale}
      assert Buffer.put_new(buffer, 1, :there) == {:error, :exists}
      assert Buffer.put_new(buffer, 2, :there) == {:error, :exists}
      assert Buffer.put_new(buffer, 3, :new) == {:error, :full}
      assert Buffer.put_newer(buffer, 1, :newer, 1) == {:error, :full}
      assert Buffer.put_newer(buffer, 1, :newer, 1, stale: :error) == {:error, :full}
      assert Buffer.get(buffer, 2) == :newest
    end

    test "takes a stale write that has waited as one that has not" do
      for {opts, result} <- [{[], :ok}, {[stale: :error], {:error, :stale}}] do
        {buffer, _task} = start_full(2, max_attempts: 3)
        newer = writer(fn -> Buffer.put_newer(buffer, :key, :newer, 9) end)
        await_waiting(buffer, 1)
        older = writer(fn -> Buffer.put_newer(buffer, :key, :older, 5, opts) end)
        await_waiting(buffer, 2)
        Buffer.delete(buffer, 2)
        assert_receive {:wrote, ^newer, :ok}
        PartitionedBuffer.update_options(buffer, max_size: 3)
        assert_receive {:wrote, ^older, ^result}
        assert Buffer.get(buffer, :key) == :newer
        assert Buffer.put_newer(buffer, :key, :older, 5, opts) == result
        assert %{stale: 2, refused: 0, dropped: 0} = PartitionedBuffer.info(buffer).totals
      end
    end

    test "raises, returns an error or drops the write on timeout, and counts it" do
      {buffer, _task} = start_full(1, full_timeout_ms: 10, max_attempts: 1)

      error = assert_raise FullError, fn -> Buffer.put(buffer, 2, 2) end
      assert %FullError{buffer: ^buffer, max_size: 1, waited_ms: waited} = error
      assert waited >= 10
      assert Exception.message(error) =~ "buffer #{inspect(buffer)} is full: it holds at most 1 entries"

      PartitionedBuffer.update_options(buffer, when_full: :error)
      assert Buffer.put(buffer, 2, 2) == {:error, :full}
      assert_raise ArgumentError, fn -> Buffer.put_all(buffer, a: 1, b: 2) end
      assert Buffer.put_all(buffer, a: 1) == {:error, :full}
      PartitionedBuffer.update_options(buffer, when_full: :drop_newest, full_timeout_ms: 0)
      assert Buffer.put(buffer, 2, 2) == :ok
      assert Buffer.put_all(buffer, %{a: 1}) == :ok
      assert %{refused: 3, dropped: 2, written: 1} = PartitionedBuffer.info(buffer).totals
    end

    test "keeps a writer no longer than its time, however many wait, and sends it nothing later" do
      buffer =
        start(
          max_size: 10,
          partitions: 64,
          max_attempts: 9,
          processor: fn _ -> {:error, :down} end,
          retry_backoff_ms: {60_000, 60_000},
          full_timeout_ms: 300,
          when_full: :error
        )

      for n <- 1..10, do: Buffer.put(buffer, n, n)

      writers =
        for n <- 1..2_000 do
          Task.async(fn ->
            {us, result} = :timer.tc(fn -> Buffer.put(buffer, {:waiting, n}, n) end)
            {div(us, 1_000), result, Process.info(self(), :message_queue_len)}
          end)
        end

      answers = Task.await_many(writers)
      assert Enum.all?(answers, &match?({_ms, {:error, :full}, {:message_queue_len, 0}}, &1))
      {longest, _result, _queue} = Enum.max(answers)
      # The contract is 100 ms on a machine with nothing else to do.
      assert longest in 300..1_300
      assert %{waiting_writers: 0, totals: %{refused: 2_000}} = PartitionedBuffer.info(buffer)
    end

    test "gives the room of a suspended writer to the next one, and lets it in later" do
      for write <- [&Buffer.put(&1, :first, 1), &Buffer.put_all(&1, first: 1)] do
        buffer = start(max_size: 2, max_attempts: 1, processor: asking())
        Buffer.put(buffer, 1, 1)
        Buffer.put(buffer, 2, 2)
        first = writer(fn -> write.(buffer) end)
        await_waiting(buffer, 1)
        second = writer(fn -> Buffer.put(buffer, :second, 2) end)
        await_waiting(buffer, 2)
        :erlang.suspend_process(first)
        # The full buffer may have flushed the first entries.
        Buffer.delete(buffer, 1)
        Buffer.delete(buffer, 2)
        answer_until_written(second)
        assert Buffer.get(buffer, :second) in [2, nil]
        :erlang.resume_process(first)
        answer_until_written(first)
        assert %{totals: %{written: 4, refused: 0}} = PartitionedBuffer.info(buffer)
      end
    end

    test "takes an empty list at once, while others wait" do
      {buffer, _task} = start_full(1, max_attempts: 1)
      writer(fn -> Buffer.put(buffer, 2, 2) end)
      await_waiting(buffer, 1)
      assert Buffer.put_all(buffer, []) == :ok
      assert Buffer.put_all(buffer, [], partition_key: 1) == :ok
    end

    test "makes no process of its tree wait, and no handler that runs there" do
      {buffer, _task} = start_full(1, max_attempts: 1)
      test = self()
      id = {__MODULE__, make_ref()}

      write = fn _event, _measurements, metadata, _config ->
        if metadata.buffer == buffer, do: send(test, {:handler, catch_error(Buffer.put(buffer, :handler, 1))})
      end

      :telemetry.attach(id, [:partitioned_buffer, :full, :start], write, nil)
      on_exit(fn -> :telemetry.detach(id) end)
      writer(fn -> Buffer.put(buffer, 2, 2) end)
      assert_receive {:handler, %FullError{waited_ms: 0}}
      assert PartitionedBuffer.info(buffer).waiting_writers == 1
    end

    test "lets writers in by their order" do
      {buffer, task} = start_full(3, max_attempts: 1)

      pids =
        for n <- 1..5 do
          pid = writer(fn -> Buffer.put(buffer, {:waiting, n}, n) end)
          await_waiting(buffer, n)
          pid
        end

      reply(task)

      for {pid, n} <- Enum.with_index(pids, 1) do
        assert_receive {:wrote, first, :ok}
        assert {n, first} == {n, pid}
        if n < 5, do: reply(asked())
      end

      assert answer_all(buffer) == :ok
    end

    test "gives the place of a writer that has died to the next one" do
      {buffer, task} = start_full(1, max_attempts: 1)

      [first, second] =
        for n <- 2..3,
            do: writer(fn -> Buffer.put(buffer, n, n) end) |> tap(fn _ -> await_waiting(buffer, n - 1) end)

      Process.exit(first, :kill)
      await_waiting(buffer, 1)
      reply(task)
      assert_receive {:wrote, ^second, :ok}
      assert {Buffer.get(buffer, 2), Buffer.get(buffer, 3)} == {nil, 3}
    end

    test "drains at once, not at the next tick" do
      buffer = start(max_size: 10, partitions: 2)
      for n <- 1..100, do: Buffer.put(buffer, n, n)
      assert %{written: 100, processed: processed} = PartitionedBuffer.info(buffer).totals
      assert processed >= 90
    end

    test "never makes its own processor wait, or a task of it" do
      test = self()

      processor = fn batch ->
        buffer = elem(hd(batch), 1)

        results = [
          Buffer.put(buffer, :other, buffer),
          Task.await(Task.async(fn -> Buffer.put(buffer, :another, buffer) end))
        ]

        send(test, {:results, results, Buffer.put_all(buffer, [{:third, buffer}])})
      end

      buffer = start(processor: processor, max_size: 1, max_attempts: 1, when_full: :error)
      Buffer.put(buffer, :key, buffer)
      assert PartitionedBuffer.flush(buffer) == :ok
      assert_received {:results, [{:error, :full}, {:error, :full}], {:error, :full}}
    end

    test "holds waiting writers during a pause, and does not call the processor" do
      test = self()

      processor = fn batch ->
        send(test, {:batch, batch})
        {:error, :down}
      end

      buffer = start(processor: processor, max_size: 1, max_attempts: 2, retry_backoff_ms: {60_000, 60_000})
      Buffer.put(buffer, 1, 1)
      with_log(fn -> PartitionedBuffer.flush(buffer) end)
      assert_received {:batch, _batch}
      pid = writer(fn -> Buffer.put(buffer, 2, 2) end)
      await_waiting(buffer, 1)
      assert PartitionedBuffer.Partition.Server.task(Routing.partition_name(buffer, 0)) == nil
      refute_received {:batch, _batch}
      with_log(fn -> PartitionedBuffer.flush(buffer) end)
      assert_receive {:wrote, ^pid, :ok}
      assert %{given_up: 1, written: 2} = PartitionedBuffer.info(buffer).totals
    end

    test "emits when it becomes full, and when there is room" do
      {buffer, task} = start_full(1, max_attempts: 1)
      attach_full(buffer)
      pid = writer(fn -> Buffer.put(buffer, 2, 2) end)
      await_waiting(buffer, 1)
      assert_receive {:full, :start, %{system_time: _}}
      PartitionedBuffer.update_options(buffer, full_timeout_ms: 0, when_full: :error)
      assert Buffer.put(buffer, 3, 3) == {:error, :full}
      reply(task)
      assert_receive {:wrote, ^pid, :ok}
      assert answer_all(buffer) == :ok
      assert_receive {:full, :stop, %{duration: duration, refused: 1, dropped: 0, waited: 1}}
      assert duration > 0
      await_events(buffer)
      refute_received {:full, _what, _measurements}
    end

    test "refuses its writers when it stops" do
      {buffer, _task} = start_full(1, max_attempts: 1)
      pid = writer(fn -> Buffer.put(buffer, 2, 2) end)
      await_waiting(buffer, 1)
      stop_supervised!(buffer)
      assert_receive {:wrote, ^pid, %ArgumentError{message: message}}
      assert message =~ "it is starting or stopping"
    end

    test "goes on when the process of its queue is killed" do
      {buffer, task} = start_full(1, max_attempts: 1)
      pid = writer(fn -> Buffer.put(buffer, 2, 2) end)
      await_waiting(buffer, 1)
      kill_and_await_restart(Native.process(run(buffer), :room, :room))
      await_waiting(buffer, 1)
      reply(task)
      assert_receive {:wrote, ^pid, :ok}
    end

    test "flushes for its writers when the process of its queue is killed before it heard of them" do
      buffer = start(max_size: 1)
      Buffer.put(buffer, 1, 1)
      room = Native.process(run(buffer), :room, :room)
      :sys.suspend(room)
      pid = writer(fn -> Buffer.put(buffer, 2, 2) end)
      await_waiting(buffer, 1)
      Process.exit(room, :kill)
      assert_receive {:wrote, ^pid, :ok}
    end

    test "flushes for its writers when the process of a partition is killed before it heard of them" do
      buffer = start(max_size: 1)
      Buffer.put(buffer, 1, 1)
      [partition] = partitions(buffer)
      :sys.suspend(partition)
      pid = writer(fn -> Buffer.put(buffer, 2, 2) end)
      await_waiting(buffer, 1)
      # It told the partition.
      :sys.get_state(Native.process(run(buffer), :room, :room))
      Process.exit(Process.whereis(partition), :kill)
      assert_receive {:wrote, ^pid, :ok}
    end

    test "flushes for writers that do not wait when the process of its queue is killed" do
      buffer = start(max_size: 1, full_timeout_ms: 0, when_full: :error, processor: sending())
      Buffer.put(buffer, 1, 1)
      room = Native.process(run(buffer), :room, :room)
      :sys.suspend(room)
      assert Buffer.put(buffer, 2, 2) == {:error, :full}
      Process.exit(room, :kill)
      assert_receive {:batch, [_entry]}
    end

    test "keeps no room for a writer that finds the buffer stopped" do
      {buffer, task} = start_full(1, max_attempts: 1)
      test = self()

      # It lives on, and collects no garbage.
      pid =
        spawn_link(fn ->
          error = catch_error(Buffer.put(buffer, 2, 2))
          send(test, {:wrote, self(), error})
          Process.sleep(:infinity)
        end)

      await_waiting(buffer, 1)
      :erlang.suspend_process(pid)
      reply(task)
      await_waiting(buffer, 0)
      stop_supervised!(buffer)
      :erlang.resume_process(pid)
      assert_receive {:wrote, ^pid, %ArgumentError{}}
      start(name: buffer)
      assert {0, 0, 0, 0, _waited} = Native.bound(buffer)
    end
  end

  describe "a list" do
    test "is written as a whole, or not at all" do
      {buffer, task} = start_full(5, max_attempts: 1)

      assert_raise ArgumentError, ~r/a list of 6 entries does not fit into buffer/, fn ->
        Buffer.put_all(buffer, for(n <- 1..6, do: {n, n}))
      end

      pid = writer(fn -> Buffer.put_all(buffer, for(n <- 11..13, do: {n, n})) end)
      await_waiting(buffer, 1)

      # Of five entries three have to leave.
      task = reply_and_await(task)
      task = reply_and_await(task)
      assert Buffer.get(buffer, 11) == nil
      reply(task)
      assert_receive {:wrote, ^pid, :ok}
      assert Enum.map(11..13, &Buffer.get(buffer, &1)) == [11, 12, 13]
      assert held(buffer) == 5
    end

    test "gives back the room of entries that were not new" do
      # A full buffer flushes, but nothing leaves it.
      opts = [processor: asking(), max_attempts: 1, partitions: 2]
      buffer = start([max_size: 10, when_full: :error, full_timeout_ms: 0] ++ opts)
      entries = for(n <- 1..5, do: {n, n})
      for _ <- 1..3, do: assert(Buffer.put_all(buffer, entries) == :ok)
      assert Buffer.put_all_newer(buffer, for(n <- 1..5, do: {n, n, 1})) == :ok
      for n <- 6..10, do: assert(Buffer.put(buffer, n, n) == :ok)
      assert held(buffer) == 10
      assert Buffer.put_all(buffer, entries) == {:error, :full}
    end

    test "of more than one slice, and with a partition key, fits exactly" do
      opts = [processor: asking(), max_attempts: 1, partitions: 3]
      buffer = start([max_size: 20_000, when_full: :error, full_timeout_ms: 0] ++ opts)
      assert Buffer.put_all(buffer, for(n <- 1..10_000, do: {n, n})) == :ok
      assert Buffer.put_all(buffer, for(n <- 10_001..20_000, do: {n, n}), partition_key: &rem(&1, 7)) == :ok
      assert Buffer.put(buffer, :one_more, 1) == {:error, :full}
      assert held(buffer) == 20_000
    end

    test "whose writer is killed gives its room back" do
      buffer = start(max_size: 100_000, max_attempts: 1, partitions: 2, processor: fn _batch -> :ok end)
      list = for n <- 1..100_000, do: {n, n}

      for _ <- 1..20 do
        pid = spawn(fn -> Buffer.put_all(buffer, list) end)
        ref = Process.monitor(pid)
        for _ <- 1..:rand.uniform(50), do: :erlang.yield()
        Process.exit(pid, :kill)
        assert_receive {:DOWN, ^ref, :process, ^pid, _reason}
        assert PartitionedBuffer.flush(buffer) == :ok
        await_no_room_taken(buffer)
      end
    end

    test "that waits and no longer fits raises at once, and holds up nobody" do
      {buffer, task} = start_full(5, max_attempts: 1)
      list = writer(fn -> Buffer.put_all(buffer, for(n <- 11..15, do: {n, n})) end)
      await_waiting(buffer, 1)
      other = writer(fn -> Buffer.put(buffer, :other, 1) end)
      await_waiting(buffer, 2)
      PartitionedBuffer.update_options(buffer, max_size: 4)
      assert_receive {:wrote, ^list, %ArgumentError{message: message}}
      assert message =~ "a list of 5 entries does not fit into buffer"
      reply_and_await(task) |> reply_and_await()
      assert_receive {:wrote, ^other, :ok}
    end

    test "of a queue waits for room as well" do
      {buffer, task} = start_full(3, module: Queue, max_attempts: 1)
      assert_raise ArgumentError, fn -> Queue.push(buffer, [1, 2, 3, 4]) end
      pid = writer(fn -> Queue.push(buffer, [4, 5]) end)
      await_waiting(buffer, 1)
      other = writer(fn -> Queue.push(buffer, 6) end)
      await_waiting(buffer, 2)

      task = reply_and_await(task)
      task = reply_and_await(task)
      assert_receive {:wrote, ^pid, :ok}
      reply(task)
      assert_receive {:wrote, ^other, :ok}
      assert answer_all(buffer) == :ok
    end
  end

  # A killed writer gives back its room when the VM frees its memory.
  defp await_no_room_taken(buffer) do
    if elem(Native.bound(buffer), 0) > 0, do: await_no_room_taken(buffer)
  end

  describe "the bound" do
    test "keeps no room for entries that a dead reader has left out" do
      opts = [max_size: 10, max_attempts: 3, when_full: :error, full_timeout_ms: 0]
      buffer = start([processor: fn _batch -> :ok end] ++ opts)

      for round <- 1..3 do
        for n <- 1..10, do: assert(Buffer.put(buffer, {round, n}, n) == :ok)
        {:fresh, flush} = Native.flush(run(buffer), 0)
        for n <- 1..10, do: Buffer.delete(buffer, {round, n})
        # It ends before it leases the batch.
        reader = Task.async(fn -> Native.read(flush, 0, 10, false) end)
        assert Task.await(reader) == {[], 0, true}
        assert %{size: 0, in_flight: 0, totals: totals} = PartitionedBuffer.info(buffer)
        assert {totals.written, totals.superseded} == {10 * round, 10 * round}
      end
    end

    test "counts what a start finds" do
      failing = [processor: fn _batch -> {:error, :down} end, retry_backoff_ms: {60_000, 60_000}]
      options = [max_size: 3, max_attempts: 9, full_timeout_ms: 0, when_full: :error]
      buffer = start(failing ++ options)
      for n <- 1..3, do: Buffer.put(buffer, n, n)
      PartitionedBuffer.flush(buffer)
      stop_supervised!(buffer)
      start([name: buffer, processor: asking()] ++ options)
      assert held(buffer) == 3
      assert Buffer.put(buffer, :one_more, 1) == {:error, :full}
      stop_supervised!(buffer)
      start([name: buffer, processor: asking()] ++ Keyword.put(options, :max_size, 4))
      assert Buffer.put(buffer, :one_more, 1) == :ok
      assert Buffer.put(buffer, :another, 1) == {:error, :full}
    end

    test "may be set, lowered and lifted while the buffer runs" do
      buffer =
        start(
          when_full: :error,
          full_timeout_ms: 0,
          processing_interval_ms: :infinity,
          processor: fn _batch -> {:snooze, 60_000} end,
          max_attempts: 9,
          retry_backoff_ms: {60_000, 60_000}
        )

      for n <- 1..10, do: Buffer.put(buffer, n, n)
      with_log(fn -> PartitionedBuffer.flush(buffer) end)
      PartitionedBuffer.update_options(buffer, max_size: 5)
      assert Buffer.put(buffer, 11, 11) == {:error, :full}
      assert {held(buffer), PartitionedBuffer.info(buffer).max_size} == {10, 5}
      for n <- 1..6, do: Buffer.delete(buffer, n)
      assert Buffer.put(buffer, 11, 11) == :ok
      assert Buffer.put(buffer, 12, 12) == {:error, :full}
      PartitionedBuffer.update_options(buffer, max_size: :infinity)
      for n <- 1..100, do: assert(Buffer.put(buffer, n, n) == :ok)
    end

    test "lets waiting writers in when it is raised" do
      {buffer, _task} = start_full(1, max_attempts: 1)
      pid = writer(fn -> Buffer.put(buffer, 2, 2) end)
      await_waiting(buffer, 1)
      PartitionedBuffer.update_options(buffer, max_size: 2)
      assert_receive {:wrote, ^pid, :ok}
    end

    for writers <- [2, 8, 64] do
      test "holds without loss under #{writers} writers, lists, deletes and faults" do
        stress(unquote(writers), div(12_000, unquote(writers)))
      end
    end
  end

  describe "a bound of bytes" do
    @kb50 Enum.to_list(1..3_200)

    # Only a flush makes room.
    defp start_bytes(max_bytes, opts \\ []) do
      [max_bytes: max_bytes, processor: asking(), max_attempts: 1, full_timeout_ms: 0, when_full: :error]
      |> Keyword.merge(opts)
      |> start()
    end

    test "refuses what needs memory while it is reached, and nothing else" do
      buffer = start_bytes(100_000)
      assert Buffer.put(buffer, 1, @kb50) == :ok
      assert Buffer.put_newer(buffer, 2, @kb50, 5) == :ok
      assert %{max_bytes: 100_000, max_size: :infinity, bytes: bytes} = PartitionedBuffer.info(buffer)
      assert bytes in 100_000..160_000
      assert Buffer.put(buffer, 3, 3) == {:error, :full}
      assert Buffer.put(buffer, 1, 1) == {:error, :full}
      assert Buffer.put_newer(buffer, 2, :stale, 5, stale: :error) == {:error, :stale}
      assert Buffer.put_newer(buffer, 2, :newer, 6) == {:error, :full}
      assert Buffer.put_new(buffer, 1, 1) == {:error, :exists}
      assert Buffer.put_all(buffer, %{3 => 3}) == {:error, :full}
      assert %{refused: 4, stale: 1, written: 2} = PartitionedBuffer.info(buffer).totals
      assert Buffer.delete(buffer, 1) == :ok
      assert PartitionedBuffer.info(buffer).bytes < 100_000
      assert Buffer.put(buffer, 3, 3) == :ok
      assert Buffer.put(buffer, 2, 2) == :ok
    end

    test "lets a counter add to what waits, and refuses items of a queue" do
      counter = start_bytes(1, module: PartitionedBuffer.Counter)
      assert PartitionedBuffer.Counter.add(counter, :key, 1) == :ok
      assert PartitionedBuffer.Counter.add(counter, :key, 1) == :ok
      assert PartitionedBuffer.Counter.add(counter, :key, 1, count: 3) == :ok
      assert PartitionedBuffer.Counter.add(counter, :other, 1) == {:error, :full}
      queue = start_bytes(1, module: Queue)
      assert Queue.push(queue, 1) == :ok
      assert Queue.push(queue, 2) == {:error, :full}
      assert Queue.push(queue, [2]) == {:error, :full}
    end

    test "may be set, raised and lifted while the buffer runs, and its error tells it" do
      buffer = start(processor: asking(), max_attempts: 1, full_timeout_ms: 0)
      Buffer.put(buffer, 1, @kb50)
      PartitionedBuffer.update_options(buffer, max_bytes: 10_000)
      error = assert_raise FullError, fn -> Buffer.put(buffer, 2, 2) end
      assert Exception.message(error) =~ "is full: it holds at most 10000 bytes, its :max_bytes, and"
      PartitionedBuffer.update_options(buffer, max_size: 7)
      error = assert_raise FullError, fn -> Buffer.put(buffer, 2, 2) end

      assert Exception.message(error) =~
               "at most 7 entries, its :max_size, and 10000 bytes, its :max_bytes, and"

      PartitionedBuffer.update_options(buffer, max_bytes: 1_000_000)
      assert Buffer.put(buffer, 2, 2) == :ok
      PartitionedBuffer.update_options(buffer, max_bytes: :infinity, max_size: :infinity)
      assert Buffer.put(buffer, 3, @kb50) == :ok
      PartitionedBuffer.update_options(buffer, max_bytes: 1)
      assert_raise FullError, fn -> Buffer.put(buffer, 3, 3) end
    end

    test "lets waiting writers in one after the other when a flush ends" do
      buffer = start_bytes(20_000, full_timeout_ms: 60_000, processor: sending())
      Buffer.put(buffer, 1, @kb50)

      writers =
        for n <- 1..3,
            do:
              writer(fn -> Buffer.put(buffer, {:waiting, n}, @kb50) end)
              |> tap(fn _ -> await_waiting(buffer, n) end)

      for writer <- writers, do: assert_receive({:wrote, ^writer, :ok})
      # One waits for the memory of the other, or got room just before the other wrote.
      assert PartitionedBuffer.flush(buffer) == :ok
      assert [1 | others] = lengths_of_batches()
      assert Enum.sum(others) == 3 and Enum.all?(others, &(&1 in 1..2))
    end

    defp lengths_of_batches do
      receive do
        {:batch, batch} -> [length(batch) | lengths_of_batches()]
      after
        0 -> []
      end
    end

    test "is not reached by the memory of refused writes" do
      buffer = start_bytes(1)
      Buffer.put(buffer, 1, 1)
      PartitionedBuffer.flush(buffer, async: true)
      task = asked()
      for n <- 2..20, do: assert(Buffer.put(buffer, n, n) == {:error, :full})
      reply(task)
      assert PartitionedBuffer.flush(buffer) == :ok
      assert PartitionedBuffer.info(buffer).bytes == 0
      assert Buffer.put(buffer, 2, 2) == :ok
    end

    test "lets waiting writers in when a flush finds only deleted entries" do
      buffer = start_bytes(1, full_timeout_ms: 60_000)
      Buffer.put(buffer, 1, 1)
      Buffer.delete(buffer, 1)
      assert PartitionedBuffer.info(buffer).bytes > 0
      pid = writer(fn -> Buffer.put(buffer, 2, 2) end)
      assert_receive {:wrote, ^pid, :ok}
    end

    test "counts a start with entries, another partition count, and what fails" do
      options = [
        max_bytes: 1_000_000,
        max_attempts: 9,
        retry_backoff_ms: {60_000, 60_000},
        processor: fn _ -> {:error, :down} end
      ]

      buffer = start(options)
      for n <- 1..10, do: Buffer.put(buffer, n, @kb50)
      with_log(fn -> PartitionedBuffer.flush(buffer) end)
      before = PartitionedBuffer.info(buffer).bytes
      stop_supervised!(buffer)
      start([name: buffer] ++ Keyword.merge(options, partitions: 3, full_timeout_ms: 0, when_full: :error))
      bytes = PartitionedBuffer.info(buffer).bytes
      assert bytes in 500_000..(before + 100_000)
      PartitionedBuffer.update_options(buffer, max_bytes: bytes)
      assert Buffer.put(buffer, 11, 11) == {:error, :full}
      # The full buffer tried to flush, so its memory changed.
      PartitionedBuffer.update_options(buffer, max_bytes: 2 * bytes)
      assert Buffer.put(buffer, 11, 11) == :ok
    end

    for writers <- [2, 64], kind <- [:map, :queue] do
      test "is exceeded by no more than the writes under way, #{writers} writers of a #{kind}" do
        bytes_stress(unquote(writers), unquote(kind))
      end
    end
  end

  # Values from 10 B to 10 MB.
  defp bytes_stress(writers, kind) do
    max_bytes = 30_000_000
    module = if kind == :queue, do: Queue, else: Buffer

    buffer =
      start(
        module: module,
        max_bytes: max_bytes,
        partitions: 2,
        max_attempts: 3,
        processing_batch_size: 5,
        processor: fn batch ->
          if(:rand.uniform(5) == 1 and length(batch) > 1, do: {:error, :some}, else: :ok)
        end,
        full_timeout_ms: 60_000
      )

    values =
      for size <- [10, 1_000, 100_000, 1_000_000, 10_000_000], do: Enum.to_list(1..max(div(size, 16), 1))

    write = fn n ->
      value = Enum.random(values)
      if kind == :queue, do: Queue.push(buffer, [value]), else: Buffer.put(buffer, rem(n, 50), value)
    end

    tasks = for _ <- 1..writers, do: Task.async(fn -> for n <- 1..div(200, writers), do: :ok = write.(n) end)
    most = watch_bytes(buffer, tasks, 0)
    # A write under way may bring 10 MB, a shard a segment of 4 MB.
    shards = if kind == :queue, do: 2, else: 8
    assert most <= max_bytes + min(writers, System.schedulers_online() + 1) * 10_100_000 + shards * 4_000_000
    Task.await_many(tasks, 60_000)
    with_log(fn -> until_empty(buffer) end)
    assert PartitionedBuffer.info(buffer).totals.refused == 0
  end

  defp watch_bytes(buffer, tasks, most) do
    most = max(most, PartitionedBuffer.info(buffer).bytes)
    if Enum.any?(tasks, &Process.alive?(&1.pid)), do: watch_bytes(buffer, tasks, most), else: most
  end

  defp stress(writers, writes) do
    test = self()
    max = 200

    processor = fn batch ->
      case :rand.uniform(10) do
        1 -> :error
        2 -> {:error, :some, Enum.take_random(batch, 3)}
        3 -> {:cancel, :never, Enum.take(batch, 2)}
        4 -> {:snooze, 1}
        _ -> :ok
      end
    end

    buffer =
      start(
        processor: processor,
        partitions: 3,
        max_size: max,
        max_attempts: 4,
        retry_backoff_ms: {1, 2},
        processing_interval_ms: 1,
        processing_batch_size: 20,
        full_timeout_ms: 1_000,
        when_full: :error
      )

    {_result, _log} =
      with_log(fn ->
        writers =
          for number <- 1..writers do
            spawn(fn ->
              for n <- 1..writes do
                case :rand.uniform(8) do
                  1 -> Buffer.put_all(buffer, for(m <- 1..:rand.uniform(50), do: {{number, n + m}, n}))
                  2 -> Buffer.delete(buffer, {number, :rand.uniform(n)})
                  _ -> Buffer.put(buffer, {number, n}, n)
                end
              end

              send(test, {:done, self()})
            end)
          end

        names = [Native.process(run(buffer), :room, :room) | Routing.partition_names(buffer)]
        victims = Enum.shuffle(names ++ Enum.take(writers, div(length(writers), 3)))
        most = watch_bound(buffer, writers, victims, 0)
        assert most in 1..max
      end)

    with_log(fn -> until_empty(buffer) end)
    await_no_room_taken(buffer)
    info = PartitionedBuffer.info(buffer)
    assert {info.size, info.in_flight, info.waiting_writers} == {0, 0, 0}
    totals = info.totals

    assert totals.written - totals.coalesced ==
             totals.deleted + totals.superseded + totals.processed + totals.given_up
  end

  defp watch_bound(buffer, writers, victims, most) do
    {held, _refused, _dropped, _waiting, _waited} = Native.bound(buffer)
    most = max(most, held)

    receive do
      {:done, pid} -> watch_bound(buffer, List.delete(writers, pid), victims, most)
    after
      0 ->
        victims =
          if :rand.uniform(30) == 1 and victims != [] do
            kill(hd(victims))
            tl(victims)
          else
            victims
          end

        if Enum.any?(writers, &Process.alive?/1), do: watch_bound(buffer, writers, victims, most), else: most
    end
  end

  defp kill(name) when is_atom(name), do: if(pid = Process.whereis(name), do: kill(pid))
  defp kill(pid), do: Process.exit(pid, :kill)

  defp until_empty(buffer) do
    PartitionedBuffer.flush(buffer)
    if held(buffer) > 0, do: until_empty(buffer)
  end

  describe "a threshold" do
    test "flushes a partition once so many entries wait, by one message a flush" do
      buffer = start(processor: asking(), processing_threshold: 3, processing_batch_size: 100)
      attach_telemetry(buffer)
      partition = Process.whereis(Routing.partition_name(buffer, 0))
      # A start looks at the threshold by itself.
      :sys.get_state(partition)
      :erlang.trace(partition, true, [:receive])
      Buffer.put(buffer, 1, 1)
      Buffer.put(buffer, 2, 2)
      Buffer.put(buffer, 2, :newer)
      refute_received {:trace, _pid, :receive, :enough}
      Buffer.put(buffer, 3, 3)
      assert_receive {:asked, task, [_, _, _]}
      assert_received {[:processing, :start], _measurements, %{trigger: :threshold}}
      # The rest comes right after that flush.
      Buffer.put_all(buffer, for(n <- 4..9, do: {n, n}))
      reply(task)
      assert_receive {:asked, task, [_, _, _, _, _, _]}
      reply(task)
      assert_receive {:trace, ^partition, :receive, :enough}
      assert_receive {:trace, ^partition, :receive, :enough}
      refute_received {:trace, _pid, :receive, :enough}
    end

    test "does not count entries that were put back" do
      test = self()

      buffer =
        start(
          processor: fn batch -> send(test, {:batch, batch}) && {:snooze, 60_000} end,
          processing_threshold: 2,
          max_attempts: 5,
          retry_backoff_ms: {60_000, 60_000}
        )

      with_log(fn ->
        Buffer.put_all(buffer, a: 1, b: 2)
        assert_receive {:batch, [_, _]}
        wait_idle(Routing.partition_name(buffer, 0))
      end)

      assert %{size: 2, partitions: [%{state: :paused}]} = PartitionedBuffer.info(buffer)
      Buffer.put(buffer, :c, 3)
      refute_received {:batch, _batch}
      Buffer.put(buffer, :d, 4)
      # During a pause nothing is called.
      assert PartitionedBuffer.Partition.Server.task(Routing.partition_name(buffer, 0)) == nil
      refute_received {:batch, _batch}
    end

    test "holds for a queue, for lists, and for each partition" do
      buffer = start(module: Queue, processor: asking(), processing_threshold: 4, partitions: 2)
      Queue.push(buffer, [1, 2, 3], partition_key: :one)
      Queue.push(buffer, 4, partition_key: fn _item -> :one end)
      assert_receive {:asked, task, [1, 2, 3, 4]}
      reply(task)
    end

    test "may change, and is made good when the process of the partition starts" do
      buffer = start(processor: asking(), processing_threshold: :infinity)
      for n <- 1..5, do: Buffer.put(buffer, n, n)
      PartitionedBuffer.update_options(buffer, processing_threshold: 6)
      refute_received {:asked, _task, _batch}
      PartitionedBuffer.update_options(buffer, processing_threshold: 5)
      assert_receive {:asked, task, [_, _, _, _, _]}
      reply(task)
      partition = Routing.partition_name(buffer, 0)
      wait_idle(partition)
      :erlang.suspend_process(Process.whereis(partition))
      for n <- 1..5, do: Buffer.put(buffer, n, n)
      kill_and_await_restart(partition)
      assert_receive {:asked, task, [_, _, _, _, _]}
      reply(task)
    end
  end

  describe "options" do
    test "that are invalid are refused" do
      for option <- [
            max_size: 0,
            max_size: -1,
            max_size: 1.5,
            max_bytes: 0,
            max_bytes: 1.0e6,
            max_bytes: Integer.pow(2, 60) + 1,
            processing_threshold: 0,
            when_full: :drop_oldest,
            full_timeout_ms: -1,
            full_timeout_ms: :infinity
          ] do
        options = buffer_options([processor: &Function.identity/1] ++ [option])
        assert_raise ArgumentError, ~r/invalid value for option/, fn -> Buffer.start_link(options) end
      end
    end
  end
end
