defmodule TrackerTest do
  # Not async: the buffers are those of the application, and a flush may have what another test has written.
  use ExUnit.Case

  alias Tracker.{DB, Events, PageViews, Profiles}

  setup do
    for table <- ~w(page_views profiles events), do: {:ok, _} = DB.query("DELETE FROM #{table}")
    :ok
  end

  test "page views add up" do
    for _ <- 1..3, do: PageViews.add("/pricing")
    assert PageViews.get("/pricing") == 3
    assert PageViews.flush() == :ok
    PageViews.add("/pricing")
    PageViews.add("it's \"new\"\\")
    assert PageViews.flush() == :ok

    assert DB.query("SELECT path, views FROM page_views ORDER BY views") ==
             {:ok, [["it's \"new\"\\", "1"], ["/pricing", "4"]]}
  end

  test "the newest profile stays, in whatever order they come" do
    Profiles.rename(7, "Ada Lovelace", ~U[2026-01-02 00:00:00Z])
    Profiles.rename(7, "Ada", ~U[2026-01-01 00:00:00Z])
    assert Profiles.flush() == :ok
    # Also if the buffer has forgotten the newer one.
    Profiles.rename(7, "Ada", ~U[2026-01-01 00:00:00Z])
    assert Profiles.flush() == :ok
    assert DB.query("SELECT id, name FROM profiles") == {:ok, [["7", "Ada Lovelace"]]}
  end

  @tag :capture_log
  test "a profile that cannot be stored is given up alone" do
    for id <- 1..40,
        do: Profiles.rename(id, if(id == 13, do: "zero\0byte", else: "name"), ~U[2026-01-01 00:00:00Z])

    flush_until_ok(Profiles)
    assert DB.query("SELECT count(*), sum(id) FROM profiles") == {:ok, [["39", "807"]]}
    if Code.ensure_loaded?(:telemetry), do: assert(Tracker.Telemetry.get(:dead_letter) == 1)
  end

  test "events of a user keep their order" do
    for n <- 1..100, user <- [1, 2], do: Events.log(user, "event #{n}")
    assert Events.flush() == :ok

    for user <- [1, 2] do
      assert DB.query("SELECT name FROM events WHERE user_id = $1 ORDER BY number", [user]) ==
               {:ok, for(n <- 1..100, do: ["event #{n}"])}
    end
  end

  # Each flush tries at once what has failed.
  defp flush_until_ok(buffer), do: buffer.flush() == :ok || flush_until_ok(buffer)
end
