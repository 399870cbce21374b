defmodule PartitionedBuffer.LibraryTest do
  use ExUnit.Case, async: true

  import PartitionedBuffer.VM

  setup :tmp_dir

  describe "a library that cannot be loaded" do
    test "is what a start reports, with the path, the system, and what to do", %{dir: dir} do
      broken = Path.join(dir, "broken.so")
      File.write!(broken, "no library")
      app = copy_package(dir, broken)
      output = elixir!(app, "broken_library.exs", [])

      for start <- ["started", "supervised"] do
        assert output =~
                 ~r"#{start}: .*cannot be loaded: .*#{Regex.escape(app)}/priv/native/partitioned_buffer.so"

        assert output =~
                 ~r"#{start}: .*built for this system \(#{:erlang.system_info(:system_architecture)}\), with the same libc"

        assert output =~
                 ~r"#{start}: .*PARTITIONED_BUFFER_BUILD=1 mix deps.compile partitioned_buffer --force"

        assert output =~ ~r"#{start}: .*PARTITIONED_BUFFER_NIF_PATH"
      end

      refute output =~ "undefined"
    end
  end
end
