defmodule :telemetry do
  @moduledoc false
  # Stands in for the package telemetry where it is missing, with everything that the tests need.

  @handlers {__MODULE__, :handlers}

  def attach(id, event, function, config), do: attach_many(id, [event], function, config)

  def attach_many(id, events, function, config) do
    update(fn
      %{^id => _handler} -> {:error, :already_exists}
      handlers -> {:ok, Map.put(handlers, id, {events, function, config})}
    end)
  end

  def detach(id) do
    update(fn
      %{^id => _handler} = handlers -> {:ok, Map.delete(handlers, id)}
      _handlers -> {:error, :not_found}
    end)
  end

  def execute(event, measurements, metadata) do
    for {id, {events, function, config}} <- handlers(), event in events do
      try do
        function.(event, measurements, metadata, config)
      catch
        _kind, _reason -> detach(id)
      end
    end

    :ok
  end

  defp handlers, do: :persistent_term.get(@handlers, %{})

  defp update(change) do
    :global.trans(
      {@handlers, self()},
      fn -> with {:ok, handlers} <- change.(handlers()), do: :persistent_term.put(@handlers, handlers) end,
      [node()]
    )
  end
end
