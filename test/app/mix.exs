defmodule Shop.MixProject do
  use Mix.Project

  # An app that uses the package, as a test runs it: SHOP_DEPENDENCY is what follows the name in its dependencies.
  def project do
    [app: :shop, version: "0.1.0", elixir: "~> 1.14", deps: [dependency()]]
  end

  def application, do: [mod: {Shop.Application, []}, extra_applications: [:logger]]

  defp dependency do
    {options, _bindings} = Code.eval_string(System.get_env("SHOP_DEPENDENCY") || ~s([path: "../.."]))
    {:partitioned_buffer, options}
  end
end
