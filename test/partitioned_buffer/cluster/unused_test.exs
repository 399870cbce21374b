defmodule PartitionedBuffer.Cluster.UnusedTest do
  # An application without `:cluster` pays nothing for it: in a VM of its own, where nothing else loads its modules.
  use ExUnit.Case, async: true

  import PartitionedBuffer.VM

  setup :tmp_dir

  defp run(dir, args) do
    output = elixir!(copy_package(dir, library()), "no_cluster.exs", args)

    for what <- ["loaded", "names"],
        do: Regex.run(~r/^#{what}: (.*)$/m, output, capture: :all_but_first) |> hd()
  end

  test "without :cluster no module of it is loaded, and no process of it runs", %{dir: dir} do
    assert run(dir, []) == ["", ""]
  end

  test "with :cluster they are", %{dir: dir} do
    [loaded, names] = run(dir, ["cluster"])

    for module <- ~w(Options.Cluster Cluster.Supervisor Cluster.Joiner),
        do: assert(loaded =~ "PartitionedBuffer.#{module}")

    assert loaded =~ ":pg" and names =~ "Cluster" and names =~ "Owning"
  end
end
