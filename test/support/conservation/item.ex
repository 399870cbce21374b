defmodule PartitionedBuffer.Conservation.Item do
  @moduledoc false
  # An item of a queue has its stream, its partition of `partitions/0`, and its number, from 1, in
  # this stream and partition. It also has a salt: the least that routes the item to its partition.

  @partitions 2

  # For each partition a routing key that leads to it.
  @keys List.to_tuple(
          for partition <- 0..(@partitions - 1),
              do: Enum.find(100..200, &(:erlang.phash2(&1, @partitions) == partition))
        )

  @type stream() :: 0..0x3FFFFF

  def partitions, do: @partitions

  @doc "The item with this number, in one of four shapes."
  @spec item(stream(), non_neg_integer(), pos_integer()) :: any()
  def item(stream, partition, number), do: salted(stream, partition, number, 0)

  defp salted(stream, partition, number, salt) do
    item = shape(stream, partition, number, salt)

    if :erlang.phash2(:erlang.phash2(item), @partitions) == partition,
      do: item,
      else: salted(stream, partition, number, salt + 1)
  end

  # An immediate, two terms of some words, and a binary outside of the heap.
  defp shape(stream, partition, number, salt) do
    case rem(number, 4) do
      0 -> pack(stream, partition, number, salt)
      1 -> {stream, partition, number, salt}
      2 -> %{stream: stream, partition: partition, number: number, salt: salt}
      3 -> <<pack(stream, partition, number, salt)::64, 0::640>>
    end
  end

  # In 58 bits, so that it is a small integer.
  defp pack(stream, partition, number, salt) do
    <<packed::58>> = <<stream::22, partition::4, number::26, salt::6>>
    packed
  end

  defp unpack(packed) do
    <<stream::22, partition::4, number::26, salt::6>> = <<packed::58>>
    {stream, partition, number, salt}
  end

  @doc "Stream, partition and number of an item, or `:error` for an item not made by `item/3`."
  @spec read(any()) :: {stream(), non_neg_integer(), pos_integer()} | :error
  def read(item) do
    {stream, partition, number, salt} = parts(item)
    if shape(stream, partition, number, salt) === item, do: {stream, partition, number}, else: :error
  end

  defp parts(packed) when is_integer(packed), do: unpack(packed)
  defp parts({stream, partition, number, salt}), do: {stream, partition, number, salt}
  defp parts(%{stream: s, partition: partition, number: number, salt: salt}), do: {s, partition, number, salt}
  defp parts(<<packed::64, _rest::binary>>), do: unpack(packed)
  defp parts(_no_item), do: {0, 0, 0, 0}

  @doc "A routing key that leads to the partition of an item."
  def key(item), do: item |> parts() |> elem(1) |> partition_key()

  @doc "A routing key that leads to a partition."
  def partition_key(partition), do: elem(@keys, partition)
end
