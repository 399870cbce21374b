defmodule PartitionedBuffer.Test.Cluster.Netsplit do
  @moduledoc false
  # Cuts connections between two sets of nodes by cookies, and heals them.
  #
  # Each side takes a wrong cookie for the other, and each another one: with the same wrong cookie on
  # both sides they would connect again. Connections to the hidden controller stay.
  #
  # `way: :one` changes the cookies of the first side only. Distribution runs over TCP, so nothing
  # passes in either direction, but only one side is at fault: the other tries to connect all the
  # time, and is rejected.

  alias PartitionedBuffer.Test.Cluster.{Links, Until}

  @doc "Cuts every node of `left` off from every node of `right`. Returns when all of them noticed."
  def cut(left, right, opts \\ []) do
    refuse(left, right, :wrong_on_the_left)
    unless opts[:way] == :one, do: refuse(right, left, :wrong_on_the_right)

    left
    |> Enum.map(&:erpc.send_request(&1, __MODULE__, :disconnect, [right]))
    |> Enum.each(&:erpc.receive_response/1)

    each_side(left, right, &Links.await(&1, :down, &2))
  end

  @doc false
  def disconnect(others), do: Enum.each(others, &Node.disconnect/1)

  @doc """
  Connects them again, and all other pairs of `all`: overlap prevention cuts more connections than
  were meant. Returns when all pairs are connected.
  """
  def heal(all) do
    for a <- all, b <- all, a != b, do: :erpc.call(a, Node, :set_cookie, [b, Node.get_cookie()])
    for a <- all, b <- all, a < b, do: connect(a, b)
    each_side(all, all, &Links.await(&1, :up, &2))
  end

  @doc """
  How long the pairs of `left` and `right` were apart, as both nodes of each pair noticed it, since
  the time `since` in microseconds. `together_ms` is the time in which no pair was connected, and
  `reconnections` counts pairs that met inside of the split: it has to be 0.
  """
  def measure(left, right, since) do
    cuts =
      for a <- left ++ right, b <- if(a in left, do: right, else: left) do
        events = for {at, event, ^b} <- Links.events(a), at >= since, do: {at, event}
        {down, :down} = List.first(events) || raise("#{a} did not lose #{b}")
        {up, :up} = List.last(events)
        %{down: down, up: up, downs: Enum.count(events, &match?({_at, :down}, &1))}
      end

    lengths = for cut <- cuts, do: div(cut.up - cut.down, 1_000)
    together = Enum.min(Enum.map(cuts, & &1.up)) - Enum.max(Enum.map(cuts, & &1.down))

    %{
      shortest_ms: Enum.min(lengths),
      longest_ms: Enum.max(lengths),
      together_ms: div(together, 1_000),
      reconnections: Enum.sum(Enum.map(cuts, &(&1.downs - 1)))
    }
  end

  defp refuse(nodes, others, cookie),
    do: for(a <- nodes, b <- others, do: :erpc.call(a, Node, :set_cookie, [b, cookie]))

  # A simultaneous attempt of the other side may end ours.
  defp connect(a, b) do
    Until.true?(30_000, fn -> :erpc.call(a, Node, :connect, [b]) end) ||
      raise "#{a} does not connect to #{b} again"
  end

  defp each_side(left, right, wait) do
    for a <- left, b <- right, a != b do
      wait.(a, b)
      wait.(b, a)
    end

    :ok
  end
end
