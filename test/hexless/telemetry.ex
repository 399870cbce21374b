defmodule :telemetry do
  @moduledoc false
  # Stands in for the package telemetry where it is missing, with everything that the tests need.

  @handlers {__MODULE__, :handlers}

  def attach(id, event, function, config), do: attach_many(id, [event], function, config)

  def attach_many(id, events, function, config) do
    update(&Map.put(&1, id, {events, function, config}))
  end

  def detach(id), do: update(&Map.delete(&1, id))

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
    :global.trans({@handlers, self()}, fn -> :persistent_term.put(@handlers, change.(handlers())) end, [
      node()
    ])

    :ok
  end
end
