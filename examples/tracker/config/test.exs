import Config

# A test decides when a buffer flushes.
for module <- [Tracker.PageViews, Tracker.Profiles, Tracker.Events],
    do: config(:tracker, module, processing_interval_ms: :infinity, drain_timeout_ms: 200)

config :tracker, Tracker.DeadLetters,
  directory: Path.join(System.tmp_dir!(), "tracker_dead_letters_#{System.pid()}")
