defmodule PartitionedBuffer.DependencyTest do
  # Apps that depend on this package are compiled from scratch and run, as their developers would.
  use ExUnit.Case, async: true

  @moduletag timeout: 600_000
  @root Path.expand("../..", __DIR__)
  @expected "stored 100 items, versions from 901 to 1000, telemetry"

  setup do
    dir =
      Path.join(System.tmp_dir!(), "partitioned_buffer_#{System.unique_integer([:positive])}_#{System.pid()}")

    File.mkdir_p!(dir)
    on_exit(fn -> File.rm_rf!(dir) end)
    {:ok, dir: dir}
  end

  test "the files of the package are enough: built with cargo, and not again", %{dir: dir} do
    package = Path.join(dir, "a package")
    for file <- package_files(), do: copy(file, package)
    app = copy_app(Path.join(dir, "shop"))
    # Cargo puts the library elsewhere than in the project's own build.
    {about, 0} = System.cmd("rustc", ["-vV"])
    [_line, host] = Regex.run(~r/^host: (.+)$/m, about)
    target = Path.join(dir, "the target")

    env = [
      {"SHOP_DEPENDENCY", inspect(path: package)},
      {"CARGO_BUILD_TARGET", host},
      {"CARGO_TARGET_DIR", target}
    ]

    output = mix!(["run", "run.exs"], app, env)
    assert output =~ "Compiling Rust crate"
    assert output =~ @expected
    assert File.exists?(Path.join([target, host, "release"]))
    refute File.exists?(Path.join(package, "target"))
    output = mix!(["run", "run.exs"], app, env)
    refute output =~ "Compiling"
    assert output =~ @expected
  end

  test "the package has its sources and the example, and neither build products nor tests" do
    {example, files} = Enum.split_with(package_files(), &String.starts_with?(&1, "examples/"))
    assert "examples/tracker/mix.exs" in example and "examples/tracker/test/tracker_test.exs" in example
    refute Enum.any?(example, &(&1 =~ ~r"/(_build|deps)/"))

    for file <- ~w(mix.exs native/compiler.exs README.md LICENSE CHANGELOG.md Cargo.toml Cargo.lock),
        do: assert(file in files)

    assert "native/engine/src/lib.rs" in files and "native/partitioned_buffer/src/lib.rs" in files

    refute Enum.any?(
             files,
             &(&1 =~ ~r"(^|/)(target|_build|deps|test|tests|fuzz|shuttle|bench)/|\.(so|dll|beam)$")
           )

    # As it is on Hex, while the application keeps the name that others depend on.
    config = Mix.Project.config()
    assert {config[:app], config[:package][:name]} == {:partitioned_buffer, "partitioned_buffer_native"}
    assert config[:package][:licenses] == ["MIT"]
  end

  test "a git dependency uses a library that is already built", %{dir: dir} do
    repository = Path.join(dir, "repository")
    for file <- ~w(mix.exs lib Cargo.toml Cargo.lock native), do: copy(file, repository)

    for args <- [~w(init -q), ~w(add .), ~w(-c user.name=a -c user.email=a@example.com commit -qm package)] do
      {_output, 0} = System.cmd("git", args, cd: repository)
    end

    app = copy_app(Path.join(dir, "shop"))
    library = Application.app_dir(:partitioned_buffer, "priv/native/partitioned_buffer.so")
    env = [{"SHOP_DEPENDENCY", inspect(git: repository)}, {"PARTITIONED_BUFFER_NIF_PATH", library}]
    mix!(["deps.get"], app, env)
    output = mix!(["run", "run.exs"], app, env)
    refute output =~ "Rust"
    assert output =~ @expected
  end

  test "a library that is already built is installed again when it has changed", %{dir: dir} do
    app = copy_app(Path.join(dir, "shop"))
    library = Path.join(dir, "built.so")
    File.cp!(Application.app_dir(:partitioned_buffer, "priv/native/partitioned_buffer.so"), library)
    env = [{"SHOP_DEPENDENCY", inspect(path: @root)}, {"PARTITIONED_BUFFER_NIF_PATH", library}]
    mix!(["compile"], app, env)
    # A byte that nobody reads makes it another file.
    File.write!(library, <<0>>, [:append])
    assert mix!(["run", "run.exs"], app, env) =~ @expected
    assert [installed] = Path.wildcard(Path.join(app, "_build/*/lib/partitioned_buffer/priv/native/*.so"))
    assert File.read!(installed) == File.read!(library)
  end

  test "an umbrella has it as a dependency of two of its apps", %{dir: dir} do
    File.write!(Path.join(dir, "mix.exs"), """
    defmodule Umbrella.MixProject do
      use Mix.Project
      def project, do: [apps_path: "apps", version: "0.1.0", deps: []]
    end
    """)

    copy_app(Path.join(dir, "apps/shop"))
    other = Path.join(dir, "apps/other")
    File.mkdir_p!(Path.join(other, "lib"))

    File.write!(Path.join(other, "mix.exs"), """
    defmodule Other.MixProject do
      use Mix.Project
      def project do
        [app: :other, version: "0.1.0", build_path: "../../_build", deps_path: "../../deps", lockfile: "../../mix.lock",
         deps: [{:partitioned_buffer, #{inspect(path: @root)}}, {:shop, in_umbrella: true}]]
      end
    end
    """)

    env = [{"SHOP_DEPENDENCY", inspect(path: @root)}]
    output = mix!(["run", "apps/shop/run.exs"], dir, env)
    assert output =~ @expected
    # The compiler is loaded once, whoever depends on the package.
    refute output =~ "redefining module"
  end

  test "a script installs it", %{dir: dir} do
    script = Path.join(dir, "script.exs")

    File.write!(script, """
    Mix.install([{:partitioned_buffer, #{inspect(path: @root)}}])
    IO.inspect(PartitionedBuffer.memory(), label: "installed")
    """)

    library = Application.app_dir(:partitioned_buffer, "priv/native/partitioned_buffer.so")
    env = [{"MIX_INSTALL_DIR", Path.join(dir, "installs")}, {"PARTITIONED_BUFFER_NIF_PATH", library}]
    {output, status} = System.cmd("elixir", [script], cd: dir, env: unset() ++ env, stderr_to_stdout: true)
    assert {status, output =~ "installed: "} == {0, true}, output
  end

  test "a failed build says what to do", %{dir: dir} do
    app = copy_app(Path.join(dir, "shop"))
    # A path without cargo.
    bin = Path.join(dir, "bin")
    File.mkdir_p!(bin)

    for tool <- ~w(mix elixir erl env sh dirname basename readlink sed git),
        path = System.find_executable(tool) do
      File.ln_s!(path, Path.join(bin, tool))
    end

    env = [{"SHOP_DEPENDENCY", inspect(path: @root)}, {"PATH", bin}]
    {output, status} = mix(["compile"], app, env)
    assert status != 0
    assert output =~ "cargo was not found in PATH"
    assert output =~ "PARTITIONED_BUFFER_NIF_PATH"

    # And one whose cargo fails.
    cargo = Path.join(bin, "cargo")
    File.write!(cargo, "#!/bin/sh\nexit 7\n")
    File.chmod!(cargo, 0o755)
    {output, status} = mix(["compile"], app, env)
    assert status != 0
    assert output =~ "cargo exited with status 7 while building partitioned_buffer: see its messages above"

    env = [{"SHOP_DEPENDENCY", inspect(path: @root)}, {"PARTITIONED_BUFFER_NIF_PATH", "/nowhere/library.so"}]
    {output, status} = mix(["compile"], app, env)
    assert status != 0
    assert output =~ "/nowhere/library.so cannot be read: no such file or directory"
  end

  # Those that `mix hex.build` puts in.
  defp package_files do
    for pattern <- Mix.Project.config()[:package][:files],
        path <- Path.wildcard(Path.join(@root, pattern), match_dot: true),
        file <- if(File.dir?(path), do: Path.wildcard(path <> "/**"), else: [path]),
        File.regular?(file),
        do: Path.relative_to(file, @root)
  end

  defp copy(file, to) do
    target = Path.join(to, file)
    File.mkdir_p!(Path.dirname(target))
    File.cp_r!(Path.join(@root, file), target)
  end

  defp copy_app(to) do
    File.mkdir_p!(to)

    for file <- ~w(mix.exs lib run.exs),
        do: File.cp_r!(Path.join([@root, "test/app", file]), Path.join(to, file))

    to
  end

  defp mix!(args, dir, env) do
    {output, status} = mix(args, dir, env)
    assert status == 0, "mix #{Enum.join(args, " ")} exited with #{status}:\n#{output}"
    output
  end

  defp mix(args, dir, env) do
    System.cmd("mix", args, cd: dir, env: unset() ++ env, stderr_to_stdout: true)
  end

  defp unset, do: for(name <- ~w(MIX_ENV MIX_BUILD_PATH MIX_TARGET MIX_DEPS_PATH), do: {name, nil})
end
