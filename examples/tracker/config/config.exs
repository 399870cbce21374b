import Config

# The options that all buffers share. Each module sets its own.
#
# The supervisor stops the buffers one after the other, each within `:drain_timeout_ms`, and then writes the dead letters. With
# three buffers there is time left of the 30 seconds that Kubernetes gives a container by default.
for module <- [Tracker.PageViews, Tracker.Profiles, Tracker.Events] do
  config :tracker, module,
    partitions: 2,
    processing_interval_ms: 1_000,
    processing_jitter_ms: 200,
    max_size: 100_000,
    max_attempts: :infinity,
    drain_timeout_ms: 5_000,
    dead_letter: {Tracker.DeadLetters, :write, [module]}
end

if config_env() == :test, do: import_config("test.exs")
