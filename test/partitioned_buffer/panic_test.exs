defmodule PartitionedBuffer.PanicTest do
  # A panic in the library is an exception in Elixir. It releases its lock, and leaves the buffer usable and its memory
  # accounted for. The test has a VM of its own, since the library that panics is another one.
  use ExUnit.Case, async: true

  import PartitionedBuffer.VM

  @moduletag timeout: 600_000

  setup :tmp_dir

  test "a panic in the middle of a write harms nothing but that write", %{dir: dir} do
    library = build!("faults")
    app = copy_package(dir, library)
    seed = System.get_env("SEED", to_string(:rand.uniform(1_000_000)))

    # This build has debug assertions and overflow checks. So a broken invariant is a panic as well, which the counts below
    # would show.
    output =
      elixir!(app, "panics.exs", ["20000", seed], [
        {"PARTITIONED_BUFFER_PANIC_EVERY", "97"},
        {"RUST_BACKTRACE", "0"}
      ])

    assert [_, panics] = Regex.run(~r/20000 operations, (\d+) panics, seed \d+: all as it should be/, output)
    assert String.to_integer(panics) > 200
    # Rust prints where and why for each panic.
    assert length(String.split(output, "panicked at")) - 1 == String.to_integer(panics)
    assert length(String.split(output, "panics as it was told to")) - 1 == String.to_integer(panics)
  end
end
