import Config

config :tracker, Tracker.DB, port: String.to_integer(System.get_env("PGPORT") || "5432")

# What all buffers of the application have in common; each module has the rest.
buffer = [
  processing_interval_ms: 1_000,
  processing_jitter_ms: 200,
  max_attempts: :infinity,
  drain_timeout_ms: 10_000
]

# A test decides when a buffer flushes.
buffer = if config_env() == :test, do: Keyword.merge(buffer, processing_interval_ms: :infinity), else: buffer

for module <- [Tracker.PageViews, Tracker.Profiles, Tracker.Events], do: config(:tracker, module, buffer)
