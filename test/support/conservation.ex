defmodule PartitionedBuffer.Conservation do
  @moduledoc false
  # Processes write to a buffer of which each partition hands over every millisecond. At the end each acknowledged write
  # must have been processed once, or have been replaced or deleted by a later one before that; in the order of the writes
  # to its key; in batches of which only the last of a hand-over is short.
  #
  # `History` says how that is known, `Ledger` what is checked besides, `Faults` what may go wrong meanwhile.

  alias PartitionedBuffer.Conservation.{Faults, Ledger, Writer}
  alias PartitionedBuffer.Map, as: Buffer

  @absent {:absent, __MODULE__}
  @batch_sizes [1, 7, 100, 1_000]

  @type result() :: %{
          calls: map(),
          counts: map(),
          faults: map(),
          violations: map(),
          seconds: float()
        }

  @doc "So many writes to a buffer of this package, with faults of these kinds."
  @spec package(keyword()) :: result()
  def package(opts) do
    buffer = :"conservation_#{System.unique_integer([:positive])}"
    faults = Keyword.get(opts, :faults, [])
    batch_sizes = if :update_options in faults, do: [:table | @batch_sizes], else: [100]
    {:ok, ledger} = Ledger.start_link(buffer, batch_sizes)

    options = [
      name: buffer,
      processor: Ledger.processor(ledger),
      partitions: 2,
      processing_interval_ms: 1,
      processing_batch_size: 100
    ]

    faults =
      Faults.start_link(opts[:seed],
        options: options,
        ledger: ledger,
        batch_sizes: batch_sizes,
        kinds: faults
      )

    await_running(buffer)
    {histories, calls, seconds} = write(%{write: &write(buffer, &1, &2), get: &get(buffer, &1, &2)}, opts)
    injected = Faults.stop(faults)
    Buffer.stop(buffer)
    Process.unlink(faults)
    Process.exit(faults, :kill)

    ledger
    |> Ledger.finish(histories, injected.puts)
    |> Map.merge(%{calls: calls, faults: injected.counts, seconds: seconds})
    |> check_reads()
    |> check_reports(injected)
  end

  @doc "The same writes to the documented ETS design, `design` of `bench/support`, where partition keys are left out."
  @spec ets_design(module(), keyword()) :: result()
  def ets_design(design, opts) do
    {:ok, ledger} = Ledger.start_link(nil, nil)
    handle = design.new(partitions: 2)
    flusher = Task.async(fn -> flush_design(design, handle, ledger) end)

    target = %{
      write: fn call, _opts -> write_design(design, handle, call) end,
      get: fn key, _opts -> get_design(design, handle, key) end
    }

    {histories, calls, seconds} = write(target, opts)
    send(flusher.pid, :stop)
    Task.await(flusher, :infinity)

    ledger
    |> Ledger.finish(histories, [])
    |> Map.merge(%{calls: calls, faults: %{}, seconds: seconds})
    |> check_reads()
  end

  ## Writers

  defp write(target, opts) do
    writers = Keyword.get(opts, :writers, 4)
    started = System.monotonic_time(:millisecond)

    for number <- 0..(writers - 1) do
      Writer.start_link(number,
        writers: writers,
        target: target,
        left: div(opts[:writes], writers),
        hibernate: Keyword.get(opts, :faults, []) != [],
        seed: opts[:seed]
      )
    end

    results =
      for _ <- 1..writers do
        receive do
          {:written, histories, calls} -> {histories, calls}
        end
      end

    {histories, calls} = Enum.unzip(results)
    calls = Enum.reduce(calls, &Map.merge(&1, &2, fn _call, a, b -> a + b end))
    {Enum.concat(histories), calls, (System.monotonic_time(:millisecond) - started) / 1_000}
  end

  ## What is written to

  defp write(buffer, call, opts) do
    case call do
      {:put, key, value} -> Buffer.put(buffer, key, value, opts)
      {:put_newer, key, value, version} -> Buffer.put_newer(buffer, key, value, version, opts)
      {:put_all, entries} -> Buffer.put_all(buffer, entries, opts)
      {:put_all_newer, entries} -> Buffer.put_all_newer(buffer, entries, opts)
      {:delete, key} -> Buffer.delete(buffer, key, opts)
    end
  rescue
    RuntimeError -> :refused
  end

  defp get(buffer, key, opts) do
    case Buffer.get(buffer, key, @absent, opts) do
      @absent -> :absent
      value -> {:ok, value}
    end
  rescue
    RuntimeError -> :refused
  end

  defp write_design(design, handle, call) do
    [function | arguments] = Tuple.to_list(call)
    apply(design, function, [handle | arguments])
    :ok
  rescue
    ArgumentError -> :refused
  end

  defp get_design(design, handle, key) do
    case design.get(handle, key) do
      nil -> :absent
      value -> {:ok, value}
    end
  rescue
    ArgumentError -> :refused
  end

  defp flush_design(design, handle, ledger) do
    design.drain(handle, 100, &Ledger.process(&1, ledger))

    receive do
      :stop -> design.drain(handle, 100, &Ledger.process(&1, ledger)) && design.free(handle)
    after
      1 -> flush_design(design, handle, ledger)
    end
  end

  defp await_running(buffer) do
    Buffer.size(buffer)
  rescue
    RuntimeError -> Process.sleep(1) && await_running(buffer)
  end

  ## What the counts have to be

  defp check_reads(result) do
    case result.calls[:wrong_reads] do
      nil -> result
      count -> put_in(result.violations[:wrong_reads], count)
    end
  end

  # Each failure of a task is told by `processing_failed`, but for what deaths of other processes have hidden.
  defp check_reports(result, %{unreported: unreported, unseen: unseen}) do
    failed = Map.get(result.counts, :failed, 0)
    reported = Map.get(result.counts, :processing_failed, 0)

    if failed - reported <= unreported and reported - failed <= unseen,
      do: result,
      else: put_in(result.violations[:reports], {failed, reported, unreported, unseen})
  end
end
