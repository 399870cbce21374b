defmodule PartitionedBuffer.OptionsTest do
  use PartitionedBuffer.Case, async: true

  defp start(opts) do
    opts = Keyword.merge([name: unique_name(), processor: &Function.identity/1], opts)
    Buffer.start_link(opts)
  end

  test "a start option of the wrong type raises, naming option, value, expectation and buffer" do
    for {key, value, expectation} <- [
          {:processor, fn -> :ok end, "function of arity 1"},
          {:processor, {Mod, :fun}, "{module, function, args}"},
          {:processor, {Mod, :fun, [1 | 2]}, "{module, function, args}"},
          {:processor, nil, "function of arity 1"},
          {:partitions, -1, "non-negative integer"},
          {:partitions, 1.0, "non-negative integer"},
          {:partitions, 4_097, "non-negative integer up to 4096"},
          {:processing_interval_ms, 0, "positive integer"},
          {:processing_interval_ms, :infinity, "positive integer"},
          {:processing_interval_ms, longest_interval() + 1, "positive integer up to #{longest_interval()}"},
          {:processing_jitter_ms, -1, "non-negative integer"},
          {:processing_jitter_ms, :infinity, "non-negative integer"},
          {:processing_jitter_ms, 4_294_967_296, "non-negative integer up to 4294967295"},
          {:processing_timeout_ms, -1, "non-negative integer"},
          {:processing_timeout_ms, 4_294_967_296, "non-negative integer up to 4294967295"},
          {:processing_batch_size, 0, "positive integer or :table"},
          {:processing_batch_size, :all, "positive integer or :table"}
        ] do
      name = unique_name()
      error = assert_raise ArgumentError, fn -> start([{:name, name}, {key, value}]) end

      for part <- [inspect(key), inspect(value), expectation, inspect(name)],
          do: assert(error.message =~ part)

      assert Process.whereis(PartitionedBuffer.Supervisor.name(name)) == nil
    end
  end

  test "an interval may be as long as a timer can be, also where a partition starts again" do
    name = start_buffer(partitions: 1, processing_interval_ms: 4_294_967_296)
    assert Buffer.update_options(name, processing_interval_ms: longest_interval()) == :ok
    kill_and_await_restart(hd(partitions(name)))
    assert options(name).processing_interval_ms == longest_interval()

    assert_raise ArgumentError, fn ->
      Buffer.update_options(name, processing_interval_ms: longest_interval() + 1)
    end
  end

  test "a name that is no atom raises" do
    for name <- ["buffer", nil, {:a, 1}] do
      assert_raise ArgumentError, ~r/:name.*expected an atom, got: #{Regex.escape(inspect(name))}/, fn ->
        start(name: name)
      end
    end
  end

  test "a missing name or processor raises and is named" do
    assert_raise ArgumentError, ~r/:name/, fn -> Buffer.start_link(processor: &Function.identity/1) end
    assert_raise ArgumentError, ~r/:processor/, fn -> Buffer.start_link(name: unique_name()) end
    assert_raise ArgumentError, ~r/:module/, fn -> PartitionedBuffer.start_link(name: :a, processor: & &1) end
    assert_raise ArgumentError, ~r/keyword list/, fn -> Buffer.start_link(%{name: :a}) end
  end

  describe "child_spec/1" do
    @modules [PartitionedBuffer, PartitionedBuffer.Map, PartitionedBuffer.Queue]

    test "has the name given as its id, else the module, and does not look at the options" do
      for module <- @modules, name <- [:users, MyApp.Users] do
        opts = [name: name, processor: :none]
        spec = %{id: name, start: {module, :start_link, [opts]}, type: :supervisor}
        assert module.child_spec(opts) == spec
      end

      for module <- @modules, opts <- [[], [partitions: -1], [name: nil], :users, %{name: :users}, nil] do
        spec = %{id: module, start: {module, :start_link, [opts]}, type: :supervisor}
        assert module.child_spec(opts) == spec
      end
    end

    test "with options that are no good is an error of the supervisor that starts it" do
      supervisor = start_supervised!({DynamicSupervisor, strategy: :one_for_one})

      for module <- @modules,
          {opts, message} <- [
            {[], ~r/required option :name of a buffer is missing: expected an atom/},
            {[name: :no_good], ~r/required option :processor of buffer :no_good is missing/},
            {:no_good, ~r/the options of a buffer must be a keyword list, got: :no_good/}
          ] do
        assert {:error, {%ArgumentError{message: raised}, [_ | _]}} =
                 DynamicSupervisor.start_child(supervisor, {module, opts})

        assert raised =~ message
      end

      Process.flag(:trap_exit, true)

      assert {:error, {:shutdown, {:failed_to_start_child, :no_good, {:EXIT, {%ArgumentError{}, _}}}}} =
               Supervisor.start_link([{Buffer, name: :no_good}], strategy: :one_for_one)
    end

    test "may be completed before it is started" do
      name = unique_name()
      %{start: {module, function, [opts]}} = spec = Buffer.child_spec(name: name)
      opts = [processor: &Function.identity/1] ++ opts
      start_supervised!(%{spec | start: {module, function, [opts]}})
      assert Buffer.size(name) == 0
    end
  end

  test "unknown start options are ignored, the defaults are as documented" do
    name = unique_name()
    {:ok, _pid} = start(name: name, unknown: 1)
    assert length(partitions(name)) == System.schedulers_online()
    options = options(name)
    assert options.processing_interval_ms == 5_000
    assert options.processing_jitter_ms == 0
    assert options.processing_timeout_ms == 60_000
    assert options.processing_batch_size == 10
  end

  test "of options that are given twice the first counts" do
    name = unique_name()
    {:ok, _pid} = start(name: name, processing_batch_size: 7, name: :other, processing_batch_size: 8)
    assert options(name).processing_batch_size == 7
    Buffer.update_options(name, processing_batch_size: 9, processing_batch_size: 10)
    assert options(name).processing_batch_size == 9
  end

  test "update_options/2 changes only what it is given" do
    name = start_buffer(processing_batch_size: 7, processing_timeout_ms: 1_234)
    assert Buffer.update_options(name, processing_interval_ms: 77_777) == :ok

    assert %{processing_interval_ms: 77_777, processing_batch_size: 7, processing_timeout_ms: 1_234} =
             options(name)

    assert Buffer.update_options(name, []) == :ok
    assert Buffer.update_options(name, processing_timeout_ms: :infinity, processing_batch_size: :table) == :ok
    assert %{processing_interval_ms: 77_777, processing_batch_size: :table} = options(name)
  end

  test "update_options/2 raises on an unknown or invalid option and changes nothing" do
    name = start_buffer()
    before = options(name)

    for bad <- [
          [partitions: 3],
          [processor: & &1],
          [unknown: 1],
          [processing_batch_size: 0],
          [processing_interval_ms: nil],
          [processing_jitter_ms: 1.5],
          :no
        ] do
      changes = if is_list(bad), do: [processing_timeout_ms: 1] ++ bad, else: bad
      error = assert_raise ArgumentError, fn -> Buffer.update_options(name, changes) end
      assert error.message =~ inspect(name)
    end

    assert options(name) == before
  end

  test "updated options outlive a crash of the partition" do
    name = start_buffer(partitions: 1)
    Buffer.update_options(name, processing_batch_size: 3)
    [partition] = partitions(name)
    kill_and_await_restart(partition)
    Buffer.put_all(name, for(n <- 1..4, do: {n, n}))
    flush(name)
    assert_received {:batch, [_, _, _]}
    assert_received {:batch, [_]}
  end

  test "an unknown runtime option raises on every operation and changes nothing" do
    name = start_buffer()

    for operation <- [
          &Buffer.put(name, 1, 1, &1),
          &Buffer.put_newer(name, 1, 1, 1, &1),
          &Buffer.put_all(name, [{1, 1}], &1),
          &Buffer.put_all_newer(name, [{1, 1, 1}], &1),
          &Buffer.get(name, 1, nil, &1),
          &Buffer.delete(name, 1, &1)
        ] do
      assert_raise ArgumentError, ~r/#{inspect(name)}.*:ttl/, fn -> operation.(ttl: 1) end
      assert_raise ArgumentError, ~r/keyword list/, fn -> operation.(%{partition_key: 1}) end
    end

    assert Buffer.size(name) == 0
  end

  defp longest_interval, do: System.convert_time_unit(:erlang.system_info(:end_time), :native, :millisecond)

  defp options(name),
    do: :ets.lookup_element(:sys.get_state(hd(partitions(name))).identity.settings, :options, 2)
end
