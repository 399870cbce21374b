defmodule PartitionedBuffer.BatchFunctionTest do
  # `processing_batch_size: {acc, fun}`: a function of the user decides where a batch ends.
  use PartitionedBuffer.Case, async: true

  @moduletag :capture_log

  alias PartitionedBuffer.{Counter, Queue}

  # A limit of the bytes in a batch, which the last item may exceed.
  defp bytes(limit) do
    {0,
     fn item, size ->
       size = size + byte_size(item)
       {if(size >= limit, do: :emit, else: :cont), size}
     end}
  end

  # At most `limit` entries of one tenant.
  defp tenants(limit) do
    {%{},
     fn {tenant, _item}, counts ->
       counts = Map.update(counts, tenant, 1, &(&1 + 1))
       {if(counts[tenant] == limit, do: :emit, else: :cont), counts}
     end}
  end

  defp at_most(size), do: {1, fn _entry, n -> {if(n == size, do: :emit, else: :cont), n + 1} end}

  defp to_the_end, do: {nil, fn _entry, acc -> {:cont, acc} end}

  # Ends batches after `size` entries, and fails in the given way with the items in `bad`.
  defp failing(size, bad, way) do
    {1,
     fn item, n ->
       if item in bad,
         do: fail(way),
         else: {if(n == size, do: :emit, else: :cont), n + 1}
     end}
  end

  defp fail(:raise), do: raise("no size")
  defp fail(:throw), do: throw(:no_size)
  defp fail(:exit), do: exit(:no_size)
  defp fail(:return), do: {:next, 1}
  defp fail(:hang), do: Process.sleep(:infinity)

  defp start_queue(opts),
    do: start_buffer([module: Queue, partitions: 1] ++ opts)

  defp start_retrying(opts) do
    test = self()

    start_buffer(
      Keyword.merge(
        [
          partitions: 1,
          processor: fn batch -> send(test, {:batch, batch}) && :ok end,
          max_attempts: 2,
          processing_interval_ms: :infinity,
          retry_backoff_ms: {0, 0},
          dead_letter: fn entries, reason -> send(test, {:dead, entries, reason}) end
        ],
        opts
      )
    )
  end

  describe "a batch ends" do
    test "with the item that reaches a limit of bytes" do
      buffer = start_queue(processing_batch_size: bytes(10))
      Queue.push(buffer, ["12345", "1234", "12", "1234567890", "1", "2"])
      assert Queue.flush(buffer) == :ok
      assert received_batches() == [["12345", "1234", "12"], ["1234567890"], ["1", "2"]]
    end

    test "with the last entry that a tenant may have in it" do
      buffer = start_queue(processing_batch_size: tenants(2))
      Queue.push(buffer, [{:a, 1}, {:b, 2}, {:a, 3}, {:a, 4}, {:b, 5}, {:c, 6}, {:b, 7}])
      assert Queue.flush(buffer) == :ok

      assert received_batches() == [
               [{:a, 1}, {:b, 2}, {:a, 3}],
               [{:a, 4}, {:b, 5}, {:c, 6}, {:b, 7}]
             ]
    end

    test "with its first entry if the function emits it" do
      buffer = start_queue(processing_batch_size: {nil, fn _item, nil -> {:emit, :ignored} end})
      Queue.push(buffer, Enum.to_list(1..100))
      assert Queue.flush(buffer) == :ok
      assert received_batches() == for(n <- 1..100, do: [n])
    end

    test "with the flush if the function never emits" do
      for outcomes <- [[], [max_attempts: 2]] do
        buffer = start_queue([processing_batch_size: to_the_end()] ++ outcomes)
        Queue.push(buffer, Enum.to_list(1..9_999))
        assert Queue.flush(buffer) == :ok
        assert received_batches() == [Enum.to_list(1..9_999)]
      end
    end

    test "after 10,000 entries if the function does not emit" do
      for outcomes <- [[], [max_attempts: 2]] do
        buffer = start_queue([processing_batch_size: to_the_end()] ++ outcomes)
        Queue.push(buffer, Enum.to_list(1..20_500))
        assert Queue.flush(buffer) == :ok
        batches = received_batches()
        assert Enum.map(batches, &length/1) == [10_000, 10_000, 500]
        assert Enum.concat(batches) == Enum.to_list(1..20_500)
      end
    end

    test "after any number of entries that the function chooses" do
      for size <- [1, 31, 32, 33, 95, 96, 97, 9_999, 10_000], outcomes <- [[], [max_attempts: 2]] do
        buffer = start_queue([processing_batch_size: at_most(size)] ++ outcomes)
        Queue.push(buffer, Enum.to_list(1..(2 * size + 1)))
        assert Queue.flush(buffer) == :ok
        batches = received_batches()
        assert Enum.map(batches, &length/1) == [size, size, 1]
        assert Enum.concat(batches) == Enum.to_list(1..(2 * size + 1))
      end
    end
  end

  describe "the function gets" do
    test "the entries of a map and the sums of a counter" do
      test = self()
      function = {0, fn entry, n -> send(test, {:asked, entry, n}) && {:emit, n + 1} end}
      map = start_buffer(partitions: 1, processing_batch_size: function)
      Buffer.put_newer(map, :key, "value", 7)
      assert Buffer.flush(map) == :ok
      assert_received {:asked, {:key, "value", 7, 0}, 0}

      counter = start_buffer(module: Counter, partitions: 1, processing_batch_size: function)
      Counter.add(counter, :key, 5, count: 2)
      assert Counter.flush(counter) == :ok
      assert_received {:asked, {:key, 5, 2}, 0}
      assert received_batches() == [[{:key, "value", 7, 0}], [{:key, 5, 2}]]
    end

    test "the first accumulator with the first entry of each batch" do
      test = self()

      function = fn item, acc ->
        send(test, {:asked, item, acc})
        {if(item in [2, 3], do: :emit, else: :cont), [item | acc]}
      end

      buffer = start_queue(processing_batch_size: {[], function})
      Queue.push(buffer, [1, 2, 3, 4])
      assert Queue.flush(buffer) == :ok
      assert received_batches() == [[1, 2], [3], [4]]
      for {item, acc} <- [{1, []}, {2, [1]}, {3, []}, {4, []}], do: assert_received({:asked, ^item, ^acc})
    end
  end

  test "all entries of maps and counters are in batches that the function ends" do
    for {module, write} <- [
          {Buffer, &Buffer.put_all(&1, for(n <- 1..1_000, do: {n, n}))},
          {Counter, &Counter.add_all(&1, for(n <- 1..1_000, do: {n, n}))}
        ],
        outcomes <- [[], [max_attempts: 2]] do
      buffer = start_buffer([module: module, partitions: 1, processing_batch_size: at_most(7)] ++ outcomes)
      write.(buffer)
      assert PartitionedBuffer.flush(buffer) == :ok
      batches = received_batches()
      assert Enum.map(batches, &length/1) == List.duplicate(7, 142) ++ [6]
      assert batches |> Enum.concat() |> keys() == Enum.to_list(1..1_000)
    end
  end

  describe "a function that fails with :max_attempts" do
    test "fails with that entry alone, up to its dead letter" do
      for way <- [:raise, :throw, :exit, :return] do
        {first, function} = failing(3, [5], way)

        for {module, write, function, dead} <- [
              {Buffer, &Buffer.put_all(&1, for(n <- 1..9, do: {n, n})),
               fn {key, _, _, _}, n -> function.(key, n) end, {5, 5, 0, 0}},
              {Counter, &Counter.add_all(&1, for(n <- 1..9, do: {n, n})),
               fn {key, _, _}, n -> function.(key, n) end, {5, 5, 1}}
            ] do
          buffer = start_retrying(module: module, processing_batch_size: {first, function})
          attach_telemetry(buffer)
          write.(buffer)
          assert {way, PartitionedBuffer.flush(buffer)} == {way, {:error, {:failed, 1}}}
          assert keys(received_entries()) == [1, 2, 3, 4, 6, 7, 8, 9]
          assert_receive {:dead, [^dead], _reason}
          assert_receive {[:dead_letter], %{count: 1}, %{handled: true}}
          assert %{processed: 8, failed: 2, given_up: 1} = PartitionedBuffer.info(buffer).totals
          refute_received {[:split], _measurements, _metadata}
        end
      end
    end

    test "keeps the order of a strict queue" do
      for way <- [:raise, :throw, :exit, :return] do
        buffer =
          start_retrying(module: Queue, processing_batch_size: failing(3, [5, 6], way), max_attempts: 3)

        attach_telemetry(buffer)
        Queue.push(buffer, Enum.to_list(1..9))
        assert {way, Queue.flush(buffer)} == {way, {:error, {:failed, 5}}}
        assert_receive {:dead, [5], _reason}
        assert_receive {:dead, [6], _reason}
        for _ <- 1..2, do: assert_receive({[:dead_letter], %{count: 1}, _metadata})
        # The next batch after a failure has one item.
        for items <- [[1, 2, 3], [4], [7], [8, 9]], do: assert_receive({:batch, ^items})
        assert %{processed: 7, failed: 6, given_up: 2} = PartitionedBuffer.info(buffer).totals
      end
    end

    test "lets items of a queue without order go on" do
      buffer = start_retrying(module: Queue, order: :none, processing_batch_size: failing(3, [5], :raise))

      Queue.push(buffer, Enum.to_list(1..9))
      assert Queue.flush(buffer) == {:error, {:failed, 1}}
      assert received_entries() == [1, 2, 3, 4, 6, 7, 8, 9]
      assert_receive {:dead, [5], %RuntimeError{message: "no size"}}
    end

    test "passes the reason to the dead letter and to info/1" do
      for {way, reason, text} <- [
            {:raise, %RuntimeError{message: "no size"}, "RuntimeError: no size"},
            {:throw, {:throw, :no_size}, "throw: :no_size"},
            {:exit, {:exit, :no_size}, "exit: :no_size"}
          ] do
        buffer = start_retrying(module: Queue, processing_batch_size: failing(3, [1], way), max_attempts: 1)
        Queue.push(buffer, 1)
        assert Queue.flush(buffer) == :ok
        assert_received {:dead, [1], ^reason}
        assert PartitionedBuffer.info(buffer).last_error.reason == text
      end

      buffer = start_retrying(module: Queue, processing_batch_size: failing(3, [1], :return), max_attempts: 1)
      Queue.push(buffer, 1)
      assert Queue.flush(buffer) == :ok
      assert_received {:dead, [1], %RuntimeError{message: message}}
      assert message == "the function :processing_batch_size must return {:cont, acc} or {:emit, acc}"
    end

    test "by the time limit is isolated, up to the dead letter" do
      for {module, opts} <- [{Queue, []}, {Queue, [order: :none]}] do
        buffer =
          start_retrying(
            [module: module, processing_batch_size: failing(7, [20], :hang), processing_timeout_ms: 50] ++
              opts
          )

        attach_telemetry(buffer)
        Queue.push(buffer, Enum.to_list(1..40))
        Queue.flush(buffer, async: true)
        assert_receive {:dead, [20], :timeout}, 5_000
        assert_receive {[:dead_letter], %{count: 1}, %{handled: true}}, 5_000
        assert Queue.flush(buffer) == :ok
        assert received_entries() == Enum.to_list(1..40) -- [20]
        assert %{processed: 39, failed: 2, given_up: 1} = PartitionedBuffer.info(buffer).totals
      end
    end

    test "that is killed is isolated as well" do
      test = self()

      function = fn {key, _, _, _}, n ->
        if key == 20, do: send(test, {:at, self()}) && Process.sleep(:infinity), else: {:cont, n + 1}
      end

      buffer = start_retrying(processing_batch_size: {0, function}, processing_timeout_ms: :infinity)
      attach_telemetry(buffer)
      Buffer.put_all(buffer, for(n <- 1..40, do: {n, n}))
      Buffer.flush(buffer, async: true)
      kill_until_dead(20)
      assert Buffer.flush(buffer) == :ok
      assert keys(received_entries()) == Enum.to_list(1..40) -- [20]
    end

    defp kill_until_dead(key) do
      receive do
        {:at, pid} -> Process.exit(pid, :kill) && kill_until_dead(key)
        {:dead, [{^key, _, _, _}], :killed} -> :ok
      after
        5_000 -> flunk("the entry is not given up")
      end
    end
  end

  describe "a function that fails without :max_attempts" do
    test "loses that entry, and the rest is processed at the next interval" do
      for {way, reason} <- [
            raise: %RuntimeError{message: "no size"},
            throw: {:nocatch, :no_size},
            exit: :no_size
          ] do
        buffer = start_queue(processing_batch_size: failing(3, [5], way))
        attach_telemetry(buffer)
        Queue.push(buffer, Enum.to_list(1..9))
        # One is lost, and four wait.
        assert {way, Queue.flush(buffer)} == {way, {:error, {:failed, 5}}}
        assert_receive {[:processing_failed], %{count: 1}, %{reason: failure}}
        assert if(way == :exit, do: failure, else: elem(failure, 0)) == reason
        flush(buffer)
        assert received_entries() == [1, 2, 3, 4, 6, 7, 8, 9]
        assert PartitionedBuffer.info(buffer).size + PartitionedBuffer.info(buffer).in_flight == 0
      end
    end

    test "loses nothing but that entry at a stop" do
      test = self()
      processor = &send(test, {:batch, &1})
      name = unique_name()

      options = [
        name: name,
        partitions: 1,
        processor: processor,
        processing_batch_size: failing(3, [5, 6], :raise)
      ]

      {:ok, _pid} = Queue.start_link([processing_interval_ms: :infinity] ++ options)
      Queue.push(name, Enum.to_list(1..9))
      assert Queue.stop(name) == :ok
      assert received_entries() == [1, 2, 3, 4, 7, 8, 9]
    end
  end

  describe "the function may use its own buffer" do
    test "as a processor may: a write joins a later batch" do
      buffer = unique_name()

      function = fn item, n ->
        if item == 1, do: Queue.push(buffer, :from_function)
        {:cont, n + 1}
      end

      start_queue(name: buffer, processing_batch_size: {0, function})
      Queue.push(buffer, [1, 2])
      assert Queue.flush(buffer) == :ok
      assert Queue.flush(buffer) == :ok
      assert received_batches() == [[1, 2], [:from_function]]
    end

    test "but not wait for its flush: that fails with the entry" do
      buffer = unique_name()
      function = fn _item, nil -> {:emit, Queue.flush(buffer)} end

      start_retrying(name: buffer, module: Queue, processing_batch_size: {nil, function}, max_attempts: 1)
      Queue.push(buffer, 1)
      assert Queue.flush(buffer) == :ok
      assert_received {:dead, [1], %ArgumentError{}}
    end
  end

  test "a pause of the buffer lasts while the function runs, and loses no entry" do
    test = self()

    function = fn item, acc ->
      if item == 1, do: send(test, {:at, self()}) && receive(do: (:go_on -> :ok))
      {:cont, acc}
    end

    for outcomes <- [[], [max_attempts: 2]] do
      buffer = start_queue([processing_batch_size: {nil, function}] ++ outcomes)
      Queue.push(buffer, [1, 2])
      Queue.flush(buffer, async: true)
      assert_receive {:at, task}
      ref = Process.monitor(task)
      PartitionedBuffer.pause(buffer)
      send(task, :go_on)
      assert_receive {:DOWN, ^ref, :process, ^task, _reason}
      refute_received {:batch, _batch}
      PartitionedBuffer.resume(buffer)
      assert_receive {:at, task}
      send(task, :go_on)
      assert Queue.flush(buffer) == :ok
      assert received_batches() == [[1, 2]]
    end
  end

  test "update_options/2 changes from a number to a function and back" do
    for outcomes <- [[], [max_attempts: 2]] do
      buffer = start_queue([processing_batch_size: 2] ++ outcomes)

      for {size, batches} <- [
            {2, [[1, 2], [3, 4], [5]]},
            {at_most(3), [[1, 2, 3], [4, 5]]},
            {at_most(4), [[1, 2, 3, 4], [5]]},
            {1, [[1], [2], [3], [4], [5]]},
            {to_the_end(), [[1, 2, 3, 4, 5]]}
          ] do
        assert PartitionedBuffer.update_options(buffer, processing_batch_size: size) == :ok
        Queue.push(buffer, [1, 2, 3, 4, 5])
        assert Queue.flush(buffer) == :ok
        assert received_batches() == batches
      end
    end
  end

  test "a new function takes effect while batches fail" do
    buffer = start_retrying(module: Queue, processing_batch_size: failing(3, [2], :raise), max_attempts: 100)
    Queue.push(buffer, [1, 2, 3])
    assert Queue.flush(buffer) == {:error, {:failed, 2}}
    assert PartitionedBuffer.update_options(buffer, processing_batch_size: at_most(3)) == :ok
    assert Queue.flush(buffer) == :ok
    assert received_entries() == [1, 2, 3]
  end

  describe "a batch of a function that fails as a whole" do
    test "is split, and keeps the order of a queue" do
      test = self()

      processor = fn batch ->
        if 50 in batch and match?([_, _ | _], batch) do
          {:error, :refused}
        else
          send(test, {:batch, batch})
          if batch == [50], do: {:cancel, :refused}, else: :ok
        end
      end

      buffer = start_retrying(module: Queue, processor: processor, processing_batch_size: at_most(64))
      attach_telemetry(buffer)
      Queue.push(buffer, Enum.to_list(1..200))
      assert Queue.flush(buffer) == :ok
      assert_received {:dead, [50], :refused}
      assert_received {[:split], %{count: 64, limit: 16}, %{reason: :refused}}
      assert received_entries() == Enum.to_list(1..200)
      assert %{processed: 199, failed: 0, given_up: 1} = PartitionedBuffer.info(buffer).totals
      refute_received {[:retry], _measurements, _metadata}
    end

    test "becomes smaller than the function allows, until the sink takes it" do
      test = self()
      processor = fn batch -> if length(batch) > 10, do: :error, else: send(test, {:batch, batch}) && :ok end
      buffer = start_retrying(processor: processor, processing_batch_size: to_the_end())
      attach_telemetry(buffer)
      Buffer.put_all(buffer, for(n <- 1..1_000, do: {n, n}))
      assert Buffer.flush(buffer) == :ok
      assert keys(received_entries()) == Enum.to_list(1..1_000)
      assert_received {[:split], %{count: 1_000, limit: 250}, _metadata}
      refute_received {[:retry], _measurements, _metadata}
      assert %{partitions: [%{limit: limit}]} = PartitionedBuffer.info(buffer)
      assert limit in 1..250
    end
  end

  describe "processing_batch_bytes" do
    defp sizes(opts, items) do
      queue = start_queue([processing_batch_size: 1_000] ++ opts)
      Queue.push(queue, items)
      :ok = PartitionedBuffer.flush(queue)
      batches(queue, length(items))
    end

    defp batches(_queue, 0), do: []

    defp batches(queue, left) do
      assert_receive {:batch, batch}
      [batch | batches(queue, left - length(batch))]
    end

    test "ends a batch before the entry that it has no room for" do
      item = String.duplicate("x", 100)
      bytes = :erlang.external_size(item)

      for outcomes <- [[], [max_attempts: 1]], limit <- [3 * bytes, 4 * bytes - 1] do
        batches = sizes([processing_batch_bytes: limit] ++ outcomes, List.duplicate(item, 100))
        assert Enum.map(batches, &length/1) == List.duplicate(3, 33) ++ [1]
      end
    end

    test "gives a larger entry alone, and keeps to the batch size" do
      [small, large] = for size <- [10, 10_000], do: String.duplicate("x", size)

      assert [[small], [large], [large], [small, small]] ==
               sizes([processing_batch_bytes: 1_000], [small, large, large, small, small])

      batches = sizes([processing_batch_bytes: 1_000_000], Enum.to_list(1..2_500))
      assert Enum.map(batches, &length/1) == [1_000, 1_000, 500]
    end

    test "can be changed, and fits no table and no batch function" do
      queue = start_queue(processing_batch_size: 10)
      :ok = PartitionedBuffer.update_options(queue, processing_batch_bytes: 1)
      Queue.push(queue, [1, 2])
      :ok = PartitionedBuffer.flush(queue)
      assert [[1], [2]] == batches(queue, 2)

      for size <- [:table, at_most(2)] do
        assert_raise ArgumentError, ~r/:processing_batch_bytes.*needs a number/, fn ->
          Queue.start_link(buffer_options(processing_batch_size: size, processing_batch_bytes: 10))
        end
      end

      assert_raise ArgumentError, ~r/needs a number/, fn ->
        PartitionedBuffer.update_options(queue, processing_batch_size: at_most(2))
      end
    end
  end
end
