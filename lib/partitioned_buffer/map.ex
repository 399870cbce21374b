defmodule PartitionedBuffer.Map do
  @moduledoc false

  alias PartitionedBuffer.{Native, Options, Routing}

  @type buffer() :: PartitionedBuffer.buffer()

  def start_link(opts), do: opts |> Keyword.put(:module, __MODULE__) |> PartitionedBuffer.start_link()

  def child_spec(opts) do
    %{id: Keyword.get(opts, :name), start: {__MODULE__, :start_link, [opts]}, type: :supervisor}
  end

  def stop(buffer, reason \\ :normal, timeout \\ :infinity), do: PartitionedBuffer.stop(buffer, reason, timeout)

  def put(buffer, key, value, opts \\ [])
  def put(buffer, key, value, []), do: buffer |> Native.put(nil, key, value) |> ok!(buffer)
  def put(buffer, key, value, opts), do: buffer |> Native.put(route(buffer, key, opts), key, value) |> ok!(buffer)

  def put_newer(buffer, key, value, version, opts \\ [])

  def put_newer(buffer, key, value, version, []) when is_integer(version) do
    buffer |> Native.put_newer(nil, key, value, version) |> ok!(buffer)
  end

  def put_newer(buffer, key, value, version, opts) when is_integer(version) do
    buffer |> Native.put_newer(route(buffer, key, opts), key, value, version) |> ok!(buffer)
  end

  def put_newer(buffer, key, value, version, _opts), do: invalid_entry!(buffer, {key, value, version}, :versioned)

  def put_all(buffer, entries, opts \\ [])
  def put_all(buffer, entries, opts) when is_map(entries), do: put_all(buffer, Map.to_list(entries), opts)

  def put_all(buffer, entries, opts) do
    check_pairs!(entries, buffer)
    write_all(&Native.put_all/3, buffer, entries, opts)
  end

  def put_all_newer(buffer, entries, opts \\ []) do
    check_versioned!(entries, buffer)
    write_all(&Native.put_all_newer/3, buffer, entries, opts)
  end

  def get(buffer, key, default \\ nil, opts \\ []) do
    case Native.get(buffer, route(buffer, key, opts), key) do
      {:ok, value} -> value
      :error -> default
      :not_running -> Routing.not_running!(buffer)
    end
  end

  def delete(buffer, key, opts \\ []), do: buffer |> Native.delete(route(buffer, key, opts), key) |> ok!(buffer)

  def size(buffer), do: PartitionedBuffer.buffer_size(buffer)

  def update_options(buffer, opts), do: PartitionedBuffer.update_options(buffer, opts)

  ## Private

  defp ok!(:ok, _buffer), do: :ok
  defp ok!(:not_running, buffer), do: Routing.not_running!(buffer)

  defp route(_buffer, _key, []), do: nil
  defp route(buffer, key, opts), do: Routing.partition(buffer, Options.partition_key!(buffer, opts), key)

  defp write_all(native, buffer, entries, opts) do
    case Options.partition_key!(buffer, opts) do
      nil ->
        write(native, buffer, nil, entries)

      partition_key ->
        # All are routed before any is written: the function may raise.
        entries
        |> Enum.group_by(&Routing.partition(buffer, partition_key, elem(&1, 0)))
        |> Enum.each(fn {partition, entries} -> write(native, buffer, partition, entries) end)
    end
  end

  defp write(native, buffer, to, entries) do
    case native.(buffer, to, entries) do
      {:more, rest} -> write(native, buffer, to, rest)
      result -> ok!(result, buffer)
    end
  end

  defp check_pairs!([{_key, _value} | rest], buffer), do: check_pairs!(rest, buffer)
  defp check_pairs!([], _buffer), do: :ok
  defp check_pairs!([entry | _rest], buffer), do: invalid_entry!(buffer, entry, :pair)
  defp check_pairs!(tail, buffer), do: invalid_list!(buffer, tail)

  defp check_versioned!([{_key, _value, version} | rest], buffer) when is_integer(version) do
    check_versioned!(rest, buffer)
  end

  defp check_versioned!([], _buffer), do: :ok
  defp check_versioned!([entry | _rest], buffer), do: invalid_entry!(buffer, entry, :versioned)
  defp check_versioned!(tail, buffer), do: invalid_list!(buffer, tail)

  defp invalid_entry!(buffer, entry, kind) do
    expected = if kind == :pair, do: "{key, value}", else: "{key, value, version} with an integer version"
    raise ArgumentError, "invalid entry: #{inspect(entry)} for buffer #{inspect(buffer)}, expected #{expected}"
  end

  defp invalid_list!(buffer, tail) do
    raise ArgumentError, "expected a proper list of entries for buffer #{inspect(buffer)}, got the tail: #{inspect(tail)}"
  end
end
