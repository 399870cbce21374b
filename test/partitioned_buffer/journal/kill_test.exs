defmodule PartitionedBuffer.Journal.KillTest do
  # VMs that are killed at any time, against a model: see test/support/journal. A round takes a second or
  # two. JOURNAL_KILL_ROUNDS=500 does more of them, and JOURNAL_KILL_SEED=7 begins with those of this seed.
  use PartitionedBuffer.JournalCase, async: true

  alias PartitionedBuffer.JournalLoop

  @moduletag :journal_kill
  @moduletag timeout: :infinity

  # A few violations show what is wrong.
  @shown 5

  test "after any kills nothing is missing but the last moment, and nothing comes that must not", %{dir: dir} do
    rounds = String.to_integer(System.get_env("JOURNAL_KILL_ROUNDS", "20"))
    seed = String.to_integer(System.get_env("JOURNAL_KILL_SEED") || "#{:rand.uniform(1_000_000)}")

    numbers =
      for seed <- seed..(seed + rounds - 1) do
        round = Path.join(dir, "#{seed}")
        {violations, numbers, plan} = JournalLoop.round(seed, round)
        assert {seed, Enum.take(violations, @shown), plan} == {seed, [], plan}
        File.rm_rf!(round)
        numbers
      end

    # A loop that kills nobody, or too early or too late, shows nothing.
    lost = numbers |> Enum.flat_map(& &1.lost_ms) |> Enum.sort()
    assert Enum.sum(Enum.map(numbers, & &1.kills)) >= rounds
    assert Enum.all?(numbers, &(&1.kills > 0))
    assert Enum.sum(Enum.map(numbers, & &1.writes)) > 100 * rounds
    assert Enum.sum(Enum.map(numbers, & &1.calls)) > rounds

    if System.get_env("JOURNAL_KILL_ROUNDS") do
      writes = Enum.sum(Enum.map(numbers, & &1.writes))
      at = fn share -> Enum.at(lost, min(trunc(length(lost) * share), length(lost) - 1)) end

      IO.puts(
        "#{rounds} rounds, #{length(lost)} kills, #{writes} writes: lost at most #{List.last(lost)} ms before " <>
          "a kill, #{at.(0.99)} ms in 99 % and #{at.(0.5)} ms in half of them"
      )
    end
  end
end
