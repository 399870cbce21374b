defmodule Tracker.Application do
  use Application

  # The buffers start after the database, which their processors use, and before everything that writes to them, such as an
  # endpoint. A supervisor stops its children in reverse order, so the last writes are still stored.
  @impl Application
  def start(_type, _args) do
    Tracker.DeadLetters.init!()
    PartitionedBuffer.attach_default_logger()
    Tracker.Telemetry.attach()
    children = [Tracker.DB, Tracker.PageViews, Tracker.Profiles, Tracker.Events]
    Supervisor.start_link(children, strategy: :one_for_one, name: Tracker.Supervisor)
  end
end
