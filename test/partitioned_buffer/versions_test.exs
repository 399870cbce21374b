defmodule PartitionedBuffer.VersionsTest do
  use PartitionedBuffer.Case, async: true

  alias PartitionedBuffer.{Native, VM}

  defp start(versions, opts \\ []), do: start_buffer([versions: versions, partitions: 1] ++ opts)

  defp version(buffer, key) do
    {:ok, _value, version} = Buffer.fetch(buffer, key, version: true)
    version
  end

  # A version is a time in microseconds, times 128.
  defp now, do: System.os_time(:microsecond) * 128

  defp batch(buffer) do
    :ok = PartitionedBuffer.flush(buffer)
    assert_receive {:batch, batch}
    Enum.sort(batch)
  end

  describe "versions: :clock" do
    test "gives each write the time as its version, and the processor gets it" do
      buffer = start(:clock)
      earliest = now()
      Buffer.put(buffer, :a, 1)
      Buffer.put_all(buffer, b: 1, c: 1)
      Buffer.put_new(buffer, :d, 1)
      Buffer.put(buffer, :e, 1, partition_key: :any)
      latest = now() + 128

      batch = batch(buffer)
      assert [:a, :b, :c, :d, :e] == for({key, 1, _version, 0} <- batch, do: key)
      for {_key, _value, version, _updates} <- batch, do: assert(version in earliest..latest)
    end

    test "keeps the last write of a key, counts the replacements, and lets its versions grow" do
      buffer = start(:clock)

      versions =
        for value <- 1..1_000 do
          if rem(value, 2) == 0,
            do: Buffer.put(buffer, :key, value),
            else: Buffer.put_all(buffer, key: value)

          version(buffer, :key)
        end

      assert versions == versions |> Enum.sort() |> Enum.uniq()
      assert [{:key, 1_000, List.last(versions), 999}] == batch(buffer)
    end

    test "lets the versions of a key grow from flush to flush and from start to start" do
      opts = [versions: :clock, partitions: 1, name: unique_name()]
      put = fn buffer -> Buffer.put(buffer, :key, 1) && version(buffer, :key) end

      versions =
        for _start <- 1..3 do
          {:ok, supervisor} = Buffer.start_link(buffer_options(opts))
          versions = for _flush <- 1..3, do: {put.(opts[:name]), batch(opts[:name])} |> elem(0)
          PartitionedBuffer.stop(supervisor)
          versions
        end

      assert List.flatten(versions) == versions |> List.flatten() |> Enum.sort() |> Enum.uniq()
    end

    test "keeps the order of the writes of many processes" do
      buffer = start(:clock)

      seen =
        for writer <- 1..8 do
          Task.async(fn -> for number <- 1..500, do: write(buffer, writer, number) end)
        end
        |> Task.await_many()

      # Each writer sees its own version or a greater one, never a smaller one.
      for versions <- seen, do: assert(versions == Enum.sort(versions))
      assert [{:key, {_writer, 500}, version, 3_999}] = batch(buffer)
      assert version >= seen |> List.flatten() |> Enum.max()
    end

    defp write(buffer, writer, number) do
      Buffer.put(buffer, :key, {writer, number})
      version(buffer, :key)
    end

    test "refuses versions of the caller, and writes nothing" do
      buffer = start(:clock)

      for write <- [
            fn -> Buffer.put_newer(buffer, :a, 1, 2) end,
            fn -> Buffer.put_newer(buffer, :a, 1, 2, stale: :error) end,
            fn -> Buffer.put_all_newer(buffer, [{:a, 1, 2}]) end,
            fn -> Buffer.put_all_newer(buffer, [{:a, 1, 2}], partition_key: :x) end
          ] do
        assert_raise ArgumentError, ~r/#{inspect(buffer)}.*versions: :clock.*expected put/, write
      end

      assert Buffer.size(buffer) == 0
    end

    test "retries a failed entry with its version, unless a newer one waits" do
      test = self()

      processor = fn batch ->
        send(test, {:batch, self(), batch})

        receive do
          {:return, outcome} -> outcome
        after
          5_000 -> :ok
        end
      end

      buffer = start(:clock, processor: processor, max_attempts: :infinity, retry_backoff_ms: {0, 0})
      for key <- [:a, :b], do: Buffer.put(buffer, key, 1)
      {a, b} = {version(buffer, :a), version(buffer, :b)}
      PartitionedBuffer.flush(buffer, async: true)
      assert_receive {:batch, task, batch}
      # In flight, both are seen.
      assert {version(buffer, :a), version(buffer, :b)} == {a, b}
      Buffer.put(buffer, :a, 2)
      assert version(buffer, :a) > a
      newer = version(buffer, :a)
      send(task, {:return, {:error, :refused, batch}})

      retried =
        for _batch <- 1..2 do
          assert_receive {:batch, task, [entry]}
          send(task, {:return, :ok})
          entry
        end

      assert Enum.sort(retried) == [{:a, 2, newer, 0}, {:b, 1, b, 0}]
    end

    test "replaces only what is older" do
      name = unique_name()
      {:ok, supervisor} = Buffer.start_link(buffer_options(name: name, partitions: 1))
      future = now() * 2
      Buffer.put_newer(name, :future, 1, future)
      Buffer.put_newer(name, :past, 1, 5)
      # Killed, so the entries wait for the next start.
      Process.unlink(supervisor)
      kill_tree(name)
      start(:clock, name: name)
      for key <- [:future, :past], do: Buffer.put(name, key, 2)
      assert [{:future, 1, ^future, 0}, {:past, 2, _version, 1}] = batch(name)
      assert PartitionedBuffer.info(name).totals.stale == 1
    end

    # The shift holds for the whole VM, so it runs in another one.
    @tag :tmp_dir
    test "follows a wall clock that goes forward, and not one that goes back", %{tmp_dir: dir} do
      output = dir |> VM.copy_package(VM.library()) |> VM.elixir!("clock.exs", [])

      [[first, start], [ahead, _], [back, _], [last, time]] =
        for line <- String.split(output, "\n", trim: true),
            do: line |> String.split() |> Enum.map(&String.to_integer/1)

      assert first in (start - 128_000_000)..start
      assert ahead - first >= 5_000_000 * 128
      assert [ahead, back, last] == Enum.sort([ahead, back, last])
      assert last - ahead < 1_000 and last > time
    end
  end

  describe "versions: :own" do
    test "takes writes with versions, and refuses all others" do
      buffer = start(:own)
      Buffer.put_newer(buffer, :a, 1, 5)
      Buffer.put_all_newer(buffer, [{:a, 2, 6}, {:b, 1, -1}])

      for write <- [
            fn -> Buffer.put(buffer, :a, 3) end,
            fn -> Buffer.put(buffer, :a, 3, partition_key: :x) end,
            fn -> Buffer.put_new(buffer, :c, 3) end,
            fn -> Buffer.put_all(buffer, a: 3) end,
            fn -> Buffer.put_all(buffer, Stream.map([a: 3], & &1)) end
          ] do
        assert_raise ArgumentError, ~r/#{inspect(buffer)}.*versions: :own.*expected put_newer/, write
      end

      assert [{:a, 2, 6, 1}, {:b, 1, -1, 0}] == batch(buffer)
    end
  end

  describe "the option :versions" do
    test "is one of maps, and takes two values" do
      for {module, versions, message} <- [
            {PartitionedBuffer.Queue, :clock, ~r/PartitionedBuffer.Map only: a queue has no versions/},
            {PartitionedBuffer.Counter, :own, ~r/PartitionedBuffer.Map only: a counter has no versions/},
            {PartitionedBuffer.Map, :wall, ~r/expected :clock or :own, got: :wall/}
          ] do
        assert_raise ArgumentError, message, fn ->
          module.start_link(buffer_options(versions: versions))
        end
      end

      buffer = start(:clock)

      assert_raise ArgumentError, ~r/:versions/, fn ->
        PartitionedBuffer.update_options(buffer, versions: :own)
      end
    end
  end

  describe "fetch/3 with version: true" do
    test "returns the version of any size, and :error for a missing key" do
      buffer = start_buffer(max_attempts: 1)
      big = 2 ** 100
      Buffer.put_newer(buffer, :big, "value", big)
      Buffer.put_newer(buffer, :large, String.duplicate("x", 100) |> List.duplicate(5_000), -big)
      Buffer.put(buffer, :plain, 1)
      assert Buffer.fetch(buffer, :big, version: true) == {:ok, "value", big}
      assert {:ok, [_ | _], version} = Buffer.fetch(buffer, :large, version: true)
      assert version == -big
      assert Buffer.fetch(buffer, :plain, version: true) == {:ok, 1, 0}
      assert Buffer.fetch(buffer, :plain, version: false) == {:ok, 1}
      assert Buffer.fetch(buffer, :missing, version: true) == :error
      assert_raise ArgumentError, ~r/:version.*boolean/, fn -> Buffer.fetch(buffer, :big, version: 1) end

      assert_raise ArgumentError, ~r/not running/, fn ->
        Buffer.fetch(unique_name(), :big, version: true)
      end
    end
  end

  test "open/7 takes known sources only" do
    name = unique_name()

    for source <- [:wall, nil, 1],
        do:
          assert_raise(ArgumentError, fn ->
            Native.open(name, :map, 1, false, true, source, {:infinity, :infinity})
          end)
  end
end
