defmodule PartitionedBuffer.Journal.RestartTest do
  # What a killed VM leaves, and the next one has.
  use PartitionedBuffer.JournalCase, async: true

  alias PartitionedBuffer.JournalTerms

  @refusing [processor: {PartitionedBuffer.JournalCase, :refuse, []}]
  @burying [dead_letter: {PartitionedBuffer.JournalCase, :bury, []}]

  # What a VM says of its buffer after the replay.
  defp ask(dir, opts, code) do
    vm = life(dir, opts, quote(do: say({:answer, unquote(code)})))
    assert {:answer, answer} = OtherVM.hear(vm)
    OtherVM.kill(vm)
    answer
  end

  describe "a map" do
    test "has its values, versions and updates again", %{dir: dir} do
      live_and_die(
        dir,
        [],
        quote do
          PartitionedBuffer.Map.put(:journaled, :put, 1)
          PartitionedBuffer.Map.put(:journaled, :put, 2)
          for version <- [3, 7, 5], do: PartitionedBuffer.Map.put_newer(:journaled, :newer, version, version)

          for version <- [2 ** 64, 2 ** 70],
              do: PartitionedBuffer.Map.put_newer(:journaled, :above, version, version)

          for version <- [-(2 ** 80), -(2 ** 70)],
              do: PartitionedBuffer.Map.put_newer(:journaled, :below, version, version)

          PartitionedBuffer.Map.put_newer(:journaled, :first, 1, -1)
        end
      )

      expected = [
        {:above, 2 ** 70, 2 ** 70, 1},
        {:below, -(2 ** 70), -(2 ** 70), 1},
        {:first, 1, -1, 0},
        {:newer, 7, 7, 1},
        {:put, 2, 0, 0}
      ]

      assert Enum.sort(entries(path(dir))) == expected
      {delivered, info, _said} = next_life(dir)
      assert Enum.sort(delivered) == expected
      assert %{size: 5, in_flight: 0, retrying: 0, journal: %{replayed: 5, state: :ok}} = info
      assert info.totals |> Map.values() |> Enum.sum() == 0
      assert File.ls!(path(dir)) == ["lock"]
    end

    test "refuses versions that are not above the replayed one, and takes others", %{dir: dir} do
      versions = [7, 2 ** 70, -(2 ** 70)]

      live_and_die(
        dir,
        [],
        quote(do: for(v <- unquote(versions), do: PartitionedBuffer.Map.put_newer(:journaled, v, :old, v)))
      )

      answer =
        ask(
          dir,
          [],
          quote do
            for v <- unquote(versions), version <- [v - 1, v, v + 1] do
              PartitionedBuffer.Map.put_newer(:journaled, v, :new, version, stale: :error)
            end
          end
        )

      assert answer == List.flatten(List.duplicate([{:error, :stale}, {:error, :stale}, :ok], 3))
    end

    test "has no deleted entries, nor those that newer ones replaced", %{dir: dir} do
      live_and_die(
        dir,
        [],
        quote do
          for key <- 1..100, do: PartitionedBuffer.Map.put(:journaled, key, :old)
          :ok = PartitionedBuffer.sync(:journaled)
          for key <- 1..50, do: PartitionedBuffer.Map.delete(:journaled, key)
          for key <- 41..60, do: PartitionedBuffer.Map.put(:journaled, key, :new)
        end
      )

      expected = for(key <- 41..60, do: {key, :new, 0, 0}) ++ for(key <- 61..100, do: {key, :old, 0, 0})
      assert Enum.sort(entries(path(dir))) == expected
      {delivered, _info, _said} = next_life(dir)
      assert Enum.sort(delivered) == expected
    end

    test "has no entry whose delete and whose flush came together", %{dir: dir} do
      # No pass is between the delete and the flush, whose processor hangs: the first one after them is that
      # for which the flush waits.
      opts = [processor: {PartitionedBuffer.JournalCase, :hang, []}, journal: [dir: dir, write_ms: 60_000]]

      vm =
        life(
          dir,
          opts,
          quote do
            for key <- 1..100, do: PartitionedBuffer.Map.put(:journaled, key, key)
            :ok = PartitionedBuffer.sync(:journaled)
            for key <- 1..99, do: PartitionedBuffer.Map.delete(:journaled, key)
            PartitionedBuffer.flush(:journaled, async: true)
          end
        )

      assert {:hangs, [{100, 100, 0, 0}]} = OtherVM.hear(vm)
      OtherVM.kill(vm)
      assert [{100, 100, 0, 0}] = entries(path(dir))
    end

    test "has no entry if all were deleted before their flush", %{dir: dir} do
      live_and_die(
        dir,
        [journal: [dir: dir, write_ms: 60_000]],
        quote do
          for key <- 1..100, do: PartitionedBuffer.Map.put(:journaled, key, key)
          :ok = PartitionedBuffer.sync(:journaled)
          for key <- 1..100, do: PartitionedBuffer.Map.delete(:journaled, key)
          PartitionedBuffer.flush(:journaled)
          # The log stays while it has entries.
          PartitionedBuffer.Map.put(:journaled, :other, 1)
        end
      )

      assert entries(path(dir)) == [{:other, 1, 0, 0}]
    end

    test "has no deleted entry that was in flight", %{dir: dir} do
      live_and_die(
        dir,
        @refusing,
        quote do
          for key <- 1..10, do: PartitionedBuffer.Map.put(:journaled, key, key)
          PartitionedBuffer.flush(:journaled)
          for key <- 1..9, do: PartitionedBuffer.Map.delete(:journaled, key)
        end
      )

      assert [{10, 10, 0, 0}] = entries(path(dir))
    end
  end

  describe "attempts" do
    test "go on, and an entry is given up after them", %{dir: dir} do
      opts = [max_attempts: 3, retry_backoff_ms: {60_000, 60_000}] ++ @refusing ++ @burying
      # A flush tries a single entry once.
      flush = quote(do: say({:flushed, PartitionedBuffer.flush(:journaled)}))

      first =
        live_and_die(
          dir,
          opts,
          quote(
            do:
              (
                PartitionedBuffer.Map.put(:journaled, :key, 1)
                unquote(flush)
              )
          )
        )

      assert first == [{:refused, [{:key, 1, 0, 0}]}, {:flushed, {:error, {:failed, 1}}}]
      assert live_and_die(dir, opts, flush) == first

      assert [{:refused, _entries}, {:dead, [{:key, 1, 0, 0}], :down}, _flushed] =
               live_and_die(dir, opts, flush)

      assert {[], %{journal: %{replayed: 0}}, _said} = next_life(dir, opts)
    end

    test "are not made by a snooze", %{dir: dir} do
      opts = [max_attempts: 1, processor: {PartitionedBuffer.JournalCase, :snooze, []}] ++ @burying

      put = quote(do: PartitionedBuffer.Map.put(:journaled, :key, 1))

      flush =
        quote do
          PartitionedBuffer.flush(:journaled)
          say(:flushed)
        end

      # A call that the kill interrupts would be an attempt: the snooze lasts longer than the VM.
      assert [{:snoozed, [{:key, 1, 0, 0}]}, :flushed] =
               live_and_die(
                 dir,
                 opts,
                 quote(
                   do:
                     (
                       unquote(put)
                       unquote(flush)
                     )
                 )
               )

      assert [{:snoozed, [{:key, 1, 0, 0}]}, :flushed] = live_and_die(dir, opts, flush)
    end

    test "are made by a call that the kill interrupted", %{dir: dir} do
      opts = [max_attempts: 1, processor: {PartitionedBuffer.JournalCase, :hang, []}] ++ @burying
      put = quote(do: PartitionedBuffer.Map.put(:journaled, :key, 1))

      vm =
        life(
          dir,
          opts,
          quote(
            do:
              (
                unquote(put)
                PartitionedBuffer.flush(:journaled, async: true)
              )
          )
        )

      assert {:hangs, [{:key, 1, 0, 0}]} = OtherVM.hear(vm)
      OtherVM.kill(vm)
      assert {[], _info, said} = next_life(dir, opts)
      assert [{:dead, [{:key, 1, 0, 0}], :killed}] = Enum.filter(said, &match?({:dead, _, _}, &1))
    end

    test "a kill during :dead_letter brings the entries there again, and not to the processor", %{dir: dir} do
      opts = [max_attempts: 1] ++ @refusing
      hanging = [dead_letter: {PartitionedBuffer.JournalCase, :hang_with_the_dead, []}]
      put = quote(do: PartitionedBuffer.Map.put(:journaled, :key, 1))

      vm =
        life(
          dir,
          opts ++ hanging,
          quote(
            do:
              (
                unquote(put)
                PartitionedBuffer.flush(:journaled, async: true)
              )
          )
        )

      assert {:refused, [{:key, 1, 0, 0}]} = OtherVM.hear(vm)
      assert {:dying, [{:key, 1, 0, 0}], :down} = OtherVM.hear(vm)
      OtherVM.kill(vm)
      {[], _info, said} = next_life(dir, opts ++ @burying)
      assert [{:dead, [{:key, 1, 0, 0}], :killed}] = Enum.filter(said, &match?({:dead, _, _}, &1))
      refute Enum.any?(said, &match?({:refused, _}, &1))
    end
  end

  describe "another partition count" do
    test "routes entries by their keys, and each read finds them", %{dir: dir} do
      put = quote(do: for(key <- 1..200, do: PartitionedBuffer.Map.put(:journaled, key, key)))
      live_and_die(dir, [partitions: 1], put)
      found = quote(do: Enum.count(1..200, &(PartitionedBuffer.Map.get(:journaled, &1) == &1)))
      sizes = quote(do: Enum.map(PartitionedBuffer.info(:journaled).partitions, & &1.size))
      for partitions <- [4, 3, 1, 4], do: live_and_die(dir, [partitions: partitions], quote(do: :ok))
      assert {200, of_four} = ask(dir, [partitions: 4], quote(do: {unquote(found), unquote(sizes)}))
      of_key = &:erlang.phash2(:erlang.phash2(&1), 4)
      assert of_four == for(partition <- 0..3, do: Enum.count(1..200, &(of_key.(&1) == partition)))
      assert {200, [_, _, _]} = ask(dir, [partitions: 3], quote(do: {unquote(found), unquote(sizes)}))
      {delivered, _info, _said} = next_life(dir, partitions: 1)
      assert Enum.sort(delivered) == for(key <- 1..200, do: {key, key, 0, 0})
    end

    test "keeps all entries with a partition key, in their old partition modulo the count", %{dir: dir} do
      put =
        quote(
          do:
            for(
              key <- 1..200,
              do: PartitionedBuffer.Map.put(:journaled, key, key, partition_key: rem(key, 7))
            )
        )

      live_and_die(dir, [partitions: 4], put)
      sizes = quote(do: Enum.map(PartitionedBuffer.info(:journaled).partitions, & &1.size))
      routed = &:erlang.phash2(rem(&1, 7), 4)

      # An entry that is where its key alone would put it moves with its key.
      of_key = &:erlang.phash2(:erlang.phash2(&1), &2)
      moved = &if(of_key.(&1, 4) == routed.(&1), do: of_key.(&1, 3), else: rem(routed.(&1), 3))
      expected = for partition <- 0..2, do: Enum.count(1..200, &(moved.(&1) == partition))

      assert ask(dir, [partitions: 4], sizes) ==
               for(partition <- 0..3, do: Enum.count(1..200, &(routed.(&1) == partition)))

      assert ask(dir, [partitions: 3], sizes) == expected
      {delivered, _info, _said} = next_life(dir, partitions: 1)
      assert Enum.sort(delivered) == for(key <- 1..200, do: {key, key, 0, 0})
    end

    test "keeps the order of a queue with a partition key, and its sums", %{dir: dir} do
      queue = [module: PartitionedBuffer.Queue]

      push =
        quote(
          do:
            for(
              n <- 1..300,
              do: PartitionedBuffer.Queue.push(:journaled, {rem(n, 3), n}, partition_key: rem(n, 3))
            )
        )

      live_and_die(dir, [partitions: 1] ++ queue, push)
      for partitions <- [4, 3], do: live_and_die(dir, [partitions: partitions] ++ queue, quote(do: :ok))
      {items, _info, _said} = next_life(dir, [partitions: 3] ++ queue)
      assert Enum.sort(items) == Enum.sort(for n <- 1..300, do: {rem(n, 3), n})

      counter = [module: PartitionedBuffer.Counter]
      add = quote(do: for(n <- 1..300, do: PartitionedBuffer.Counter.add(:journaled, rem(n, 30), n)))
      live_and_die(dir, [partitions: 1] ++ counter, add)
      live_and_die(dir, [partitions: 4] ++ counter, add)
      {sums, _info, _said} = next_life(dir, [partitions: 3] ++ counter)
      expected = for key <- 0..29, do: {key, 2 * Enum.sum(for n <- 1..300, rem(n, 30) == key, do: n), 20}
      assert Enum.sort(sums) == expected
    end
  end

  describe "a counter" do
    test "has exact sums and counts, of any size and sign", %{dir: dir} do
      live_and_die(
        dir,
        [module: PartitionedBuffer.Counter],
        quote do
          alias PartitionedBuffer.Counter
          most = 2 ** 63 - 1
          for _n <- 1..5, do: Counter.add(:journaled, :large, most)
          for _n <- 1..5, do: Counter.add(:journaled, :small, -most)
          Counter.add(:journaled, :zero, 0)
          Counter.add(:journaled, :none, 7)
          Counter.add(:journaled, :none, -7)
          Counter.add(:journaled, :counted, 7, count: 10)
          Counter.add(:journaled, :deleted, 7)
          Counter.delete(:journaled, :deleted)
        end
      )

      most = 2 ** 63 - 1
      expected = [counted: {7, 10}, large: {5 * most, 5}, none: {0, 2}, small: {-5 * most, 5}, zero: {0, 1}]
      expected = for {key, {sum, count}} <- expected, do: {key, sum, count}
      {delivered, _info, _said} = next_life(dir, module: PartitionedBuffer.Counter)
      assert Enum.sort(delivered) == expected
    end

    test "has a failed sum and those after it as one sum", %{dir: dir} do
      opts = [module: PartitionedBuffer.Counter]

      live_and_die(
        dir,
        opts ++ @refusing,
        quote do
          for n <- 1..3 do
            PartitionedBuffer.Counter.add(:journaled, :key, 10 ** n)
            {:error, _failed} = PartitionedBuffer.flush(:journaled)
          end

          PartitionedBuffer.Counter.add(:journaled, :key, 1)
        end
      )

      assert entries(path(dir, :counter)) == [{:key, 1_111, 4}]
      assert {[{:key, 1_111, 4}], _info, _said} = next_life(dir, opts)
    end
  end

  describe "a queue" do
    test "has its items in their order, the failed ones first", %{dir: dir} do
      opts = [module: PartitionedBuffer.Queue, processing_batch_size: 3]

      live_and_die(
        dir,
        opts ++ @refusing,
        quote do
          PartitionedBuffer.Queue.push(:journaled, Enum.to_list(1..10))
          {:error, _failed} = PartitionedBuffer.flush(:journaled)
          PartitionedBuffer.Queue.push(:journaled, Enum.to_list(11..2_000))
        end
      )

      assert entries(path(dir, :queue)) == Enum.to_list(1..2_000)
      {items, _info, _said} = next_life(dir, opts)
      assert items == Enum.to_list(1..2_000)
    end

    test "has equal items as often as they were pushed", %{dir: dir} do
      opts = [module: PartitionedBuffer.Queue]
      live_and_die(dir, opts, quote(do: PartitionedBuffer.Queue.push(:journaled, [:a, :a, :b, :a])))
      assert {[:a, :a, :b, :a], _info, _said} = next_life(dir, opts)
    end
  end

  test "other kinds of the name leave the files alone", %{dir: dir} do
    live_and_die(dir, [], quote(do: PartitionedBuffer.Map.put(:journaled, :key, 1)))
    files = fn -> for file <- File.ls!(path(dir)), do: {file, File.read!(Path.join(path(dir), file))} end
    before = files.()

    live_and_die(
      dir,
      [module: PartitionedBuffer.Queue],
      quote(do: PartitionedBuffer.Queue.push(:journaled, :item))
    )

    assert {[], _info, _said} = next_life(dir, module: PartitionedBuffer.Counter)
    assert {[:item], _info, _said} = next_life(dir, module: PartitionedBuffer.Queue)
    assert files.() == before
    assert {[{:key, 1, 0, 0}], _info, _said} = next_life(dir)
  end

  test "a lower :max_size throws nothing away, and refuses new entries", %{dir: dir} do
    live_and_die(dir, [], quote(do: for(key <- 1..100, do: PartitionedBuffer.Map.put(:journaled, key, key))))
    opts = [max_size: 10, full_timeout_ms: 0, when_full: :error]

    # A write that finds no room starts a flush.
    assert {100, {:error, :full}, :ok} =
             ask(
               dir,
               opts ++ @refusing,
               quote do
                 {PartitionedBuffer.buffer_size(:journaled), PartitionedBuffer.Map.put(:journaled, :new, 1),
                  PartitionedBuffer.Map.put(:journaled, 1, 1)}
               end
             )

    {delivered, info, _said} = next_life(dir, opts)
    assert length(delivered) == 100
    assert info.size == 100
  end

  test "what waits again is seen by reads, and counts for a threshold", %{dir: dir} do
    live_and_die(dir, [], quote(do: for(key <- 1..100, do: PartitionedBuffer.Map.put(:journaled, key, key))))

    # Failed entries do not count, and these did not fail.
    vm = life(dir, [processing_threshold: 101], quote(do: PartitionedBuffer.Map.put(:journaled, 101, 101)))
    assert {:batch, batch} = OtherVM.hear(vm)
    assert length(batch) == 101
    OtherVM.kill(vm)
  end

  describe "a stop" do
    test "that leaves nothing leaves only the lock", %{dir: dir} do
      for module <- [PartitionedBuffer.Map, PartitionedBuffer.Counter, PartitionedBuffer.Queue] do
        assert {[], _info, _said} = next_life(dir, module: module)
      end

      live_and_die(
        dir,
        [partitions: 4],
        quote(do: for(key <- 1..1_000, do: PartitionedBuffer.Map.put(:journaled, key, key)))
      )

      assert {delivered, _info, _said} = next_life(dir, partitions: 4)
      assert length(delivered) == 1_000
      for kind <- [:map, :counter, :queue], do: assert(File.ls!(path(dir, kind)) == ["lock"])
    end

    for stop <- [:buffer, :vm] do
      test "of the #{stop} in an outage leaves the entries to the next VM, and not to :dead_letter", %{
        dir: dir
      } do
        opts = [drain_timeout_ms: 100] ++ @refusing ++ @burying
        put = quote(do: for(key <- 1..100, do: PartitionedBuffer.Map.put(:journaled, key, key)))

        stop =
          case unquote(stop) do
            :buffer -> quote(do: PartitionedBuffer.stop(:journaled, :normal, :infinity, leftovers: :keep))
            :vm -> quote(do: :ok)
          end

        vm =
          life(
            dir,
            opts,
            quote(
              do:
                (
                  unquote(put)
                  unquote(stop)
                  System.stop(0)
                )
            )
          )

        said = OtherVM.drain(vm)
        refute Enum.any?(said, &match?({:dead, _, _}, &1))
        assert length(entries(path(dir))) == 100
        {delivered, _info, _said} = next_life(dir)
        assert Enum.sort(delivered) == for(key <- 1..100, do: {key, key, 0, 0})
      end
    end
  end

  describe "terms" do
    test "of all kinds are the same as keys, values and items of the next VM", %{dir: dir} do
      assert map_size(JournalTerms.lasting()) >= 40
      lasting = quote(do: PartitionedBuffer.JournalTerms.lasting())

      live_and_die(
        dir,
        [],
        quote do
          for {name, term} <- unquote(lasting) do
            PartitionedBuffer.Map.put(:journaled, {:value, name}, term)
            PartitionedBuffer.Map.put(:journaled, term, name)
          end
        end
      )

      wrong =
        ask(
          dir,
          [],
          quote do
            for {name, term} <- unquote(lasting),
                PartitionedBuffer.Map.get(:journaled, {:value, name}) !== term or
                  PartitionedBuffer.Map.get(:journaled, term) !== name,
                do: name
          end
        )

      assert wrong == []
      queue = [module: PartitionedBuffer.Queue]

      live_and_die(
        dir,
        queue,
        quote(do: PartitionedBuffer.Queue.push(:journaled, Enum.sort(Map.to_list(unquote(lasting)))))
      )

      assert {items, _info, _said} = next_life(dir, queue)
      assert Enum.map(items, &elem(&1, 0)) == JournalTerms.lasting() |> Map.keys() |> Enum.sort()
      for {name, term} <- JournalTerms.lasting(), do: assert({name, items[name] === term} == {name, true})
      # -0.0 and 0.0 are the same for ===.
      assert <<1::1, _rest::63>> = <<items[:negative_zero]::float>>
    end

    test "of one VM come back as such terms", %{dir: dir} do
      queue = [module: PartitionedBuffer.Queue]

      live_and_die(
        dir,
        queue,
        quote(
          do: PartitionedBuffer.Queue.push(:journaled, Map.to_list(PartitionedBuffer.JournalTerms.passing()))
        )
      )

      {items, _info, _said} = next_life(dir, queue)
      assert is_pid(items[:pid]) and is_pid(items[:other_pid]) and is_reference(items[:reference])
      assert is_reference(items[:alias]) and is_port(items[:port])
      assert is_function(items[:local_fun], 1) and is_function(items[:closure], 0)
    end

    test "of many megabytes come back, and are written without the whole log at once", %{dir: dir} do
      live_and_die(
        dir,
        [journal: [dir: dir, max_bytes: 1_048_576]],
        quote do
          for key <- 1..40, do: PartitionedBuffer.Map.put(:journaled, key, :binary.copy(<<key>>, 1_048_576))
        end
      )

      sums =
        quote(
          do:
            for(
              key <- 1..40,
              do: PartitionedBuffer.Map.get(:journaled, key) == :binary.copy(<<key>>, 1_048_576)
            )
        )

      assert ask(dir, [], sums) == List.duplicate(true, 40)
    end
  end

  test "a name with slashes and dots has one directory below that of the option", %{dir: dir} do
    names = [:"a/b", :"../up", :..., :., :.., :"%2E", :"a b", :ключ, MyApp.Buffer, :"a\\b", :"~"]
    options = journal_options(dir, processor: {PartitionedBuffer.JournalCase, :deliver, []})

    start =
      quote do
        for name <- unquote(names) do
          {:ok, _pid} =
            PartitionedBuffer.start_link(
              [name: name] ++ unquote(Macro.escape(Keyword.delete(options, :name)))
            )
        end
      end

    put =
      quote do
        for name <- unquote(names) do
          PartitionedBuffer.Map.put(name, :key, name)
          :ok = PartitionedBuffer.sync(name, level: :written)
        end
      end

    live_and_die(
      dir,
      [],
      quote(
        do:
          (
            unquote(start)
            unquote(put)
          )
      )
    )

    made = File.ls!(dir) -- ["journaled"]
    assert length(made) == length(names)
    assert "Elixir.MyApp.Buffer" in made
    refute File.exists?(Path.join(Path.dirname(dir), "up"))

    found =
      quote(
        do:
          for(
            name <- unquote(names),
            do: {name, PartitionedBuffer.Map.get(name, :key), PartitionedBuffer.info(name).journal.dir}
          )
      )

    answer =
      ask(
        dir,
        [],
        quote(
          do:
            (
              unquote(start)
              unquote(found)
            )
        )
      )

    assert for({name, value, _path} <- answer, do: {name, value}) == for(name <- names, do: {name, name})
    paths = for {_name, _value, path} <- answer, do: path
    assert Enum.sort(paths) == Enum.sort(for name <- made, do: Path.join([dir, name, "map"]))
  end
end
