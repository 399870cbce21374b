defmodule Tracker.MixProject do
  use Mix.Project

  # An application that counts page views, keeps profiles and logs events in PostgreSQL, each by a buffer. Copy what you need.
  # EXAMPLE_DEPENDENCY is what follows the name of the package in the dependencies.
  def project do
    [app: :tracker, version: "0.1.0", elixir: "~> 1.14", deps: [dependency()]]
  end

  # The driver is Debian's package `erlang-p1-pgsql`. With Hex, take `postgrex`.
  def application, do: [mod: {Tracker.Application, []}, extra_applications: [:logger, :crypto, :p1_pgsql]]

  defp dependency do
    {options, _bindings} = Code.eval_string(System.get_env("EXAMPLE_DEPENDENCY") || ~s([path: "../.."]))
    {:partitioned_buffer, options}
  end
end
