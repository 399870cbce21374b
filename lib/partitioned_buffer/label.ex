defmodule PartitionedBuffer.Label do
  @moduledoc false
  # Labels of processes without a name, for Observer, LiveDashboard and crash reports. OTP has them since
  # version 27.

  @doc """
  Labels the calling process with its buffer and its role.
  """
  @spec set(atom(), role :: any()) :: :ok
  def set(buffer, role) do
    if :erlang.function_exported(:proc_lib, :set_label, 1),
      do: apply(:proc_lib, :set_label, [{:partitioned_buffer, buffer, role}])

    :ok
  end
end
