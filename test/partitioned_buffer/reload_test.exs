defmodule PartitionedBuffer.ReloadTest do
  # What happens when the module of the NIFs is loaded again in a running VM; `PartitionedBuffer.Native` says what. Each
  # test has a VM of its own, whose crash it would see.
  use ExUnit.Case, async: true

  import PartitionedBuffer.VM

  @moduletag timeout: 600_000

  setup :tmp_dir

  setup %{dir: dir} do
    other = Path.join(dir, "other.so")
    # A byte that nobody reads makes it another file.
    File.write!(other, [File.read!(library()), 0])
    {:ok, app: copy_package(dir, library()), other: other}
  end

  for {what, name} <- [
        load: "the loaded module is not loaded over itself, and the buffers go on",
        again: "a module that is loaded again finds the buffers and their entries",
        replaced: "the module ignores a replaced library file while there are buffers",
        refused: "the module refuses a library of another path while there are buffers",
        version: "the module takes another library if there are no buffers",
        storm: "reloads lose nothing while writers write and partitions flush"
      ] do
    test name, %{app: app, other: other} do
      assert elixir!(app, "reload.exs", [unquote(to_string(what)), other]) =~
               "#{unquote(what)}: as it should be"
    end
  end

  test "a recompilation in a running system keeps the data", %{dir: dir} do
    project = Path.join(dir, "project")
    File.mkdir_p!(Path.join(project, "native"))

    for file <- ~w(mix.exs lib native/compiler.exs native/precompiled.exs native/build),
        do: File.cp_r!(Path.expand("../../#{file}", __DIR__), Path.join(project, file))

    script = Path.expand("../vm/recompile.exs", __DIR__)
    unset = for name <- ~w(MIX_ENV MIX_BUILD_PATH MIX_TARGET MIX_DEPS_PATH), do: {name, nil}
    env = unset ++ [{"PARTITIONED_BUFFER_NIF_PATH", library()}, {"PARTITIONED_BUFFER_NO_HEX", "1"}]
    {output, status} = System.cmd("mix", ["run", script], cd: project, env: env, stderr_to_stdout: true)
    assert status == 0, output
    assert output =~ "recompiled: as it should be"
  end
end
