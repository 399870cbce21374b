defmodule PartitionedBuffer.DependencyTest do
  # Apps that depend on this package are compiled from scratch and run, as their developers would.
  use ExUnit.Case, async: true

  import PartitionedBuffer.OtherProject

  @moduletag timeout: 600_000
  @root Path.expand("../..", __DIR__)
  @library "lib/partitioned_buffer/priv/native/partitioned_buffer.so"
  @expected "stored 100 items, versions from 901 to 1000, telemetry"

  setup do
    dir =
      Path.join(System.tmp_dir!(), "partitioned_buffer_#{System.unique_integer([:positive])}_#{System.pid()}")

    File.mkdir_p!(dir)
    on_exit(fn -> File.rm_rf!(dir) end)
    {:ok, dir: dir}
  end

  test "the files of the package are enough: built with cargo, and not again, from read-only sources", %{
    dir: dir
  } do
    package = copy_files(package_files(), Path.join(dir, "a package"))
    app = copy_app(Path.join(dir, "shop"))
    # Cargo has another path for the library then.
    {about, 0} = System.cmd("rustc", ["-vV"])
    [_line, host] = Regex.run(~r/^host: (.+)$/m, about)
    env = [{"SHOP_DEPENDENCY", inspect(path: package)}, {"CARGO_BUILD_TARGET", host}]
    {_output, 0} = System.cmd("chmod", ["-R", "a-w", package])
    on_exit(fn -> System.cmd("chmod", ["-R", "u+w", package]) end)

    # Modes mean nothing to root, unless it lacks this capability.
    command =
      if File.write(Path.join(package, "written"), "") == :ok do
        File.rm!(Path.join(package, "written"))
        ["setpriv", "--bounding-set=-dac_override"]
      else
        ["mix"]
      end

    sources = listing(package)
    output = mix!(["run", "run.exs"], app, env, command)
    assert output =~ "Compiling Rust crate"
    assert output =~ ~r/Compiling partitioned_buffer v/
    assert output =~ @expected
    assert File.exists?(Path.join([app, "_build/partitioned_buffer_native", host, "release"]))
    output = mix!(["run", "run.exs"], app, env, command)
    refute output =~ "Compiling"
    assert output =~ @expected

    # Another environment installs the same build.
    output = mix!(["deps.compile"], app, [{"MIX_ENV", "test"} | env], command)
    assert output =~ "Compiling Rust crate"
    refute output =~ ~r/Compiling partitioned_buffer v/
    assert listing(package) == sources

    # Function names stay for backtraces, and the lines are gone.
    [dev, test] = for env <- ~w(dev test), do: File.read!(Path.join([app, "_build", env, @library]))
    assert dev == test
    assert dev =~ "\0.symtab\0"
    refute dev =~ "\0.debug_line\0"
  end

  test "the package has its sources and the example, and neither build products nor tests" do
    {example, files} = Enum.split_with(package_files(), &String.starts_with?(&1, "examples/"))
    assert "examples/tracker/mix.exs" in example and "examples/tracker/test/tracker_test.exs" in example
    refute Enum.any?(example, &(&1 =~ ~r"/(_build|deps)/"))

    for file <-
          ~w(mix.exs native/compiler.exs native/precompiled.exs README.md LICENSE CHANGELOG.md Cargo.toml Cargo.lock),
        do: assert(file in files)

    for file <- ~w(target precompiled cargo), do: assert("native/build/#{file}.exs" in files)

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
    copy_files(~w(mix.exs lib Cargo.toml Cargo.lock native), repository)

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

    # With this cargo has nothing to compile.
    env = [{"SHOP_DEPENDENCY", inspect(path: @root)}, {"CARGO_TARGET_DIR", target_dir()}]
    output = mix!(["run", "apps/shop/run.exs"], dir, env)
    assert output =~ @expected
    # The compiler is loaded once, whoever depends on the package.
    refute output =~ "redefining module"
    assert Path.wildcard(Path.join(dir, "**/partitioned_buffer_native")) == []
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
    bin = bin(dir)
    env = [{"SHOP_DEPENDENCY", inspect(path: @root)}, {"PATH", bin}]
    line = failure(mix(["compile"], app, env))
    assert line =~ "cargo was not found in PATH"
    assert line =~ "PARTITIONED_BUFFER_NIF_PATH"

    # And one whose cargo fails.
    script(bin, "cargo", "exit 7")
    line = failure(mix(["compile"], app, env))
    assert line =~ "cargo exited with status 7 while building partitioned_buffer: rustc was not found in PATH"

    env = [{"SHOP_DEPENDENCY", inspect(path: @root)}, {"PARTITIONED_BUFFER_NIF_PATH", "/nowhere/library.so"}]
    line = failure(mix(["compile"], app, env))
    assert line =~ "/nowhere/library.so cannot be read: no such file or directory"
  end

  # Every file and directory, with what would change if one was written.
  defp listing(dir) do
    for path <- [dir | Path.wildcard(Path.join(dir, "**"), match_dot: true)],
        do: {path, File.stat!(path).mtime}
  end
end
