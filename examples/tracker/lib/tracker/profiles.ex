defmodule Tracker.Profiles do
  @moduledoc "Keeps the newest profile of each user."

  use PartitionedBuffer.Map,
    otp_app: :tracker,
    processor: &__MODULE__.store/1,
    processing_batch_size: 500,
    # A rename must not be lost without notice: the caller gets `{:error, :full}`.
    full_timeout_ms: 1_000,
    when_full: :error

  @upsert """
  INSERT INTO profiles AS t (id, name, version)
  SELECT * FROM unnest($1::bigint[], $2::text[], $3::bigint[])
  ON CONFLICT (id) DO UPDATE SET name = excluded.name, version = excluded.version
  WHERE excluded.version > t.version
  """

  @doc "Renames a user. `at` is the time of the change."
  def rename(id, name, %DateTime{} = at) when is_integer(id),
    do: put_newer(id, Tracker.Store.text!(name), DateTime.to_unix(at, :microsecond))

  def store(batch), do: Tracker.Store.store(@upsert, Enum.sort(batch), [0, 1, 2])
end
