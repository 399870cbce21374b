defmodule PartitionedBuffer.VMStopTest do
  # What becomes of entries when a VM stops, in VMs of their own.
  use ExUnit.Case, async: true

  import PartitionedBuffer.VM

  setup :tmp_dir

  @dead ~s(dead [{:key, 1, 0, 0}] :stopped)
  @lost ~r/buffer Shop.Buffer no longer runs: it gave up 0 entries, and 1 are lost with this VM/

  # Runs a scenario of test/vm/ending.exs; returns the lines of its file, and what the VM printed.
  defp run(scenario, dir, status \\ 0) do
    path = Path.join(dir, scenario)
    app = Path.join(dir, "partitioned_buffer")
    unless File.exists?(app), do: copy_package(dir, library())
    script = Path.expand("../vm/ending.exs", __DIR__)
    args = ["-pa", Path.join(app, "ebin"), script, path, scenario]
    {output, exited} = System.cmd("elixir", args, stderr_to_stdout: true)
    assert {scenario, exited, output} == {scenario, status, output}
    lines = with {:ok, text} <- File.read(path), do: String.split(text, "\n", trim: true)
    {lines, output}
  end

  defp dead(lines), do: Enum.reject(lines, &(&1 == "failed"))

  describe "entries that a sink refuses" do
    test "go to :dead_letter after retries, if the VM stops", %{dir: dir} do
      {lines, output} = run("the VM stops", dir)
      assert dead(lines) == [@dead]
      assert length(lines) > 2
      assert output =~ ~r/buffer Shop.Buffer stopped after \d+ ms: it gave up 1 entries/
      refute output =~ "no longer runs"
    end

    test "are lost and logged once without :dead_letter, if the VM stops", %{dir: dir} do
      {lines, output} = run("the VM stops, no :dead_letter", dir)
      assert dead(lines) == []
      assert output =~ ~r/buffer Shop.Buffer stopped after \d+ ms: 1 entries are lost with this VM/
      refute output =~ "no longer runs"
    end

    test "go to :dead_letter though a supervisor gave up, and took the VM along", %{dir: dir} do
      {lines, output} = run("a permanent application gave up", dir, 1)
      assert lines == ["failed", @dead]
      assert output =~ "1 entries are kept until a buffer of this name and kind starts"
      assert output =~ "buffer Shop.Buffer no longer runs and gave up its 1 entries"
    end

    for scenario <- [
          "a temporary application gave up",
          "the application was stopped",
          "the supervisor was killed",
          "its supervisor does not wait",
          "started and stopped again"
        ] do
      test "go to :dead_letter at the end of the VM: #{scenario}", %{dir: dir} do
        {lines, output} = run(unquote(scenario), dir)
        assert dead(lines) == [@dead]
        assert output =~ "buffer Shop.Buffer no longer runs and gave up its 1 entries"
        refute output =~ "kept: false"
      end
    end
  end

  describe "entries of a buffer on several nodes" do
    for scenario <- ["the owning stage left it", "the collecting stage left it"] do
      test "go to :dead_letter at the end of the VM: #{scenario}", %{dir: dir} do
        {lines, output} = run(unquote(scenario), dir)
        assert dead(lines) == [@dead]
        assert output =~ ~r/buffer Shop.Buffer[^ ]* no longer runs and gave up its 1 entries/
      end
    end
  end

  describe "with a journal, entries that a sink refuses" do
    test "are left to the next VM, and not to :dead_letter", %{dir: dir} do
      {lines, output} = run("the VM stops, and the journal has them", dir)
      assert dead(lines) == []
      assert output =~ ~r/buffer Shop.Buffer stopped after \d+ ms: 1 entries are in the journal/
      refute output =~ "no longer runs"
    end

    for {scenario, fate} <- [
          {"the VM stops, its journal fails", "1 entries are left, and may be lost with this VM"},
          {"the buffer stops, its journal fails",
           "1 entries are kept until a buffer of this name and kind starts, in memory only"}
        ] do
      test "are logged if it has not all of them: #{scenario}", %{dir: dir} do
        {_lines, output} = run(unquote(scenario), dir)

        assert output =~
                 ~r/\[error\] buffer Shop.Buffer stopped after \d+ ms: #{unquote(fate)}: its journal fails \(enotdir\)/
      end
    end
  end

  describe "in a release, entries that a sink refuses" do
    for {ending, calls} <- [{"a supervisor gives up", 1..1}, {"the VM stops", 2..100}] do
      test "go to :dead_letter, once: #{ending}", %{dir: dir} do
        path = Path.join(dir, "lines")
        args = ["-boot", boot_script(dir), "-mode", "embedded", "-noshell", "-extra", path, unquote(ending)]
        {output, _status} = System.cmd("erl", args, stderr_to_stdout: true)
        lines = path |> File.read!() |> String.split("\n", trim: true)
        assert {dead(lines), output} == {[@dead], output}
        assert (length(lines) - 1) in unquote(Macro.escape(calls))
      end
    end

    # A boot script starts all applications as permanent, as that of a release does.
    defp boot_script(dir) do
      copy_package(dir, library())
      {package, ebin} = {Path.join(dir, "partitioned_buffer/ebin"), Path.join(dir, "shop/ebin")}
      File.mkdir_p!(ebin)
      source = Path.expand("../vm/released.ex", __DIR__)
      {_output, 0} = System.cmd("elixirc", ["-pa", package, "-o", ebin, source])
      module = PartitionedBuffer.Released

      shop =
        [description: ~c"Shop", vsn: ~c"1", modules: [module], registered: [], mod: {module, []}] ++
          [applications: [:kernel, :stdlib, :elixir, :logger, :partitioned_buffer]]

      File.write!(Path.join(ebin, "shop.app"), :io_lib.format("~p.~n", [{:application, :shop, shop}]))
      apps = [:kernel, :stdlib, :compiler, :elixir, :logger, :partitioned_buffer]
      versions = for app <- apps, do: {app, Application.spec(app, :vsn)}
      erts = {:erts, :erlang.system_info(:version)}
      release = {:release, {~c"shop", ~c"1"}, erts, versions ++ [{:shop, ~c"1"}]}
      name = Path.join(dir, "shop")
      File.write!(name <> ".rel", :io_lib.format("~p.~n", [release]))
      paths = [ebin, package | :code.get_path()]
      options = [:local, :silent, path: Enum.map(paths, &to_charlist/1), outdir: to_charlist(dir)]
      # Since Elixir 1.15 Mix leaves the applications of OTP out of the code path.
      if function_exported?(Mix, :ensure_application!, 1), do: apply(Mix, :ensure_application!, [:sasl])
      assert {:ok, :systools_make, _warnings} = :systools.make_script(to_charlist(name), options)
      name
    end
  end

  describe "kept entries at the end of the VM" do
    test "are not dead if the buffer was started again", %{dir: dir} do
      {lines, output} = run("started again", dir)
      assert dead(lines) == ["stored [{:key, 1, 0, 0}]"]
      refute output =~ "no longer runs"
    end

    test "go to the :dead_letter of their kind, though another kind was started", %{dir: dir} do
      {lines, _output} = run("another kind started", dir)
      assert Enum.sort(dead(lines)) == ["dead [:item] :stopped", @dead]
    end

    test "are either dead or found, once, if a start races with the end", %{dir: dir} do
      {lines, _output} = run("a start races with the end", dir)
      values = for line <- dead(lines), [_, value] <- [Regex.run(~r/{:key, (\d+), 0, 0}/, line)], do: value
      assert Enum.sort(values) == 1..100 |> Enum.map(&to_string/1) |> Enum.sort()
    end

    test "are left alone while the buffer runs elsewhere", %{dir: dir} do
      {lines, output} = run("it runs elsewhere", dir)
      assert dead(lines) == []
      refute output =~ "no longer runs"
    end

    for {scenario, stored} <- [
          {"no :dead_letter", []},
          {"it hangs", []},
          {"started again without outcomes", ["stored [{:key, 1, 0, 0}]"]}
        ] do
      test "are logged as lost: #{scenario}", %{dir: dir} do
        {lines, output} = run(unquote(scenario), dir)
        assert dead(lines) == unquote(stored)
        assert output =~ @lost
      end
    end

    for scenario <- ["it raises", "it is unloaded"] do
      test "are logged as given up if :dead_letter fails: #{scenario}", %{dir: dir} do
        {lines, output} = run(unquote(scenario), dir)
        assert dead(lines) == []
        assert output =~ ~r/partition \d of buffer Shop.Buffer gives up 1 entries/
      end
    end

    test "are no concern of a package whose application is not started", %{dir: dir} do
      {lines, output} = run("the package is no application", dir)
      assert lines == ["failed"]
      assert output =~ "1 entries are kept until a buffer of this name and kind starts"
      refute output =~ "no longer runs"
    end
  end
end
