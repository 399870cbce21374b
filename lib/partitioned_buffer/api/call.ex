defmodule PartitionedBuffer.API.Call do
  @moduledoc false
  # The parts of a call that all kinds of buffers share: options, results, lists.

  alias PartitionedBuffer.Buffer.Room
  alias PartitionedBuffer.{Native, Options, Routing}
  alias PartitionedBuffer.Partition.Runner

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
  The result of a delete. Raises if no partition took it.
  """
  @spec deleted!(:ok | :elsewhere | :not_running, atom(), Options.kind()) :: :ok
  def deleted!(:ok, _buffer, _kind), do: :ok
  def deleted!(:elsewhere, buffer, _kind), do: elsewhere!(buffer, "delete/3")
  def deleted!(:not_running, buffer, kind), do: Routing.not_running!(buffer, kind)

  @doc """
  Raises for a call that needs all entries of a key, which no member has.
  """
  @spec elsewhere!(atom(), String.t()) :: no_return()
  def elsewhere!(buffer, call) do
    raise ArgumentError,
          "buffer #{inspect(buffer)} was started with the option :cluster, and #{call} needs all entries of the key, " <>
            "but other nodes may have some"
  end

  @typedoc "A NIF that writes an entry, and its arguments behind the route."
  @type write() :: [atom() | any(), ...]

  @doc """
  Handles a write that no partition took: the partitions refuse writes, or the buffer is full. A
  processor may write to its own buffer until the end of a stop, by a route with the mark of
  processors. Any other refused write raises. A write without room waits for room, within the limits
  of the options.
  """
  @spec refused(
          :not_running | :full | :versions | :elsewhere | result,
          atom(),
          Options.kind(),
          Routing.route() | {:processor, Routing.route()},
          write()
        ) :: result | :ok | {:error, :full | :journal}
        when result: atom()
  def refused(:full, buffer, kind, route, [operation | arguments] = write) do
    Room.wait(buffer, 1, fn reservation ->
      with :not_running <- Native.write(reservation, operation, [buffer, route | arguments]) do
        # Else the room would go back at the next garbage collection of the writer only.
        Native.release(reservation)
        refused(:not_running, buffer, kind, route, write)
      end
    end)
  end

  def refused(:not_running, buffer, kind, {:processor, _route}, _write),
    do: Routing.not_running!(buffer, kind)

  def refused(:not_running, buffer, kind, route, [operation | arguments] = write) do
    if Runner.in_processor?(buffer) do
      route = {:processor, route}

      Native
      |> apply(operation, [buffer, route | arguments])
      |> refused(buffer, kind, route, write)
    else
      Routing.not_running!(buffer, kind)
    end
  end

  def refused(:versions, buffer, _kind, _route, [operation | _arguments]), do: versions!(buffer, operation)
  def refused(result, _buffer, _kind, _route, _write), do: result

  @doc """
  Raises for a write whose versions the buffer does not take.
  """
  @spec versions!(atom(), atom()) :: no_return()
  def versions!(buffer, operation) when operation in [:put_newer, :put_all_newer] do
    raise ArgumentError,
          "buffer #{inspect(buffer)} was started with versions: :clock, so its entries have the versions of its " <>
            "clock, and #{operation} cannot give them others: expected put, put_all or put_new"
  end

  def versions!(buffer, operation) do
    raise ArgumentError,
          "buffer #{inspect(buffer)} was started with versions: :own, so each write gives a version, and " <>
            "#{operation} has none: expected put_newer or put_all_newer"
  end

  @typedoc "A NIF that writes a list."
  @type operation() :: :put_all | :put_all_newer | :push_all | :add_all

  @typedoc "The expected shape of the elements of a list."
  @type shape() :: :pair | :versioned | :item | :amount | :counted

  @kinds %{put_all: :map, put_all_newer: :map, push_all: :queue, add_all: :counter}
  @shapes %{put_all: :pair, put_all_newer: :versioned, push_all: :item, add_all: :amount}

  @expected %{
    pair: "{key, value}",
    versioned: "{key, value, version} with an integer version",
    amount: "{key, amount} with an integer of 64 bits, from -2^63 to 2^63 - 1, as amount",
    counted:
      "{key, amount, count} with an integer of 64 bits, from -2^63 to 2^63 - 1, as amount, " <>
        "and an integer from 0 to 2^63 - 1 as count"
  }

  @doc """
  The elements of an enumerable. The enumerable may raise, so it is read to its end before the first
  write.
  """
  @spec to_list!(Enumerable.t(), atom(), shape()) :: list()
  def to_list!(list, _buffer, _shape) when is_list(list), do: list

  def to_list!(map, _buffer, shape) when is_map(map) and not is_struct(map) and shape != :versioned,
    do: Map.to_list(map)

  def to_list!(entries, buffer, shape) do
    enumerable?(entries) ||
      raise ArgumentError,
            "invalid entries: #{inspect(entries)} for buffer #{inspect(buffer)}, expected " <>
              if(shape == :versioned, do: "an", else: "a map, or another") <>
              " enumerable of #{@expected[shape]}"

    Enum.to_list(entries)
  end

  # The protocol is implemented for all functions, but accepts only functions of arity 2.
  defp enumerable?(function) when is_function(function), do: is_function(function, 2)
  defp enumerable?(term), do: Enumerable.impl_for(term) != nil

  @doc """
  Writes a list. Raises, and writes nothing, if an element has another shape than the operation
  needs.
  """
  @spec write_list(atom(), operation(), list(), keyword()) :: :ok | {:error, :full | :journal}
  def write_list(buffer, operation, list, []) do
    # The NIF checks a short list itself.
    case native(operation, buffer, nil, list, false) do
      :ok ->
        :ok

      again when again in [:long, :bounded] ->
        check!(buffer, @shapes[operation], list)
        write_reserved(buffer, operation, [{nil, list}], length(list))

      result ->
        written(result, buffer, operation, nil, list, true)
    end
  end

  def write_list(buffer, operation, list, opts) do
    check!(buffer, @shapes[operation], list)

    case Options.partition_key!(buffer, opts) do
      partition_key when partition_key == nil or list == [] ->
        write_reserved(buffer, operation, [{nil, list}], length(list))

      partition_key ->
        # The partition key may be a function that raises, so all routes are chosen before the first
        # write. They share one partition count.
        partition_count = Routing.partition_count!(buffer)
        groups = Enum.group_by(list, &Routing.route(partition_key, routed_by(operation, &1), partition_count))
        write_reserved(buffer, operation, Map.to_list(groups), length(list))
    end
  end

  defp routed_by(:push_all, item), do: item
  defp routed_by(_put, entry), do: elem(entry, 0)

  # In a buffer with a bound, a list is written as a whole or not at all. Without a bound, every
  # list has room. An empty list needs none.
  defp write_reserved(buffer, operation, groups, 0), do: write_groups(buffer, operation, groups, true)

  defp write_reserved(buffer, operation, groups, count) do
    write = &write_and_release(buffer, operation, groups, &1)

    case Native.reserve(buffer, count, false) do
      :full -> Room.wait(buffer, count, write)
      :not_running -> write_groups(buffer, operation, groups, true)
      reservation -> write.(reservation)
    end
  end

  # Only the first write may find that the room went to another writer.
  defp write_and_release(buffer, operation, groups, reservation) do
    with :ok <- write_groups(buffer, operation, groups, reservation), do: Native.release(reservation)
  catch
    kind, reason ->
      Native.release(reservation)
      :erlang.raise(kind, reason, __STACKTRACE__)
  end

  defp write_groups(buffer, operation, groups, checked) do
    Enum.reduce_while(groups, :ok, fn {route, list}, :ok ->
      case write(buffer, operation, route, list, checked) do
        :ok -> {:cont, :ok}
        :lapsed -> {:halt, :lapsed}
      end
    end)
  end

  defp write(buffer, operation, route, list, checked) do
    operation
    |> native(buffer, route, list, checked)
    |> written(buffer, operation, route, list, checked)
  end

  # `apply/3` takes as long as the write of an entry.
  defp native(:put_all, buffer, route, list, checked), do: Native.put_all(buffer, route, list, checked)
  defp native(:push_all, buffer, route, list, checked), do: Native.push_all(buffer, route, list, checked)
  defp native(:add_all, buffer, route, list, checked), do: Native.add_all(buffer, route, list, checked)

  defp native(:put_all_newer, buffer, route, list, checked),
    do: Native.put_all_newer(buffer, route, list, checked)

  defp written(result, _buffer, _operation, _route, _list, _checked) when result in [:ok, :lapsed], do: result

  defp written({:more, rest}, buffer, operation, route, _list, checked),
    do: write(buffer, operation, route, rest, checked)

  defp written({:refused, rest}, buffer, operation, route, _list, checked),
    do: refused_list(buffer, operation, route, rest, checked)

  defp written(:not_running, buffer, operation, route, list, checked),
    do: refused_list(buffer, operation, route, list, checked)

  defp written(:versions, buffer, operation, _route, _list, _checked), do: versions!(buffer, operation)

  defp written(invalid, buffer, operation, _route, _list, _checked),
    do: invalid!(invalid, buffer, @shapes[operation])

  defp refused_list(buffer, operation, route, list, checked) do
    if not match?({:processor, _route}, route) and Runner.in_processor?(buffer),
      do: write(buffer, operation, {:processor, route}, list, checked),
      else: Routing.not_running!(buffer, @kinds[operation])
  end

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
  @spec invalid!({:invalid, any()} | {:improper, any()}, atom(), shape()) :: no_return()
  def invalid!({:invalid, entry}, buffer, shape) do
    raise ArgumentError,
          "invalid entry: #{inspect(entry)} for buffer #{inspect(buffer)}, expected #{@expected[shape]}"
  end

  def invalid!({:improper, tail}, buffer, _shape) do
    raise ArgumentError,
          "expected a proper list of entries for buffer #{inspect(buffer)}, got the tail: #{inspect(tail)}"
  end
end
