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
    Native.open(buffer, :map, 1, false, :infinity)
    run(buffer)
  end

  describe "functions/1" do
    test "copies no large term, wherever its large part is" do
      run = opened_run()

      for {name, term} <- @large_terms, term <- [term, {term}, [term], %{key: term}] do
        assert Native.put_functions(run, term) == :ok
        assert {name, Native.functions(run)} == {name, :large}
        assert Native.functions_large(run) == term
      end
    end

    test "copies a small term, and so does functions_large/1" do
      run = opened_run()

      for {name, term} <- @small_terms do
        assert Native.put_functions(run, term) == :ok
        assert {name, Native.functions(run)} == {name, term}
        assert {name, Native.functions_large(run)} == {name, term}
      end
    end
  end

  describe "put_options/3 and put_error/2" do
    test "refuse a large term, and keep the last one" do
      run = opened_run()
      assert Native.put_options(run, 0, :first) == :ok
      assert Native.put_error(run, :first) == :ok

      for {_name, term} <- @large_terms do
        assert call(:put_options, [run, 1, term]) == :badarg
        assert call(:put_error, [run, term]) == :badarg
        assert Native.options(run) == {1, :first}
        assert Native.last_error(run) == :first
      end
    end

    test "take a small term" do
      run = opened_run()

      for {{_name, term}, version} <- Enum.with_index(@small_terms) do
        assert Native.put_options(run, version, term) == :ok
        assert Native.put_options(run, version, :late) == :changed
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
end
