defmodule Mix.Tasks.Compile.PartitionedBufferNif do
  @moduledoc false
  # Installs the NIF library, which is a file of the user's, a download, or a build by cargo. mix.exs
  # loads this file: Mix needs the task before this project's own modules are compiled, also when the
  # project is a dependency, so it cannot be among those modules.
  #
  # Every command of Mix compiles this file, so it only decides whether the library is up to date.
  # The work itself is in native/build.

  use Mix.Task.Compiler

  @crate "partitioned_buffer"
  @sources ~w(Cargo.toml Cargo.lock native/precompiled.exs native/{engine,partitioned_buffer}/Cargo.toml native/{engine,partitioned_buffer}/src/**/*.rs)

  # Cargo and rustup read these in the folder of the package and in all above.
  @settings ~w(.cargo/config.toml .cargo/config rust-toolchain.toml rust-toolchain)

  # Nerves sets TARGET_*.
  @variables ~r/^(CARGO_|RUSTC|RUSTFLAGS$|RUSTUP_TOOLCHAIN$|TARGET_|PARTITIONED_BUFFER_(NIF|BUILD|PRECOMPILED))/

  @impl Mix.Task.Compiler
  def run(args) do
    fingerprint = fingerprint()

    if "--force" not in args and File.exists?(library()) and File.read(manifest()) == {:ok, fingerprint} do
      {:noop, []}
    else
      install(contents())
      File.mkdir_p!(Path.dirname(manifest()))
      File.write!(manifest(), fingerprint)
      {:ok, []}
    end
  end

  @impl Mix.Task.Compiler
  def manifests, do: [manifest()]

  @impl Mix.Task.Compiler
  def clean, do: Enum.each([library(), manifest()], &File.rm/1)

  defp contents do
    for file <- ~w(target precompiled cargo), do: Code.require_file("build/#{file}.exs", __DIR__)
    # In variables, because the compiler would warn that the modules do not exist.
    cargo = PartitionedBuffer.Build.Cargo
    precompiled = PartitionedBuffer.Build.Precompiled

    cond do
      prebuilt = prebuilt() ->
        read(prebuilt)

      library = precompiled.fetch(Mix.Project.config()[:version], scratch()) ->
        library

      true ->
        read(cargo.build(@crate, System.get_env("CARGO_TARGET_DIR") || scratch()))
    end
  end

  defp read(file) do
    case File.read(file) do
      {:ok, contents} -> contents
      {:error, reason} -> Mix.raise("the NIF library #{file} cannot be read: #{:file.format_error(reason)}")
    end
  end

  # A running VM has the old file mapped, so the file is replaced, not overwritten.
  defp install(contents) do
    File.mkdir_p!(Path.dirname(library()))
    copy = "#{library()}.#{System.pid()}"
    File.write!(copy, contents)
    File.rename!(copy, library())
  end

  defp library do
    extension = if match?({:win32, _}, :os.type()), do: ".dll", else: ".so"
    Path.join([Mix.Project.app_path(), "priv", "native", @crate <> extension])
  end

  defp manifest, do: Path.join(Mix.Project.manifest_path(), "compile.#{@crate}_nif")

  # Not in the folder of the package, since the sources of a dependency may be read-only. The
  # environments of Mix share a build, unless the user gives one its own path.
  defp scratch do
    build = Mix.Project.build_path()
    shared = if System.get_env("MIX_BUILD_PATH"), do: build, else: Path.dirname(build)
    Path.expand(Path.join(shared, "#{@crate}_native"))
  end

  defp prebuilt, do: System.get_env("PARTITIONED_BUFFER_NIF_PATH")

  # A digest, since some variables of cargo are secrets. It may change without need: cargo then finds
  # that its build is fresh.
  defp fingerprint do
    files = Enum.flat_map(@sources, &Path.wildcard/1) ++ above(File.cwd!()) ++ named() ++ rustup()
    contents = for file <- Enum.sort(files), {:ok, contents} <- [File.read(file)], do: {file, contents}
    variables = for {name, _value} = variable <- System.get_env(), name =~ @variables, do: variable
    host = :erlang.system_info(:system_architecture)
    :erlang.md5(:erlang.term_to_binary({contents, Enum.sort(variables), host, tools()}))
  end

  defp named,
    do: for(name <- ~w(NIF_PATH PRECOMPILED), file = System.get_env("PARTITIONED_BUFFER_" <> name), do: file)

  defp above(folder) do
    files = Enum.map(@settings, &Path.join(folder, &1))
    if Path.dirname(folder) == folder, do: files, else: files ++ above(Path.dirname(folder))
  end

  # `rustc -vV` would cost each command of Mix 20 to 140 ms. Instead, look at the programs. Those of
  # rustup stay the same with each toolchain, so look at its files as well.
  defp tools do
    for tool <- ["cargo", System.get_env("RUSTC") || "rustc"],
        path = System.find_executable(tool),
        {:ok, stat} <- [File.stat(path)],
        do: {path, stat.size, stat.mtime}
  end

  defp rustup do
    home = System.user_home() || ""
    rustup = System.get_env("RUSTUP_HOME") || Path.join(home, ".rustup")
    cargo = System.get_env("CARGO_HOME") || Path.join(home, ".cargo")

    Enum.map(~w(config.toml config), &Path.join(cargo, &1)) ++
      [Path.join(rustup, "settings.toml") | Path.wildcard(Path.join(rustup, "update-hashes/*"))]
  end
end
