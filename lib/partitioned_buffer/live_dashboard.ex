defmodule PartitionedBuffer.LiveDashboard do
  @moduledoc """
  A page about all buffers of a node for Phoenix LiveDashboard 0.8 and newer.

  Define a module for the page in the application that has the dashboard, and name it in the router:

      defmodule MyAppWeb.BuffersPage do
        use PartitionedBuffer.LiveDashboard
      end

      live_dashboard "/dashboard", additional_pages: [buffers: MyAppWeb.BuffersPage]

  The page is compiled with that module, where the dashboard certainly is. This package does not
  depend on Phoenix, so its own modules may be compiled before the dashboard, or without it.

  ## The pages

  The first page has a row for each running buffer of the node that is selected in the dashboard:

  | column | meaning |
  |---|---|
  | Buffer, Kind | the name of the buffer; `map`, `counter` or `queue` |
  | Held | `:size` and `:in_flight` of `PartitionedBuffer.info/1` together, and `:max_size` |
  | Memory | `:bytes`, and `:max_bytes` |
  | Oldest, Failing | `:oldest_ms` and `:failing_ms` |
  | Written, Processed | how much `:written` and `:processed` grow in a second, between two refreshes of the page; "-" at first |
  | State | one word, as `PartitionedBuffer.watch/2` shows it |

  A click on a row leads to the page of the buffer: all its numbers, its totals, its last error and its
  partitions. The page shows no keys and values, and of a reason only the text of `info/1`.

  ## Flush, pause and resume

  The page of a buffer has buttons for `PartitionedBuffer.flush/2`, `pause/1` and `resume/1`, if the
  dashboard has `allow_destructive_actions: true`. Without it the page only shows, and refuses requests
  for actions:

      live_dashboard "/dashboard",
        additional_pages: [buffers: MyAppWeb.BuffersPage],
        allow_destructive_actions: true

  The flush is asynchronous: the button does not wait for the processor.

  ## Several nodes

  The page calls the selected node with `:erpc`, for at most 5 seconds. That node must have this
  module as well. A node that does not answer, an older version of this package there, or a buffer that
  just stopped is a line on the page.
  """

  alias PartitionedBuffer.Observe.{Overview, Text}
  alias PartitionedBuffer.Processing.Reason

  # How long, in milliseconds, a call of the selected node may take.
  @timeout 5_000

  @typedoc "A node whose buffers a page shows, or a text why it cannot."
  @type result(value) :: {:ok, value} | {:error, String.t()}

  # Each reference to Phoenix is in the quoted code: this module compiles without it.
  @doc """
  Defines the calling module as a page of the dashboard. Takes no options.

  Raises a `CompileError` if `Phoenix.LiveDashboard.PageBuilder` does not exist.
  """
  @spec __using__(keyword()) :: Macro.t()
  defmacro __using__(_opts) do
    quote location: :keep do
      use Phoenix.LiveDashboard.PageBuilder

      @impl Phoenix.LiveDashboard.PageBuilder
      def menu_link(_session, _capabilities), do: {:ok, "Buffers"}

      @impl Phoenix.LiveDashboard.PageBuilder
      def mount(_params, _session, socket),
        do: {:ok, assign(socket, PartitionedBuffer.LiveDashboard.first_assigns())}

      @impl Phoenix.LiveDashboard.PageBuilder
      def handle_params(_params, _uri, socket),
        do: {:noreply, assign(socket, PartitionedBuffer.LiveDashboard.assigns(socket.assigns))}

      @impl Phoenix.LiveDashboard.PageBuilder
      def handle_refresh(socket),
        do: {:noreply, assign(socket, PartitionedBuffer.LiveDashboard.assigns(socket.assigns))}

      @impl Phoenix.LiveDashboard.PageBuilder
      def handle_event("show_buffer", %{"buffer" => name}, socket) do
        page = PartitionedBuffer.LiveDashboard.page_of(socket.assigns.page, name)
        {:noreply, push_patch(socket, to: live_dashboard_path(socket, page))}
      end

      def handle_event("act", %{"action" => action}, socket) do
        notice = PartitionedBuffer.LiveDashboard.act(socket.assigns.page, action)
        socket = assign(socket, PartitionedBuffer.LiveDashboard.assigns(socket.assigns))
        {:noreply, assign(socket, :notice, notice)}
      end

      @impl Phoenix.LiveDashboard.PageBuilder
      def render(%{buffer: nil} = var!(assigns)) do
        ~H"""
        <div :if={@error} class="alert alert-warning" role="alert"><%= @error %></div>
        <.live_table
          id="buffers"
          dom_id="buffers"
          page={@page}
          title="Buffers"
          rows_name="buffers"
          row_fetcher={fn params, _node -> PartitionedBuffer.LiveDashboard.table(@rows, params) end}
          row_attrs={&PartitionedBuffer.LiveDashboard.row_attrs/1}
          default_sort_by={:name}
        >
          <:col field={:name} header="Buffer" sortable={:asc} />
          <:col field={:kind} header="Kind" sortable={:asc} />
          <:col :let={row} field={:held} header="Held" text_align="right" sortable={:desc}>
            <%= row.texts.held %>
          </:col>
          <:col :let={row} field={:bytes} header="Memory" text_align="right" sortable={:desc}>
            <%= row.texts.bytes %>
          </:col>
          <:col :let={row} field={:oldest_ms} header="Oldest" text_align="right" sortable={:desc}>
            <%= row.texts.oldest_ms %>
          </:col>
          <:col :let={row} field={:failing_ms} header="Failing" text_align="right" sortable={:desc}>
            <%= row.texts.failing_ms %>
          </:col>
          <:col :let={row} field={:written} header="Written" text_align="right" sortable={:desc}>
            <%= row.texts.written %>
          </:col>
          <:col :let={row} field={:processed} header="Processed" text_align="right" sortable={:desc}>
            <%= row.texts.processed %>
          </:col>
          <:col :let={row} field={:state} header="State" sortable={:asc}>
            <%= row.texts.state %>
          </:col>
        </.live_table>
        """
      end

      def render(var!(assigns)) do
        ~H"""
        <p>
          <.link patch={live_dashboard_path(@socket, PartitionedBuffer.LiveDashboard.page_of(@page, nil))}>All buffers</.link>
        </p>
        <h5 class="card-title"><%= @buffer %></h5>
        <div :if={@notice} class="alert alert-info" role="alert"><%= @notice %></div>
        <div :if={@error} class="alert alert-warning" role="alert"><%= @error %></div>
        <%= if @detail do %>
          <p :if={@page.allow_destructive_actions}>
            <button
              :for={{action, label} <- PartitionedBuffer.LiveDashboard.actions()}
              id={"buffer-#{action}"}
              type="button"
              class="btn btn-primary mr-2"
              phx-click="act"
              phx-value-action={action}
            >
              <%= label %>
            </button>
          </p>
          <div class="card mb-4">
            <div class="card-body">
              <table class="table table-sm mb-0" id="buffer-numbers">
                <tbody>
                  <tr :for={fields <- Enum.chunk_every(@detail.fields, 3)}>
                    <%= for {label, text} <- fields do %>
                      <td class="text-muted"><%= label %></td>
                      <td><%= text %></td>
                    <% end %>
                  </tr>
                  <tr>
                    <td class="text-muted">Last error</td>
                    <td colspan="5"><%= @detail.last_error %></td>
                  </tr>
                </tbody>
              </table>
            </div>
          </div>
          <.live_table
            id="partitions"
            dom_id="partitions"
            page={@page}
            title="Partitions"
            rows_name="partitions"
            row_fetcher={fn params, _node -> PartitionedBuffer.LiveDashboard.table(@detail.partitions, params) end}
            default_sort_by={:number}
          >
            <:col field={:number} header="Number" text_align="right" sortable={:asc} />
            <:col field={:name} header="Partition" />
            <:col field={:size} header="Waiting" text_align="right" sortable={:desc} />
            <:col field={:in_flight} header="In flight" text_align="right" sortable={:desc} />
            <:col field={:state} header="State" sortable={:asc} />
            <:col field={:failures} header="Failures" text_align="right" sortable={:desc} />
            <:col :let={row} field={:limit} header="Limit" text_align="right" sortable={:asc}>
              <%= row.texts.limit %>
            </:col>
            <:col :let={row} field={:next_ms} header="Next" text_align="right" sortable={:asc}>
              <%= row.texts.next_ms %>
            </:col>
          </.live_table>
        <% end %>
        """
      end
    end
  end

  ## The assigns of a page

  @doc false
  @spec first_assigns() :: keyword()
  def first_assigns, do: [buffer: nil, rows: [], memory: %{}, detail: nil, notice: nil, error: nil]

  @doc false
  # The rates are differences to the last reading, so the memory goes from page to page.
  @spec assigns(map()) :: keyword()
  def assigns(%{page: page, memory: memory} = assigns) do
    name = buffer_name(page)
    # The notice is about the last action on this buffer.
    notice = if name == assigns.buffer, do: assigns.notice

    case read(page.node) do
      {:ok, readings} ->
        {rows, memory} = Overview.rows(readings, memory, System.monotonic_time(:millisecond))
        detail = detail(name, readings, rows)
        error = if name && detail == nil, do: "The buffer #{name} is not running on #{page.node}."
        rows = for row <- rows, do: Map.put(row, :texts, Overview.texts(row))
        [buffer: name, rows: rows, memory: memory, detail: detail, notice: notice, error: error]

      {:error, text} ->
        [buffer: name, rows: [], memory: memory, detail: nil, notice: notice, error: text]
    end
  end

  defp buffer_name(%{params: %{"buffer" => name}}) when is_binary(name) and name != "", do: name
  defp buffer_name(_page), do: nil

  @doc false
  # The page of a buffer, or the first page for nil. The order and the search of a table stay behind.
  @spec page_of(map(), String.t() | nil) :: map()
  def page_of(page, name) do
    params = Map.take(page.params, ["page", "node"])
    %{page | params: if(name, do: Map.put(params, "buffer", name), else: params)}
  end

  defp detail(nil, _readings, _rows), do: nil

  defp detail(name, readings, rows) do
    readings
    |> Enum.zip(rows)
    |> Enum.find_value(fn
      {{_buffer, {:ok, info}}, %{name: ^name} = row} -> detail(info, row)
      _other_or_ended -> nil
    end)
  end

  defp detail(info, row) do
    %{
      fields: fields(info, row, Overview.texts(row)),
      last_error: Text.last_error(info.last_error, System.system_time(:millisecond)),
      partitions: partitions(info.partitions)
    }
  end

  defp fields(info, row, texts) do
    [
      {"State", texts.state},
      {"Kind", texts.kind},
      {"Held", texts.held},
      {"Waiting", Text.grouped(info.size)},
      {"In flight", Text.grouped(info.in_flight)},
      {"Retrying", Text.grouped(info.retrying)},
      {"Memory", texts.bytes},
      {"Oldest", texts.oldest_ms},
      {"Failing", texts.failing_ms},
      {"Waiting writers", Text.grouped(info.waiting_writers)},
      {"Written", total(info.totals.written, row.written)},
      {"Processed", total(info.totals.processed, row.processed)}
    ] ++
      for(
        key <- ~w(coalesced stale deleted superseded failed given_up refused dropped)a,
        do: {label(key), Text.grouped(info.totals[key])}
      ) ++ journal(info.journal)
  end

  defp total(total, nil), do: Text.grouped(total)
  defp total(total, rate), do: "#{Text.grouped(total)}, #{Text.rate(rate)}"

  defp journal(nil), do: []

  defp journal(journal) do
    [
      {"Journal", "#{journal.state}, #{Text.bytes(journal.bytes)}"},
      {"Journal lag", "#{Text.duration(journal.lag_ms)}, #{Text.grouped(journal.unwritten)} changes"}
    ]
  end

  defp label(key), do: key |> Atom.to_string() |> String.capitalize() |> String.replace("_", " ")

  defp partitions(partitions) do
    for {partition, number} <- Enum.with_index(partitions) do
      texts = %{limit: Text.grouped(partition.limit), next_ms: Text.duration(partition.next_ms)}
      Map.merge(partition, %{number: number, name: Text.partition(partition.name), texts: texts})
    end
  end

  ## Tables

  @doc false
  # The rows of a table that match the search, in their order, up to the limit, and the number of all
  # matching rows.
  @spec table([map()], map()) :: {[map()], non_neg_integer()}
  def table(rows, %{search: search, sort_by: sort_by, sort_dir: sort_dir, limit: limit}) do
    rows = if search, do: Enum.filter(rows, &matches?(&1, String.downcase(search))), else: rows
    # Rows without the number come last in either order.
    {known, unknown} = Enum.split_with(rows, &(Map.get(&1, sort_by) != nil))
    sorted = Enum.sort_by(known, &Map.fetch!(&1, sort_by), sort_dir) ++ unknown
    {Enum.take(sorted, limit), length(rows)}
  end

  defp matches?(row, search), do: row.name |> String.downcase() |> String.contains?(search)

  @doc false
  @spec row_attrs(map()) :: [{String.t(), term()}]
  def row_attrs(row),
    do: [{"phx-click", "show_buffer"}, {"phx-value-buffer", row.name}, {"phx-page-loading", true}]

  ## Calls of the selected node

  @doc false
  @spec read(node()) :: result([Overview.reading()])
  def read(node), do: call(node, __MODULE__, :readings, [])

  @doc false
  @spec readings() :: [Overview.reading()]
  def readings, do: Overview.read(PartitionedBuffer.buffers(), &PartitionedBuffer.info/1)

  @doc false
  @spec actions() :: [{String.t(), String.t()}]
  def actions, do: [{"flush", "Flush"}, {"pause", "Pause"}, {"resume", "Resume"}]

  @doc false
  # Any client can send any event, so the rights are checked here as well. The name becomes a buffer by a
  # search, and never an atom.
  @spec act(map(), String.t()) :: String.t()
  def act(%{allow_destructive_actions: true, node: node} = page, action) do
    name = buffer_name(page)

    with {:ok, buffers} <- call(node, PartitionedBuffer, :buffers, []),
         {:ok, buffer} <- find(buffers, name, node),
         {:ok, result} <- act_on(node, buffer, action) do
      done(action, result)
    else
      {:error, text} -> text
    end
  end

  def act(_page, _action), do: "Actions need allow_destructive_actions: true of live_dashboard."

  defp find(buffers, name, node) do
    case Enum.find(buffers, &(inspect(&1) == name)) do
      nil -> {:error, "The buffer #{name} is not running on #{node}."}
      buffer -> {:ok, buffer}
    end
  end

  defp act_on(node, buffer, "flush"), do: call(node, PartitionedBuffer, :flush, [buffer, [async: true]])
  defp act_on(node, buffer, "pause"), do: call(node, PartitionedBuffer, :pause, [buffer])
  defp act_on(node, buffer, "resume"), do: call(node, PartitionedBuffer, :resume, [buffer])
  defp act_on(_node, _buffer, _other), do: {:error, "The action is not known."}

  defp done("flush", :ok), do: "The flush begins. If the buffer is paused, it begins after the pause."
  defp done("pause", :ok), do: "The buffer is paused."
  defp done("resume", :ok), do: "The buffer goes on."
  defp done(action, {:error, reason}), do: "#{action} returned an error: #{inspect(reason)}."

  defp call(node, module, function, arguments) do
    {:ok, :erpc.call(node, module, function, arguments, @timeout)}
  catch
    :error, {:exception, :undef, _stacktrace} ->
      {:error, "#{node} has no PartitionedBuffer, or another version."}

    :error, {:exception, %{__exception__: true} = error, _stacktrace} ->
      {:error, Exception.message(error)}

    :error, {:erpc, reason} ->
      {:error, "#{node} does not answer: #{inspect(reason)}."}

    kind, reason ->
      {:error, "#{node} failed: #{kind}, #{Reason.describe(reason)}."}
  end
end
