defmodule PartitionedBuffer.EndingTest do
  # What a stop does depends on who ends the buffer. Stops of the VM are in vm_stop_test.exs.
  use PartitionedBuffer.Case, async: true

  import ExUnit.CaptureLog

  alias PartitionedBuffer.Buffer.Lookup
  alias PartitionedBuffer.{Native, Queue}

  @moduletag :capture_log

  # A buffer whose processor always fails.
  defp start_failing(opts \\ []) do
    test = self()

    processor = fn batch ->
      send(test, {:batch, batch})
      {:error, :down}
    end

    defaults = [
      partitions: 1,
      processor: processor,
      max_attempts: :infinity,
      retry_backoff_ms: {1, 1},
      dead_letter: fn entries, reason -> send(test, {:dead, entries, reason}) end
    ]

    defaults |> Keyword.merge(opts) |> Keyword.reject(&match?({_key, nil}, &1)) |> start_buffer()
  end

  # The entries that the next buffer of this name finds.
  defp found(buffer, opts \\ []) do
    received_batches()
    start_buffer([name: buffer, partitions: 1] ++ opts)
    assert PartitionedBuffer.flush(buffer) == :ok
    received_entries()
  end

  describe "a stop by a supervisor" do
    test "processes all entries if the processor succeeds" do
      buffer = start_buffer(max_attempts: 3, dead_letter: fn _, _ -> raise "unused" end)
      Buffer.put_all(buffer, for(n <- 1..100, do: {n, n}))
      stop_supervised!(buffer)
      assert keys(received_entries()) == Enum.to_list(1..100)
    end

    test "ends at the first pause, and keeps the rest for the next start" do
      buffer = start_failing(module: Queue, processing_batch_size: 1, retry_backoff_ms: {1, 1})
      Queue.push(buffer, [1, 2, 3])
      log = capture_log(fn -> stop_supervised!(buffer) end)
      assert received_batches() == [[1]]
      assert log =~ ~r/buffer #{inspect(buffer)} stopped after \d+ ms: 3 entries are kept/
      refute_received {:dead, _entries, _reason}
      assert found(buffer, module: Queue) == [1, 2, 3]
    end

    test "keeps what a killed call and a killed task leave" do
      for {opts, batch} <- [
            {[processing_timeout_ms: 50], fn -> Process.sleep(:infinity) end},
            {[], fn -> Process.exit(self(), :kill) end}
          ] do
        calls = :counters.new(1, [])

        processor = fn _batch ->
          :counters.add(calls, 1, 1)
          batch.()
        end

        buffer = start_failing([processor: processor] ++ opts)
        Buffer.put(buffer, :key, 1)
        stop_supervised!(buffer)
        assert :counters.get(calls, 1) == 1
        refute_received {:dead, _entries, _reason}
        assert [{:key, 1, 0, 0}] = found(buffer)
      end
    end

    test "without outcomes tries all batches, as every stop does" do
      test = self()

      processor = fn batch ->
        send(test, {:batch, batch})
        raise "down"
      end

      buffer = start_buffer(module: Queue, partitions: 1, processor: processor, processing_batch_size: 1)
      Queue.push(buffer, [1, 2, 3])
      stop_supervised!(buffer)
      assert received_entries() == [1, 2, 3]
    end

    test "that comes from Supervisor.stop/1 or a restart keeps entries as well" do
      for stop <- [
            &Supervisor.stop(Lookup.supervisor(&1)),
            fn buffer ->
              {:ok, parent} = ExUnit.fetch_test_supervisor()
              :ok = Supervisor.terminate_child(parent, buffer)
            end
          ] do
        buffer = start_failing()
        Buffer.put(buffer, :key, 1)
        assert stop.(buffer) == :ok
        refute_received {:dead, _entries, _reason}
        assert [{:key, 1, 0, 0}] = found(buffer)
      end
    end
  end

  describe "stop/4" do
    for {how, stop} <- [
          {"a name", quote(do: &Buffer.stop(&1))},
          {"a pid", quote(do: &Buffer.stop(Lookup.supervisor(&1)))},
          {"a reason", quote(do: &Buffer.stop(&1, :shutdown, :infinity))},
          {"leftovers: :dead_letter", quote(do: &Buffer.stop(&1, leftovers: :dead_letter))}
        ] do
      test "with #{how} retries for the full time, then gives entries up" do
        buffer = start_failing(drain_timeout_ms: 1_000)
        Buffer.put(buffer, :key, 1)
        log = capture_log(fn -> assert unquote(stop).(buffer) == :ok end)
        assert length(received_batches()) > 1
        assert_received {:dead, [{:key, 1, 0, 0}], :stopped}
        assert log =~ ~r/\[warning\] buffer #{inspect(buffer)} stopped after \d+ ms: it gave up 1 entries/
        assert found(buffer) == []
      end
    end

    for {how, stop} <- [
          {"leftovers: :keep", quote(do: &Buffer.stop(&1, leftovers: :keep))},
          {"leftovers: :keep and all else", quote(do: &Buffer.stop(&1, :normal, 60_000, leftovers: :keep))},
          {"a pid and leftovers: :keep",
           quote(do: &PartitionedBuffer.stop(Lookup.supervisor(&1), timeout: 60_000, leftovers: :keep))}
        ] do
      test "with #{how} retries, then keeps entries" do
        buffer = start_failing(drain_timeout_ms: 1_000)
        Buffer.put(buffer, :key, 1)
        assert unquote(stop).(buffer) == :ok
        assert length(received_batches()) > 1
        refute_received {:dead, _entries, _reason}
        assert [{:key, 1, 0, 0}] = found(buffer)
      end
    end

    test "keeps entries of a buffer without :dead_letter" do
      buffer = start_failing(drain_timeout_ms: 1_000, dead_letter: nil)
      Buffer.put(buffer, :key, 1)
      assert Buffer.stop(buffer, leftovers: :dead_letter) == :ok
      assert length(received_batches()) > 1
      assert [{:key, 1, 0, 0}] = found(buffer)
    end

    test "takes a reason and a timeout as options" do
      buffer = start_buffer(partitions: 1, processor: asking_processor())
      ref = Process.monitor(Lookup.supervisor(buffer))
      Buffer.put(buffer, :key, 1)
      assert {:timeout, _call} = catch_exit(Buffer.stop(buffer, timeout: 10, reason: :shutdown))
      answer(:return)
      assert_receive {:DOWN, ^ref, :process, _pid, :shutdown}
    end

    test "raises on unknown and invalid options, and the buffer goes on" do
      buffer = start_buffer()

      for opts <- [[leftovers: :lost], [leftovers: nil], [left: :keep], [timeout: -1]],
          stop <- [&Buffer.stop(buffer, &1), &Buffer.stop(Lookup.supervisor(buffer), :normal, 9, &1)] do
        error = assert_raise ArgumentError, fn -> stop.(opts) end
        assert error.message =~ inspect(buffer)
      end

      assert Native.stop(run(buffer)) == nil
      assert Buffer.put(buffer, :key, 1) == :ok
    end

    test "of a process that stops itself leaves no note" do
      buffer = start_buffer()
      supervisor = Lookup.supervisor(buffer)
      test = self()

      :sys.replace_state(supervisor, fn state ->
        send(test, {:exit, catch_exit(Buffer.stop(supervisor))})
        state
      end)

      assert_received {:exit, {:calling_self, _call}}
      assert Native.stop(run(buffer)) == nil
    end

    test "outlives its drainer: the replacement knows who stops the buffer" do
      test = self()

      processor = fn _batch ->
        send(test, {:asked, self()})
        receive(do: (:fail -> {:error, :down}))
      end

      buffer = start_failing(processor: processor, drain_timeout_ms: 3_000)
      Buffer.put(buffer, :key, 1)
      drainer = Native.process(run(buffer), :drainer, :drainer)
      stop = Task.async(fn -> Buffer.stop(buffer, leftovers: :keep) end)
      assert_receive {:asked, task}
      kill_processes([drainer])
      send(task, :fail)
      # A stop by a supervisor would not retry.
      assert_receive {:asked, task}
      Buffer.update_options(buffer, drain_timeout_ms: 0)
      send(task, :fail)
      assert Task.await(stop) == :ok
      refute_received {:dead, _entries, _reason}
      assert [{:key, 1, 0, 0}] = found(buffer)
    end
  end

  describe "update_options/2 in a stop" do
    # Each change ends a stop that would take a minute at least.
    for {what, opts, changes} <- [
          {"drain_timeout_ms in a pause", [retry_backoff_ms: {60_000, 60_000}], [drain_timeout_ms: 0]},
          {"drain_timeout_ms between calls", [], [drain_timeout_ms: 0]},
          {"drain_timeout_ms in a call", [hang: true], [drain_timeout_ms: 0]},
          {"processing_timeout_ms", [hang: true], [processing_timeout_ms: 100]},
          {"max_attempts", [], [max_attempts: 1]},
          {"retry_backoff_ms", [retry_backoff_ms: {60_000, 60_000}, max_attempts: 2],
           [retry_backoff_ms: {1, 1}]}
        ] do
      test "lets #{what} take effect, and returns at once" do
        {hang?, opts} = Keyword.pop(unquote(opts), :hang)
        test = self()

        processor = fn batch ->
          send(test, {:batch, batch})
          if hang?, do: Process.sleep(:infinity), else: {:error, :down}
        end

        buffer = start_failing([processor: processor, drain_timeout_ms: 120_000] ++ opts)
        Buffer.put(buffer, :key, 1)
        stop = Task.async(fn -> Buffer.stop(buffer) end)
        assert_receive {:batch, _batch}
        {microseconds, :ok} = :timer.tc(fn -> Buffer.update_options(buffer, unquote(changes)) end)
        assert microseconds < 1_000_000
        assert Task.await(stop, 20_000) == :ok
        assert_receive {:dead, [{:key, 1, 0, 0}], _reason}
      end
    end
  end

  describe "update_options/2 in a stop without a process for writers" do
    test "returns soon" do
      buffer = start_buffer(partitions: 1, processor: asking_processor())
      Buffer.put(buffer, :key, 1)
      supervisor = Lookup.supervisor(buffer)
      stop = Task.async(fn -> Buffer.stop(buffer) end)
      assert_receive {:asked, task, _batch}
      kill_processes([Native.process(run(buffer), :room, :room)])
      assert Buffer.update_options(buffer, max_size: 10) == :ok
      assert Process.alive?(supervisor)
      send(task, :return)
      assert Task.await(stop) == :ok
    end
  end

  describe "a log handler that hangs" do
    test "delays a stop by a few seconds" do
      buffer = start_buffer(partitions: 1)
      Buffer.put(buffer, :key, 1)
      id = :"hangs_#{buffer}"
      :ok = :logger.add_handler(id, __MODULE__, %{config: {buffer, self()}})
      on_exit(fn -> :logger.remove_handler(id) end)
      stop = Task.async(fn -> Buffer.stop(buffer) end)
      assert_receive :hangs
      assert_receive {:batch, [{:key, 1, 0, 0}]}
      assert Task.await(stop, 10_000) == :ok
    end
  end

  # A handler of :logger.
  def log(%{meta: %{buffer: buffer}}, %{config: {buffer, test}}) do
    send(test, :hangs)
    Process.sleep(:infinity)
  end

  def log(_event, _config), do: :ok

  describe "the log of a stop" do
    test "has one line at the beginning and one at the end for all partitions" do
      buffer = start_buffer(partitions: 64)
      Buffer.put_all(buffer, for(n <- 1..1_000, do: {n, n}))
      log = capture_log(fn -> Buffer.stop(buffer) end)

      assert [[first], [last]] =
               Regex.scan(~r/.*buffer #{inspect(buffer)} stop.*|.*#{inspect(buffer)} is stop.*/, log)

      assert first =~ "is stopping with 1000 entries; this has no time limit"
      assert last =~ ~r/stopped after \d+ ms: no entries are left/
    end

    test "tells the limit, and that calls of :dead_letter come on top" do
      buffer = start_failing(drain_timeout_ms: 20)
      Buffer.put(buffer, :key, 1)
      log = capture_log(fn -> Buffer.stop(buffer) end)
      assert log =~ "with 1 entries; this may take up to 20 ms, and calls of :dead_letter come on top"
    end

    test "is empty without entries" do
      buffer = start_buffer(partitions: 64)
      log = capture_log(fn -> Buffer.stop(buffer) end)
      refute log =~ inspect(buffer)
    end

    test "tells every ten seconds how many entries are left" do
      buffer = start_buffer(partitions: 1, processor: asking_processor(), processing_batch_size: 1)
      Buffer.put_all(buffer, [{1, 1}, {2, 2}, {3, 3}])

      log =
        capture_log(fn ->
          stop = Task.async(fn -> Buffer.stop(buffer) end)
          assert_receive {:asked, first, _batch}
          Process.send_after(self(), :go_on, 10_500)
          assert_receive :go_on, 20_000
          send(first, :return)
          for _ <- 1..2, do: answer(:return)
          assert Task.await(stop) == :ok
        end)

      # The entry of the running call is given away.
      assert log =~ ~r/buffer #{inspect(buffer)} is still stopping after 10 s: 2 entries are left/
    end

    test "has the buffer in its metadata" do
      buffer = start_buffer(partitions: 1)
      Buffer.put(buffer, :key, 1)
      format = [format: "$metadata $message\n", metadata: [:buffer, :partition]]
      log = capture_log(format, fn -> Buffer.stop(buffer) end)
      assert log =~ "buffer=#{buffer}  buffer #{inspect(buffer)} is stopping"
    end
  end
end
