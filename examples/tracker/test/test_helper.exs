schema = File.read!(Path.expand("../priv/schema.sql", __DIR__))

for statement <- String.split(schema, ";", trim: true), statement = String.trim(statement), statement != "" do
  [_, table] = Regex.run(~r/^CREATE TABLE (\w+)/, statement)
  {:ok, _} = Tracker.DB.query("DROP TABLE IF EXISTS #{table}")
  {:ok, _} = Tracker.DB.query(statement)
end

ExUnit.start()
