defmodule PartitionedBuffer.DeliveryTest do
  # With `:max_attempts` an entry is in the buffer until the processor has succeeded with it.
  use PartitionedBuffer.Case, async: true

  import ExUnit.CaptureLog

  @moduletag :capture_log

  alias PartitionedBuffer.{Counter, Native, Processing, Queue}
  alias PartitionedBuffer.Processing.Batch

  # Flushes only when it is asked to, and pauses so long that no test sees the end of a pause.
  defp start(opts) do
    [partitions: 1, processing_interval_ms: :infinity, max_attempts: 5, retry_backoff_ms: {60_000, 60_000}]
    |> Keyword.merge(opts)
    |> start_buffer()
  end

  # A processor that sends each batch to the test, and returns what `outcomes` says: a list, of which each call takes the first
  # and the last one stays, or a function of the batch.
  defp returning(outcomes) when is_list(outcomes) do
    test = self()
    {:ok, agent} = Agent.start_link(fn -> outcomes end)

    fn batch ->
      send(test, {:batch, batch})

      Agent.get_and_update(agent, fn
        [last] -> {last, [last]}
        [next | outcomes] -> {next, outcomes}
      end)
      |> perform()
    end
  end

  defp returning(outcome) when is_function(outcome) do
    test = self()

    fn batch ->
      send(test, {:batch, batch})
      outcome.(batch)
    end
  end

  defp perform(:raise), do: raise("the sink is away")
  defp perform(:throw), do: throw(:away)
  defp perform(:exit), do: exit(:away)
  defp perform(:exit_normally), do: exit(:normal)
  defp perform(:kill), do: Process.exit(self(), :kill)
  defp perform(:hang), do: receive(do: (:never -> :ok))
  defp perform(value), do: value

  defp dead_letter do
    test = self()
    fn entries, reason -> send(test, {:dead, entries, reason}) end
  end

  defp quietly(fun) do
    {result, _log} = with_log(fun)
    result
  end

  defp partition_of(buffer), do: PartitionedBuffer.Routing.partition_name(buffer, 0)

  # The keys of each batch that has come.
  defp received_keys, do: Enum.map(received_batches(), &keys/1)

  describe "what a processor returns" do
    test "is success for all but the documented terms" do
      for returned <- [:ok, {:ok, 1}, {3, nil}, nil, [], {}, {:errors, :x}, %{}, {:snoozed, 1}] do
        buffer = start(processor: returning([returned]))
        Buffer.put(buffer, :key, 1)
        assert Buffer.flush(buffer) == :ok
        assert {Buffer.size(buffer), Buffer.fetch(buffer, :key)} == {0, :error}
        assert Buffer.flush(buffer) == :ok
        assert [[{:key, 1, 0, 0}]] = received_batches()
      end
    end

    test "fails the entry for an error, raise, throw, exit, kill or timeout" do
      failures = [
        {:error, :error},
        {{:error, :down}, :down},
        {:raise, %RuntimeError{message: "the sink is away"}},
        {:throw, {:throw, :away}},
        {:exit, {:exit, :away}},
        {:exit_normally, {:exit, :normal}},
        {:kill, :killed},
        {:hang, :timeout},
        {{:error, :insert, :changeset, %{}}, {:error, :insert, :changeset, %{}}},
        {{:error}, {:error}},
        {{:snooze, :soon}, {:bad_return, {:snooze, :soon}}},
        {{:snooze, 1_000, :buffers}, {:bad_return, {:snooze, 1_000, :buffers}}},
        {{:partial, [retry: []]}, {:bad_return, {:partial, [retry: []]}}},
        {{:cancel}, {:bad_return, {:cancel}}},
        {{:error, :down, :key}, {:bad_return, {:error, :down, :key}}},
        {{:error, :down, [:key | :tail]}, {:bad_return, {:error, :down, [:key | :tail]}}},
        {{:cancel, :no, [{:other, 1, 0, 0}]}, {:bad_return, {:cancel, :no, [{:other, 1, 0, 0}]}}}
      ]

      for {returned, reason} <- failures do
        # A busy machine may take longer than this for the calls that return.
        timeout = if returned == :hang, do: 100, else: 60_000
        buffer = start(processor: returning([returned, :ok]), processing_timeout_ms: timeout)
        attach_telemetry(buffer)
        Buffer.put(buffer, :a, 1)
        assert {returned, quietly(fn -> Buffer.flush(buffer) end)} == {returned, {:error, {:failed, 1}}}
        assert {Buffer.size(buffer), Buffer.get(buffer, :a)} == {1, 1}
        assert_received {[:retry], %{count: 1, superseded: 0, delay: delay}, %{reason: ^reason, failures: 1}}
        assert delay in 30_000..60_000
        assert_received {[:processing_failed], %{count: 1}, %{reason: ^reason}}
        refute_received {[:split], _measurements, _metadata}
        Buffer.update_options(buffer, processing_timeout_ms: 60_000)
        assert Buffer.flush(buffer) == :ok
        assert Buffer.size(buffer) == 0
      end
    end

    test "may name failed map entries in any order, and the partition goes on" do
      buffer =
        start(
          processor:
            returning(fn batch -> {:error, :bad, Enum.filter(Enum.reverse(batch), &(elem(&1, 1) < 0))} end),
          processing_batch_size: 10
        )

      Buffer.put_all(buffer, for(n <- 1..30, do: {n, if(rem(n, 10) == 0, do: -n, else: n)}))
      assert quietly(fn -> Buffer.flush(buffer) end) == {:error, {:failed, 3}}
      assert length(received_batches()) == 3
      assert Buffer.size(buffer) == 3
      assert for(n <- [1, 10, 20, 30], do: Buffer.get(buffer, n)) == [nil, -10, -20, -30]
    end

    test "may name failed queue items in any order, and the partition pauses" do
      buffer =
        start(
          module: Queue,
          processor: returning([{:error, :bad, [:c, :a, :a]}, :ok]),
          processing_batch_size: 4
        )

      Queue.push(buffer, [:a, :b, :a, :c, :d])
      assert quietly(fn -> Queue.flush(buffer) end) == {:error, {:failed, 4}}
      assert received_batches() == [[:a, :b, :a, :c]]
      # The items that stay keep their order.
      assert Queue.flush(buffer) == :ok
      assert received_batches() == [[:a, :a, :c, :d]]
    end

    test "is a bad return if it names an item more often than the batch has it" do
      buffer = start(module: Queue, processor: returning([{:error, :bad, [:b, :b]}]))
      attach_telemetry(buffer)
      Queue.push(buffer, [:a, :b])
      assert quietly(fn -> Queue.flush(buffer) end) == {:error, {:failed, 2}}
      assert_received {[:split], %{count: 2, limit: 1}, %{reason: {:bad_return, {:error, :bad, [:b, :b]}}}}
    end

    test "may name entries to retry and entries to cancel, and the others succeeded" do
      for {module, write, entry} <- [
            {Buffer, &Buffer.put_all(&1, for(n <- &2, do: {n, n})), &{&1, &1, 0, 0}},
            {Counter, &Counter.add_all(&1, for(n <- &2, do: {n, n})), &{&1, &1, 1}},
            {Queue, &Queue.push(&1, Enum.to_list(&2)), & &1}
          ] do
        partial = {:partial, :mixed, cancel: [entry.(4), entry.(1)], retry: [entry.(3)]}
        buffer = start(module: module, processor: returning([partial, :ok]), dead_letter: dead_letter())
        attach_telemetry(buffer)
        write.(buffer, 1..5)
        assert quietly(fn -> PartitionedBuffer.flush(buffer) end) == {:error, {:failed, 1}}
        assert_received {:dead, dead, :mixed}
        assert Enum.sort(dead) == [entry.(1), entry.(4)]
        assert_received {[:batch, :stop], %{size: 5}, %{outcome: :partial, reason: :mixed}}
        assert_received {[:retry], %{count: 1}, %{reason: :mixed}}
        assert %{processed: 2, given_up: 2, failed: 1} = PartitionedBuffer.info(buffer).totals
        assert [_all] = received_batches()
        assert PartitionedBuffer.flush(buffer) == :ok
        assert received_entries() == [entry.(3)]
      end
    end

    test "may leave out both parts of :partial, and names no entry twice" do
      for {some, result} <- [
            {[], :ok},
            {[retry: [], cancel: []], :ok},
            {[retry: [:a]], {:error, {:failed, 1}}},
            {[cancel: [:a, :b]], :ok},
            {[retry: [:a], cancel: [:a]], {:error, {:failed, 2}}},
            {[retry: [:c]], {:error, {:failed, 2}}},
            {[retries: [:a]], {:error, {:failed, 2}}},
            {:all, {:error, {:failed, 2}}}
          ] do
        buffer = start(module: Queue, processor: returning([{:partial, :bad, some}, {:error, :later}]))
        Queue.push(buffer, [:a, :b])
        assert {some, quietly(fn -> Queue.flush(buffer) end)} == {some, result}
      end
    end

    test "{:snooze, ms} pauses exactly that long, and is no attempt or failure" do
      snoozes = [{:snooze, 50}, {:snooze, 49.5}]
      buffer = start(processor: returning(snoozes ++ [:ok]), max_attempts: 1, retry_backoff_ms: {10, 10})
      attach_telemetry(buffer)
      Buffer.put(buffer, :key, 1)
      assert Buffer.flush(buffer) == {:error, {:failed, 1}}
      assert_receive {[:retry], %{delay: 50, count: 1}, %{failures: 0, reason: :snooze}}
      # The pauses end by themselves.
      assert_receive {[:batch, :stop], _measurements, %{outcome: :ok, attempt: 1}}
      assert length(received_batches()) == 3
    end

    test "{:snooze, ms} is at least the shortest pause, and at most a day" do
      for {backoff, ms, expected} <- [
            {{70_000, 80_000}, 0, 70_000},
            {{70_000, 80_000}, -5, 70_000},
            {fn _failures -> 90_000 end, 999, 1_000},
            {{1, 1}, 86_400_001, 86_400_000},
            {{1, 1}, 1.0e300, 86_400_000}
          ] do
        buffer = start(processor: returning([{:snooze, ms}]), retry_backoff_ms: backoff)
        attach_telemetry(buffer)
        Buffer.put(buffer, :key, 1)
        assert Buffer.flush(buffer) == {:error, {:failed, 1}}
        assert_received {[:retry], %{delay: ^expected}, %{reason: :snooze}}
      end
    end

    test "a single entry that takes too long pauses also if others are left" do
      processor = returning(fn [{key, _, _, _}] -> if key == 1, do: perform(:hang), else: :ok end)
      buffer = start(processor: processor, processing_batch_size: 1, processing_timeout_ms: 100)
      attach_telemetry(buffer)
      Buffer.put_all(buffer, for(n <- 1..50, do: {n, n}))
      assert {:error, {:failed, _left}} = quietly(fn -> Buffer.flush(buffer) end)
      assert_received {[:retry], %{count: 1, delay: delay}, %{reason: :timeout}}
      assert delay >= 30_000
    end

    test "{:snooze, ms} with a time that is changed is a warning once" do
      buffer = start(processor: returning([{:snooze, 0}]))
      Buffer.put(buffer, :key, 1)
      log = capture_log(fn -> for _ <- 1..2, do: Buffer.flush(buffer) end)
      assert [_before, line] = String.split(log, "asked for a pause")
      assert line =~ "of 0 ms, and gets 60000 ms: the shortest pause is 60000 ms"
    end

    test "{:snooze, ms, :buffer} pauses all partitions" do
      [first | others] = keys = for partition <- 0..2, do: partition_key_of(partition, 3)
      processor = returning(fn [{key, _, _, _}] -> if key == first, do: {:snooze, 60_000, :buffer} end)
      buffer = start(processor: processor, partitions: 3, processing_interval_ms: 20)
      attach_telemetry(buffer)
      Buffer.put(buffer, first, 1)
      assert_receive {[:retry], %{delay: 60_000}, %{reason: :snooze}}
      assert_receive {:batch, [{^first, 1, 0, 0}]}
      for key <- others, do: Buffer.put(buffer, key, 1)
      refute_receive {:batch, _batch}, 100
      assert PartitionedBuffer.flush(buffer) == {:error, {:failed, 1}}
      assert Enum.sort(keys(received_entries())) == Enum.sort(keys)
    end

    test "{:cancel, reason} gives up all or some entries at once, with no pause" do
      dead_letter = dead_letter()

      for {cancel, given_up} <- [{&{:cancel, &1}, 1..4}, {&{:cancel, &1, [{2, 2, 0, 0}]}, 2..2}] do
        buffer = start(processor: returning([cancel.(:invalid), :ok]), dead_letter: dead_letter)
        attach_telemetry(buffer)
        Buffer.put_all(buffer, for(n <- 1..4, do: {n, n}))
        assert Buffer.flush(buffer) == :ok
        assert_received {:dead, entries, :invalid}
        assert keys(entries) == Enum.to_list(given_up)
        assert_received {[:dead_letter], %{count: count}, %{reason: :invalid, handled: true}}
        assert count == length(entries)
        assert {Buffer.size(buffer), Buffer.get(buffer, 2)} == {0, nil}
        refute_received {[:retry], _measurements, _metadata}
      end
    end
  end

  describe "attempts" do
    test "count per entry: one bad of 500 ends up alone, and the rest are stored" do
      stored = :counters.new(500, [])

      processor = fn batch ->
        if List.keymember?(batch, 250, 0),
          do: {:error, :bad},
          else: Enum.each(batch, fn {n, n, 0, 0} -> :counters.add(stored, n, 1) end)
      end

      buffer = start(processor: returning(processor), processing_batch_size: 500, dead_letter: dead_letter())
      Buffer.put_all(buffer, for(n <- 1..500, do: {n, n}))
      results = for _ <- 1..5, do: quietly(fn -> Buffer.flush(buffer) end)
      assert results == List.duplicate({:error, {:failed, 1}}, 4) ++ [:ok]
      assert_received {:dead, [{250, 250, 0, 0}], :bad}
      refute_received {:dead, _entries, _reason}
      assert for(n <- 1..500, :counters.get(stored, n) != 1, do: n) == [250]
      bad = for batch <- received_batches(), List.keymember?(batch, 250, 0), do: length(batch)
      assert [500 | _] = bad
      assert List.last(bad) == 1
      assert length(bad) < 40
    end

    test "have any limit, and one beyond 32 bits holds up nothing" do
      for max <- [2 ** 31 - 1, 2 ** 31, 2 ** 32 - 1, 2 ** 32, 2 ** 70], updated? <- [false, true] do
        buffer =
          start(processor: returning([:error, :error, :ok]), max_attempts: if(updated?, do: 5, else: max))

        if updated?, do: Buffer.update_options(buffer, max_attempts: max)
        Buffer.put(buffer, :key, 1)

        assert quietly(fn -> for _ <- 1..2, do: Buffer.flush(buffer) end) ==
                 List.duplicate({:error, {:failed, 1}}, 2)

        assert {learned(buffer).failures, Buffer.flush(buffer)} == {2, :ok}
        assert received_batches() == List.duplicate([{:key, 1, 0, 0}], 3)
      end
    end

    test "begin at 0 again for a newer write" do
      buffer =
        start(
          processor: returning([:error, :error, :error, :ok]),
          max_attempts: 2,
          dead_letter: dead_letter()
        )

      Buffer.put(buffer, :key, 1)
      quietly(fn -> Buffer.flush(buffer) end)
      Buffer.put(buffer, :key, 2)
      assert quietly(fn -> Buffer.flush(buffer) end) == {:error, {:failed, 1}}
      # The second failure with this value.
      assert quietly(fn -> Buffer.flush(buffer) end) == :ok
      assert_received {:dead, [{:key, 2, 0, 0}], :error}
      assert Buffer.size(buffer) == 0
    end

    test "keep version and updates" do
      buffer = start(processor: returning([:error, :error, :ok]))
      big = Integer.pow(2, 100)
      Buffer.put_newer(buffer, :key, "first", big)
      Buffer.put_newer(buffer, :key, "second", big + 1)
      quietly(fn -> for _ <- 1..3, do: Buffer.flush(buffer) end)
      assert received_batches() == List.duplicate([{:key, "second", big + 1, 1}], 3)
    end

    test "of a queue's items keep their order, with new items behind them" do
      buffer = start(module: Queue, processor: returning([:error, :error, :ok]), processing_batch_size: 4)
      Queue.push(buffer, [1, 2, 3, 4, 5])
      quietly(fn -> Queue.flush(buffer) end)
      Queue.push(buffer, [6, 7])
      quietly(fn -> Queue.flush(buffer) end)
      assert Queue.flush(buffer) == :ok
      assert [[1, 2, 3, 4], [1] | batches] = received_batches()
      assert Enum.concat(batches) == [1, 2, 3, 4, 5, 6, 7]
    end

    test "used up without :dead_letter log count and reason, no keys or values" do
      buffer = start(processor: returning([{:error, %ArgumentError{message: "secret"}}]), max_attempts: 1)
      attach_telemetry(buffer)
      Buffer.put(buffer, "secret key", "secret value")
      assert {:ok, log} = with_log(fn -> Buffer.flush(buffer) end)
      assert log =~ "partition 0 of buffer #{inspect(buffer)} gives up 1 entries: ArgumentError"
      refute log =~ "secret"
      assert_received {[:dead_letter], %{count: 1}, %{handled: false, reason: %ArgumentError{}}}
      assert Buffer.size(buffer) == 0
    end

    test "are not in the log if a processor exits or throws" do
      for {fail, banner} <- [
            {&exit({:timeout, {GenServer, :call, [:sink, {:insert, &1}, 5_000]}}),
             "** exit: :timeout in GenServer.call/3"},
            {&exit({:invalid, &1}), "** exit: {:invalid, […]}"},
            {&throw/1, "** throw"}
          ] do
        buffer = start(processor: fail)
        Buffer.put(buffer, "secret key", "secret value")
        assert {{:error, {:failed, 1}}, log} = with_log(fn -> Buffer.flush(buffer) end)
        assert log =~ banner
        refute log =~ "secret"
      end
    end

    test "used up are reported if :dead_letter fails or hangs; entries are gone" do
      hangs = fn _, _ -> perform(:hang) end

      for failing <- [fn _, _ -> raise "no" end, fn _, _ -> exit(:no) end, hangs] do
        # Only the call that hangs has a short limit.
        timeout = if failing == hangs, do: 100, else: 60_000
        processor = returning([:error, :ok])
        opts = [processor: processor, max_attempts: 1, dead_letter: failing, processing_timeout_ms: timeout]
        buffer = start(opts)
        attach_telemetry(buffer)
        Buffer.put(buffer, :key, 1)
        quietly(fn -> Buffer.flush(buffer) end)
        assert_receive {[:dead_letter], %{count: 1}, %{handled: false}}
        assert Buffer.flush(buffer) == :ok
        assert received_batches() == [[{:key, 1, 0, 0}]]
      end
    end

    test "used up go to a :dead_letter given as module, function and arguments" do
      buffer =
        start(
          processor: returning([:error]),
          max_attempts: 1,
          dead_letter: {__MODULE__, :report, [self(), :extra]}
        )

      Buffer.put(buffer, :key, 1)
      quietly(fn -> Buffer.flush(buffer) end)
      assert_received {:reported, [{:key, 1, 0, 0}], :error, :extra}
    end
  end

  def report(entries, reason, test, extra), do: send(test, {:reported, entries, reason, extra})

  # `A` is in flight with version 5. Its batch is with the processor, which waits for the test.
  defp in_flight(opts \\ []) do
    buffer = start([processor: asking_processor()] ++ opts)
    Buffer.put_newer(buffer, :key, "A", 5)
    Buffer.flush(buffer, async: true)
    assert_receive {:asked, task, [{:key, "A", 5, 0}]}
    {buffer, task}
  end

  defp succeed({buffer, task}) do
    send(task, :return)
    wait_idle(partition_of(buffer))
  end

  defp fail({buffer, task}) do
    quietly(fn ->
      send(task, {:throw, :failed})
      wait_idle(partition_of(buffer))
    end)
  end

  # The batch of a flush now; nil if there is nothing to flush.
  defp next_batch(buffer) do
    %Task{ref: ref} = Task.async(fn -> Buffer.flush(buffer) end)

    receive do
      {:asked, task, batch} ->
        send(task, :return)
        assert_receive {^ref, :ok}
        batch

      {^ref, :ok} ->
        nil
    end
  end

  describe "an entry in flight" do
    test "is seen until the processor succeeds" do
      {buffer, _task} = running = in_flight()

      assert {Buffer.get(buffer, :key), Buffer.fetch(buffer, :key), Buffer.size(buffer)} ==
               {"A", {:ok, "A"}, 0}

      succeed(running)
      assert {Buffer.get(buffer, :key, :none), Buffer.fetch(buffer, :key)} == {:none, :error}
    end

    test "waits again when it fails" do
      {buffer, _task} = running = in_flight()
      fail(running)
      assert {Buffer.get(buffer, :key), Buffer.size(buffer)} == {"A", 1}
      assert next_batch(buffer) == [{:key, "A", 5, 0}]
    end

    test "is followed by a newer write, or dropped for it" do
      for write <- [&Buffer.put(&1, :key, "B"), &Buffer.put_newer(&1, :key, "B", 6)],
          settle <- [&succeed/1, &fail/1] do
        {buffer, _task} = running = in_flight()
        assert write.(buffer) == :ok
        assert Buffer.get(buffer, :key) == "B"
        settle.(running)
        assert [{:key, "B", _version, 0}] = next_batch(buffer)
        assert next_batch(buffer) == nil
      end
    end

    test "makes a version not above its own stale, whether it succeeds or fails" do
      for version <- [4, 5], settle <- [&succeed/1, &fail/1] do
        {buffer, _task} = running = in_flight()
        assert Buffer.put_newer(buffer, :key, "B", version) == :ok
        assert Buffer.put_newer(buffer, :key, "B", version, stale: :error) == {:error, :stale}
        assert {Buffer.get(buffer, :key), Buffer.size(buffer)} == {"A", 0}
        settle.(running)
        assert next_batch(buffer) in [nil, [{:key, "A", 5, 0}]]
        assert Buffer.put_newer(buffer, :key, "B", version, stale: :error) == :ok
        assert next_batch(buffer) == [{:key, "B", version, 0}]
      end
    end

    test "exists for put_new" do
      for settle <- [&succeed/1, &fail/1] do
        {buffer, _task} = running = in_flight()
        assert Buffer.put_new(buffer, :key, "B") == {:error, :exists}
        settle.(running)
        assert next_batch(buffer) in [nil, [{:key, "A", 5, 0}]]
        assert Buffer.put_new(buffer, :key, "B") == :ok
        assert Buffer.put_new(buffer, :key, "C") == {:error, :exists}
        assert next_batch(buffer) == [{:key, "B", 0, 0}]
      end
    end

    test "that is deleted is seen no more and not retried" do
      for settle <- [&succeed/1, &fail/1] do
        {buffer, _task} = running = in_flight()
        assert Buffer.delete(buffer, :key) == :ok
        assert Buffer.get(buffer, :key) == nil
        settle.(running)
        assert next_batch(buffer) == nil
      end
    end

    test "that is deleted makes room for any write, which comes after it" do
      for settle <- [&succeed/1, &fail/1] do
        {buffer, _task} = running = in_flight()
        Buffer.delete(buffer, :key)
        assert Buffer.put_newer(buffer, :key, "C", 1, stale: :error) == :ok
        assert Buffer.get(buffer, :key) == "C"
        settle.(running)
        assert next_batch(buffer) == [{:key, "C", 1, 0}]
      end
    end

    test "that is deleted before it is in a batch is not given to the processor" do
      buffer = start(processor: asking_processor(), processing_batch_size: 1)
      Buffer.put_all(buffer, for(n <- 1..3, do: {n, n}))
      Buffer.flush(buffer, async: true)
      assert_receive {:asked, task, [{first, _, 0, 0}]}
      [second, third] = [1, 2, 3] -- [first]
      Buffer.delete(buffer, second)
      assert Buffer.get(buffer, second) == nil
      send(task, :return)
      assert_receive {:asked, task, [{^third, ^third, 0, 0}]}
      send(task, :return)
      wait_idle(partition_of(buffer))
      assert Buffer.flush(buffer) == :ok
      refute_received {:asked, _task, _batch}
    end

    test "behind failed ones comes after the pause unless replaced or deleted" do
      buffer = start(processor: returning([:error, :error, :error, :ok]), processing_batch_size: 1)
      Buffer.put_all(buffer, for(n <- 1..6, do: {n, :old}))
      assert quietly(fn -> Buffer.flush(buffer) end) == {:error, {:failed, 6}}
      failed = keys(received_entries())
      [superseded, deleted, kept] = Enum.to_list(1..6) -- failed
      Buffer.put(buffer, superseded, :new)
      Buffer.delete(buffer, deleted)
      assert Buffer.flush(buffer) == :ok
      expected = [{kept, :old, 0, 0}, {superseded, :new, 0, 0}] ++ for(n <- failed, do: {n, :old, 0, 0})
      assert Enum.sort(received_entries()) == Enum.sort(expected)
    end

    test "is not seen without :max_attempts" do
      buffer = start_buffer(processor: asking_processor(), partitions: 1)
      Buffer.put_newer(buffer, :key, "A", 5)
      Buffer.flush(buffer, async: true)
      assert_receive {:asked, task, _batch}
      assert Buffer.get(buffer, :key) == nil
      assert Buffer.put_newer(buffer, :key, "B", 1, stale: :error) == :ok
      assert Buffer.delete(buffer, :key) == :ok
      assert Buffer.put_new(buffer, :key, "C") == :ok
      send(task, :return)
      assert next_batch(buffer) == [{:key, "C", 0, 0}]
    end
  end

  describe "a pause" do
    test "lets no tick through, doubles up to the maximum, ends with a success" do
      buffer = start(processor: returning([:error, :error, :error, :ok]), retry_backoff_ms: {20, 40})
      attach_telemetry(buffer)
      Buffer.put(buffer, :key, 1)

      quietly(fn ->
        Buffer.flush(buffer)
        for failures <- 1..3, do: assert_receive({[:retry], _measurements, %{failures: ^failures}})
        assert_receive {[:batch, :stop], _measurements, %{outcome: :ok}}
      end)

      wait_idle(partition_of(buffer))
      assert %{failures: 0, pause_ms: nil} = learned(buffer)
    end

    test "has a random half to whole of the time between minimum and maximum" do
      job = %{trigger: :interval, options: %PartitionedBuffer.Options{name: :b, kind: :map}}
      job = struct!(Processing.Job, [ref: nil, flush: nil, functions: nil] ++ Map.to_list(job))
      job = put_in(job.options.retry_backoff_ms, {100, 1_000})

      for {failures, longest} <- [{0, 100}, {1, 200}, {3, 800}, {4, 1_000}, {1_000_000, 1_000}] do
        delays = for _ <- 1..500, do: Processing.Backoff.pause(job, failures)
        assert Enum.min(delays) in div(longest, 2)..longest
        assert Enum.max(delays) in div(longest, 2)..longest
        assert Enum.max(delays) - Enum.min(delays) > longest / 4
      end

      assert Processing.Backoff.pause(%{job | trigger: :stop}, 7) == 100
    end

    test "does not count for the time limit of the call" do
      # The call and the function together take longer than the limit.
      processor = fn _batch ->
        Process.sleep(1_200)
        {:error, :bad, [1]}
      end

      backoff = fn 1 ->
        Process.sleep(900)
        60_000
      end

      buffer =
        start(
          module: PartitionedBuffer.Queue,
          processor: processor,
          retry_backoff_ms: backoff,
          processing_timeout_ms: 2_000
        )

      attach_telemetry(buffer)
      PartitionedBuffer.Queue.push(buffer, [0, 1])
      assert quietly(fn -> PartitionedBuffer.flush(buffer) end) == {:error, {:failed, 1}}
      assert_received {[:retry], %{count: 1}, %{reason: :bad}}
      assert PartitionedBuffer.info(buffer).totals.processed == 1
    end

    test "is what a function returns, and 30 seconds if it fails or hangs" do
      test = self()

      for {backoff, expected, logged} <- [
            {fn failures -> failures * 7_000 end, 7_000, ""},
            {fn _ -> -1 end, 30_000, "got: -1"},
            {fn _ -> :soon end, 30_000, "got: :soon"},
            {fn _ -> raise "no" end, 30_000, "RuntimeError: no"},
            {fn _ -> throw(:no) end, 30_000, "throw: :no"},
            {fn _ -> GenServer.call(:nobody, :pause) end, 30_000, "exit: :noproc in GenServer.call/3"},
            {fn _ -> spawn_link(fn -> exit(:no) end) && Process.sleep(:infinity) end, 30_000,
             "it ended: :no"},
            {fn _ -> send(test, {:hangs, self()}) && Process.sleep(:infinity) end, 30_000,
             "it took longer than 500 ms"}
          ] do
        buffer =
          start(
            partitions: 1,
            processor: fn _batch -> {:error, :down} end,
            retry_backoff_ms: backoff,
            # The function has half of this time.
            processing_timeout_ms: if(logged =~ "longer than", do: 1_000, else: 60_000),
            drain_timeout_ms: 0
          )

        attach_telemetry(buffer)
        Buffer.put(buffer, :key, 1)
        log = capture_log(fn -> Buffer.flush(buffer) end)
        assert log =~ "retry_backoff_ms of buffer #{inspect(buffer)} failed" == (logged != "")
        assert log =~ logged
        assert_received {[:retry], %{delay: ^expected}, %{failures: 1}}
        assert learned(buffer).pause_ms in (expected - 5_000)..expected
        # Neither the partition nor anybody who calls it waits for the function.
        assert Buffer.update_options(buffer, retry_backoff_ms: {1, 1}) == :ok
        assert Process.alive?(Process.whereis(partition_of(buffer)))
      end

      assert_received {:hangs, helper}
      await_end(helper)
    end

    test "of an outage costs one call, memory per distinct key, and a final pass" do
      up = :counters.new(1, [])

      processor = fn batch ->
        if :counters.get(up, 1) == 0, do: {:error, :down}, else: Enum.each(batch, fn _ -> :ok end)
      end

      buffer =
        start(
          processor: returning(processor),
          processing_interval_ms: 1,
          max_attempts: :infinity,
          retry_backoff_ms: {5, 20},
          processing_batch_size: 100
        )

      attach_telemetry(buffer)
      started = System.monotonic_time(:millisecond)

      quietly(fn ->
        for round <- 1..200 do
          Buffer.put_all(buffer, for(n <- 1..1_000, do: {n, round}))
          Process.sleep(1)
        end

        for _ <- 1..20, do: assert_receive({[:retry], %{}, %{reason: :down}})
      end)

      failed = length(received_batches())
      elapsed = System.monotonic_time(:millisecond) - started
      assert Native.held(run(buffer), 0) <= 2_000
      :counters.put(up, 1, 1)
      assert Buffer.flush(buffer) == :ok
      assert received_entries() |> Map.new(&{elem(&1, 0), elem(&1, 1)}) == Map.new(1..1_000, &{&1, 200})
      # The first pause takes 3 to 5 ms, each later one at least 5.
      assert failed <= div(elapsed, 5) + 2
    end

    test "outlives the partition's process, and its failures do" do
      buffer = start(processor: returning([:error, :error, :ok]))
      partition = partition_of(buffer)
      Buffer.put(buffer, :key, 1)
      quietly(fn -> for _ <- 1..2, do: Buffer.flush(buffer) end)
      # The next one may die as well.
      for _ <- 1..2 do
        kill_and_await_restart(partition)
        assert %{failures: 2, pause_ms: pause_ms} = learned(buffer)
        assert pause_ms > 20_000
        assert %{partitions: [%{state: :paused, failures: 2, next_ms: next_ms}]} = Buffer.info(buffer)
        assert next_ms > 20_000
      end

      assert length(received_batches()) == 2
      assert Buffer.flush(buffer) == :ok
      assert learned(buffer) == %{failures: 0, pause_ms: nil, failed: 0}
    end

    test "ends with the supervision tree, and the failures go on" do
      buffer = start(processor: returning([:error]), restart: :permanent)
      attach_telemetry(buffer)
      Buffer.put(buffer, :key, 1)

      quietly(fn ->
        Buffer.flush(buffer)
        kill_tree(buffer)
        # The next tree does not wait for the end of the pause.
        assert_receive {[:retry], _measurements, %{failures: 2}}
      end)
    end
  end

  describe "a task that ends while its partition has no process" do
    test "leaves its outcome to the next process" do
      {buffer, task} = in_flight(drain_timeout_ms: 0)
      :erlang.suspend_process(PartitionedBuffer.Buffer.Lookup.supervisor(buffer))
      kill_processes([Process.whereis(partition_of(buffer))])

      quietly(fn ->
        ref = Process.monitor(task)
        send(task, {:throw, :no})
        assert_receive {:DOWN, ^ref, :process, ^task, _reason}
      end)

      :erlang.resume_process(PartitionedBuffer.Buffer.Lookup.supervisor(buffer))
      PartitionedBuffer.Buffer.Lookup.await_restarts(buffer)
      assert %{failures: 1, pause_ms: pause_ms} = learned(buffer)
      assert pause_ms > 0
      assert %{partitions: [%{state: :paused}]} = Buffer.info(buffer)
    end
  end

  describe "failures in a row" do
    test "end when a task succeeds after its partition's death" do
      {buffer, _task} = running = in_flight()
      fail(running)
      assert %{partitions: [%{failures: 1, state: :paused}]} = Buffer.info(buffer)
      Buffer.flush(buffer, async: true)
      assert_receive {:asked, task, _batch}
      kill_and_await_restart(partition_of(buffer))
      succeed({buffer, task})
      assert %{partitions: [%{failures: 0, state: :idle}]} = Buffer.info(buffer)
    end
  end

  describe "a task that dies" do
    test "fails its batch, even if the partition's process died before it" do
      {buffer, task} = in_flight()
      attach_telemetry(buffer)
      kill_and_await_restart(partition_of(buffer))
      assert Buffer.get(buffer, :key) == "A"

      quietly(fn ->
        Process.exit(task, :kill)
        assert_receive {[:retry], %{count: 1}, %{reason: :killed}}
      end)

      assert next_batch(buffer) == [{:key, "A", 5, 0}]
    end

    test "together with its supervision tree has failed with its batch" do
      {buffer, _task} = in_flight(restart: :permanent)
      attach_telemetry(buffer)

      quietly(fn ->
        kill_tree(buffer)
        assert_receive {[:retry], %{count: 1}, %{reason: :killed}}
      end)

      assert next_batch(buffer) == [{:key, "A", 5, 0}]
    end

    test "leaves a given-up batch for :dead_letter, unless it died of that" do
      for {left, reason, dead} <- [
            {:given_up, nil, :killed},
            {:given_up, :no_memory, :no_memory},
            {:buried, nil, :killed},
            {:buried, :no_memory, nil}
          ] do
        buffer = start(processor: returning([:ok]), dead_letter: dead_letter())
        attach_telemetry(buffer)
        Buffer.put(buffer, :key, 1)
        {:fresh, flush} = Native.flush(run(buffer), 0)

        await_end(
          spawn(fn ->
            {[_entry], 1, true} = Native.read(flush, 0, 10, false)
            0 = Native.lease(flush, true)
            {:done, {0, 0, 1}} = Native.give_back(flush, :all, true, 0, nil)
            if left == :buried, do: Native.bury(flush)
          end)
        )

        job = job(buffer, flush, [], resumed?: true, reason: reason)
        quietly(fn -> assert Processing.run(job) == :ok end)
        assert learned(buffer).failed == 0

        handled? = dead != nil

        if handled?,
          do: assert_received({:dead, [{:key, 1, 0, 0}], ^dead}),
          else: refute_received({:dead, _, _})

        assert_received {[:dead_letter], %{count: 1}, %{handled: ^handled?}}
        assert PartitionedBuffer.flush(buffer) == :ok
        refute_received {:batch, _batch}
      end
    end

    test "in :dead_letter is logged by a start without outcomes" do
      {test, buffer} = {self(), unique_name()}

      dead_letter = fn entries, _reason ->
        send(test, {:dead, self(), entries})
        perform(:hang)
      end

      start(name: buffer, processor: &{:cancel, :bad, &1}, max_attempts: 1, dead_letter: dead_letter)
      Buffer.put_all(buffer, for(n <- 1..7, do: {n, n}))
      quietly(fn -> Buffer.flush(buffer, async: true) && assert_receive({:dead, _task, [_ | _]}) end)
      quietly(fn -> kill_tree(buffer) end)
      attach_telemetry(buffer)

      log =
        capture_log(fn ->
          start_buffer(name: buffer, partitions: 1)
          assert_receive {[:dead_letter], %{count: 7}, %{handled: false, reason: :killed}}
        end)

      assert log =~ "partition 0 of buffer #{inspect(buffer)} gives up 7 entries: :killed"
      wait_idle(partition_of(buffer))
      assert %{size: 0, in_flight: 0, totals: %{given_up: 7, processed: 0}} = Buffer.info(buffer)
      assert received_batches() == []
    end

    test "while it gives a batch back leaves each entry once" do
      # One call has time for fewer entries.
      for {module, count, write} <- [
            {Buffer, 50_000, &Buffer.put_all(&1, for(n <- &2, do: {n, n}))},
            {Counter, 50_000, &Counter.add_all(&1, for(n <- &2, do: {n, 1}))},
            {Queue, 500_000, &Queue.push(&1, Enum.to_list(&2))}
          ] do
        opts = [processor: returning([:ok]), processing_batch_size: 10 * count, max_size: 2 * count]
        buffer = start([module: module, max_attempts: :infinity] ++ opts)
        write.(buffer, 1..count)
        {:fresh, flush} = Native.flush(run(buffer), 0)

        await_end(
          spawn(fn ->
            assert Batch.read(job(buffer, flush, []), false).count == count
            0 = Native.lease(flush, true)
            {:more, _counts} = Native.give_back(flush, :all, true, :infinity, 60_000)
          end)
        )

        assert quietly(fn -> PartitionedBuffer.flush(buffer) end) == :ok
        entries = received_entries()
        assert length(entries) == count
        keys = if module == Queue, do: entries, else: Enum.sort(keys(entries))
        assert keys == Enum.to_list(1..count)
        if module == Counter, do: assert(Enum.all?(entries, &match?({_key, 1, 1}, &1)))
        assert %{size: 0, in_flight: 0, totals: totals} = PartitionedBuffer.info(buffer)
        assert totals.written - totals.coalesced == totals.processed + totals.superseded
        assert elem(Native.bound(buffer), 0) == 0
      end
    end

    test "later than its supervision tree is ended before its batch is retried" do
      test = self()

      processor = fn batch ->
        Process.flag(:trap_exit, true)
        send(test, {:asked, self(), batch})
        receive(do: (:return -> :ok))
      end

      # With the same number of partitions and with fewer, so that another partition gets the batch.
      for partitions <- [2, 1] do
        options =
          buffer_options(
            processor: processor,
            partitions: 2,
            max_attempts: 5,
            retry_backoff_ms: {60_000, 60_000}
          )

        buffer = options[:name]
        {:ok, supervisor} = GenServer.start(__MODULE__.Owner, options)
        key = Enum.find(1..100, &(PartitionedBuffer.get_partition(buffer, nil, &1) == :"Elixir.#{buffer}.1"))
        Buffer.put(buffer, key, 1)
        Buffer.flush(buffer, async: true)
        assert_receive {:asked, task, _batch}
        ref = Process.monitor(task)
        attach_telemetry(buffer)

        quietly(fn ->
          kill_tree(buffer)
          await_end(supervisor)
          {:ok, _pid} = Buffer.start_link(Keyword.put(options, :partitions, partitions))
          assert_received {:DOWN, ^ref, :process, ^task, :killed}
          # A partition that has another task's entries does not take its batch over.
          if partitions == 2, do: assert_receive({[:retry], %{count: 1}, %{reason: :killed}})
        end)

        Buffer.flush(buffer, async: true)
        assert_receive {:asked, next, [{^key, 1, 0, 0}]}
        send(next, :return)
      end
    end
  end

  # A buffer that is not linked to the test.
  defmodule Owner do
    use GenServer
    @impl GenServer
    def init(options) do
      {:ok, _supervisor} = PartitionedBuffer.Map.start_link(options)
      {:ok, nil}
    end
  end

  defp await_end(pid) do
    ref = Process.monitor(pid)
    assert_receive {:DOWN, ^ref, :process, ^pid, _reason}
  end

  describe "a stop" do
    test "retries with the shortest pause until all has succeeded" do
      buffer =
        start(processor: returning([:error, :raise, {:snooze, 60_000}, :ok]), retry_backoff_ms: {10, 60_000})

      Buffer.put_all(buffer, for(n <- 1..20, do: {n, n}))
      assert quietly(fn -> Buffer.stop(buffer) end) == :ok
      assert [_failed, _raised, _snoozed | succeeded] = received_keys()
      assert Enum.sort(Enum.concat(succeeded)) == Enum.to_list(1..20)
    end

    test "ends after :drain_timeout_ms, and gives what is left to :dead_letter" do
      buffer =
        start(
          processor: returning([:error]),
          max_attempts: :infinity,
          retry_backoff_ms: {20, 20},
          drain_timeout_ms: 200,
          dead_letter: dead_letter()
        )

      Buffer.put_all(buffer, for(n <- 1..25, do: {n, n}))
      {microseconds, :ok} = :timer.tc(fn -> quietly(fn -> Buffer.stop(buffer) end) end)
      assert microseconds in 150_000..5_000_000
      assert keys(dead_entries()) == Enum.to_list(1..25)
    end

    test "without :dead_letter keeps the rest for the next start, logs the count" do
      options =
        buffer_options(
          processor: returning([:error]),
          partitions: 1,
          max_attempts: :infinity,
          retry_backoff_ms: {20, 20},
          drain_timeout_ms: 50
        )

      {:ok, _pid} = Buffer.start_link(options)
      Buffer.put_all(options[:name], for(n <- 1..25, do: {n, n}))
      {:ok, log} = with_log(fn -> Buffer.stop(options[:name]) end)
      assert log =~ "25 entries are kept until a buffer of this name and kind starts"
      received_batches()
      test = self()
      {:ok, _pid} = Buffer.start_link(Keyword.merge(options, processor: &send(test, {:batch, &1})))
      Buffer.stop(options[:name])
      assert keys(received_entries()) == Enum.to_list(1..25)
    end

    test "kills a call that hangs once, and tries nothing that lies behind it" do
      buffer =
        start(
          processor: returning([:hang]),
          # Each call of :dead_letter has this time as well.
          processing_timeout_ms: 500,
          processing_batch_size: 5,
          retry_backoff_ms: {1, 1},
          dead_letter: dead_letter()
        )

      Buffer.put_all(buffer, for(n <- 1..20, do: {n, n}))
      assert quietly(fn -> Buffer.stop(buffer) end) == :ok
      assert length(received_batches()) == 1
      assert keys(dead_entries()) == Enum.to_list(1..20)
    end

    test "of a queue gives what is left to :dead_letter in its order" do
      buffer =
        start(
          module: Queue,
          processor: returning([:error]),
          max_attempts: :infinity,
          retry_backoff_ms: {5, 5},
          drain_timeout_ms: 50,
          dead_letter: dead_letter()
        )

      Queue.push(buffer, Enum.to_list(1..25))
      quietly(fn -> Queue.stop(buffer) end)
      assert dead_entries() == Enum.to_list(1..25)
    end
  end

  defp dead_entries(entries \\ []) do
    receive do
      {:dead, more, :stopped} -> dead_entries(entries ++ more)
    after
      0 -> entries
    end
  end

  describe "options" do
    test "that exclude each other are an error at the start and in an update" do
      assert_raise ArgumentError, ~r/:table of buffer :x excludes :max_attempts/, fn ->
        Buffer.start_link(name: :x, processor: & &1, max_attempts: 1, processing_batch_size: :table)
      end

      assert_raise ArgumentError, ~r/:dead_letter of buffer :x needs :max_attempts/, fn ->
        Buffer.start_link(name: :x, processor: & &1, dead_letter: fn _, _ -> :ok end)
      end

      buffer = start(processor: & &1)

      assert_raise ArgumentError, ~r/excludes/, fn ->
        Buffer.update_options(buffer, processing_batch_size: :table)
      end

      plain = start_buffer()

      assert_raise ArgumentError, ~r/cannot set :max_attempts: the buffer was started without it/, fn ->
        Buffer.update_options(plain, max_attempts: 3)
      end
    end

    test "of a running buffer can be changed" do
      buffer = start(processor: returning([:error]), dead_letter: dead_letter())
      Buffer.put(buffer, :key, 1)
      assert quietly(fn -> Buffer.flush(buffer) end) == {:error, {:failed, 1}}

      assert Buffer.update_options(buffer, max_attempts: 2, retry_backoff_ms: {1, 1}, drain_timeout_ms: 10) ==
               :ok

      assert quietly(fn -> Buffer.flush(buffer) end) == :ok
      assert_received {:dead, [{:key, 1, 0, 0}], :error}
    end
  end

  describe "the events" do
    test "of a batch tell size, attempt, outcome and reason" do
      buffer = start(processor: returning([{:error, :down}, {:snooze, 60_000}, :raise, :ok]))
      attach_telemetry(buffer)
      Buffer.put(buffer, :a, 1)
      partition = partition_of(buffer)
      quietly(fn -> for _ <- 1..4, do: Buffer.flush(buffer) end)

      assert_received {[:batch, :start], %{size: 1}, %{buffer: ^buffer, partition: ^partition, attempt: 1}}

      assert_received {[:batch, :stop], %{size: 1, duration: _},
                       %{attempt: 1, outcome: :error, reason: :down}}

      assert_received {[:batch, :stop], _measurements, %{attempt: 2, outcome: :snooze}}

      assert_received {[:batch, :exception], %{duration: _},
                       %{attempt: 2, outcome: :error, kind: :error, reason: %RuntimeError{}}}

      assert_received {[:batch, :stop], _measurements, %{attempt: 3, outcome: :ok, reason: nil}}
    end

    test "of processing tell what has triggered the flush" do
      buffer = start(processor: returning([:ok]), processing_interval_ms: 5)
      attach_telemetry(buffer)
      Buffer.put(buffer, :key, 1)
      assert_receive {[:processing, :stop], %{size: 1}, %{trigger: :interval}}
      Buffer.update_options(buffer, processing_interval_ms: :infinity)
      await_options(buffer)
      Buffer.put(buffer, :key, 1)
      Buffer.flush(buffer)
      assert_received {[:processing, :stop], %{size: 1}, %{trigger: :flush}}
      Buffer.put(buffer, :key, 1)
      Buffer.stop(buffer)
      assert_received {[:processing, :stop], %{size: 1}, %{trigger: :stop}}
    end
  end

  describe "a processor" do
    test "may write to its own buffer, and its writes are not lost" do
      buffer = unique_name()

      start(
        name: buffer,
        processor: fn batch ->
          for {{:again, n}, value, _, _} <- batch, n > 0, do: Buffer.put(buffer, {:again, n - 1}, value)
          :ok
        end
      )

      Buffer.put(buffer, {:again, 3}, 1)
      for _ <- 1..4, do: assert(Buffer.flush(buffer) == :ok)
      assert Buffer.size(buffer) == 0
    end
  end

  test "only one process at a time is the task of a partition" do
    {buffer, task} = in_flight()
    assert Native.process(run(buffer), 0, :task) == task
    other = Task.async(fn -> Native.begin_task(run(buffer), 0) end)
    assert Task.await(other) == {:busy, task}
    send(task, :return)
    wait_idle(partition_of(buffer))
    assert Native.process(run(buffer), 0, :task) == nil
  end
end
