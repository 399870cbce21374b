defmodule PartitionedBuffer.Observe.Watch do
  @moduledoc false
  # A page in the terminal about a running buffer. All values on it come from
  # `PartitionedBuffer.info/1`; the rates are the differences of two infos.

  # The size of a page on a device that reports none.
  @rows 24
  @columns 80

  # The width of the first labels in the header, the longest of which is "last error".
  @label 10

  # The least width of a value in the header, so that most changes of a value move nothing else.
  @value 14

  @defaults [
    interval: 1_000,
    rounds: :infinity,
    device: :stdio,
    info: &PartitionedBuffer.Observe.Info.info/1,
    ansi: nil
  ]

  @doc """
  Prints the page each `:interval` milliseconds, `:rounds` times or until the buffer is not running.

  Options: `:interval` (1000), `:rounds` (`:infinity`), `:device` (`:stdio`), `:info`, a function
  that takes the buffer and returns its info, and `:ansi`, whether the page replaces the one before
  (`IO.ANSI.enabled?/0`).
  """
  @spec run(atom(), keyword()) :: :ok
  def run(buffer, opts \\ []) when is_atom(buffer) do
    opts = opts |> Keyword.validate!(@defaults) |> Map.new()
    ansi? = if opts.ansi == nil, do: IO.ANSI.enabled?(), else: opts.ansi
    loop(buffer, %{opts | ansi: ansi?}, nil, opts.rounds)
  end

  defp loop(_buffer, _opts, _before, 0), do: :ok

  defp loop(buffer, opts, before, rounds) do
    case info(buffer, opts) do
      {:ok, info} ->
        now = System.monotonic_time(:millisecond)
        {previous, at} = before || {nil, now}
        IO.write(opts.device, page(opts.ansi, render(info, previous, now - at, shape(buffer, opts))))
        left = if rounds == :infinity, do: :infinity, else: rounds - 1
        if left != 0, do: Process.sleep(opts.interval)
        loop(buffer, opts, {info, now}, left)

      {:error, message} ->
        IO.puts(opts.device, message)
    end
  end

  defp info(buffer, opts) do
    {:ok, opts.info.(buffer)}
  rescue
    error in [ArgumentError, RuntimeError] -> {:error, Exception.message(error)}
  end

  defp page(true, text), do: [IO.ANSI.home(), IO.ANSI.clear(), text]
  defp page(false, text), do: [text, "\n"]

  defp shape(buffer, opts) do
    [
      title: inspect(buffer),
      rows: geometry(:rows, opts.device, @rows),
      columns: geometry(:columns, opts.device, @columns),
      now: System.system_time(:millisecond)
    ]
  end

  defp geometry(which, device, default) do
    # `IO` and `:io` name the devices differently.
    device = Map.get(%{stdio: :standard_io, stderr: :standard_error}, device, device)

    case apply(:io, which, [device]) do
      {:ok, count} -> count
      {:error, _no_terminal} -> default
    end
  end

  @doc """
  The page for an info. `previous` is the info from `passed_ms` milliseconds before, or nil.

  Options: `:title`, the name of the buffer; `:rows` and `:columns` of the terminal, or `:infinity`;
  `:now`, the system time in milliseconds, for the age of the last error.
  """
  @spec render(map(), map() | nil, non_neg_integer(), keyword()) :: iodata()
  def render(info, previous, passed_ms, opts \\ []) do
    opts = Keyword.validate!(opts, title: nil, rows: :infinity, columns: :infinity, now: nil)
    header = header(info, previous, passed_ms, opts)
    # One line stays free for the cursor.
    room = if opts[:rows] == :infinity, do: :infinity, else: opts[:rows] - length(header) - 2
    for line <- header ++ [""] ++ table(info.partitions, room), do: [cut(line, opts[:columns]), "\n"]
  end

  ## Header

  defp header(info, previous, passed_ms, opts) do
    %{totals: totals} = info
    rate = &rate(info, previous, passed_ms, &1)

    title =
      [opts[:title], info.kind, if(info.paused?, do: "paused")] |> Enum.reject(&is_nil/1) |> Enum.join("  ")

    fields = [
      [
        "waiting",
        grouped(info.size),
        "in flight",
        grouped(info.in_flight),
        "retrying",
        grouped(info.retrying)
      ],
      ["written", rate.(:written), "processed", rate.(:processed), "coalesced", rate.(:coalesced)],
      [
        "oldest",
        duration(info.oldest_ms),
        "failed",
        grouped(totals.failed),
        "given up",
        grouped(totals.given_up)
      ],
      ["held", held(info), "refused", grouped(totals.refused), "dropped", grouped(totals.dropped)],
      [
        "memory",
        memory(info),
        "writers",
        "#{grouped(info.waiting_writers)} waiting",
        "failing",
        if(info.failing_ms == 0, do: "-", else: duration(info.failing_ms))
      ]
    ]

    sides = [{:left, @label}, {:left, @value}, {:left, 0}, {:left, @value}, {:left, 0}, {:left, 0}]
    last_error = String.pad_trailing("last error", @label) <> "  " <> last_error(info.last_error, opts[:now])
    [title] ++ align(fields, sides) ++ [last_error]
  end

  # The entries that the bound counts.
  defp held(%{max_size: max_size} = info) do
    held = grouped(info.size + info.in_flight)

    cond do
      max_size != :infinity -> "#{held} of #{grouped(max_size)}"
      info.max_bytes != :infinity -> held
      true -> "#{held}, no bound"
    end
  end

  defp memory(%{max_bytes: :infinity} = info), do: bytes(info.bytes)
  defp memory(info), do: "#{bytes(info.bytes)} of #{bytes(info.max_bytes)}"

  defp rate(_info, nil, _passed_ms, _total), do: "-"
  defp rate(_info, _previous, 0, _total), do: "-"

  defp rate(info, previous, passed_ms, total) do
    case Map.fetch!(info.totals, total) - Map.fetch!(previous.totals, total) do
      # The buffer was started again.
      difference when difference < 0 -> "-"
      difference -> "#{grouped(round(difference * 1_000 / passed_ms))}/s"
    end
  end

  defp last_error(nil, _now), do: "-"

  defp last_error(%{reason: reason, partition: partition, system_time: at}, now) do
    age = if now, do: ", #{duration(max(now - at, 0))} ago", else: ""
    # The text of `:format_reason` may have several lines.
    reason = if is_atom(reason), do: inspect(reason), else: String.replace(reason, ~r/[\p{C}\p{Z}]+/u, " ")
    "#{reason} in #{short(partition)}#{age}"
  end

  ## Partitions

  @titles ["partition", "waiting", "in flight", "state", "failures", "next"]
  @sides [{:left, 0}, {:right, 0}, {:right, 0}, {:left, 10}, {:right, 0}, {:right, 10}]

  defp table(partitions, room) do
    {shown, others} = most(partitions, room)
    align([@titles | Enum.map(shown, &cells/1)], @sides) ++ if(others == [], do: [], else: [others(others)])
  end

  # The partitions with the most entries, in their order. One line is for the titles, and one for
  # the other partitions.
  defp most(partitions, room) when length(partitions) + 1 <= room, do: {partitions, []}

  defp most(partitions, room) do
    {shown, others} =
      partitions
      |> Enum.with_index()
      |> Enum.sort_by(fn {partition, number} -> {-holds(partition), number} end)
      |> Enum.split(max(room - 2, 1))

    {for({partition, _number} <- Enum.sort_by(shown, &elem(&1, 1)), do: partition),
     Enum.map(others, &elem(&1, 0))}
  end

  defp holds(partition), do: partition.size + partition.in_flight

  defp others(others) do
    holding = others |> Enum.map(&holds/1) |> Enum.sum()
    "and #{grouped(length(others))} others with #{grouped(holding)}"
  end

  defp cells(partition) do
    [
      short(partition.name),
      grouped(partition.size),
      grouped(partition.in_flight),
      Atom.to_string(partition.state),
      grouped(partition.failures),
      duration(partition.next_ms)
    ]
  end

  ## Texts

  defp short(partition), do: partition |> Atom.to_string() |> String.replace_prefix("Elixir.", "")

  # Each column is as wide as its widest cell, and at least as wide as its given width.
  defp align(rows, sides) do
    columns =
      for {column, {side, least}} <- Enum.zip(Enum.zip_with(rows, & &1), sides) do
        width = column |> Enum.map(&String.length/1) |> Enum.max() |> max(least)
        Enum.map(column, &pad(&1, side, width))
      end

    Enum.zip_with(columns, &(&1 |> Enum.join("  ") |> String.trim_trailing()))
  end

  defp pad(text, :left, width), do: String.pad_trailing(text, width)
  defp pad(text, :right, width), do: String.pad_leading(text, width)

  defp cut(line, :infinity), do: line
  defp cut(line, columns), do: String.slice(line, 0, columns)

  defp grouped(integer) do
    integer
    |> Integer.to_string()
    |> String.reverse()
    |> String.replace(~r/\d{3}(?=\d)/, "\\0,")
    |> String.reverse()
  end

  defp bytes(bytes) when bytes < 1_000, do: "#{bytes} B"
  defp bytes(bytes) when bytes < 1_000_000, do: "#{decimal(bytes / 1_000)} kB"
  defp bytes(bytes) when bytes < 1_000_000_000, do: "#{decimal(bytes / 1_000_000)} MB"
  defp bytes(bytes), do: "#{decimal(bytes / 1_000_000_000)} GB"

  defp decimal(number), do: :erlang.float_to_binary(number, decimals: 1)

  defp duration(nil), do: "-"
  defp duration(ms) when ms < 1_000, do: "#{ms} ms"
  defp duration(ms) when ms < 60_000, do: "#{decimal(ms / 1_000)} s"

  defp duration(ms) when ms < 3_600_000,
    do: "#{div(ms, 60_000)} min #{ms |> rem(60_000) |> div(1_000)} s"

  defp duration(ms), do: "#{div(ms, 3_600_000)} h #{ms |> rem(3_600_000) |> div(60_000)} min"
end
