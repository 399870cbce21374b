defmodule Mix.Tasks.Compile.PartitionedBufferNif do
  @moduledoc false
  # Builds the NIF library with cargo. mix.exs loads this file: Mix needs the task before this
  # project's own modules are compiled, also when the project is a dependency, so it cannot be among
  # those modules.
  #
  # PARTITIONED_BUFFER_NIF_PATH names an already built library, which needs no cargo.

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
          "cargo was not found in PATH: install a Rust toolchain (1.85 or newer), or set " <>
            "PARTITIONED_BUFFER_NIF_PATH to a library of this version that is already built"
        )

    target = Path.expand(System.get_env("CARGO_TARGET_DIR") || "target")
    locked = if File.exists?("Cargo.lock"), do: ["--locked"], else: []
    build = ~w(build --release -p #{@crate} --message-format=json-render-diagnostics --target-dir)
    args = build ++ [target] ++ locked ++ features()

    Mix.shell().info("Compiling Rust crate #{@crate} (cargo build --release)")

    case System.cmd(cargo, args) do
      {messages, 0} ->
        artifact(messages)

      {_messages, status} ->
        Mix.raise(
          "cargo exited with status #{status} while building #{@crate}: see its messages above; " <>
            "Rust 1.85 or newer is needed (rustc --version)"
        )
    end
  end

  # The path of the library depends on the target and on cargo's settings. Cargo's messages name it.
  defp artifact(messages) do
    case Regex.run(~r{"([^"]*[/\\](?:lib)?#{@crate}\.(?:so|dylib|dll))"}, messages) do
      [_quoted, file] -> String.replace(file, "\\\\", "\\")
      nil -> Mix.raise("cargo reported no dynamic library for #{@crate}: set a target that has them")
    end
  end

  # A running VM has the old file mapped, so the file is replaced, not overwritten.
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

  # The fingerprint of the sources and of an already built library. `install/1` reports an
  # unreadable library.
  defp fingerprint(prebuilt) do
    files = @sources |> Enum.flat_map(&Path.wildcard(&1, match_dot: true)) |> Enum.sort()
    for file <- files ++ prebuilt, {:ok, contents} <- [File.read(file)], do: {file, :erlang.md5(contents)}
  end

  defp encode(built_from), do: :erlang.term_to_binary(built_from)
end
