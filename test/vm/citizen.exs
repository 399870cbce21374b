# citizen_test.exs runs this in a VM of its own: operations of every kind, flushes, failures and restarts, after which there
# must be no new atoms and persistent terms. Arguments: rounds, seed.
alias PartitionedBuffer.Map, as: Buffer
alias PartitionedBuffer.Queue

defmodule Citizen do
  @moduledoc false

  import PartitionedBuffer.Case, only: [flush: 1, kill_and_await_restart: 1]

  @keys 200

  # Maps and queues, in batches and in tables.
  @buffers [map_tens: 10, map_tables: :table, queue_tens: 10, queue_tables: :table]

  defp start(name, batch_size) do
    {:ok, _pid} =
      PartitionedBuffer.start_link(
        module: if(queue?(name), do: Queue, else: Buffer),
        name: name,
        processor: {__MODULE__, :process, []},
        partitions: 2,
        processing_interval_ms: 86_400_000,
        processing_batch_size: batch_size
      )
  end

  defp queue?(name), do: name in [:queue_tens, :queue_tables]

  # Some batches fail, in all ways.
  def process(batch) do
    case :rand.uniform(20) do
      1 -> raise "as it was told to"
      2 -> exit(:as_it_was_told_to)
      3 -> throw(batch)
      4 -> Process.exit(self(), :kill)
      _well -> :ok
    end
  end

  # Does every operation ten times, and each that raises once; returns how many there were.
  defp operate(name) do
    operations = if queue?(name), do: queue_operations(name), else: map_operations(name)
    raising = if queue?(name), do: [fn -> Queue.push(:never_started, 1) end], else: raising(name)
    for _ <- 1..10, do: Enum.each(operations, & &1.())
    Enum.each(raising, &raised/1)
    10 * length(operations) + length(raising)
  end

  defp queue_operations(name) do
    [
      fn -> Queue.push(name, value()) end,
      fn -> Queue.push(name, {key(), value()}, partition_key: key()) end,
      fn -> Queue.push(name, for(_ <- 1..10, do: value())) end,
      fn -> Queue.push(name, for(_ <- 1..10, do: value()), partition_key: & &1) end,
      fn -> Queue.size(name) end,
      fn -> Queue.update_options(name, processing_timeout_ms: 60_000) end
    ]
  end

  defp map_operations(name) do
    [
      fn -> Buffer.put(name, key(), value()) end,
      fn -> Buffer.put(name, key(), value(), partition_key: key()) end,
      fn -> Buffer.put(name, key(), value(), partition_key: &:erlang.phash2/1) end,
      fn -> Buffer.put(name, key(), value(), partition_key: {:erlang, :phash2, []}) end,
      fn -> Buffer.put_newer(name, key(), value(), version()) end,
      fn -> Buffer.put_newer(name, key(), value(), version(), partition_key: key()) end,
      fn -> Buffer.put_all(name, for(_ <- 1..10, do: {key(), value()})) end,
      fn -> Buffer.put_all(name, %{key() => value()}) end,
      fn -> Buffer.put_all(name, [{key(), value()}], partition_key: & &1) end,
      fn -> Buffer.put_all_newer(name, for(_ <- 1..10, do: {key(), value(), version()})) end,
      fn -> Buffer.put_all_newer(name, [{key(), value(), version()}], partition_key: & &1) end,
      fn -> Buffer.get(name, key()) end,
      fn -> Buffer.get(name, key(), :none, partition_key: key()) end,
      fn -> Buffer.delete(name, key()) end,
      fn -> Buffer.delete(name, key(), partition_key: key()) end,
      fn -> Buffer.size(name) end,
      fn -> Buffer.update_options(name, processing_timeout_ms: 60_000) end,
      fn -> PartitionedBuffer.get_partition(name, nil, key()) end,
      fn -> PartitionedBuffer.memory() end
    ]
  end

  defp raising(name) do
    [
      fn -> Buffer.put_all(name, [:bad]) end,
      fn -> Buffer.put_newer(name, 1, 1, 1.5) end,
      fn -> Buffer.put(name, 1, 1, unknown: 1) end,
      fn -> Buffer.update_options(name, processing_batch_size: 0) end,
      fn -> Buffer.put(:never_started, 1, 1) end
    ]
  end

  # Writes long lists, kills processes of the buffer, and stops it.
  defp restart(name) do
    write_long_lists(name)
    kill_and_await_restart(:"Elixir.#{name}.0")
    kill_and_await_restart(PartitionedBuffer.Native.process(PartitionedBuffer.Native.run(name), 1, :tasks))
    PartitionedBuffer.stop(name)
  end

  defp write_long_lists(name) do
    if queue?(name) do
      Queue.push(name, Enum.to_list(1..5_000))
    else
      Buffer.put_all(name, for(n <- 1..5_000, do: {n, n}))
      Buffer.put_all_newer(name, for(n <- 1..5_000, do: {n, n, n}))
    end
  end

  # Returns how many operations and flushes there were. A restart follows every twentieth round.
  def run(rounds) do
    for round <- 1..rounds, {name, size} <- @buffers, reduce: {0, 0} do
      {operations, flushes} ->
        if rem(round, 20) == 1, do: start(name, size)
        operated = operate(name)
        flush(name)
        if rem(round, 20) == 0, do: restart(name)
        {operations + operated, flushes + 1}
    end
  end

  defp raised(function) do
    function.()
  rescue
    error in ArgumentError -> Exception.message(error)
  else
    _result -> raise "it should have raised"
  end

  defp key do
    n = :rand.uniform(@keys)
    Enum.random([n, n / 1, {:user, n}, "user #{n}", [n], %{n => n}])
  end

  defp value,
    do: Enum.random([1, nil, "text", {self(), make_ref()}, &self/0, :binary.copy("x", 100), [1, %{a: 1.5}]])

  defp version, do: Enum.random([-1, 1, 2, Integer.pow(2, 70), -Integer.pow(2, 70)])

  ## Persistent terms: a trace sees who writes one.

  def trace do
    me = self()
    tracer = spawn_link(fn -> collect(me, []) end)
    for function <- [:put, :erase], do: :erlang.trace_pattern({:persistent_term, function, :_}, true, [])
    :erlang.trace(:all, true, [:call, {:tracer, tracer}])
    tracer
  end

  # The writes since the last call.
  def traced(tracer) do
    delivered = :erlang.trace_delivered(:all)
    receive do: ({:trace_delivered, :all, ^delivered} -> :ok)
    send(tracer, :tell)
    receive do: ({^tracer, calls} -> calls)
  end

  defp collect(to, calls) do
    receive do
      {:trace, _pid, :call, {:persistent_term, function, arguments}} ->
        collect(to, [{function, arguments} | calls])

      :tell ->
        send(to, {self(), calls}) && collect(to, [])
    end
  end
