defmodule PartitionedBuffer.Options.FunctionCheck do
  @moduledoc false
  # Warns of functions among the options that do not exist. It is no error: a function may come
  # later, with a code upgrade for example.

  require Logger

  # The functions among the options, and with how many arguments the buffer calls them.
  @arguments [processor: 1, dead_letter: 2, format_reason: 1, retry_backoff_ms: 1, processing_batch_size: 2]

  @doc """
  Warns of each function among checked options that cannot be called now.
  """
  @spec warn(keyword(), atom()) :: :ok
  def warn(options, buffer) do
    for {key, value} <- options, mfa = mfa(value, @arguments[key]), missing?(mfa) do
      {module, function, arity} = mfa

      Logger.warning(
        "option #{inspect(key)} of buffer #{inspect(buffer)}: " <>
          "the function #{Exception.format_mfa(module, function, arity)} does not exist",
        buffer: buffer
      )
    end

    :ok
  end

  defp mfa(_value, nil), do: nil
  defp mfa({module, function, args}, arguments), do: {module, function, arguments + length(args)}
  defp mfa({_acc, function}, arguments) when is_function(function), do: mfa(function, arguments)

  # A local function exists as long as the code of its module.
  defp mfa(function, _arguments) when is_function(function) do
    if Function.info(function, :type) == {:type, :external} do
      info = Function.info(function)
      {info[:module], info[:name], info[:arity]}
    end
  end

  defp mfa(_plain, _arguments), do: nil

  defp missing?({module, function, arity}) do
    not compiling?(module) and
      case Code.ensure_loaded(module) do
        {:module, ^module} ->
          not function_exported?(module, function, arity) and
            not function_exported?(module, :"$handle_undefined_function", 2)

        {:error, :nofile} ->
          true

        # In this mode the VM loads no module by itself.
        {:error, :embedded} ->
          :code.which(module) == :non_existing

        {:error, _other} ->
          false
      end
  end

  defp compiling?(module), do: Module.open?(module) or Code.can_await_module_compilation?()
end
