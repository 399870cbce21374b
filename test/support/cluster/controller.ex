defmodule PartitionedBuffer.Test.Cluster.Controller do
  @moduledoc false
  # Makes the VM of the tests a hidden node on 127.0.0.1. Hidden nodes are no members of a buffer and
  # no part of the mesh, so peers never connect to each other through the controller, and a netsplit
  # does not cut them off from the sink.

  alias PartitionedBuffer.Test.Cluster.Until

  @host "127.0.0.1"
  @loopback {127, 0, 0, 1}
  @stop_ms 5_000

  def host, do: @host

  @doc "Arguments that bind the distribution of a peer to loopback and give it the cookie of the controller."
  def peer_args,
    do: ~w(-setcookie #{Node.get_cookie()} -kernel inet_dist_use_interface {127,0,0,1})

  @doc "Starts the distribution unless it runs. Raises if that is impossible: these tests are never skipped."
  def start do
    unless Node.alive?() do
      start_epmd()
      Application.put_env(:kernel, :inet_dist_use_interface, @loopback)
      # epmd may still have the name of the last time.
      name = :"controller_#{System.pid()}_#{System.unique_integer([:positive])}@#{@host}"

      case :net_kernel.start(name, %{name_domain: :longnames, hidden: true}) do
        {:ok, _pid} -> :ok
        {:error, reason} -> raise "the tests of several nodes need Erlang's distribution: #{inspect(reason)}"
      end

      Node.set_cookie(:"cookie_#{:erlang.phash2(make_ref())}_#{System.pid()}")
    end

    :ok
  end

  @doc "Ends the distribution. The VM is `:nonode@nohost` again."
  def stop do
    # A test may have stopped it before.
    _result = :net_kernel.stop()
    # The VM gives up its name a moment later. A start in between would take it for a node.
    Until.true?(@stop_ms, fn -> not Node.alive?() end) ||
      raise "the distribution does not end within #{@stop_ms} ms"

    :ok
  end

  @doc "The nodes of this machine: `{:ok, [{short name, port}]}`."
  def names, do: :erl_epmd.names(@loopback)

  @doc "Starts epmd on loopback unless it runs."
  def start_epmd do
    with {:error, _reason} <- names() do
      epmd = System.find_executable("epmd") || in_erlang() || raise_missing()
      {_output, 0} = System.cmd(epmd, ~w(-daemon -address #{@host}))
      # The daemon detaches before it listens.
      Until.true?(5_000, fn -> match?({:ok, _names}, names()) end) ||
        raise "epmd started, but does not listen on #{@host}"
    end
  end

  defp in_erlang do
    [:code.root_dir(), "erts-*/bin/epmd"] |> Path.join() |> Path.wildcard() |> List.first()
  end

  defp raise_missing do
    raise "epmd was not found. The tests of several nodes need it: install all of Erlang, " <>
            "or leave these tests out with `mix test --exclude cluster`"
  end
end
