defmodule PartitionedBuffer.LiveDashboardTest do
  # The part of the page that needs no Phoenix: see `PartitionedBuffer.LiveDashboardPageTest` for the rest.
  #
  # No test here is async, since the page has the buffers of native tests, which keep other terms than options.
  use PartitionedBuffer.Case, async: false

  alias PartitionedBuffer.LiveDashboard

  defp page(changes \\ []),
    do: Map.merge(%{node: node(), params: %{}, allow_destructive_actions: true}, Map.new(changes))

  defp page_of(buffer, changes \\ []), do: page([params: %{"buffer" => inspect(buffer)}] ++ changes)

  defp assigns(page, changes \\ []) do
    LiveDashboard.first_assigns()
    |> Keyword.merge(changes)
    |> Map.new()
    |> Map.put(:page, page)
    |> LiveDashboard.assigns()
    |> Map.new()
  end

  defp field(%{detail: %{fields: fields}}, label), do: Map.new(fields)[label]

  describe "the assigns" do
    test "have a row for each buffer of the node, with its texts" do
      buffer = start_buffer(max_size: 10, module: PartitionedBuffer.Queue)
      PartitionedBuffer.Queue.push(buffer, :item)
      assert %{buffer: nil, detail: nil, error: nil, rows: rows} = assigns(page())
      row = Enum.find(rows, &(&1.buffer == buffer))
      assert %{kind: "queue", held: "1 of 10", state: "idle", written: "-"} = row.texts
    end

    test "have the numbers and partitions of the buffer that the page is about" do
      buffer = start_buffer(partitions: 3, processor: fn _batch -> {:error, :away} end, max_attempts: 5)
      Buffer.put_all(buffer, for(n <- 1..30, do: {n, n}))
      PartitionedBuffer.flush(buffer)
      assert %{error: nil} = assigns = assigns(page_of(buffer))
      assert field(assigns, "Kind") == "map"
      assert field(assigns, "Held") == "30"
      assert assigns.detail.last_error =~ ~r/^:away in .* ago$/
      assert field(assigns, "Written") == "30"
      assert field(assigns, "Given up") == "0"
      assert [%{number: 0}, %{number: 1}, %{number: 2}] = assigns.detail.partitions
      assert Enum.all?(assigns.detail.partitions, &(&1.texts.limit == "1"))
    end

    test "have the rates after the second reading" do
      buffer = start_buffer()
      Buffer.put(buffer, 1, 1)
      %{memory: memory} = assigns(page())
      # As if the first reading were ten seconds ago.
      memory = Map.new(memory, fn {name, kept} -> {name, %{kept | at: kept.at - 10_000}} end)
      Buffer.put_all(buffer, for(n <- 1..1_000, do: {n, n}))
      row = Enum.find(assigns(page(), memory: memory).rows, &(&1.buffer == buffer))
      # 1,000 writes in ten seconds, and a moment more.
      assert row.written > 10 and row.written <= 100
      assert field(assigns(page_of(buffer), memory: memory), "Written") =~ ~r"^1,001, \d+/s$"
    end

    test "have a text in place of a buffer that is not running" do
      gone = unique_name()
      assert %{detail: nil, error: error, buffer: name} = assigns(page_of(gone))
      assert name == inspect(gone)
      assert error == "The buffer #{name} is not running on #{node()}."
    end

    test "have a text in place of a node that does not answer" do
      assert %{rows: [], error: error} = assigns(page(node: :nowhere@nohost))
      assert error == "nowhere@nohost does not answer: :noconnection."
    end

    test "have the journal" do
      dir = Path.join(System.tmp_dir!(), "#{unique_name()}")
      on_exit(fn -> File.rm_rf!(dir) end)
      buffer = start_buffer(max_attempts: 1, journal: dir)
      assigns = assigns(page_of(buffer))
      assert field(assigns, "Journal") =~ ~r/^ok, /
      assert field(assigns, "Journal lag") =~ "changes"
    end

    test "keep the notice of an action until the page is about another buffer" do
      buffer = start_buffer()
      kept = [buffer: inspect(buffer), notice: "The buffer is paused."]
      assert assigns(page_of(buffer), kept).notice == "The buffer is paused."
      assert assigns(page(), kept).notice == nil
    end
  end

  describe "an action" do
    test "pauses, resumes and flushes the buffer of the page" do
      buffer = start_buffer()
      Buffer.put(buffer, 1, 1)
      assert LiveDashboard.act(page_of(buffer), "pause") == "The buffer is paused."
      assert PartitionedBuffer.info(buffer).paused?
      assert field(assigns(page_of(buffer)), "State") == "on hold"
      assert LiveDashboard.act(page_of(buffer), "resume") == "The buffer goes on."
      refute PartitionedBuffer.info(buffer).paused?
      assert LiveDashboard.act(page_of(buffer), "flush") =~ "The flush begins."
      assert_receive {:batch, [_entry]}
    end

    test "is refused if the dashboard does not allow it" do
      buffer = start_buffer()
      message = "Actions need allow_destructive_actions: true of live_dashboard."

      for {action, _label} <- LiveDashboard.actions(), allowed <- [false, nil] do
        assert LiveDashboard.act(page_of(buffer, allow_destructive_actions: allowed), action) == message
      end

      refute PartitionedBuffer.info(buffer).paused?
    end

    test "is a text if the buffer is gone, without a new atom" do
      name = "never_an_atom_#{System.unique_integer([:positive])}"
      page = page(params: %{"buffer" => ":" <> name})
      assert LiveDashboard.act(page, "pause") == "The buffer :#{name} is not running on #{node()}."
      assert_raise ArgumentError, fn -> String.to_existing_atom(name) end
      assert LiveDashboard.act(page(), "pause") =~ "is not running"
    end

    test "is a text if it is not known, the buffer has no partitions or the node is away" do
      buffer = start_buffer()
      assert LiveDashboard.act(page_of(buffer), "stop") == "The action is not known."
      empty = start_buffer(partitions: 0)
      assert LiveDashboard.act(page_of(empty), "flush") =~ inspect(empty)
      assert LiveDashboard.act(page_of(buffer, node: :nowhere@nohost), "pause") =~ "does not answer"
    end
  end

  describe "a table" do
    @params %{search: nil, sort_by: :written, sort_dir: :desc, limit: 50}

    defp names(rows, params), do: rows |> LiveDashboard.table(Map.merge(@params, Map.new(params))) |> names()
    defp names({rows, total}), do: {Enum.map(rows, & &1.name), total}

    test "sorts in both directions, and has unknown numbers last" do
      rows = [%{name: "a", written: 1}, %{name: "b", written: nil}, %{name: "c", written: 3}]
      assert names(rows, []) == {~w(c a b), 3}
      assert names(rows, sort_dir: :asc) == {~w(a c b), 3}
      assert names(rows, sort_by: :name, sort_dir: :asc) == {~w(a b c), 3}
    end

    test "searches names without regard to case, and counts the rows before the limit" do
      rows = for name <- ~w(MyApp.Users MyApp.Events Other), do: %{name: name, written: 1}
      assert names(rows, search: "myapp", limit: 1) == {~w(MyApp.Users), 2}
      assert names(rows, search: "nothing") == {[], 0}
    end
  end

  test "leads from a row to the page of its buffer" do
    page = page(params: %{"page" => "buffers", "node" => "a@b", "search" => "x", "sort_by" => "held"})
    assert {"phx-value-buffer", ":users"} in LiveDashboard.row_attrs(%{name: ":users"})
    page = LiveDashboard.page_of(page, ":users")
    assert page.params == %{"page" => "buffers", "node" => "a@b", "buffer" => ":users"}
    assert LiveDashboard.page_of(page, nil).params == %{"page" => "buffers", "node" => "a@b"}
  end
