defmodule PartitionedBuffer.Generators do
  @moduledoc false
  # PropEr types: any terms, and commands on a few keys. A command names its key by its place among
  # the keys of the case, so commands meet at the same keys.

  @compile {:no_warn_undefined, [:proper_types]}
  import Bitwise

  alias :proper_types, as: T

  @atoms [:a, :b, nil, true, :ok, :error, :_, :"$1", :"$_", :"$$", :not_running, :ü, Elixir.Enum]

  @doc "A case of commands for one process: partitions, keys, commands."
  def sequential, do: {T.range(1, 3), keys(), T.list(command())}

  @doc """
  A case of commands for one process, then of lists of commands for several processes at the same
  time.
  """
  def parallel do
    few = T.resize(6, T.list(command()))
    {T.range(1, 3), keys(), few, T.oneof([{few, few}, {few, few, few}])}
  end

  @doc "A case of commands for one process on a queue: partitions, and commands with their items."
  def queue do
    {T.range(1, 3),
     T.list(
       T.frequency([
         {8, {:push, terms(), route()}},
         {4, {:push, few(terms()), route()}},
         {1, {:push, T.bind(T.range(17, 3_000), &Enum.to_list(1..&1), false), route()}},
         {1, {:improper, T.non_empty(few(terms())), route()}},
         {2, :size},
         {3, :flush},
         {1, {:batch_size, T.oneof([T.range(1, 4), 100])}}
       ])
     )}
  end

  @doc """
  A case of commands on a queue for one process, then of lists of commands for several processes at
  the same time. Only the first process flushes. Items become distinct later, by an added number;
  `:nothing` becomes a number alone.
  """
  def parallel_queue do
    item = T.frequency([{1, :nothing}, {2, terms()}])

    pushes = [
      {8, {:push, item, route()}},
      {4, {:push_all, few(item), route()}},
      {1, {:push_all, T.bind(T.range(17, 3_000), &List.duplicate(:nothing, &1), false), route()}},
      {1, {:improper, T.non_empty(few(item)), route()}},
      {3, :size}
    ]

    # Flushes are frequent: they have to meet pushes, which take less time.
    flushes = [{10, :flush}, {1, {:batch_size, T.oneof([T.range(1, 4), 100])}}]
    own = T.resize(8, T.list(T.frequency(pushes ++ flushes)))
    other = T.resize(12, T.list(T.frequency(pushes)))
    {T.range(1, 3), T.resize(4, own), T.oneof([{own, other}, {own, other, other}])}
  end

  @doc "A case of commands for one process on a counter: partitions, keys, commands."
  def counter, do: {T.range(1, 3), keys(), T.list(counting())}

  @doc """
  A case of commands on a counter for one process, then of lists of commands for several processes
  at the same time.
  """
  def parallel_counter do
    few = T.resize(6, T.list(counting()))
    {T.range(1, 3), keys(), few, T.oneof([{few, few}, {few, few, few}])}
  end

  defp counting do
    key = T.range(0, 5)

    T.frequency([
      {12, {:add, key, amount(), route()}},
      {4, {:add_counted, key, amount(), count(), route()}},
      {4, {:add_all, few({key, amount()}), route()}},
      {6, {:get, key, route()}},
      {3, {:fetch, key, route()}},
      {3, {:delete, key, route()}},
      {2, :size},
      {3, :flush},
      {1, {:churn, T.range(1, 300), T.range(1, 8)}},
      {1, {:invalid, few({key, amount()}), route()}},
      {1, {:batch_size, T.oneof([T.range(1, 4), 100])}}
    ])
  end

  # Amounts with which sums soon leave 64 bits, and others.
  defp amount do
    T.frequency([
      {4, T.range(-2, 4)},
      {1, T.integer()},
      {3,
       T.elements(
         for {n, d} <- [{1 <<< 63, -1}, {1 <<< 62, 0}, {-(1 <<< 63), 0}, {-(1 <<< 63), 1}], do: n + d
       )}
    ])
  end

  defp count, do: T.oneof([T.range(0, 3), T.elements([(1 <<< 63) - 1, 1 <<< 62])])

  defp keys, do: T.resize(5, T.non_empty(T.list(key())))

  # Small numbers are frequent, such as 1 and 1.0, alone and within other terms.
  defp key do
    near = T.oneof([T.range(-1, 1), T.elements([-1.0, -0.0, 0.0, 1.0])])
    T.oneof([near, {near}, [near], T.bind(near, &%{&1 => &1}, false), terms()])
  end

  defp command do
    key = T.range(0, 5)

    T.frequency([
      {8, {:put, key, terms(), route()}},
      {8, {:put_newer, key, terms(), version(), route()}},
      {3, {:put_all, few({key, terms()}), route()}},
      {3, {:put_all_newer, few({key, terms(), version()}), route()}},
      {6, {:get, key, route()}},
      {4, {:delete, key, route()}},
      {2, :size},
      {3, :flush},
      {1, {:churn, T.range(1, 300), T.range(1, 8)}},
      {1, {:invalid, few({key, terms()}), route()}},
      {1, {:batch_size, T.oneof([T.range(1, 4), 100])}}
    ])
  end

  defp few(type), do: T.resize(8, T.list(type))

  # The way to choose the partition; `Laws.option/1` makes it an option.
  defp route, do: T.frequency([{4, nil}, {1, T.elements([:term, :function, :mfa])}])

  defp version do
    T.frequency([
      {8, T.range(-2, 4)},
      {1, T.integer()},
      {2,
       T.bind(
         {T.elements([-1, 1]), T.elements([59, 60, 63, 64, 200]), T.range(-1, 1)},
         fn {s, b, d} -> s * (1 <<< b) + d end,
         false
       )}
    ])
  end

  defp terms, do: nested(nested(leaf()))

  defp leaf do
    T.frequency([
      {3, T.range(-1, 2)},
      {2, T.elements(@atoms)},
      {1, T.elements([0.0, -0.0, 1.0, 2.0, 1.0e300])},
      {1, T.integer()},
      {1, T.float()},
      {1, T.largeint()},
      {1, T.bind(T.range(60, 300), &(1 <<< &1), false)},
      {1, T.binary()},
      {1, T.bitstring()},
      {1, T.bind(T.range(60, 3_000), &String.duplicate("x", &1), false)},
      {1, T.elements([[], {}, "", <<>>])},
      {1, T.elements(unique_terms())}
    ])
  end

  defp nested(type) do
    few = T.resize(4, T.list(type))

    T.frequency([
      {6, type},
      {1, few},
      {1, T.bind({few, type}, fn {list, tail} -> list ++ tail end, false)},
      {1, T.bind(few, &List.to_tuple/1, false)},
      {1, T.bind(T.resize(4, T.list({type, type})), &Map.new/1, false)}
    ])
  end

  # Terms equal only to themselves, so a whole run has the same ones.
  defp unique_terms do
    x = 1

    [
      self(),
      make_ref(),
      hd(Port.list()),
      &String.length/1,
      fn -> :constant end,
      fn -> x end,
      :atomics.new(1, [])
    ]
  end
end