end

[rounds, seed] = Enum.map(System.argv(), &String.to_integer/1)
:rand.seed(:exsss, seed)
Logger.configure(level: :none)
Process.flag(:trap_exit, true)

# The first rounds load all modules, and make the atoms of all names.
Citizen.run(20)
tracer = Citizen.trace()

before = {:persistent_term.info(), Map.new(:persistent_term.get())}
atoms = :erlang.system_info(:atom_count)
{operations, flushes} = Citizen.run(rounds)
atoms_then = :erlang.system_info(:atom_count)
{_info, terms} = before

atoms_then == atoms ||
  raise "#{atoms_then - atoms} atoms were made by #{operations} operations, #{flushes} flushes"

# A buffer that starts writes the same persistent term as the one before, which changes nothing.
rewriting =
  Enum.reject(Citizen.traced(tracer), fn
    {:put, [key, value]} -> :erlang.map_get(key, terms) === value
    _erase -> false
  end)

rewriting == [] || raise "persistent terms were written in use: #{inspect(rewriting)}"

before == {:persistent_term.info(), Map.new(:persistent_term.get())} ||
  raise "persistent terms are others than before"

# The trace and the count would have shown a write and an atom.
:persistent_term.put(:seen, 1)
:persistent_term.erase(:seen)
[erase: [:seen], put: [:seen, 1]] = Citizen.traced(tracer)
_atom = :"#{System.unique_integer()}"
^atoms_then = :erlang.system_info(:atom_count) - 1

IO.puts("#{operations} operations, #{flushes} flushes, seed #{seed}: as it should be")
