defmodule PartitionedBuffer.JournalLoop.Life do
  @moduledoc false
  # The life of a VM of a round: it starts the buffer, which replays, writes until it is killed, and notes
  # each write before and after the call:
  #
  #     {:begin, number, time, operations}
  #     {:end, number, time}
  #     {:sync, level, time before, result}
  #
  # The operations are `{:put, key, value}`, `{:delete, key, number}`, `{:add, key, bit}` and
  # `{:push, item}`. A key or an item has its writer, and no other writes to it, so the order of its
  # operations is that of the notes. A counter has sums of powers of 2: the sum shows which additions
  # it has.

  import PartitionedBuffer.OtherVM, only: [say: 1]

  alias PartitionedBuffer.JournalLoop.{Ledger, Sink}

  @buffer :journaled

  # A sum of 64 bits has so many powers of 2 as positive amounts.
  @bits 62

  def buffer, do: @buffer

  @doc "Lives until it is killed."
  def run(plan, life) do
    start(plan, life)
    say({:running, PartitionedBuffer.info(@buffer).journal.replayed})
    for writer <- 1..plan.writers, do: spawn_link(fn -> write(plan, life, writer) end)
    spawn_link(fn -> flush(plan) end)
    Process.sleep(:infinity)
  end

  @doc "Delivers all that is left, and stops."
  def finish(plan, life) do
    options = Keyword.put(plan.options, :processing_batch_size, 1_000)
    start(%{plan | sink: :works, options: options}, life)
    replayed = PartitionedBuffer.info(@buffer).journal.replayed
    deliver()
    :ok = PartitionedBuffer.stop(@buffer)
    say({:finished, replayed})
  end

  defp deliver do
    PartitionedBuffer.flush(@buffer, timeout: 30_000)
    if PartitionedBuffer.buffer_size(@buffer) + PartitionedBuffer.info(@buffer).in_flight > 0, do: deliver()
  end

  defp start(plan, life) do
    :logger.set_primary_config(:level, :none)
    {:ok, _started} = Application.ensure_all_started(:partitioned_buffer)
    :rand.seed(:exsss, {plan.seed, life.number, 7})
    killer = Port.open({:spawn, "sh -c 'read word && kill -9 #{System.pid()}'"}, [:binary])
    common = Map.merge(Map.take(plan, [:kind, :routing, :sink, :ledger]), life)
    Sink.start(Map.put(common, :killer, killer))

    {:ok, _pid} =
      PartitionedBuffer.start_link(
        [
          name: @buffer,
          module: Module.concat(PartitionedBuffer, plan.kind |> Atom.to_string() |> String.capitalize()),
          partitions: life.partitions,
          processor: {Sink, :store, []},
          dead_letter: {Sink, :bury, []},
          journal: [dir: plan.dir] ++ plan.journal
        ] ++ plan.options
      )
  end

  # A flush at any time.
  defp flush(plan) do
    Process.sleep(:rand.uniform(200))
    if plan.options[:processing_interval_ms] != 20, do: PartitionedBuffer.flush(@buffer, timeout: 50)
    flush(plan)
  end

  ## Writers

  defp write(plan, life, writer) do
    :rand.seed(:exsss, {plan.seed, life.number, writer})
    file = Ledger.open!(plan.ledger, "writes-#{life.number}-#{writer}")
    write(plan, {writer, life.number * 1_000_000_000, %{}}, file, 1)
  end

  defp write(plan, state, file, number) do
    {operations, state} = operations(plan, state)
    Ledger.note(file, {:begin, number, Ledger.now(), operations})
    :ok = apply_operations(plan, operations)
    Ledger.note(file, {:end, number, Ledger.now()})
    if :rand.uniform(500) == 1, do: sync(file)
    if plan.rest_ms > 0 and rem(number, 20) == 0, do: Process.sleep(plan.rest_ms)
    write(plan, state, file, number + 1)
  end

  defp sync(file) do
    {level, before} = {Enum.random([:written, :synced]), Ledger.now()}
    Ledger.note(file, {:sync, level, before, PartitionedBuffer.sync(@buffer, level: level)})
  end

  defp operations(plan, state) do
    case :rand.uniform(10) do
      1 when plan.deletes? and plan.kind != :queue ->
        single(&delete/2, plan, state)

      few when few <= 3 ->
        Enum.map_reduce(1..:rand.uniform(20), state, fn _n, state -> operation(plan, state) end)

      _many ->
        single(&operation/2, plan, state)
    end
  end

  defp single(fun, plan, state) do
    {operation, state} = fun.(plan, state)
    {[operation], state}
  end

  defp delete(%{kind: :map} = plan, {writer, number, used}),
    do: {{:delete, key(plan, writer), number}, {writer, number + 1, used}}

  # The next addition is to a new key.
  defp delete(%{kind: :counter} = plan, {writer, number, used} = state) do
    case Map.pop(used, key(plan, writer)) do
      {nil, _used} -> operation(plan, state)
      {{own, _bit}, used} -> {{:delete, own, number}, {writer, number + 1, used}}
    end
  end

  defp operation(%{kind: :map} = plan, {writer, number, used}),
    do: {{:put, key(plan, writer), value(number, plan.value_bytes)}, {writer, number + 1, used}}

  defp operation(%{kind: :queue} = plan, {writer, number, used}),
    do: {{:push, Tuple.insert_at(value(number, plan.value_bytes), 0, writer)}, {writer, number + 1, used}}

  defp operation(%{kind: :counter} = plan, {writer, number, used}) do
    key = key(plan, writer)

    {own, bit} =
      case used do
        %{^key => {own, bit}} when bit < @bits -> {own, bit}
        _new -> {{writer, number}, 0}
      end

    {{:add, own, bit}, {writer, number + 1, Map.put(used, key, {own, bit + 1})}}
  end

  # Half of the writes are to few keys.
  defp key(plan, writer), do: {writer, :rand.uniform(if :rand.uniform(2) == 1, do: 3, else: plan.keys)}

  @doc "The value of a number: nobody else writes it."
  def value(number, bytes), do: {number, :binary.copy(<<number::64>>, div(rem(number * 7, bytes) + 8, 8))}

  defp apply_operations(%{kind: :map}, [{:delete, key, _number}]),
    do: PartitionedBuffer.Map.delete(@buffer, key)

  defp apply_operations(%{kind: :counter}, [{:delete, key, _number}]),
    do: PartitionedBuffer.Counter.delete(@buffer, key)

  defp apply_operations(%{kind: :map, writes: :put}, [{:put, key, value}]),
    do: PartitionedBuffer.Map.put(@buffer, key, value)

  defp apply_operations(%{kind: :map, writes: :put}, operations),
    do: PartitionedBuffer.Map.put_all(@buffer, for({:put, key, value} <- operations, do: {key, value}))

  defp apply_operations(%{kind: :map} = plan, operations) do
    entries =
      for {:put, key, {number, _bytes} = value} <- operations, do: {key, value, plan.version_base + number}

    case entries do
      [{key, value, version}] -> PartitionedBuffer.Map.put_newer(@buffer, key, value, version)
      entries -> PartitionedBuffer.Map.put_all_newer(@buffer, entries)
    end
  end

  defp apply_operations(%{kind: :counter}, [{:add, key, bit}]),
    do: PartitionedBuffer.Counter.add(@buffer, key, 2 ** bit)

  defp apply_operations(%{kind: :counter}, operations),
    do: PartitionedBuffer.Counter.add_all(@buffer, for({:add, key, bit} <- operations, do: {key, 2 ** bit}))

  defp apply_operations(%{kind: :queue} = plan, operations) do
    items =
      case for {:push, item} <- operations, do: item do
        [item] -> item
        items -> items
      end

    options = if plan.routing == :by_writer, do: [partition_key: &elem(&1, 0)], else: []
    PartitionedBuffer.Queue.push(@buffer, items, options)
  end
end
