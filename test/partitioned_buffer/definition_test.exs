defmodule PartitionedBuffer.DefinitionTest do
  use PartitionedBuffer.Case, async: true

  alias PartitionedBuffer.Test.Terminal

  defmodule Users do
    use PartitionedBuffer.Map,
      otp_app: :partitioned_buffer,
      processor: &__MODULE__.process/1,
      processing_interval_ms: 86_400_000,
      processing_batch_size: 3,
      max_attempts: nil,
      partitions: 1

    def process(batch), do: send(:persistent_term.get(__MODULE__), {:batch, batch})
  end

  defmodule Events do
    use PartitionedBuffer.Queue, processing_interval_ms: 86_400_000, max_attempts: nil

    def start_link(opts), do: super([partitions: 1] ++ opts)
  end

  defmodule Misspelled do
    use PartitionedBuffer.Map, procesor: &Function.identity/1
  end

  defmodule Configured do
    use PartitionedBuffer.Queue,
      otp_app: :partitioned_buffer,
      processor: &Function.identity/1,
      max_attempts: nil
  end

  defmodule Undecided do
    use PartitionedBuffer.Counter, processor: &Function.identity/1
  end

  describe "a module" do
    test "needs :max_attempts or a preset from one of the three places" do
      error = assert_raise ArgumentError, fn -> Undecided.start_link() end

      assert error.message =~
               "buffer #{inspect(Undecided)} needs the option :max_attempts: a number of attempts"

      for opts <- [[max_attempts: nil], [max_attempts: 3], [preset: :api]] do
        start_supervised!({Undecided, opts})
        stop_supervised!(Undecided)
      end

      assert_raise ArgumentError, fn -> Undecided.start_link(preset: nil) end
    end
  end

  describe "a module that uses PartitionedBuffer.Map" do
    @describetag :tmp_dir

    # All tests share the environment of the application: no other test may set options of this buffer.
    test "merges options of use, environment and start, and the last one counts" do
      :persistent_term.put(Users, self())
      Application.put_env(:partitioned_buffer, Users, processing_batch_size: 2, partitions: 2)
      on_exit(fn -> Application.delete_env(:partitioned_buffer, Users) end)

      start_supervised!({Users, partitions: 3})
      assert length(partitions(Users)) == 3
      Users.put_all(for(n <- 1..5, do: {n, n}), partition_key: :one)
      flush(Users)
      assert_received {:batch, [_, _]}
      stop_supervised!(Users)

      Application.delete_env(:partitioned_buffer, Users)
      start_supervised!(Users)
      assert length(partitions(Users)) == 1
      Users.put_all(%{1 => 1, 2 => 2, 3 => 3, 4 => 4})
      flush(Users)
      assert_received {:batch, [_, _, _]}

      assert Users.put(1, 1) == :ok
      assert Users.put({:eu, 1}, 2, partition_key: fn {region, _} -> region end) == :ok
      assert Users.put_newer(3, :new, 2) == :ok
      assert Users.put_newer(3, :old, 1, []) == :ok
      assert Users.put_all_newer([{4, :four, 4}]) == :ok
      assert {Users.get(1), Users.get(3), Users.get(9)} == {1, :new, nil}
      assert Users.get(9, :default, partition_key: 9) == :default
      assert Users.delete(1) == :ok
      assert Users.size() == 3
      assert Users.update_options(processing_batch_size: 10) == :ok
      assert Users.stop(:normal, 5_000) == :ok
      assert_received {:batch, [_, _, _]}
    end

    test "has no function that would mean something else at another arity" do
      own = for {name, arity} <- Users.__info__(:functions), name not in [:process], do: {name, arity}

      assert Enum.sort(own) ==
               [
                 child_spec: 1,
                 start_link: 0,
                 start_link: 1,
                 stop: 0,
                 stop: 1,
                 stop: 2,
                 size: 0,
                 update_options: 1
               ]
               |> Kernel.++(put: 2, put: 3, put_all: 1, put_all: 2, put_newer: 3, put_newer: 4)
               |> Kernel.++(put_all_newer: 1, put_all_newer: 2, get: 1, get: 3, delete: 1, delete: 2)
               |> Kernel.++(
                 put_new: 2,
                 put_new: 3,
                 fetch: 1,
                 fetch: 2,
                 flush: 0,
                 flush: 1,
                 info: 0,
                 pause: 0,
                 watch: 0,
                 resume: 0,
                 sync: 0,
                 sync: 1
               )
               |> Enum.sort()

      # These are calls with the buffer as the first argument, which the module does not take.
      assert_raise FunctionClauseError, fn -> Users.put(Users, :key, :value) end
      assert_raise FunctionClauseError, fn -> Users.delete(Users, :key) end
      assert_raise FunctionClauseError, fn -> Events.push(Events, :item) end
    end

    test "shows its page, which Enter ends" do
      start_supervised!({Events, processor: &Function.identity/1})
      {:ok, terminal} = Terminal.start_link(24, 80)

      watcher =
        Task.async(fn ->
          Process.group_leader(self(), terminal)
          Events.watch()
        end)

      assert_receive {:reads, ^terminal}
      assert "#{inspect(Events)}  queue" in Terminal.lines(terminal)
      assert Terminal.enter(terminal) == :ok
      assert Task.await(watcher) == :ok
    end

    test "has a child specification that starts its own function" do
      assert Users.child_spec(partitions: 2) ==
               %{id: Users, start: {Users, :start_link, [[partitions: 2]]}, type: :supervisor}
    end

    test "documents itself and its functions, unless its author did", %{tmp_dir: dir} do
      docs = fn code ->
        [{module, beam}] = Code.compile_string(code)
        path = Path.join(dir, "#{module}.beam")
        File.write!(path, beam)
        {:docs_v1, _, _, _, moduledoc, _, functions} = Code.fetch_docs(path)
        {moduledoc, functions}
      end

      Code.put_compiler_option(:docs, true)

      for kind <- [PartitionedBuffer.Map, PartitionedBuffer.Counter, PartitionedBuffer.Queue] do
        name = Module.concat(__MODULE__, "Documented#{kind.__kind__()}")
        define = fn moduledoc -> "defmodule #{inspect(name)} do\n#{moduledoc}\nuse #{inspect(kind)}\nend" end
        {%{"en" => moduledoc}, functions} = docs.(define.(""))
        assert moduledoc =~ "A `#{inspect(kind)}`"

        for {{:function, _name, _arity}, _, _, doc, metadata} <- functions do
          assert %{"en" => text} = doc
          refute text =~ ~r/^See/
          assert metadata[:group] in ["Start and stop", "Write", "Read", "Observe"]
        end

        :code.purge(name)
        :code.delete(name)
        assert {%{"en" => "Mine."}, _functions} = docs.(define.(~s(@moduledoc "Mine.")))
        :code.purge(name)
        :code.delete(name)
        assert {:hidden, _functions} = docs.(define.("@moduledoc false"))
        :code.purge(name)
        :code.delete(name)
      end
    end

    test "raises on a name, on options that are no list, and without a processor" do
      assert_raise ArgumentError, ~r/the name of its module.*its options at the start.*:other/, fn ->
        Users.start_link(name: :other)
      end

      assert_raise ArgumentError, ~r/the options of buffer #{inspect(Events)} at the start.*keyword/, fn ->
        PartitionedBuffer.API.Definition.start_options(Events, [], :no_list)
      end

      assert_raise ArgumentError, ~r/:processor.*#{inspect(Events)}/, fn -> Events.start_link([]) end
    end

    test "raises on an unknown option in each of the three places" do
      assert_raise ArgumentError,
                   ~r/#{inspect(Misspelled)} on the `use` line.*:procesor.*did you mean :processor/,
                   fn -> Misspelled.start_link() end

      for {option, place} <- [partition: "in the application env", otp_app: "in the", module: "in the"] do
        Application.put_env(:partitioned_buffer, Configured, [{option, :partitioned_buffer}])

        assert_raise ArgumentError, ~r/#{place}.*#{inspect(option)}/, fn ->
          Configured.start_link()
        end
      end

      Application.delete_env(:partitioned_buffer, Configured)

      assert_raise ArgumentError, ~r/at the start.*:max_atempts.*did you mean :max_attempts/, fn ->
        Configured.start_link(max_atempts: 1)
      end

      assert {:ok, _pid} = Configured.start_link(id: Configured, restart: :transient)
    end
  end

  describe "a module that uses PartitionedBuffer.Queue" do
    test "has the functions of a queue, and its start can be overridden" do
      test = self()
      start_supervised!({Events, processor: &send(test, {:batch, &1})})
      assert Events.push(:first) == :ok
      assert Events.push([:second, :third], partition_key: 1) == :ok
      assert partitions(Events) == [Module.concat(Events, "0")]
      assert Events.stop() == :ok
      assert_received {:batch, [:first, :second, :third]}
    end
  end
end
