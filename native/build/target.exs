defmodule PartitionedBuffer.Build.Target do
  @moduledoc false
  # Rust's name of the system on which the library will run.

  @arches %{"amd64" => "x86_64", "arm64" => "aarch64", "armv7l" => "armv7", "riscv64" => "riscv64gc"}

  @doc "The target of this build: CARGO_BUILD_TARGET, or the host with the parts that TARGET_* replace."
  def name do
    System.get_env("CARGO_BUILD_TARGET") ||
      name(
        architecture(),
        libc(),
        Map.take(System.get_env(), ~w(TARGET_ARCH TARGET_OS TARGET_ABI TARGET_CPU))
      )
  end

  @doc "The target of this VM."
  def host, do: name(architecture(), libc(), %{})

  @doc false
  def name(architecture, libc, variables) do
    {arch, os, abi} = parts(architecture)
    arch = arch(variables["TARGET_ARCH"] || arch, variables["TARGET_CPU"])

    case variables["TARGET_OS"] || os do
      "linux" -> "#{arch}-unknown-linux-#{variables["TARGET_ABI"] || abi(abi, libc)}"
      "darwin" -> "#{arch}-apple-darwin"
      "windows" -> "#{arch}-pc-windows-msvc"
      os -> "#{arch}-unknown-#{os}"
    end
  end

  defp parts("win32"),
    do: {if(:erlang.system_info(:wordsize) == 8, do: "x86_64", else: "i686"), "windows", nil}

  defp parts(architecture) do
    [arch | rest] = String.split(architecture, "-")
    rest = Enum.join(rest, "-")

    case Regex.run(~r/(linux|darwin|windows)[^-]*(?:-([a-z]+))?$/, rest) ||
           Regex.run(~r/([a-z]+)[^-]*$/, rest) do
      [_all, os, abi] -> {arch, os, abi}
      [_all, os] -> {arch, os, nil}
      nil -> {arch, "unknown", nil}
    end
  end

  defp arch("arm", "cortex_a" <> _), do: "armv7"
  defp arch(arch, _cpu), do: Map.get(@arches, arch, arch)

  # Some builds of Erlang on musl call themselves gnu.
  defp abi(nil, libc), do: abi("gnu", libc)
  defp abi("gnu" <> eabi, :musl), do: "musl" <> eabi
  defp abi(abi, _libc), do: abi

  defp architecture, do: to_string(:erlang.system_info(:system_architecture))

  @doc """
  The libc in the memory of this VM: `:musl`, `{:glibc, [2, 36]}`, or nil if it is another.
  """
  def libc do
    with {:ok, maps} <- File.read("/proc/self/maps") do
      if maps =~ "/ld-musl-", do: :musl, else: glibc(Regex.run(~r"/\S*/libc(?:-[\d.]+)?\.so\S*", maps))
    else
      _no_linux -> nil
    end
  end

  defp glibc(nil), do: nil

  defp glibc([file]) do
    with {:ok, contents} <- File.read(file),
         [_all, version] <- Regex.run(~r/release version (\d+\.\d+)/, contents) do
      {:glibc, version(version)}
    else
      _another -> nil
    end
  end

  @doc "The numbers of a version, in a list that compares right."
  def version(text), do: text |> String.split(".") |> Enum.map(&String.to_integer/1)
end
