defmodule PartitionedBuffer.MemoryTest do
  # Not async, since it looks at the memory of the whole VM.
  use PartitionedBuffer.Case, async: false

  @mib 1024 * 1024

  # By how much the bytes of the library may differ between two looks: blocks of the reclaimer's queue, and the table of
  # waiting threads, which is made when a thread waits for the first time.
  @own_bytes 16_384

  describe "the memory of integers and atoms" do
    test "is that of their entries, without an environment" do
      buffer = start_buffer(partitions: 1)
      %{environments: before} = reclaimed()
      for n <- 1..5_000, do: Buffer.put(buffer, n, :atom)
      Buffer.put_all(buffer, for(n <- 1..5_000, do: {n, -n}))
      assert %{environments: ^before} = PartitionedBuffer.memory()
      Buffer.put(buffer, 1, {1})
      assert PartitionedBuffer.memory().environments == before + 1
    end
  end

  describe "the memory of a map" do
    test "stays flat while a key is overwritten a million times with 32 kB" do
      buffer = start_buffer()
      binary = :crypto.strong_rand_bytes(32_768)

      growth =
        growth(100, fn round ->
          for n <- 1..10_000, do: Buffer.put(buffer, :key, <<round::32, n::32, binary::binary>>)
        end)

      assert growth < 16 * @mib
      assert <<100::32, 10_000::32, ^binary::binary>> = Buffer.get(buffer, :key)
    end

    test "stays flat while ten keys are overwritten with terms of 32 kB" do
      buffer = start_buffer()
      list = Enum.to_list(1..2_000)

      growth =
        growth(10, fn round ->
          for n <- 1..5_000, do: Buffer.put_newer(buffer, rem(n, 10), [n | list], round * 5_000 + n)
        end)

      assert growth < 32 * @mib
      assert Buffer.size(buffer) == 10
    end

    test "stays flat while one large value among many small ones is overwritten" do
      buffer = start_buffer()
      Buffer.put_all(buffer, for(n <- 1..10_000, do: {n, {n}}))
      binary = :binary.copy("x", @mib)

      growth =
        growth(20, fn round ->
          for n <- 1..100 do
            Buffer.put(buffer, :large, %{body: <<n::32, binary::binary>>})
            Buffer.put_all(buffer, for(m <- 1..20, do: {rem(n * 20 + m, 10_000), {round}}))
          end
        end)

      # One copy in 32 is weighed until a large one is met. So 32 large ones may be in the open segment.
      assert growth < 128 * @mib, "grew by #{div(growth, @mib)} MiB"
    end

    test "keeps no dead large values because of small ones written among them" do
      buffer = start_buffer(partitions: 1)
      list = Enum.to_list(1..2_000)
      binary = :binary.copy("x", 32_000)
      large = [&[&1 | list], &%{body: <<&1::32, binary::binary>>}]
      before = memory()

      # The small ones, 10 MB, stay. The large ones, 1.2 GB, die, some in each segment.
      for {large, number} <- Enum.with_index(large), every <- [2, 20, 200], n <- 1..40_000 do
        Buffer.put(buffer, {number, every, n}, {n})
        if rem(n, every) == 0, do: Buffer.put(buffer, {:large, number}, large.(n))
      end

      growth = memory() - before
      assert Buffer.size(buffer) == 240_002
      assert growth < 64 * @mib, "grew by #{div(growth, @mib)} MiB"
    end

    test "keeps only few dead values whose size nobody can tell" do
      buffer = start_buffer(partitions: 1)

      large = [
        bits: fn n -> <<n::32, 0::size(8_000_000), 1::1>> end,
        function: fn n -> captured(:binary.copy(<<n::32>>, 250_000)) end,
        unaligned: fn n -> unaligned(<<1::1, n::32, 0::size(8_000_000), 1::7>>) end
      ]

      for {key, large} <- large do
        :erlang.garbage_collect()
        before = :erlang.memory(:binary)

        growths =
          for n <- 1..200 do
            Buffer.put(buffer, key, large.(n))
            :erlang.garbage_collect()
            :erlang.memory(:binary) - before
          end

        assert Enum.max(growths) < 24 * @mib, "#{key}: grew by #{div(Enum.max(growths), @mib)} MiB"
      end
    end

    test "stays flat while keys come and go" do
      buffer = start_buffer()

      growth =
        growth(20, fn round ->
          for n <- 1..5_000, do: Buffer.put(buffer, {round, n, "some key"}, %{n: n})
          for n <- 1..5_000, do: Buffer.delete(buffer, {round, n, "some key"})
        end)

      assert growth < 8 * @mib
    end

    test "is the same after every flush" do
      name = unique_name()
      start_buffer(name: name, processor: fn _batch -> :ok end, processing_batch_size: 1_000)
      fill(name, 1_000)
      flush(name)
      %{bytes: first, environments: held} = reclaimed()

      for _ <- 1..500 do
        fill(name, 20)
        flush(name)
        # A partition's process may refer to its last flushes.
        for partition <- partitions(name), do: :erlang.garbage_collect(Process.whereis(partition))
        assert %{bytes: bytes, environments: ^held} = reclaimed()
        assert_in_delta bytes, first, @own_bytes
      end

      fill(name, 50_000)
      assert %{bytes: bytes, environments: environments} = PartitionedBuffer.memory()
      assert bytes - first > 50_000 * 24
      assert environments - held > 50_000 / 256
      flush(name)
      assert %{bytes: bytes, environments: ^held} = reclaimed()
      assert_in_delta bytes, first, @own_bytes
    end

    test "keeps no binary that was flushed, stopped, deleted or overwritten" do
      buffers = for _ <- 1..5, do: start_buffer(processor: fn _batch -> :ok end)
      [flushed, stopped, deleted, overwritten, held] = buffers

      for {buffer, n} <- Enum.with_index(buffers) do
        binary = :binary.copy(<<n>>, 4 * @mib)
        Buffer.put(buffer, :key, %{part: binary_part(binary, 1, 1_000_000), of: [binary]})
      end

      memory()
      before = :erlang.memory(:binary)
      assert before > 5 * 4 * @mib
      flush(flushed)
      stop_supervised!(stopped)
      Buffer.delete(deleted, :key)
      Buffer.put(overwritten, :key, :other)
      reclaimed()
      await_binaries(before - 4 * 4 * @mib)
      assert %{of: [binary]} = Buffer.get(held, :key)
      assert byte_size(binary) == 4 * @mib
    end
  end

  describe "the memory of a queue" do
    test "holds no item after a flush" do
      queue = start_buffer(module: PartitionedBuffer.Queue, processor: fn _batch -> :ok end)

      push = fn ->
        PartitionedBuffer.Queue.push(queue, for(n <- 1..200, do: {n, :binary.copy("x", 1_000)}))
      end

      push.()
      flush(queue)
      %{bytes: first, environments: held} = reclaimed()

      for _ <- 1..100 do
        push.()
        assert PartitionedBuffer.memory().environments > held
        flush(queue)
        assert %{bytes: bytes, environments: ^held} = reclaimed()
        assert_in_delta bytes, first, @own_bytes
      end
    end
  end

  describe "the memory of a name" do
    test "stays the same over 1,000 restarts, as do atoms, processes and tables" do
      name = unique_name()

      cycle = fn ->
        {:ok, _pid} =
          Buffer.start_link(
            name: name,
            processor: fn _batch -> :ok end,
            partitions: 2,
            processing_batch_size: 100
          )

        fill(name, 20)
        Buffer.stop(name)
      end

      for _ <- 1..100, do: cycle.()
      counts = fn -> {:erlang.system_info(:atom_count), length(Process.list()), length(:ets.all())} end
      %{bytes: first, environments: held} = reclaimed()
      memory = memory()
      resident = resident()

      check = fn ->
        cycle.()
        assert %{bytes: bytes, environments: ^held} = reclaimed()
        assert_in_delta bytes, first, @own_bytes
      end

      # The first check and the first counts load modules, or let the VM make atoms.
      check.()
      before = counts.()
      for _ <- 1..1_000, do: check.()
      assert counts.() == before
      assert memory() < memory + @mib
      # 1.3 GB of binaries and 50 MB of other terms were written.
      assert resident() < resident + 32 * @mib
    end

    test "takes no more than is documented" do
      %{bytes: before, environments: held} = reclaimed()

      for _ <- 1..100 do
        {:ok, _pid} =
          Buffer.start_link(name: name = unique_name(), processor: fn _batch -> :ok end, partitions: 2)

        fill(name, 20)
        Buffer.stop(name)
      end

      assert %{bytes: bytes, environments: ^held} = reclaimed()
      # Each scheduler may keep room for a batch, since its first one.
      threads = System.schedulers() + :erlang.system_info(:dirty_cpu_schedulers)
      kept = threads * 8_192
      # A name has two partitions, and the place for a third.
      assert (bytes - kept - before) / 100 < 3 * 4_096
    end
  end

  describe "a write that replaces a long list" do
    test "takes no longer because of its length" do
      buffer = start_buffer(partitions: 1)
      # After a heavy value all values are weighed.
      for _ <- 1..100, do: Buffer.put(buffer, :key, Enum.to_list(1..2_000))
      list = Enum.to_list(1..3_000_000)

      times =
        for _ <- 1..10 do
          Buffer.put(buffer, :key, list)
          {microseconds, :ok} = :timer.tc(fn -> Buffer.put(buffer, :key, 1) end)
          microseconds
        end

      # The shortest call was not interrupted. To count the list would take some milliseconds.
      assert Enum.min(times) < 1_000
    end
  end

  describe "a call on a buffer" do
    test "takes no longer though its processor captures 10 MB" do
      large = for n <- 1..150_000, do: {n, n, n}
      processor = fn _batch -> if large == [], do: :ok, else: {:error, :down} end
      full = [max_size: 1, when_full: :error, full_timeout_ms: 0]

      buffer =
        start_buffer([processor: processor, partitions: 1, max_attempts: 1, drain_timeout_ms: 0] ++ full)

      Buffer.put(buffer, :key, 1)

      # To copy the function would take some milliseconds.
      assert shortest(fn -> {:error, :full} = Buffer.put(buffer, :other, 1) end) < 1_000
      assert shortest(fn -> Buffer.info(buffer) end) < 1_000
      assert shortest(fn -> Buffer.update_options(buffer, processing_batch_size: 7) end) < 1_000
    end

    test "takes no longer though there are 100,000 registered names" do
      opts = buffer_options(partitions: 1, max_attempts: 1)
      {others, ref} = register_names(100_000)

      # To look through the names would take longer.
      start_and_stop = fn ->
        {:ok, _pid} = Buffer.start_link(opts)
        Buffer.stop(opts[:name])
      end

      assert shortest(start_and_stop) < 50_000
      {:ok, _pid} = Buffer.start_link(opts)
      assert shortest(fn -> PartitionedBuffer.emit_info(:all) end) < 3_000
      Buffer.stop(opts[:name])
      Process.exit(others, :shutdown)
      assert_receive {:DOWN, ^ref, :process, ^others, :shutdown}, 60_000
    end
  end

  # All processes with these names end with the first one.
  defp register_names(count) do
    test = self()

    others =
      spawn_monitor(fn ->
        for n <- 1..count do
          spawn_link(fn ->
            Process.register(self(), :"registered_name_#{n}")
            :proc_lib.hibernate(Function, :identity, [:never])
          end)
        end

        send(test, :spawned)
        receive(do: (:never -> :ok))
      end)

    assert_receive :spawned, 60_000
    await_name(:"registered_name_#{count}")
    others
  end

  defp await_name(name), do: Process.whereis(name) || await_name(name)

  # The microseconds of the shortest of ten calls, which was perhaps not interrupted.
  defp shortest(function), do: Enum.min(for _ <- 1..10, do: function |> :timer.tc() |> elem(0))

  defp captured(term), do: fn -> term end

  # A binary that begins at the second bit of a byte.
  defp unaligned(<<_::1, binary::binary-size(1_000_004), _::bits>>), do: binary

  # How many bytes the memory of the VM and the library grows at most. It is looked at after each round.
  defp growth(rounds, function) do
    function.(0)
    before = memory()
    Enum.reduce(1..rounds, 0, fn round, largest -> function.(round) && max(largest, memory() - before) end)
  end

  defp memory do
    :erlang.garbage_collect()
    :erlang.memory(:total)
  end

  # Waits until the binaries of the VM have about this many bytes. The heap of a task is freed some time after the task has
  # ended, and nobody is told.
  defp await_binaries(expected, tries \\ 500) do
    memory()

    if abs(:erlang.memory(:binary) - expected) > @mib do
      assert tries > 0, "#{:erlang.memory(:binary)} bytes of binaries, about #{expected} expected"
      receive(after: (10 -> await_binaries(expected, tries - 1)))
    end
  end

  # Writes values of all kinds that are outside of a heap, or that keep something else alive.
  defp fill(buffer, count) do
    large = :binary.copy(<<count>>, 65_536)

    entries =
      for n <- 1..count do
        {{n, "key"},
         {make_ref(), fn -> {n, large} end, binary_part(large, 0, 1_000), <<1::7>>, [self(), 1.5]}}
      end

    Buffer.put_all(buffer, entries)
    Buffer.put_newer(buffer, {1, "key"}, large, 1)
    Buffer.put_newer(buffer, {2, "key"}, {large, large}, Integer.pow(2, 70))
    Buffer.delete(buffer, {3, "key"})
  end

  # The memory of the library when nothing is left to free.
  defp reclaimed do
    PartitionedBuffer.Native.await_reclaimed()
    PartitionedBuffer.memory()
  end

  # The bytes of the VM's process that are in main memory.
  defp resident do
    :erlang.garbage_collect()
    status = File.read!("/proc/self/status")
    [_line, kilobytes] = Regex.run(~r/VmRSS:\s*(\d+) kB/, status)
    String.to_integer(kilobytes) * 1024
  end
end
