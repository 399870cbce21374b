defmodule PartitionedBuffer.EmitterTest do
  # Handlers of events and log lines are code of the user: they may hang, raise, or call the buffer.
  use PartitionedBuffer.Case, async: true

  import ExUnit.CaptureLog

  alias PartitionedBuffer.{Emitter, Native}
  alias PartitionedBuffer.Partition.Server

  @moduletag :capture_log

  @limit 20_000

  # What a stop may take with a handler that hangs, in milliseconds, on a busy machine.
  @stop_ms 5_000

  ## Handlers

  # Calls `fun` with each of these events of the buffer, and its metadata.
  defp attach(buffer, suffixes, fun) do
    id = {__MODULE__, make_ref()}
    events = for suffix <- suffixes, do: [:partitioned_buffer | suffix]
    :telemetry.attach_many(id, events, &__MODULE__.handle_event/4, {buffer, fun})
    on_exit(fn -> :telemetry.detach(id) end)
    id
  end

  def handle_event([_prefix | suffix], _measurements, metadata, {buffer, fun}),
    do: if(metadata.buffer == buffer, do: fun.(suffix, metadata))

  # Calls `fun` with each log line of the buffer that contains this text.
  defp attach_log(buffer, text, fun) do
    id = unique_name("log_handler")
    :ok = :logger.add_handler(id, __MODULE__, %{config: {buffer, text, fun}})
    on_exit(fn -> :logger.remove_handler(id) end)
    id
  end

  def log(%{msg: {:string, line}, meta: %{buffer: buffer} = meta}, %{config: {buffer, text, fun}}) do
    line = IO.chardata_to_string(line)
    if line =~ text, do: fun.(line, meta)
  end

  def log(_event, _config), do: :ok

  # A handler that sends `{:hangs, pid, event}` to the test, and hangs.
  defp hang do
    test = self()

    fn event, _metadata ->
      send(test, {:hangs, self(), event})
      receive do: (:go_on -> :ok)
    end
  end

  defp forward do
    test = self()
    fn event, metadata -> send(test, {:event, event, metadata}) end
  end

  defp emitter(buffer), do: Native.process(run(buffer), :events, :events)

  ## Calls

  # Everything that a handler must not delay. The processor sends `{:batch, batch}`.
  defp assert_all_work(buffer) do
    for n <- 1..20, do: assert(Buffer.put(buffer, n, n) == :ok)
    assert PartitionedBuffer.flush(buffer, timeout: @stop_ms) == :ok
    assert keys(received_entries()) == Enum.to_list(1..20)
    assert %{size: 0} = PartitionedBuffer.info(buffer)
    assert PartitionedBuffer.update_options(buffer, processing_batch_size: 7) == :ok
    assert PartitionedBuffer.update_options(buffer, max_size: 1_000) == :ok
    for partition <- partitions(buffer), do: assert(Server.task(partition) == nil)
  end

  # The entries are processed, and the handler ends with the emitter.
  defp assert_stops(buffer) do
    monitor = Process.monitor(emitter(buffer))
    Buffer.put(buffer, :last, 1)
    assert {microseconds, :ok} = :timer.tc(fn -> PartitionedBuffer.stop(buffer) end)
    assert microseconds < @stop_ms * 1_000
    assert_received {:batch, [{:last, 1, 0, 0}]}
    assert_received {:DOWN, ^monitor, :process, _emitter, _reason}
  end

  describe "a handler that hangs delays nobody, and a stop for a second" do
    test "at the start of a partition" do
      buffer = unique_name()
      attach(buffer, [[:partition, :start]], hang())
      start_buffer(name: buffer)
      assert_receive {:hangs, emitter, [:partition, :start]}
      assert emitter == emitter(buffer)
      assert_all_work(buffer)
      assert_stops(buffer)
      # That of the other partition was pending.
      refute_received {:hangs, _pid, _event}
    end

    test "at the stop of a partition" do
      buffer = start_buffer()
      attach(buffer, [[:partition, :stop]], hang())
      assert_stops(buffer)
      assert_received {:hangs, _emitter, [:partition, :stop]}
    end

    test "at a failure that a partition reports" do
      test = self()

      buffer =
        start_buffer(
          processor: fn batch ->
            if List.keymember?(batch, :bad, 0), do: exit(:bad), else: send(test, {:batch, batch})
          end
        )

      attach(buffer, [[:partition, :processing_failed]], hang())
      Buffer.put(buffer, :bad, 1)
      assert PartitionedBuffer.flush(buffer) == {:error, {:failed, 1}}
      assert_receive {:hangs, emitter, [:partition, :processing_failed]}
      assert emitter == emitter(buffer)
      Buffer.put(buffer, :bad, 2)
      assert PartitionedBuffer.flush(buffer) == {:error, {:failed, 1}}
      assert_all_work(buffer)
      assert_stops(buffer)
    end

    test "at the time in which the buffer is full" do
      test = self()

      processor = fn batch ->
        if List.keymember?(batch, :first, 0) do
          send(test, {:asked, self()})
          receive do: (:return -> :ok)
        else
          send(test, {:batch, batch})
        end
      end

      buffer = start_buffer(max_size: 2, max_attempts: 1, processor: processor, partitions: 1)
      attach(buffer, [[:full, :start], [:full, :stop]], hang())
      for key <- [:first, :second], do: Buffer.put(buffer, key, 1)
      writer = Task.async(fn -> Buffer.put(buffer, :third, 1) end)
      assert_receive {:hangs, emitter, [:full, :start]}
      assert emitter == emitter(buffer)
      assert_receive {:asked, task}
      send(task, :return)
      assert Task.await(writer) == :ok
      PartitionedBuffer.update_options(buffer, max_size: 1_000)
      assert PartitionedBuffer.flush(buffer) == :ok
      assert_received {:batch, [{:third, 1, 0, 0}]}
      assert_all_work(buffer)
      assert_stops(buffer)
    end

    test "at the log line of a call that takes too long" do
      test = self()

      buffer =
        start_buffer(
          processor: fn batch ->
            if List.keymember?(batch, :bad, 0),
              do: Process.sleep(:infinity),
              else: send(test, {:batch, batch})

            :ok
          end,
          processing_timeout_ms: 500,
          max_attempts: 1
        )

      attach_log(buffer, "kills its processor", hang())
      Buffer.put(buffer, :bad, 1)
      assert PartitionedBuffer.flush(buffer) == :ok
      assert_receive {:hangs, emitter, "partition " <> _line}
      assert emitter == emitter(buffer)
      PartitionedBuffer.update_options(buffer, processing_timeout_ms: 60_000)
      assert_all_work(buffer)
      assert_stops(buffer)
    end

    test "at the log line of a task that cannot start" do
      buffer = start_buffer(partitions: 1)
      attach_log(buffer, "could not start a task", hang())
      supervisor = PartitionedBuffer.Buffer.Lookup.supervisor(buffer)
      :erlang.suspend_process(supervisor)
      kill_processes([task_supervisor(buffer, 0)])
      Buffer.put(buffer, :key, 1)
      assert PartitionedBuffer.flush(buffer) == {:error, {:failed, 1}}
      assert_receive {:hangs, emitter, _line}
      assert emitter == emitter(buffer)
      :erlang.resume_process(supervisor)
      PartitionedBuffer.Buffer.Lookup.await_restarts(buffer)
      assert PartitionedBuffer.flush(buffer) == :ok
      assert_received {:batch, [{:key, 1, 0, 0}]}
      assert_all_work(buffer)
      assert_stops(buffer)
    end

    test "at the log lines of a stop" do
      buffer = start_buffer()
      attach_log(buffer, "is stopping with", hang())
      assert_stops(buffer)
      assert_received {:hangs, _emitter, _line}
    end

    test "at the log line of a call that a stop kills" do
      buffer =
        start_buffer(
          partitions: 1,
          processor: fn _batch -> Process.sleep(:infinity) end,
          drain_timeout_ms: 50
        )

      attach_log(buffer, "kills its processor", hang())
      Buffer.put(buffer, :key, 1)
      assert {microseconds, :ok} = :timer.tc(fn -> PartitionedBuffer.stop(buffer) end)
      assert microseconds < @stop_ms * 1_000
      assert_received {:hangs, _emitter, _line}
    end
  end

  describe "a handler may call its own buffer:" do
    test "write to it and flush it" do
      buffer = unique_name()
      test = self()

      attach(buffer, [[:partition, :start]], fn _event, metadata ->
        Buffer.put(buffer, metadata.partition, 1)
        send(test, {:flushed, PartitionedBuffer.flush(buffer)})
      end)

      start_buffer(name: buffer)
      for _partition <- 1..2, do: assert_receive({:flushed, :ok})
      assert keys(received_entries()) == Enum.sort(partitions(buffer))
    end

    test "stop it" do
      buffer = unique_name()
      attach(buffer, [[:partition, :start]], fn _event, _metadata -> PartitionedBuffer.stop(buffer) end)
      options = buffer_options(name: buffer)
      Process.flag(:trap_exit, true)
      {:ok, supervisor} = Buffer.start_link(options)
      assert_receive {:EXIT, ^supervisor, :normal}
      refute buffer in PartitionedBuffer.buffers()
    end
  end

  describe "the order" do
    test "is that in which the events came, from all senders" do
      buffer = start_buffer()
      attach(buffer, [[:emitter_test]], forward())
      run = run(buffer)
      count = 10_000

      # The senders take turns.
      senders = for _ <- 1..4, do: spawn_link(fn -> send_events(run, buffer, count) end)
      for sender <- senders, do: send(sender, {:ring, senders})
      send(hd(senders), 1)
      for n <- 1..count, do: assert_receive({:event, [:emitter_test], %{n: ^n}})
      refute_received {:event, _event, _metadata}
    end

    defp send_events(run, buffer, count) do
      receive do
        {:ring, ring} -> send_events(run, buffer, count, Enum.at(ring, rem(index(ring) + 1, 4)))
      end
    end

    defp send_events(run, buffer, count, next) do
      receive do
        n when n <= count ->
          Emitter.event(run, [:emitter_test], %{}, %{buffer: buffer, n: n})
          send(next, n + 1)
          send_events(run, buffer, count, next)

        _over ->
          :ok
      end
    end

    defp index(ring), do: Enum.find_index(ring, &(&1 == self()))

    test "is start, failure, stop for a partition" do
      buffer = unique_name()
      events = for event <- [:start, :processing_failed, :stop], do: [:partition, event]
      attach(buffer, events, forward())
      start_buffer(name: buffer, partitions: 1, processor: fn _batch -> exit(:no) end)
      Buffer.put(buffer, :key, 1)
      assert PartitionedBuffer.flush(buffer) == {:error, {:failed, 1}}
      assert PartitionedBuffer.stop(buffer) == :ok

      # They came before the stop returned.
      for event <- events do
        assert_received {:event, ^event, _metadata}
      end
    end

    test "of the log lines of a stop is kept, and the last one is not lost, with slow handlers too" do
      buffer = start_buffer()
      test = self()

      attach_log(buffer, "stop", fn line, _meta ->
        send(test, {:line, line})
        Process.sleep(100)
      end)

      Buffer.put(buffer, :key, 1)
      assert PartitionedBuffer.stop(buffer) == :ok
      assert_received {:line, first}
      assert first =~ "is stopping with 1 entries"
      assert_received {:line, last}
      assert last =~ "no entries are left"
    end

    test "is visible in log lines: they have the time and the process of the sender" do
      buffer = start_buffer()
      test = self()
      attach(buffer, [[:emitter_test]], hang())
      attach_log(buffer, "a line", fn _line, meta -> send(test, {:meta, meta}) end)
      Emitter.event(run(buffer), [:emitter_test], %{}, %{buffer: buffer})
      assert_receive {:hangs, emitter, _event}
      before = System.os_time(:microsecond)
      Emitter.log(run(buffer), :error, "a line", buffer: buffer, partition: :name)
      later = System.os_time(:microsecond)
      send(emitter, :go_on)
      assert_receive {:meta, %{time: time, pid: ^test, buffer: ^buffer, partition: :name}}
      assert time in before..later
    end
  end

  describe "the limit" do
    test "holds for a handler that hangs, and one log line has the number of dropped events" do
      buffer = start_buffer()
      id = attach(buffer, [[:emitter_test]], hang())
      send_many(buffer, 1)
      assert_receive {:hangs, emitter, _event}

      1..4
      |> Enum.map(fn _ -> Task.async(fn -> send_many(buffer, div(@limit, 2)) end) end)
      |> Task.await_many(60_000)

      assert Process.info(emitter, :message_queue_len) == {:message_queue_len, @limit - 1}
      :telemetry.detach(id)
      attach(buffer, [[:emitter_test]], forward())

      log =
        capture_log(fn ->
          send(emitter, :go_on)
          await_events(buffer)
          for _ <- 1..(@limit - 1), do: assert_received({:event, _event, _metadata})
          send_many(buffer, 1)
          assert_receive {:event, _event, _metadata}
        end)

      assert [_before, _after] =
               String.split(
                 log,
                 "buffer #{inspect(buffer)} dropped #{@limit + 1} telemetry events and log lines"
               )

      assert emitter == emitter(buffer)
    end

    test "is lower for large events" do
      buffer = start_buffer()
      attach(buffer, [[:emitter_test]], hang())
      megabyte = Enum.to_list(1..500_000)

      for _ <- 1..40,
          do: Emitter.event(run(buffer), [:emitter_test], %{}, %{buffer: buffer, reason: megabyte})

      assert_receive {:hangs, emitter, _event}
      {:message_queue_len, length} = Process.info(emitter, :message_queue_len)
      assert length in 1..20
    end

    test "is not reached by a start and a stop of as many partitions as a buffer may have" do
      buffer = unique_name()
      attach(buffer, [[:partition, :start], [:partition, :stop]], forward())

      log =
        capture_log(fn ->
          start_buffer(name: buffer, partitions: 4_096)
          assert PartitionedBuffer.stop(buffer) == :ok
        end)

      for event <- [:start, :stop],
          _ <- 1..4_096,
          do: assert_received({:event, [:partition, ^event], _metadata})

      refute log =~ "dropped"
    end

    defp send_many(buffer, count) do
      run = run(buffer)
      for n <- 1..count, do: Emitter.event(run, [:emitter_test], %{}, %{buffer: buffer, n: n})
    end
  end

  describe "the process" do
    test "outlives a handler that raises, and a line that cannot be logged" do
      buffer = start_buffer()
      attach(buffer, [[:emitter_test]], fn _event, _metadata -> raise "no" end)
      emitter = emitter(buffer)
      Emitter.event(run(buffer), [:emitter_test], %{}, %{buffer: buffer})
      Emitter.log(run(buffer), :no_level, "a line", buffer: buffer)
      attach(buffer, [[:emitter_test]], forward())
      Emitter.event(run(buffer), [:emitter_test], %{}, %{buffer: buffer})
      assert_receive {:event, [:emitter_test], _metadata}
      assert emitter == emitter(buffer)
    end

    test "goes on after its death, counts anew, and reports what was dropped before" do
      buffer = start_buffer()
      id = attach(buffer, [[:emitter_test]], hang())
      send_many(buffer, @limit + 7)
      assert_receive {:hangs, emitter, _event}
      :telemetry.detach(id)
      attach(buffer, [[:emitter_test]], forward())

      log =
        capture_log(fn ->
          kill_and_await_restart(emitter)
          await_events(buffer)
        end)

      assert log =~ "buffer #{inspect(buffer)} dropped 7 telemetry events"
      refute emitter(buffer) == emitter
      send_many(buffer, @limit)
      await_events(buffer)
      for n <- 1..@limit, do: assert_received({:event, [:emitter_test], %{n: ^n}})
    end

    test "emits what is pending though its supervisor was killed, and so do the partitions" do
      buffer = unique_name()
      attach(buffer, [[:partition, :start], [:partition, :stop]], forward())
      start_buffer(name: buffer)
      kill_processes([PartitionedBuffer.Buffer.Lookup.supervisor(buffer)])
      for _ <- 1..2, do: assert_receive({:event, [:partition, :start], _metadata})
      for _ <- 1..2, do: assert_receive({:event, [:partition, :stop], %{reason: :killed}})
    end

    test "emits the last events of the partitions before the next start returns" do
      buffer = unique_name()
      attach(buffer, [[:partition, :stop]], forward())
      start_buffer(name: buffer)
      kill_processes([PartitionedBuffer.Buffer.Lookup.supervisor(buffer)])
      start_buffer(name: buffer)
      for _ <- 1..2, do: assert_received({:event, [:partition, :stop], %{reason: :killed}})
    end

    test "that hangs after the death of its supervisor ends at the next start" do
      buffer = unique_name()
      id = attach(buffer, [[:partition, :start]], hang())
      start_buffer(name: buffer)
      assert_receive {:hangs, emitter, _event}
      monitor = Process.monitor(emitter)
      kill_processes([PartitionedBuffer.Buffer.Lookup.supervisor(buffer)])
      :telemetry.detach(id)
      start_buffer(name: buffer)
      assert_received {:DOWN, ^monitor, :process, ^emitter, :killed}
      assert_all_work(buffer)
    end
  end

  describe "without a supervisor" do
    test "a log handler that hangs delays a line for a second" do
      buffer = unique_name()
      attach_log(buffer, "a line", hang())
      assert {microseconds, :ok} = :timer.tc(fn -> Emitter.log_alone(:error, "a line", buffer: buffer) end)
      assert microseconds < @stop_ms * 1_000
      assert_received {:hangs, handler, "a line"}
      monitor = Process.monitor(handler)
      assert_receive {:DOWN, ^monitor, :process, ^handler, _reason}
    end

    test "a handler that hangs delays the end of an emitter for a second" do
      buffer = unique_name()
      Native.open(buffer, :map, 1, false, true, :any, {:infinity, :infinity})
      {:ok, emitter} = Emitter.start({run(buffer), buffer})
      monitor = Process.monitor(emitter)
      attach_log(buffer, "a line", hang())
      Emitter.log(run(buffer), :error, "a line", buffer: buffer)
      assert_receive {:hangs, ^emitter, "a line"}
      assert Emitter.stop(emitter) == :ok
      assert_receive {:DOWN, ^monitor, :process, ^emitter, :killed}
    end
  end
end
