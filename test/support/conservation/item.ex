defmodule PartitionedBuffer.Conservation.Item do
  @moduledoc false
  # What is pushed to a queue. An item holds where it comes from and where it belongs: its stream, its partition of
  # `partitions/0`, and its number among those of its stream in that partition, from 1.
  #
  # Besides there is salt in it, the least that lets it be routed to its partition by itself.

  @partitions 2

  # Not a partition's number, but a routing key that leads to it.
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

  # An immediate, terms of some words, a binary that is referred to.
  defp shape(stream, partition, number, salt) do
    case rem(number, 4) do
      0 -> pack(stream, partition, number, salt)
      1 -> {stream, partition, number, salt}
      2 -> %{stream: stream, partition: partition, number: number, salt: salt}
      3 -> <<pack(stream, partition, number, salt)::64, 0::640>>
    end
  end

  # The numbers of bits are such that it is a small integer.
  defp pack(stream, partition, number, salt) do
    <<packed::58>> = <<stream::22, partition::4, number::26, salt::6>>
    packed
  end

  defp unpack(packed) do
    <<stream::22, partition::4, number::26, salt::6>> = <<packed::58>>
    {stream, partition, number, salt}
  end

  @doc "Stream, partition and number of an item, if it is as it was made."
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
