defmodule Bench.JournalPeers do
  @moduledoc """
  What an entry takes of the processor, new integers to maps of four, in the ways of keeping a copy in a file: each on a
  table or a buffer of its own, in turn, until the device has the file.
  """

  alias Bench.{Cpu, JournalVm}

  @columns [:memory, :journal, :ets, :alog, :log, :delayed_write, :write]
  # Rows of a transaction of SQLite, commands that are sent to Redis together.
  @rows 500
  @pipelined 50

  @doc "The nanoseconds of each way in each round, by their names. To be called in a VM of its own."
  def run(dir, rounds, count) do
    state = %{
      ets: :ets.new(:peers, [:set, :public, write_concurrency: true]),
      alog: open_log(:alog, dir),
      log: open_log(:log, dir),
      delayed_write: open_file("delayed", dir, delayed_write: {65_536, 2_000}),
      write: open_file("raw", dir, []),
      sqlite: open_sqlite(dir),
      redis: open_redis(dir)
    }

    JournalVm.start_buffer(:memory, [])
    JournalVm.start_buffer(:journal, journal: Path.join(dir, "journal"))
    others = for way <- [:sqlite, :redis], state[way], do: way
    entries = for n <- 1..count, do: JournalVm.entry(:map, n)

    [_first | times] =
      for _round <- 0..rounds, do: Map.new(@columns ++ others, &{&1, round(&1, state, entries) / count})

    if state.redis, do: close_redis(state.redis)
    Map.new(@columns ++ others, fn way -> {way, Enum.map(times, & &1[way])} end)
  end

  defp round(way, state, entries) when way in [:sqlite, :redis], do: other(way, state[way], entries)

  defp round(way, state, entries) do
    :erlang.garbage_collect()
    {ns, _result} = Cpu.of(:all, fn -> write(way, state, entries) end)
    count = length(entries)
    ^count = size(way, state)
    empty(way, state)
    ns
  end

  defp write(:memory, _state, entries), do: each_put(:memory, entries)

  defp write(:journal, _state, entries) do
    each_put(:journal, entries)
    :ok = PartitionedBuffer.sync(:journal, timeout: 60_000)
  end

  defp write(way, state, entries) do
    for {key, value} = entry <- entries do
      :ets.insert(state.ets, {key, value})
      append(way, state[way], entry)
    end

    sync(way, state[way])
  end

  defp append(:ets, _table, _entry), do: :ok
  defp append(:alog, log, entry), do: :disk_log.alog(log, entry)
  defp append(:log, log, entry), do: :ok = :disk_log.log(log, entry)
  defp append(_way, file, entry), do: :ok = :file.write(file, :erlang.term_to_binary(entry))

  defp sync(:ets, _table), do: :ok
  defp sync(way, log) when way in [:alog, :log], do: :ok = :disk_log.sync(log)
  defp sync(_way, file), do: :ok = :file.datasync(file)

  defp size(way, _state) when way in [:memory, :journal], do: PartitionedBuffer.buffer_size(way)

  defp size(way, state) when way in [:alog, :log] do
    ^way = state[way]
    info = :disk_log.info(way)
    # The name depends on the release.
    items = info[:items] || Keyword.fetch!(info, :no_items)
    ^items = :ets.info(state.ets, :size)
  end

  defp size(_way, state), do: :ets.info(state.ets, :size)

  defp empty(way, _state) when way in [:memory, :journal], do: :ok = PartitionedBuffer.flush(way)

  defp empty(way, state) do
    if way in [:alog, :log], do: :ok = :disk_log.truncate(way)
    :ets.delete_all_objects(state.ets)
  end

  defp each_put(name, [{key, value} | rest]) do
    PartitionedBuffer.Map.put(name, key, value)
    each_put(name, rest)
  end

  defp each_put(_name, []), do: :ok

  defp open_log(name, dir) do
    {:ok, ^name} = :disk_log.open(name: name, file: ~c"#{dir}/#{name}")
    name
  end

  defp open_file(name, dir, options) do
    {:ok, file} = :file.open(Path.join(dir, name), [:raw, :binary, :append] ++ options)
    file
  end

  ## Databases: the processor time of their processes

  defp other(:sqlite, port, entries) do
    Port.command(port, "#{length(entries)}\n")
    receive do: ({^port, {:data, {:eol, ns}}} -> String.to_integer(ns))
  end

  defp other(:redis, {_port, os_pid, socket}, entries) do
    commands =
      for {key, value} <- entries,
          do: command(["SET", Integer.to_string(key), :erlang.term_to_binary(value)])

    {ns, _result} =
      Cpu.of(:all, os_pid, fn ->
        for chunk <- Enum.chunk_every(commands, @pipelined) do
          :ok = :gen_tcp.send(socket, chunk)
          receive_oks(socket, length(chunk))
        end
      end)

    :ok = :gen_tcp.send(socket, command(["DBSIZE"]))
    {:ok, size} = :gen_tcp.recv(socket, 0)
    ^size = ":#{length(entries)}\r\n"
    :ok = :gen_tcp.send(socket, command(["FLUSHALL"]))
    receive_oks(socket, 1)
    ns
  end

  defp receive_oks(socket, count), do: {:ok, _oks} = :gen_tcp.recv(socket, 5 * count)

  defp command(words),
    do: ["*#{length(words)}\r\n" | for(word <- words, do: ["$#{byte_size(word)}\r\n", word, "\r\n"])]

  # Each round has a new table. What binds the values is Python's part, some tenths of the time.
  @sqlite """
  import os, sqlite3, sys, time
  db = sqlite3.connect(sys.argv[1], isolation_level=None)
  db.execute("PRAGMA journal_mode=WAL")
  db.execute("PRAGMA synchronous=NORMAL")
  value = bytes(56)
  for line in sys.stdin:
      count = int(line)
      db.execute("DROP TABLE IF EXISTS entries")
      db.execute("CREATE TABLE entries (key INTEGER PRIMARY KEY, value BLOB)")
      rows = [(key, value) for key in range(count)]
      began = time.process_time_ns()
      for first in range(0, count, #{@rows}):
          db.execute("BEGIN")
          db.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?)", rows[first:first + #{@rows}])
          db.execute("COMMIT")
      took = time.process_time_ns() - began
      assert db.execute("SELECT count(*) FROM entries").fetchone() == (count,)
      print(took, flush=True)
  """

  defp open_sqlite(dir) do
    with python when python != nil <- System.find_executable("python3"),
         {_output, 0} <- System.cmd(python, ["-c", "import sqlite3"], stderr_to_stdout: true) do
      script = Path.join(dir, "sqlite.py")
      File.write!(script, @sqlite)
      args = [script, Path.join(dir, "sqlite")]
      Port.open({:spawn_executable, python}, [:binary, line: 1_000, args: args])
    else
      _missing -> nil
    end
  end

  defp open_redis(dir) do
    if server = System.find_executable("redis-server") do
      socket = Path.join(dir, "redis")

      args =
        ~w(--port 0 --appendonly yes --appendfsync everysec --save) ++
          ["", "--unixsocket", socket, "--dir", dir, "--logfile", "/dev/null"]

      # It ends with this VM, however that ends.
      script = ~S("$0" "$@" & echo $!; cat > /dev/null; kill $!)

      port =
        Port.open({:spawn_executable, "/bin/sh"}, [:binary, line: 100, args: ["-c", script, server | args]])

      os_pid = receive do: ({^port, {:data, {:eol, os_pid}}} -> os_pid)
      {port, os_pid, connect(socket, 100)}
    end
  end

  defp connect(path, tries) do
    case :gen_tcp.connect({:local, path}, 0, [:binary, active: false]) do
      {:ok, socket} ->
        socket

      {:error, _reason} when tries > 0 ->
        Process.sleep(50)
        connect(path, tries - 1)
    end
  end

  defp close_redis({port, _os_pid, socket}) do
    :ok = :gen_tcp.close(socket)
    Port.close(port)
  end
end
