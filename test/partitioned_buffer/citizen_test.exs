defmodule PartitionedBuffer.CitizenTest do
  # Buffers in use leave alone what all code of a VM shares. The test has a VM of its own, where nobody else makes atoms.
  use ExUnit.Case, async: true

  import PartitionedBuffer.VM

  setup :tmp_dir

  test "no operation, flush or fault makes an atom or writes a persistent term", %{dir: dir} do
    seed = System.get_env("SEED", to_string(:rand.uniform(1_000_000)))
    output = elixir!(copy_package(dir, library()), "citizen.exs", ["100", seed])
    assert output =~ ~r/^\d+ operations, \d+ flushes, seed #{seed}: as it should be$/m
  end
end
