defmodule Mix.Tasks.Compile.PartitionedBufferNif do
  @moduledoc false
  # Builds the NIF library with cargo. It stands here because it has to run before this project's own modules are
  # compiled, also when the project is a dependency.
  #
  # PARTITIONED_BUFFER_NIF_PATH names a library that is already built; cargo is not needed then.

  use Mix.Task.Compiler

  @crate "partitioned_buffer"
  @sources ~w(Cargo.toml Cargo.lock .cargo/config.toml rust-toolchain.toml native/**/*.toml native/**/src/**/*.rs)

  @impl Mix.Task.Compiler
  def run(args) do
    prebuilt = System.get_env("PARTITIONED_BUFFER_NIF_PATH")
    built_from = {prebuilt, features(), fingerprint(List.wrap(prebuilt))}

    if "--force" not in args and File.exists?(library()) and
         File.read(manifest()) == {:ok, encode(built_from)} do
      {:noop, []}
    else
      install(prebuilt || build())
      File.mkdir_p!(Path.dirname(manifest()))
      File.write!(manifest(), encode(built_from))
      {:ok, []}
    end
  end

  @impl Mix.Task.Compiler
  def manifests, do: [manifest()]

  @impl Mix.Task.Compiler
  def clean, do: Enum.each([library(), manifest()], &File.rm/1)

  defp build do
    cargo =
      System.find_executable("cargo") ||
        Mix.raise(
          "cargo was not found in PATH: install a Rust toolchain (1.91 or newer), or set " <>
            "PARTITIONED_BUFFER_NIF_PATH to a library of this version that is already built"
        )

    target = Path.expand(System.get_env("CARGO_TARGET_DIR") || "target")
    locked = if File.exists?("Cargo.lock"), do: ["--locked"], else: []

    args =
      ~w(build --release -p #{@crate} --message-format=json-render-diagnostics --target-dir #{target}) ++
        locked ++ features()

    Mix.shell().info("Compiling Rust crate #{@crate} (cargo build --release)")

    case System.cmd(cargo, args) do
      {messages, 0} ->
        artifact(messages)

      {_messages, status} ->
        Mix.raise(
          "cargo exited with status #{status} while building #{@crate}: see its messages above; " <>
            "Rust 1.91 or newer is needed (rustc --version)"
        )
    end
  end

  # The library's path, which depends on target and settings, from cargo's own account of what it has built.
  defp artifact(messages) do
    messages
    |> String.split("\n")
    |> Enum.filter(
      &(&1 =~ ~s("reason":"compiler-artifact") and &1 =~ ~s("kind":["cdylib"]) and
          &1 =~ ~s("name":"#{@crate}"))
    )
    |> Enum.flat_map(&Regex.scan(~r/"filenames":\[([^\]]*)\]/, &1, capture: :all_but_first))
    |> Enum.flat_map(fn [names] -> Regex.scan(~r/"((?:[^"\\]|\\.)*)"/, names, capture: :all_but_first) end)
    |> Enum.map(fn [name] -> String.replace(name, "\\\\", "\\") end)
    |> Enum.find(&(Path.extname(&1) in ~w(.so .dylib .dll))) ||
      Mix.raise("cargo reported no dynamic library for #{@crate}: set a target that has them")
  end

  # A running VM has the old file mapped: it is replaced, not overwritten.
  defp install(file) do
    File.mkdir_p!(Path.dirname(library()))
    copy = "#{library()}.#{System.pid()}"

    case File.cp(file, copy) do
      :ok -> File.rename!(copy, library())
      {:error, reason} -> Mix.raise("the NIF library #{file} cannot be read: #{:file.format_error(reason)}")
    end
  end

  defp library do
    extension = if match?({:win32, _}, :os.type()), do: ".dll", else: ".so"
    Path.join([Mix.Project.app_path(), "priv", "native", @crate <> extension])
  end

  defp manifest, do: Path.join(Mix.Project.manifest_path(), "compile.#{@crate}_nif")

  defp features, do: System.get_env("PARTITIONED_BUFFER_NIF_FEATURES", "") |> String.split() |> feature_args()

  defp feature_args([]), do: []
  defp feature_args(features), do: ["--features", Enum.join(features, ",")]

  # Of the sources and of a library that is already built. One that cannot be read is complained of when it is installed.
  defp fingerprint(prebuilt) do
    files = @sources |> Enum.flat_map(&Path.wildcard(&1, match_dot: true)) |> Enum.sort()
    for file <- files ++ prebuilt, {:ok, contents} <- [File.read(file)], do: {file, :erlang.md5(contents)}
  end

  defp encode(built_from), do: :erlang.term_to_binary(built_from)
end

defmodule PartitionedBuffer.MixProject do
  use Mix.Project

  @version "0.5.0"

  # Applications that are used where they are, outside of Mix's dependencies: telemetry on ERL_LIBS or in the system's
  # Erlang, PropEr in the system's Erlang for the property tests.
  @found for app <- [:telemetry, :proper], is_list(:code.lib_dir(app)), do: {app, :optional}

  def project do
    [
      app: :partitioned_buffer,
      version: @version,
      elixir: "~> 1.14",
      compilers: [:partitioned_buffer_nif] ++ Mix.compilers(),
      elixirc_paths: elixirc_paths(Mix.env()),
      start_permanent: Mix.env() == :prod,
      deps: if(hex?(), do: deps(), else: []),
      test_ignore_filters: [
        &String.starts_with?(&1, ["test/support/", "test/hexless/", "test/app/", "test/vm/"])
      ],
      description:
        "A write buffer for key-value entries: coalescing, partitioned, flushed in batches; on a Rust NIF",
      package: package(),
      docs: docs(),
      name: "PartitionedBuffer"
    ]
  end

  def application, do: [extra_applications: [:logger] ++ found(Mix.env())]

  defp found(:test), do: @found
  defp found(_env), do: Keyword.take(@found, [:telemetry])

  # Where there is no telemetry, the tests have a stand-in for it.
  defp elixirc_paths(:test) do
    if hex?() or Keyword.has_key?(@found, :telemetry),
      do: ["lib", "test/support"],
      else: ["lib", "test/support", "test/hexless"]
  end

  defp elixirc_paths(_env), do: ["lib"]

  # Mix cannot read a Hex dependency without Hex. PARTITIONED_BUFFER_NO_HEX=1 is for machines that have Hex, but cannot
  # reach its registry.
  defp hex?, do: System.get_env("PARTITIONED_BUFFER_NO_HEX") not in ~w(1 true) and Code.ensure_loaded?(Hex)

  defp deps, do: [{:telemetry, "~> 1.0"}]

  # For ExDoc, where it is; nothing here needs it.
  defp docs do
    guides =
      ~w(getting-started partition-keys processors operations coming-from-partitioned-buffer architecture)

    [
      main: "getting-started",
      extras: Enum.map(guides, &"guides/#{&1}.md") ++ ~w(guides/tour.livemd README.md CHANGELOG.md),
      groups_for_extras: [Guides: ~r"^guides/"],
      groups_for_modules: [Buffers: [PartitionedBuffer.Map, PartitionedBuffer.Queue]],
      # The charts of the README.
      assets: %{"bench" => "bench"}
    ]
  end

  defp package do
    [
      name: "partitioned_buffer_native",
      licenses: ["MIT"],
      links: %{},
      files:
        ~w(lib guides mix.exs .formatter.exs README.md CHANGELOG.md LICENSE Cargo.toml Cargo.lock native/{engine,partitioned_buffer}/Cargo.toml native/{engine,partitioned_buffer}/src)
    ]
  end
end
