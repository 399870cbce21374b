defmodule PartitionedBuffer.ConservationTest do
  # Short runs of what bench/conservation.exs does at length. CONSERVATION_SEED sets the seed.

  use PartitionedBuffer.Case, async: true

  alias PartitionedBuffer.Conservation
  alias PartitionedBuffer.Conservation.Faults

  @moduletag :capture_log
  @moduletag timeout: 300_000

  @seed String.to_integer(System.get_env("CONSERVATION_SEED", "#{:erlang.phash2(make_ref())}"))

  for {title, faults, writes} <- [
        {"each write is processed once, or replaced or deleted by a later one", [], 600_000},
        {"only what a failing processor has in hand is lost, and every failure is reported",
         Faults.in_processor(), 400_000},
        {"deaths, stops and starts lose nothing that no processor has in hand", Faults.all(), 800_000}
      ] do
    test title do
      check(@seed, 0, 0, writes: unquote(writes), faults: unquote(faults))
    end
  end

  # On a busy machine there are few hand-overs to lose something at, and few faults: then again, with the next seed.
  defp check(seed, hand_overs, faults, opts) do
    result = Conservation.package(Conservation.Maps, [seed: seed] ++ opts)
    assert result.violations == %{}, "CONSERVATION_SEED=#{seed}: #{inspect(result, pretty: true)}"
    hand_overs = hand_overs + result.counts.hand_overs
    faults = faults + Enum.sum(Map.values(result.faults))

    if hand_overs < 50 or (opts[:faults] != [] and faults < 20),
      do: check(seed + 1, hand_overs, faults, opts)
  end
end
