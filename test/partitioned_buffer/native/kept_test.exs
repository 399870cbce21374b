defmodule PartitionedBuffer.Native.KeptTest do
  # The terms that a run keeps: they are copied on dirty schedulers, if they may be large.
  use PartitionedBuffer.NativeCase, async: true

  @large Enum.to_list(1..50_000)

  # Large terms, whose size does not show at their beginning.
  @large_terms [
    list: @large,
    behind_immediates: Enum.to_list(1..20) ++ [@large],
    at_the_end: Enum.to_list(1..20) ++ [{@large}],
    in_a_tuple: {1, 2, 3, 4, 5, 6, @large},
    in_a_map: %{a: 1, b: [1, 2, 3, 4, 5, 6, 7, 8, 9, {:rows, @large}]},
    in_lists: [[1, 2, 3, 4, 5, 6, 7, 8, 9, [1, 2, 3, 4, 5, 6, 7, 8, 9, @large]]],
    tail: Enum.to_list(1..20) ++ List.to_tuple(@large),
    many: for(n <- 1..2_000, do: {n, n, [n]})
  ]

  @small_terms [
    nil: nil,
    atom: :functions,
    list: Enum.to_list(1..100),
    tuple: {1, 2, [3, 4, 5, 6, 7, 8, 9, 10, 11, 12, {13}]},
    map: %{a: 1, b: %{c: "d"}},
    binary: :binary.copy("x", 1_000_000),
    function: &Function.identity/1
  ]

  defp opened_run do
    buffer = unique_name()
    Native.open(buffer, :map, 1, false, true, :any, {:infinity, :infinity})
    run(buffer)
  end

  defp version(run), do: with({version, _options} <- Native.options(run), do: version) || 0

  defp put_functions(run, functions),
    do: assert(Native.put_options(run, version(run), :options, functions) == :ok)

  describe "functions/1" do
    test "copies no large term, wherever its large part is" do
      run = opened_run()

      for {name, term} <- @large_terms, term <- [term, {term}, [term], %{key: term}] do
        put_functions(run, term)
        assert {name, Native.functions(run)} == {name, :large}
        assert Native.functions_large(run) == term
      end
    end

    test "copies a small term, and so does functions_large/1" do
      run = opened_run()

      for {name, term} <- @small_terms do
        put_functions(run, term)
        assert {name, Native.functions(run)} == {name, term}
        assert {name, Native.functions_large(run)} == {name, term}
      end
    end
  end

  describe "put_options/4 and put_error/2" do
    test "refuse a large term, and keep the last one" do
      run = opened_run()
      assert Native.put_options(run, 0, :first, nil) == :ok
      assert Native.put_error(run, :first) == :ok

      for {_name, term} <- @large_terms do
        assert call(:put_options, [run, 1, term, nil]) == :badarg
        assert call(:put_error, [run, term]) == :badarg
        assert Native.options(run) == {1, :first}
        assert Native.last_error(run) == :first
      end
    end

    test "change the functions only together with the options" do
      run = opened_run()
      assert Native.put_options(run, 0, :first, :functions) == :ok
      assert Native.put_options(run, 0, :late, :late) == :changed
      assert Native.put_options(run, 1, :second, nil) == :ok
      assert {Native.options(run), Native.functions(run)} == {{2, :second}, :functions}
    end

    test "take a small term" do
      run = opened_run()

      for {{_name, term}, version} <- Enum.with_index(@small_terms) do
        assert Native.put_options(run, version, term, nil) == :ok
        assert Native.put_options(run, version, :late, :late) == :changed
        assert Native.options(run) == {version + 1, term}
      end

      for error <- [
            :error,
            "text",
            %{reason: String.duplicate("no ", 100_000), system_time: 1, partition: :name}
          ] do
        assert Native.put_error(run, error) == :ok
        assert Native.last_error(run) == error
      end
    end
  end

  # A buffer with room for ten entries, and a term that holds one of its reservations. No process has the term: when
  # the last copy is freed, so is the room.
  defp traced do
    buffer = unique_name()
    Native.open(buffer, :queue, 1, false, true, :any, {10, :infinity})

    put = fn run, nif, arguments ->
      test = self()

      pid =
        spawn(fn ->
          traced = {:traced, Native.reserve(buffer, 1, false)}
          result = call(nif, [run | Enum.map(arguments, &if(&1 == :traced, do: traced, else: &1))])
          send(test, {:put, result})
        end)

      ref = Process.monitor(pid)
      assert_receive {:put, result}, 5_000
      assert_receive {:DOWN, ^ref, :process, ^pid, _reason}, 5_000
      result
    end

    {buffer, put}
  end

  defp await_held(buffer, held), do: elem(Native.bound(buffer), 0) == held || await_held(buffer, held)

  describe "the terms of a run" do
    test "are freed when they are replaced, and at the end of a settled run" do
      {traced, put} = traced()
      name = unique_name()
      {owner, run} = open_elsewhere(name, :map, 1)
      assert put.(run, :put_options, [0, :traced, nil]) == :ok
      assert put.(run, :put_options, [1, :traced, :traced]) == :ok
      assert put.(run, :put_error, [:traced]) == :ok
      await_held(traced, 2)
      assert put.(run, :put_options, [1, :traced, :traced]) == :changed
      await_held(traced, 2)
      assert put.(run, :put_options, [2, :options, :functions]) == :ok
      await_held(traced, 1)
      assert Native.settle(run) == :ok
      kill_owner(name, owner)
      await_held(traced, 0)
    end

    test "outlive a run that is not settled: its options and functions" do
      {traced, put} = traced()
      name = unique_name()
      {owner, run} = open_elsewhere(name, :map, 1)
      assert put.(run, :put_options, [0, :traced, nil]) == :ok
      assert put.(run, :put_options, [1, :traced, :traced]) == :ok
      assert put.(run, :put_error, [:traced]) == :ok
      assert Native.left_terms(name, :map) == nil
      kill_owner(name, owner)
      await_held(traced, 1)
      assert {{:traced, _options}, {:traced, _functions}} = Native.left_terms(name, :map)
      assert Native.left_terms(name, :queue) == nil
      assert Native.options(run) == :not_running
      Native.open(name, :map, 1, false, true, :any, {:infinity, :infinity})
      assert Native.left_terms(name, :map) == nil
      :erlang.garbage_collect()
      await_held(traced, 0)
    end

    test "are freed when another kind is opened, or the same one again" do
      {traced, put} = traced()
      name = unique_name()

      for kind <- [:map, :queue, :queue, :counter, :map] do
        Native.open(name, kind, 1, false, true, :any, {:infinity, :infinity})
        await_held(traced, 0)
        assert Native.functions(run(name)) == nil
        assert Native.options(run(name)) == nil
        assert put.(run(name), :put_options, [0, :options, :traced]) == :ok
        await_held(traced, 1)
        assert Native.settle(run(name)) == :ok
      end
    end

    test "are freed while other calls for the run are under way" do
      {traced, put} = traced()

      for _round <- 1..20 do
        name = unique_name()
        {owner, run} = open_elsewhere(name, :map, 1)
        assert put.(run, :put_options, [0, :options, :traced]) == :ok
        assert Native.settle(run) == :ok

        readers =
          for _ <- 1..4 do
            Task.async(fn ->
              Stream.repeatedly(fn -> Native.held(run, 0) end) |> Enum.find(&(&1 == :not_running))
              put.(run, :put_options, [1, :options, :traced])
            end)
          end

        kill_owner(name, owner)
        assert Task.await_many(readers) == List.duplicate(:not_running, 4)
        await_held(traced, 0)
      end
    end
  end

  describe "leftovers/0" do
    test "has the entries of each kind of a name that does not run" do
      name = unique_name()
      own = fn -> for {^name, kind, count, held} <- Native.leftovers(), do: {kind, count, held} end

      for {kind, write} <- [
            map: fn -> Native.put(name, nil, :key, 1) end,
            queue: fn -> Native.push_all(name, nil, [1, 2], false) end
          ] do
        {owner, _run} = open_elsewhere(name, kind, 3)
        assert write.() == :ok
        assert own.() == []
        kill_owner(name, owner)
      end

      assert Enum.sort(own.()) == [{:map, 3, 1}, {:queue, 3, 2}]
      {owner, run} = open_elsewhere(name, :queue, 3)
      assert own.() == []
      assert Native.settle(run) == :ok
      kill_owner(name, owner)
      assert own.() == [{:map, 3, 1}]
    end
  end

  describe "put_stop/2" do
    test "keeps its first note until the end of the run" do
      name = unique_name()
      {owner, run} = open_elsewhere(name, :map, 1)
      assert Native.stop(run) == nil
      assert Native.put_stop(run, :keep) == :ok
      assert Native.put_stop(run, :dead_letter) == :ok
      assert Native.stop(run) == :keep
      kill_owner(name, owner)
      assert {Native.stop(run), Native.put_stop(run, :keep)} == {:not_running, :not_running}
      Native.open(name, :map, 1, false, true, :any, {:infinity, :infinity})
      assert Native.stop(run(name)) == nil
    end
  end
end
