defmodule Bench.Sigterm do
  @moduledoc """
  A VM with a buffer gets SIGTERM while its database is away: what is stored then, and what are dead letters?

  `run/2` starts test/vm/sigterm.exs in a VM of its own. Each of the two waits for the other's next line:

    * The VM writes half of the updates, flushes, and says `stored`.
    * This side kills the database, and says `go on`.
    * The VM writes the other half, leaves a file with what was acknowledged, and says `written`.
    * This side sends SIGTERM, and starts the database when the VM is gone.
  """

  alias Bench.{Postgres, Upserts}

  @root Path.expand("../..", __DIR__)
  @script Path.join(@root, "test/vm/sigterm.exs")

  # In milliseconds. Nothing here should take nearly as long.
  @patience 60_000

  @doc """
  Takes the options of `Upserts.work/1`. Returns the numbers of keys that were acknowledged, stored, and dead letters; how long
  the VM took to stop; and in which keys the newest of table and dead letters are not what was acknowledged.
  """
  def run(postgres, updates: updates, keys: keys, seed: seed) do
    Upserts.create_table(postgres)

    dir =
      Path.join(
        System.tmp_dir!(),
        "partitioned_buffer_sigterm_#{System.unique_integer([:positive])}_#{System.pid()}"
      )

    File.mkdir_p!(dir)

    try do
      vm = start([Postgres.port(postgres), dir, updates, keys, seed])
      await_line(vm, "stored")
      Postgres.kill!(postgres)
      Port.command(vm, "go on\n")
      await_line(vm, "written")
      began = System.monotonic_time(:millisecond)
      terminate(vm)
      ended = System.monotonic_time(:millisecond)
      Postgres.start!(postgres)

      acknowledged = dir |> acknowledged() |> File.read!() |> :erlang.binary_to_term()
      stored = Upserts.stored(postgres)
      buried = buried(dir)

      %{
        acknowledged: map_size(acknowledged),
        stored: map_size(stored),
        dead_letters: map_size(buried),
        stop_ms: ended - began,
        differences: Upserts.differences(acknowledged, Upserts.newest(stored, buried))
      }
    after
      File.rm_rf!(dir)
    end
  end

  @doc "The file with the fold over the acknowledged updates."
  def acknowledged(dir), do: Path.join(dir, "acknowledged")

  @doc "The `:dead_letter` of the buffer: adds entries to a file. Partitions do so at the same time, each by one write."
  def bury(entries, _reason, dir) do
    letters =
      for entry <- entries, into: <<>> do
        term = :erlang.term_to_binary(entry)
        <<byte_size(term)::32, term::binary>>
      end

    File.write!(dead_letters(dir), letters, [:append])
  end

  defp buried(dir) do
    case File.read(dead_letters(dir)) do
      {:ok, letters} ->
        for <<size::32, term::binary-size(size) <- letters>>, reduce: %{} do
          fold ->
            {key, value, version, _updates} = :erlang.binary_to_term(term)
            Upserts.newest(fold, %{key => {version, value}})
        end

      {:error, :enoent} ->
        %{}
    end
  end

  defp dead_letters(dir), do: Path.join(dir, "dead_letters")

  defp start(args) do
    args = ["-pa", Application.app_dir(:partitioned_buffer, "ebin"), @script | Enum.map(args, &to_string/1)]
    options = [:binary, :exit_status, :stderr_to_stdout, line: 10_000, args: args]
    Port.open({:spawn_executable, System.find_executable("elixir")}, options)
  end

  defp terminate(vm) do
    # `elixir` replaces itself by the VM, so this is its process.
    {:os_pid, pid} = Port.info(vm, :os_pid)
    {"", 0} = System.cmd("kill", ["-TERM", to_string(pid)])
    await(vm, {:exit_status, 0}, "exit after SIGTERM", [])
  end

  defp await_line(vm, line), do: await(vm, {:data, {:eol, line}}, "say #{inspect(line)}", [])

  defp await(vm, wanted, what, output) do
    receive do
      {^vm, ^wanted} -> :ok
      {^vm, {:data, {_eol, line}}} -> await(vm, wanted, what, [line | output])
      {^vm, {:exit_status, status}} -> failed("exited with #{status}, and did not #{what}", output)
    after
      @patience -> failed("did not #{what} in #{@patience} ms", output)
    end
  end

  defp failed(what, output),
    do: raise("#{Path.relative_to(@script, @root)} #{what}:\n#{output |> Enum.reverse() |> Enum.join("\n")}")
end
