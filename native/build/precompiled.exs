defmodule PartitionedBuffer.Build.Precompiled do
  @moduledoc false
  # Fetches the library of a release.
  #
  # native/precompiled.exs, or the file that PARTITIONED_BUFFER_PRECOMPILED names, lists the libraries.
  # PARTITIONED_BUFFER_PRECOMPILED_URL replaces its URL. Cargo builds a library that cannot be fetched. A
  # wrong sum stops the compilation instead, because the file may be an attacker's.

  alias PartitionedBuffer.Build.Target

  # From 1.15 on Mix takes OTP's applications off the code path until they are asked for.
  @compile {:no_warn_undefined, [:crypto, :httpc, :inets, :public_key]}

  @connect_ms 10_000
  @fetch_ms 120_000

  @doc "The library of a version, or nil if cargo has to build it. `scratch` replaces a cache that cannot be written."
  def fetch(version, scratch) do
    with false <- build?(),
         {:ok, url, library} <- listed(version),
         :ok <- start(:crypto),
         {:ok, contents} <- cached(library, scratch) || download(url, library, scratch) do
      contents
    else
      {:build, reason} ->
        Mix.shell().info("#{reason}: cargo builds the library instead")
        nil

      {:error, reason} ->
        Mix.shell().info(
          "No precompiled library can be verified (#{reason}): cargo builds the library instead"
        )

        nil

      true ->
        nil
    end
  end

  # A precompiled library has no features, and the profile `release`.
  defp build? do
    System.get_env("PARTITIONED_BUFFER_BUILD") in ~w(1 true) or
      Enum.any?(~w(FEATURES PROFILE), &(System.get_env("PARTITIONED_BUFFER_NIF_#{&1}") not in [nil, ""]))
  end

  ## The list

  # True without libraries or a URL: the user expects no precompiled library then, and no message.
  defp listed(version) do
    file = System.get_env("PARTITIONED_BUFFER_PRECOMPILED") || "native/precompiled.exs"
    list = read(file)
    mirror = System.get_env("PARTITIONED_BUFFER_PRECOMPILED_URL")
    url = mirror || list.url
    target = Target.name()

    cond do
      url == nil or (list.targets == %{} and mirror == nil) ->
        true

      list.version != version ->
        {:build, "#{file} has the libraries of version #{list.version}, not #{version}"}

      library = list.targets[target] ->
        fits(target, library, url)

      true ->
        {:build, "#{file} has no library for #{target}"}
    end
  end

  defp read(file) do
    if not File.regular?(file), do: Mix.raise("the list of precompiled libraries #{file} does not exist")

    case Code.eval_file(file) do
      {%{version: version, url: url, targets: %{} = targets} = list, _bindings}
      when is_binary(version) and (is_binary(url) or is_nil(url)) ->
        Enum.each(targets, &check(&1, file))
        list

      {other, _bindings} ->
        Mix.raise("#{file} should be a map with :version, :url and :targets, but is #{inspect(other)}")
    end
  end

  defp check({target, library}, file) do
    with true <- is_binary(target),
         %{file: name, sha256: sum} when is_binary(name) and is_binary(sum) <- library,
         true <- Path.basename(name) == name and sum =~ ~r/\A[0-9a-f]{64}\z/,
         true <- is_nil(library[:glibc]) or library[:glibc] =~ ~r/\A\d+\.\d+\z/ do
      :ok
    else
      _other ->
        Mix.raise(
          "#{file} should have for each target a map with :file, a :sha256 of 64 lower-case hexadecimal digits, and " <>
            "perhaps :glibc, but has #{inspect(library)} for #{inspect(target)}"
        )
    end
  end

  # A cross build cannot ask the libc of its target.
  defp fits(target, %{glibc: oldest} = library, url) when is_binary(oldest) do
    case target == Target.host() and Target.libc() do
      false ->
        {:ok, url, library}

      {:glibc, version} ->
        if version >= Target.version(oldest),
          do: {:ok, url, library},
          else:
            {:build,
             "The precompiled library needs glibc #{oldest}, and this system has #{Enum.join(version, ".")}"}

      _another ->
        {:build, "The precompiled library needs glibc #{oldest}, and this system's libc is not known"}
    end
  end

  defp fits(_target, library, url), do: {:ok, url, library}

  ## The cache

  defp cached(library, scratch) do
    Enum.find_value(places(library, scratch), fn file ->
      with {:ok, contents} <- File.read(file),
           true <- sum(contents) == library.sha256,
           do: {:ok, contents},
           else: (_ -> nil)
    end)
  end

  # In a container the home may be missing or read-only.
  defp store(contents, library, scratch) do
    Enum.find(places(library, scratch), fn file ->
      copy = "#{file}.#{System.pid()}"

      with :ok <- File.mkdir_p(Path.dirname(file)),
           :ok <- File.write(copy, contents),
           :ok <- File.rename(copy, file) do
        true
      else
        {:error, _reason} -> false
      end
    end)
  end

  defp places(library, scratch),
    do:
      for(folder <- [cache(), scratch], folder != nil, do: Path.join([folder, library.sha256, library.file]))

  defp cache do
    System.get_env("PARTITIONED_BUFFER_CACHE") ||
      (System.user_home() && to_string(:filename.basedir(:user_cache, "partitioned_buffer")))
  end

  defp sum(contents), do: :crypto.hash(:sha256, contents) |> Base.encode16(case: :lower)

  ## The network

  defp download(base, library, scratch) do
    url = String.trim_trailing(base, "/") <> "/" <> library.file
    shown = URI.to_string(%{URI.parse(url) | userinfo: nil})

    case get(url) do
      {:ok, 200, contents} ->
        verify!(contents, library, shown)
        store(contents, library, scratch)
        Mix.shell().info("Fetched #{shown}")
        {:ok, contents}

      {:ok, status, _contents} ->
        {:build, "The precompiled library #{shown} was not sent (HTTP status #{status})"}

      {:error, reason} ->
        {:build, "The precompiled library #{shown} cannot be fetched (#{reason})"}
    end
  end

  defp verify!(contents, library, shown) do
    with sum when sum != library.sha256 <- sum(contents) do
      Mix.raise(
        "the precompiled library #{shown} has not the expected SHA-256 #{library.sha256}, but #{sum}: it was changed, or is " <>
          "another file, and was not installed; PARTITIONED_BUFFER_BUILD=1 builds the library with cargo instead"
      )
    end
  end

  defp get(url) do
    with :ok <- start(:inets), :ok <- start(:ssl), {:ok, ssl} <- ssl(URI.parse(url)) do
      # Proxies are settings of a client, and the default one belongs to the user.
      {:ok, client} = :inets.start(:httpc, [profile: :partitioned_buffer], :stand_alone)
      # It would take the caller with it.
      Process.unlink(client)

      try do
        :httpc.set_options(proxies(), client)
        options = [timeout: @fetch_ms, connect_timeout: @connect_ms] ++ ssl
        request = {String.to_charlist(url), [{~c"user-agent", ~c"partitioned_buffer"}]}

        case :httpc.request(:get, request, options, [body_format: :binary], client) do
          {:ok, {{_http, status, _phrase}, _headers, contents}} -> {:ok, status, contents}
          {:error, reason} -> {:error, reason(reason)}
        end
      after
        :inets.stop(:stand_alone, client)
      end
    end
  end

  # Distributions split OTP into packages, so an application may be missing.
  defp start(app) do
    if function_exported?(Mix, :ensure_application!, 1), do: apply(Mix, :ensure_application!, [app])

    case Application.ensure_all_started(app) do
      {:ok, _started} -> :ok
      {:error, _reason} -> {:error, "Erlang's application #{app} is not installed"}
    end
  rescue
    Mix.Error -> {:error, "Erlang's application #{app} is not installed"}
  end

  defp ssl(%URI{scheme: "https"}) do
    match = :public_key.pkix_verify_hostname_match_fun(:https)
    verify = [verify: :verify_peer, depth: 10, log_level: :none, customize_hostname_check: [match_fun: match]]

    if file = System.get_env("SSL_CERT_FILE"),
      do: {:ok, [ssl: [cacertfile: String.to_charlist(file)] ++ verify]},
      else: {:ok, [ssl: [cacerts: :public_key.cacerts_get()] ++ verify]}
  rescue
    _no_certificates -> {:error, "this system has no CA certificates; SSL_CERT_FILE names a file with some"}
  end

  defp ssl(_another), do: {:ok, []}

  defp proxies do
    except = ~w(localhost 127.0.0.1) ++ String.split(variable("no_proxy") || "", [",", " "], trim: true)
    # httpc wants a star in front of a domain.
    except = for host <- except, do: String.to_charlist(String.replace(host, ~r/\A\./, "*."))

    for {option, name} <- [proxy: "http_proxy", https_proxy: "https_proxy"],
        text = variable(name),
        %URI{host: host, port: port} = URI.parse(if text =~ "://", do: text, else: "http://" <> text),
        host not in [nil, ""],
        do: {option, {{String.to_charlist(host), port || 80}, except}}
  end

  defp variable(name), do: System.get_env(name) || System.get_env(String.upcase(name))

  defp reason({:failed_connect, reasons}) do
    case List.keyfind(reasons, :inet, 0) || List.keyfind(reasons, :inet6, 0) do
      {_family, _options, {:tls_alert, {_alert, text}}} ->
        text |> to_string() |> String.split() |> Enum.join(" ")

      {_family, _options, reason} when is_atom(reason) ->
        :inet.format_error(reason)

      _another ->
        one_line(reasons)
    end
  end

  defp reason(:timeout), do: "no answer in #{div(@fetch_ms, 1_000)} seconds"
  defp reason(another), do: one_line(another)

  defp one_line(term), do: inspect(term, width: :infinity)
end