end

if Code.ensure_loaded?(Phoenix.LiveDashboard.PageBuilder) and
     (Code.ensure_loaded?(Floki) or Code.ensure_loaded?(LazyHTML)) do
  defmodule PartitionedBuffer.LiveDashboardPageTest do
    # The page in the real dashboard, as a browser gets it.
    use PartitionedBuffer.Case, async: false

    import Phoenix.ConnTest
    import Phoenix.LiveViewTest

    @moduletag :live_dashboard

    defmodule Page do
      use PartitionedBuffer.LiveDashboard
    end

    defmodule Router do
      use Phoenix.Router
      import Phoenix.LiveDashboard.Router

      pipeline :browser do
        plug(:fetch_session)
      end

      scope "/" do
        pipe_through(:browser)
        live_dashboard("/dashboard", additional_pages: [buffers: Page], allow_destructive_actions: true)
        live_dashboard("/shown", live_session_name: :shown, additional_pages: [buffers: Page])
      end
    end

    defmodule Endpoint do
      use Phoenix.Endpoint, otp_app: :partitioned_buffer

      plug(Plug.Session, store: :cookie, key: "_key", signing_salt: "a salt of the tests")
      plug(Router)
    end

    defmodule Errors do
      # The error of the page in place of a page about it.
      def render(_template, %{kind: kind, reason: reason, stack: stack}),
        do: :erlang.raise(kind, reason, stack)
    end

    @endpoint Endpoint

    setup_all do
      {:ok, _started} = Application.ensure_all_started(:phoenix_live_dashboard)

      Application.put_env(:partitioned_buffer, Endpoint,
        url: [host: "localhost"],
        render_errors: [formats: [html: __MODULE__.Errors], layout: false],
        secret_key_base: String.duplicate("secret of the tests ", 4),
        live_view: [signing_salt: "a salt of the tests"],
        pubsub_server: __MODULE__.PubSub
      )

      start_supervised!({Phoenix.PubSub, name: __MODULE__.PubSub})
      start_supervised!(Endpoint)
      :ok
    end

    defp open!(path) do
      {:ok, view, html} = live(build_conn(), path)
      {view, html}
    end

    defp path(buffer), do: "/dashboard/buffers?" <> URI.encode_query(%{"buffer" => inspect(buffer)})

    test "shows the buffers in a table, with a link in the menu" do
      buffer = start_buffer(max_size: 10)
      Buffer.put(buffer, 1, "a secret")
      {view, html} = open!("/dashboard/buffers")
      assert html =~ ~s(<div class="menu-item active">Buffers</div>)
      row = view |> element(~s(tr[phx-value-buffer="#{inspect(buffer)}"])) |> render()
      assert row =~ "map" and row =~ "1 of 10" and row =~ "idle"
      refute html =~ "a secret"
    end

    test "shows the numbers of the next refresh" do
      buffer = start_buffer(max_size: 10)
      {view, _html} = open!("/dashboard/buffers")
      Buffer.put_all(buffer, %{1 => 1, 2 => 2})
      send(view.pid, :refresh)
      assert view |> element(~s(tr[phx-value-buffer="#{inspect(buffer)}"])) |> render() =~ "2 of 10"
    end

    test "sorts and searches" do
      buffer = start_buffer(name: unique_name("searched"))
      {_view, html} = open!("/dashboard/buffers?sort_by=held&sort_dir=desc&search=#{buffer}")
      assert html =~ inspect(buffer)
      assert html =~ ~r/buffers\s+out of\s+1/
    end

    test "leads from a row to the page of the buffer and back" do
      buffer = start_buffer(partitions: 3)
      {view, _html} = open!("/dashboard/buffers?search=#{buffer}")
      html = view |> element(~s(tr[phx-value-buffer="#{inspect(buffer)}"])) |> render_click()
      assert_patch(view, path(buffer))
      assert html =~ "Last error"
      for partition <- partitions(buffer), do: assert(html =~ String.replace("#{partition}", "Elixir.", ""))
      html = view |> element("a", "All buffers") |> render_click()
      assert html =~ ~s(id="buffers")
    end

    test "flushes, pauses and resumes by buttons" do
      buffer = start_buffer()
      {view, _html} = open!(path(buffer))
      assert view |> element("#buffer-pause") |> render_click() =~ "The buffer is paused."
      assert PartitionedBuffer.info(buffer).paused?
      assert render(view) =~ "on hold"
      assert view |> element("#buffer-resume") |> render_click() =~ "The buffer goes on."
      refute PartitionedBuffer.info(buffer).paused?
      Buffer.put(buffer, 1, 1)
      view |> element("#buffer-flush") |> render_click()
      assert_receive {:batch, [_entry]}
    end

    test "has no buttons in a dashboard that allows no actions, and refuses their events" do
      buffer = start_buffer()
      {view, _html} = open!(String.replace(path(buffer), "/dashboard", "/shown"))
      refute has_element?(view, "button", "Pause")
      assert render_click(view, "act", %{"action" => "pause"}) =~ "Actions need allow_destructive_actions"
      refute PartitionedBuffer.info(buffer).paused?
    end

    test "goes on after the end of its buffer" do
      buffer = start_buffer()
      {view, _html} = open!(path(buffer))
      PartitionedBuffer.stop(buffer)
      assert view |> element("#buffer-flush") |> render_click() =~ "is not running"
      send(view.pid, :refresh)
      assert render(view) =~ "is not running"
      {_view, html} = open!(path(buffer))
      assert html =~ "is not running"
    end

    test "escapes names" do
      buffer = start_buffer(name: :"<b>#{unique_name()}</b>")

      for path <- ["/dashboard/buffers", path(buffer)] do
        {_view, html} = open!(path)
        assert html =~ "&lt;b&gt;"
        refute html =~ "<b>"
      end
    end
  end
