Code.require_file("native/compiler.exs", __DIR__)

defmodule PartitionedBuffer.MixProject do
  use Mix.Project

  @version "0.5.0"
  @source_url "https://github.com/partitioned-buffer/partitioned_buffer"

  # Applications that are used where they are, outside of Mix's dependencies: telemetry on ERL_LIBS or in the system's
  # Erlang, PropEr in the system's Erlang for the property tests, LiveDashboard and an HTML parser on ERL_LIBS for the
  # tests of its page.
  @found for app <- [:telemetry, :proper, :phoenix_live_dashboard, :floki, :lazy_html],
             is_list(:code.lib_dir(app)),
             do: {app, :optional}

  def project do
    [
      app: :partitioned_buffer,
      version: @version,
      elixir: "~> 1.14",
      compilers: [:partitioned_buffer_nif] ++ Mix.compilers(),
      elixirc_paths: elixirc_paths(Mix.env()),
      start_permanent: Mix.env() == :prod,
      deps: if(hex?(), do: deps(), else: []),
      # Beside it is what the tests share.
      test_paths: ["test/partitioned_buffer"],
      description:
        "A write buffer for key-value entries: coalescing, partitioned, flushed in batches; on a Rust NIF",
      package: package(),
      docs: docs(),
      aliases: [check: &check/1],
      name: "PartitionedBuffer",
      source_url: @source_url
    ]
  end

  def application,
    do: [mod: {PartitionedBuffer.Application, []}, extra_applications: [:logger] ++ found(Mix.env())]

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

  # The pages of the documentation, in the groups and the order of its sidebar.
  @pages [
    Start: ~w(README.md guides/getting-started.md guides/which-tool.md guides/tour.livemd
      guides/coming-from-partitioned-buffer.md),
    Use: ~w(guides/processors.md guides/delivery.md guides/partition-keys.md guides/counting.md
      guides/several-nodes.md guides/surviving-a-crash.md guides/testing.md),
    Operate: ~w(guides/ready-for-production.md guides/configuring.md guides/watching.md guides/stopping.md
      guides/deploying.md guides/building.md guides/when-something-is-wrong.md),
    Inside:
      ~w(guides/guarantees.md guides/evidence.md guides/architecture.md guides/contributing.md CHANGELOG.md)
  ]

  # The groups of functions, `@doc group: "Write"`.
  @groups [:"Start and stop", :Write, :Read, :Observe]

  # For ExDoc, where it is; nothing here needs it.
  defp docs do
    [
      main: "readme",
      source_ref: "v#{@version}",
      extras: Enum.flat_map(@pages, fn {_group, files} -> files end),
      groups_for_extras: @pages,
      groups_for_docs: for(group <- @groups, do: {group, &(&1[:group] == Atom.to_string(group))}),
      groups_for_modules: [
        Buffers: [PartitionedBuffer.Map, PartitionedBuffer.Counter, PartitionedBuffer.Queue],
        Operation: [PartitionedBuffer.Telemetry, PartitionedBuffer.FullError, PartitionedBuffer.LiveDashboard],
        "Several nodes": [PartitionedBuffer.Cluster],
        "Surviving a crash": [PartitionedBuffer.Journal, PartitionedBuffer.JournalError]
      ],
      # The charts of the README.
      assets: %{"bench" => "bench"}
    ]
  end

  @features "partitioned_buffer/timing,partitioned_buffer/faults"
  @checks [
    "mix format --check-formatted",
    "mix compile --force --warnings-as-errors",
    "mix xref graph --format cycles --fail-above 0",
    "MIX_ENV=test mix compile --force --warnings-as-errors",
    "mix test",
    "cargo fmt --check",
    "cargo clippy --quiet --locked --workspace --all-targets -- -D warnings",
    "cargo clippy --quiet --locked --workspace --all-targets --features #{@features} -- -D warnings",
    "cargo test --quiet --locked",
    "cd native/shuttle && cargo fmt --check && cargo test --quiet --locked"
  ]

  # Each check is a command of its own, since Mix has one environment at a time. --no-test leaves `mix test` out.
  defp check(args) do
    dialyzer = if System.find_executable("dialyzer"), do: [".ci/dialyzer"], else: []
    skipped = if "--no-test" in args, do: ["mix test"], else: []

    for command <- (@checks -- skipped) ++ dialyzer do
      Mix.shell().info("\n== #{command}")
      if Mix.shell().cmd(command, env: [{"MIX_ENV", nil}]) != 0, do: Mix.raise("the check failed: #{command}")
    end
  end

  defp package do
    [
      name: "partitioned_buffer_native",
      licenses: ["MIT"],
      links: %{"GitHub" => @source_url, "Changelog" => "#{@source_url}/blob/main/CHANGELOG.md"},
      files:
        ~w(lib guides examples/grafana examples/tracker/{mix.exs,README.md,config,lib,priv,test} mix.exs .formatter.exs README.md CHANGELOG.md LICENSE Cargo.toml Cargo.lock native/{compiler,precompiled}.exs native/build native/{engine,partitioned_buffer}/Cargo.toml native/{engine,partitioned_buffer}/src)
    ]
  end
end
