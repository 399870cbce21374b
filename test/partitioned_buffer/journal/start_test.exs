defmodule PartitionedBuffer.Journal.StartTest do
  # Starts that are refused, and those that are not.
  use PartitionedBuffer.JournalCase, async: true

  import PartitionedBuffer.JournalBlocks

  # The error of a start, whose supervisor ends with it.
  defp start(dir, opts \\ []) do
    Process.flag(:trap_exit, true)

    dir
    |> journal_options(Keyword.put_new_lazy(opts, :name, &unique_name/0))
    |> PartitionedBuffer.start_link()
  end

  defp all_files(dir),
    do: for(path <- Path.wildcard(dir <> "/**"), File.regular?(path), do: {path, File.read!(path)})

  test "a directory that another VM uses is refused after five seconds, and taken when that VM is dead", %{
    dir: dir
  } do
    put = quote(do: PartitionedBuffer.Map.put(:journaled, :key, 1))

    vm =
      life(
        dir,
        [],
        quote(
          do:
            (
              unquote(put)
              :ok = PartitionedBuffer.sync(:journaled)
              say(:synced)
            )
        )
      )

    assert OtherVM.hear(vm) == :synced
    before = System.monotonic_time(:millisecond)
    assert start(dir, name: :journaled) == {:error, {:journal, :locked}}
    assert System.monotonic_time(:millisecond) - before >= 5_000
    refute PartitionedBuffer.Buffer.Lookup.supervisor(:journaled)
    assert Journal.delete(path(dir)) == {:error, :locked}
    # What is read meanwhile changes nothing.
    assert entries(path(dir)) == [{:key, 1, 0, 0}]
    # The dying VM is waited for.
    starting = Task.async(fn -> start_elsewhere(dir) end)
    OtherVM.kill(vm)
    assert Task.await(starting, 60_000) == [{:key, 1, 0, 0}]
  end

  defp start_elsewhere(dir) do
    {entries, _info, _said} = next_life(dir)
    entries
  end

  test "two names with one directory have a journal each", %{dir: dir} do
    names = [start_journaled(dir), start_journaled(dir)]
    for name <- names, do: PartitionedBuffer.Map.put(name, :key, name)
    for name <- names, do: assert(PartitionedBuffer.sync(name) == :ok)
    for name <- names, do: assert(entries(path(dir, :map, name)) == [{:key, name, 0, 0}])
  end

  test "two ways to one directory are one directory", %{dir: dir} do
    name = start_journaled(dir)
    File.ln_s!(dir, Path.join(dir, "way"))
    File.ln_s!(Path.join(dir, "#{name}"), Path.join(dir, "other"))
    assert start(Path.join(dir, "way"), name: :other) == {:error, {:journal, :locked}}
  end

  test "a file in the place of the directory is :enotdir, and stays", %{dir: dir} do
    File.write!(Path.join(dir, "file"), "mine")
    assert start(Path.join(dir, "file")) == {:error, {:journal, :enotdir}}
    name = unique_name()
    File.write!(Path.join(dir, "#{name}"), "mine")
    assert start(dir, name: name) == {:error, {:journal, :enotdir}}
    assert Enum.map(all_files(dir), &elem(&1, 1)) == ["mine", "mine"]
  end

  test "a directory without permission is :eacces", %{dir: dir} do
    closed = Path.join(dir, "closed")
    File.mkdir!(closed)
    File.chmod!(closed, 0o500)

    # The system refuses root nothing, so another user starts the buffer.
    vm =
      OtherVM.start(
        quote do
          :logger.set_primary_config(:level, :none)
          {:ok, _started} = Application.ensure_all_started(:partitioned_buffer)
          Process.flag(:trap_exit, true)
          options = unquote(Macro.escape(journal_options(closed, processor: {__MODULE__, :unused, []})))
          say(PartitionedBuffer.start_link(options))
        end,
        user: if(user() == "0", do: 65_534)
      )

    assert OtherVM.hear(vm) == {:error, {:journal, :eacces}}
    assert OtherVM.await_end(vm) == 0
    assert File.ls!(closed) == []
  end

  defp user, do: "id" |> System.cmd(["-u"]) |> elem(0) |> String.trim()

  test "a newer format is refused, and nothing is changed", %{dir: dir} do
    live_and_die(dir, [], quote(do: PartitionedBuffer.Map.put(:journaled, :key, 1)))
    File.write!(segment(path(dir), 9), block(9, 9, 0, "something new"))
    before = all_files(dir)
    assert length(before) >= 3
    assert start(dir, name: :journaled) == {:error, {:journal, {:format, 9}}}
    assert Journal.read(path(dir)) == {:error, {:format, 9}}
    assert all_files(dir) == before
    # Without it the start succeeds.
    File.rm!(segment(path(dir), 9))
    assert {[{:key, 1, 0, 0}], _info, _said} = next_life(dir)
  end

  test "a damaged file does not stop a start, is kept, and is counted", %{dir: dir} do
    writes =
      quote(
        do:
          for(
            key <- 1..3,
            do:
              (
                PartitionedBuffer.Map.put(:journaled, key, key)
                :ok = PartitionedBuffer.sync(:journaled)
              )
          )
      )

    live_and_die(dir, [], writes)
    [file] = Path.wildcard(path(dir) <> "/*.log")
    # A byte of the second of the blocks.
    before = File.read!(file)
    [_first, {second, _}, _third | _] = :binary.matches(before, "PBJ")
    <<head::binary-size(second + 40), byte, rest::binary>> = before
    File.write!(file, <<head::binary, Bitwise.bxor(byte, 1), rest::binary>>)
    damaged = File.read!(file)

    assert {:ok, %{damaged: [{^file, ^second, bytes}], torn_bytes: 0, entries: read}} =
             Journal.read(path(dir))

    assert Enum.sort(read) == [{1, 1, 0, 0}, {3, 3, 0, 0}]
    test = self()
    name = :journaled
    handler = {__MODULE__, dir}

    :telemetry.attach(handler, [:partitioned_buffer, :journal, :replay], &__MODULE__.forward/4, {test, dir})
    on_exit(fn -> :telemetry.detach(handler) end)
    assert start_journaled(dir, name: name) == name

    assert_receive {:replay, %{entries: 2, damaged_bytes: ^bytes, torn_bytes: 0, damaged_records: 0},
                    %{buffer: ^name}}

    assert PartitionedBuffer.info(name).journal.replayed == 2
    assert :ok = PartitionedBuffer.flush(name)
    assert_receive {:batch, batch}
    assert Enum.sort(batch) == Enum.sort(read)
    :ok = PartitionedBuffer.stop(name)
    assert [kept] = Path.wildcard(path(dir) <> "/*.damaged")
    assert File.read!(kept) == damaged
    assert Enum.sort(File.ls!(path(dir))) == Enum.sort([Path.basename(kept), "lock"])
  end

  def forward(_event, measurements, metadata, {test, dir}) do
    if String.starts_with?(metadata.dir, dir), do: send(test, {:replay, measurements, metadata})
  end

  test "a torn tail and a tail of zeros are left out and counted, and no damage", %{dir: dir} do
    for {tail, number} <-
          Enum.with_index([<<0::1_000-unit(8)>>, "PBJ", binary_part(block(1, 1, 0, "torn"), 0, 20)]) do
      own = Path.join(dir, "#{number}")
      live_and_die(own, [], quote(do: PartitionedBuffer.Map.put(:journaled, :key, 1)))
      [file] = Path.wildcard(path(own) <> "/*.log")
      File.write!(file, tail, [:append])
      size = byte_size(tail)
      assert {:ok, %{damaged: [], torn_bytes: ^size, entries: [{:key, 1, 0, 0}]}} = Journal.read(path(own))
      assert {[{:key, 1, 0, 0}], _info, _said} = next_life(own)
      assert File.ls!(path(own)) == ["lock"]
    end
  end

  test "a VM that was killed while it began a segment leaves no damage", %{dir: dir} do
    live_and_die(dir, [], quote(do: PartitionedBuffer.Map.put(:journaled, :key, 1)))
    torn = binary_part(block(1, 99, 0, "a block that was not written to its end"), 0, 50)
    File.write!(segment(path(dir), 99), torn)
    assert {:ok, %{damaged: [], torn_bytes: 50, entries: [{:key, 1, 0, 0}]}} = Journal.read(path(dir))
    assert {[{:key, 1, 0, 0}], _info, _said} = next_life(dir)
    assert File.ls!(path(dir)) == ["lock"]
  end

  test "a tree that was killed, or started again in the VM, replays nothing", %{dir: dir} do
    name = start_journaled(dir)
    PartitionedBuffer.Map.put(name, :key, 1)
    :ok = PartitionedBuffer.sync(name)
    PartitionedBuffer.Case.kill_tree(name)
    assert start_journaled_again(dir, name) == name
    assert %{size: 1, journal: %{replayed: 0}} = PartitionedBuffer.info(name)
    :ok = PartitionedBuffer.stop(name, :normal, :infinity, leftovers: :keep)
    assert_receive {:batch, [{:key, 1, 0, 0}]}
    refute_received {:batch, _again}
  end

  defp start_journaled_again(dir, name) do
    {:ok, _pid} = dir |> journal_options(name: name) |> PartitionedBuffer.start_link()
    name
  end

  test "a changed or removed :journal needs a buffer that holds nothing", %{dir: dir} do
    name = unique_name()
    refuse = [name: name, processor: fn _batch -> {:error, :down} end, drain_timeout_ms: 0]
    {:ok, pid} = dir |> journal_options(refuse) |> PartitionedBuffer.start_link()
    PartitionedBuffer.Map.put(name, :key, 1)
    :ok = PartitionedBuffer.stop(pid, :normal, :infinity, leftovers: :keep)

    for journal <- [nil, Path.join(dir, "other")] do
      assert {:error, {:journal, reason}} = start(dir, refuse ++ [journal: journal])
      assert reason == :held
    end

    # The entry is there, and goes; then all is allowed.
    {:ok, pid} = start(dir, name: name)
    :ok = PartitionedBuffer.flush(name)
    assert_receive {:batch, [{:key, 1, 0, 0}]}
    :ok = PartitionedBuffer.stop(pid)
    {:ok, pid} = start(dir, name: name, journal: Path.join(dir, "other"))
    assert PartitionedBuffer.info(name).journal.dir == path(Path.join(dir, "other"), :map, name)
    :ok = PartitionedBuffer.stop(pid)
    {:ok, _pid} = start(dir, name: name, journal: nil)
    assert PartitionedBuffer.info(name).journal == nil
  end

  test "a buffer with entries gets no journal", %{dir: dir} do
    name = unique_name()
    refuse = [name: name, processor: fn _batch -> {:error, :down} end, drain_timeout_ms: 0]
    {:ok, pid} = start(dir, refuse ++ [journal: nil])
    PartitionedBuffer.Map.put(name, :key, 1)
    :ok = PartitionedBuffer.stop(pid, :normal, :infinity, leftovers: :keep)
    assert {:error, {:journal, :held}} = start(dir, refuse)
  end
end
