defmodule PartitionedBuffer.PrecompiledTest do
  # Libraries of a release, fetched from a server of the test. Where cargo is called instead, it is a script.
  use ExUnit.Case, async: true

  import PartitionedBuffer.OtherProject
  import PartitionedBuffer.VM, only: [tmp_dir: 1, library: 0]

  Code.require_file("../../native/build/target.exs", __DIR__)
  alias PartitionedBuffer.Build.Target

  # From 1.15 on Mix takes these off the code path until they are asked for.
  @compile {:no_warn_undefined, [:ssl, :public_key]}

  @moduletag timeout: 600_000
  @task "compile.partitioned_buffer_nif"
  @version Mix.Project.config()[:version]
  @file_name "partitioned_buffer-#{@version}-test.so"
  @cargo "cargo was called"
  @instead "cargo builds the library instead"

  setup :tmp_dir

  setup %{dir: dir} do
    package = copy_crates(Path.join(dir, "package"))
    bin = bin(dir)
    built = Path.join(dir, "libpartitioned_buffer.so")
    File.write!(built, @cargo)
    script(bin, "cargo", ~s(echo '{"filenames":["#{built}"]}'\n))
    env = [{"PATH", bin}, {"PARTITIONED_BUFFER_CACHE", Path.join(dir, "cache")}]
    {:ok, package: package, bin: bin, env: env, contents: File.read!(library())}
  end

  test "the right file is fetched once, loads, and needs no cargo", context do
    %{dir: dir, bin: bin, contents: contents} = context
    File.rm!(Path.join(bin, "cargo"))
    app = copy_app(Path.join(dir, "shop"))
    {:glibc, version} = Target.libc()
    env = env(context, serve(%{("/v1/" <> @file_name) => {200, contents}}), glibc: Enum.join(version, "."))
    env = [{"SHOP_DEPENDENCY", inspect(path: Path.expand("../..", __DIR__))} | env]

    output = mix!(["run", "run.exs"], app, env)
    assert output =~ ~r"Fetched http://127.0.0.1:\d+/v1/#{@file_name}"
    assert output =~ "stored 100 items"
    assert_received {:request, "/v1/" <> @file_name}

    assert File.read!(Path.join(app, "_build/dev/lib/partitioned_buffer/priv/native/partitioned_buffer.so")) ==
             contents

    # The next build has it from the cache, and what is installed is not looked at again.
    File.rm_rf!(Path.join(app, "_build"))
    output = mix!(["run", "run.exs"], app, env)
    assert output =~ "stored 100 items"
    mix!(["run", "run.exs"], app, env)
    refute_received {:request, _path}
  end

  test "a file with another sum stops the compilation, and is neither installed nor kept", context do
    env = env(context, serve(%{("/v1/" <> @file_name) => {200, "another"}}))
    line = failure(mix([@task], context.package, env))

    assert line =~
             ~r"the precompiled library http://127.0.0.1:\d+/v1/#{@file_name} has not the expected SHA-256 #{sum(context.contents)}"

    assert line =~ "but #{sum("another")}: it was changed"
    assert line =~ "PARTITIONED_BUFFER_BUILD=1"
    assert installed(context) == nil
    assert Path.wildcard(Path.join(context.dir, "cache/**/*.so*")) == []

    # As the line says.
    mix!([@task], context.package, [{"PARTITIONED_BUFFER_BUILD", "1"} | env])
    assert installed(context) == @cargo
  end

  test "a file in the cache that was changed is fetched again", context do
    env = env(context, serve(%{("/v1/" <> @file_name) => {200, context.contents}}))
    mix!([@task], context.package, env)
    assert_received {:request, _path}
    assert [cached] = Path.wildcard(Path.join(context.dir, "cache/**/*.so"))
    File.write!(cached, "another")
    mix!([@task, "--force"], context.package, env)
    assert_received {:request, _path}
    assert File.read!(cached) == context.contents
    assert installed(context) == context.contents
  end

  test "a cache that cannot be written is no obstacle", context do
    env = env(context, serve(%{("/v1/" <> @file_name) => {200, context.contents}}))
    mix!([@task], context.package, [{"PARTITIONED_BUFFER_CACHE", "/dev/null/cache"} | env])
    assert installed(context) == context.contents
    # Nor is a missing home.
    env = [
      {"PARTITIONED_BUFFER_CACHE", nil},
      {"HOME", nil},
      {"XDG_CACHE_HOME", nil},
      {"MIX_HOME", context.dir} | env
    ]

    mix!([@task, "--force"], context.package, env)
    assert installed(context) == context.contents
  end

  test "cargo builds where there is no file", context do
    output = mix!([@task], context.package, env(context, serve(%{})))
    assert [line] = Regex.run(~r/^.*HTTP status.*$/m, output)

    assert line =~
             ~r"The precompiled library http://127.0.0.1:\d+/v1/#{@file_name} was not sent \(HTTP status 404\): #{@instead}"

    assert installed(context) == @cargo
  end

  test "cargo builds where there is no network", context do
    # Nobody listens at this port any more, and a name of this domain never resolves.
    {:ok, socket} = :gen_tcp.listen(0, ip: {127, 0, 0, 1})
    {:ok, port} = :inet.port(socket)
    :gen_tcp.close(socket)

    for {url, reason} <- [
          {"http://127.0.0.1:#{port}", "connection refused"},
          {"http://name.invalid", "non-existing domain"}
        ] do
      output = mix!([@task, "--force"], context.package, env(context, url))

      assert output =~
               "The precompiled library #{url}/v1/#{@file_name} cannot be fetched (#{reason}): #{@instead}"

      assert installed(context) == @cargo
    end
  end

  test "cargo builds for another libc, and for a target without library", context do
    url = serve(%{("/v1/" <> @file_name) => {200, context.contents}})
    {:glibc, version} = Target.libc()
    output = mix!([@task, "--force"], context.package, env(context, url, glibc: "99.0"))

    assert output =~
             "The precompiled library needs glibc 99.0, and this system has #{Enum.join(version, ".")}: #{@instead}"

    assert installed(context) == @cargo

    env = [{"TARGET_ABI", "musl"} | env(context, url)]
    output = mix!([@task, "--force"], context.package, env)
    assert output =~ "has no library for #{String.replace(Target.host(), "gnu", "musl")}: #{@instead}"
    assert installed(context) == @cargo
    refute_received {:request, _path}
  end

  test "a cross build gets the library of its target, whatever the libc of this system", context do
    url = serve(%{("/v1/" <> @file_name) => {200, "for another system"}})
    target = "aarch64-unknown-linux-gnu"
    options = [target: target, contents: "for another system", glibc: "99.0"]

    env = [
      {"TARGET_ARCH", "aarch64"},
      {"TARGET_OS", "linux"},
      {"TARGET_ABI", "gnu"} | env(context, url, options)
    ]

    mix!([@task], context.package, env)
    assert installed(context) == "for another system"
    env = [{"CARGO_BUILD_TARGET", target} | env(context, url, options)]
    mix!([@task, "--force"], context.package, env)
    assert installed(context) == "for another system"
  end

  test "the list of the package has no targets as long as there is no release", context do
    output = mix!([@task], context.package, context.env)
    refute output =~ "precompiled"
    assert installed(context) == @cargo

    # Who names a URL expects a library.
    env = [{"PARTITIONED_BUFFER_PRECOMPILED_URL", "http://name.invalid"} | context.env]
    output = mix!([@task], context.package, env)
    assert output =~ "native/precompiled.exs has no library for #{Target.host()}: #{@instead}"
  end

  test "a list of another version is left, and one of another form is an error", context do
    url = serve(%{})
    output = mix!([@task], context.package, env(context, url, version: "0.0.1"))
    assert output =~ "has the libraries of version 0.0.1, not #{@version}: #{@instead}"

    for {text, message} <- [
          {"[]", "should be a map with :version, :url and :targets, but is []"},
          {~s(%{version: "1", url: nil, targets: %{"t" => %{file: "../f", sha256: "#{sum("")}"}}}),
           ~s(has %{file: "../f")},
          {~s(%{version: "1", url: nil, targets: %{"t" => %{file: "f", sha256: "1"}}}), ~s(for "t")}
        ] do
      list = Path.join(context.dir, "list.exs")
      File.write!(list, text)

      assert failure(mix([@task], context.package, [{"PARTITIONED_BUFFER_PRECOMPILED", list} | context.env])) =~
               message
    end

    env = [{"PARTITIONED_BUFFER_PRECOMPILED", "/nowhere/list.exs"} | context.env]
    assert failure(mix([@task], context.package, env)) =~ "/nowhere/list.exs does not exist"
  end

  test "native/precompile lists the libraries of a directory", context do
    libraries = Path.join(context.dir, "libraries")
    File.mkdir_p!(libraries)
    name = "partitioned_buffer-#{@version}-#{Target.host()}.so"
    File.write!(Path.join(libraries, name), context.contents)
    script = Path.expand("../../native/precompile", __DIR__)

    # Its output is what the compiler reads.
    {list, 0} = System.cmd(script, [libraries, "unused"], env: [{"MIX_ENV", nil}])
    File.write!(Path.join(context.dir, "list.exs"), list)
    url = serve(%{("/v1/" <> name) => {200, context.contents}})
    mix!([@task], context.package, env(context, url))
    assert installed(context) == context.contents
    assert {%{url: "unused", targets: targets}, _bindings} = Code.eval_string(list)
    assert [{target, %{file: ^name, glibc: glibc}}] = Map.to_list(targets)
    assert target == Target.host()
    assert Target.version(glibc) <= elem(Target.libc(), 1)

    File.write!(Path.join(libraries, "another.so"), "")
    {output, 1} = System.cmd(script, [libraries, "unused"], stderr_to_stdout: true)
    assert output =~ "another.so should be called partitioned_buffer-#{@version}-TARGET.so"
  end

  describe "https" do
    @tag :capture_log
    test "is fetched from a server whose certificate is right, and only from such a one", context do
      for app <- [:ssl, :public_key],
          function_exported?(Mix, :ensure_application!, 1),
          do: apply(Mix, :ensure_application!, [app])

      {:ok, _started} = Application.ensure_all_started(:ssl)

      # A server's certificate for some names, and the file of its authority.
      certified = fn names, file ->
        kind = [digest: :sha256, key: {:rsa, 2048, 65_537}]
        alternative_name = {:Extension, {2, 5, 29, 17}, false, names}
        chain = %{root: kind, intermediates: [], peer: [extensions: [alternative_name]] ++ kind}
        data = :public_key.pkix_test_data(%{server_chain: chain, client_chain: chain})
        file = Path.join(context.dir, file)
        authorities = for der <- data.client_config[:cacerts], do: {:Certificate, der, :not_encrypted}
        File.write!(file, :public_key.pem_encode(authorities))
        {data.server_config, file}
      end

      files = %{("/v1/" <> @file_name) => {200, context.contents}}
      # Old versions of OTP look for the address among the names.
      {server, authorities} = certified.([iPAddress: <<127, 0, 0, 1>>, dNSName: ~c"127.0.0.1"], "here.pem")
      {elsewhere, authorities_elsewhere} = certified.([dNSName: ~c"elsewhere.example"], "elsewhere.pem")

      for {server, file, result} <- [
            {server, authorities_elsewhere, ~r/cannot be fetched \(.*Unknown CA.*\): #{@instead}/},
            {elsewhere, authorities_elsewhere,
             ~r/cannot be fetched \(.*hostname_check_failed.*\): #{@instead}/},
            {server, authorities, ~r"Fetched https://127.0.0.1:\d+/v1/#{@file_name}"}
          ] do
        "http" <> address = serve(files, {:ssl, server})
        env = [{"SSL_CERT_FILE", file} | env(context, "https" <> address)]
        assert mix!([@task, "--force"], context.package, env) =~ result
        assert installed(context) == if(file == authorities, do: context.contents, else: @cargo)
      end
    end
  end

  ## The environment and what it leads to

  defp env(context, url, opts \\ []) do
    list = Path.join(context.dir, "list.exs")

    if not File.exists?(list) or opts != [] do
      library = %{file: @file_name, sha256: sum(opts[:contents] || context.contents), glibc: opts[:glibc]}
      targets = %{(opts[:target] || Target.host()) => library}
      # The user's URL replaces it.
      File.write!(
        list,
        inspect(%{version: opts[:version] || @version, url: "http://name.invalid", targets: targets})
      )
    end

    context.env ++
      [{"PARTITIONED_BUFFER_PRECOMPILED", list}, {"PARTITIONED_BUFFER_PRECOMPILED_URL", url <> "/v1/"}]
  end

  defp sum(contents), do: :crypto.hash(:sha256, contents) |> Base.encode16(case: :lower)

  defp installed(context) do
    path = Path.join(context.package, "_build/dev/lib/partitioned_buffer/priv/native/partitioned_buffer.so")
    with {:error, :enoent} <- File.read(path), do: nil, else: ({:ok, contents} -> contents)
  end

  ## The server

  # Answers with `{status, body}` of a path, and tells the test of each request.
  defp serve(files, {transport, options} \\ {:gen_tcp, []}) do
    test = self()
    options = [:binary, packet: :http_bin, active: false, ip: {127, 0, 0, 1}, reuseaddr: true] ++ options
    {:ok, socket} = transport.listen(0, options)
    {:ok, {_ip, port}} = if transport == :ssl, do: :ssl.sockname(socket), else: :inet.sockname(socket)
    start_supervised!({Task, fn -> accept(transport, socket, files, test) end}, id: port)
    "http://127.0.0.1:#{port}"
  end

  defp accept(transport, listening, files, test) do
    with {:ok, socket} <- connection(transport, listening),
         {:ok, {:http_request, :GET, {:abs_path, path}, _version}} <- transport.recv(socket, 0) do
      send(test, {:request, path})
      headers(transport, socket)
      {status, body} = Map.get(files, path, {404, "not here"})

      transport.send(socket, [
        "HTTP/1.1 #{status} -\r\nconnection: close\r\ncontent-length: #{byte_size(body)}\r\n\r\n",
        body
      ])

      transport.close(socket)
    end

    accept(transport, listening, files, test)
  end

  defp headers(transport, socket) do
    with {:ok, {:http_header, _, _, _, _}} <- transport.recv(socket, 0), do: headers(transport, socket)
  end

  defp connection(:gen_tcp, listening), do: :gen_tcp.accept(listening)

  defp connection(:ssl, listening) do
    with {:ok, socket} <- :ssl.transport_accept(listening), do: :ssl.handshake(socket)
  end
end
