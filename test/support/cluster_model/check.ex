defmodule PartitionedBuffer.ClusterModel.Check do
  @moduledoc false
  # The guarantees, of a world in which everything is stored.

  alias PartitionedBuffer.ClusterModel

  @doc "`:ok`, or what contradicts the contract."
  def check(%ClusterModel{violations: [_ | _] = violations}), do: {:violations, violations}

  def check(%ClusterModel{kind: :counter} = world) do
    {lose, double} = {counts(world.may_lose), counts(world.may_double)}
    stored = counts(Map.to_list(world.sink))

    wrong =
      for {number, _key, _version} <- world.writes,
          times = Map.get(stored, number, 0),
          times > 1 + Map.get(double, number, 0) or (times == 0 and not is_map_key(lose, number)),
          do: {number, times}

    if wrong == [], do: :ok, else: {:wrong_sums, wrong}
  end

  # What a dead member had of a key took the place of all older writes.
  def check(%ClusterModel{kind: :map} = world) do
    lost =
      world.may_lose
      |> Enum.group_by(&elem(&1, 0), &elem(elem(&1, 1), 1))
      |> Map.new(fn {key, all} -> {key, Enum.max(all)} end)

    wrong =
      for {key, writes} <- Enum.group_by(world.writes, &elem(&1, 1)),
          {number, ^key, version} = Enum.max_by(writes, &elem(&1, 2)),
          version > Map.get(lost, key, -1),
          not match?({^number, ^version, _updates}, world.sink[key]),
          do: {key, {number, version}, world.sink[key]}

    if wrong == [], do: :ok, else: {:not_the_newest, wrong}
  end

  # How often each write is in these sums.
  defp counts(entries) do
    for {_key, {sum, _count}} <- entries, {digit, number} <- digits(sum), digit > 0, reduce: %{} do
      counts -> Map.update(counts, number, digit, &(&1 + digit))
    end
  end

  defp digits(sum), do: sum |> Integer.digits(16) |> Enum.reverse() |> Enum.with_index()
end
