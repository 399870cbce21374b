defmodule PartitionedBuffer.OtherVM do
  @moduledoc false
  # A VM of its own for code that ends it, or that needs one that ended. It boots in a fraction of a
  # second: it has Elixir and the compiled package, and starts only what the code asks for.
  #
  #     vm = OtherVM.start(quote do say({:sum, 1 + unquote(number)}) end)
  #     assert hear(vm) == {:sum, 3}
  #     kill(vm)
  #
  # The code runs in a process that gets the messages of `tell/2` as `{:told, term}`. The VM ends with
  # its code, and with the test's VM.

  defstruct [:port, :os_pid]

  # A VM that says nothing for so long is a failure; a busy machine needs a few seconds.
  @patience_ms 60_000

  ## On the side of the test

  @doc """
  Starts a VM that evaluates quoted code, with the functions of this module. With `user: number` it runs as
  another user of the system, and with `env: [{name, value}]` it has these variables of the environment.
  """
  def start(code, opts \\ []) do
    # The stand-in for telemetry is in the package.
    apps = [:elixir, :logger, :partitioned_buffer, :telemetry]
    paths = for app <- apps, dir = :code.lib_dir(app), is_list(dir), do: Path.join(dir, "ebin")
    paths = Enum.flat_map(paths, &["-pa", &1])
    encoded = Base.url_encode64(:erlang.term_to_binary(code))
    args = ["-noshell" | paths] ++ ["-s", Atom.to_string(__MODULE__), "main", "-extra", encoded]

    command =
      if user = opts[:user], do: ["setpriv", "--reuid=#{user}", "--clear-groups", "erl"], else: ["erl"]

    [program | before] = command

    env = for {name, value} <- opts[:env] || [], do: {to_charlist(name), to_charlist(value)}

    port =
      Port.open(
        {:spawn_executable, System.find_executable(program)},
        [:binary, :exit_status, :stderr_to_stdout, line: 65_536, env: env, args: before ++ args]
      )

    {:os_pid, os_pid} = Port.info(port, :os_pid)
    %__MODULE__{port: port, os_pid: os_pid}
  end

  @doc "Waits for the next term that the code says."
  def hear(%__MODULE__{} = vm, timeout \\ @patience_ms) do
    case await(vm, timeout) do
      {:said, term} -> term
      other -> raise "the VM said nothing, but: #{inspect(other)}"
    end
  end

  @doc "Waits for the next term that the code says, and returns it in a list, which is empty if the VM ends."
  def hear_or_end(%__MODULE__{} = vm) do
    case await(vm, @patience_ms) do
      {:said, term} -> [term]
      {:ended, _status, []} -> []
      other -> raise "the VM said nothing, but: #{inspect(other)}"
    end
  end

  @doc "Waits until the VM ends. Returns its status, and raises if it says anything before."
  def await_end(%__MODULE__{} = vm, timeout \\ @patience_ms) do
    case await(vm, timeout) do
      {:ended, status, _output} -> status
      other -> raise "the VM did not end, but: #{inspect(other)}"
    end
  end

  @doc "Gives a term to the code."
  def tell(%__MODULE__{port: port}, term) do
    Port.command(port, [Base.url_encode64(:erlang.term_to_binary(term)), ?\n])
    :ok
  end

  @doc "Ends a VM with SIGKILL, and waits until it is gone. Returns what it said and nobody heard."
  def kill(%__MODULE__{os_pid: os_pid} = vm) do
    signal(os_pid, "KILL")
    drain(vm)
  end

  @doc "Sends a signal to a process of the system, which may be gone."
  def signal(os_pid, signal) do
    System.cmd("kill", ["-#{signal}", "#{os_pid}"], stderr_to_stdout: true)
    :ok
  end

  @doc "Waits until a VM is gone, or kills it after a time. Returns what it said and nobody heard."
  def drain_or_kill(vm, timeout) do
    case await(vm, timeout) do
      {:said, term} -> [term | drain_or_kill(vm, timeout)]
      {:ended, _status, _output} -> []
      {:silent, _output} -> kill(vm)
    end
  end

  @doc "Waits until a VM is gone. Returns what it said and nobody heard."
  def drain(vm) do
    case await(vm, @patience_ms) do
      {:said, term} -> [term | drain(vm)]
      {:ended, _status, _output} -> []
    end
  end

  defp await(vm, timeout, output \\ [], parts \\ [])

  defp await(%__MODULE__{port: port} = vm, timeout, output, parts) do
    receive do
      {^port, {:data, {:noeol, part}}} ->
        await(vm, timeout, output, [part | parts])

      {^port, {:data, {:eol, part}}} ->
        line(IO.iodata_to_binary(Enum.reverse([part | parts])), vm, timeout, output)

      {^port, {:exit_status, status}} ->
        {:ended, status, Enum.reverse(output)}
    after
      timeout -> {:silent, Enum.reverse(output)}
    end
  end

  defp line("say " <> encoded, _vm, _timeout, _output), do: {:said, decode(encoded)}
  defp line(line, vm, timeout, output), do: await(vm, timeout, [line | output])

  ## On the side of the other VM

  @doc false
  def main do
    {:ok, _started} = Application.ensure_all_started(:elixir)
    [encoded] = :init.get_plain_arguments()
    code = decode(to_string(encoded))
    runner = spawn(fn -> run(code) end)
    spawn(fn -> listen(runner) end)
  end

  defp run(code) do
    Code.eval_quoted(
      quote(
        do:
          (
            import(unquote(__MODULE__), only: [say: 1, told: 0])
            unquote(code)
          )
      )
    )

    halt(0)
  catch
    kind, reason ->
      IO.puts(Exception.format(kind, reason, __STACKTRACE__))
      halt(1)
  end

  # The output is written before the end.
  defp halt(status), do: System.halt(status)

  # The end of the input is that of the test's VM.
  defp listen(runner) do
    case IO.gets("") do
      line when is_binary(line) ->
        send(runner, {:told, line |> String.trim() |> decode()})
        listen(runner)

      _eof ->
        System.halt(2)
    end
  end

  @doc "Says a term to the test."
  def say(term), do: IO.puts(["say ", Base.url_encode64(:erlang.term_to_binary(term))])

  @doc "Waits for a term that the test tells."
  def told do
    receive do
      {:told, term} -> term
    end
  end

  defp decode(encoded), do: encoded |> Base.url_decode64!() |> :erlang.binary_to_term()
end
