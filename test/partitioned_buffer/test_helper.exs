# Where it is a dependency, or the system's; the stand-in of test/hexless is no application.
Application.ensure_all_started(:telemetry)

excluded =
  if Code.ensure_loaded?(:proper) do
    []
  else
    IO.puts("PropEr is not there (Debian's erlang-proper): the laws are excluded")
    [:proper]
  end

if Code.ensure_loaded?(Phoenix.LiveDashboard.PageBuilder) and
     (Code.ensure_loaded?(Floki) or Code.ensure_loaded?(LazyHTML)),
   do: IO.puts("The page for LiveDashboard is tested with LiveDashboard"),
   else:
     IO.puts("The page for LiveDashboard is tested with a stand-in: LiveDashboard and Floki are not there")

# A busy machine may take its time; what comes does not wait for it.
ExUnit.start(exclude: excluded, assert_receive_timeout: 10_000, capture_log: true)