else
  # Stands for the dashboard where it cannot be had. It has the callbacks that the dashboard documents, and functions
  # that the page takes from it. A template is its source and its assigns.
  defmodule Phoenix.LiveDashboard.PageBuilder do
    @callback menu_link(map() | keyword(), map()) :: {:ok, String.t()}
    @callback mount(map(), map() | keyword(), map()) :: {:ok, map()}
    @callback handle_params(map(), String.t(), map()) :: {:noreply, map()}
    @callback handle_refresh(map()) :: {:noreply, map()}
    @callback handle_event(String.t(), map(), map()) :: {:noreply, map()}
    @callback render(map()) :: term()

    defmacro __using__(_opts) do
      quote do
        @behaviour Phoenix.LiveDashboard.PageBuilder
        import Phoenix.LiveDashboard.PageBuilder
      end
    end

    defmacro sigil_H({:<<>>, _meta, [source]}, _modifiers),
      do: quote(do: {unquote(source), var!(assigns)})

    def assign(socket, assigns), do: %{socket | assigns: Map.merge(socket.assigns, Map.new(assigns))}
    def assign(socket, key, value), do: assign(socket, [{key, value}])
    def push_patch(socket, to: path), do: Map.put(socket, :patched, path)
    def live_dashboard_path(_socket, page), do: {:path, page.params}
  end

  defmodule PartitionedBuffer.LiveDashboardStandInTest do
    # The page with a stand-in for the dashboard: its callbacks, and the names in its templates.
    use PartitionedBuffer.Case, async: false

    defmodule Page do
      use PartitionedBuffer.LiveDashboard
    end

    # As the dashboard opens a page.
    defp open(params \\ %{}) do
      page = %{node: node(), params: params, allow_destructive_actions: true}
      socket = %{assigns: %{page: page, socket: nil}}
      {:ok, socket} = Page.mount(params, [], socket)
      {:noreply, socket} = Page.handle_params(params, "/dashboard/buffers", socket)
      socket
    end

    defp open_buffer(buffer), do: open(%{"page" => "buffers", "buffer" => inspect(buffer)})

    test "has a link in the menu" do
      assert Page.menu_link([], %{}) == {:ok, "Buffers"}
    end

    test "names assigns that it has, and functions that exist, in both templates" do
      buffer = start_buffer()

      for {socket, table} <- [{open(), ~s(id="buffers")}, {open_buffer(buffer), ~s(id="partitions")}] do
        {template, assigns} = Page.render(socket.assigns)
        assert template =~ table

        for [_, name] <- Regex.scan(~r/@([a-z_]+)/, template),
            do: assert(is_map_key(assigns, :"#{name}"), name)

        calls = Regex.scan(~r/PartitionedBuffer\.LiveDashboard\.([a-z_]+)/, template)
        assert calls != []
        exported = for {name, _arity} <- PartitionedBuffer.LiveDashboard.__info__(:functions), do: "#{name}"
        for [_, name] <- calls, do: assert(name in exported)
      end
    end

    test "has expressions that are Elixir in both templates" do
      for socket <- [open(), open_buffer(start_buffer())] do
        {template, _assigns} = Page.render(socket.assigns)
        expressions = Regex.scan(~r/=(\{(?:[^{}]|(?1))*\})/, template)
        assert length(expressions) > 5
        for [_, expression] <- expressions, do: assert({:ok, _ast} = Code.string_to_quoted(expression))
      end
    end

    test "reads anew with each refresh" do
      buffer = start_buffer()
      socket = open()
      Buffer.put(buffer, 1, 1)
      {:noreply, socket} = Page.handle_refresh(socket)
      assert Enum.find(socket.assigns.rows, &(&1.buffer == buffer)).held == 1
    end

    test "leads from a row to the page of its buffer" do
      {:noreply, socket} =
        Page.handle_event("show_buffer", %{"buffer" => ":users"}, open(%{"page" => "buffers"}))

      assert socket.patched == {:path, %{"page" => "buffers", "buffer" => ":users"}}
    end

    test "acts on its buffer, and shows the result and the new state" do
      buffer = start_buffer()
      {:noreply, socket} = Page.handle_event("act", %{"action" => "pause"}, open_buffer(buffer))
      assert PartitionedBuffer.info(buffer).paused?
      assert socket.assigns.notice == "The buffer is paused."
      assert {"State", "on hold"} in socket.assigns.detail.fields
    end

    test "goes on after the end of its buffer" do
      buffer = start_buffer()
      socket = open_buffer(buffer)
      PartitionedBuffer.stop(buffer)
      {:noreply, socket} = Page.handle_event("act", %{"action" => "flush"}, socket)
      assert socket.assigns.notice =~ "is not running"
      assert %{error: error, detail: nil} = socket.assigns
      assert error =~ "is not running"
    end
  end
end
