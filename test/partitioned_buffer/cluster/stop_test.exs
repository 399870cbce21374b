defmodule PartitionedBuffer.Cluster.StopTest do
  # Starts and stops of a buffer with `:cluster` on one node, and what its processor may call.
  use PartitionedBuffer.Case, async: true

  import ExUnit.CaptureLog
  import PartitionedBuffer.Clustered, only: [start: 1, owning: 1, hold: 1]

  alias PartitionedBuffer.Buffer.Lookup
  alias PartitionedBuffer.{Cluster, Clustered, Counter, FullError, Routing}

  @moduletag :capture_log

  defmodule Views do
    use PartitionedBuffer.Counter, max_attempts: 3, cluster: true, processor: {__MODULE__, :store, []}

    def store(batch), do: send(:clustered_views_test, {:batch, batch})
  end

  defmodule Users do
    use PartitionedBuffer.Map, max_attempts: 3, cluster: [slots: 8], processor: {Views, :store, []}
  end

  # A processor that fails while the counter is 0. All batches reach the test.
  defp start_failing(opts) do
    test = self()
    sink = :counters.new(1, [])

    processor = fn batch ->
      if :counters.get(sink, 1) == 0, do: {:error, :down}, else: send(test, {:batch, batch})
    end

    dead_letter = fn entries, reason -> send(test, {:dead, entries, reason}) end
    opts = Keyword.merge([processor: processor, dead_letter: dead_letter, max_attempts: :infinity], opts)
    buffer = start(Enum.reject(opts, &match?({_key, nil}, &1)))
    {buffer, sink}
  end

  # The entries that the next buffer of this name finds.
  defp found(buffer) do
    start(name: buffer)
    assert PartitionedBuffer.flush(buffer) == :ok
    Enum.sort(received_entries())
  end

  describe "a start" do
    test "under a taken name returns the pid of its buffer, whichever kind that is" do
      buffer = start([])
      supervisor = Lookup.supervisor(buffer)
      again = &PartitionedBuffer.start_link/1
      assert again.(Clustered.cluster_options(name: buffer)) == {:error, {:already_started, supervisor}}

      assert again.(Clustered.cluster_options(name: buffer, module: Buffer)) ==
               {:error, {:already_started, supervisor}}

      assert again.(buffer_options(name: buffer, module: Counter)) == {:error, {:already_started, supervisor}}

      plain = start_buffer(module: Counter)
      supervisor = Lookup.supervisor(plain)
      assert again.(Clustered.cluster_options(name: plain)) == {:error, {:already_started, supervisor}}
      assert PartitionedBuffer.flush(plain) == :ok and PartitionedBuffer.flush(buffer) == :ok
    end

    test "under the name that its other stage would have fails, and leaves that buffer alone" do
      Process.flag(:trap_exit, true)
      name = unique_name()
      start_buffer(module: Counter, name: owning(name))
      assert {:error, _reason} = PartitionedBuffer.start_link(Clustered.cluster_options(name: name))
      assert Counter.add(owning(name), :a) == :ok
      assert_raise ArgumentError, ~r/not running/, fn -> Counter.add(name, :a) end
    end

    test "as modules under a supervisor" do
      Process.register(self(), :clustered_views_test)

      start_supervised!(%{
        id: :tree,
        start: {Supervisor, :start_link, [[Views, Users], [strategy: :one_for_one]]}
      })

      assert Views.add(:a) == :ok and Views.add_all(%{b: 2}) == :ok
      assert Users.put(:u, 1) == :ok
      assert Views.get(:a) == 1 and Views.fetch(:b) == {:ok, 2} and Users.get(:u) == 1
      assert Views.size() == 2 or Views.info().in_flight > 0
      assert Views.info().cluster.slots == 64 and Users.info().cluster.slots == 8
      assert Views.update_options(cluster: [call_ms: 9]) == :ok
      assert Cluster.members(Views) == [node()]
      assert Views.pause() == :ok and Views.flush() == {:error, :paused} and Views.resume() == :ok
      assert Views.flush() == :ok and Users.flush() == :ok
      assert [{:a, 1, 1}, {:b, 2, 1}, {:u, 1, _version, 0}] = Enum.sort(received_entries())
      assert_raise ArgumentError, fn -> Views.delete(:a) end
      assert_raise ArgumentError, fn -> Users.put_new(:u, 2) end
      assert Users.stop() == :ok and Views.stop(:shutdown, 60_000) == :ok
    end

    test "with a child specification has the name of the buffer as its id" do
      options = Clustered.cluster_options(name: :clustered_child)
      assert %{id: :clustered_child, type: :supervisor} = Counter.child_spec(Keyword.delete(options, :module))
    end
  end

  describe "stop/4" do
    for {how, stop} <- [
          {"a name", quote(do: &PartitionedBuffer.stop(&1))},
          {"a pid", quote(do: &PartitionedBuffer.stop(Lookup.supervisor(&1)))},
          {"a supervisor", quote(do: &Supervisor.stop(Lookup.supervisor(&1)))}
        ] do
      test "by #{how} processes what both stages have, and ends all processes" do
        buffer = start([])
        supervisor = Lookup.supervisor(buffer)
        Counter.add(buffer, :a)
        hold(buffer)
        Counter.add_all(buffer, a: 2, b: 1)
        assert unquote(stop).(buffer) == :ok
        refute Process.alive?(supervisor)

        totals =
          Enum.reduce(received_entries(), %{}, fn {key, sum, _count}, sums ->
            Map.update(sums, key, sum, &(&1 + sum))
          end)

        assert totals == %{a: 3, b: 1}
        assert_raise ArgumentError, fn -> Counter.add(buffer, :a) end
        refute buffer in PartitionedBuffer.buffers()
        refute owning(buffer) in PartitionedBuffer.buffers()
        assert found(buffer) == []
      end
    end

    test "gives what the sink refuses to :dead_letter, of both stages, once" do
      {buffer, _sink} = start_failing(drain_timeout_ms: 600)
      Counter.add(buffer, :a)
      PartitionedBuffer.flush(buffer)
      Counter.add(buffer, :b)
      assert PartitionedBuffer.stop(buffer) == :ok
      assert Enum.sort(dead()) == [{{:a, 1, 1}, :stopped}, {{:b, 1, 1}, :stopped}]
      assert found(buffer) == []
    end

    test "keeps what the sink refuses without :dead_letter, and with leftovers: :keep" do
      for {opts, stop_opts} <- [
            {[dead_letter: nil], []},
            {[dead_letter: nil], [leftovers: :dead_letter]},
            {[], [leftovers: :keep]}
          ] do
        {buffer, _sink} = start_failing([drain_timeout_ms: 400] ++ opts)
        Counter.add(buffer, :a)
        PartitionedBuffer.flush(buffer)
        Counter.add(buffer, :b)
        assert PartitionedBuffer.stop(buffer, stop_opts) == :ok
        assert dead() == []
        assert found(buffer) == [{:a, 1, 1}, {:b, 1, 1}]
      end
    end

    test "takes no longer than :drain_timeout_ms for both stages together" do
      {buffer, _sink} = start_failing(drain_timeout_ms: 900)
      Counter.add_all(buffer, a: 1, b: 1)
      PartitionedBuffer.flush(buffer)
      Counter.add(buffer, :c)
      {microseconds, :ok} = :timer.tc(fn -> PartitionedBuffer.stop(buffer) end)
      assert microseconds in 600_000..3_000_000
      assert length(dead()) == 3
    end

    test "raises on invalid options, and the buffer goes on" do
      buffer = start([])

      for opts <- [[leftovers: :lost], [left: :keep], [timeout: -1]],
          stop <- [
            &PartitionedBuffer.stop(buffer, &1),
            &PartitionedBuffer.stop(Lookup.supervisor(buffer), &1)
          ],
          do: assert_raise(ArgumentError, fn -> stop.(opts) end)

      assert Counter.add(buffer, :a) == :ok and PartitionedBuffer.flush(buffer) == :ok
    end

    test "of a buffer that is not running exits" do
      assert {:noproc, _call} = catch_exit(PartitionedBuffer.stop(unique_name()))
    end
  end

  defp dead(found \\ []) do
    receive do
      {:dead, entries, reason} -> dead(for(entry <- entries, do: {entry, reason}) ++ found)
    after
      0 -> found
    end
  end

  describe "a supervisor" do
    test "that restarts the buffer while the sink is down keeps all, for the next start to deliver" do
      {buffer, sink} = start_failing([])
      Counter.add(buffer, :a)
      PartitionedBuffer.flush(buffer)
      Counter.add(buffer, :b)
      {:ok, parent} = ExUnit.fetch_test_supervisor()
      [{id, _pid, _type, _modules}] = Supervisor.which_children(parent)
      # A temporary child is not kept by its supervisor.
      log = capture_log(fn -> :ok = Supervisor.terminate_child(parent, id) end)
      assert log =~ "kept"
      assert dead() == []
      :counters.put(sink, 1, 1)
      assert found(buffer) == [{:a, 1, 1}, {:b, 1, 1}]
    end

    test "that is killed with all processes loses nothing" do
      {buffer, _sink} = start_failing([])
      Counter.add(buffer, :a)
      PartitionedBuffer.flush(buffer)
      Counter.add(buffer, :b)
      tree = Lookup.supervisor(buffer)
      ref = Process.monitor(tree)
      pids = for {_id, pid, _type, _modules} <- Supervisor.which_children(tree), do: pid
      kill_processes([tree | pids])
      assert_received {:DOWN, ^ref, :process, _pid, :killed}
      assert found(buffer) == [{:a, 1, 1}, {:b, 1, 1}]
    end
  end

  describe "dead letters" do
    test "of the processor go to the user with their reason, or are logged without a function" do
      {buffer, _sink} = start_failing(max_attempts: 1)
      Counter.add(buffer, :a)
      PartitionedBuffer.flush(buffer)
      assert_receive {:dead, [{:a, 1, 1}], :down}

      {buffer, _sink} = start_failing(max_attempts: 1, dead_letter: nil)
      Counter.add(buffer, :a)
      log = capture_log(fn -> PartitionedBuffer.flush(buffer) end)
      assert log =~ "gives up 1 entries: :down"
      assert %{totals: %{given_up: 1}, size: 0, in_flight: 0} = PartitionedBuffer.info(buffer)
    end
  end

  describe "a processor" do
    # Calls a function with the buffer, and reports what that did.
    defp start_calling(call, opts \\ []) do
      test = self()
      name = unique_name()
      calls = :counters.new(1, [])

      start(
        [
          name: name,
          processor: fn batch ->
            # Only the first batch calls.
            :counters.add(calls, 1, 1)

            if :counters.get(calls, 1) == 1 do
              result =
                try do
                  call.(name)
                rescue
                  error -> error
                catch
                  :exit, reason -> {:exit, reason}
                end

              send(test, {:called, result})
            end

            send(test, {:batch, batch})
          end
        ] ++ opts
      )
    end

    test "may write to its buffer" do
      buffer = start_calling(&Counter.add(&1, :again))
      Counter.add(buffer, :a)
      assert PartitionedBuffer.flush(buffer) == :ok
      assert_receive {:called, :ok}
      assert PartitionedBuffer.flush(buffer) == :ok
      assert keys(received_entries()) == [:a, :again]
    end

    test "never waits for room in its buffer" do
      call = &Counter.add(&1, :more)
      opts = [max_size: 3, full_timeout_ms: 60_000, when_full: :raise, forward_ms: 60_000]
      buffer = start_calling(call, opts)
      Counter.add(buffer, :a)
      hold(buffer)
      Counter.add_all(buffer, b: 1, c: 1, d: 1)
      PartitionedBuffer.resume(buffer)
      assert_receive {:called, %FullError{}}
    end

    for {what, call} <- [
          {"flush its buffer", quote(do: &PartitionedBuffer.flush/1)},
          {"flush all members", quote(do: &Cluster.flush/1)},
          {"stop its buffer by name", quote(do: &PartitionedBuffer.stop/1)},
          {"stop its buffer by pid", quote(do: &PartitionedBuffer.stop(Lookup.supervisor(&1)))},
          {"flush its buffer in a task",
           quote(
             do: fn buffer ->
               Task.await(Task.async(fn -> catch_error(PartitionedBuffer.flush(buffer)) end))
             end
           )},
          {"stop its buffer in a task",
           quote(
             do: fn buffer ->
               Task.await(Task.async(fn -> catch_error(PartitionedBuffer.stop(buffer)) end))
             end
           )}
        ] do
      test "cannot #{what}: it raises" do
        buffer = start_calling(unquote(call))
        Counter.add(buffer, :a)
        PartitionedBuffer.flush(buffer, async: true)
        PartitionedBuffer.flush(buffer, timeout: 3_000)
        assert_receive {:called, %ArgumentError{message: message}}, 5_000
        assert message =~ "a processor of buffer" and message =~ inspect(buffer)
      end
    end

    test "may flush with async: true, and call what waits for no processor" do
      for call <- [
            &PartitionedBuffer.flush(&1, async: true),
            &PartitionedBuffer.update_options(&1, max_attempts: 9, cluster: [call_ms: 1]),
            &PartitionedBuffer.pause/1,
            &Cluster.leave/1
          ] do
        buffer = start_calling(call)
        Counter.add(buffer, :a)
        PartitionedBuffer.flush(buffer, timeout: 5_000)
        assert_receive {:called, :ok}
      end
    end

    test "cannot write any more while the stop gives it the last entries" do
      buffer = start_calling(&Counter.add(&1, :again))
      Counter.add(buffer, :a)
      PartitionedBuffer.stop(buffer)
      assert_receive {:called, %ArgumentError{message: message}}
      assert message =~ "not running"
      assert Routing.owning_name(buffer) not in PartitionedBuffer.buffers()
    end
  end
end
