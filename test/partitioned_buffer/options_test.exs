defmodule PartitionedBuffer.OptionsTest do
  use PartitionedBuffer.Case, async: true

  import ExUnit.CaptureLog

  alias PartitionedBuffer.Buffer.Lookup
  alias PartitionedBuffer.Options
  alias PartitionedBuffer.Options.Preset

  defmodule Handler do
    def unquote(:"$handle_undefined_function")(_function, _args), do: :ok
  end

  # The log lines of a start, with % for the buffer.
  def warnings(opts) do
    options = buffer_options(opts)

    log_of(options[:name], fn ->
      {:ok, pid} = Buffer.start_link(options)
      Process.unlink(pid)
      PartitionedBuffer.stop(pid)
    end)
  end

  # Tests that run at the same time log as well.
  defp log_of(name, fun) do
    lines = [level: :warning] |> capture_log(fun) |> String.split("\n") |> Enum.filter(&(&1 =~ inspect(name)))
    String.replace(Enum.join(lines), inspect(name), "%")
  end

  defp start(opts) do
    opts = Keyword.merge([name: unique_name(), processor: &Function.identity/1], opts)
    Buffer.start_link(opts)
  end

  describe "start_link/1" do
    test "raises if the name or the processor is missing, and names the option" do
      assert_raise ArgumentError, ~r/:name/, fn -> Buffer.start_link(processor: &Function.identity/1) end
      assert_raise ArgumentError, ~r/:processor/, fn -> Buffer.start_link(name: unique_name()) end

      assert_raise ArgumentError, ~r/:module/, fn ->
        PartitionedBuffer.start_link(name: :a, processor: & &1)
      end

      assert_raise ArgumentError, ~r/keyword list/, fn -> Buffer.start_link(%{name: :a}) end
    end

    test "raises if the name is no atom" do
      for name <- ["buffer", nil, {:a, 1}] do
        assert_raise ArgumentError, ~r/:name.*expected an atom, got: #{Regex.escape(inspect(name))}/, fn ->
          start(name: name)
        end
      end
    end

    test "raises on a wrong type, naming option, value, expectation and buffer" do
      for {key, value, expectation} <- [
            {:processor, fn -> :ok end, "function of arity 1"},
            {:processor, {Mod, :fun}, "{module, function, args}"},
            {:processor, {Mod, :fun, [1 | 2]}, "{module, function, args}"},
            {:processor, nil, "function of arity 1"},
            {:partitions, -1, "non-negative integer"},
            {:partitions, 1.0, "non-negative integer"},
            {:partitions, 4_097, "non-negative integer up to 4096"},
            {:processing_interval_ms, 0, "positive integer"},
            {:processing_interval_ms, :never, "positive integer"},
            {:max_attempts, 0, "positive integer or :infinity"},
            {:retry_backoff_ms, {2, 1}, "{min, max}"},
            {:retry_backoff_ms, 1_000, "{min, max}"},
            {:retry_backoff_ms, fn -> 1 end, "function of arity 1"},
            {:dead_letter, fn _entries -> :ok end, "function of arity 2"},
            {:drain_timeout_ms, -1, "non-negative integer"},
            {:processing_interval_ms, longest_interval() + 1, "positive integer up to #{longest_interval()}"},
            {:processing_jitter_ms, -1, "non-negative integer"},
            {:processing_jitter_ms, :infinity, "non-negative integer"},
            {:processing_jitter_ms, 4_294_967_296, "non-negative integer up to 4294967295"},
            {:processing_timeout_ms, -1, "non-negative integer"},
            {:processing_timeout_ms, 4_294_967_296, "non-negative integer up to 4294967295"},
            {:processing_batch_size, 0, "positive integer, :table, or {acc, function}"},
            {:processing_batch_size, :all, "positive integer, :table, or {acc, function}"},
            {:processing_batch_size, {0, fn _entry -> :ok end}, "function of arity 2"},
            {:order, :newest, ":strict or :none"}
          ] do
        name = unique_name()
        error = assert_raise ArgumentError, fn -> start([{:name, name}, {key, value}]) end

        for part <- [inspect(key), inspect(value), expectation, inspect(name)],
            do: assert(error.message =~ part)

        assert Process.whereis(PartitionedBuffer.Routing.supervisor_name(name)) == nil
      end
    end

    test "has the documented defaults" do
      name = unique_name()
      {:ok, _pid} = start(name: name)
      assert length(partitions(name)) == System.schedulers_online()
      options = options(name)
      assert options.processing_interval_ms == 5_000
      assert options.processing_jitter_ms == 0
      assert options.processing_timeout_ms == 60_000
      assert options.processing_batch_size == 10
    end

    test "warns of unknown options of a map or queue, and ignores them" do
      for module <- [Buffer, PartitionedBuffer.Queue] do
        options = buffer_options(module: module, max_atempts: 3, unknown: 1)
        name = options[:name]
        {{:ok, _pid}, log} = with_log(fn -> PartitionedBuffer.start_link(options) end)

        assert log =~
                 "buffer #{inspect(name)} ignores the unknown option :max_atempts: did you mean :max_attempts?"

        assert log =~
                 "buffer #{inspect(name)} ignores the unknown option :unknown; the options are :name, :proc"

        assert options(name).max_attempts == nil
      end
    end

    test "raises on unknown options of a counter" do
      options = buffer_options(max_atempts: 3)

      for start <- [
            &PartitionedBuffer.Counter.start_link/1,
            &PartitionedBuffer.start_link([module: PartitionedBuffer.Counter] ++ &1)
          ] do
        assert_raise ArgumentError, ~r/#{inspect(options[:name])}.*did you mean :max_attempts\?/, fn ->
          start.(options)
        end
      end
    end

    test "takes the keys of a child specification, without an effect" do
      for module <- [Buffer, PartitionedBuffer.Counter] do
        options =
          buffer_options() ++
            [id: 1, start: 1, restart: 1, shutdown: 1, type: 1, modules: 1, significant: 1]

        assert log_of(options[:name], fn -> {:ok, _pid} = module.start_link(options) end) == ""
      end
    end

    test "takes the options of a preset, and others in their place" do
      assert Keyword.keys(Preset.all()) == [:database, :api, :metrics]

      for {preset, values} <- Preset.all() do
        given = [name: unique_name(), processor: &Function.identity/1, preset: preset]
        {options, _functions} = Options.start!(given, Buffer)
        assert Map.take(options, Keyword.keys(values)) == Map.new(values)
        {options, _functions} = Options.start!(given ++ [partitions: 7, max_attempts: nil], Buffer)
        assert {options.partitions, options.max_attempts, options.max_size} == {7, nil, values[:max_size]}
      end

      error = assert_raise ArgumentError, fn -> start(preset: :kafka) end
      assert error.message =~ "invalid value for option :preset"
      assert error.message =~ "expected :database, :api, :metrics, got: :kafka"
    end

    test "logs what is in force, at :info if a failure of the processor loses entries" do
      for {opts, line} <- [
            {[partitions: 1],
             "[info] buffer % is a map that flushes every 5000 ms from 1 partition, in batches of 10; " <>
               "without :max_attempts, so a batch is lost if the processor fails; no bound; a stop has no time limit"},
            {[preset: :database, dead_letter: fn _entries, _reason -> :ok end],
             "[debug] buffer % is a map that flushes every 1000 ms from 2 partitions, in batches of 1000; " <>
               "at most 100 attempts, then :dead_letter; at most 100000 entries; a stop takes at most 25000 ms"},
            {[
               partitions: 2,
               max_attempts: :infinity,
               processing_interval_ms: :infinity,
               max_bytes: 1_000_000,
               processing_batch_size: {0, fn _entry, acc -> {:cont, acc} end}
             ],
             "[debug] buffer % is a map that flushes on request from 2 partitions, in batches of a size that a function " <>
               "chooses; retries without end, without :dead_letter; at most 1000000 bytes; a stop takes at most 60000 ms"}
          ] do
        name = unique_name()

        log =
          capture_log(fn ->
            {:ok, pid} = start([name: name] ++ opts)
            await_events(name)
            PartitionedBuffer.stop(pid)
          end)

        assert log =~ String.replace(line, "%", inspect(name))
      end
    end

    test "warns of functions that do not exist, and starts" do
      log =
        warnings(
          processor: Function.capture(Missing.Module, :process, 1),
          max_attempts: 2,
          dead_letter: {Enum, :missing, [1]},
          format_reason: {Enum, :map, []},
          retry_backoff_ms: Function.capture(Enum, :missing, 1),
          processing_batch_size: {0, Function.capture(Enum, :missing, 2)}
        )

      for text <- [
            "option :processor of buffer %: the function Missing.Module.process/1 does not exist",
            "option :dead_letter of buffer %: the function Enum.missing/3 does not exist",
            "option :format_reason of buffer %: the function Enum.map/1 does not exist",
            "option :retry_backoff_ms of buffer %: the function Enum.missing/1 does not exist",
            "option :processing_batch_size of buffer %: the function Enum.missing/2 does not exist"
          ],
          do: assert(log =~ text)
    end

    test "warns of no function that exists, or whose module is being compiled" do
      local = fn _ -> :ok end

      assert warnings(
               processor: &Function.identity/1,
               max_attempts: 2,
               dead_letter: {Enum, :map, []},
               format_reason: &:erlang.is_atom/1,
               retry_backoff_ms: local,
               processing_batch_size: {0, &Kernel.+/2}
             ) == ""

      assert warnings(processor: {__MODULE__.Handler, :anything, []}) == ""

      Code.eval_string("""
      defmodule PartitionedBuffer.OptionsTest.Compiling do
        @warnings PartitionedBuffer.OptionsTest.warnings(processor: &__MODULE__.process/1)
        def warnings, do: @warnings
        def process(_batch), do: :ok
      end
      """)

      assert apply(__MODULE__.Compiling, :warnings, []) == ""
    end

    test "takes :order for a queue, and raises for other kinds" do
      for {opts, order} <- [{[], :strict}, {[order: :strict], :strict}, {[order: :none], :none}] do
        name = start_buffer([module: PartitionedBuffer.Queue] ++ opts)
        assert options(name).order == order
      end

      for module <- [PartitionedBuffer.Map, PartitionedBuffer.Counter] do
        options = buffer_options(order: :strict)

        assert_raise ArgumentError, ~r/:order.*PartitionedBuffer.Queue only/, fn ->
          module.start_link(options)
        end
      end
    end

    test "takes a function as batch size, with outcomes and without" do
      batch = {0, fn _entry, acc -> {:cont, acc} end}

      for opts <- [[], [max_attempts: 2]], module <- [PartitionedBuffer.Map, PartitionedBuffer.Queue] do
        name = start_buffer([module: module, processing_batch_size: batch] ++ opts)
        assert options(name).processing_batch_size == :function
        assert PartitionedBuffer.Ref.functions(ref(name)).batch == batch
      end
    end

    test "gives a batch that a function ends 10,000 entries at most" do
      name = start_buffer(partitions: 1, processing_batch_size: {0, fn _entry, acc -> {:cont, acc} end})
      Buffer.put_all(name, for(n <- 1..10_001, do: {n, n}))
      flush(name)
      assert Enum.map(received_batches(), &length/1) == [10_000, 1]
    end

    test "takes the first of repeated options, as update_options/2 does" do
      name = unique_name()
      {:ok, _pid} = start(name: name, processing_batch_size: 7, name: :other, processing_batch_size: 8)
      assert options(name).processing_batch_size == 7
      Buffer.update_options(name, processing_batch_size: 9, processing_batch_size: 10)
      assert options(name).processing_batch_size == 9
    end

    test "takes the longest timer interval, as do update_options/2 and a restart" do
      name = start_buffer(partitions: 1, processing_interval_ms: 4_294_967_296)
      assert Buffer.update_options(name, processing_interval_ms: longest_interval()) == :ok
      kill_and_await_restart(hd(partitions(name)))
      assert options(name).processing_interval_ms == longest_interval()

      assert_raise ArgumentError, fn ->
        Buffer.update_options(name, processing_interval_ms: longest_interval() + 1)
      end
    end
  end

  describe "update_options/2" do
    test "changes only the options that it is given" do
      name = start_buffer(processing_batch_size: 7, processing_timeout_ms: 1_234)
      assert Buffer.update_options(name, processing_interval_ms: 77_777) == :ok

      assert %{processing_interval_ms: 77_777, processing_batch_size: 7, processing_timeout_ms: 1_234} =
               options(name)

      assert Buffer.update_options(name, []) == :ok

      assert Buffer.update_options(name, processing_timeout_ms: :infinity, processing_batch_size: :table) ==
               :ok

      assert %{processing_interval_ms: 77_777, processing_batch_size: :table} = options(name)
    end

    test "raises on an unknown or invalid option, and changes nothing" do
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

    test "changes the functions among the options, and keeps the others" do
      name = start_buffer(max_attempts: 2)
      {backoff, batch} = {fn _failures -> 7 end, {[], fn _entry, acc -> {:emit, acc} end}}
      assert Buffer.update_options(name, retry_backoff_ms: backoff) == :ok
      assert Buffer.update_options(name, processing_batch_size: batch) == :ok
      assert %{retry_backoff_ms: :function, processing_batch_size: :function} = options(name)
      assert %{retry_backoff: ^backoff, batch: ^batch} = PartitionedBuffer.Ref.functions(ref(name))
      assert Buffer.update_options(name, processing_batch_size: 5) == :ok
      assert options(name).processing_batch_size == 5
    end

    test "loses no function of callers at the same time" do
      name = start_buffer(partitions: 1, max_attempts: 2)

      caller = fn option, field, value ->
        for n <- 1..2_000 do
          :ok = Buffer.update_options(name, [{option, value.(n)}])
          assert Map.fetch!(PartitionedBuffer.Ref.functions(ref(name)), field) == value.(n)
        end
      end

      backoff = &fn _failures -> &1 end
      batch = &{&1, fn _entry, acc -> {:cont, acc} end}

      [{:retry_backoff_ms, :retry_backoff, backoff}, {:processing_batch_size, :batch, batch}]
      |> Enum.map(fn {option, field, value} -> Task.async(fn -> caller.(option, field, value) end) end)
      |> Task.await_many(60_000)
    end

    test "warns of a function that does not exist" do
      name = start_buffer(max_attempts: 2)

      log =
        capture_log(fn ->
          Buffer.update_options(name, retry_backoff_ms: Function.capture(Enum, :missing, 1))
        end)

      assert log =~ "option :retry_backoff_ms of buffer #{inspect(name)}: the function Enum.missing/1"
    end

    test "does not change :order" do
      name = start_buffer(module: PartitionedBuffer.Queue)
      assert_raise ArgumentError, ~r/:order/, fn -> Buffer.update_options(name, order: :none) end
    end

    test "loses no change of callers at the same time" do
      name = start_buffer(partitions: 1)

      options = [
        :processing_interval_ms,
        :processing_jitter_ms,
        :processing_timeout_ms,
        :processing_batch_size
      ]

      # Each option has one caller, so it always has the value of the last call.
      caller = fn option ->
        for n <- 1..3_000 do
          :ok = Buffer.update_options(name, [{option, n}])
          assert {option, Map.fetch!(options(name), option)} == {option, n}
        end
      end

      options |> Enum.map(&Task.async(fn -> caller.(&1) end)) |> Task.await_many(60_000)
    end

    test "works while all processes below the supervisor are dead" do
      name = start_buffer(partitions: 2)
      supervisor = Lookup.supervisor(name)
      children = for {_id, pid, _type, _modules} <- Supervisor.which_children(supervisor), do: pid
      :erlang.suspend_process(supervisor)
      kill_processes(children)
      assert Buffer.update_options(name, processing_batch_size: 3) == :ok
      assert options(name).processing_batch_size == 3
      # The bound waits for the process that takes it over.
      bound =
        Task.async(fn -> Buffer.update_options(name, max_size: 1, when_full: :error, full_timeout_ms: 0) end)

      :erlang.resume_process(supervisor)
      assert Task.await(bound) == :ok
      assert Enum.map(1..2, &Buffer.put(name, &1, 1)) == [:ok, {:error, :full}]
    end

    test "makes changes that outlive a crash of the partition" do
      name = start_buffer(partitions: 1)
      Buffer.update_options(name, processing_batch_size: 3)
      [partition] = partitions(name)
      kill_and_await_restart(partition)
      Buffer.put_all(name, for(n <- 1..4, do: {n, n}))
      flush(name)
      assert_received {:batch, [_, _, _]}
      assert_received {:batch, [_]}
    end
  end

  describe "the options of a read or a write" do
    test "raise if one is unknown, and change nothing" do
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
  end

  defp longest_interval, do: System.convert_time_unit(:erlang.system_info(:end_time), :native, :millisecond)
end
