# Where it is a dependency, or the system's; the stand-in of test/hexless is no application.
Application.ensure_all_started(:telemetry)

excluded = if Code.ensure_loaded?(:proper), do: [], else: [:proper]
ExUnit.start(exclude: excluded)
