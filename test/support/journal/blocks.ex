defmodule PartitionedBuffer.JournalBlocks do
  @moduledoc false
  # Blocks of a journal, as native/engine/src/journal/block.rs describes them.

  @doc "A block of a format, at this offset of a segment."
  def block(format, segment, offset, payload) do
    place = <<byte_size(payload)::little-32, 0::32, 1::little-32, segment::little-64, offset::little-64>>
    head = <<"PBJ", format>>
    <<head::binary, :erlang.crc32([head, place, payload])::little-32, place::binary, payload::binary>>
  end

  @doc "The path of a segment."
  def segment(path, number),
    do: Path.join(path, String.downcase(String.pad_leading(Integer.to_string(number, 16), 16, "0")) <> ".log")
end
