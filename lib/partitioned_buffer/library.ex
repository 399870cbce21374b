defmodule PartitionedBuffer.Library do
  @moduledoc false
  # Checks whether the native library is loaded. If loading fails, the module `Native` does not
  # exist, so the error is kept in a persistent term.

  alias PartitionedBuffer.Native

  @doc """
  Whether a buffer was opened in this VM, and the library is loaded.
  """
  @spec used?() :: boolean()
  def used?, do: :persistent_term.get({Native, :are_buffers}, false) and check() == :ok

  @doc """
  Loads the library, if necessary. Raises if that fails.
  """
  @spec check!() :: :ok
  def check! do
    with {:error, {error, []}} <- check(), do: raise(error)
  end

  @doc """
  Loads the library, if necessary. Returns `:ok`, or the error that a start returns.
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
