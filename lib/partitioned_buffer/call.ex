defmodule PartitionedBuffer.Call do
  @moduledoc false
  # The parts of a call that all kinds of buffers share: options, results, lists.

  alias PartitionedBuffer.{Native, Options, Routing, Running}

  @doc """
  The route that the options choose for a key or item; nil if the key or item itself decides.
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
  The result of a call for this kind of buffer. Raises if no partition took it.
  """
  @spec taken!(result | :not_running, atom(), :map | :queue) :: result when result: atom()
  def taken!(:not_running, buffer, kind), do: Routing.not_running!(buffer, kind)
  def taken!(result, _buffer, _kind), do: result

  @doc """
  Handles a write that the partitions refused. A processor may write to its own buffer until the stop has ended: then `write`
  writes again, by a route with the mark of processors. Any other write raises.
  """
  @spec refused(
          atom(),
          :map | :queue,
          Routing.route() | {:processor, Routing.route()},
          (any() -> result | :not_running)
        ) :: result
        when result: atom()
  def refused(buffer, kind, {:processor, _route}, _write), do: Routing.not_running!(buffer, kind)

  def refused(buffer, kind, route, write) do
    if Running.in_processor?(buffer),
      do: {:processor, route} |> write.() |> taken!(buffer, kind),
      else: Routing.not_running!(buffer, kind)
  end

  @typedoc "A NIF that writes a list."
  @type operation() :: :put_all | :put_all_newer | :push_all

  @kinds %{put_all: :map, put_all_newer: :map, push_all: :queue}
  @shapes %{put_all: :pair, put_all_newer: :versioned, push_all: :item}

  @expected %{pair: "{key, value}", versioned: "{key, value, version} with an integer version"}

  @doc """
  Writes a list. Raises, and writes nothing, if an element has another shape than the operation needs.
  """
  @spec write_list(atom(), operation(), list(), keyword()) :: :ok
  def write_list(buffer, operation, list, []) do
    # The NIF checks a short list itself.
    case apply(Native, operation, [buffer, nil, list, false]) do
      :long ->
        check!(buffer, @shapes[operation], list)
        write(buffer, operation, nil, list)

      result ->
        written(result, buffer, operation, nil, list)
    end
  end

  def write_list(buffer, operation, list, opts) do
    check!(buffer, @shapes[operation], list)

    case Options.partition_key!(buffer, opts) do
      partition_key when partition_key == nil or list == [] ->
        write(buffer, operation, nil, list)

      partition_key ->
        # The partition key may be a function that raises, so all routes are chosen before the first write. They share one
        # partition count.
        partition_count = Routing.partition_count!(buffer)

        list
        |> Enum.group_by(&Routing.route(partition_key, routed_by(operation, &1), partition_count))
        |> Enum.each(fn {route, list} -> write(buffer, operation, route, list) end)
    end
  end

  defp routed_by(:push_all, item), do: item
  defp routed_by(_put, entry), do: elem(entry, 0)

  defp write(buffer, operation, route, list) do
    Native
    |> apply(operation, [buffer, route, list, true])
    |> written(buffer, operation, route, list)
  end

  defp written(:ok, _buffer, _operation, _route, _list), do: :ok
  defp written({:more, rest}, buffer, operation, route, _list), do: write(buffer, operation, route, rest)

  defp written({:refused, rest}, buffer, operation, route, _list),
    do: refused(buffer, @kinds[operation], route, &write(buffer, operation, &1, rest))

  defp written(:not_running, buffer, operation, route, list),
    do: refused(buffer, @kinds[operation], route, &write(buffer, operation, &1, list))

  defp written(invalid, buffer, operation, _route, _list), do: invalid!(invalid, buffer, @shapes[operation])

  defp check!(buffer, shape, list) do
    case Native.check(shape, list) do
      :ok -> :ok
      {:more, rest} -> check!(buffer, shape, rest)
      invalid -> invalid!(invalid, buffer, shape)
    end
  end

  @doc """
  Raises for an element of a list, or for its tail, that has another shape.
  """
  @spec invalid!({:invalid, any()} | {:improper, any()}, atom(), :pair | :versioned | :item) :: no_return()
  def invalid!({:invalid, entry}, buffer, shape) do
    raise ArgumentError,
          "invalid entry: #{inspect(entry)} for buffer #{inspect(buffer)}, expected #{@expected[shape]}"
  end

  def invalid!({:improper, tail}, buffer, _shape) do
    raise ArgumentError,
          "expected a proper list of entries for buffer #{inspect(buffer)}, got the tail: #{inspect(tail)}"
  end
end
