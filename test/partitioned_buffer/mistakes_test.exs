defmodule PartitionedBuffer.MistakesTest do
  # Mistakes at the keyboard. The sentence of each names the buffer, what is wrong with its value, and the expectation.
  use PartitionedBuffer.Case, async: true

  alias PartitionedBuffer.{Counter, Queue}

  # Wrong values of start options, with a part of the expectation.
  @start [
    name: {nil, "an atom"},
    name: {"hits", "an atom"},
    name: {1, "an atom"},
    processor: {nil, "a function of arity 1"},
    processor: {:store, "a function of arity 1"},
    processor: {{Mod, :fun}, "{module, function, args}"},
    processor: {{Mod, :fun, :args}, "{module, function, args}"},
    partitions: {-1, "a non-negative integer"},
    partitions: {"2", "a non-negative integer"},
    partitions: {5_000, "up to 4096"},
    partitions: {nil, "a non-negative integer"},
    processing_interval_ms: {0, "a positive integer"},
    processing_interval_ms: {1.5, "a positive integer"},
    processing_interval_ms: {:never, ":infinity"},
    processing_jitter_ms: {-5, "a non-negative integer"},
    processing_jitter_ms: {:random, "(milliseconds)"},
    processing_timeout_ms: {"30s", "(milliseconds) or :infinity"},
    processing_batch_size: {0, "a positive integer, :table"},
    processing_batch_size: {:all, ":table"},
    processing_batch_size: {"500", "a positive integer"},
    processing_batch_bytes: {0, "(bytes) or :infinity"},
    processing_batch_bytes: {1.0e6, "(bytes) or :infinity"},
    processing_threshold: {0, "a positive integer"},
    processing_threshold: {:full, ":infinity"},
    max_size: {0, "a positive integer"},
    max_size: {nil, "a positive integer"},
    max_size: {1.0e5, "a positive integer"},
    max_bytes: {"1GB", "(bytes) or :infinity"},
    max_bytes: {-1, "(bytes) or :infinity"},
    when_full: {:drop, ":raise, :error or :drop_newest"},
    when_full: {:block, ":raise, :error or :drop_newest"},
    full_timeout_ms: {:infinity, "a non-negative integer"},
    full_timeout_ms: {-1, "a non-negative integer"},
    max_attempts: {0, "a positive integer or :infinity"},
    max_attempts: {:forever, "a positive integer or :infinity"},
    max_attempts: {"3", "a positive integer or :infinity"},
    retry_backoff_ms: {1_000, "{min, max}"},
    retry_backoff_ms: {{30_000, 1_000}, "{min, max}"},
    retry_backoff_ms: {:exponential, "{min, max}"},
    dead_letter: {:log, "a function of arity 2"},
    drain_timeout_ms: {-1, "(milliseconds) or :infinity"},
    drain_timeout_ms: {"25s", "(milliseconds) or :infinity"},
    order: {:fifo, ":strict or :none"},
    versions: {:timestamp, ":clock or :own"},
    preset: {:postgres, ":database, :api, :metrics"},
    format_reason: {"text", "a function of arity 1"},
    module: {Map, "PartitionedBuffer.Map, PartitionedBuffer.Queue or PartitionedBuffer.Counter"},
    cluster: {:yes, "a boolean or a keyword list"},
    journal: {:disk, "a path"},
    journal: {[], "dir: the path of a directory"}
  ]

  for {{option, {value, expected}}, number} <- Enum.with_index(@start) do
    test "start #{number}: #{option}: #{inspect(value)}" do
      {option, value} = {unquote(option), unquote(Macro.escape(value))}
      name = unique_name()
      options = [name: name, processor: &Function.identity/1, max_attempts: 3, partitions: 1, module: Buffer]
      kind = if option == :order, do: Queue, else: Buffer
      options = Keyword.merge([{:module, kind} | options], [{option, value}])
      message = message(fn -> PartitionedBuffer.start_link(options) end)
      buffer = if option == :name, do: "buffer", else: inspect(name)
      for part <- [buffer, inspect(option), inspect(value), unquote(expected)], do: assert(message =~ part)
    end
  end

  # Options that do not go together, and settings of an option, with parts of the sentence.
  @together [
    {[dead_letter: {Mod, :fun, []}, max_attempts: nil], [":dead_letter", "needs :max_attempts"]},
    {[processing_batch_size: :table], [":table", ":max_attempts"]},
    {[journal: "/tmp", max_attempts: nil], [":journal", ":max_attempts"]},
    {[journal: "/tmp", cluster: true], [":journal", ":cluster"]},
    {[cluster: true, max_attempts: nil], [":cluster", "needs :max_attempts"]},
    {[cluster: true, module: Queue], [":cluster", "PartitionedBuffer.Queue"]},
    {[versions: :clock, module: Counter], [":versions", "PartitionedBuffer.Map"]},
    {[order: :none], [":order", "PartitionedBuffer.Queue"]},
    {[max_sise: 5, module: Counter], [":max_sise", "did you mean :max_size?"]},
    {[cluster: [slots: 0]], [":cluster", "slots: a power of 2 from 8 to 1024, got: 0"]},
    {[cluster: [nodes: 3]], [":cluster", "expected some of :slots", "got: :nodes"]},
    {[journal: [dir: 1]], [":journal", "dir: the path of a directory, as a string, got: 1"]},
    {[journal: [dir: "/tmp", max_bytes: 1]], [":journal", "max_bytes: an integer from 1048576", "got: 1"]},
    {[journal: [dir: "/tmp", fsync_ms: 1]], [":journal", ":sync_ms", "got: :fsync_ms"]}
  ]

  for {{options, parts}, number} <- Enum.with_index(@together) do
    test "together #{number}: #{inspect(options)}" do
      name = unique_name()
      base = [name: name, processor: &Function.identity/1, max_attempts: 3, module: Buffer]

      message =
        message(fn -> PartitionedBuffer.start_link(Keyword.merge(base, unquote(Macro.escape(options)))) end)

      for part <- [inspect(name) | unquote(parts)], do: assert(message =~ part)
    end
  end

  # Wrong calls, with parts of the sentence.
  defp calls(map) do
    [
      {fn -> Buffer.put(map, :key, 1, partition: 3) end, [":partition", "did you mean :partition_key?"]},
      {fn -> Buffer.put(map, :key, 1, [:partition_key]) end, ["a keyword list", "[:partition_key]"]},
      {fn -> Buffer.put_all(map, [:key]) end, [":key", "expected {key, value}"]},
      {fn -> Buffer.put_all(map, :key) end,
       [":key", "expected a map, or another enumerable of {key, value}"]},
      {fn -> Buffer.put_all(map, [{:key, 1, 2}]) end, ["{:key, 1, 2}", "expected {key, value}"]},
      {fn -> Buffer.put_all(map, [{:key, 1} | :rest]) end, [":rest", "expected a proper list"]},
      {fn -> Buffer.put_newer(map, :key, 1, :now) end, ["{:key, 1, :now}", "an integer version"]},
      {fn -> Buffer.put_newer(map, :key, 1, 1.0) end, ["{:key, 1, 1.0}", "an integer version"]},
      {fn -> Buffer.put_newer(map, :key, 1, 1, stale: :raise) end, [":stale", ":raise", "expected :error"]},
      {fn -> Buffer.put_all_newer(map, [{:key, 1}]) end, ["{:key, 1}", "expected {key, value, version}"]},
      {fn -> Buffer.put_all_newer(map, [{:key, 1, "1"}]) end, [~s({:key, 1, "1"}), "an integer version"]},
      {fn -> Buffer.get(map, :key, nil, timeout: 1) end, [":timeout", "the options are :partition_key"]},
      {fn -> Buffer.delete(map, :key, stale: :error) end, [":stale", "the options are :partition_key"]},
      {fn -> PartitionedBuffer.flush(map, timeout: -1) end,
       [":timeout", "-1", "(milliseconds) or :infinity"]},
      {fn -> PartitionedBuffer.flush(map, timeout: :forever) end, [":timeout", ":forever", ":infinity"]},
      {fn -> PartitionedBuffer.flush(map, async: 1) end, [":async", "got: 1", "a boolean"]},
      {fn -> PartitionedBuffer.flush(map, wait: true) end, [":wait", "the options are :timeout, :async"]},
      {fn -> PartitionedBuffer.stop(map, :normal, 5, leftovers: :drop) end,
       [":leftovers", ":drop", "expected :dead_letter or :keep"]},
      {fn -> PartitionedBuffer.stop(map, :normal, :soon) end, [":timeout", ":soon", ":infinity"]},
      {fn -> PartitionedBuffer.stop(map, :normal, 5, keep: true) end, [":keep", ":leftovers"]},
      {fn -> PartitionedBuffer.sync(map) end, ["sync/2 needs a journal", ":journal"]},
      {fn -> PartitionedBuffer.update_options(map, max_size: 0) end, [":max_size", "got: 0"]},
      {fn -> PartitionedBuffer.update_options(map, processor: &Function.identity/1) end,
       [":processor", "the options are"]},
      {fn -> PartitionedBuffer.update_options(map, partitions: 4) end, [":partitions", "the options are"]},
      {fn -> PartitionedBuffer.update_options(map, max_attempts: nil) end, [":max_attempts", "got: nil"]},
      {fn -> PartitionedBuffer.update_options(map, journal: [write_ms: 5]) end,
       [":journal", "was started without it"]},
      {fn -> PartitionedBuffer.update_options(map, cluster: [forward_ms: 5]) end,
       [":cluster", "was started without it"]},
      {fn -> PartitionedBuffer.update_options(map, %{max_size: 5}) end, ["a keyword list", "%{max_size: 5}"]},
      {fn -> PartitionedBuffer.update_options(map, max_sise: 5) end,
       [":max_sise", "did you mean :max_size?"]},
      {fn -> PartitionedBuffer.watch(map, interval_ms: 5) end, [":interval_ms", "did you mean :interval?"]},
      {fn -> PartitionedBuffer.watch(map, interval: :fast) end, [":interval", ":fast", "(milliseconds)"]},
      {fn -> PartitionedBuffer.watch(map, rounds: 0) end, [":rounds", "got: 0", "a positive integer"]},
      {fn -> Counter.add(map, :key, 1) end, ["running as a map", "for a counter"]},
      {fn -> Counter.add_all(map, [{:key, 1}]) end, ["running as a map", "for a counter"]},
      {fn -> Queue.push(map, :item) end, ["running as a map", "for a queue"]}
    ]
  end

  defp calls_of_a_counter(counter) do
    [
      {fn -> Counter.add(counter, :key, 1.5) end, ["1.5", "integer"]},
      {fn -> Counter.add(counter, :key, nil) end, ["nil", "integer"]},
      {fn -> Counter.add(counter, :key, 1, count: -1) end, ["{:key, 1, -1}", "an integer from 0"]},
      {fn -> Counter.add_all(counter, [{:key, "1"}]) end, [~s({:key, "1"}), "integer"]},
      {fn -> Counter.add_all(counter, key: 1, other: :one) end, ["{:other, :one}", "integer"]},
      {fn -> Counter.get(counter, :key, 0, version: true) end, [":version", "the options are"]}
    ]
  end

  defp calls_of_nothing(name) do
    for call <- [
          fn -> Buffer.put(name, 1, 1) end,
          fn -> Counter.get(name, 1) end,
          fn -> Queue.push(name, 1) end,
          fn -> PartitionedBuffer.info(name) end,
          fn -> PartitionedBuffer.flush(name) end,
          fn -> PartitionedBuffer.sync(name) end,
          fn -> PartitionedBuffer.update_options(name, max_size: 1) end,
          fn -> PartitionedBuffer.pause(name) end
        ],
        do: {call, ["it is not running"]}
  end

  for {kind, module} <- [calls: Buffer, calls_of_a_counter: Counter] do
    test "wrong #{kind} change nothing" do
      buffer = start_buffer(module: unquote(module), max_attempts: 3, processing_interval_ms: :infinity)
      check(buffer, unquote(kind)(buffer))
      assert PartitionedBuffer.buffer_size(buffer) == 0
    end
  end

  test "calls of a buffer that does not run" do
    name = unique_name()
    check(name, calls_of_nothing(name))
  end

  test "there are a hundred" do
    count = length(@start) + length(@together)
    assert count + length(calls(:a) ++ calls_of_a_counter(:a) ++ calls_of_nothing(:a)) >= 100
  end

  defp check(buffer, calls) do
    for {call, parts} <- calls do
      message = message(call)
      for part <- [inspect(buffer) | parts], do: assert(message =~ part)
    end
  end

  defp message(fun) do
    flunk("a mistake is taken: #{inspect(fun.())}")
  rescue
    error in ArgumentError -> Exception.message(error)
  end
end
