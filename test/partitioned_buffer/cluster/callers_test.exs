defmodule PartitionedBuffer.Cluster.CallersTest do
  # Ecto's sandbox and others find a test by the `$callers` of the processor.
  use PartitionedBuffer.Case, async: true

  alias PartitionedBuffer.{Cluster, Counter}

  for {name, flush} <- [{"flush/2", &PartitionedBuffer.flush/1}, {"Cluster.flush/2", &Cluster.flush/1}] do
    @flush flush

    test "#{name} is among the callers of a processor with :cluster" do
      test = self()

      buffer =
        start_buffer(
          module: Counter,
          processor: fn _batch -> send(test, {:callers, Process.get(:"$callers")}) end,
          max_attempts: 1,
          cluster: true
        )

      Counter.add(buffer, :key)
      assert @flush.(buffer) == :ok
      assert_receive {:callers, callers}
      assert test in callers
    end
  end
end
