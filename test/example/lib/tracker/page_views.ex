defmodule Tracker.PageViews do
  @moduledoc "Counts page views."

  use PartitionedBuffer.Counter,
    otp_app: :tracker,
    processor: &__MODULE__.store/1,
    processing_batch_size: 1_000

  @add """
  INSERT INTO page_views AS t (path, views)
  SELECT * FROM unnest($1::text[], $2::bigint[])
  ON CONFLICT (path) DO UPDATE SET views = t.views + excluded.views
  """

  def store(batch) do
    {paths, views} =
      batch |> Enum.sort() |> Enum.map(fn {path, sum, _count} -> {path, sum} end) |> Enum.unzip()

    with {:ok, _rows} <- Tracker.DB.query(@add, [paths, views]), do: :ok
  end
end
