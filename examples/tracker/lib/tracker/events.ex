defmodule Tracker.Events do
  @moduledoc "Logs events in their order."

  use PartitionedBuffer.Queue,
    otp_app: :tracker,
    processor: &__MODULE__.store/1,
    processing_batch_size: 500,
    # Logging must not slow a request down.
    full_timeout_ms: 0,
    when_full: :drop_newest

  @insert """
  INSERT INTO events (id, user_id, name)
  SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[])
  ON CONFLICT (id) DO NOTHING
  """

  @doc "The events of a user keep their order. Each event has a unique id, so storing it twice has no effect."
  def log(user_id, name) when is_integer(user_id) do
    id = Base.encode16(:crypto.strong_rand_bytes(16))
    push({id, user_id, Tracker.Store.text!(name)}, partition_key: user_id)
  end

  # Not sorted: the order of the batch is the order of the events.
  def store(items), do: Tracker.Store.store(@insert, items, [0, 1, 2])
end
