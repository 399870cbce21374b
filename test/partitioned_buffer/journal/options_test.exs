defmodule PartitionedBuffer.Journal.OptionsTest do
  use PartitionedBuffer.JournalCase, async: true

  defp start(dir, opts),
    do: dir |> journal_options([name: unique_name()] ++ opts) |> PartitionedBuffer.start_link()

  defp error(dir, opts), do: assert_raise(ArgumentError, fn -> start(dir, opts) end).message

  test "a start raises on a wrong :journal, and says what is expected", %{dir: dir} do
    for {journal, expectation} <- [
          {:here, "expected a path or a keyword list, got: :here"},
          {~c"here", "expected a path or a keyword list, got: "},
          {[], "expected dir: the path of a directory, as a string, which is missing in []"},
          {[write_ms: 5],
           "expected dir: the path of a directory, as a string, which is missing in [write_ms: 5]"},
          {"", ~s(expected dir: the path of a directory, as a string, got: "")},
          {"a\0b", ~S(expected dir: the path of a directory, as a string, got: <<97, 0, 98>>)},
          {[dir: :here], "expected dir: the path of a directory, as a string, got: :here"},
          {[dir: dir, write_ms: 0],
           "expected write_ms: a positive integer up to 60000 (milliseconds), got: 0"},
          {[dir: dir, write_ms: 60_001],
           "expected write_ms: a positive integer up to 60000 (milliseconds), got: 60001"},
          {[dir: dir, write_ms: :infinity], "expected write_ms: a positive integer up to 60000"},
          {[dir: dir, sync_ms: 0],
           "expected sync_ms: a positive integer up to 3600000 (milliseconds) or :infinity, got: 0"},
          {[dir: dir, sync_ms: 3_600_001], "expected sync_ms: a positive integer up to 3600000"},
          {[dir: dir, max_bytes: 1_048_575], "expected max_bytes: an integer from 1048576 to "},
          {[dir: dir, max_bytes: :infinity], "expected max_bytes: an integer from 1048576 to "},
          {[dir: dir, when_behind: :raise], "expected when_behind: :accept or :refuse, got: :raise"},
          {[dir: dir, max_lag_ms: 0],
           "expected max_lag_ms: a positive integer up to 4294967295 (milliseconds), got: 0"},
          {[dir: dir, writes_ms: 5], "got: :writes_ms"}
        ] do
      message = error(dir, journal: journal)
      assert message =~ ~r/^invalid value for option :journal of buffer :buffer_\d+: /
      assert message =~ expectation
    end

    assert File.ls!(dir) == []
  end

  test "a start raises if something else does not fit :journal", %{dir: dir} do
    assert error(dir, max_attempts: nil) =~ ":max_attempts"
    options = dir |> journal_options(name: unique_name()) |> Keyword.delete(:max_attempts)

    assert_raise ArgumentError,
                 ~r/option :journal of buffer :\w+ needs :max_attempts: only an outcome/,
                 fn ->
                   PartitionedBuffer.start_link(options)
                 end

    assert error(dir, partitions: 0) =~ ~r/option :journal of buffer :\w+ needs partitions/
    assert error(dir, cluster: true) =~ ~r/option :journal of buffer :\w+ excludes :cluster/
    assert File.ls!(dir) == []
  end

  test "a start without :journal makes no files, and has no journal", %{dir: dir} do
    name = start_journaled(dir, journal: nil)
    PartitionedBuffer.Map.put(name, :key, 1)
    assert PartitionedBuffer.info(name).journal == nil
    assert File.ls!(dir) == []
  end

  test "the limits of the settings are valid, and the first of duplicates counts", %{dir: dir} do
    for settings <- [
          [write_ms: 1, sync_ms: 1, max_bytes: 1_048_576, max_lag_ms: 1],
          [write_ms: 60_000, sync_ms: 3_600_000, max_lag_ms: 4_294_967_295],
          [sync_ms: :infinity, when_behind: :refuse],
          [write_ms: 7, write_ms: 8]
        ] do
      name = start_journaled(dir, journal: [dir: dir] ++ settings)
      journal = PartitionedBuffer.Case.options(name).journal
      assert Map.take(journal, Keyword.keys(settings)) == settings |> Enum.reverse() |> Map.new()
    end
  end

  test "a path alone has the documented defaults, and is made absolute", %{dir: dir} do
    name = start_journaled(dir, journal: Path.join(dir, "a/../"))

    assert Map.from_struct(PartitionedBuffer.Case.options(name).journal) == %{
             dir: dir,
             write_ms: 5,
             sync_ms: 1_000,
             max_bytes: 67_108_864,
             when_behind: :accept,
             max_lag_ms: 10_000
           }

    assert PartitionedBuffer.info(name).journal.dir == path(dir, :map, name)
  end

  test "update_options/2 changes some settings of a running journal, and no others", %{dir: dir} do
    name = start_journaled(dir)
    update = &PartitionedBuffer.update_options(name, journal: &1)
    assert update.(write_ms: 60_000, sync_ms: :infinity) == :ok

    assert %{write_ms: 60_000, sync_ms: :infinity, max_bytes: 67_108_864} =
             PartitionedBuffer.Case.options(name).journal

    assert update.(write_ms: 1, when_behind: :accept) == :ok
    assert %{write_ms: 1, sync_ms: :infinity} = PartitionedBuffer.Case.options(name).journal

    for changes <- [[dir: dir], [max_bytes: 2_000_000], [max_lag_ms: 5], [write_ms: 0], dir, nil, :none] do
      error = assert_raise ArgumentError, fn -> update.(changes) end
      assert error.message =~ ~r/invalid value for option :journal of buffer :#{name}: expected /
    end

    other = start_journaled(dir, journal: nil)

    assert_raise ArgumentError, ~r/cannot set :journal: the buffer was started without it/, fn ->
      PartitionedBuffer.update_options(other, journal: [write_ms: 5])
    end
  end

  test "a shorter write_ms takes effect at once", %{dir: dir} do
    name = start_journaled(dir, journal: [dir: dir, write_ms: 60_000])
    # The first pass is due at the start.
    :ok = PartitionedBuffer.sync(name, level: :written)
    PartitionedBuffer.Map.put(name, :key, 1)
    :ok = PartitionedBuffer.update_options(name, journal: [write_ms: 1])
    await_entries(path(dir, :map, name), [{:key, 1, 0, 0}])
  end

  # The files are written by a thread that sends nobody a message. The test's time is the limit.
  defp await_entries(path, entries) do
    unless match?({:ok, %{entries: ^entries}}, Journal.read(path)), do: await_entries(path, entries)
  end

  test "the directories are 0700 and the files 0600, and its parents are made", %{dir: dir} do
    deep = Path.join(dir, "some/where/deep")
    name = start_journaled(deep)
    PartitionedBuffer.Map.put(name, :key, 1)
    :ok = PartitionedBuffer.sync(name)
    path = path(deep, :map, name)
    mode = fn file -> Bitwise.band(File.stat!(file).mode, 0o777) end

    for made <- [Path.join(dir, "some"), deep, Path.dirname(path), path],
        do: assert({made, mode.(made)} == {made, 0o700})

    files = File.ls!(path)
    assert "lock" in files and Enum.any?(files, &String.ends_with?(&1, ".log"))
    for file <- files, do: assert({file, mode.(Path.join(path, file))} == {file, 0o600})
  end
end
