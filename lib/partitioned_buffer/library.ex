defmodule PartitionedBuffer.Library do
  @moduledoc false
  # Whether the native library is there. `Native` loads it, but is not there itself if that has failed.

  alias PartitionedBuffer.Native

  @doc """
  `:ok` if the library is loaded, perhaps now; else the error that a start returns.
  """
  @spec check() :: :ok | {:error, {Exception.t(), []}}
  def check do
    case Code.ensure_loaded(Native) do
      {:module, Native} ->
        :ok

      {:error, reason} ->
        message =
          :persistent_term.get({Native, :failure}, "#{inspect(Native)} cannot be loaded: #{inspect(reason)}")

        {:error, {%RuntimeError{message: message}, []}}
    end
  end
end
