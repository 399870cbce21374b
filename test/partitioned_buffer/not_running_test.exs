defmodule PartitionedBuffer.NotRunningTest do
  # Every function with a buffer as its argument, without a running buffer. The functions come from
  # the modules, so the test forgets none.
  use PartitionedBuffer.Case, async: true

  alias PartitionedBuffer.{Counter, Native, Queue}

  @moduletag :capture_log

  defmodule Maps, do: use(PartitionedBuffer.Map, processor: &Function.identity/1)
  defmodule Counters, do: use(PartitionedBuffer.Counter, processor: &Function.identity/1)
  defmodule Queues, do: use(PartitionedBuffer.Queue, processor: &Function.identity/1)

  # The required and the optional arguments after the buffer.
  @arguments %{
    put: [1, 1, []],
    put_new: [1, 1, []],
    put_newer: [1, 1, 1, []],
    put_all: [[{1, 1}], []],
    put_all_newer: [[{1, 1, 1}], []],
    get: [1, nil, []],
    fetch: [1, []],
    delete: [1, []],
    add: [1, 1, []],
    add_all: [[{1, 1}], []],
    push: [1, []],
    size: [],
    buffer_size: [],
    info: [],
    flush: [[timeout: 1_000]],
    sync: [[timeout: 1_000]],
    pause: [],
    resume: [],
    update_options: [[processing_batch_size: 7, max_size: 100]],
    get_partition: [nil, 1]
  }

  # These take no buffer, or have another result, which other tests check: `stop` exits, `emit_info`
  # and `watch` do nothing.
  @others Enum.map(
            ~w(__kind__ attach_default_logger buffers child_spec detach_default_logger emit_info memory) ++
              ~w(processing_partition start_link stop watch),
            &String.to_atom/1
          )

  # All calls of a module on a buffer, by their names and arities.
  defp calls(module, first) do
    for {function, arity} <- module.__info__(:functions), function not in @others do
      arguments = first ++ Enum.take(Map.fetch!(@arguments, function), arity - length(first))
      {{module, function, arity}, fn -> apply(module, function, arguments) end}
    end
  end

  defp calls(buffer), do: Enum.flat_map([PartitionedBuffer, Buffer, Counter, Queue], &calls(&1, [buffer]))

  # The function with the message of its error.
  defp raised({function, call}) do
    {function, call.()}
  rescue
    error in ArgumentError -> {function, error.message}
  end

  defp assert_all_raise(calls, buffer) do
    message = "no partitions available for buffer #{inspect(buffer)}: it is not running"
    for {function, _call} = call <- calls, do: assert(raised(call) == {function, message})
  end

  describe "a buffer that does not run" do
    test "is the same ArgumentError for all functions, after any end" do
      stopped = start_buffer()
      Buffer.stop(stopped)
      killed = start_buffer()
      kill_tree(killed)
      counter = start_buffer(module: Counter)
      Counter.stop(counter)
      for buffer <- [unique_name(), stopped, killed, counter], do: assert_all_raise(calls(buffer), buffer)
    end

    test "is the same ArgumentError for the functions of its module" do
      for module <- [Maps, Counters, Queues], do: assert_all_raise(calls(module, []), module)
    end
  end

  describe "a buffer that starts and ends all the time" do
    test "is no other error than an ArgumentError, for all functions" do
      Process.flag(:trap_exit, true)
      {buffer, ended} = {unique_name(), :atomics.new(1, [])}
      calls = calls(Buffer, [buffer]) ++ calls(PartitionedBuffer, [buffer])
      callers = for call <- calls, do: Task.async(fn -> call_until(ended, call) end)

      for round <- 1..40 do
        opts = buffer_options(name: buffer, partitions: rem(round, 3) + 1, processor: &Function.identity/1)
        {:ok, supervisor} = Buffer.start_link(opts)
        for n <- 0..rem(round, 7), do: Buffer.put(buffer, n, round)
        if rem(round, 2) == 0, do: Buffer.stop(buffer), else: Process.exit(supervisor, :kill)
        assert_receive {:EXIT, ^supervisor, _reason}
      end

      :atomics.put(ended, 1, 1)
      Task.await_many(callers, 60_000)
    end
  end

  # Any other error ends the caller, and so the test.
  defp call_until(ended, call) do
    raised(call)
    # The others get their turn after each call.
    :erlang.yield()
    if :atomics.get(ended, 1) == 0, do: call_until(ended, call)
  end

  describe "a buffer that is just starting" do
    test "is no other error than an ArgumentError, for all functions" do
      for {kind, module} <- [map: Buffer, counter: Counter, queue: Queue], max_size <- [:infinity, 1] do
        buffer = unique_name()
        # The first thing that a start does. Its options come next.
        Native.open(buffer, kind, 2, false, true, :any, {max_size, :infinity})
        results = for call <- calls(module, [buffer]) ++ calls(PartitionedBuffer, [buffer]), do: raised(call)

        message = "no partitions available for buffer #{inspect(buffer)}: "

        for {{_module, function, _arity}, result} <- results,
            function in [:flush, :info, :update_options],
            do: assert(String.starts_with?(result, message))
      end
    end
  end
end
