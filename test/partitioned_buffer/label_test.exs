defmodule PartitionedBuffer.LabelTest do
  # What Observer shows of processes without a name.
  use PartitionedBuffer.Case, async: true

  Code.ensure_loaded!(:proc_lib)

  unless function_exported?(:proc_lib, :get_label, 1),
    do: @moduletag(skip: "processes have labels since OTP 27")

  test "processes without a name have their buffer and role as a label" do
    test = self()

    buffer =
      start_buffer(
        partitions: 1,
        processing_interval_ms: :infinity,
        processor: fn _batch -> send(test, {:task, self()}) && receive(do: (:go_on -> :ok)) end
      )

    Buffer.put(buffer, 1, 1)
    PartitionedBuffer.flush(buffer, async: true)
    assert_receive {:task, task}
    supervisor = Process.whereis(PartitionedBuffer.Routing.supervisor_name(buffer))
    workers = for {_id, pid, :worker, _modules} <- Supervisor.which_children(supervisor), do: pid

    nameless =
      for pid <- [task | workers], Process.info(pid, :registered_name) == {:registered_name, []}, do: pid

    roles = for pid <- nameless, {:partitioned_buffer, ^buffer, role} <- [label(pid)], do: role
    send(task, :go_on)

    assert Enum.sort(roles) == [:emitter, :writers, {:drainer, :first}, {:drainer, :last}, {:task, 0}]
    assert length(nameless) == length(roles)
  end

  defp label(pid), do: apply(:proc_lib, :get_label, [pid])
end
