defmodule Tracker.PageViews do
  @moduledoc "Counts page views. After a lost answer a batch may count twice; the guide on counting shows what prevents it."

  use PartitionedBuffer.Counter,
    otp_app: :tracker,
    processor: &__MODULE__.store/1,
    processing_batch_size: 1_000,
    # Clients choose the paths. More than `:max_size` of them at a time are not counted.
    full_timeout_ms: 0,
    when_full: :drop_newest

  @add """
  INSERT INTO page_views AS t (path, views)
  SELECT * FROM unnest($1::text[], $2::bigint[])
  ON CONFLICT (path) DO UPDATE SET views = t.views + excluded.views
  """

  @doc "Counts a view of a page."
  def view(path) when is_binary(path) and byte_size(path) <= 1_000, do: path |> Tracker.Store.text!() |> add()

  def store(batch), do: Tracker.Store.store(@add, Enum.sort(batch), [0, 1])
end
