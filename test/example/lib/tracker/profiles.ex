defmodule Tracker.Profiles do
  @moduledoc "Keeps the newest profile of each user."

  use PartitionedBuffer.Map, otp_app: :tracker, processor: &__MODULE__.store/1, processing_batch_size: 500

  @upsert """
  INSERT INTO profiles AS t (id, name, version)
  SELECT * FROM unnest($1::bigint[], $2::text[], $3::bigint[])
  ON CONFLICT (id) DO UPDATE SET name = excluded.name, version = excluded.version
  WHERE excluded.version > t.version
  """

  @doc "A user has another name since then."
  def rename(id, name, %DateTime{} = at), do: put_newer(id, name, DateTime.to_unix(at, :microsecond))

  # A name that PostgreSQL cannot store fails the statement, and so ends up in a batch of its own.
  def store(batch) do
    batch = Enum.sort(batch)
    [ids, names, versions] = for n <- 0..2, do: Enum.map(batch, &elem(&1, n))

    case Tracker.DB.query(@upsert, [ids, names, versions]) do
      {:ok, _rows} -> :ok
      {:error, _reason} when length(batch) == 1 -> {:cancel, :cannot_be_stored}
      {:error, reason} -> {:error, reason}
    end
  end
end
