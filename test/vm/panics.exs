# panic_test.exs runs this in a VM of its own, with a library in which one of so many copies panics: random operations on a
# map and on a model. After a panic the keys of the operation may be as before or as after it. Arguments: steps, seed.
defmodule Panics do
  alias PartitionedBuffer.Map, as: Buffer
  alias PartitionedBuffer.{Native, Queue}

  @keys 300

  def run(steps, model) do
    Enum.reduce(1..steps, {model, 0}, fn step, {model, panics} ->
      {operation, changes} = operation(:rand.uniform(10), step, model)

      try do
        operation.()
        {Map.merge(model, changes), panics}
      rescue
        error in ErlangError ->
          %ErlangError{original: :nif_panicked} = error
          {Map.merge(model, changes, fn _key, before, later -> Enum.uniq(before ++ later) end), panics + 1}
      end
    end)
  end

  # An operation, and the possible states of its keys after it: a list of `nil` and `{value, version, updates}`.
  defp operation(kind, step, _model) when kind <= 5 do
    key = key()
    value = value(step)
    {fn -> Buffer.put(:panics, key, value) end, %{key => [{value, 0, 0}]}}
  end

  defp operation(kind, step, model) when kind <= 7 do
    key = key()
    value = value(step)
    # A version beyond 64 bits is copied as well.
    version = Integer.pow(2, 64) + step
    newer = for state <- model[key], do: replaced(state, value, version)
    {fn -> Buffer.put_newer(:panics, key, value, version) end, %{key => newer}}
  end

  defp operation(8, step, _model) do
    entries = for key <- Enum.take_random(keys(), 50), do: {key, value(step)}
    states = for {key, value} <- entries, into: %{}, do: {key, [{value, 0, 0}]}
    {fn -> Buffer.put_all(:panics, entries) end, states}
  end

  defp operation(9, _step, _model) do
    key = key()
    {fn -> Buffer.delete(:panics, key) end, %{key => [nil]}}
  end

  defp operation(10, _step, model) do
    key = key()

    check = fn ->
      value = Buffer.get(:panics, key)
      value in Enum.map(model[key], &(&1 && elem(&1, 0))) || raise "#{inspect(key)} is #{inspect(value)}"
    end

    {check, %{}}
  end

  defp replaced(nil, value, version), do: {value, version, 0}
  defp replaced({_value, _version, updates}, value, version), do: {value, version, updates + 1}

  # Pushes increasing items, in lists and alone; returns those that were acknowledged, and how many panics there were.
  def push(rounds) do
    pushes =
      for round <- 1..rounds do
        items = for n <- 1..:rand.uniform(40), do: {round, n, :binary.copy(<<n>>, 70)}
        if rem(round, 2) == 0, do: [items], else: items
      end

    Enum.reduce(Enum.concat(pushes), {[], 0}, fn item_or_items, {acknowledged, panics} ->
      try do
        :ok = Queue.push(:queue_panics, item_or_items)
        {List.wrap(item_or_items) ++ acknowledged, panics}
      rescue
        error in ErlangError ->
          %ErlangError{original: :nif_panicked} = error
          {acknowledged, panics + 1}
      end
    end)
  end

  # The entries that both partitions of the map flush, by key.
  def flush_map do
    for partition <- 0..1, {key, value, version, updates} <- flush(:panics, partition), into: %{} do
      {key, {value, version, updates}}
    end
  end

  def flush(buffer, partition) do
    case Native.flush(Native.run(buffer), partition) do
      :empty -> []
      {_kind, flush} -> read(flush, 0)
    end
  end

  defp read(flush, length) do
    case Native.read(flush, length, 1_000_000, false) do
      {entries, _length, true} ->
        Native.claim(flush)
        entries

      {entries, length, false} ->
        entries ++ read(flush, length)
    end
  end

  def keys, do: for(n <- 1..@keys, do: {:key, n})
  defp key, do: {:key, :rand.uniform(@keys)}
  defp value(step), do: {step, :binary.copy(<<step::32>>, 30), Enum.to_list(1..rem(step, 50))}
end

alias PartitionedBuffer.Map, as: Buffer

[steps, seed] = Enum.map(System.argv(), &String.to_integer/1)
:rand.seed(:exsss, seed)

{:ok, _pid} =
  Buffer.start_link(
    name: :panics,
    processor: fn _ -> :ok end,
    partitions: 2,
    processing_interval_ms: 86_400_000
  )

{:ok, _pid} =
  PartitionedBuffer.Queue.start_link(
    name: :queue_panics,
    processor: fn _ -> :ok end,
    partitions: 1,
    processing_interval_ms: 86_400_000
  )

none = Map.new(Panics.keys(), &{&1, [nil]})

panics =
  for _round <- 1..10, reduce: 0 do
    panics ->
      {model, more} = Panics.run(div(steps, 10), none)

      entries = Panics.flush_map()

      for {key, states} <- model, entries[key] not in states do
        raise "#{inspect(key)} was flushed as #{inspect(entries[key])}, expected one of #{inspect(states)}"
      end

      # A list may have been pushed up to a panic. All items are in order.
      {acknowledged, more_of_queue} = Panics.push(div(steps, 100))
      items = Panics.flush(:queue_panics, 0)
      [] = acknowledged -- items
      ^items = Enum.sort(items)
      ^items = Enum.uniq(items)

      PartitionedBuffer.Native.await_reclaimed()
      %{environments: 0} = PartitionedBuffer.memory()
      panics + more + more_of_queue
  end

IO.puts("#{steps} operations, #{panics} panics, seed #{seed}: all as it should be")
