# What operations of buffers without a journal take, in nanoseconds of processor time an operation. bench/journal.exs runs
# this with each of two builds in turn, so it only uses what both have.
#
#     elixir --erl "+sbwt none" -pa BUILD/lib/partitioned_buffer/ebin bench/support/put_path.exs
#
# Prints a line for each operation: the times of its rounds.

Code.require_file("cpu.ex", __DIR__)

defmodule Bench.PutPath do
  alias Bench.Cpu
  alias PartitionedBuffer.{Counter, Queue}
  alias PartitionedBuffer.Map, as: Buffer

  @rounds 7
  @keys 100_000

  def main do
    ints = Enum.map(1..@keys, &{&1, &1})
    maps = Enum.map(1..@keys, &{&1, %{id: &1, name: "user", count: &1, active: true}})
    binaries = Enum.map(1..@keys, &{<<"user:", &1::64>>, <<&1::128>>})
    hot = Enum.map(maps, fn {_key, value} -> {:hot, value} end)
    lists = Enum.chunk_every(maps, 1_000)

    Buffer |> start() |> overwrite("put int→int", ints)
    Buffer |> start() |> overwrite("put int→map of 4", maps)
    Buffer |> start() |> overwrite("put binary 13→binary 16", binaries)
    Buffer |> start() |> overwrite("put one hot key→map of 4", hot)

    measure("put a new key, int→map of 4", Buffer, fn -> each_put(maps) end, &flush/0)
    measure("get int", Buffer, fn -> each_get(ints) end, &keep/0, fn -> each_put(ints) end)
    measure("put_newer that updates, int→map of 4", Buffer, &newer(maps, &1), &keep/0)
    measure("add to int", Counter, fn -> each_add(ints) end, &keep/0)
    measure("push int", Queue, fn -> each_push(ints) end, &flush/0)
    measure("put_all of 1000", Buffer, fn -> each_list(lists) end, &keep/0)
    flushes(maps)
  end

  defp start(module, opts \\ []) do
    options = [
      processor: fn _batch -> :ok end,
      max_attempts: :infinity,
      processing_interval_ms: :infinity,
      partitions: 1
    ]

    {:ok, _pid} = module.start_link([name: :path] ++ opts ++ options)
    module
  end

  defp overwrite(_module, name, entries) do
    each_put(entries)
    print(name, for(_round <- 1..@rounds, do: time(fn -> each_put(entries) end)))
    true = PartitionedBuffer.buffer_size(:path) == entries |> Enum.uniq_by(&elem(&1, 0)) |> length()
    :ok = PartitionedBuffer.stop(:path)
  end

  defp measure(name, module, run, between, before \\ &keep/0) do
    start(module)
    before.()
    [_first | times] = for round <- 0..@rounds, do: timed_round(run, round, between)
    print(name, times)
    :ok = PartitionedBuffer.stop(:path)
  end

  defp timed_round(run, round, between) do
    time = time(fn -> if is_function(run, 1), do: run.(round), else: run.() end)
    between.()
    time
  end

  # Processes work on it: all schedulers count.
  defp flushes(entries) do
    start(Buffer, processing_batch_size: 10)

    [_first | times] =
      for _round <- 0..@rounds do
        each_put(entries)
        time(&flush/0)
      end

    print("flush in batches of 10", times)
    :ok = PartitionedBuffer.stop(:path)
  end

  defp keep, do: :ok

  defp flush do
    :ok = PartitionedBuffer.flush(:path)
    0 = PartitionedBuffer.buffer_size(:path)
  end

  defp time(run) do
    :erlang.garbage_collect()
    {ns, _result} = Cpu.of(:schedulers, run)
    ns / @keys
  end

  defp print(name, times), do: IO.puts(Enum.join([name | times], "\t"))

  defp each_put([{key, value} | rest]) do
    Buffer.put(:path, key, value)
    each_put(rest)
  end

  defp each_put([]), do: :ok

  defp each_get([{key, _value} | rest]) do
    Buffer.get(:path, key)
    each_get(rest)
  end

  defp each_get([]), do: :ok

  defp newer([{key, value} | rest], version) do
    Buffer.put_newer(:path, key, value, version)
    newer(rest, version)
  end

  defp newer([], _version), do: :ok

  defp each_add([{key, _value} | rest]) do
    Counter.add(:path, key)
    each_add(rest)
  end

  defp each_add([]), do: :ok

  defp each_push([{item, _value} | rest]) do
    Queue.push(:path, item)
    each_push(rest)
  end

  defp each_push([]), do: :ok

  defp each_list([list | rest]) do
    Buffer.put_all(:path, list)
    each_list(rest)
  end

  defp each_list([]), do: :ok
end

Logger.configure(level: :error)
{:ok, _apps} = Application.ensure_all_started(:partitioned_buffer)
Bench.PutPath.main()
