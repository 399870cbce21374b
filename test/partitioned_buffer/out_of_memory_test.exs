defmodule PartitionedBuffer.OutOfMemoryTest do
  use ExUnit.Case, async: true

  import PartitionedBuffer.VM

  @script Path.expand("../vm/out_of_memory.exs", __DIR__)

  setup :tmp_dir

  @tag skip: is_nil(System.find_executable("prlimit")) && "prlimit is not installed"
  test "a VM without memory ends with a line about it and a crash dump", %{dir: dir} do
    app = copy_package(dir, library())
    dump = Path.join(dir, "erl_crash.dump")
    env = [{"ERL_CRASH_DUMP", dump}]
    args = ["-pa", Path.join(app, "ebin"), @script]
    {output, status} = System.cmd("elixir", args, env: env, stderr_to_stdout: true, cd: dir)
    assert status != 0
    assert output =~ ~r/^partitioned_buffer: the VM is out of memory: \d+ bytes could not be allocated$/m
    assert output =~ "Crash dump is being written"
    refute output =~ "full"
    assert File.read!(dump) =~ ~r/^Slogan: .*Cannot allocate \d+ bytes of memory/m
  end
end
