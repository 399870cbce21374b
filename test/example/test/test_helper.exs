for table <- [
      "page_views (path text PRIMARY KEY, views bigint NOT NULL)",
      "profiles (id bigint PRIMARY KEY, name text NOT NULL CHECK (name <> ''), version bigint NOT NULL)",
      "events (number bigserial, id text PRIMARY KEY, user_id bigint NOT NULL, name text NOT NULL)"
    ] do
  [name | _columns] = String.split(table)
  {:ok, _} = Tracker.DB.query("DROP TABLE IF EXISTS #{name}")
  {:ok, _} = Tracker.DB.query("CREATE TABLE #{table}")
end

ExUnit.start()
