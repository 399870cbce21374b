defmodule Tracker.Events do
  @moduledoc "Logs events in their order."

  use PartitionedBuffer.Queue,
    otp_app: :tracker,
    processor: &__MODULE__.store/1,
    processing_batch_size: 500,
    # A full queue slows its writers down for a second, and then drops events.
    max_size: 100_000,
    full_timeout_ms: 1_000,
    when_full: :drop_newest

  @insert """
  INSERT INTO events (id, user_id, name)
  SELECT * FROM unnest($1::text[], $2::bigint[], $3::text[])
  ON CONFLICT (id) DO NOTHING
  """

  @doc "The events of a user keep their order. An id of its own makes each of them idempotent."
  def log(user_id, name) do
    id = Base.encode16(:crypto.strong_rand_bytes(16))
    push({id, user_id, name}, partition_key: user_id)
  end

  def store(items) do
    [ids, users, names] = for n <- 0..2, do: Enum.map(items, &elem(&1, n))
    with {:ok, _rows} <- Tracker.DB.query(@insert, [ids, users, names]), do: :ok
  end
end
