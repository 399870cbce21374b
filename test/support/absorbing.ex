defmodule PartitionedBuffer.Absorbing do
  @moduledoc false
  # For the tests of entries of other nodes: buffers without processes, and their contents.

  import PartitionedBuffer.Case, only: [unique_name: 0]

  alias PartitionedBuffer.Native

  @doc "A run of a new buffer of this kind, with outcomes."
  def open(kind, opts \\ []) do
    max_size = Keyword.get(opts, :max_size, :infinity)
    outcomes? = Keyword.get(opts, :outcomes?, true)
    name = Keyword.get_lazy(opts, :name, &unique_name/0)
    Native.open(name, kind, Keyword.get(opts, :partitions, 1), outcomes?, true, :any, {max_size, :infinity})
  end

  @doc "All entries of the next flush of each partition, which are claimed."
  def entries({name, _number} = run) do
    flushes =
      for partition <- 0..(Native.partition_count(name) - 1),
          {_kind, flush} <- [Native.flush(run, partition)],
          do: flush

    flushes |> Enum.flat_map(&read(&1, 0)) |> Enum.sort()
  end

  defp read(flush, length) do
    case Native.read(flush, length, 100_000, false) do
      {read, _length, true} -> Native.claim(flush) && read
      {read, length, false} -> read ++ read(flush, length)
    end
  end

  @doc "The counts and streams of a run."
  def held({name, _number} = run) do
    {counts, _age, writes, ended, _now} = Native.info(run, 0)
    {put_elem(counts, 3, nil), writes, ended, Native.bound(name), Native.streams(run)}
  end

  @doc "What a caller does: the system may interrupt a call, which then leaves the entries to the other one."
  def absorb(run, entries, stream, number, modes) do
    with :large <- Native.absorb(run, entries, stream, number, modes),
         do: Native.absorb_large(run, entries, stream, number, modes)
  end

  @doc "The result of both calls, which has to be the same."
  def both(run, entries, stream \\ nil, number \\ 1, modes \\ []) do
    result = absorb(run, entries, stream, number, modes)
    ^result = Native.absorb_large(run, entries, stream, number, modes)
  end
end
