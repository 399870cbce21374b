defmodule PartitionedBuffer.Build.Cargo do
  @moduledoc false
  # Calls cargo. The user sees its messages as they come. If it fails, checks look for the cause, which
  # ends the output.

  alias PartitionedBuffer.Build.Target

  @instead "or set PARTITIONED_BUFFER_NIF_PATH to a library of this version that is already built"

  @doc "Builds the crate below the target directory, and returns the path of its library."
  def build(crate, target_dir) do
    needs = "Rust #{needed()} or newer"

    cargo =
      System.find_executable("cargo") ||
        Mix.raise(
          "cargo was not found in PATH: install #{needs} (Debian's package cargo, or rustup), #{@instead}"
        )

    target_dir = Path.expand(target_dir)

    with {:error, reason} <- File.mkdir_p(target_dir) do
      Mix.raise("the target directory #{target_dir} cannot be created: #{:file.format_error(reason)}")
    end

    # Cargo reads CARGO_BUILD_TARGET itself, but not the variables of Nerves.
    target = if Target.name() != Target.host(), do: Target.name()
    profile = variable("PROFILE") || "release"

    args =
      ~w(build --profile #{profile} -p #{crate} --message-format=json-render-diagnostics --target-dir) ++
        [target_dir] ++ target_args(target) ++ locked() ++ features()

    Mix.shell().info("Compiling Rust crate #{crate} (cargo build --profile #{profile})")

    case System.cmd(cargo, args) do
      {messages, 0} ->
        artifact(messages, crate) || Mix.raise(no_library(target || Target.host(), crate))

      {_messages, status} ->
        Mix.raise(
          "cargo exited with status #{status} while building #{crate}: #{cause(cargo, target, target_dir)}"
        )
    end
  end

  # The path of the library depends on the target and on cargo's settings. Cargo's messages name it.
  defp artifact(messages, crate) do
    with [_quoted, file] <- Regex.run(~r{"([^"]*[/\\](?:lib)?#{crate}\.(?:so|dylib|dll))"}, messages),
         do: String.replace(file, "\\\\", "\\")
  end

  defp no_library(target, crate) do
    if target =~ "musl",
      do:
        "cargo built no dynamic library: for #{target} Rust links statically unless RUSTFLAGS has " <>
          "\"-C target-feature=-crt-static\"",
      else: "cargo built no dynamic library of #{crate} for #{target}: that target may have none"
  end

  defp features do
    case String.split(variable("FEATURES") || "") do
      [] -> []
      features -> ["--features", Enum.join(features, ",")]
    end
  end

  defp variable(name) do
    with "" <- System.get_env("PARTITIONED_BUFFER_NIF_" <> name, ""), do: nil
  end

  defp target_args(nil), do: []
  defp target_args(target), do: ["--target", target]

  defp locked, do: if(File.exists?("Cargo.lock"), do: ["--locked"], else: [])

  defp needed do
    [_all, version] = Regex.run(~r/^rust-version = "(.+)"/m, File.read!("Cargo.toml"))
    version
  end

  ## The cause of a failure

  defp cause(cargo, target, target_dir) do
    with {:ok, rustc, host} <- rustc(),
         :ok <- empty_library(rustc, target, host, target_dir),
         :ok <- crates(cargo, target || host) do
      "Rust, the crates and the linker are there, so the cause is in cargo's messages above"
    end
  end

  defp rustc do
    name = System.get_env("RUSTC") || "rustc"

    with rustc when rustc != nil <- System.find_executable(name),
         {about, 0} <- command(rustc, ["-vV"]),
         [_, version] <- Regex.run(~r/^release: (\d+\.\d+)/m, about),
         [_, host] <- Regex.run(~r/^host: (\S+)/m, about) do
      if Target.version(version) >= Target.version(needed()),
        do: {:ok, rustc, host},
        else:
          "Rust #{needed()} or newer is needed, and #{rustc} has version #{version}: update it, #{@instead}"
    else
      nil ->
        "#{name} was not found in PATH: install Rust #{needed()} or newer, #{@instead}"

      {output, status} when is_integer(status) ->
        "`#{name} -vV` exited with status #{status}: #{error(output)}"

      nil_or_text ->
        "`#{name} -vV` has no version: #{inspect(nil_or_text)}"
    end
  end

  # Without a network cargo fetches only crates that it has. A build does not need those of other targets.
  defp crates(cargo, target) do
    case command(cargo, ["fetch", "--offline"] ++ locked() ++ target_args(target)) do
      {_output, 0} ->
        :ok

      {output, _status} ->
        if output =~ "offline",
          do:
            "the crates of Cargo.lock are missing, and cargo could not fetch them: it needs access to their registry once, or " <>
              "a copy (see `cargo vendor`), #{@instead}",
          else: "`cargo fetch` fails as well: #{error(output)}"
    end
  end

  # The smallest library needs the target's standard library and a linker, too.
  defp empty_library(rustc, target, host, target_dir) do
    source = Path.join(target_dir, "empty.rs")
    name = (target || host) |> String.upcase() |> String.replace(~r/[-.]/, "_")
    linker = System.get_env("CARGO_TARGET_#{name}_LINKER")

    flags =
      String.split(System.get_env("RUSTFLAGS", "")) ++ if(linker, do: ["-C", "linker=#{linker}"], else: [])

    args = ["--crate-type", "cdylib", "--out-dir", target_dir, source] ++ target_args(target) ++ flags

    with :ok <- File.write(source, ""), {output, status} when status != 0 <- command(rustc, args) do
      cond do
        output =~ ~r/can't find crate for `(core|std)`/ ->
          "Rust's standard library for #{target || host} is not installed: run `rustup target add #{target || host}`"

        found = Regex.run(~r/linker `(.*)` not found/, output) ->
          "the linker `#{List.last(found)}` was not found in PATH: install a C compiler (Debian: gcc and libc6-dev), #{@instead}"

        true ->
          "rustc cannot build an empty library either: #{error(output)}"
      end
    else
      {:error, reason} -> "#{source} cannot be written: #{:file.format_error(reason)}"
      {_output, 0} -> :ok
    end
  end

  defp command(program, args),
    do: System.cmd(program, args, stderr_to_stdout: true, env: [{"CARGO_TERM_COLOR", "never"}])

  # Both tools explain an error in the lines after its first.
  defp error(output) do
    lines = output |> String.split("\n", trim: true)
    String.trim(Enum.find(lines, List.last(lines) || "it says nothing", &(&1 =~ ~r/^error/)))
  end
end
