import Config

config :tracker, Tracker.DB, port: String.to_integer(System.get_env("PGPORT") || "5432")

# On a volume that outlives the container.
if config_env() != :test,
  do:
    config(:tracker, Tracker.DeadLetters,
      directory: System.get_env("DEAD_LETTERS") || "/var/lib/tracker/dead_letters"
    )
