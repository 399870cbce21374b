defmodule PartitionedBuffer.WatchTest do
  use ExUnit.Case, async: true

  import ExUnit.CaptureIO

  alias PartitionedBuffer.Observe.Watch

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

  defp totals(changes), do: Map.merge(@totals, Map.new(changes))

  defp lines(info, previous \\ nil, passed_ms \\ 0, opts \\ []) do
    info |> Watch.render(previous, passed_ms, opts) |> IO.iodata_to_binary() |> String.split("\n", trim: true)
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
        assert page |> IO.iodata_to_binary() |> String.split("\n") |> length() <= rows
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
      {:ok, infos} = Agent.start_link(fn -> infos end)

      next = fn :users ->
        case Agent.get_and_update(infos, &List.pop_at(&1, 0)) do
          error when is_exception(error) -> raise error
          info -> info
        end
      end

      capture_io(fn ->
        assert Watch.run(:users, Keyword.merge([interval: 0, info: next, ansi: false], opts)) == :ok
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

    test "replaces the page where the terminal can" do
      output = run([info(), info()], rounds: 2, ansi: true)
      page = IO.ANSI.home() <> IO.ANSI.clear()
      assert String.starts_with?(output, page)
      assert length(String.split(output, page)) == 3
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
      assert_raise ArgumentError, ~r/rows/, fn -> Watch.run(:users, rows: 3) end
    end
  end

  defp last_end(line, text) do
    {at, length} = line |> :binary.matches(text) |> List.last()
    at + length
  end
end
