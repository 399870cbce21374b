defmodule PartitionedBuffer.ScriptTest do
  # What the guide on operations says of scripts.
  use ExUnit.Case, async: true

  import PartitionedBuffer.VM

  setup :tmp_dir

  describe "a script" do
    test "that ends without a stop loses what is in its buffers, and that stops or flushes them does not", %{
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
