defmodule PartitionedBuffer.Observe.Watch do
  @moduledoc false
  # A page in the terminal about one running buffer, or about all running buffers. All values on it come from
  # `PartitionedBuffer.info/1`; the rates are the differences of two infos.
  #
  # On a terminal each page replaces the one before, and log lines must survive that. Nobody tells
  # this process that another one printed, so it never moves the cursor up to print: after a page it
  # parks the cursor on the first of some empty lines above the page. A log line begins there and
  # pushes the cursor down. The next page clears the screen from the cursor on, which is the rest of
  # the empty lines and the old page, and is printed below the log lines. If more lines come between
  # two pages than the page has empty lines, the rest of the old page stays at their right, but
  # the lines themselves are complete. Neither a scroll region nor the alternate screen is used: a
  # shell that ends during the call would leave them behind.

  alias PartitionedBuffer.Observe.{Overview, Text}

  # The size of a page on a device that reports none.
  @rows 24
  @columns 80

  # The empty lines above a page of a terminal, for log lines: at least, and at most.
  @gap 3
  @most_gap 10

  # The width of the first labels in the header, the longest of which is "last error".
  @label 10

  # The least width of a value in the header, so that most changes of a value move nothing else.
  @value 14

  @hint "Press Enter to leave this page."
  @clear_below "\e[J"

  @defaults [
    interval: 1_000,
    rounds: :infinity,
    device: :stdio,
    info: &PartitionedBuffer.Observe.Info.info/1,
    buffers: nil,
    ansi: nil
  ]

  @doc """
  Prints the page each `:interval` milliseconds, `:rounds` times, or until the buffer is not running,
  or until somebody presses Enter in a terminal. With `:all` the page has a line for each buffer.

  Options: `:interval` (1000), `:rounds` (`:infinity`), `:device` (`:stdio`), `:info`, a function
  that takes the buffer and returns its info, `:buffers`, a function that returns the buffers, for
  `:all`, and `:ansi`, whether the page replaces the one before (`IO.ANSI.enabled?/0`).
  """
  @spec run(atom(), keyword()) :: :ok
  def run(buffer, opts \\ []) when is_atom(buffer) do
    opts = Map.merge(Map.new(@defaults), Map.new(opts))
    ansi? = if opts.ansi == nil, do: IO.ANSI.enabled?(), else: opts.ansi

    # A page without an end ends with Enter, where somebody can press it.
    enter? = opts.rounds == :infinity and opts.device != :stderr and terminal?(opts.device)
    opts = Map.merge(opts, %{ansi: ansi?, enter: nil, hint: if(enter?, do: [@hint], else: [])})
    loop(buffer, opts, nil, opts.rounds, [])
  end

  # `last` has the lines of the last page.
  defp loop(_buffer, _opts, _memory, 0, _last), do: :ok

  defp loop(buffer, opts, memory, rounds, last) do
    opts = shape(opts)

    case lines(buffer, opts, memory) do
      {:ok, lines, memory} ->
        left = if rounds == :infinity, do: :infinity, else: rounds - 1
        print(opts, lines, left == 0)

        case if(left == 0, do: {:time, opts}, else: opts |> await_enter() |> wait(opts.interval)) do
          {:time, opts} -> loop(buffer, opts, memory, left, lines)
          {:enter, opts} -> print_last(opts, lines, [])
        end

      {:error, message} ->
        print_last(opts, last, [message | if(opts.enter, do: opts.hint, else: [])])
        # The reader gets the next line that somebody types, so it must not be one for the shell.
        if opts.enter, do: wait(opts, :infinity)
        :ok
    end
  end

  ## The terminal

  defp shape(opts) do
    height = geometry(:rows, opts.device, @rows)
    rows = height - length(opts.hint)
    columns = geometry(:columns, opts.device, @columns)
    # A terminal may go to the next line by itself after the last column, which would be a line more
    # than the cursor goes up.
    {rows, columns} = if opts.ansi, do: {max(rows - @gap, 1), columns - 1}, else: {rows, columns}
    Map.merge(opts, %{height: height, rows: rows, columns: columns})
  end

  defp geometry(which, device, default) do
    case apply(:io, which, [io_device(device)]) do
      {:ok, count} -> count
      {:error, _no_terminal} -> default
    end
  end

  defp terminal?(device), do: match?({:ok, _columns}, :io.columns(io_device(device)))

  # `IO` and `:io` name the devices differently.
  defp io_device(device), do: Map.get(%{stdio: :standard_io, stderr: :standard_error}, device, device)

  # One request to the device, so that no log line comes into a page.
  defp print(%{ansi: false} = opts, lines, _last?),
    do: IO.write(opts.device, [text(opts.hint ++ lines), "\n"])

  defp print(opts, lines, true), do: print_last(opts, lines, [])

  defp print(opts, lines, false) do
    # One line of the terminal is for the cursor.
    room = opts.height - 1
    lines = Enum.take(opts.hint ++ lines, max(room - 1, 1))
    gap = (room - length(lines)) |> min(@most_gap) |> max(1)
    up = IO.ANSI.cursor_up(gap + length(lines))
    IO.write(opts.device, ["\r", @clear_below, String.duplicate("\n", gap), text(lines), up, "\r"])
  end

  # Nothing replaces the last page, so the cursor stays below it.
  defp print_last(%{ansi: false} = opts, _lines, message), do: IO.write(opts.device, text(message))

  defp print_last(opts, lines, message),
    do: IO.write(opts.device, ["\r", @clear_below, text(lines), text(message)])

  defp text(lines), do: for(line <- lines, do: [line, "\n"])

  # A process without a link waits for the line, so that its end never is an exit of the caller.
  defp await_enter(%{hint: [_ | _], enter: nil} = opts) do
    device = opts.device

    {_pid, ref} =
      spawn_monitor(fn -> exit(if is_binary(IO.gets(device, "")), do: :enter, else: :no_input) end)

    %{opts | enter: ref}
  end

  defp await_enter(opts), do: opts

  defp wait(%{enter: ref} = opts, timeout) do
    receive do
      {:DOWN, ^ref, :process, _pid, :enter} when ref != nil -> {:enter, %{opts | enter: nil}}
      # The input of the device is at its end, so nobody can press Enter.
      {:DOWN, ^ref, :process, _pid, _no_input} when ref != nil -> {:time, %{opts | enter: nil, hint: []}}
    after
      timeout -> {:time, opts}
    end
  end

  ## Pages

  defp lines(:all, opts, memory) do
    {rows, memory} =
      opts.buffers.()
      |> Overview.read(opts.info)
      |> Overview.rows(memory || %{}, System.monotonic_time(:millisecond))

    {:ok, render_all(rows, rows: opts.rows, columns: opts.columns), memory}
  end

  defp lines(buffer, opts, memory) do
    info = opts.info.(buffer)
    now = System.monotonic_time(:millisecond)
    {previous, at} = memory || {nil, now}

    page =
      render(info, previous, now - at,
        title: inspect(buffer),
        rows: opts.rows,
        columns: opts.columns,
        now: System.system_time(:millisecond)
      )

    {:ok, page, {info, now}}
  rescue
    error in [ArgumentError, RuntimeError] -> {:error, Exception.message(error)}
  end

  @doc """
  The lines of the page for an info. `previous` is the info from `passed_ms` milliseconds before, or
  nil.

  Options: `:title`, the name of the buffer; `:rows` and `:columns` of the terminal, or `:infinity`;
  `:now`, the system time in milliseconds, for the age of the last error.
  """
  @spec render(map(), map() | nil, non_neg_integer(), keyword()) :: [String.t()]
  def render(info, previous, passed_ms, opts \\ []) do
    opts = Keyword.validate!(opts, title: nil, rows: :infinity, columns: :infinity, now: nil)
    header = header(info, previous, passed_ms, opts)
    # One line stays free for the cursor.
    room = if opts[:rows] == :infinity, do: :infinity, else: opts[:rows] - length(header) - 2
    for line <- header ++ [""] ++ table(info.partitions, room), do: cut(line, opts[:columns])
  end

  # A narrow terminal cuts the last columns: the columns about trouble come first.
  @titles ["buffer", "state", "oldest", "failing", "held", "memory", "written", "processed", "kind"]
  @keys [:name, :state, :oldest_ms, :failing_ms, :held, :bytes, :written, :processed, :kind]
  @sides [left: 0, left: 10, right: 8, right: 8, right: 0, right: 0, right: 8, right: 0, left: 0]

  @doc """
  The lines of the page about all buffers, for `PartitionedBuffer.Observe.Overview.rows/3`. Options:
  `:rows` and `:columns` of the terminal, or `:infinity`.
  """
  @spec render_all([Overview.row()], keyword()) :: [String.t()]
  def render_all(rows, opts \\ []) do
    opts = Keyword.validate!(opts, rows: :infinity, columns: :infinity)
    room = if opts[:rows] == :infinity, do: :infinity, else: opts[:rows] - 1
    {shown, others} = most(rows, room, &(&1.held || 0))

    rest =
      if rows == [],
        do: ["no buffer is running"],
        else: others(others, &(&1.held || 0))

    for line <- Text.align([@titles | Enum.map(shown, &overview_cells/1)], @sides) ++ rest,
        do: cut(line, opts[:columns])
  end

  defp overview_cells(row) do
    texts = Overview.texts(row)
    for key <- @keys, do: texts[key]
  end

  ## Header

  defp header(info, previous, passed_ms, opts) do
    %{totals: totals} = info
    rate = &Text.rate(previous && Overview.rate(totals, previous.totals, passed_ms, &1))

    title =
      [opts[:title], info.kind, if(info.paused?, do: "paused")] |> Enum.reject(&is_nil/1) |> Enum.join("  ")

    fields = [
      [
        "waiting",
        Text.grouped(info.size),
        "in flight",
        Text.grouped(info.in_flight),
        "retrying",
        Text.grouped(info.retrying)
      ],
      ["written", rate.(:written), "processed", rate.(:processed), "coalesced", rate.(:coalesced)],
      [
        "oldest",
        Text.duration(info.oldest_ms),
        "failed",
        Text.grouped(totals.failed),
        "given up",
        Text.grouped(totals.given_up)
      ],
      ["held", held(info), "refused", Text.grouped(totals.refused), "dropped", Text.grouped(totals.dropped)],
      [
        "memory",
        memory(info),
        "writers",
        "#{Text.grouped(info.waiting_writers)} waiting",
        "failing",
        Text.failing(info.failing_ms)
      ]
    ]

    sides = [{:left, @label}, {:left, @value}, {:left, 0}, {:left, @value}, {:left, 0}, {:left, 0}]

    last_error =
      String.pad_trailing("last error", @label) <> "  " <> Text.last_error(info.last_error, opts[:now])

    [title] ++ Text.align(fields, sides) ++ [last_error]
  end

  # The entries that the bound counts.
  defp held(%{max_size: max_size} = info) do
    held = Text.grouped(info.size + info.in_flight)

    cond do
      max_size != :infinity -> "#{held} of #{Text.grouped(max_size)}"
      info.max_bytes != :infinity -> held
      true -> "#{held}, no bound"
    end
  end

  defp memory(%{max_bytes: :infinity} = info), do: Text.bytes(info.bytes)
  defp memory(info), do: "#{Text.bytes(info.bytes)} of #{Text.bytes(info.max_bytes)}"

  ## Partitions

  @partition_titles ["partition", "waiting", "in flight", "state", "failures", "next"]
  @partition_sides [{:left, 0}, {:right, 0}, {:right, 0}, {:left, 10}, {:right, 0}, {:right, 10}]

  defp table(partitions, room) do
    {shown, others} = most(partitions, room, &holds/1)
    Text.align([@partition_titles | Enum.map(shown, &cells/1)], @partition_sides) ++ others(others, &holds/1)
  end

  # The elements that hold the most entries, in their order. One line is for the titles, and one for
  # the others.
  defp most(elements, room, _holds) when length(elements) + 1 <= room, do: {elements, []}

  defp most(elements, room, holds) do
    {shown, others} =
      elements
      |> Enum.with_index()
      |> Enum.sort_by(fn {element, number} -> {-holds.(element), number} end)
      |> Enum.split(max(room - 2, 1))

    {for({element, _number} <- Enum.sort_by(shown, &elem(&1, 1)), do: element),
     Enum.map(others, &elem(&1, 0))}
  end

  defp holds(partition), do: partition.size + partition.in_flight

  defp others([], _holds), do: []

  defp others(others, holds) do
    holding = others |> Enum.map(holds) |> Enum.sum()
    ["and #{Text.grouped(length(others))} others with #{Text.grouped(holding)}"]
  end

  defp cells(partition) do
    [
      Text.partition(partition.name),
      Text.grouped(partition.size),
      Text.grouped(partition.in_flight),
      Atom.to_string(partition.state),
      Text.grouped(partition.failures),
      Text.duration(partition.next_ms)
    ]
  end

  defp cut(line, :infinity), do: line
  defp cut(line, columns), do: String.slice(line, 0, columns)
end
