defmodule PartitionedBuffer.Journal.DiskTest do
  # File systems that are full, read-only or gone. Those with the tag :mount need root, to mount a file
  # system in memory: without it, exclude them with --exclude mount.
  # Not async: a buffer of this VM has the name of those in other tests.
  use PartitionedBuffer.JournalCase, async: false

  defp mount(dir, options) do
    mounted = Path.join(dir, "mounted")
    File.mkdir_p!(mounted)

    {output, status} =
      System.cmd("mount", ["-t", "tmpfs", "-o", options, "tmpfs", mounted], stderr_to_stdout: true)

    status == 0 || flunk("a test with the tag :mount cannot mount a file system here: #{output}")
    # The tests' own directories are removed after this.
    on_exit(fn -> System.cmd("umount", ["--lazy", mounted]) end)
    mounted
  end

  # Leaves no room.
  defp fill(mounted) do
    filler = Path.join(mounted, "filler")
    {:ok, file} = :file.open(filler, [:append, :raw, :binary])
    fill(file, 65_536)
    fill(file, 1_024)
    fill(file, 1)
    :file.close(file)
    filler
  end

  defp fill(file, bytes),
    do: with(:ok <- :file.write(file, :binary.copy(<<1>>, bytes)), do: fill(file, bytes))

  @sync quote(do: PartitionedBuffer.sync(:journaled, level: :written))
  @info quote(do: PartitionedBuffer.info(:journaled).journal)
  @refusing [processor: {PartitionedBuffer.JournalCase, :refuse, []}, retry_backoff_ms: {60_000, 60_000}]

  describe "a full disk" do
    @describetag :mount

    test "holds up no writer and no reader, and when there is room again nothing is lost", %{dir: dir} do
      mounted = mount(dir, "size=2m")
      vm = obedient(mounted, @refusing)
      {:put, []} = order(vm, put(1..100))
      assert {:ok, []} = order(vm, @sync)
      filler = fill(mounted)
      {:put, said} = order(vm, put(101..5_000))
      {:event, :error, measurements, metadata} = hear_event(vm, :error, said)
      assert %{buffer: :journaled, reason: :enospc, operation: operation} = metadata
      assert operation in [:write, :open]
      assert %{lag_ms: lag_ms, unwritten: _unwritten} = measurements
      assert lag_ms >= 0
      assert {{:error, :enospc}, _said} = order(vm, @sync)
      # All goes on.
      {:put, _said} = order(vm, put(5_001..6_000))
      assert {true, _said} = order(vm, all_read(1..6_000))
      {info, _said} = order(vm, @info)
      assert %{state: :failed, last_error: %{reason: :enospc, operation: operation}} = info
      assert operation in [:write, :open]
      assert info.unwritten >= 1_000 and info.lag_ms > 0
      # What is left has room, and not all that came.
      {:put, said} =
        order(
          vm,
          quote(
            do:
              (
                for(key <- 1..5_500, do: PartitionedBuffer.Map.delete(:journaled, key))
                :put
              )
          )
        )

      File.rm!(filler)

      assert {:event, :recovered, %{duration: duration}, %{buffer: :journaled}} =
               hear_event(vm, :recovered, said)

      assert duration > 0
      assert {:ok, _said} = order(vm, @sync)
      assert {%{state: :ok, unwritten: 0, last_error: %{reason: :enospc}}, _said} = order(vm, @info)
      OtherVM.kill(vm)
      assert keys_of(entries(path(mounted))) == Enum.to_list(5_501..6_000)
      {delivered, _info, _said} = next_life(mounted)
      assert keys_of(delivered) == Enum.to_list(5_501..6_000)
      assert File.ls!(path(mounted)) == ["lock"]
    end

    test "has room for outcomes: what was delivered does not come again after a kill", %{dir: dir} do
      mounted = mount(dir, "size=2m")
      vm = obedient(mounted, processing_batch_size: 10)
      {:put, []} = order(vm, put(1..100))
      assert {:ok, []} = order(vm, @sync)
      filler = fill(mounted)
      # This does not fit, so all entries are to be delivered.
      {:put, said} = order(vm, put(101..110, 100_000))
      {flushed, more} = order(vm, quote(do: PartitionedBuffer.flush(:journaled)))
      assert flushed == :ok
      delivered = for {:batch, batch} <- said ++ more, entry <- batch, do: entry
      assert keys_of(delivered) == Enum.to_list(1..110)
      # The outcomes are written by the passes that follow.
      await_no_entries(path(mounted))

      assert {{:error, :enospc}, _said} =
               order(
                 vm,
                 quote(
                   do:
                     (
                       unquote(put(200..210, 100_000))
                       unquote(@sync)
                     )
                 )
               )

      OtherVM.kill(vm)
      assert File.exists?(filler)
      # Of the last ones there may be some: they were not delivered.
      {entries, _info, _said} = next_life(mounted)
      assert keys_of(entries) -- Enum.to_list(200..210) == []
    end

    # Files send no messages. The test's time is the limit.
    defp await_no_entries(path),
      do: unless(match?({:ok, %{entries: []}}, Journal.read(path)), do: await_no_entries(path))

    test "that flushes empty has room again by itself", %{dir: dir} do
      mounted = mount(dir, "size=2m")
      opts = [processing_batch_size: 100, processing_interval_ms: 500]
      vm = obedient(mounted, opts ++ [journal: [dir: mounted, max_bytes: 1_048_576]])
      # More than the disk has.
      {:put, said} = order(vm, put(1..60, 100_000))

      all =
        if Enum.any?(said, &match?({:event, :recovered, _, _}, &1)),
          do: said,
          else: hear_up_to(vm, :recovered, said)

      assert Enum.any?(all, &match?({:event, :error, _, %{reason: :enospc}}, &1))
      {:ok, more} = order(vm, quote(do: PartitionedBuffer.flush(:journaled)))
      delivered = for {:batch, batch} <- all ++ more, entry <- batch, do: entry
      assert Enum.uniq(keys_of(delivered)) == Enum.to_list(1..60)
      assert length(delivered) == 60
      {:put, _said} = order(vm, put(61..70, 1_000))
      assert {:ok, _said} = order(vm, @sync)
      OtherVM.kill(vm)
      assert {entries, _info, _said} = next_life(mounted)
      assert keys_of(entries) == Enum.to_list(61..70)
    end
  end

  describe "a read-only disk" do
    @describetag :mount

    test "refuses a start with its error, also if there are entries", %{dir: dir} do
      mounted = mount(dir, "size=4m")
      live_and_die(mounted, [], put([1]))
      {_output, 0} = System.cmd("mount", ["-o", "remount,ro", mounted])
      Process.flag(:trap_exit, true)
      assert {:error, {:journal, :erofs}} = mounted |> journal_options() |> PartitionedBuffer.start_link()
      assert [{1, {1, _bytes}, 0, 0}] = entries(path(mounted))
      {_output, 0} = System.cmd("mount", ["-o", "remount,rw", mounted])
      assert {[{1, {1, _bytes}, 0, 0}], _info, _said} = next_life(mounted)
    end
  end

  test "a directory that was removed is made anew, with all entries", %{dir: dir} do
    vm = obedient(dir, @refusing)
    {:put, []} = order(vm, put(1..100))
    assert {:ok, []} = order(vm, @sync)
    File.rm_rf!(Path.join(dir, "journaled"))
    {:put, said} = order(vm, put(101..200))
    {synced, more} = order(vm, @sync)
    # The first pass finds out, and a later one begins the new log.
    assert synced in [:ok, {:error, :enoent}]

    if synced != :ok do
      assert {:event, :error, _measurements, %{reason: :enoent}} = hear_event(vm, :error, said ++ more)
      hear_event(vm, :recovered, more)
    end

    assert {:ok, _said} = order(vm, @sync)
    assert {true, _said} = order(vm, all_read(1..200))
    OtherVM.kill(vm)
    assert {delivered, _info, _said} = next_life(dir)
    assert keys_of(delivered) == Enum.to_list(1..200)
  end

  test "a segment that was removed is written again with all entries", %{dir: dir} do
    vm = obedient(dir, @refusing)
    {:put, []} = order(vm, put(1..100))
    assert {:ok, []} = order(vm, @sync)
    path(dir) |> Path.join("*.log") |> Path.wildcard() |> Enum.each(&File.rm!/1)
    {:put, said} = order(vm, put(101..200))
    {synced, more} = order(vm, @sync)
    assert synced in [:ok, {:error, :enoent}]
    if synced != :ok, do: hear_event(vm, :recovered, said ++ more)
    assert {:ok, _said} = order(vm, @sync)
    OtherVM.kill(vm)
    assert {delivered, _info, _said} = next_life(dir)
    assert keys_of(delivered) == Enum.to_list(1..200)
  end
end
