defmodule PartitionedBuffer.Journal.SyncTest do
  # sync/2, the numbers of info/1, the events, and the functions for a journal that no buffer uses.
  use PartitionedBuffer.JournalCase, async: true

  # In these tests nothing is written or synced but what a call asks for.
  @slow [write_ms: 60_000, sync_ms: 3_600_000]

  defp slow(dir, opts \\ []) do
    name = start_journaled(dir, [journal: [dir: dir] ++ @slow] ++ opts)
    # The first pass is due at the start.
    :ok = PartitionedBuffer.sync(name, level: :written)
    name
  end

  def forward([:partitioned_buffer, _journal_or_full, event], measurements, metadata, {test, buffer}) do
    if metadata.buffer == buffer, do: send(test, {event, measurements, metadata})
  end

  defp attach(buffer) do
    id = {__MODULE__, buffer}
    events = for event <- [:replay, :error, :recovered, :rewrite], do: [:partitioned_buffer, :journal, event]
    events = [[:partitioned_buffer, :full, :start], [:partitioned_buffer, :full, :stop]] ++ events
    :telemetry.attach_many(id, events, &__MODULE__.forward/4, {self(), buffer})
    on_exit(fn -> :telemetry.detach(id) end)
  end

  describe "with when_behind: :refuse, a write" do
    # Nothing is written but by sync/2, so an entry is soon too old.
    defp behind(dir, opts) do
      name = unique_name()
      attach(name)
      journal = [dir: dir, when_behind: :refuse, max_lag_ms: 20] ++ @slow
      start_journaled(dir, [name: name, journal: journal] ++ opts)
      :ok = PartitionedBuffer.sync(name, level: :written)
      # A flush, as a full buffer has one, would write the entries.
      :ok = PartitionedBuffer.pause(name)
      name
    end

    defp put_until(name, answer) do
      unless PartitionedBuffer.Map.put(name, :key, 1) == answer, do: put_until(name, answer)
    end

    defp put_until_dropped(name) do
      :ok = PartitionedBuffer.Map.put(name, :key, 1)
      if PartitionedBuffer.info(name).totals.dropped == 0, do: put_until_dropped(name)
    end

    test "returns {:error, :journal} while the journal is behind, and then has room again", %{dir: dir} do
      name = behind(dir, when_full: :error)
      put_until(name, {:error, :journal})
      assert_receive {:start, _measurements, %{buffer: ^name, reason: :journal}}
      assert PartitionedBuffer.Map.put_all(name, [{:a, 1}, {:b, 2}]) == {:error, :journal}
      assert PartitionedBuffer.Map.size(name) == 1
      info = PartitionedBuffer.info(name)
      assert info.journal.state == :behind and info.journal.lag_ms > 20
      assert info.totals.refused >= 3
      # Reads and deletes go on.
      assert PartitionedBuffer.Map.get(name, :key) == 1
      assert PartitionedBuffer.Map.delete(name, :key) == :ok
      assert PartitionedBuffer.sync(name, level: :written) == :ok
      put_until(name, :ok)
      assert_receive {:stop, %{refused: refused}, %{buffer: ^name, reason: :journal}} when refused >= 3
    end

    test "raises a JournalError, with the lag, and is not in the buffer", %{dir: dir} do
      name = behind(dir, [])

      error = assert_raise PartitionedBuffer.JournalError, fn -> put_until(name, :never) end

      assert %{buffer: ^name, max_lag_ms: 20, lag_ms: lag_ms} = error
      assert lag_ms > 20
      assert Exception.message(error) =~ "the journal of buffer #{inspect(name)} is #{lag_ms} ms behind"
      assert_raise PartitionedBuffer.JournalError, fn -> PartitionedBuffer.Map.put(name, :other, 2) end
      assert PartitionedBuffer.Map.get(name, :other) == nil
    end

    test "is dropped and counted with when_full: :drop_newest", %{dir: dir} do
      name = behind(dir, when_full: :drop_newest)
      put_until_dropped(name)
      assert_receive {:start, _measurements, %{buffer: ^name, reason: :journal}}
      assert PartitionedBuffer.Map.put(name, :other, 2) == :ok
      assert PartitionedBuffer.Map.get(name, :other) == nil
      assert PartitionedBuffer.info(name).totals.dropped >= 1
    end
  end

  describe "sync/2" do
    test "with level: :written returns when the writes before are in a file", %{dir: dir} do
      name = slow(dir)

      for n <- 1..20 do
        PartitionedBuffer.Map.put(name, :key, n)
        assert PartitionedBuffer.sync(name, level: :written) == :ok
        assert entries(path(dir, :map, name)) == [{:key, n, 0, 0}]
      end

      PartitionedBuffer.Map.delete(name, :key)
      assert PartitionedBuffer.sync(name, level: :written) == :ok
      assert entries(path(dir, :map, name)) == []
      # Nothing waited for the device.
      assert PartitionedBuffer.info(name).journal.synced_ms_ago >=
               PartitionedBuffer.info(name).journal.written_ms_ago
    end

    test "waits for the device by default", %{dir: dir} do
      name = slow(dir)
      PartitionedBuffer.Map.put(name, :key, 1)
      Process.sleep(20)
      assert PartitionedBuffer.info(name).journal.synced_ms_ago >= 20
      before = System.monotonic_time(:millisecond)
      assert PartitionedBuffer.sync(name) == :ok
      assert entries(path(dir, :map, name)) == [{:key, 1, 0, 0}]
      info = PartitionedBuffer.info(name).journal
      assert info.synced_ms_ago <= System.monotonic_time(:millisecond) - before
      assert info.unwritten == 0 and info.lag_ms == 0
    end

    test "of many callers at once answers each, with few writes", %{dir: dir} do
      name = slow(dir, partitions: 4)

      callers =
        for n <- 1..200 do
          Task.async(fn ->
            PartitionedBuffer.Map.put(name, n, n)
            {PartitionedBuffer.sync(name, level: Enum.random([:written, :synced])), entry?(dir, name, n)}
          end)
        end

      assert Enum.all?(Task.await_many(callers, 60_000), &(&1 == {:ok, true}))
    end

    defp entry?(dir, name, n) do
      {:ok, %{entries: entries}} = Journal.read(path(dir, :map, name))
      {n, n, 0, 0} in entries
    end

    test "returns {:error, :timeout} in time, and leaves no message", %{dir: dir} do
      name = slow(dir)
      PartitionedBuffer.Map.put(name, :key, 1)
      # A pass takes longer than no time at all.
      answers = for _n <- 1..50, do: PartitionedBuffer.sync(name, timeout: 0)
      assert :timeout in for({:error, reason} <- answers, do: reason)
      assert Enum.all?(answers, &(&1 in [:ok, {:error, :timeout}]))
      assert PartitionedBuffer.sync(name, timeout: :infinity) == :ok
      assert Process.info(self(), :messages) == {:messages, []}
    end

    test "raises without a journal, and if the buffer is not running", %{dir: dir} do
      name = start_journaled(dir, journal: nil)

      assert_raise ArgumentError, ~r/sync\/2 needs a journal, and buffer :#{name} was started without/, fn ->
        PartitionedBuffer.sync(name)
      end

      other = start_journaled(dir)
      :ok = PartitionedBuffer.stop(other)
      assert_raise ArgumentError, ~r/:#{other}: it is not running/, fn -> PartitionedBuffer.sync(other) end
      assert_raise ArgumentError, ~r/is not running/, fn -> PartitionedBuffer.sync(:never_started) end
    end

    test "raises on wrong options", %{dir: dir} do
      name = start_journaled(dir)

      for options <- [[level: :platter], [timeout: -1], [timeout: :soon], [unknown: 1], :synced] do
        error = assert_raise ArgumentError, fn -> PartitionedBuffer.sync(name, options) end
        assert error.message =~ "#{name}"
      end
    end

    test "is a function of the kinds, and of buffers defined with use", %{dir: dir} do
      for module <- [PartitionedBuffer.Map, PartitionedBuffer.Counter, PartitionedBuffer.Queue] do
        name = start_journaled(dir, module: module)
        assert module.sync(name) == :ok
        assert module.sync(name, level: :written, timeout: 10_000) == :ok
      end

      Code.eval_quoted(
        quote do
          defmodule PartitionedBuffer.Journal.SyncTest.Defined do
            use PartitionedBuffer.Map

            def start_link(opts), do: PartitionedBuffer.Map.start_link([name: __MODULE__] ++ opts)
          end
        end
      )

      defined = PartitionedBuffer.Journal.SyncTest.Defined
      options = Keyword.drop(journal_options(dir), [:name, :module])
      start_supervised!(%{id: defined, start: {defined, :start_link, [options]}})
      assert apply(defined, :sync, []) == :ok
      assert apply(defined, :sync, [[level: :written]]) == :ok
      assert File.dir?(Path.join([dir, Atom.to_string(defined), "map"]))
    end
  end

  describe "info/1" do
    test "shows the state of the journal", %{dir: dir} do
      name = slow(dir)

      assert %{state: :ok, lag_ms: 0, unwritten: 0, bytes: 0, segments: 0} =
               PartitionedBuffer.info(name).journal

      for key <- 1..100, _n <- 1..3, do: PartitionedBuffer.Map.put(name, key, key)

      info = PartitionedBuffer.info(name).journal
      assert %{unwritten: 100, replayed: 0, last_error: nil, dir: path} = info
      assert path == path(dir, :map, name)
      # The age of the oldest change, or a little more: that of the last write.
      assert info.lag_ms == info.written_ms_ago or info.lag_ms == info.written_ms_ago + 1
      :ok = PartitionedBuffer.sync(name)
      info = PartitionedBuffer.info(name).journal
      assert %{state: :ok, lag_ms: 0, unwritten: 0, segments: 1} = info
      [file] = Path.wildcard(path <> "/*.log")
      assert info.bytes == File.stat!(file).size
    end

    test "is :behind while the lag is above max_lag_ms", %{dir: dir} do
      name = start_journaled(dir, journal: [dir: dir, max_lag_ms: 1] ++ @slow)
      :ok = PartitionedBuffer.sync(name, level: :written)
      PartitionedBuffer.Map.put(name, :key, 1)
      await_behind(name)
      :ok = PartitionedBuffer.sync(name, level: :written)
      assert PartitionedBuffer.info(name).journal.state == :ok
    end

    # The clock alone makes it so.
    defp await_behind(name),
      do: unless(PartitionedBuffer.info(name).journal.state == :behind, do: await_behind(name))

    test "and the event of emit_info/1 have the lag and the bytes", %{dir: dir} do
      name = slow(dir)
      PartitionedBuffer.Map.put(name, :key, 1)
      :ok = PartitionedBuffer.sync(name)
      {test, id} = {self(), {:info, name}}
      fun = fn _event, measurements, metadata, _config -> send(test, {:info, measurements, metadata}) end
      :telemetry.attach(id, [:partitioned_buffer, :info], fun, nil)
      on_exit(fn -> :telemetry.detach(id) end)
      :ok = PartitionedBuffer.emit_info(name)
      bytes = PartitionedBuffer.info(name).journal.bytes
      assert bytes > 0
      assert_receive {:info, %{journal_lag_ms: 0, journal_bytes: ^bytes}, %{buffer: ^name}}
    end
  end

  describe "events" do
    test "of a replay has what was found", %{dir: dir} do
      live_and_die(dir, [], quote(do: for(key <- 1..10, do: PartitionedBuffer.Map.put(:journaled, key, key))))

      size =
        path(dir) |> Path.join("*.log") |> Path.wildcard() |> Enum.map(&File.stat!(&1).size) |> Enum.sum()

      vm =
        OtherVM.start(
          quote do
            :logger.set_primary_config(:level, :none)
            {:ok, _started} = Application.ensure_all_started(:partitioned_buffer)
            fun = fn _event, measurements, metadata, _config -> say({measurements, metadata}) end
            :telemetry.attach(:replay, [:partitioned_buffer, :journal, :replay], fun, nil)

            options =
              unquote(
                Macro.escape(journal_options(dir, processor: {PartitionedBuffer.JournalCase, :deliver, []}))
              )

            {:ok, _pid} = PartitionedBuffer.start_link(options)
          end
        )

      assert {measurements, metadata} = OtherVM.hear(vm)
      OtherVM.kill(vm)
      assert metadata == %{buffer: :journaled, dir: path(dir)}
      assert %{entries: 10, bytes: ^size, torn_bytes: 0, damaged_bytes: 0, damaged_records: 0} = measurements
      assert measurements.records >= 10
      assert measurements.duration > 0
    end

    test "of a rewrite comes when the log has grown, which is then small again", %{dir: dir} do
      name = unique_name()
      attach(name)
      ^name = start_journaled(dir, name: name, journal: [dir: dir, max_bytes: 1_048_576, write_ms: 1])

      # Each pass writes each value anew.
      write = fn ->
        for key <- 1..10, do: PartitionedBuffer.Map.put(name, key, :crypto.strong_rand_bytes(10_000))
        # A rewrite has ended when it is synced.
        :ok = PartitionedBuffer.sync(name)
      end

      for _n <- 1..40, do: write.()
      assert_receive {:rewrite, %{entries: 10, bytes: bytes, duration: duration}, %{buffer: ^name}}
      assert bytes > 100_000 and duration > 0
      # Of 4 MB there are those since the last rewrite, and its own.
      info = PartitionedBuffer.info(name)
      assert info.journal.bytes <= 2 * info.bytes + 1_048_576
      assert info.journal.bytes < 3_000_000
      kept = for {key, value, 0, 0} <- entries(path(dir, :map, name)), do: {key, value}
      assert Enum.sort(kept) == for(key <- 1..10, do: {key, PartitionedBuffer.Map.get(name, key)})
    end
  end

  describe "Journal" do
    test "read/1 and delete/1 want the directory of a kind", %{dir: dir} do
      for function <- [&Journal.read/1, &Journal.delete/1], path <- [dir, Path.join(dir, "maps"), ""] do
        assert_raise ArgumentError, ~r/expected the directory of a journal, which ends with a kind/, fn ->
          function.(path)
        end
      end

      assert Journal.read(Path.join(dir, "map")) == {:error, :enoent}
      assert Journal.delete(Path.join(dir, "map")) == :ok
      assert File.ls!(dir) == []
    end

    test "read/1 shows each kind, and changes nothing", %{dir: dir} do
      map = start_journaled(dir)
      PartitionedBuffer.Map.put_newer(map, :key, %{a: 1}, 2 ** 70)
      counter = start_journaled(dir, module: PartitionedBuffer.Counter)
      for _n <- 1..3, do: PartitionedBuffer.Counter.add(counter, :key, 2 ** 62)
      queue = start_journaled(dir, module: PartitionedBuffer.Queue)
      PartitionedBuffer.Queue.push(queue, [1, {2}, "3"])
      for name <- [map, counter, queue], do: :ok = PartitionedBuffer.sync(name)
      paths = [path(dir, :map, map), path(dir, :counter, counter), path(dir, :queue, queue)]

      files = fn ->
        for path <- paths, file <- File.ls!(path), do: {file, File.read!(Path.join(path, file))}
      end

      before = files.()

      assert Enum.map(paths, &entries/1) == [
               [{:key, %{a: 1}, 2 ** 70, 0}],
               [{:key, 3 * 2 ** 62, 3}],
               [1, {2}, "3"]
             ]

      assert files.() == before
    end

    test "delete/1 refuses the directory of a running buffer, and removes any other", %{dir: dir} do
      name = start_journaled(dir)
      PartitionedBuffer.Map.put(name, :key, 1)
      :ok = PartitionedBuffer.sync(name)
      path = path(dir, :map, name)
      assert Journal.delete(path) == {:error, :locked}
      assert entries(path) == [{:key, 1, 0, 0}]
      :ok = PartitionedBuffer.stop(name)
      assert File.ls!(path) == ["lock"]
      File.write!(Path.join(path, "0000000000000001.damaged"), "kept")
      assert Journal.delete(path) == :ok
      refute File.exists?(path)
      # A buffer with entries in this VM keeps its journal.
      refuse = [processor: fn _batch -> {:error, :down} end, drain_timeout_ms: 0]
      name = start_journaled(dir, refuse)
      PartitionedBuffer.Map.put(name, :key, 1)
      :ok = PartitionedBuffer.stop(name, :normal, :infinity, leftovers: :keep)
      assert Journal.delete(path(dir, :map, name)) == {:error, :locked}
      assert entries(path(dir, :map, name)) == [{:key, 1, 0, 0}]
    end
  end
end
