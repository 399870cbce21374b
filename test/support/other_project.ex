defmodule PartitionedBuffer.OtherProject do
  @moduledoc false
  # For tests that compile the package as others do: copies of it and of an app that depends on it, and
  # Mix in a VM of its own.

  @root Path.expand("../..", __DIR__)

  @doc "The files that `mix hex.build` puts into the package."
  def package_files do
    for pattern <- Mix.Project.config()[:package][:files],
        path <- Path.wildcard(Path.join(@root, pattern), match_dot: true),
        file <- if(File.dir?(path), do: Path.wildcard(path <> "/**"), else: [path]),
        File.regular?(file),
        do: Path.relative_to(file, @root)
  end

  @doc "Copies these files of the project to a directory, and returns it."
  def copy_files(files, to) do
    for file <- files do
      target = Path.join(to, file)
      File.mkdir_p!(Path.dirname(target))
      File.cp_r!(Path.join(@root, file), target)
    end

    to
  end

  @doc "Copies what the NIF library is built of, and returns the directory. `mix compile.partitioned_buffer_nif` builds it there."
  def copy_crates(to), do: copy_files(Enum.reject(package_files(), &(&1 =~ ~r"^(lib|guides)/")), to)

  @doc "Copies the app of test/app to a directory, and returns it."
  def copy_app(to) do
    File.mkdir_p!(to)

    for file <- ~w(mix.exs lib run.exs),
        do: File.cp_r!(Path.join([@root, "test/app", file]), Path.join(to, file))

    to
  end

  @doc "Makes a directory with links to programs, for a PATH that has no others, and returns it."
  def bin(dir, programs \\ []) do
    bin = Path.join(dir, "bin")
    File.mkdir_p!(bin)

    for program <- ~w(mix elixir erl env sh dirname basename readlink sed git) ++ programs,
        path = System.find_executable(program),
        link = Path.join(bin, program),
        not File.exists?(link),
        do: File.ln_s!(path, link)

    bin
  end

  @doc "Writes a shell script to such a directory, and returns its path."
  def script(bin, name, text) do
    path = Path.join(bin, name)
    File.write!(path, ["#!/bin/sh\n", text])
    File.chmod!(path, 0o755)
    path
  end

  @doc "The target directory that cargo has in this project, with all crates compiled."
  def target_dir, do: Path.join(Path.dirname(Mix.Project.build_path()), "partitioned_buffer_native")

  @doc "Runs Mix in a directory, and returns its output and status. The command may be one that begins before it."
  def mix(args, dir, env, [program | before] \\ ["mix"]) do
    args = if before == [] and program == "mix", do: args, else: before ++ ["mix" | args]
    System.cmd(program, args, cd: dir, env: unset() ++ env, stderr_to_stdout: true)
  end

  @doc "The same, which has to succeed. Returns the output."
  def mix!(args, dir, env, command \\ ["mix"]) do
    {output, status} = mix(args, dir, env, command)
    status == 0 || raise "mix #{Enum.join(args, " ")} exited with #{status}:\n#{output}"
    output
  end

  @doc "The last line of a command that has to fail."
  def failure({output, status}) do
    status != 0 || raise "the command was meant to fail:\n#{output}"
    output |> String.split("\n", trim: true) |> List.last()
  end

  @doc "Variables of the environment of a test that must not reach another project."
  def unset do
    for name <-
          ~w(MIX_ENV MIX_BUILD_PATH MIX_TARGET MIX_DEPS_PATH CARGO_TARGET_DIR CARGO_BUILD_TARGET RUSTFLAGS),
        do: {name, nil}
  end
end
