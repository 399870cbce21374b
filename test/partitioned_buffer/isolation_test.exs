defmodule PartitionedBuffer.IsolationTest do
  # A failure is isolated first, and waited out second: what the sink refuses costs few calls, and
  # delays nothing else.
  use PartitionedBuffer.Case, async: true

  import ExUnit.CaptureLog
  import PartitionedBuffer.VM

  @moduletag :capture_log

  alias PartitionedBuffer.{Counter, Queue}

  defp quietly(fun) do
    {result, _log} = with_log(fun)
    result
  end

  defp now, do: System.monotonic_time(:millisecond)

  # Calls `fun` with each value of `from..`, one each `ms` milliseconds, until the test ends.
  defp every(ms, fun) do
    started = now()

    start_supervised!(
      {Task,
       fn ->
         for n <- Stream.iterate(0, &(&1 + 1)) do
           Process.sleep(max(started + n * ms - now(), 0))
           fun.(n)
         end
       end},
      id: make_ref()
    )
  end

  defp table, do: :ets.new(:stored, [:public, write_concurrency: true])

  defp processed?(buffer, count), do: PartitionedBuffer.info(buffer).totals.processed >= count

  # Waits for a state that only `info/1` shows.
  defp await(condition, until) do
    cond do
      condition.() -> :ok
      now() > until -> :timeout
      true -> Process.sleep(10) && await(condition, until)
    end
  end

  describe "with default options" do
    @tag timeout: 120_000
    test "400 keys that are rewritten are stored in each interval beside a bad one" do
      [400, 1_000, 3_000]
      |> Enum.map(fn every_ms ->
        stored = table()

        processor = fn batch ->
          if List.keymember?(batch, :bad, 0),
            do: {:error, :refused},
            else: Enum.each(batch, fn {key, _, _, _} -> store(stored, key) end)
        end

        buffer =
          start_buffer(
            processor: processor,
            partitions: 1,
            processing_interval_ms: 5_000,
            max_attempts: 100,
            drain_timeout_ms: 0
          )

        for key <- 1..400, do: :ets.insert(stored, {key, now(), 0})

        every(every_ms, fn n ->
          for(key <- 1..400, do: Buffer.put(buffer, key, n)) && Buffer.put(buffer, :bad, n)
        end)

        {stored, buffer}
      end)
      |> Enum.each(fn {stored, buffer} ->
        # Three intervals, and the last one counts too.
        assert await(fn -> Enum.all?(:ets.tab2list(stored), &times?(&1, 3)) end, now() + 25_000) == :ok
        # An interval, and some time for the writes and a busy machine.
        for {key, _last, longest, _times} <- :ets.tab2list(stored),
            do: assert({key, longest < 7_500} == {key, true})

        assert %{totals: %{given_up: 0}} = PartitionedBuffer.info(buffer)
      end)
    end

    defp times?({_key, _last, _longest, times}, count), do: times >= count
    defp times?(_never, _count), do: false

    # The last time, the longest time without a store, and how often the key was stored.
    defp store(table, key) do
      {last, longest, times} =
        case :ets.lookup(table, key) do
          [{_key, last, longest}] -> {last, longest, 0}
          [{_key, last, longest, times}] -> {last, longest, times}
        end

      time = now()
      :ets.insert(table, {key, time, max(longest, time - last), times + 1})
    end

    test "a queue stores 1,000 items of which 10 are refused by fewer than 150 calls" do
      calls = :counters.new(1, [])

      processor = fn batch ->
        :counters.add(calls, 1, 1)
        bad = Enum.filter(batch, &(rem(&1, 100) == 57))
        if bad == [], do: :ok, else: if(match?([_], batch), do: {:cancel, :refused}, else: {:error, :refused})
      end

      test = self()

      buffer =
        start_buffer(
          module: Queue,
          partitions: 1,
          processor: processor,
          processing_batch_size: 500,
          max_attempts: 100,
          dead_letter: fn items, :refused -> send(test, {:dead, items}) end
        )

      attach_telemetry(buffer)
      Queue.push(buffer, Enum.to_list(1..1_000))
      {time, :ok} = :timer.tc(fn -> PartitionedBuffer.flush(buffer) end)
      assert time < 1_000_000
      assert :counters.get(calls, 1) < 150
      for n <- 0..9, item = 100 * n + 57, do: assert_received({:dead, [^item]})
      assert %{processed: 990, given_up: 10, failed: 0} = PartitionedBuffer.info(buffer).totals
      refute_received {[:retry], _measurements, _metadata}
    end
  end

  test "a new bad key each second delays good writes by two intervals at most" do
    # A fifth of the default times.
    interval = 1_000

    for bad <- [{:error, :refused}, {:cancel, :refused}] do
      late = :counters.new(2, [])

      processor = fn batch ->
        if Enum.any?(batch, &match?({{:bad, _}, _, _, _}, &1)) do
          if match?([_], batch), do: bad, else: {:error, :refused}
        else
          for {_key, written, _, _} <- batch,
              do: :counters.add(late, if(now() - written > 2 * interval, do: 2, else: 1), 1)
        end
      end

      buffer =
        start_buffer(
          processor: processor,
          processing_batch_size: 1_000,
          processing_interval_ms: interval,
          retry_backoff_ms: {200, 6_000},
          max_attempts: 100,
          dead_letter: fn _entries, _reason -> :ok end,
          drain_timeout_ms: 0
        )

      every(10, fn n -> for m <- 0..9, do: Buffer.put(buffer, {n, m}, now()) end)
      every(200, fn n -> Buffer.put(buffer, {:bad, n}, n) end)
      {buffer, late}
    end
    |> Enum.each(fn {buffer, late} ->
      assert await(fn -> processed?(buffer, 5_000) end, now() + 20_000) == :ok
      assert :counters.get(late, 2) <= 0.05 * :counters.get(late, 1)
    end)
  end

  test "a key that is written all the time is stored beside many bad ones" do
    test = self()

    processor = fn batch ->
      # Meanwhile a newer value of the key waits.
      Process.sleep(2)
      good = for {key, value, _, _} <- batch, not is_tuple(key), do: {key, value}
      if length(good) == length(batch), do: send(test, {:stored, good}), else: {:error, :refused}
    end

    buffer =
      start_buffer(
        partitions: 1,
        processor: processor,
        processing_interval_ms: 50,
        processing_batch_size: 100,
        retry_backoff_ms: {10, 10},
        max_attempts: :infinity,
        drain_timeout_ms: 0
      )

    # Failed entries wait first, so each flush begins with them, and pauses before it comes to others.
    Buffer.put_all(buffer, for(n <- 1..20, do: {{:bad, n}, n}))
    every(1, fn n -> Buffer.put_all(buffer, [{:hot, n}, {"cold #{n}", n}]) end)
    for _ <- 1..10, do: await_stored(:hot)
  end

  defp await_stored(key) do
    assert_receive {:stored, stored}
    unless List.keymember?(stored, key, 0), do: await_stored(key)
  end

  test "a sink that takes 100 entries gets them, however often keys are rewritten" do
    for size <- [400, 1_000] do
      stored = table()

      processor = fn batch ->
        if length(batch) > 100,
          do: {:error, :too_large},
          else: Enum.each(batch, &:ets.insert(stored, {elem(&1, 0)}))
      end

      buffer =
        start_buffer(
          partitions: 1,
          processor: processor,
          processing_batch_size: size,
          processing_interval_ms: 100,
          max_attempts: 100,
          drain_timeout_ms: 0
        )

      every(20, fn n -> Buffer.put_all(buffer, for(key <- 1..1_000, do: {key, n})) end)
      assert await(fn -> :ets.info(stored, :size) == 1_000 end, now() + 10_000) == :ok
      assert %{totals: %{given_up: 0}, partitions: [%{limit: limit}]} = PartitionedBuffer.info(buffer)
      assert limit < size
    end
  end

  test "keys rewritten faster than a slow sink takes them are stored beside a bad one" do
    stored = table()

    processor = fn batch ->
      Process.sleep(20)

      if List.keymember?(batch, :bad, 0),
        do: {:error, :refused},
        else: Enum.each(batch, &:ets.insert(stored, {elem(&1, 0)}))
    end

    buffer =
      start_buffer(
        partitions: 1,
        processor: processor,
        processing_batch_size: 100,
        processing_interval_ms: 50,
        max_attempts: 100,
        drain_timeout_ms: 0
      )

    every(5, fn n -> Buffer.put_all(buffer, [{:bad, n} | for(key <- 1..100, do: {key, n})]) end)
    assert await(fn -> :ets.info(stored, :size) == 100 end, now() + 10_000) == :ok
  end

  # All times are a twentieth of the defaults.
  test "hot keys are stored in each interval beside ever more bad keys" do
    {interval, stored} = {250, table()}

    processor = fn batch ->
      if Enum.any?(batch, &match?({{:bad, _}, _, _}, &1)),
        do: {:error, :refused},
        else: Enum.each(batch, fn {key, _sum, _count} -> store(stored, key) end)
    end

    buffer =
      start_buffer(
        module: Counter,
        partitions: 1,
        processor: processor,
        processing_interval_ms: interval,
        retry_backoff_ms: {50, 1_500},
        max_attempts: 100,
        drain_timeout_ms: 0
      )

    for key <- 1..100, do: :ets.insert(stored, {key, now(), 0})
    every(10, fn _ -> for key <- 1..100, do: Counter.add(buffer, key) end)
    every(50, fn n -> Counter.add(buffer, {:bad, n}) end)
    # By default this takes more than a minute.
    assert await(fn -> PartitionedBuffer.info(buffer).retrying > 70 end, now() + 20_000) == :ok
    late = for {key, last, longest, _times} <- :ets.tab2list(stored), do: {max(longest, now() - last), key}
    assert {longest, _key} = Enum.max(late)
    assert longest < 4 * interval
  end

  test "many flushes in a short time use up few attempts of a bad entry" do
    buffer =
      start_buffer(
        partitions: 1,
        processor: &if(List.keymember?(&1, :bad, 0), do: {:error, :refused}, else: :ok),
        processing_threshold: 50,
        retry_backoff_ms: {200, 1_000},
        max_attempts: 100,
        drain_timeout_ms: 0
      )

    Buffer.put(buffer, :bad, 0)
    started = now()
    for n <- 1..20_000, do: Buffer.put(buffer, n, n)
    assert await(fn -> processed?(buffer, 19_000) end, now() + 10_000) == :ok
    assert %{totals: %{failed: failed}} = PartitionedBuffer.info(buffer)
    assert failed in 1..(2 + div(now() - started, 200))
  end

  test "a buffer without ticks retries postponed entries, and logs only what failed" do
    log =
      capture_log(fn ->
        buffer =
          start_buffer(
            partitions: 1,
            processor: &if(List.keymember?(&1, :bad, 0), do: {:error, :refused}, else: :ok),
            processing_interval_ms: :infinity,
            processing_threshold: 10,
            retry_backoff_ms: {50, 50},
            max_attempts: 100,
            drain_timeout_ms: 0
          )

        Buffer.put(buffer, :bad, 0)
        every(1, fn n -> Buffer.put(buffer, n, n) end)
        failed? = fn -> PartitionedBuffer.info(buffer).totals.failed >= 10 end
        assert await(failed?, now() + 20_000) == :ok
      end)

    assert log =~ "processor failed (:refused)"
    refute log =~ "(nil)"
  end

  test "a queue without order stores nine of ten tenants while one is down" do
    stored = :counters.new(10, [])

    processor = fn batch ->
      if Enum.any?(batch, &(rem(&1, 10) == 0)),
        do: {:error, :down},
        else: Enum.each(batch, &:counters.add(stored, rem(&1, 10), 1))
    end

    buffer =
      start_buffer(
        module: Queue,
        order: :none,
        partitions: 1,
        processor: processor,
        processing_batch_size: 500,
        processing_interval_ms: 100,
        retry_backoff_ms: {100, 3_000},
        max_attempts: :infinity,
        drain_timeout_ms: 0
      )

    for n <- 0..19 do
      Queue.push(buffer, Enum.to_list((n * 100)..(n * 100 + 99)))
      quietly(fn -> PartitionedBuffer.flush(buffer) end)
    end

    assert await(fn -> processed?(buffer, 1_800) end, now() + 5_000) == :ok
    assert for(tenant <- 1..9, do: :counters.get(stored, tenant)) == List.duplicate(200, 9)
    assert %{size: size, in_flight: in_flight, totals: %{given_up: 0}} = PartitionedBuffer.info(buffer)
    assert size + in_flight == 200
  end

  test "an outage costs one call for each pause, and gives nothing up" do
    {calls, up} = {:counters.new(1, []), :atomics.new(1, [])}

    processor = fn _batch ->
      :counters.add(calls, 1, 1)
      if :atomics.get(up, 1) == 1, do: :ok, else: {:error, :down}
    end

    for {module, write} <- [
          {Buffer, &Buffer.put_all(&1, for(n <- 1..10_000, do: {n, n}))},
          {Counter, &Counter.add_all(&1, for(n <- 1..10_000, do: {n, n}))},
          {Queue, &Queue.push(&1, Enum.to_list(1..10_000))}
        ] do
      :counters.put(calls, 1, 0)
      :atomics.put(up, 1, 0)

      buffer =
        start_buffer(
          module: module,
          partitions: 1,
          processor: processor,
          processing_batch_size: 1_000,
          processing_interval_ms: 20,
          retry_backoff_ms: {1, 1},
          max_attempts: if(module == Queue, do: 1_000, else: 100)
        )

      attach_telemetry(buffer)
      write.(buffer)
      pauses = for _ <- 1..150, do: assert_receive({[:retry], %{delay: 1}, %{reason: :down}})
      assert :counters.get(calls, 1) <= length(pauses) + 12 + received_pauses()
      assert %{totals: %{given_up: 0, processed: 0}, failing_ms: failing_ms} = PartitionedBuffer.info(buffer)
      assert failing_ms > 0
      :atomics.put(up, 1, 1)
      assert await(fn -> processed?(buffer, 10_000) end, now() + 10_000) == :ok
      assert %{failing_ms: 0, partitions: [%{failures: 0, limit: 1_000}]} = PartitionedBuffer.info(buffer)
    end
  end

  # The pauses since then, of which the last call may not have ended.
  defp received_pauses(count \\ 1) do
    receive do
      {[:retry], %{delay: 1}, _metadata} -> received_pauses(count + 1)
    after
      0 -> count
    end
  end

  describe "a limit of the heap" do
    setup :tmp_dir

    test "that a batch exceeds makes it smaller until it fits", %{dir: dir} do
      app = copy_package(dir, library())
      output = elixir!(app, "heap.exs", [], [{"ERL_FLAGS", "+hmax 6000000 +hmaxk true"}])
      assert output =~ "large_batch: :ok, stored 1000, dead 0, given up 0, left 0"
      assert output =~ "large_entry: :ok, stored 100, dead 0, given up 1, left 0"
      assert output =~ "dead_letters: :ok, stored 0, dead 50, given up 50, left 0"
      assert output =~ "stopped: :ok, dead 100"
    end
  end
end
