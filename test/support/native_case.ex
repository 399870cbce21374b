defmodule PartitionedBuffer.NativeCase do
  @moduledoc false
  # The common parts of the tests of the NIFs: buffers without processes, and all their contents.

  use ExUnit.CaseTemplate

  import PartitionedBuffer.Case

  alias PartitionedBuffer.Native

  using do
    quote do
      import PartitionedBuffer.Case
      import PartitionedBuffer.NativeCase
      alias PartitionedBuffer.Map, as: Buffer
      alias PartitionedBuffer.Native
    end
  end

  @doc """
  A map with a flush, waiting entries, a process and terms, a queue, a counter, and the map's flush.
  """
  def opened(max_size \\ :infinity) do
    buffer = unique_name()
    Native.open(queue(buffer), :queue, 1, false, true, :any, {max_size, :infinity})
    Native.push_all(queue(buffer), nil, [:first, :second], true)
    Native.open(counter(buffer), :counter, 1, false, true, :any, {max_size, :infinity})
    Native.add(counter(buffer), nil, :key, 7)
    Native.open(buffer, :map, 1, false, true, :any, {max_size, :infinity})
    Native.put_options(run(buffer), 0, :options, :functions)
    Native.put_error(run(buffer), :error)
    Native.register(run(buffer), 0, :server)
    Native.set_tasks(run(buffer), 0, self())
    Native.put(buffer, nil, :flushed, 1)
    {:fresh, flush} = Native.flush(run(buffer), 0)
    Native.put(buffer, nil, :key, :value)
    Native.put_newer(buffer, nil, :versioned, :newest, 6)
    Native.put_newer(buffer, nil, :versioned, :newer, 7)
    {buffer, flush}
  end

  def queue(buffer), do: :"#{buffer}_queue"
  def counter(buffer), do: :"#{buffer}_counter"

  @doc "All visible contents of the buffers of `opened/1`."
  def held(buffer, flush) do
    of_buffers =
      for name <- [buffer, queue(buffer), counter(buffer)] do
        run = run(name)
        {info, _age, writes, ended, now} = Native.info(run, 0)
        processes = for role <- [:server, :tasks, :task], do: Native.process(run, 0, role)
        whole = for role <- [:room, :drainer], do: Native.process(run, role, role)
        terms = {Native.options(run), Native.functions(run), Native.last_error(run)}
        counts = {Native.partition_count(name), Native.size(name), Native.bound(name), Native.learned(run, 0)}
        {run, Native.status(name), info, writes, ended, now, processes, whole, terms, counts}
      end

    %{
      buffers: of_buffers,
      sums: for(key <- [:key, :other, 1, 2], do: Native.sum(counter(buffer), nil, key)),
      entries: for(key <- [:key, :versioned, :other, 1, 2], do: Native.get(buffer, nil, key)),
      seen: Native.seen(flush),
      flushed: Native.read(flush, 0, 10, false)
    }
  end

  @doc """
  The entries of the next flush of the first partition, which is claimed; in a map and a counter
  sorted.
  """
  def take(buffer) do
    {_kind, flush} = Native.flush(run(buffer), 0)
    {entries, _count, true} = Native.read(flush, 0, 100, false)
    true = Native.claim(flush)
    if match?({:queue, _count}, Native.status(buffer)), do: entries, else: Enum.sort(entries)
  end

  @doc "The result of a NIF, or `:badarg` if it raises an ArgumentError."
  def call(name, args) do
    apply(Native, name, args)
  rescue
    ArgumentError -> :badarg
  end

  @doc "A process that opens a buffer, which runs until `kill_owner/2`."
  def open_elsewhere(name, kind, partition_count, outcomes? \\ false) do
    test = self()

    owner =
      spawn(fn ->
        send(
          test,
          {:opened, self(),
           Native.open(name, kind, partition_count, outcomes?, true, :any, {:infinity, :infinity})}
        )

        receive(do: (:never -> :ok))
      end)

    assert_receive {:opened, ^owner, run}
    {owner, run}
  end

  @doc "Kills the process that opened a buffer, and waits until that run is over."
  def kill_owner(name, owner) do
    Process.exit(owner, :kill)
    await_status(name, :not_running)
  end

  @doc "Waits until the library noticed the death of a process, which it does not report."
  def await_status(name, status), do: Native.status(name) == status || await_status(name, status)
end
