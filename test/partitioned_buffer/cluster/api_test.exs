defmodule PartitionedBuffer.Cluster.APITest do
  # A buffer with `:cluster` on one node without distribution: options and functions. Its ends are in
  # stop_test.exs, its processes in processes_test.exs.
  use PartitionedBuffer.Case, async: true

  import PartitionedBuffer.Clustered, only: [start: 0, start: 1, owning: 1, hold: 1]

  alias PartitionedBuffer.{Cluster, Clustered, Counter, FullError, Queue}

  @moduletag :capture_log

  defp start_map(opts \\ []), do: start([module: Buffer] ++ opts)

  defp start_raises(message, opts) do
    error =
      assert_raise ArgumentError, fn ->
        opts |> Clustered.cluster_options() |> PartitionedBuffer.start_link()
      end

    assert error.message =~ message
    assert error.message =~ inspect(opts[:name])
  end

  defp stages(buffer), do: {options(buffer), options(owning(buffer))}

  describe "the option :cluster" do
    test "is true, or a list of settings that replace the defaults" do
      for {given, expected} <- [
            {true, []},
            {[], []},
            {[slots: 8, owners: 1], [slots: 8, owners: 1]},
            {[forward_ms: 1, uncertain_ms: 0, call_ms: 1, max_skew_ms: 0, owners: :all, slots: 1024],
             [forward_ms: 1, uncertain_ms: 0, call_ms: 1, max_skew_ms: 0, slots: 1024]}
          ] do
        buffer = start(cluster: given)
        defaults = %{forward_ms: 100, owners: :all, slots: 64, uncertain_ms: 15_000, call_ms: 5_000}
        settings = Map.from_struct(options(buffer).cluster)
        assert settings == defaults |> Map.put(:max_skew_ms, 10_000) |> Map.merge(Map.new(expected))
        assert PartitionedBuffer.info(buffer).cluster.slots == settings.slots
      end
    end

    test "must be true or a keyword list of known settings" do
      for cluster <- [:yes, 1, %{slots: 8}, [:slots], [{"slots", 8}], "true"],
          do: start_raises("expected a boolean or a keyword list", name: :invalid, cluster: cluster)

      for cluster <- [[slot: 8], [copies: 1], [slots: 8, forward: 1]],
          do: start_raises("expected some of :slots, :forward_ms", name: :invalid, cluster: cluster)
    end

    test "refuses values of the wrong type, of which the message has the name" do
      for {key, invalid} <- [
            slots: [0, 4, 7, 12, 63, 2048, -8, 8.0, :all, nil],
            owners: [0, -1, 1.0, :none, nil],
            forward_ms: [0, -1, 1.5, :infinity, nil, 4_294_967_296],
            call_ms: [0, -1, 1.5, :infinity, nil, 4_294_967_296],
            uncertain_ms: [-1, 1.5, :infinity, nil, 4_294_967_296],
            max_skew_ms: [-1, 1.5, :infinity, nil, 4_294_967_296]
          ],
          value <- invalid do
        start_raises("#{key}: ", name: :invalid, cluster: [{key, value}])
        start_raises(inspect(value), name: :invalid, cluster: [{key, value}])
      end
    end

    test "needs :max_attempts and partitions, and excludes a table and a queue" do
      without = [name: :invalid] |> Clustered.cluster_options() |> Keyword.delete(:max_attempts)

      error = assert_raise ArgumentError, fn -> PartitionedBuffer.start_link(without) end
      assert error.message =~ "option :cluster of buffer :invalid needs :max_attempts"
      start_raises("needs partitions", name: :invalid, partitions: 0)
      start_raises("excludes :max_attempts", name: :invalid, processing_batch_size: :table)
      start_raises("PartitionedBuffer.Queue", name: :invalid, module: Queue)
      assert PartitionedBuffer.buffers() |> Enum.member?(:invalid) == false
    end

    test "makes :clock the default of :versions in a map, and none in a counter" do
      assert {%{versions: :clock}, %{versions: :own}} = stages(start_map())
      assert {%{versions: :own}, %{versions: :own}} = stages(start_map(versions: :own))
      assert {%{versions: nil}, %{versions: nil}} = stages(start())
      start_raises("is one of PartitionedBuffer.Map only", name: :invalid, versions: :clock)
    end

    test "gives each stage its options" do
      buffer =
        start(
          partitions: 3,
          max_size: 70,
          max_bytes: 1_000_000,
          when_full: :drop_newest,
          full_timeout_ms: 12,
          processing_batch_size: 7,
          processing_timeout_ms: 1_234,
          processing_threshold: 5,
          max_attempts: 9,
          forward_ms: 33
        )

      {collecting, owning} = stages(buffer)
      assert %{partitions: 64, processing_interval_ms: 33, max_size: 70, max_bytes: 1_000_000} = collecting
      assert %{when_full: :drop_newest, full_timeout_ms: 12, max_attempts: :infinity} = collecting
      assert %{partitions: 3, processing_batch_size: 7, processing_timeout_ms: 1_234} = owning
      assert %{processing_threshold: 5, max_attempts: 9, max_size: 70, max_bytes: 1_000_000} = owning
      # The owning stage makes nobody wait.
      assert %{when_full: :error, full_timeout_ms: 0} = owning
    end
  end

  describe "update_options/2" do
    test "changes each setting of :cluster but :slots" do
      buffer = start(forward_ms: 60_000)

      changes = [owners: 2, uncertain_ms: 1, call_ms: 2, max_skew_ms: 3]
      for change <- changes, do: assert(PartitionedBuffer.update_options(buffer, cluster: [change]) == :ok)
      settings = PartitionedBuffer.Cluster.State.settings(buffer)
      assert Map.take(Map.from_struct(settings), Keyword.keys(changes)) == Map.new(changes)
      assert settings.forward_ms == 60_000

      Counter.add(buffer, :a)
      assert %{cluster: %{owning: %{size: 0}}} = PartitionedBuffer.info(buffer)
      PartitionedBuffer.update_options(buffer, cluster: [forward_ms: 1], processing_threshold: 1)
      # The entry goes on without a flush.
      assert_receive {:batch, [{:a, 1, 1}]}
    end

    test "raises and changes nothing for :slots, true, unknown settings and wrong types" do
      buffer = start()
      before = {PartitionedBuffer.Cluster.State.options(buffer), stages(buffer)}

      for cluster <- [[slots: 8], true, nil, [slot: 1], [owners: 0], [owners: 1, call_ms: 0]] do
        assert_raise ArgumentError, ~r/#{buffer}/, fn ->
          PartitionedBuffer.update_options(buffer, max_size: 10, cluster: cluster)
        end
      end

      for changes <- [[partitions: 3], [versions: :own], [max_size: 1, processing_batch_size: :table]] do
        assert_raise ArgumentError, ~r/#{buffer}/, fn -> PartitionedBuffer.update_options(buffer, changes) end
      end

      assert before == {PartitionedBuffer.Cluster.State.options(buffer), stages(buffer)}
    end

    test "gives each stage its changes" do
      buffer = start()

      PartitionedBuffer.update_options(buffer,
        max_size: 500,
        max_bytes: 2_000_000,
        when_full: :error,
        full_timeout_ms: 1,
        drain_timeout_ms: 77,
        processing_interval_ms: 5_001,
        processing_jitter_ms: 3,
        processing_timeout_ms: 99,
        processing_batch_size: 4,
        processing_batch_bytes: 1_000,
        processing_threshold: 6,
        max_attempts: 2,
        retry_backoff_ms: {3, 4}
      )

      {collecting, owning} = stages(buffer)

      assert %{
               max_size: 500,
               max_bytes: 2_000_000,
               when_full: :error,
               full_timeout_ms: 1,
               drain_timeout_ms: 77
             } = collecting

      assert %{processing_interval_ms: 100, processing_jitter_ms: 0, processing_timeout_ms: :infinity} =
               collecting

      assert %{processing_batch_size: 1_000, processing_threshold: :infinity} = collecting
      assert %{max_attempts: :infinity, retry_backoff_ms: {100, 1_000}} = collecting

      assert %{
               max_size: 500,
               max_bytes: 2_000_000,
               when_full: :error,
               full_timeout_ms: 0,
               drain_timeout_ms: 77
             } = owning

      assert %{processing_interval_ms: 5_001, processing_jitter_ms: 3, processing_timeout_ms: 99} = owning
      assert %{processing_batch_size: 4, processing_batch_bytes: 1_000, processing_threshold: 6} = owning
      assert %{max_attempts: 2, retry_backoff_ms: {3, 4}} = owning
      assert %{max_size: 500, max_bytes: 2_000_000} = PartitionedBuffer.info(buffer)
    end

    test "of a buffer without :cluster refuses :cluster" do
      buffer = start_buffer(module: Counter)

      assert_raise ArgumentError, ~r/cannot set :cluster/, fn ->
        PartitionedBuffer.update_options(buffer, cluster: [owners: 1])
      end
    end
  end

  describe "writes" do
    test "reach the processor with their sums and counts" do
      buffer = start()
      for _ <- 1..3, do: assert(Counter.add(buffer, :a, 2) == :ok)
      assert Counter.add(buffer, :b, 10, count: 4) == :ok
      assert Counter.add_all(buffer, a: 1, c: 5) == :ok
      assert PartitionedBuffer.flush(buffer) == :ok
      assert Enum.sort(received_entries()) == [{:a, 7, 4}, {:b, 10, 4}, {:c, 5, 1}]
    end

    test "of a map have versions of the clock, which grow with each write of a key" do
      buffer = start_map()
      earliest = System.os_time(:microsecond) * 128

      versions =
        for value <- 1..3 do
          assert Buffer.put(buffer, :a, value) == :ok
          assert Buffer.put_all(buffer, %{b: value}) == :ok
          assert PartitionedBuffer.flush(buffer) == :ok
          assert [{:a, ^value, a, 0}, {:b, ^value, b, 0}] = Enum.sort(received_entries())
          {a, b}
        end

      assert versions == Enum.sort(versions) and length(Enum.uniq(versions)) == 3
      assert elem(hd(versions), 0) > earliest
    end

    test "with versions: :own carry their versions through both stages" do
      buffer = start_map(versions: :own)
      assert_raise ArgumentError, ~r/versions: :own/, fn -> Buffer.put(buffer, :a, 1) end
      assert_raise ArgumentError, ~r/versions: :own/, fn -> Buffer.put_all(buffer, a: 1) end
      assert Buffer.put_newer(buffer, :a, :new, 7) == :ok
      assert Buffer.put_newer(buffer, :a, :old, 6, stale: :error) == {:error, :stale}
      assert Buffer.put_all_newer(buffer, [{:b, 1, -1}, {:c, 1, Integer.pow(2, 70)}]) == :ok
      hold(buffer)
      # The collecting stage has forgotten the key, and the owning stage knows better.
      assert Buffer.put_newer(buffer, :a, :older, 5, stale: :error) == :ok
      assert Cluster.get(buffer, :a) == :new
      PartitionedBuffer.resume(buffer)
      assert PartitionedBuffer.flush(buffer) == :ok

      # The sink may get the older version later, and has to refuse it.
      entries = Enum.reject(received_entries(), &(&1 == {:a, :older, 5, 0}))
      assert [{:a, :new, 7, 0}, {:b, 1, -1, 0}, {:c, 1, version, 0}] = Enum.sort(entries)
      assert version == Integer.pow(2, 70)
    end

    test "put_newer of a map with the clock raises, as do put_new and delete" do
      buffer = start_map()
      assert_raise ArgumentError, ~r/versions: :clock/, fn -> Buffer.put_newer(buffer, :a, 1, 1) end
      assert_raise ArgumentError, ~r/versions: :clock/, fn -> Buffer.put_all_newer(buffer, [{:a, 1, 1}]) end
      assert_raise ArgumentError, ~r/option :cluster, and put_new/, fn -> Buffer.put_new(buffer, :a, 1) end
      assert_raise ArgumentError, ~r/option :cluster, and delete/, fn -> Buffer.delete(buffer, :a) end
      assert_raise ArgumentError, ~r/option :cluster, and delete/, fn -> Counter.delete(start(), :a) end
      assert PartitionedBuffer.buffer_size(buffer) == 0
    end

    test "with a partition key use its slot, and reads with it find them in both stages" do
      buffer = start()
      Counter.add(buffer, :a, 1, partition_key: :any)
      assert Counter.get(buffer, :a, nil, partition_key: :any) == 1
      assert Cluster.get(buffer, :a, nil, partition_key: :any) == 1
      assert Cluster.owner(buffer, :a, partition_key: :any) == node()
      hold(buffer)
      assert Counter.get(buffer, :a, nil, partition_key: :any) == 1
      Counter.add_all(buffer, [a: 2], partition_key: & &1)
      assert Counter.get(buffer, :a, nil, partition_key: & &1) == 3
      assert_raise ArgumentError, fn -> Cluster.owner(buffer, :a, partition: 1) end
    end
  end

  describe "reads" do
    test "of a counter add up what both stages have" do
      buffer = start()
      assert Counter.fetch(buffer, :a) == :error and Counter.get(buffer, :a) == 0
      Counter.add(buffer, :a, 1)
      assert Counter.fetch(buffer, :a) == {:ok, 1}
      hold(buffer)
      assert Counter.fetch(buffer, :a) == {:ok, 1}
      Counter.add(buffer, :a, 10)
      assert Counter.fetch(buffer, :a) == {:ok, 11} and Counter.get(buffer, :a) == 11
      assert Cluster.fetch(buffer, :a) == {:ok, 11} and Cluster.get(buffer, :a, :none) == 11
      assert Cluster.get(buffer, :b, :none) == :none
    end

    test "of a map find the newer value of both stages, and its version" do
      buffer = start_map()
      assert Buffer.fetch(buffer, :a) == :error and Buffer.get(buffer, :a, :none) == :none
      Buffer.put(buffer, :a, 1)
      hold(buffer)
      assert {:ok, 1, old} = Buffer.fetch(buffer, :a, version: true)
      Buffer.put(buffer, :a, 2)
      assert {:ok, 2, new} = Buffer.fetch(buffer, :a, version: true)
      assert new > old
      assert Buffer.get(buffer, :a) == 2 and Cluster.get(buffer, :a) == 2
      assert Cluster.fetch(buffer, :a) == {:ok, 2} and Cluster.fetch(buffer, :b) == :error
    end
  end

  describe "flush/2" do
    test "returns the failure of the processor, and raises for invalid options" do
      buffer = start(processor: fn _batch -> {:error, :down} end, max_attempts: :infinity)
      Counter.add_all(buffer, a: 1, b: 1)
      assert PartitionedBuffer.flush(buffer) == {:error, {:failed, 2}}
      assert_raise ArgumentError, fn -> PartitionedBuffer.flush(buffer, timeout: -1) end
      assert_raise ArgumentError, fn -> Cluster.flush(buffer, unknown: 1) end
      assert {:error, reasons} = Cluster.flush(buffer)
      assert reasons == %{node() => {:failed, 2}}
    end

    test "gives up after its timeout, and goes on" do
      buffer = start(processor: asking_processor(), partitions: 1)
      Counter.add(buffer, :a)
      assert PartitionedBuffer.flush(buffer, timeout: 50) == {:error, :timeout}
      answer(:return)
      assert PartitionedBuffer.flush(buffer, timeout: :infinity) == :ok
      assert Cluster.flush(buffer, timeout: :infinity) == :ok
    end

    test "with async: true lets entries of both stages go on" do
      buffer = start(forward_ms: 60_000)
      Counter.add(buffer, :a)
      assert PartitionedBuffer.flush(buffer, async: true) == :ok
      await_forwarded(buffer)
      assert PartitionedBuffer.flush(buffer, async: true) == :ok
      assert_receive {:batch, [{:a, 1, 1}]}
    end
  end

  defp await_forwarded(buffer) do
    info = PartitionedBuffer.info(buffer)

    if info.size + info.in_flight > info.cluster.owning.size + info.cluster.owning.in_flight,
      do: await_forwarded(buffer)
  end

  describe "pause/1" do
    test "pauses the processor alone: entries are still forwarded" do
      buffer = start(forward_ms: 1)
      assert PartitionedBuffer.pause(buffer) == :ok
      assert PartitionedBuffer.info(buffer).paused?
      Counter.add(buffer, :a)
      await_forwarded(buffer)
      assert PartitionedBuffer.flush(buffer) == {:error, :paused}
      assert Cluster.flush(buffer) == {:error, %{node() => :paused}}
      refute_received {:batch, _batch}
      assert PartitionedBuffer.resume(buffer) == :ok
      refute PartitionedBuffer.info(buffer).paused?
      assert PartitionedBuffer.flush(buffer) == :ok
      assert_receive {:batch, [{:a, 1, 1}]}
    end
  end

  describe "info/1" do
    test "adds up both stages, and keeps the equation of totals" do
      buffer =
        start(
          partitions: 3,
          processor: fn batch -> {:cancel, :bad, Enum.filter(batch, &(elem(&1, 0) == :bad))} end
        )

      balanced = fn ->
        info = PartitionedBuffer.info(buffer)
        totals = info.totals
        ended = totals.deleted + totals.superseded + totals.processed + totals.given_up
        assert totals.written - totals.coalesced == info.size + info.in_flight + ended
        info
      end

      assert %{kind: :counter, size: 0, in_flight: 0, oldest_ms: nil, cluster: cluster} = balanced.()
      assert %{members: [member], owns: 64, slots: 64, uncertain: 0, away: [], clock_ahead_ms: 0} = cluster
      assert member == node()
      assert cluster.totals == %{forwarded: 0, taken: 0, duplicates: 0, rerouted: 0, resent: 0}
      assert length(balanced.().partitions) == 67

      Counter.add_all(buffer, for(key <- 1..9, do: {key, 1}))
      hold(buffer)
      Counter.add_all(buffer, for(key <- 5..14, do: {key, 1}))
      info = balanced.()
      assert info.size + info.in_flight == 19 and PartitionedBuffer.buffer_size(buffer) == info.size
      assert %{size: 9, in_flight: 0, oldest_ms: age} = info.cluster.owning
      assert age <= info.oldest_ms
      assert info.cluster.totals.forwarded == info.cluster.totals.taken

      Counter.add(buffer, :bad)
      PartitionedBuffer.resume(buffer)
      assert PartitionedBuffer.flush(buffer) == :ok
      info = balanced.()
      assert %{size: 0, in_flight: 0, totals: %{given_up: 1}} = info
      assert Cluster.info(buffer) |> Map.keys() == [node()]
      assert Cluster.info(buffer, timeout: 10_000)[node()].cluster == info.cluster
    end

    test "is that of emit_info/1, and watch/2 shows it" do
      buffer = start()
      attach(buffer, [[:info]])
      Counter.add_all(buffer, a: 1, b: 1)
      hold(buffer)
      Counter.add(buffer, :a)
      assert PartitionedBuffer.emit_info(buffer) == :ok
      assert_receive {[:info], measurements, %{buffer: ^buffer, kind: :counter}}
      assert %{members: 1, owned_slots: 64, uncertain: 0} = measurements
      assert measurements.size + measurements.in_flight == 3
      PartitionedBuffer.emit_info(:all)
      assert_receive {[:info], _measurements, %{buffer: ^buffer}}
      {:ok, device} = StringIO.open("")
      assert PartitionedBuffer.watch(buffer, rounds: 1, device: device, ansi: false) == :ok
      {_input, page} = StringIO.contents(device)
      assert page =~ inspect(buffer) and page =~ "paused"
    end

    test "belongs to one buffer in buffers/0" do
      buffer = start()
      assert buffer in PartitionedBuffer.buffers()
      refute owning(buffer) in PartitionedBuffer.buffers()
    end
  end

  defp attach(buffer, events) do
    id = {buffer, make_ref()}
    events = for event <- events, do: [:partitioned_buffer | event]
    :telemetry.attach_many(id, events, &__MODULE__.forward/4, {self(), buffer})
    on_exit(fn -> :telemetry.detach(id) end)
  end

  def forward([:partitioned_buffer | event], measurements, metadata, {test, buffer}),
    do: if(metadata.buffer == buffer, do: send(test, {event, measurements, metadata}))

  describe "the functions of PartitionedBuffer.Cluster" do
    @calls [
      members: [],
      owner: [:key],
      get: [:key],
      fetch: [:key],
      flush: [],
      info: [],
      leave: [],
      join: []
    ]

    test "raise for a buffer that is not running, and for one without :cluster" do
      plain = start_buffer(module: Counter)

      for {function, arguments} <- @calls do
        for {name, message} <- [
              {unique_name(), "is not running"},
              {plain, "started without the option :cluster"}
            ] do
          error = assert_raise ArgumentError, fn -> apply(Cluster, function, [name | arguments]) end
          assert error.message =~ message and error.message =~ inspect(name)
        end
      end
    end

    test "return what this node has, alone" do
      buffer = start()
      assert Cluster.members(buffer) == [node()]
      assert Cluster.owner(buffer, :key) == node()
      assert Cluster.flush(buffer) == :ok
      assert_raise ArgumentError, fn -> Cluster.get(buffer, :key, nil, timeout: -1) end
      assert_raise ArgumentError, fn -> Cluster.info(buffer, timeout: :never) end
    end

    test "leave/1 and join/1 change nothing for the only member" do
      buffer = start()

      for change <- [&Cluster.leave/1, &Cluster.leave/1, &Cluster.join/1, &Cluster.join/1] do
        assert change.(buffer) == :ok
        assert Cluster.members(buffer) == [node()]
        assert Counter.add(buffer, :a) == :ok
        assert PartitionedBuffer.flush(buffer) == :ok
        assert_receive {:batch, [{:a, 1, 1}]}
      end
    end
  end

  describe "a full buffer" do
    for {when_full, result} <- [error: {:error, :full}, drop_newest: :ok, raise: :raised] do
      test "with when_full: :#{when_full} lets each stage hold max_size, and takes writes again" do
        buffer = start(max_size: 10, full_timeout_ms: 20, when_full: unquote(when_full), forward_ms: 1)
        Counter.add_all(buffer, for(key <- 1..10, do: {key, 1}))
        hold(buffer)
        Counter.add_all(buffer, for(key <- 11..20, do: {key, 1}))

        result =
          try do
            Counter.add(buffer, :more)
          rescue
            FullError -> :raised
          end

        assert result == unquote(Macro.escape(result))
        info = PartitionedBuffer.info(buffer)
        assert info.size + info.in_flight == 20 and info.max_size == 10
        # A waiting key needs no room.
        assert Counter.add(buffer, 20) == :ok
        PartitionedBuffer.resume(buffer)
        assert PartitionedBuffer.flush(buffer) == :ok
        assert keys(received_entries()) -- [:more] == Enum.to_list(1..20)
        assert Counter.add(buffer, :more) == :ok
      end
    end

    test "delivers a batch that is larger than a bound lowered since" do
      buffer = start(max_size: 100, slots: 8, forward_ms: 60_000)
      Counter.add_all(buffer, for(key <- 1..30, do: {key, 1}), partition_key: :one)
      PartitionedBuffer.update_options(buffer, max_size: 5)
      assert PartitionedBuffer.flush(buffer, timeout: 10_000) == :ok
      assert keys(received_entries()) == Enum.to_list(1..30)
    end
  end
end
