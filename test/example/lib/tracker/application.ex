defmodule Tracker.Application do
  use Application

  # The buffers come behind the database, which their processors need, and before what writes to them, such as an endpoint: at the
  # end a supervisor stops its children in reverse, so the last writes are still stored.
  @impl Application
  def start(_type, _args) do
    Tracker.Telemetry.attach()
    children = [Tracker.DB, Tracker.PageViews, Tracker.Profiles, Tracker.Events]
    Supervisor.start_link(children, strategy: :one_for_one, name: Tracker.Supervisor)
  end
end
