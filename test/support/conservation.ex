defmodule PartitionedBuffer.Conservation do
  @moduledoc false
  # Processes write to a buffer of which each partition flushes every millisecond. At the end each acknowledged write
  # must have been processed once, in the order of the writes, in batches of which only the last of a flush is short.
  #
  # `Kind` is what maps and queues differ in, `Ledger` what is checked in both, `Faults` what may go wrong meanwhile.

  alias PartitionedBuffer.Conservation.{Faults, Ledger, Writer}

  @batch_sizes [1, 7, 100, 1_000]

  @type result() :: %{
          calls: map(),
          counts: map(),
          faults: map(),
          violations: map(),
          seconds: float()
        }

  @doc "So many writes to a buffer of this package, with faults of these kinds."
  @spec package(module(), keyword()) :: result()
  def package(kind, opts) do
    buffer = :"conservation_#{System.unique_integer([:positive])}"
    faults = Keyword.get(opts, :faults, [])
    batch_sizes = if :update_options in faults, do: [:table | @batch_sizes], else: [100]
    {:ok, ledger} = Ledger.start_link(kind, buffer, batch_sizes)

    options = [
      name: buffer,
      module: kind.buffer(),
      processor: Ledger.processor(ledger, kind),
      partitions: 2,
      processing_interval_ms: 1,
      processing_batch_size: 100
    ]

    faults =
      Faults.start_link(opts[:seed],
        kind: kind,
        options: options,
        ledger: ledger,
        batch_sizes: batch_sizes,
        faults: faults
      )

    {written, calls, seconds} = write(kind, &call(kind, buffer, &1, &2), opts)
    injected = Faults.stop(faults)

    ledger
    |> Ledger.finish(written ++ injected.written)
    |> Map.merge(%{calls: calls, faults: injected.counts, seconds: seconds})
    |> check_reads()
    |> check_reports(injected)
  end

  @doc "The same writes to the documented ETS design, `design` of `bench/support`."
  @spec ets_design(module(), module(), keyword()) :: result()
  def ets_design(kind, design, opts) do
    {:ok, ledger} = Ledger.start_link(kind, nil, nil)
    handle = design.new(partitions: 2)
    flusher = Task.async(fn -> flush_design(design, handle, &Ledger.process(&1, ledger, kind)) end)

    {written, calls, seconds} =
      write(kind, fn call, _opts -> call_design(kind, design, handle, call) end, opts)

    send(flusher.pid, :stop)
    Task.await(flusher, :infinity)

    ledger
    |> Ledger.finish(written)
    |> Map.merge(%{calls: calls, faults: %{}, seconds: seconds})
    |> check_reads()
  end

  ## Writers

  defp write(kind, target, opts) do
    writers = Keyword.get(opts, :writers, 4)
    started = System.monotonic_time(:millisecond)

    for number <- 0..(writers - 1) do
      Writer.start_link(number,
        kind: kind,
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
          {:written, written, calls} -> {written, calls}
        end
      end

    {written, calls} = Enum.unzip(results)
    calls = Enum.reduce(calls, &Map.merge(&1, &2, fn _call, a, b -> a + b end))
    {Enum.concat(written), calls, (System.monotonic_time(:millisecond) - started) / 1_000}
  end

  ## What is written to

  defp call(kind, buffer, call, opts), do: refusable(fn -> kind.call(buffer, call, opts) end)

  @doc "The result of a call on a buffer, `:refused` if the buffer is not running."
  def refusable(call) do
    call.()
  rescue
    error in ArgumentError ->
      unless error.message =~ "no partitions available", do: reraise(error, __STACKTRACE__)
      :refused
  end

  defp call_design(kind, design, handle, call) do
    kind.call_design(design, handle, call)
  rescue
    # There is no table, or it has no size.
    _gone in [ArgumentError, ArithmeticError] -> :refused
  end

  defp flush_design(design, handle, processor) do
    design.drain(handle, 100, processor)

    receive do
      :stop -> design.drain(handle, 100, processor) && design.free(handle)
    after
      1 -> flush_design(design, handle, processor)
    end
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
