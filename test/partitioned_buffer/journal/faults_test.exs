defmodule PartitionedBuffer.Journal.FaultsTest do
  # Calls of the system that fail or hang: the other VM has a library preloaded that gets them first.
  use PartitionedBuffer.JournalCase, async: true

  @eio 5
  @emfile 24
  @sync quote(do: PartitionedBuffer.sync(:journaled))
  @write quote(do: PartitionedBuffer.sync(:journaled, level: :written))
  @info quote(do: PartitionedBuffer.info(:journaled).journal)
  @flush quote(do: PartitionedBuffer.flush(:journaled))
  @refusing [processor: {PartitionedBuffer.JournalCase, :refuse, []}, retry_backoff_ms: {60_000, 60_000}]

  setup_all do
    library = Path.join(System.tmp_dir!(), "pb_faults_#{System.pid()}.so")
    source = Path.expand("../../support/faults/faults.c", __DIR__)
    # Rust links with it, so it is there.
    {output, status} =
      System.cmd("cc", ["-shared", "-fPIC", "-o", library, source, "-ldl"], stderr_to_stdout: true)

    assert {status, output} == {0, ""}
    on_exit(fn -> File.rm(library) end)
    {:ok, library: library}
  end

  setup %{dir: dir, library: library} do
    [faults, journals] = for name <- ["faults", "journals"], do: Path.join(dir, name)
    File.mkdir_p!(faults)
    File.mkdir_p!(journals)
    env = [{"LD_PRELOAD", library}, {"FAULTS", faults}, {"FAULTS_UNDER", journals}]
    {:ok, faults: faults, dir: journals, env: env}
  end

  # Takes effect from the next call on.
  defp fault(faults, call, what) do
    path = Path.join(faults, call)
    File.write!(path <> ".new", what)
    File.rename!(path <> ".new", path)
  end

  defp mend(faults, call), do: File.rm!(Path.join(faults, call))

  # The calls so far, as {call, file, error}.
  defp calls(faults) do
    for line <- faults |> Path.join("calls") |> File.stream!() do
      [call, path, error] = String.split(line)
      {call, Path.basename(path), String.to_integer(error)}
    end
  end

  # Waits until a call hangs: it is not yet in the file. The test's time is the limit.
  defp await_hang(vm, run \\ @info) do
    {info, _said} = order(vm, run)
    if info.lag_ms < 100, do: await_hang(vm, run), else: info
  end

  test "a write that fails is written when the disk works again", %{dir: dir, faults: faults, env: env} do
    vm = obedient(dir, @refusing, env)
    {:put, []} = order(vm, put(1..100))
    assert {:ok, []} = order(vm, @sync)
    fault(faults, "write", "fail #{@eio}")
    {:put, said} = order(vm, put(101..200))

    assert {:event, :error, _measurements, %{reason: :eio, operation: :write}} = hear_event(vm, :error, said)

    assert {{:error, :eio}, _said} = order(vm, @sync)
    assert {%{state: :failed, last_error: %{reason: :eio}}, _said} = order(vm, @info)
    assert {true, _said} = order(vm, all_read(1..200))
    mend(faults, "write")
    assert {:event, :recovered, _measurements, _metadata} = hear_event(vm, :recovered, [])
    assert {:ok, _said} = order(vm, @sync)
    OtherVM.kill(vm)
    # What was written before the failure is in a segment of its own.
    {delivered, %{journal: %{replayed: 200}}, _said} = next_life(dir)
    assert keys_of(delivered) == Enum.to_list(1..200)
  end

  test "delivery goes on while writes fail", %{dir: dir, faults: faults, env: env} do
    vm = obedient(dir, [journal: [dir: dir, max_lag_ms: 200]], env)
    fault(faults, "write", "fail #{@eio}")
    {:put, said} = order(vm, put(1..100))
    {:ok, more} = order(vm, @flush)
    assert keys_of(for {:batch, batch} <- said ++ more, entry <- batch, do: entry) == Enum.to_list(1..100)
    OtherVM.kill(vm)
  end

  test "a file whose sync failed is never synced again: all entries are written anew", %{
    dir: dir,
    faults: faults,
    env: env
  } do
    vm = obedient(dir, @refusing ++ [journal: [dir: dir, sync_ms: 3_600_000]], env)
    {:put, []} = order(vm, put(1..100))
    assert {:ok, []} = order(vm, @sync)
    {:put, []} = order(vm, put(101..200))
    fault(faults, "fdatasync", "once #{@eio}")
    {result, said} = order(vm, @sync)
    assert result in [:ok, {:error, :eio}]
    hear_event(vm, :recovered, said)
    assert {:ok, _said} = order(vm, @sync)
    syncs = for {"fdatasync", file, error} <- calls(faults), do: {file, error}
    [{failed, @eio} | later] = Enum.drop_while(syncs, &match?({_file, 0}, &1))
    assert later != [] and failed not in Enum.map(later, &elem(&1, 0))
    assert {"unlink", failed, 0} in calls(faults)
    OtherVM.kill(vm)
    {delivered, _info, _said} = next_life(dir)
    assert keys_of(delivered) == Enum.to_list(1..200)
  end

  test "a segment that cannot be made comes later", %{dir: dir, faults: faults, env: env} do
    vm = obedient(dir, @refusing, env)
    {:put, []} = order(vm, put([0]))
    assert {:ok, []} = order(vm, @sync)
    fault(faults, "open", "fail #{@emfile}")
    # A failed write begins a new segment.
    fault(faults, "write", "once #{@eio}")
    {:put, said} = order(vm, put(1..100))
    assert {:event, :error, _measurements, %{reason: :eio}} = hear_event(vm, :error, said)
    assert {{:error, :emfile}, _said} = order(vm, @sync)
    assert {%{last_error: %{reason: :emfile, operation: :open}}, _said} = order(vm, @info)
    mend(faults, "open")
    hear_event(vm, :recovered, [])
    assert {:ok, _said} = order(vm, @sync)
    OtherVM.kill(vm)
    {delivered, _info, _said} = next_life(dir)
    assert keys_of(delivered) == Enum.to_list(0..100)
  end

  test "a segment that cannot be removed is removed later", %{dir: dir, faults: faults, env: env} do
    vm = obedient(dir, [], env)
    fault(faults, "unlink", "fail #{@eio}")
    {:put, []} = order(vm, put(1..100))
    {:ok, said} = order(vm, @flush)
    assert {:event, :error, _measurements, %{operation: :delete}} = hear_event(vm, :error, said)
    mend(faults, "unlink")
    hear_event(vm, :recovered, [])
    {:put, _said} = order(vm, put([:last]))
    assert {:ok, _said} = order(vm, @sync)
    OtherVM.kill(vm)
    {delivered, _info, _said} = next_life(dir)
    assert keys_of(delivered) == [:last]
  end

  test "a journal that cannot be read is not taken for an empty one", %{dir: dir, faults: faults, env: env} do
    live_and_die(dir, [], put(1..10))
    fault(faults, "read", "fail #{@eio}")
    options = dir |> journal_options() |> Keyword.put(:processor, &Function.identity/1)

    vm =
      OtherVM.start(
        quote do
          :logger.set_primary_config(:level, :none)
          {:ok, _started} = Application.ensure_all_started(:partitioned_buffer)
          Process.flag(:trap_exit, true)
          say(PartitionedBuffer.start_link(unquote(Macro.escape(options))))
        end,
        env: env
      )

    assert OtherVM.hear(vm) == {:error, {:journal, :eio}}
    OtherVM.drain(vm)
    {delivered, _info, _said} = next_life(dir)
    assert keys_of(delivered) == Enum.to_list(1..10)
  end

  describe "a disk that hangs" do
    test "holds up no writer and no reader, and a flush for :max_lag_ms only", %{
      dir: dir,
      faults: faults,
      env: env
    } do
      vm = obedient(dir, [journal: [dir: dir, max_lag_ms: 500]], env)
      fault(faults, "write", "hang")
      {:put, []} = order(vm, put(1..1_000))
      await_hang(vm)

      assert {{:error, :timeout}, []} = order(vm, quote(do: PartitionedBuffer.sync(:journaled, timeout: 50)))

      {:put, []} = order(vm, put(1_001..2_000))
      assert {true, []} = order(vm, all_read(1..2_000))
      {{us, :ok}, said} = order(vm, quote(do: :timer.tc(fn -> unquote(@flush) end)))
      assert keys_of(for {:batch, batch} <- said, entry <- batch, do: entry) == Enum.to_list(1..2_000)
      assert us >= 200_000
      assert {%{state: state, lag_ms: lag_ms}, _said} = order(vm, @info)
      assert state in [:behind, :failed] and lag_ms >= 500
      {:put, _said} = order(vm, put(2_001..2_100))
      mend(faults, "write")
      assert {:ok, _said} = order(vm, @sync)
      assert {%{state: :ok, unwritten: 0}, _said} = order(vm, @info)
      OtherVM.kill(vm)
      {delivered, _info, _said} = next_life(dir)
      assert keys_of(delivered) == Enum.to_list(2_001..2_100)
    end

    test "in a sync lets the writes go on", %{dir: dir, faults: faults, env: env} do
      vm = obedient(dir, @refusing ++ [journal: [dir: dir, sync_ms: 10]], env)
      # The first segment is made, with its reserve.
      {:put, []} = order(vm, put([0]))
      assert {:ok, []} = order(vm, @sync)
      fault(faults, "fdatasync", "hang")

      for key <- 1..10 do
        {:put, []} = order(vm, put([key]))
        assert {:ok, []} = order(vm, @write)
      end

      assert {{:error, :timeout}, []} = order(vm, quote(do: PartitionedBuffer.sync(:journaled, timeout: 50)))

      assert {%{unwritten: 0, synced_ms_ago: _ms}, []} = order(vm, @info)
      mend(faults, "fdatasync")
      assert {:ok, []} = order(vm, @sync)
      OtherVM.kill(vm)
      {delivered, _info, _said} = next_life(dir)
      assert keys_of(delivered) == Enum.to_list(0..10)
    end

    test "lets writes be refused", %{dir: dir, faults: faults, env: env} do
      journal = [dir: dir, max_lag_ms: 50, when_behind: :refuse]
      vm = obedient(dir, @refusing ++ [journal: journal, when_full: :error], env)
      fault(faults, "write", "hang")

      refused =
        quote do
          put = fn put, key ->
            if PartitionedBuffer.Map.put(:journaled, key, 1) == :ok,
              do: put.(put, key + 1),
              else: PartitionedBuffer.Map.put(:journaled, :another, 1)
          end

          put.(put, 1)
        end

      assert {{:error, :journal}, _said} = order(vm, refused)
      mend(faults, "write")
      assert {:ok, []} = order(vm, @sync)

      accepted =
        quote do
          put = fn put ->
            with {:error, :journal} <- PartitionedBuffer.Map.put(:journaled, :another, 1), do: put.(put)
          end

          put.(put)
        end

      assert {:ok, _said} = order(vm, accepted)
      OtherVM.kill(vm)
    end

    for ending <- [quote(do: System.stop(0)), quote(do: System.halt(0))],
        call <- ["write", "fdatasync"] do
      test "does not hold up the end of its VM: #{Macro.to_string(ending)}, #{call}", %{
        dir: dir,
        faults: faults,
        env: env
      } do
        vm = obedient(dir, @refusing ++ [drain_timeout_ms: 0], env)
        fault(faults, unquote(call), "hang")
        {:put, []} = order(vm, put(1..1_000))
        {_result, _said} = order(vm, quote(do: PartitionedBuffer.sync(:journaled, timeout: 50)))
        OtherVM.tell(vm, unquote(Macro.escape(ending)))
        # A VM that does not end is a failure.
        OtherVM.drain(vm)
      end
    end
  end
end
