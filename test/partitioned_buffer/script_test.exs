defmodule PartitionedBuffer.ScriptTest do
  # What the guide on operations says of scripts.
  use ExUnit.Case, async: true

  import PartitionedBuffer.VM

  setup :tmp_dir

  setup %{dir: dir} do
    {:ok, app: copy_package(dir, library()), path: Path.join(dir, "lines")}
  end

  @stored ["[{:key, 2, 1}]"]
  @dead ["dead [{:key, 2, 1}] stopped"]

  for {ending, status, lines} <- [
        {"end", 0, @stored},
        {"raise", 1, @stored},
        {"the application ends", 0, @stored},
        {"the application, status 3", 3, @stored},
        {"stop the buffer", 0, @stored},
        {"flush", 0, @stored},
        {"the script fails to deliver", 0, @dead},
        {"the application fails to deliver", 0, @dead},
        {"with a cluster", 0, @stored},
        {"halt", 0, []},
        {"the application, tests", 0, []}
      ] do
    test "at the end of a script its buffers are stopped as their application is: #{ending}", %{
      app: app,
      path: path
    } do
      script = Path.expand("../vm/script.exs", __DIR__)
      args = ["-pa", Path.join(app, "ebin"), script, path, unquote(ending)]
      {output, status} = System.cmd("elixir", args, stderr_to_stdout: true)
      lines = with {:ok, text} <- File.read(path), do: String.split(text, "\n", trim: true)
      expected = if unquote(lines) == [], do: {:error, :enoent}, else: unquote(lines)
      assert {lines, status, output} == {expected, unquote(status), output}
    end
  end
end
