defmodule PartitionedBuffer.WatchTest do
  use ExUnit.Case, async: true

  import ExUnit.CaptureIO

  alias PartitionedBuffer.Observe.{Overview, Watch}
  alias PartitionedBuffer.Test.Terminal

  require Logger

  @totals for key <-
                ~w(written coalesced stale deleted superseded processed failed given_up refused dropped)a,
              into: %{},
              do: {key, 0}

  defp info(changes \\ []) do
    info = %{
      kind: :map,
      size: 812,
      in_flight: 200,
      retrying: 3,
      bytes: 214_016,
      max_size: 100_000,
      max_bytes: :infinity,
      oldest_ms: 5_120,
      failing_ms: 0,
      journal: nil,
      waiting_writers: 4,
      paused?: false,
      last_error: nil,
      totals: @totals,
      partitions: [partition(0), partition(1, state: :paused, failures: 2, next_ms: nil)]
    }

    Map.merge(info, Map.new(changes))
  end

  defp partition(number, changes \\ []) do
    partition = %{
      name: Module.concat(["users", "#{number}"]),
      size: 400,
      in_flight: 100,
      state: :idle,
      failures: 0,
      next_ms: 3_400
    }

    Map.merge(partition, Map.new(changes))
  end

  # A function that returns one info after the other, and raises exceptions.
  defp infos(infos) do
    {:ok, infos} = Agent.start_link(fn -> infos end)

    fn _buffer ->
      case Agent.get_and_update(infos, &List.pop_at(&1, 0)) do
        error when is_exception(error) -> raise error
        info -> info
      end
    end
  end

  defp totals(changes), do: Map.merge(@totals, Map.new(changes))

  defp lines(info, previous \\ nil, passed_ms \\ 0, opts \\ []) do
    info |> Watch.render(previous, passed_ms, opts) |> Enum.reject(&(&1 == ""))
  end

  # The text behind a label, up to the next gap.
  defp value(lines, label) do
    [[_text, value] | _titles] = Enum.flat_map(lines, &Regex.scan(~r/(?:^|  )#{label}  +(.+?)(?:  |$)/, &1))
    value
  end

  defp render_value(changes, label), do: changes |> info() |> lines() |> value(label)

  describe "the header" do
    test "shows what the buffer holds" do
      [title | _] = lines = lines(info(), nil, 0, title: ":users")
      assert title == ":users  map"
      assert value(lines, "waiting") == "812"
      assert value(lines, "in flight") == "200"
      assert value(lines, "retrying") == "3"
      assert value(lines, "held") == "1,012 of 100,000"
      assert value(lines, "memory") == "214.0 kB"
      assert value(lines, "oldest") == "5.1 s"
      assert value(lines, "writers") == "4 waiting"
    end

    test "says so if there is no bound, and nothing that waits" do
      assert render_value([max_size: :infinity], "held") == "1,012, no bound"
      assert render_value([oldest_ms: nil], "oldest") == "-"
    end

    test "shows that the buffer is paused" do
      assert hd(lines(info(paused?: true), nil, 0, title: ":users")) == ":users  map  paused"
    end

    test "shows how long the processor has been failing" do
      assert render_value([failing_ms: 125_000], "failing") == "2 min 5 s"
      assert render_value([], "failing") == "-"
    end

    test "shows bytes and times in the unit that fits" do
      assert render_value([bytes: 999], "memory") == "999 B"
      assert render_value([bytes: 1_234_567], "memory") == "1.2 MB"
      assert render_value([bytes: 2_500_000_000], "memory") == "2.5 GB"
      assert render_value([oldest_ms: 999], "oldest") == "999 ms"
      assert render_value([oldest_ms: 125_000], "oldest") == "2 min 5 s"
      assert render_value([oldest_ms: 2 * 3_600_000 + 60_000], "oldest") == "2 h 1 min"
    end

    test "shows what was lost or failed since the start" do
      lines = lines(info(totals: totals(failed: 1_234, given_up: 5, refused: 6, dropped: 7)))
      assert value(lines, "failed") == "1,234"
      assert value(lines, "given up") == "5"
      assert value(lines, "refused") == "6"
      assert value(lines, "dropped") == "7"
    end

    test "shows the last error with partition and age, and nothing of its terms" do
      error = %{reason: :timeout, system_time: 1_000_000, partition: :"Elixir.users.0"}
      lines = lines(info(last_error: error), nil, 0, now: 1_012_000)
      assert value(lines, "last error") == ":timeout in users.0, 12.0 s ago"

      assert render_value([last_error: %{error | reason: "a tuple with :away"}], "last error") =~
               "a tuple with :away in"

      assert render_value([], "last error") == "-"
    end

    test "shows the age of an error as 0 if the clock was set back" do
      error = %{reason: :timeout, system_time: 1_000, partition: :"Elixir.users.0"}
      assert value(lines(info(last_error: error), nil, 0, now: 0), "last error") =~ ", 0 ms ago"
    end
  end

  describe "rates" do
    test "are the difference of two infos in a second" do
      previous = info(totals: totals(written: 1_000, processed: 500))
      lines = lines(info(totals: totals(written: 4_000, processed: 501)), previous, 2_000)
      assert value(lines, "written") == "1,500/s"
      assert value(lines, "processed") == "1/s"
    end

    test "are unknown the first time, at the same time, and after a restart" do
      previous = info(totals: totals(written: 10))
      assert value(lines(info()), "written") == "-"
      assert value(lines(info(), info(), 0), "written") == "-"
      assert value(lines(info(totals: totals(written: 3)), previous, 1_000), "written") == "-"
    end
  end

  describe "the partitions" do
    test "have a line each, in aligned columns" do
      partitions = [partition(9, size: 1_234_567), partition(10, state: :paused, failures: 2, next_ms: nil)]
      [titles, first, second] = lines = info(partitions: partitions) |> lines() |> Enum.take(-3)
      assert String.split(titles) == ~w(partition waiting in flight state failures next)
      assert String.split(first) == ~w(users.9 1,234,567 100 idle 0 3.4 s)
      assert String.split(second) == ~w(users.10 400 100 paused 2 -)

      for {title, texts} <- [
            {"waiting", ["1,234,567", "400"]},
            {"failures", ["0", "2"]},
            {"next", ["3.4 s", "-"]}
          ] do
        ends = for {line, text} <- Enum.zip(lines, [title | texts]), do: last_end(line, text)
        assert [_same] = Enum.uniq(ends)
      end
    end

    test "are the fullest, in their order, if the terminal has too few lines" do
      partitions = for n <- 0..19, do: partition(n, size: rem(n * 7, 20), in_flight: 0)
      lines = lines(info(partitions: partitions), nil, 0, rows: 17)
      shown = for "users." <> rest <- lines, do: rest |> Integer.parse() |> elem(0)
      # 7 * n mod 20 is 14 to 19 for these.
      assert shown == [2, 5, 8, 11, 14, 17]
      assert List.last(lines) == "and 14 others with #{Enum.sum(0..13)}"
    end

    test "fit the terminal with the empty line and the cursor, all shown or not" do
      for count <- [1, 4, 5, 6, 7, 8, 100], rows <- [13, 14, 15, 16] do
        page = Watch.render(info(partitions: for(n <- 1..count, do: partition(n))), nil, 0, rows: rows)
        # One line of the terminal is for the cursor.
        assert length(page) < rows
      end
    end

    test "are all shown if there are just enough lines" do
      page = fn count -> lines(info(partitions: for(n <- 1..count, do: partition(n))), nil, 0, rows: 15) end
      assert List.last(page.(5)) =~ "users.5"
      assert List.last(page.(6)) =~ "and 2 others"
    end
  end

  test "no line is longer than the terminal is wide" do
    error = %{reason: String.duplicate("long ", 30), system_time: 0, partition: :"Elixir.users.0"}
    lines = lines(info(last_error: error), nil, 0, columns: 40, now: 0)
    assert lines |> Enum.map(&String.length/1) |> Enum.max() == 40
  end

  describe "run/2" do
    defp run(infos, opts) do
      capture_io(fn ->
        assert Watch.run(:users, Keyword.merge([interval: 0, info: infos(infos), ansi: false], opts)) == :ok
      end)
    end

    test "prints so many rounds" do
      output = run([info(size: 1), info(size: 2), info(size: 3)], rounds: 2)

      assert [":users  map", ":users  map"] =
               for(":users" <> _ = line <- String.split(output, "\n"), do: line)

      assert output =~ ~r/waiting +1 /
      assert output =~ ~r/waiting +2 /
      refute output =~ ~r/waiting +3 /
      refute output =~ "\e"
    end

    test "derives the rates from the time between two infos" do
      output = run([info(), info(totals: totals(written: 1_000_000))], rounds: 2, interval: 1)
      assert [rate] = Regex.run(~r"[\d,]+(?=/s +processed)", output)
      assert rate |> String.replace(",", "") |> String.to_integer() > 0
    end

    test "ends with a plain line when the buffer is not running" do
      for error <- [
            ArgumentError.exception("it is not running"),
            RuntimeError.exception("it has 0 partitions")
          ] do
        output = run([info(), error], rounds: :infinity, ansi: true)
        assert String.ends_with?(output, "\n" <> Exception.message(error) <> "\n")
      end
    end

    test "prints to the device that is given" do
      {:ok, device} = StringIO.open("")
      assert run([info()], rounds: 1, device: device) == ""
      assert {"", ":users  map" <> _} = StringIO.contents(device)
    end

    test "raises for an option that is not known" do
      assert_raise ArgumentError, ~r/rows/, fn -> PartitionedBuffer.watch(:users, rows: 3) end
    end
  end

  describe "on a terminal" do
    setup do
      {:ok, terminal} = Terminal.start_link(24, 80)
      {:ok, terminal: terminal}
    end

    # The info of each page has to come from the test, so the test knows how many pages there are.
    defp watch(terminal, buffer, opts \\ []) do
      test = self()

      info = fn _buffer ->
        send(test, {:asks, self()})

        receive do
          {:info, info} -> info
          {:raise, error} -> raise error
        end
      end

      opts = Keyword.merge([device: terminal, ansi: true, interval: 0, info: info], opts)
      Task.async(fn -> Watch.run(buffer, opts) end)
    end

    defp next_page(watcher, info) do
      assert_receive {:asks, pid} when pid == watcher.pid
      send(watcher.pid, {:info, info})
      assert_receive {:printed, _terminal}
    end

    # When the next page asks for its info, the one before is done.
    defp settled(watcher, terminal) do
      assert_receive {:asks, pid} when pid == watcher.pid
      send(self(), {:asks, pid})
      Terminal.lines(terminal)
    end

    defp titles(lines), do: for(":users" <> _ = line <- lines, do: line)

    test "replaces the page before", %{terminal: terminal} do
      watcher = watch(terminal, :users, rounds: 3)
      next_page(watcher, info(size: 1))
      next_page(watcher, info(size: 2))
      lines = settled(watcher, terminal)
      assert titles(lines) == [":users  map"]
      assert value(lines, "waiting") == "2"
      next_page(watcher, info(size: 3))
      assert Task.await(watcher) == :ok
      lines = Terminal.lines(terminal)
      assert titles(lines) == [":users  map"]
      assert value(lines, "waiting") == "3"
    end

    test "says that Enter ends it, and ends with it", %{terminal: terminal} do
      watcher = watch(terminal, :users, interval: :infinity)
      next_page(watcher, info())
      assert_receive {:reads, ^terminal}
      assert "Press Enter to leave this page." in Terminal.lines(terminal)
      assert Terminal.enter(terminal) == :ok
      assert Task.await(watcher) == :ok
      lines = Terminal.lines(terminal)
      assert titles(lines) == [":users  map"]
      refute "Press Enter to leave this page." in lines
    end

    test "keeps the page that ends with its buffer, and waits for Enter", %{terminal: terminal} do
      watcher = watch(terminal, :users)
      next_page(watcher, info())
      assert_receive {:asks, _pid}
      send(watcher.pid, {:raise, ArgumentError.exception("it is not running")})
      assert_receive {:printed, _terminal}
      lines = Terminal.lines(terminal)
      assert titles(lines) == [":users  map"]
      assert Enum.take(lines, -2) == ["it is not running", "Press Enter to leave this page."]
      assert_receive {:reads, ^terminal}
      refute Task.yield(watcher, 0)
      assert Terminal.enter(terminal) == :ok
      assert Task.await(watcher) == :ok
    end

    test "reads nothing if the rounds end it", %{terminal: terminal} do
      watcher = watch(terminal, :users, rounds: 1)
      next_page(watcher, info())
      assert Task.await(watcher) == :ok
      assert Terminal.enter(terminal) == :nobody_reads
      refute "Press Enter to leave this page." in Terminal.lines(terminal)
    end

    test "goes on after the end of the input", %{terminal: terminal} do
      watcher = watch(terminal, :users)
      next_page(watcher, info(size: 1))
      assert_receive {:reads, ^terminal}
      Terminal.enter(terminal, :eof)
      for size <- 2..4, do: next_page(watcher, info(size: size))
      lines = settled(watcher, terminal)
      assert value(lines, "waiting") == "4"
      refute_received {:reads, ^terminal}
      send(watcher.pid, {:raise, ArgumentError.exception("it is not running")})
      assert Task.await(watcher) == :ok
    end

    # A log handler as the one of the console: it prints each event of its test.
    def log(%{meta: %{watch: terminal}, msg: {:string, text}}, %{config: %{terminal: terminal}}),
      do: IO.puts(terminal, text)

    def log(_event, _config), do: :ok

    test "leaves log lines between two pages alone, before and after the screen scrolls", %{
      terminal: terminal
    } do
      id = :"watch_test_#{System.unique_integer([:positive])}"
      :ok = :logger.add_handler(id, __MODULE__, %{config: %{terminal: terminal}})
      on_exit(fn -> :logger.remove_handler(id) end)
      watcher = watch(terminal, :users, rounds: 31)

      logged =
        for round <- 1..30 do
          next_page(watcher, info(size: round))
          # The page is there, and the next one waits for its info.
          settled(watcher, terminal)
          text = "line #{round}: the sink is away"
          Logger.error(text, watch: terminal)
          assert_receive {:printed, ^terminal}
          text
        end

      next_page(watcher, info(size: 31))
      assert Task.await(watcher) == :ok
      lines = Terminal.lines(terminal)
      assert Enum.take(lines, 30) == logged
      assert titles(lines) == [":users  map"]
      assert value(lines, "waiting") == "31"
    end

    test "keeps each of many log lines whole", %{terminal: terminal} do
      watcher = watch(terminal, :users, rounds: 2)
      next_page(watcher, info(size: 1))
      settled(watcher, terminal)
      logged = for number <- 1..50, do: "line #{number}: the sink is away"
      for line <- logged, do: IO.puts(terminal, line)
      next_page(watcher, info(size: 2))
      assert Task.await(watcher) == :ok
      lines = Terminal.lines(terminal)
      for {line, text} <- Enum.zip(lines, logged), do: assert(String.starts_with?(line, text))
      assert value(Enum.drop(lines, 50), "waiting") == "2"
    end

    test "moves the cursor no further than the page is long, on any terminal" do
      for rows <- [4, 8, 16, 24, 50], count <- [1, 3, 100] do
        {:ok, terminal} = Terminal.start_link(rows, 40)
        watcher = watch(terminal, :users, rounds: 3)
        partitions = for n <- 1..count, do: partition(n)
        IO.puts(terminal, "the line before")
        for _round <- 1..3, do: next_page(watcher, info(partitions: partitions))
        assert Task.await(watcher) == :ok
        lines = Terminal.lines(terminal)
        assert hd(lines) == "the line before"
        assert length(titles(lines)) == 1
      end
    end
  end

  describe "the page about all buffers" do
    defp rows(infos, memory \\ %{}, now \\ 0) do
      infos
      |> Enum.map(fn {buffer, info} -> {buffer, if(is_map(info), do: {:ok, info}, else: {:error, info})} end)
      |> Overview.rows(memory, now)
    end

    defp lines_of_all(infos, opts \\ []), do: infos |> rows() |> elem(0) |> Watch.render_all(opts)

    test "has a line for each buffer, in aligned columns" do
      [titles, first, second] =
        lines_of_all([
          {:users, info(failing_ms: 2_000)},
          {:events, info(kind: :queue, max_size: :infinity, waiting_writers: 0, oldest_ms: nil)}
        ])

      assert String.split(titles) == ~w(buffer state oldest failing held memory written processed kind)
      assert String.split(first) == ~w(:users failing 5.1 s 2.0 s 1,012 of 100,000 214.0 kB - - map)
      assert String.split(second) == ~w(:events paused - - 1,012 214.0 kB - - queue)
      assert last_end(first, "kB") == last_end(second, "kB")
    end

    test "has a line without numbers for a buffer that just ended" do
      assert [_titles, line] = lines_of_all(users: :not_running)
      assert String.split(line) == ~w(:users not running - - - - - - -)
    end

    test "says so if no buffer runs" do
      assert List.last(lines_of_all([])) == "no buffer is running"
    end

    test "has the fullest buffers if the terminal has too few lines" do
      infos = for n <- 1..20, do: {:"users_#{n}", info(size: rem(n * 7, 20), in_flight: 0)}
      lines = lines_of_all(infos, rows: 8)
      assert length(lines) == 7
      shown = for ":users_" <> rest <- lines, do: rest |> Integer.parse() |> elem(0)
      assert shown == [5, 8, 11, 14, 17]
      assert List.last(lines) == "and 15 others with #{Enum.sum(0..14)}"
    end

    test "goes on while no buffer runs, and takes each new one in" do
      {:ok, terminal} = Terminal.start_link(24, 120)
      {:ok, names} = Agent.start_link(fn -> [[], [:users], [:events, :users]] end)
      buffers = fn -> Agent.get_and_update(names, &List.pop_at(&1, 0)) end

      opts = [
        device: terminal,
        ansi: true,
        interval: 0,
        rounds: 3,
        buffers: buffers,
        info: fn _buffer -> info() end
      ]

      assert Watch.run(:all, opts) == :ok
      assert [_titles, ":events" <> _, ":users" <> _] = Terminal.lines(terminal)
    end
  end

  defp last_end(line, text) do
    {at, length} = line |> :binary.matches(text) |> List.last()
    at + length
  end
end
