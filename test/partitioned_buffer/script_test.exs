defmodule PartitionedBuffer.ScriptTest do
  # What the guide on operations says of scripts.
  use ExUnit.Case, async: true

  import PartitionedBuffer.VM

  setup :tmp_dir

  describe "a script" do
    test "that ends loses its buffers' entries, unless it stops or flushes them", %{
      dir: dir
    } do
      app = copy_package(dir, library())
      path = Path.join(dir, "stored")

      for {ending, stored} <- [
            {"end", {:error, :enoent}},
            {"halt", {:error, :enoent}},
            {"stop the buffer", {:ok, "[{:key, 2, 1}]"}},
            {"flush", {:ok, "[{:key, 2, 1}]"}}
          ] do
        elixir!(app, "script.exs", [path, ending])
        assert {ending, File.read(path)} == {ending, stored}
        File.rm(path)
      end
    end
  end
end
