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
      result = Conservation.package(writes: unquote(writes), seed: @seed, faults: unquote(faults))
      assert result.violations == %{}, "CONSERVATION_SEED=#{@seed}: #{inspect(result, pretty: true)}"
      # There were hand-overs to lose something at, and the faults happened.
      assert result.counts.hand_overs > 50
      assert Enum.sum(Map.values(result.faults)) >= if(unquote(faults) == [], do: 0, else: 20)
    end
  end
end
