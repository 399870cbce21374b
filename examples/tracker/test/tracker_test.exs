defmodule TrackerTest do
  # Not async: the buffers are those of the application, and a flush can contain entries of another test.
  use ExUnit.Case

  @moduletag :capture_log

  alias Tracker.{DB, DeadLetters, Events, PageViews, Profiles}

  setup do
    for table <- ~w(page_views profiles events), do: {:ok, _} = DB.query("DELETE FROM #{table}")
    on_exit(&dead_letters/0)
  end

  test "page views add up" do
    for _ <- 1..3, do: PageViews.view("/pricing")
    assert PageViews.get("/pricing") == 3
    assert PageViews.flush() == :ok
    PageViews.view("/pricing")
    PageViews.view("it's \"new\"\\")
    assert PageViews.flush() == :ok

    assert DB.query("SELECT path, views FROM page_views ORDER BY views") ==
             {:ok, [["it's \"new\"\\", "1"], ["/pricing", "4"]]}
  end

  test "the newest profile stays, in whatever order the renames arrive" do
    Profiles.rename(7, "Ada Lovelace", ~U[2026-01-02 00:00:00.000000Z])
    Profiles.rename(7, "Ada", ~U[2026-01-01 00:00:00.000000Z])
    assert Profiles.flush() == :ok
    # The row still refuses the older version after the buffer has flushed the newer one.
    Profiles.rename(7, "Ada", ~U[2026-01-01 00:00:00.000000Z])
    assert Profiles.flush() == :ok
    assert DB.query("SELECT id, name FROM profiles") == {:ok, [["7", "Ada Lovelace"]]}
  end

  test "events of a user keep their order" do
    for n <- 1..100, user <- [1, 2], do: Events.log(user, "event #{n}")
    assert Events.flush() == :ok

    for user <- [1, 2] do
      assert DB.query("SELECT name FROM events WHERE user_id = $1 ORDER BY number", [user]) ==
               {:ok, for(n <- 1..100, do: ["event #{n}"])}
    end
  end

  test "an entry that PostgreSQL refuses is given up alone" do
    for id <- 1..40,
        do: Profiles.rename(id, if(id == 13, do: "", else: "name"), ~U[2026-01-01 00:00:00.000000Z])

    for n <- 1..40, do: Events.log(1, if(n == 13, do: "", else: "event #{n}"))
    flush_until_ok(Profiles)
    flush_until_ok(Events)
    assert DB.query("SELECT count(*), sum(id) FROM profiles") == {:ok, [["39", "807"]]}
    names = for n <- 1..40, n != 13, do: ["event #{n}"]
    assert DB.query("SELECT name FROM events ORDER BY number") == {:ok, names}

    assert [
             {Profiles, [{13, "", _version, 0}], {:refused, "23514"}},
             {Events, [{_id, 1, ""}], {:refused, "23514"}}
           ] = dead_letters()

    if Code.ensure_loaded?(:telemetry), do: assert(Tracker.Telemetry.get(:dead_letter) == 2)
  end

  test "nothing is given up while the database is down, even a lone entry" do
    Profiles.rename(7, "Ada", ~U[2026-01-01 00:00:00.000000Z])

    while_down(fn ->
      assert Profiles.flush() == {:error, {:failed, 1}}
      Profiles.rename(7, "Ada Lovelace", ~U[2026-01-02 00:00:00.000000Z])
      assert Profiles.flush() == {:error, {:failed, 1}}
    end)

    assert Profiles.flush() == :ok
    assert DB.query("SELECT id, name FROM profiles") == {:ok, [["7", "Ada Lovelace"]]}
    assert dead_letters() == []
  end

  test "what a stop during an outage leaves is in a file" do
    while_down(fn ->
      for _ <- 1..3, do: PageViews.view("/pricing")
      assert PageViews.stop() == :ok
      assert dead_letters() == [{PageViews, [{"/pricing", 3, 3}], :stopped}]
    end)

    # The supervisor started it again.
    assert PageViews.size() == 0
  end

  test "a restart during an outage loses nothing" do
    while_down(fn ->
      for _ <- 1..3, do: PageViews.view("/restarted")
      assert Supervisor.terminate_child(Tracker.Supervisor, PageViews) == :ok
      assert {:ok, _pid} = Supervisor.restart_child(Tracker.Supervisor, PageViews)
    end)

    flush_until_ok(PageViews)
    assert DB.query("SELECT views FROM page_views WHERE path = '/restarted'") == {:ok, [["3"]]}
    assert dead_letters() == []
  end

  test "texts that PostgreSQL cannot store do not get into a buffer" do
    assert_raise ArgumentError, ~r/expected a text/, fn -> PageViews.view("/\0") end
    assert_raise ArgumentError, ~r/expected a text/, fn -> Events.log(1, <<255>>) end
    assert PageViews.size() + Events.size() == 0
  end

  defp dead_letters do
    test = self()
    DeadLetters.each(&send(test, {:dead_letter, {&1, &2, &3}}))
    received()
  end

  defp received do
    receive do
      {:dead_letter, letter} -> [letter | received()]
    after
      0 -> []
    end
  end

  # A failing buffer pauses, but a flush tries at once. Each failure makes the next batch smaller.
  defp flush_until_ok(buffer, attempts \\ 20)
  defp flush_until_ok(buffer, 0), do: flunk("#{inspect(buffer)} cannot store its entries")
  defp flush_until_ok(buffer, attempts), do: buffer.flush() == :ok || flush_until_ok(buffer, attempts - 1)

  # Connections are opened with the next statement, and nothing listens on port 1.
  defp while_down(fun) do
    config = Application.fetch_env!(:tracker, DB)
    reconnect(port: 1)

    try do
      fun.()
    after
      reconnect(config)
    end
  end

  defp reconnect(config) do
    Application.put_env(:tracker, DB, config)
    :ok = Supervisor.terminate_child(Tracker.Supervisor, DB)
    {:ok, _pid} = Supervisor.restart_child(Tracker.Supervisor, DB)
  end
end
