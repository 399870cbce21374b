defmodule PartitionedBuffer.Call do
  @moduledoc false
  # What the calls on all kinds of buffers have in common: options, results, lists.

  alias PartitionedBuffer.{HandOver, Options, Routing}

  @doc """
  The partition that the options choose for a key or item; nil where it is routed by itself.
  """
  @spec route(atom(), any(), keyword()) :: Routing.route()
  def route(_buffer, _term, []), do: nil

  def route(buffer, term, opts) do
    case Options.partition_key!(buffer, opts) do
      nil -> nil
      partition_key -> Routing.route(partition_key, term, Routing.partitions!(buffer))
    end
  end

  @doc """
  Raises if the buffer is not running.
  """
  @spec ok!(:ok | :not_running, atom()) :: :ok
  def ok!(:ok, _buffer), do: :ok
  def ok!(:not_running, buffer), do: Routing.not_running!(buffer)

  @doc """
  What becomes of a write that was refused: that of a processor of this buffer is done by `write`, which gets a route that
  says so, until the buffer's stop has ended; any other raises.
  """
  @spec refused(atom(), Routing.route() | {:processor, Routing.route()}, (any() -> any())) :: :ok
  def refused(buffer, {:processor, _route}, _write), do: Routing.not_running!(buffer)

  def refused(buffer, route, write) do
    if HandOver.in_processor?(buffer),
      do: {:processor, route} |> write.() |> ok!(buffer),
      else: Routing.not_running!(buffer)
  end

  @doc """
  Writes a list by the NIF `native`. `check!` raises if there is anything in it that cannot be written, and `routed_by` gives
  what an element is routed by.
  """
  @spec write_list(atom(), list(), keyword(), fun(), fun(), fun()) :: :ok
  def write_list(buffer, list, opts, native, check!, routed_by)

  def write_list(buffer, no_list, _opts, _native, _check!, _routed_by) when not is_list(no_list) do
    raise ArgumentError, "expected a list of entries for buffer #{inspect(buffer)}, got: #{inspect(no_list)}"
  end

  def write_list(buffer, list, [], native, check!, _routed_by) do
    # A short list is checked by the NIF; all others are here, before anything is written.
    case native.(buffer, nil, list, false) do
      :unchecked ->
        check!.(list, buffer)
        write(native, buffer, nil, list)

      result ->
        written(result, native, buffer, nil, list)
    end
  end

  def write_list(buffer, list, opts, native, check!, routed_by) do
    check!.(list, buffer)

    case Options.partition_key!(buffer, opts) do
      partition_key when partition_key == nil or list == [] ->
        write(native, buffer, nil, list)

      partition_key ->
        # All are routed, among one number of partitions, before any is written: the function may raise.
        partitions = Routing.partitions!(buffer)

        list
        |> Enum.group_by(&Routing.route(partition_key, routed_by.(&1), partitions))
        |> Enum.each(fn {route, list} -> write(native, buffer, route, list) end)
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

  defp write(native, buffer, to, list),
    do: buffer |> native.(to, list, true) |> written(native, buffer, to, list)

  defp written(:ok, _native, _buffer, _to, _list), do: :ok
  defp written({:more, rest}, native, buffer, to, _list), do: write(native, buffer, to, rest)

  defp written({:refused, rest}, native, buffer, to, _list),
    do: refused(buffer, to, &write(native, buffer, &1, rest))

  defp written(:not_running, native, buffer, to, list),
    do: refused(buffer, to, &write(native, buffer, &1, list))
end
