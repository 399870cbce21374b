defmodule PartitionedBuffer.Test.Terminal do
  @moduledoc false
  # A terminal as a device: its screen, a size, and somebody who may press Enter. It knows what a page
  # of `PartitionedBuffer.watch/2` uses: newlines, "\r", the cursor up, and clearing from the cursor on.

  use GenServer

  @doc "Starts a terminal with this size."
  def start_link(rows, columns), do: GenServer.start_link(__MODULE__, {rows, columns, self()})

  @doc "The lines of the screen and those that scrolled off it, without trailing blanks and empty lines at the end."
  def lines(terminal), do: GenServer.call(terminal, :lines)

  @doc "Types a line."
  def enter(terminal, line \\ "\n"), do: GenServer.call(terminal, {:enter, line})

  @doc "The terminal sends `{:printed, terminal}` after each request to print."
  @impl GenServer
  def init({rows, columns, owner}) do
    {:ok,
     %{
       rows: rows,
       columns: columns,
       owner: owner,
       lines: %{},
       row: 0,
       column: 0,
       bottom: rows - 1,
       reader: nil
     }}
  end

  @impl GenServer
  def handle_call(:lines, _from, state) do
    lines =
      for row <- 0..Enum.max([state.row | Map.keys(state.lines)]), do: String.trim_trailing(line(state, row))

    {:reply, lines |> Enum.reverse() |> Enum.drop_while(&(&1 == "")) |> Enum.reverse(), state}
  end

  def handle_call({:enter, line}, _from, %{reader: {pid, reply}} = state) do
    send(pid, {:io_reply, reply, line})
    {:reply, :ok, %{print(state, "\n") | reader: nil}}
  end

  def handle_call({:enter, _line}, _from, state), do: {:reply, :nobody_reads, state}

  @impl GenServer
  def handle_info({:io_request, pid, reply, {:get_line, _encoding, _prompt}}, state) do
    send(state.owner, {:reads, self()})
    {:noreply, %{state | reader: {pid, reply}}}
  end

  def handle_info({:io_request, pid, reply, request}, state) do
    {answer, state} = request(request, state)
    send(pid, {:io_reply, reply, answer})
    {:noreply, state}
  end

  defp request({:put_chars, _encoding, chars}, state) do
    send(state.owner, {:printed, self()})
    {:ok, print(state, IO.chardata_to_string(chars))}
  end

  defp request({:put_chars, encoding, module, function, arguments}, state),
    do: request({:put_chars, encoding, apply(module, function, arguments)}, state)

  defp request({:get_geometry, which}, state), do: {Map.fetch!(state, which), state}
  defp request(_other, state), do: {{:error, :request}, state}

  defp print(state, ""), do: state
  defp print(state, "\r" <> rest), do: print(%{state | column: 0}, rest)

  # A newline in the last line of the screen scrolls it: rows count from the first line ever printed.
  defp print(state, "\n" <> rest) do
    row = state.row + 1
    print(%{state | row: row, column: 0, bottom: max(state.bottom, row)}, rest)
  end

  defp print(state, "\e[J" <> rest) do
    kept = for {row, line} <- state.lines, row < state.row, into: %{}, do: {row, line}
    before = state |> line(state.row) |> String.slice(0, state.column)
    print(%{state | lines: Map.put(kept, state.row, before)}, rest)
  end

  defp print(state, "\e[" <> rest) do
    {count, "A" <> rest} = Integer.parse(rest)
    # The cursor stops at the top of the screen.
    print(%{state | row: max(state.row - count, state.bottom - state.rows + 1)}, rest)
  end

  defp print(%{columns: columns, column: columns} = state, rest), do: print(print(state, "\n"), rest)

  defp print(state, text) do
    {character, rest} = String.next_grapheme(text)
    line = state |> line(state.row) |> String.pad_trailing(state.column)
    {before, behind} = String.split_at(line, state.column)
    line = before <> character <> String.slice(behind, 1..-1//1)
    print(%{state | lines: Map.put(state.lines, state.row, line), column: state.column + 1}, rest)
  end

  defp line(state, row), do: Map.get(state.lines, row, "")
end
