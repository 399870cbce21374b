defmodule PartitionedBuffer.ReasonTest do
  use PartitionedBuffer.Case, async: true

  import ExUnit.CaptureLog

  alias PartitionedBuffer.Processing.ReasonText

  # A buffer that stops with entries left has lines of its own.
  @moduletag :capture_log

  defmodule SinkError do
    defexception [:message, :code]

    @impl Exception
    def message(%{message: message}) when is_function(message), do: message.()
    def message(%{message: nil, code: code}), do: "code #{code}"
    def message(%{message: message}), do: message
  end

  defmodule Row do
    defstruct [:id]
  end

  # With the messages of exceptions, as in a task.
  defp text(reason), do: ReasonText.text(reason, fn %name{} = error -> name.message(error) end)

  # An exception with the message of another one, as a driver makes it.
  defp message(message), do: text(%SinkError{message: message})

  describe "the text of a reason" do
    test "shows atoms, numbers and structs in tuples and maps, and hides texts" do
      for {reason, text} <- [
            {:timeout, ":timeout"},
            {503, "503"},
            {1.5, "1.5"},
            {"secret", ~s("…")},
            {<<1::3>>, ~s("…")},
            {{:http_error, 503}, "{:http_error, 503}"},
            {{:init, {:error, {:connect, :econnrefused}}}, "{:init, {:error, {:connect, :econnrefused}}}"},
            {{:a, {:b, {:c, {:d, 1}}}}, "{:a, {:b, {:c, {…}}}}"},
            {%{status: 503, body: "secret"}, ~s(%{body: "…", status: 503})},
            {%{:status => 503, "secret" => 1}, "%{status: 503, …}"},
            {%{a: %{b: %{c: %{d: 1}}}}, "%{a: %{b: %{c: %{…}}}}"},
            {%{"secret" => :secret}, "%{…}"},
            {%Row{id: "secret"}, "%PartitionedBuffer.ReasonTest.Row{}"},
            {{:error, %Row{}}, "{:error, %PartitionedBuffer.ReasonTest.Row{}}"},
            {{}, "{}"},
            {%{}, "%{}"}
          ],
          do: assert({reason, text(reason)} == {reason, text})
    end

    test "shows of a list only errors of the network and of files" do
      for {reason, text} <- [
            {[], "[]"},
            {[{:secret, 1, 0, 0}], "[…]"},
            {[{"secret", 1, 2} | :improper], "[…]"},
            {~c"secret", "[…]"},
            {[{:inet, [:inet6], :timeout}, {:secret, :closed}], "[:timeout, :closed, …]"},
            {{:failed_connect, [{:to_address, {~c"api", 443}}, {:inet, [:inet], :nxdomain}]},
             "{:failed_connect, [:nxdomain, …]}"},
            {[{:inet, [:inet], {:tls_alert, {:unknown_ca, ~c"secret"}}}], "[{:tls_alert, :unknown_ca}, …]"}
          ],
          do: assert({reason, text(reason)} == {reason, text})
    end

    test "shows the name of an exception, and the first line of its message" do
      assert text(%SinkError{code: 7}) == "PartitionedBuffer.ReasonTest.SinkError: code 7"
      assert text({:init, %SinkError{code: 7}}) =~ "{:init, PartitionedBuffer.ReasonTest.SinkError: code 7}"
      assert message("no connection\n\ndetail: secret") =~ ~r/: no connection$/
      assert message("") =~ ~r/SinkError$/
      assert message(nil) =~ ~r/: code$/
      assert text(%RuntimeError{message: "sink is away"}) == "RuntimeError: sink is away"
    end

    test "hides the term that a message quotes" do
      for {message, shown} <- [
            {~s(relation "page_views" does not exist), ~s(relation "page_views" does not exist)},
            {~s(invalid input syntax for type uuid: "secret"), "invalid input syntax for type uuid: …"},
            {~s[(1062) Duplicate entry 'secret' for key 'users.email'], "(1062) Duplicate entry …"},
            {"expected an integer, got: %{secret: 1}", "expected an integer, got: …"},
            {"failed to encode value `secret`", "failed to encode value …"},
            {"bad row: {1, :secret}", "bad row: …"},
            {"tcp connect (localhost:5432): connection refused - :econnrefused",
             "tcp connect (localhost:5432): connection refused - :econnrefused"}
          ],
          do: assert(message(message) =~ ~r/: #{Regex.escape(shown)}$/)
    end

    test "has no terms of an exception that is made from terms" do
      secret = [{"secret", %{password: "secret"}, 0, 0}]

      for {fail, text} <- [
            {fn -> :ok = Function.identity(secret) end, "MatchError"},
            {fn -> case(Function.identity(secret), do: ([] -> :ok)) end, "CaseClauseError"},
            {fn -> with(:ok <- Function.identity(secret), do: :ok, else: ([] -> :ok)) end, "WithClauseError"},
            {fn -> Map.fetch!(Function.identity(%{secret: secret}), "secret") end, "KeyError"},
            {fn -> Map.fetch!(Function.identity(%{secret: secret}), :id) end, "KeyError: key :id"},
            {fn -> Map.put(Function.identity(secret), :a, 1) end, "BadMapError"},
            {fn -> Function.identity(secret).() end, "BadFunctionError"},
            {fn -> Function.identity(fn _ -> secret end).() end, "BadArityError"},
            {fn -> hd(Function.identity(secret)) + 1 end, "ArithmeticError"},
            {fn -> String.to_integer(Function.identity("secret")) end, "ArgumentError"},
            {fn -> Date.from_iso8601!("secret") end, "ArgumentError"},
            {fn -> Enum.count({:secret, secret}) end, "Protocol.UndefinedError"},
            {fn -> Enum.fetch!(secret, 7) end, "Enum.OutOfBoundsError"},
            {fn -> String.upcase(secret) end, "FunctionClauseError: String.upcase/2"},
            {fn -> apply(Missing.Sink, :store, [secret]) end, "UndefinedFunctionError: Missing.Sink.store/1"},
            {fn -> :erlang.error({:custom, secret}) end, "ErlangError: {:custom, […]}"},
            {fn -> throw(secret) end, "throw"},
            {fn -> throw(:rollback) end, "throw: :rollback"},
            {fn -> exit({:failed, secret}) end, "exit: {:failed, […]}"},
            {fn -> GenServer.call(:nobody, {:insert, secret}) end, "exit: :noproc in GenServer.call/3"}
          ] do
        {reason, crash} =
          try do
            fail.()
          catch
            kind, reason ->
              {ReasonText.new(kind, reason, __STACKTRACE__),
               if(kind == :error, do: {reason, __STACKTRACE__}, else: :none)}
          end

        assert text(reason) == text
        assert ReasonText.text(reason) == text
        # The exit reason of a linked process that raised.
        if crash != :none, do: assert(text(crash) == text)
        refute text({:error, reason}) =~ "secret"
      end

      assert text({{:nocatch, secret}, [{Enum, :map, 2, []}]}) == "throw"
      refute text({:bad_return, {:error, :secret_key, secret}}) =~ "password"
    end

    test "is one line of valid UTF-8 with at most 300 characters, whatever it is" do
      deep = Enum.reduce(1..100_000, :end, &{&1, &2, [&2]})
      wide = List.to_tuple(Enum.to_list(1..100_000))
      long = String.to_atom(String.duplicate("é", 255))
      improper = [{:econnrefused, 1} | {:a, [1 | 2]}]
      calls = Enum.reduce(1..10_000, :noproc, fn _, reason -> {reason, {GenServer, :call, [1 | 2]}} end)

      for reason <- [
            deep,
            wide,
            Map.new(1..100_000, &{&1, &1}),
            Map.new(1..1_000, &{:"reason_test_#{&1}", &1}),
            List.duplicate(deep, 3),
            improper,
            {improper, improper},
            {long, long, long},
            :"two\nlines",
            2 ** 100_000,
            -(2 ** 100_000),
            self(),
            make_ref(),
            fn -> :ok end,
            {:exit, calls},
            calls,
            {:function_clause, [{:a, :b, [1 | 2], []} | :rest]},
            {:undef, [{:a, :b, 1, []} | :rest]},
            {:error, [{:a, :b, -1, []}]},
            %{__struct__: KeyError, __exception__: true},
            %{__struct__: UndefinedFunctionError, __exception__: true},
            %{__struct__: ErlangError, __exception__: true},
            %{__struct__: SinkError, __exception__: true},
            %{__struct__: Missing.Error, __exception__: true},
            %{__struct__: "text", __exception__: true},
            %{__struct__: :atom},
            %SinkError{message: <<"bad ", 0xFF, 0xFE, " bytes">>},
            %SinkError{message: String.duplicate("é", 100_000)},
            %SinkError{message: "a\r\nb"},
            %SinkError{message: "a\tb\e[0m\u2028c\0"},
            %SinkError{message: {:no, :text}},
            %SinkError{message: fn -> raise "no" end},
            %SinkError{message: fn -> throw(:no) end},
            %SinkError{message: fn -> exit(:no) end},
            %SinkError{message: fn -> %Row{} end}
          ],
          text <- [text(reason), ReasonText.text(reason)] do
        assert String.valid?(text)
        assert String.length(text) in 1..300
        refute text =~ ~r/[\p{C}\p{Zl}\p{Zp}]/u
      end
    end

    test "runs no code of the user without a task" do
      test = self()
      error = %SinkError{message: fn -> send(test, :called) && "text" end}
      assert PartitionedBuffer.Processing.Reason.describe(error) =~ ~r/SinkError$/
      refute_received :called
    end
  end

  describe "the failure of a processor" do
    test "is in the log and in info/1 by its text" do
      processors = [
        {fn _ -> raise SinkError, code: 7 end, "PartitionedBuffer.ReasonTest.SinkError: code 7"},
        {fn _ -> exit({:down, "secret"}) end, ~s(exit: {:down, "…"})},
        {fn _ -> throw("secret") end, "throw"}
      ]

      for {processor, text} <- processors, opts <- [[], [max_attempts: 9]] do
        {_buffer, log, error} = fail([processor: processor] ++ opts)
        assert error.reason == text
        assert log =~ "processor failed:\n** #{text}\n"
        refute log =~ "secret"
        refute log =~ "terminating"
      end
    end

    test "is an atom in info/1 if the reason is an atom" do
      assert {_buffer, _log, %{reason: :down}} = fail(processor: fn _ -> exit(:down) end)
      assert {_buffer, _log, %{reason: :down}} = fail(processor: fn _ -> {:error, :down} end, max_attempts: 9)

      assert {_buffer, _log, %{reason: :killed}} = fail(processor: fn _ -> Process.exit(self(), :kill) end)
    end

    test "has the exit reason of the processor in telemetry events" do
      for {fail, check} <- [
            {fn _ -> raise "no" end, &match?({%RuntimeError{message: "no"}, [_ | _]}, &1)},
            {fn _ -> throw(:no) end, &match?({{:nocatch, :no}, [_ | _]}, &1)},
            {fn _ -> exit(:no) end, &(&1 == :no)},
            {fn _ -> exit(:normal) end, &(&1 == :normal)},
            {fn _ -> exit(:shutdown) end, &(&1 == :shutdown)}
          ] do
        buffer = start_buffer(partitions: 1, processor: fail)
        attach_telemetry(buffer)
        Buffer.put(buffer, :key, 1)
        capture_log(fn -> assert PartitionedBuffer.flush(buffer) == {:error, {:failed, 1}} end)
        await_events(buffer)
        assert_received {[:processing_failed], %{count: 1}, %{reason: reason}}
        assert check.(reason)
      end
    end

    test "with a message that hangs has the name of its exception, and holds up nobody" do
      processor = fn _ -> raise %SinkError{message: fn -> Process.sleep(:infinity) end} end

      {_buffer, _log, error} = fail(processor: processor, max_attempts: 9, processing_timeout_ms: 3_000)

      assert error.reason == "PartitionedBuffer.ReasonTest.SinkError"
    end
  end

  describe ":format_reason" do
    test "makes the text, with outcomes and without" do
      format = fn {:exit, {:down, text}} -> "down: #{text}" end

      for opts <- [[], [max_attempts: 9]] do
        {_buffer, log, error} =
          fail([processor: fn _ -> exit({:down, "shown"}) end, format_reason: format] ++ opts)

        assert error.reason == "down: shown"
        assert log =~ "processor failed:\n** down: shown\n"
      end
    end

    test "makes the text also if partitions fail at the same time" do
      buffer =
        start_buffer(partitions: 4, processor: fn _ -> raise "no" end, format_reason: fn _ -> "text" end)

      for _flush <- 1..50 do
        Buffer.put_all(buffer, for(key <- 1..50, do: {key, 1}))
        assert {:error, {:failed, _count}} = PartitionedBuffer.flush(buffer)
        assert PartitionedBuffer.info(buffer).last_error.reason == "text"
      end
    end

    test "takes an MFA, which gets the reason before its arguments" do
      opts = [processor: fn _ -> {:error, %{a: 1}} end, max_attempts: 9]
      {_buffer, log, error} = fail([format_reason: {__MODULE__, :format, ["reason"]}] ++ opts)
      assert error.reason == "reason %{a: 1}"
      assert log =~ "processor failed (reason %{a: 1})"
    end

    test "is called once for a failure, and leaves an atom in info/1" do
      test = self()

      format = fn reason ->
        send(test, {:format, reason})
        "text"
      end

      opts = [processor: fn _ -> {:error, :down} end, max_attempts: 1, format_reason: format]
      {_buffer, log, error} = fail(opts)
      assert error.reason == :down
      assert log =~ "processor failed (text)"
      assert log =~ "gives up 1 entries: text"
      assert_received {:format, :down}
      refute_received {:format, _reason}
    end

    test "that fails is logged once, and the usual text is used" do
      for {format, failure} <- [
            {fn {_, secret} -> raise secret end, "RuntimeError: secret"},
            {fn %{} -> "text" end, "FunctionClauseError"},
            {fn _ -> throw(:no) end, "throw: :no"},
            {fn _ -> exit(:no) end, "exit: :no"},
            {fn _ -> Process.exit(self(), :kill) end, "it ended: :killed"},
            {fn _ -> spawn_link(fn -> exit(:no) end) && Process.sleep(:infinity) end, "it ended: :no"},
            {fn _ -> Process.sleep(:infinity) end, "it took longer than 1500 ms"},
            {fn _ -> :no_text end, "it returned no text"},
            {fn _ -> ~c"text" end, "it returned no text"},
            {fn _ -> <<0xFF>> end, "its text is not valid UTF-8"}
          ] do
        opts = [
          processor: fn _ -> {:error, {:down, "secret"}} end,
          max_attempts: 1,
          processing_timeout_ms: if(failure =~ "longer", do: 3_000, else: 60_000)
        ]

        {buffer, log, error} = fail([format_reason: format] ++ opts)
        assert error.reason == ~s({:down, "…"})
        assert log =~ ~s(processor failed ({:down, "…"}\))
        line = "the function :format_reason of buffer #{inspect(buffer)} failed, so the usual text is used: "
        assert [_before, rest] = String.split(log, line)
        assert rest =~ failure
      end
    end

    test "does not outlive its killed task, and has the task in its $callers" do
      test = self()

      format = fn _reason ->
        send(test, {:formats, self(), Process.get(:"$callers")})
        Process.sleep(:infinity)
      end

      options = [partitions: 1, processor: fn _ -> exit(:no) end, format_reason: format]
      buffer = start_buffer(options)
      Buffer.put(buffer, :key, 1)
      flush = Task.async(fn -> PartitionedBuffer.flush(buffer) end)
      assert_receive {:formats, pid, [task | _callers]}
      ref = Process.monitor(pid)
      # The VM may send a monitor late; the question goes after it.
      assert Process.alive?(pid)
      Process.exit(task, :kill)
      assert_receive {:DOWN, ^ref, :process, ^pid, :killed}
      assert Task.await(flush) == {:error, {:failed, 1}}
      assert PartitionedBuffer.info(buffer).last_error.reason == :killed
    end

    test "that is no function of arity 1 or MFA is refused" do
      for format <- [fn -> "text" end, {Enum, :map}, "text", nil] do
        assert_raise ArgumentError, ~r/:format_reason.*function of arity 1/, fn ->
          Buffer.start_link(buffer_options(format_reason: format))
        end
      end
    end
  end

  describe "an error returned without :max_attempts" do
    test "is a warning once for each partition and start" do
      for {returned, text} <- [
            {:error, ":error"},
            {{:error, :down}, ":down"},
            {{:error, :step, :changeset, %{}}, "{:error, :step, :changeset, %{}}"},
            {{:error, "secret"}, ~s("…")}
          ],
          opts <- [[], [processing_batch_size: :table]] do
        options = buffer_options([partitions: 2, processor: fn _ -> returned end] ++ opts)

        warning =
          "of buffer #{inspect(options[:name])}: the processor returned an error (#{text}), which is ignored"

        for _start <- 1..2 do
          {:ok, pid} = Buffer.start_link(options)

          log =
            capture_log(fn ->
              for _flush <- 1..3, key <- 1..20 do
                Buffer.put(options[:name], key, 1)
                if key == 20, do: assert(PartitionedBuffer.flush(options[:name]) == :ok)
              end
            end)

          assert [_before, _first, _second] = String.split(log, warning)
          PartitionedBuffer.stop(pid)
        end
      end
    end

    test "is no second warning after the death of the task and the partition" do
      buffer = start_buffer(partitions: 1, processor: fn _ -> :error end)
      Buffer.put(buffer, :key, 1)
      assert capture_log(fn -> PartitionedBuffer.flush(buffer) end) =~ "is ignored without :max_attempts"
      kill_and_await_restart(hd(partitions(buffer)))
      Buffer.put(buffer, :key, 1)

      refute capture_log(fn -> PartitionedBuffer.flush(buffer) end) =~
               "#{inspect(buffer)}: the processor returned"
    end

    test "is no warning for other results, or with :max_attempts" do
      for {returned, opts} <- [{:ok, []}, {{:ok, 1}, []}, {{}, []}, {[:error], []}, {:error, max_attempts: 9}] do
        {_buffer, log, _error} = fail([processor: fn _ -> returned end] ++ opts)
        refute log =~ "is ignored"
      end
    end
  end

  def format(reason, prefix), do: "#{prefix} #{inspect(reason)}"

  # Flushes one entry; returns the buffer, its log lines and its last error.
  defp fail(opts) do
    defaults = [partitions: 1, retry_backoff_ms: {60_000, 60_000}, drain_timeout_ms: 0]
    defaults = if opts[:max_attempts], do: defaults, else: Keyword.take(defaults, [:partitions])
    buffer = start_buffer(defaults ++ opts)
    Buffer.put(buffer, :key, 1)
    log = capture_log(fn -> PartitionedBuffer.flush(buffer) end)
    {buffer, log, PartitionedBuffer.info(buffer).last_error}
  end
end
