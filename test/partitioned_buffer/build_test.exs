defmodule PartitionedBuffer.BuildTest do
  # Builds of the NIF library: when cargo is called, with what, and what a failure says. `dependency_test.exs` has builds
  # from scratch. Here cargo is a script, or stops early.
  use ExUnit.Case, async: true

  import PartitionedBuffer.OtherProject
  import PartitionedBuffer.VM, only: [tmp_dir: 1, library: 0]

  Code.require_file("../../native/build/target.exs", __DIR__)
  alias PartitionedBuffer.Build.Target

  @moduletag timeout: 600_000
  @task "compile.partitioned_buffer_nif"

  setup :tmp_dir

  # Variables of whoever runs the tests would be seen.
  setup %{dir: dir} do
    {:ok, package: copy_crates(Path.join(dir, "package")), bin: bin(dir)}
  end

  describe "cargo" do
    setup %{dir: dir, bin: bin} do
      {:ok, log: fake_cargo(dir, bin)}
    end

    test "is called again after each change of what it builds from, and only then", context do
      %{dir: dir, package: package, bin: bin} = context
      rustup = Path.join(dir, "rustup")
      File.mkdir_p!(Path.join(rustup, "update-hashes"))
      script(bin, "rustc", "exit 0")

      # All in one VM, which boots once.
      File.write!(Path.join(dir, "changes.exs"), """
      run = fn -> Mix.Tasks.Compile.PartitionedBufferNif.run([]) |> elem(0) end
      {bin, dir, rustup} = {#{inspect(bin)}, #{inspect(dir)}, #{inspect(rustup)}}

      variables = ~w(RUSTFLAGS CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_TARGET CARGO_PROFILE_RELEASE_LTO RUSTC_WRAPPER RUSTUP_TOOLCHAIN
        TARGET_ARCH PARTITIONED_BUFFER_NIF_FEATURES PARTITIONED_BUFFER_NIF_PROFILE PARTITIONED_BUFFER_BUILD)

      variables = for name <- variables, do: {name, fn -> System.put_env(name, "1") end}

      files =
        for file <- ~w(Cargo.toml Cargo.lock native/engine/Cargo.toml native/engine/src/lib.rs native/precompiled.exs),
            do: {file, fn -> File.write!(file, "\\n", [:append]) end}

      settings =
        for file <- [".cargo/config.toml", Path.join(dir, ".cargo/config.toml"), Path.join(dir, "rust-toolchain"),
                     Path.join(rustup, "settings.toml"), Path.join(rustup, "update-hashes/stable")] do
          {file, fn -> File.mkdir_p!(Path.dirname(file)); File.write!(file, "# new") end}
        end

      tools =
        for tool <- ~w(cargo rustc),
            do: {tool, fn -> File.write!(Path.join(bin, tool), "# newer\\n", [:append]) end}

      IO.inspect({:first, run.(), run.()})

      for {name, change} <- variables ++ files ++ settings ++ tools do
        change.()
        IO.inspect({name, run.(), run.()}, width: :infinity)
      end

      System.put_env("LANG", "C")
      IO.inspect({:unrelated, run.(), run.()})
      """)

      env = [{"PATH", bin}, {"RUSTUP_HOME", rustup}]
      output = mix!(["run", "--no-compile", "--no-start", "../changes.exs"], package, env)
      results = Regex.scan(~r/^\{.*, :(ok|noop), :(ok|noop)\}$/m, output)
      assert length(results) == 24, output
      {[[unrelated | nothing]], changes} = results |> Enum.reverse() |> Enum.split(1)
      assert nothing == ["noop", "noop"], unrelated
      for [line | result] <- changes, do: assert(result == ["ok", "noop"], line)
    end

    test "gets a target directory below the build, or that of CARGO_TARGET_DIR", context do
      %{dir: dir, package: package, bin: bin, log: log} = context
      own = Path.join(dir, "own")

      for {env, target_dir} <- [
            {[], Path.join(package, "_build/partitioned_buffer_native")},
            {[{"MIX_ENV", "prod"}], Path.join(package, "_build/partitioned_buffer_native")},
            {[{"MIX_BUILD_PATH", own}], Path.join(own, "partitioned_buffer_native")},
            {[{"CARGO_TARGET_DIR", "targets"}], Path.join(package, "targets")}
          ] do
        File.rm(log)
        mix!([@task, "--force"], package, [{"PATH", bin} | env])
        assert File.read!(log) =~ "--target-dir #{target_dir} --locked\n"
      end

      assert File.ls!(package) -- ["_build", "targets"] ==
               File.ls!(package) -- ["_build", "targets", "target"]
    end

    test "gets the profile, the features and the target", %{package: package, bin: bin, log: log} do
      env = [
        {"PATH", bin},
        {"PARTITIONED_BUFFER_NIF_PROFILE", "profiling"},
        {"PARTITIONED_BUFFER_NIF_FEATURES", "timing faults"},
        {"TARGET_ARCH", "arm"},
        {"TARGET_OS", "linux"},
        {"TARGET_ABI", "gnueabihf"},
        {"TARGET_CPU", "cortex_a7"}
      ]

      mix!([@task], package, env)
      assert File.read!(log) =~ "build --profile profiling -p partitioned_buffer"
      assert File.read!(log) =~ "--target armv7-unknown-linux-gnueabihf --locked --features timing,faults\n"
    end
  end

  describe "the last line of a failure names" do
    test "a version of Rust that is too old", %{package: package, bin: bin} do
      script(bin, "cargo", "exit 101")

      script(
        bin,
        "rustc",
        "echo 'rustc 1.84.1'; echo 'release: 1.84.1'; echo 'host: x86_64-unknown-linux-gnu'"
      )

      line = failure(mix([@task], package, [{"PATH", bin}]))
      assert line =~ "Rust 1.85 or newer is needed, and #{bin}/rustc has version 1.84"
    end

    test "a toolchain that does not work", %{package: package, bin: bin} do
      script(bin, "cargo", "exit 101")
      script(bin, "rustc", "echo 'error: no default toolchain is set' >&2; exit 1")
      line = failure(mix([@task], package, [{"PATH", bin}]))
      assert line =~ "`rustc -vV` exited with status 1: error: no default toolchain is set"
    end

    test "crates that cannot be fetched", %{dir: dir, package: package} do
      # Nobody listens at this port.
      env = [
        {"CARGO_HOME", Path.join(dir, "cargo")},
        {"CARGO_HTTP_PROXY", "http://127.0.0.1:1"},
        {"CARGO_NET_RETRY", "0"}
      ]

      line = failure(mix([@task], package, env))
      assert line =~ "cargo could not fetch them: it needs access to their registry once"
    end

    test "a linker that is missing", %{dir: dir, package: package} do
      bin = bin(dir, ~w(cargo rustc))
      line = failure(mix([@task], package, [{"PATH", bin}]))
      assert line =~ "the linker `cc` was not found in PATH: install a C compiler"

      # And one that is configured.
      {about, 0} = System.cmd("rustc", ["-vV"])
      [_line, host] = Regex.run(~r/^host: (.+)$/m, about)
      linker = "CARGO_TARGET_#{host |> String.upcase() |> String.replace("-", "_")}_LINKER"
      line = failure(mix([@task], package, [{linker, "no-such-linker"}]))
      assert line =~ "the linker `no-such-linker` was not found in PATH"
    end

    test "a target without standard library", %{package: package} do
      line = failure(mix([@task], package, [{"CARGO_BUILD_TARGET", "riscv64gc-unknown-linux-gnu"}]))
      assert line =~ "run `rustup target add riscv64gc-unknown-linux-gnu`"
    end

    test "flags that rustc does not know", %{package: package} do
      line = failure(mix([@task], package, [{"RUSTFLAGS", "-C no-such-option"}]))
      assert line =~ "unknown codegen option: `no-such-option`"
    end

    test "a target without dynamic libraries", %{package: package, bin: bin} do
      script(bin, "cargo", "exit 0")
      env = [{"PATH", bin}, {"CARGO_BUILD_TARGET", "x86_64-unknown-linux-musl"}]
      line = failure(mix([@task], package, env))
      assert line =~ ~s(links statically unless RUSTFLAGS has "-C target-feature=-crt-static")
      line = failure(mix([@task], package, [{"PATH", bin}, {"CARGO_BUILD_TARGET", "wasm32-unknown-unknown"}]))
      assert line =~ "no dynamic library of partitioned_buffer for wasm32-unknown-unknown"
    end

    test "a target directory that cannot be made", %{package: package} do
      line = failure(mix([@task], package, [{"CARGO_TARGET_DIR", "/dev/null/target"}]))
      assert line =~ "the target directory /dev/null/target cannot be created: not a directory"
    end

    test "cargo's messages, if nothing else is wrong", %{package: package, bin: bin} do
      script(bin, "cargo", ~s(echo "error: this crate is broken" >&2; test "$1" = fetch\n))
      {output, _status} = failed = mix([@task], package, [{"PATH", "#{bin}:#{System.get_env("PATH")}"}])
      assert output =~ "error: this crate is broken"

      assert failure(failed) =~
               "Rust, the crates and the linker are there, so the cause is in cargo's messages above"
    end
  end

  describe "the target" do
    test "is Rust's name of the host" do
      for {architecture, libc, name} <- [
            {"x86_64-pc-linux-gnu", nil, "x86_64-unknown-linux-gnu"},
            {"aarch64-unknown-linux-gnu", {:glibc, [2, 36]}, "aarch64-unknown-linux-gnu"},
            {"x86_64-alpine-linux-musl", :musl, "x86_64-unknown-linux-musl"},
            {"x86_64-pc-linux-gnu", :musl, "x86_64-unknown-linux-musl"},
            {"arm-unknown-linux-gnueabihf", nil, "arm-unknown-linux-gnueabihf"},
            {"armv7l-unknown-linux-gnueabihf", :musl, "armv7-unknown-linux-musleabihf"},
            {"riscv64-unknown-linux-gnu", nil, "riscv64gc-unknown-linux-gnu"},
            {"x86_64-apple-darwin22.1.0", nil, "x86_64-apple-darwin"},
            {"aarch64-apple-darwin24.0.0", nil, "aarch64-apple-darwin"},
            {"amd64-portbld-freebsd13.2", nil, "x86_64-unknown-freebsd"},
            {"x86_64-pc-windows", nil, "x86_64-pc-windows-msvc"}
          ] do
        assert {architecture, Target.name(architecture, libc, %{})} == {architecture, name}
      end

      {about, 0} = System.cmd("rustc", ["-vV"])
      assert about =~ "host: #{Target.host()}\n"
    end

    test "is that of the variables of Nerves" do
      host = "x86_64-pc-linux-gnu"

      all = %{
        "TARGET_ARCH" => "arm",
        "TARGET_OS" => "linux",
        "TARGET_ABI" => "gnueabihf",
        "TARGET_CPU" => "cortex_a7"
      }

      assert Target.name(host, nil, all) == "armv7-unknown-linux-gnueabihf"
      assert Target.name(host, nil, %{all | "TARGET_CPU" => "arm1176jzf_s"}) == "arm-unknown-linux-gnueabihf"
      assert Target.name(host, nil, %{"TARGET_ARCH" => "aarch64"}) == "aarch64-unknown-linux-gnu"
      assert Target.name(host, nil, %{"TARGET_ABI" => "musl"}) == "x86_64-unknown-linux-musl"
    end

    test "has the libc that the system's tools name" do
      case System.cmd("ldd", ["--version"], stderr_to_stdout: true) do
        {output, 0} ->
          [_all, version] = Regex.run(~r/\) (\d+\.\d+)$/m, output)
          assert Target.libc() == {:glibc, Target.version(version)}

        {output, _status} ->
          assert output =~ "musl"
          assert Target.libc() == :musl
      end
    end
  end

  # It notes its arguments, and names a library as cargo does.
  defp fake_cargo(dir, bin) do
    log = Path.join(dir, "cargo.log")
    built = Path.join(dir, "libpartitioned_buffer.so")
    File.ln_s!(library(), built)
    script(bin, "cargo", ~s(echo "$*" >>'#{log}'; echo '{"filenames":["#{built}"]}'\n))
    log
  end
end
