defmodule PartitionedBuffer.Call do
  @moduledoc false
  # What the calls on all kinds of buffers have in common: options, results, lists.

  alias PartitionedBuffer.{Flush, Options, Routing}

  @doc """
  The partition that the options choose for a key or item; nil where it is routed by itself.
  """
  @spec route(atom(), any(), keyword()) :: Routing.route()
  def route(_buffer, _term, []), do: nil

  def route(buffer, term, opts) do
    case Options.partition_key!(buffer, opts) do
      nil -> nil
      partition_key -> Routing.route(partition_key, term, Routing.partition_count!(buffer))
    end
  end

  @doc """
  Raises if the buffer is not running, or not as one of this kind.
  """
  @spec ok!(:ok | :not_running, atom(), :map | :queue) :: :ok
  def ok!(:ok, _buffer, _kind), do: :ok
  def ok!(:not_running, buffer, kind), do: Routing.not_running!(buffer, kind)

  @doc """
  What becomes of a write that was refused: that of a processor of this buffer is done by `write`, which gets a route that
  says so, until the buffer's stop has ended; any other raises.
  """
  @spec refused(atom(), :map | :queue, Routing.route() | {:processor, Routing.route()}, (any() -> any())) ::
          :ok
  def refused(buffer, kind, {:processor, _route}, _write), do: Routing.not_running!(buffer, kind)

  def refused(buffer, kind, route, write) do
    if Flush.in_processor?(buffer),
      do: {:processor, route} |> write.() |> ok!(buffer, kind),
      else: Routing.not_running!(buffer, kind)
  end

  @doc """
  Writes a list to a buffer of a kind by the NIF `native`. `check!` raises if there is anything in it that cannot be written.
  """
  @spec write_list(atom(), list(), keyword(), fun(), fun(), :map | :queue) :: :ok
  def write_list(buffer, list, opts, native, check!, kind)

  def write_list(buffer, list, [], native, check!, kind) do
    # A short list is checked by the NIF; all others are here, before anything is written.
    case native.(buffer, nil, list, false) do
      :unchecked ->
        check!.(list, buffer)
        write(native, buffer, nil, list, kind)

      result ->
        written(result, native, buffer, nil, list, kind)
    end
  end

  def write_list(buffer, list, opts, native, check!, kind) do
    check!.(list, buffer)

    case Options.partition_key!(buffer, opts) do
      partition_key when partition_key == nil or list == [] ->
        write(native, buffer, nil, list, kind)

      partition_key ->
        # All are routed, among one number of partitions, before any is written: the function may raise.
        partitions = Routing.partition_count!(buffer)

        list
        |> Enum.group_by(&Routing.route(partition_key, routed_by(kind, &1), partitions))
        |> Enum.each(fn {route, list} -> write(native, buffer, route, list, kind) end)
    end
  end

  @doc """
  Raises for a list that ends in something else than a list.
  """
  @spec improper_list!(any(), atom()) :: no_return()
  def improper_list!(tail, buffer) do
    raise ArgumentError,
          "expected a proper list of entries for buffer #{inspect(buffer)}, got the tail: #{inspect(tail)}"
  end

  defp routed_by(:map, entry), do: elem(entry, 0)
  defp routed_by(:queue, item), do: item

  defp write(native, buffer, to, list, kind),
    do: buffer |> native.(to, list, true) |> written(native, buffer, to, list, kind)

  defp written(:ok, _native, _buffer, _to, _list, _kind), do: :ok
  defp written({:more, rest}, native, buffer, to, _list, kind), do: write(native, buffer, to, rest, kind)

  defp written({:refused, rest}, native, buffer, to, _list, kind),
    do: refused(buffer, kind, to, &write(native, buffer, &1, rest, kind))

  defp written(:not_running, native, buffer, to, list, kind),
    do: refused(buffer, kind, to, &write(native, buffer, &1, list, kind))
end
