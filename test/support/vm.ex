defmodule PartitionedBuffer.VM do
  @moduledoc false
  # For tests that need a separate VM: a copy of the compiled package, with any library.

  @root Path.expand("../..", __DIR__)

  @doc "For `setup`: a directory that is removed after the test."
  def tmp_dir(_context) do
    dir =
      Path.join(
        System.tmp_dir!(),
        "partitioned_buffer_vm_#{System.unique_integer([:positive])}_#{System.pid()}"
      )

    File.mkdir_p!(dir)
    ExUnit.Callbacks.on_exit(fn -> File.rm_rf!(dir) end)
    {:ok, dir: dir}
  end

  @doc "Builds the library with a feature of the crate, unoptimized, and returns its path."
  def build!(feature) do
    target = Path.join([@root, "target", feature])
    args = ~w(build --quiet --locked -p partitioned_buffer --features #{feature} --target-dir #{target})
    {output, status} = System.cmd("cargo", args, cd: @root, stderr_to_stdout: true)
    status == 0 || raise "cargo exited with status #{status}:\n#{output}"
    Path.join(target, "debug/libpartitioned_buffer.so")
  end

  @doc "The library of the test run."
  def library, do: Application.app_dir(:partitioned_buffer, "priv/native/partitioned_buffer.so")

  @doc "Copies the compiled package with this library to a directory, and returns its path."
  def copy_package(dir, library) do
    app = Path.join(dir, "partitioned_buffer")
    File.mkdir_p!(Path.join(app, "priv/native"))
    File.cp_r!(Application.app_dir(:partitioned_buffer, "ebin"), Path.join(app, "ebin"))
    File.cp!(library, Path.join(app, "priv/native/partitioned_buffer.so"))
    app
  end

  @doc "Runs a script of test/vm with the package at `app`, and returns its output."
  def elixir!(app, script, args, env \\ []) do
    script = Path.join([@root, "test/vm", script])

    {output, status} =
      System.cmd("elixir", ["-pa", Path.join(app, "ebin"), script | args], env: env, stderr_to_stdout: true)

    status == 0 || raise "#{Path.basename(script)} exited with status #{status}:\n#{output}"
    output
  end
end
