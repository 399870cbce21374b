defmodule Bench.Runner do
  @moduledoc """
  Runs a scenario with several candidates in alternation, each measurement on a process of its own.

  A scenario is a map: `name`; `ops`, how many operations `run` does; `prepare`, which gets a candidate and gives a state,
  and is not measured; `run`, of candidate and state; `finish`, which makes the handle of the state (where it is another
  one); `check` of what is there then; `rounds` of a pass, where they are not the usual number; and `drained?` if the first
  candidate's table is gone afterwards.

  All scenarios are run in several passes: what else the machine does goes on for minutes, and would be in all rounds of
  one scenario and in none of the others.
  """

  alias Bench.Report

  @passes 3
  @rounds 5

  def rounds, do: @passes * @rounds

  @doc "A debug build of the NIF is ten times slower: it would measure nothing."
  def release! do
    library = Application.app_dir(:partitioned_buffer, "priv/native/partitioned_buffer.so")

    if System.get_env("PARTITIONED_BUFFER_NIF_PATH", "") =~ "debug" or not File.exists?(library) do
      raise "the benchmarks measure the release build only"
    end
  end

  @doc "Processes that have what they need before the clock runs: each does its function when `release/1` says so."
  def ready(functions) do
    for function <- functions do
      spawn_link(fn -> receive do: ({:go, from} -> send(from, {:done, function.()})) end)
    end
  end

  @doc "Returns when all have done their function, which returns `:ok`."
  def release(pids) do
    for pid <- pids, do: send(pid, {:go, self()})
    for _pid <- pids, do: receive(do: ({:done, :ok} -> :ok))
  end

  @doc "Prints a table, a line for each scenario, and gives the times with the ratios to the first candidate."
  def run(scenarios, candidates) do
    times =
      for pass <- 1..@passes, scenario <- scenarios do
        IO.write(:stderr, "\r\e[Kpass #{pass} of #{@passes}: #{scenario.name}")
        {scenario.name, rounds(scenario, candidates)}
      end

    IO.write(:stderr, "\r\e[K")
    times = Enum.group_by(times, &elem(&1, 0), &elem(&1, 1))
    for %{name: name} <- scenarios, do: result(name, Enum.concat(times[name]), candidates)
  end

  # The first round only warms up.
  defp rounds(scenario, [base | _] = candidates) do
    [_ | rounds] =
      for _ <- 0..Map.get(scenario, :rounds, @rounds),
          do: Map.new(candidates, &{&1, measure(&1, scenario, base)})

    rounds
  end

  defp result(name, times, [base | _] = candidates) do
    results =
      for candidate <- candidates do
        ns = Enum.map(times, & &1[candidate])
        ratios = Enum.map(times, &(&1[base] / &1[candidate]))
        {low, high} = Report.spread(ratios)

        %{
          candidate: candidate.label(),
          ns: Report.median(ns),
          ratio: Report.median(ratios),
          low: low,
          high: high
        }
      end

    IO.puts(String.pad_trailing(name, 44) <> Enum.map_join(results, &cell(&1, base)))
    %{name: name, results: results}
  end

  defp cell(result, base) do
    ratio =
      "#{:erlang.float_to_binary(result.ratio, decimals: 2)}× [#{:erlang.float_to_binary(result.low, decimals: 2)}–#{:erlang.float_to_binary(result.high, decimals: 2)}]"

    text = if result.candidate == base.label(), do: "", else: ratio
    String.pad_leading(Report.format(result.ns), 11) <> " " <> String.pad_trailing(text, 20)
  end

  # On a process that has collected its garbage before the clock runs.
  defp measure(mod, scenario, base) do
    task =
      Task.async(fn ->
        state = scenario.prepare.(mod)
        :erlang.garbage_collect()
        started = System.monotonic_time(:nanosecond)
        scenario.run.(mod, state)
        elapsed = System.monotonic_time(:nanosecond) - started
        handle = if scenario[:finish], do: scenario.finish.(mod, state), else: state
        scenario.check.(mod, handle) || raise "#{inspect(mod)} holds something else after #{scenario.name}"
        if mod != base or not Map.get(scenario, :drained?, false), do: mod.free(handle)
        elapsed / scenario.ops
      end)

    Task.await(task, :infinity)
  end
end
