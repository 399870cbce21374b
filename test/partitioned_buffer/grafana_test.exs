defmodule PartitionedBuffer.GrafanaTest do
  # The dashboard for Grafana in `examples`, beside the definitions of metrics in the guide on operations.
  use ExUnit.Case, async: true

  alias PartitionedBuffer.Guide

  @dashboard "examples/grafana/partitioned_buffer.json"

  defmodule JSON do
    # Reads JSON: maps with text keys, lists, texts, numbers, true, false and :null. Raises a MatchError
    # or FunctionClauseError on anything else.

    def read!(text) do
      {value, rest} = value(blank(text))
      "" = blank(rest)
      value
    end

    defp value("{" <> rest), do: members(blank(rest), %{})
    defp value("[" <> rest), do: elements(blank(rest), [])
    defp value("\"" <> rest), do: text(rest, "")
    defp value("true" <> rest), do: {true, rest}
    defp value("false" <> rest), do: {false, rest}
    defp value("null" <> rest), do: {:null, rest}

    defp value(rest) do
      [number] = Regex.run(~r/^-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/, rest)
      {number, binary_part(rest, byte_size(number), byte_size(rest) - byte_size(number))}
    end

    defp members("}" <> rest, map) when map == %{}, do: {map, rest}

    defp members("\"" <> rest, map) do
      {key, rest} = text(rest, "")
      false = is_map_key(map, key)
      ":" <> rest = blank(rest)
      {value, rest} = value(blank(rest))
      map = Map.put(map, key, value)

      case blank(rest) do
        "}" <> rest -> {map, rest}
        "," <> rest -> members(blank(rest), map)
      end
    end

    defp elements("]" <> rest, []), do: {[], rest}

    defp elements(rest, list) do
      {value, rest} = value(rest)

      case blank(rest) do
        "]" <> rest -> {Enum.reverse([value | list]), rest}
        "," <> rest -> elements(blank(rest), [value | list])
      end
    end

    defp text("\"" <> rest, text), do: {text, rest}

    defp text("\\u" <> <<hex::binary-size(4), rest::binary>>, text),
      do: text(rest, text <> <<String.to_integer(hex, 16)::utf8>>)

    defp text("\\" <> <<escaped::utf8, rest::binary>>, text) when escaped in ~c"\"\\/bfnrt",
      do: text(rest, text <> <<escaped>>)

    defp text(<<character::utf8, rest::binary>>, text) when character >= 0x20 and character not in ~c"\\",
      do: text(rest, text <> <<character::utf8>>)

    defp blank(text), do: String.trim_leading(text)
  end

  # Stands for `Telemetry.Metrics`: a definition is its type and its name.
  defmodule Metrics do
    for type <- ~w(last_value counter sum distribution)a do
      def unquote(type)(name, opts), do: {unquote(type), name, opts}
    end
  end

  setup_all do
    {:ok, documented: documented()}
  end

  # The metrics that the module in the guide defines, by the names that Prometheus has for them.
  defp documented do
    [source] =
      Regex.run(~r/^defmodule MyApp\.Telemetry do.*?^end$/ms, File.read!(Guide.path("guides/watching.md")))

    source =
      source
      |> String.replace("MyApp.Telemetry", inspect(__MODULE__) <> ".Documented")
      |> String.replace("import Telemetry.Metrics", "import #{inspect(Metrics)}")
      |> String.replace("defp metrics", "def metrics")

    [{module, _code}] = Code.compile_string(source, "guides/watching.md")

    for {type, name, opts} <- module.metrics(), into: %{} do
      assert :buffer in opts[:tags]
      {String.replace(name, ".", "_"), type}
    end
  end

  defp dashboard, do: @dashboard |> Guide.path() |> File.read!() |> JSON.read!()

  defp expressions(%{"panels" => panels}),
    do: for(panel <- panels, target <- panel["targets"], do: target["expr"])

  defp metrics(expressions) do
    for expression <- expressions,
        [name] <- Regex.scan(~r/\bpartitioned_buffer_\w+/, expression),
        uniq: true,
        do: name
  end

  test "each metric of the dashboard is documented, with the suffix of its type", %{documented: documented} do
    variables = for %{"definition" => query} <- dashboard()["templating"]["list"], do: query
    names = metrics(expressions(dashboard()) ++ variables)
    assert length(names) > 15

    for name <- names do
      if String.ends_with?(name, "_bucket"),
        do: assert(documented[String.replace_suffix(name, "_bucket", "")] == :distribution, name),
        else: assert(documented[name] in [:last_value, :counter, :sum], name)
    end
  end

  test "the dashboard shows the numbers that operators alert on" do
    shown = metrics(expressions(dashboard()))

    numbers =
      ~w(size in_flight max_size bytes oldest_ms failing_ms written processed given_up refused dropped)

    for number <- numbers ++ ~w(journal_lag_ms journal_bytes),
        do: assert("partitioned_buffer_info_#{number}" in shown)

    assert "partitioned_buffer_partition_batch_stop_duration_bucket" in shown
  end

  test "each number of info that the guide defines is in the event", %{documented: documented} do
    dir = Path.join(System.tmp_dir!(), "grafana_#{System.unique_integer([:positive])}_#{System.pid()}")
    on_exit(fn -> File.rm_rf!(dir) end)
    name = :"grafana_#{System.unique_integer([:positive])}"

    opts = [
      name: name,
      processor: &Function.identity/1,
      max_size: 1,
      max_bytes: 1_000,
      max_attempts: 1,
      journal: dir
    ]

    start_supervised!({PartitionedBuffer.Map, opts})
    test = self()

    :telemetry.attach(
      {__MODULE__, name},
      [:partitioned_buffer, :info],
      fn _event, measurements, metadata, _config ->
        if metadata.buffer == name, do: send(test, {:info, measurements})
      end,
      nil
    )

    on_exit(fn -> :telemetry.detach({__MODULE__, name}) end)
    PartitionedBuffer.emit_info(name)
    assert_received {:info, measurements}

    for {"partitioned_buffer_info_" <> number, :last_value} <- documented,
        do: assert(is_map_key(measurements, String.to_existing_atom(number)), number)
  end

  test "the queries have balanced brackets and filter by the variables" do
    for expression <- expressions(dashboard()) do
      for {open, close} <- [{"(", ")"}, {"{", "}"}, {"[", "]"}],
          do:
            assert(
              length(String.split(expression, open)) == length(String.split(expression, close)),
              expression
            )

      names = Regex.scan(~r/\bpartitioned_buffer_\w+/, expression)

      filters =
        Regex.scan(~r/\bpartitioned_buffer_\w+\{buffer=~"\$buffer", instance=~"\$instance"\}/, expression)

      assert length(names) == length(filters)
    end
  end

  test "panels have numbers of their own and do not overlap" do
    panels = dashboard()["panels"]
    assert panels |> Enum.map(& &1["id"]) |> Enum.uniq() |> length() == length(panels)

    assert panels |> Enum.map(&{&1["gridPos"]["x"], &1["gridPos"]["y"]}) |> Enum.uniq() |> length() ==
             length(panels)
  end

  test "the package has the dashboard" do
    assert "examples/grafana" in Mix.Project.config()[:package][:files]
  end

  test "JSON.read!/1 refuses what is not JSON" do
    assert JSON.read!(~S( {"a": [1, -2.5e3, true, null, "\u0041\"b"], "b": {}} )) ==
             %{"a" => ["1", "-2.5e3", true, :null, "A\"b"], "b" => %{}}

    for wrong <- [
          ~s({"a": 1,}),
          ~s([1 2]),
          ~s({"a"}),
          ~s("a),
          ~s([01]),
          ~s({"a":1,"a":2}),
          "[] []",
          "'a'",
          ""
        ] do
      assert catch_error(JSON.read!(wrong)), wrong
    end
  end
end
