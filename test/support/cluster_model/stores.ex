defmodule PartitionedBuffer.ClusterModel.Pure do
  @moduledoc false
  # Takes each number of a stream once, as `Native.absorb/5` does.
  alias PartitionedBuffer.ClusterModel

  @max_size 3

  def new(_kind, broken), do: %{entries: %{}, streams: %{}, broken: broken}

  def take(store, stream, number, entries) do
    later =
      Map.merge(store.entries, Map.new(entries, &ClusterModel.of_entry/1), fn _key, one, other ->
        ClusterModel.merge(one, other, store.broken)
      end)

    cond do
      number <= Map.get(store.streams, stream, 0) and store.broken != :take_again -> {:duplicate, store}
      map_size(later) > @max_size -> {:full, store}
      true -> {:ok, %{store | entries: later, streams: Map.put(store.streams, stream, number)}}
    end
  end

  def drain(store),
    do:
      {for({key, entry} <- store.entries, do: List.to_tuple([key | Tuple.to_list(entry)])),
       %{store | entries: %{}}}
end

defmodule PartitionedBuffer.ClusterModel.Absorbed do
  @moduledoc false
  # The native store.
  alias PartitionedBuffer.Absorbing

  def new(kind, _broken), do: Absorbing.open(kind, outcomes?: false, max_size: 3)
  def take(run, stream, number, entries), do: {Absorbing.absorb(run, entries, stream, number, []), run}
  def drain(run), do: {Absorbing.entries(run), run}
end
