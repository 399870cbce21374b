defmodule PartitionedBuffer.ExampleTest do
  # Runs the tests of the example application, examples/tracker, as its developers would. `mix test
  # --exclude postgres` leaves it out on a machine without PostgreSQL.
  use ExUnit.Case, async: true

  for file <- ~w(postgres_client postgres), do: Code.require_file("../../bench/support/#{file}.ex", __DIR__)

  import PartitionedBuffer.VM

  alias Bench.Postgres

  @moduletag :postgres
  @moduletag timeout: 300_000

  @root Path.expand("../..", __DIR__)

  setup :tmp_dir

  test "the example application works", %{dir: dir} do
    if missing = Postgres.missing(),
      do: raise("#{missing}, or leave this test out with `mix test --exclude postgres`")

    postgres = start_supervised!(Postgres)
    app = Path.join(dir, "tracker")
    File.mkdir_p!(app)

    for file <- ~w(mix.exs config lib priv test),
        do: File.cp_r!(Path.join([@root, "examples/tracker", file]), Path.join(app, file))

    env =
      for(name <- ~w(MIX_ENV MIX_BUILD_PATH MIX_TARGET MIX_DEPS_PATH), do: {name, nil}) ++
        [
          {"EXAMPLE_DEPENDENCY", inspect(path: @root)},
          {"PARTITIONED_BUFFER_NIF_PATH", library()},
          {"PGPORT", "#{Postgres.port(postgres)}"}
        ]

    {output, status} =
      System.cmd("mix", ["test", "--warnings-as-errors"], cd: app, env: env, stderr_to_stdout: true)

    assert status == 0, output
    assert output =~ ~r/8 tests, 0 failures/
  end
end
