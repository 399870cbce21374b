# Replays a log of package states into a buffer, which writes them to a DETS file.
#
#     mix run bench/replay.exs [FILE]
#
# Lines have the form of dpkg's log (the default is this machine's): date, time, an action, what it is about. Those of
# the action `status` tell the state of a package from then on. Several processes replay them, so that they come out of
# order; the newest version, made of time and line number, wins. The buffer sees to that among the entries it holds, the
# store, as an upsert with a condition would, between one flush and the next. At the end the file must hold what a
# fold over the log in its order gives.

defmodule Replay do
  alias PartitionedBuffer.Map, as: Buffer

  @default_file "/var/log/dpkg.log"
  @writers 4
  @lines_a_task 200
  @interval_ms 20

  def main(argv) do
    file = List.first(argv) || @default_file
    File.regular?(file) || abort("there is no file #{file}: give a log of dpkg's form as argument")
    expected = fold(file)
    map_size(expected) > 0 || abort("#{file} has no line of the form DATE TIME status STATE PACKAGE VERSION")

    path = Path.join(System.tmp_dir!(), "replay_#{System.pid()}.dets")
    {:ok, store} = :dets.open_file(:replay, file: String.to_charlist(path), type: :set)
    counters = :counters.new(2, [])

    {:ok, _supervisor} =
      Buffer.start_link(
        name: :replay,
        processor: {__MODULE__, :store, [store, counters]},
        processing_interval_ms: @interval_ms,
        processing_batch_size: 100
      )

    IO.puts("replaying #{file} with #{@writers} processes into #{path}")
    progress = spawn_link(fn -> progress(counters) end)
    {microseconds, :ok} = :timer.tc(fn -> replay(file, counters) end)
    send(progress, {:stop, self()})
    receive do: (:stopped -> :ok)

    events = :counters.get(counters, 1)
    stored = :counters.get(counters, 2)

    result =
      :dets.foldl(
        fn {package, state, version}, map -> Map.put(map, package, {state, version}) end,
        %{},
        store
      )

    :dets.close(store)
    File.rm!(path)

    IO.puts("""
    events             #{events}
    distinct keys      #{map_size(expected)}
    entries processed  #{stored}
    writes coalesced   #{events - stored}
    events per second  #{div(events * 1_000_000, max(microseconds, 1))} (until the last was processed)
    """)

    if result == expected do
      IO.puts("checked: the store holds what a fold over the file gives")
    else
      abort("the store differs from a fold over the file in #{map_size(differences(result, expected))} keys")
    end
  end

  # The processor.
  def store(batch, store, counters) do
    newer =
      for {package, state, version, _updates} <- batch, version > stored_version(store, package) do
        {package, state, version}
      end

    :ok = :dets.insert(store, newer)
    :counters.add(counters, 2, length(batch))
  end

  defp stored_version(store, package) do
    case :dets.lookup(store, package) do
      [{^package, _state, version}] -> version
      [] -> -1
    end
  end

  defp replay(file, counters) do
    file
    |> numbered_lines()
    |> Stream.chunk_every(@lines_a_task)
    |> Task.async_stream(&put(&1, counters), max_concurrency: @writers, ordered: false, timeout: :infinity)
    |> Stream.run()

    Buffer.stop(:replay)
  end

  defp put(lines, counters) do
    for line <- lines, {package, state, version} <- event(line) do
      Buffer.put_newer(:replay, package, state, version)
      :counters.add(counters, 1, 1)
    end
  end

  defp fold(file) do
    for line <- numbered_lines(file), {package, state, version} <- event(line), reduce: %{} do
      states -> Map.put(states, package, {state, version})
    end
  end

  defp numbered_lines(file), do: file |> File.stream!() |> Stream.with_index()

  # A list of one event, or of none. The version grows from line to line, since the log is in the order of time.
  defp event({line, number}) do
    with [date, time, "status", state, package, version] <- String.split(line),
         {:ok, at} <- NaiveDateTime.from_iso8601(date <> "T" <> time) do
      seconds = NaiveDateTime.diff(at, ~N[1970-01-01 00:00:00])
      [{package, {state, version}, seconds * 1_000_000_000 + number}]
    else
      _no_event -> []
    end
  end

  defp progress(counters) do
    receive do
      {:stop, pid} ->
        report(counters)
        IO.puts("")
        send(pid, :stopped)
    after
      100 ->
        report(counters)
        progress(counters)
    end
  end

  defp report(counters) do
    IO.write("\r#{:counters.get(counters, 1)} events put, #{:counters.get(counters, 2)} entries processed")
  end

  defp differences(one, other),
    do: one |> Enum.reject(fn {key, value} -> other[key] == value end) |> Map.new()

  defp abort(message) do
    IO.puts(:stderr, "\n" <> message)
    System.halt(1)
  end
end

Replay.main(System.argv())
