defmodule PartitionedBuffer.Conservation.Code do
  @moduledoc false
  # Values that refer to the code of a module: functions with and without an environment, and a
  # literal. The module is loaded for each value, and then purged.

  @module PartitionedBuffer.Conservation.Purged
  @literal {:literal, ["text", 1.5, %{a: 1}]}

  @source """
  defmodule #{inspect(@module)} do
    def value(number), do: {fn -> number end, fn -> :constant end, #{inspect(@literal)}}
  end
  """

  @doc "The module's object code."
  def compile do
    purge()
    [{@module, code}] = Elixir.Code.compile_string(@source)
    code
  end

  @doc "Loads the module, and returns a value of it."
  def value(code, number) do
    {:module, @module} = :code.load_binary(@module, ~c"purged", code)
    apply(@module, :value, [number])
  end

  @doc "Purges the module, unless a process refers to it."
  def purge do
    :code.delete(@module)
    :code.soft_purge(@module)
  end

  @doc "Whether this is the value that `value/2` made for this number."
  def intact?({function, constant, @literal}, number) do
    :erlang.fun_info(function, :env) == {:env, [number]} and :erlang.fun_info(constant, :env) == {:env, []} and
      Enum.all?([function, constant], &(:erlang.fun_info(&1, :module) == {:module, @module}))
  end

  def intact?(_value, _number), do: false
end
