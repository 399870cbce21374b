# A sink goes down and comes back, while four processes write: how many writes a second return, how long the slowest of a
# thousand takes, and how many entries the buffer holds. Draws bench/outage.svg.
#
#     MIX_ENV=prod mix run bench/outage.exs
#
# The writers update 20,000 keys of a map, 40,000 times a second in all. The sink takes 2 ms for a batch; while it is down
# each call fails. --seconds N is the length of each of the three parts: up, down, up. At the end the script checks that the
# sink has the last value of each key, and that no write failed.

for file <- ~w(histogram outage_chart), do: Code.require_file("support/#{file}.ex", __DIR__)

defmodule Bench.Outage do
  alias Bench.{Histogram, OutageChart}
  alias PartitionedBuffer.Map, as: Buffer

  @writers 4
  @keys 20_000
  @writes_per_turn 100
  @turn_ms 10
  @sink_ms 2

  def main(args) do
    {[seconds: seconds], [], []} = OptionParser.parse(["--seconds", "12" | args], strict: [seconds: :integer])
    stored = :ets.new(:stored, [:public, write_concurrency: true])
    up = :atomics.new(1, [])
    :atomics.put(up, 1, 1)

    {:ok, _pid} =
      Buffer.start_link(
        name: :outage,
        preset: :database,
        max_attempts: :infinity,
        retry_backoff_ms: {200, 2_000},
        processor: &store(&1, stored, up)
      )

    histograms = for _second <- 1..(3 * seconds), do: Histogram.new()
    until = System.monotonic_time(:millisecond) + 3_000 * seconds
    histogram_of = List.to_tuple(histograms)
    from = System.monotonic_time(:millisecond)
    writers = for number <- 1..@writers, do: Task.async(fn -> write(number, from, until, histogram_of, 0) end)

    held =
      for second <- 1..(3 * seconds) do
        wait_until(from + 1_000 * second)
        :atomics.put(up, 1, if(second >= seconds and second < 2 * seconds, do: 0, else: 1))
        %{size: size, in_flight: in_flight} = PartitionedBuffer.info(:outage)
        size + in_flight
      end

    last = Task.await_many(writers, :infinity)
    :ok = PartitionedBuffer.flush(:outage)
    check(stored, last)
    %{totals: totals} = PartitionedBuffer.info(:outage)
    rows = for {histogram, held} <- Enum.zip(histograms, held), do: row(histogram, held)

    IO.puts(
      "#{totals.written} writes, #{totals.refused} refused, #{:ets.info(stored, :size)} keys stored with their last value"
    )

    for {{writes, us, held}, second} <- Enum.with_index(rows, 1),
        do: IO.puts("#{second} s: #{writes} writes, #{us} µs, #{held} held")

    File.write!(Path.join(__DIR__, "outage.svg"), OutageChart.svg(rows, seconds))
  end

  defp row(histogram, held),
    do: {Histogram.count(histogram), Float.round(Histogram.percentile(histogram, 0.999) / 1_000, 1), held}

  defp store(batch, stored, up) do
    Process.sleep(@sink_ms)

    if :atomics.get(up, 1) == 1 do
      :ets.insert(stored, for({key, value, _version, _updates} <- batch, do: {key, value}))
      :ok
    else
      {:error, :down}
    end
  end

  # Returns the number of writes. Each writer has keys of its own.
  defp write(number, from, until, histograms, count) do
    now = System.monotonic_time(:millisecond)

    if now < until do
      histogram = elem(histograms, div(now - from, 1_000))
      for n <- count..(count + @writes_per_turn - 1), do: put(number, n, histogram)
      wait_until(from + @turn_ms * (div(count, @writes_per_turn) + 1))
      write(number, from, until, histograms, count + @writes_per_turn)
    else
      {number, count}
    end
  end

  defp put(number, n, histogram) do
    began = System.monotonic_time(:nanosecond)
    :ok = Buffer.put(:outage, {number, rem(n, div(@keys, @writers))}, n)
    Histogram.add(histogram, System.monotonic_time(:nanosecond) - began)
  end

  defp wait_until(time), do: Process.sleep(max(time - System.monotonic_time(:millisecond), 0))

  defp check(stored, last) do
    keys = div(@keys, @writers)

    for {number, count} <- last, n <- max(count - keys, 0)..(count - 1) do
      [{_key, ^n}] = :ets.lookup(stored, {number, rem(n, keys)})
    end
  end
end

Logger.configure(level: :none)
Bench.Outage.main(System.argv())
