defmodule PartitionedBuffer.GuidesTest do
  # Runs the guides and the notebook. See `PartitionedBuffer.Guide` for how they are written. Watching
  # acts on all buffers of the node, so no other test may run.
  use ExUnit.Case, async: false

  alias PartitionedBuffer.Guide
  alias PartitionedBuffer.Test.Cluster.Controller

  @moduletag :capture_log

  @guides Path.wildcard(Guide.path("guides/*.md")) |> Enum.map(&Path.relative_to(&1, Guide.path("")))
  @notebook "guides/tour.livemd"

  # One guide makes the VM a node.
  setup context do
    if context[:cluster] do
      Controller.start_epmd()
      on_exit(&Controller.stop/0)
    end

    :ok
  end

  for guide <- @guides do
    if guide == "guides/several-nodes.md", do: @tag(:cluster)

    test "#{guide} shows results that are true" do
      assert Guide.run(Guide.blocks(unquote(guide)), unquote(guide)) > 0
      await_ends_of_linked()
    end
  end

  # The buffers end with the test. The next guide may take their names.
  defp await_ends_of_linked do
    {:links, links} = Process.info(self(), :links)
    pids = Enum.filter(links, &is_pid/1)

    on_exit(fn ->
      for pid <- pids, ref = Process.monitor(pid), do: receive(do: ({:DOWN, ^ref, _, _, _} -> :ok))
    end)
  end

  test "#{@notebook} shows results that are true, after its installation" do
    [{_number, installation} | cells] = Guide.blocks(@notebook)
    assert Enum.join(installation, "\n") =~ "Mix.install("
    refute inspect(cells) =~ "Mix.install"
    assert Guide.run(cells, @notebook) > 0
  end

  test "every file exists that a guide names" do
    for guide <- [@notebook | @guides] do
      for [_, file] <-
            Regex.scan(~r"`((?:lib|native|test|bench|examples|guides|\.ci)/[^`\s]*)`", read(guide)),
          do: assert(Path.wildcard(Guide.path(file)) != [], "#{guide} names #{file}")
    end
  end

  test "every link leads to a file, and to a title of it" do
    modules = Path.wildcard(Guide.path("lib/**/*.ex")) |> Enum.map(&Path.relative_to(&1, Guide.path("")))

    for page <-
          [@notebook, "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"] ++ @guides ++ modules,
        [_, link, anchor] <- Regex.scan(~r"\]\(([^)#:`]*)#?([^)`:]*)\)", read(page)) do
      # The documentation has all pages in one directory.
      dir = if Path.extname(page) == ".ex", do: "guides", else: Path.dirname(page)

      file =
        if link == "",
          do: page,
          else: link |> String.replace(".html", ".md") |> Path.expand(Path.join("/", dir))

      file = Path.relative_to(file, "/")
      assert File.exists?(Guide.path(file)), "#{page} links to #{link}"

      if anchor != "" and Path.extname(file) == ".md",
        do: assert(anchor in titles(file), "#{page} links to #{link}##{anchor}")
    end
  end

  test "h PartitionedBuffer is short enough to be read" do
    {:docs_v1, _, _, _, %{"en" => doc}, _, _} = Code.fetch_docs(PartitionedBuffer)
    assert doc |> String.split("\n") |> length() < 120
  end

  defp read(file), do: file |> Guide.path() |> File.read!()

  # The titles of a page, as ExDoc and GitHub make anchors of them.
  defp titles(file) do
    for [_, title] <- Regex.scan(~r/^##* (.*)$/m, read(file)),
        do: title |> String.downcase() |> String.replace(~r/[^\w\s-]/u, "") |> String.replace(" ", "-")
  end

  test "the package and its documentation contain all guides" do
    project = Mix.Project.config()
    assert "guides" in project[:package][:files]
    extras = project[:docs][:extras]
    for file <- [@notebook, "README.md", "CHANGELOG.md" | @guides], do: assert(file in extras)
    assert length(extras) == length(@guides) + 3
    assert "README.md" in extras and project[:docs][:main] == "readme"
  end

  describe "Guide.run/2" do
    test "raises on another result than the guide shows" do
      for {lines, message} <- [
            {["1 + 1", "#=> 3"], ~r"guide.md:11 .*shown: 3.*is:    2"s},
            {["1", "#=> 1.0"], ~r"guide.md:11 .*is:    1"s},
            {["[1,", " 2]", "#=> [1,", "#    3]"], ~r"guide.md:12 .*\[1, 2\]"s},
            {["x = 1", "x", "#=> 1", "x + 1", "#=> 1"], ~r"guide.md:14 .*is:    2"s},
            {["1", "#=> ** (RuntimeError) no"], ~r"guide.md:11 .*:no_error"s},
            {["raise \"yes\"", "#=> ** (RuntimeError) no"], ~r"guide.md:11 .*yes"s},
            {["1 + 1 #=> 3"], ~r"not at the beginning"}
          ] do
        assert_raise Guide.Mismatch, message, fn -> Guide.run([{10, lines}], "guide.md") end
      end
    end

    test "keeps bindings and aliases from block to block" do
      blocks = [{1, ["alias String, as: S", "x = \"a\""]}, {9, ["S.upcase(x)", "#=> \"A\"", "x"]}]
      assert Guide.run(blocks, "guide.md") == 1
      error = {1, ["raise \"no\"", "#=> ** (RuntimeError) no", "[1, 2]", "#=> [1,", "#    2]"]}
      assert Guide.run([error], "guide.md") == 2
    end
  end
end
