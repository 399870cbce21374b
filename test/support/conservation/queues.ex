defmodule PartitionedBuffer.Conservation.Queues do
  @moduledoc false
  # Each writer pushes the items of a stream, and those of each partition in the order of their
  # numbers. So the next item of a stream in a partition is certain. Skipped items are lost, unless
  # they come later, out of order.
  #
  # A refused list may push the first items of each partition, an unknown number. The stream ends
  # with it, and the writer begins another.

  @behaviour PartitionedBuffer.Conservation.Kind

  alias PartitionedBuffer.Conservation.{Item, Kind, Ledger, RetriedQueues, Retries, Writer}
  alias PartitionedBuffer.Queue

  # The remainder of a stream's number by this is its writer. The last is for the lists that faults
  # push.
  @writers 16
  @lists @writers - 1

  @partition_count Item.partitions()
  @partitions 0..(@partition_count - 1)
  @list_size 10_000
  @backlog 1_000

  @impl Kind
  def buffer, do: Queue

  # With one partition, the items of all partitions keep their order as well.
  @impl Kind
  def partitions, do: [1, @partition_count]

  ## Writers

  # `streams` is the number of ended streams of this writer, and `ended` their items. `last` has the
  # last number of each partition in the present stream.
  @impl Kind
  def new, do: %{streams: 0, last: Map.new(@partitions, &{&1, 0}), ended: []}

  @impl Kind
  def written(%{number: writer, state: state}) when writer < @lists,
    do:
      state.ended ++ for({partition, last} <- state.last, do: {stream(writer, state), partition, last..last})

  @impl Kind
  def write_one(writer) do
    partition = any_partition()
    {[item], writer} = take(writer, [partition])
    Writer.single(writer, {:push, item}, option(partition))
  end

  # The NIF pushes short lists one by one and longer ones lock by lock, and returns the rest of the
  # longest.
  @impl Kind
  def write_many(%{state: before} = writer) do
    longest = Enum.random([1, 16, 16, 16, 16, 200, 200, 200, 200, 5_000])
    length = :rand.uniform(longest + 1) - 1
    partition = any_partition()
    option = option(partition)
    all_in_one? = option == [partition_key: Item.partition_key(partition)]
    partitions = for _ <- 1..length//1, do: if(all_in_one?, do: partition, else: any_partition())
    {items, writer} = take(writer, partitions)

    case writer.target.({:push, items}, option) do
      :ok -> Writer.done(writer, :push_list, length)
      :refused -> writer |> end_stream(before) |> Writer.count(:lists_cut_short)
    end
  end

  # The processor is slower than the writers. Without their waiting, flushes would be few, and very
  # long.
  @impl Kind
  def read(writer) do
    size = writer.target.(:size, [])
    writer = Writer.count(writer, :size)

    if is_integer(size) and size > @backlog do
      Process.sleep(1)
      read(writer)
    else
      writer
    end
  end

  @impl Kind
  def not_through(%{number: writer, state: state, accepted: accepted}) do
    for {partition, last} <- state.last,
        what = {stream(writer, state), partition, last},
        last > 0 and not Retries.through?(accepted.ledger, what),
        do: what
  end

  # The next items for these partitions.
  defp take(%{state: state} = writer, partitions) do
    stream = stream(writer.number, state)

    {items, last} =
      Enum.map_reduce(partitions, state.last, fn partition, last ->
        number = last[partition] + 1
        {Item.item(stream, partition, number), %{last | partition => number}}
      end)

    {items, %{writer | state: %{state | last: last}}}
  end

  defp end_stream(%{number: number, state: state} = writer, before) do
    ended =
      for {partition, last} <- state.last,
          do: {stream(number, state), partition, before.last[partition]..last}

    %{writer | state: %{new() | streams: state.streams + 1, ended: ended ++ state.ended}}
  end

  defp stream(writer, %{streams: streams}), do: stream(writer, streams)
  defp stream(writer, number), do: number * @writers + writer

  defp any_partition, do: Enum.random(@partitions)

  # The item, a function, an MFA or a term chooses the partition, the same one each time.
  defp option(partition) do
    case :rand.uniform(4) do
      1 -> []
      2 -> [partition_key: &Item.key/1]
      3 -> [partition_key: {:erlang, :phash2, []}]
      4 -> [partition_key: Item.partition_key(partition)]
    end
  end

  ## Calls

  @impl Kind
  def call(buffer, {:push, item_or_items}, opts), do: Queue.push(buffer, item_or_items, opts)
  def call(buffer, :size, []), do: Queue.size(buffer)
  def call(buffer, :flush, opts), do: Queue.flush(buffer, opts)

  @impl Kind
  def call_design(design, handle, {:push, items}) when is_list(items),
    do: Enum.each(items, &call_design(design, handle, {:push, &1}))

  def call_design(design, handle, {:push, item}), do: design.push(handle, Item.key(item), item) && :ok
  def call_design(design, handle, :size), do: design.size(handle)

  @impl Kind
  def list(number) do
    numbers = 1..div(@list_size, @partition_count)
    stream = stream(@lists, number)
    {:push, for(number <- numbers, partition <- @partitions, do: Item.item(stream, partition, number))}
  end

  @impl Kind
  def code(number, value), do: {:push, {:code, number, value}}

  @impl Kind
  def code_waits?(_buffer, number, ledger), do: not Ledger.code_came?(ledger, number)

  ## The ledger

  @doc """
  Of a stream of lists, by its number: the stream and the number of its items in each partition.
  """
  def list_stream(number), do: {stream(@lists, number), div(@list_size, @partition_count)}

  @doc "Checks the streams of a list in each partition. A list that was cut short may be there in part."
  def check_list(number, outcome, ledger, check) do
    {stream, size} = list_stream(number)
    written = if outcome == :done, do: size..size, else: 0..size
    ledger = Enum.reduce(0..(Item.partitions() - 1), ledger, &check.({stream, &1, written}, &2))
    Ledger.count(ledger, if(outcome == :done, do: :lists_done, else: :lists_cut_short))
  end

  @doc "Whether the streams of a writer come one after the other: those of the lists have no order."
  def ordered?(stream), do: rem(stream, @writers) != @lists

  @doc "The writer of a stream."
  def writer(stream), do: rem(stream, @writers)

  @impl Kind
  def retried, do: RetriedQueues

  @impl Kind
  def entries(table), do: for({:entry, {:key, _time, _ref}, item, 0, 0} <- :ets.tab2list(table), do: item)

  @impl Kind
  def entry({:code, number, value}, _from, ledger), do: Ledger.code(ledger, number, value)

  def entry(item, {partition, partition_count, overlapping?}, ledger) do
    case Item.read(item) do
      {stream, own, number} when partition == own or partition_count != @partition_count ->
        ledger |> check_stream(stream, own) |> check_number({stream, own}, number, overlapping?)

      {_stream, _own, _number} ->
        Ledger.violation(ledger, :wrong_partition, {item, partition})

      :error ->
        Ledger.violation(ledger, :wrong, item)
    end
  end

  # The streams of a writer come one after the other. Those of the lists have no order.
  defp check_stream(ledger, stream, _partition) when rem(stream, @writers) == @lists, do: ledger

  defp check_stream(ledger, stream, partition) do
    key = {:stream, rem(stream, @writers), partition}
    {last, _windows} = Ledger.seen(ledger, key)
    if stream > last, do: Ledger.see(ledger, key, stream)

    if stream < last,
      do: Ledger.violation(ledger, :out_of_order, {stream, partition, last}),
      else: ledger
  end

  # Skipped numbers are noted, with whether a window excuses them if they never come.
  defp check_number(ledger, {stream, partition} = key, number, overlapping?) do
    {last, windows} = Ledger.seen(ledger, key)

    cond do
      number > last ->
        excused? = ledger.windows > windows
        skipped = for number <- (last + 1)..(number - 1)//1, do: {{:skipped, key, number}, excused?}
        :ets.insert(ledger.seen, skipped)
        Ledger.see(ledger, key, number)
        ledger

      :ets.take(ledger.seen, {:skipped, key, number}) == [] ->
        Ledger.violation(ledger, :again, {stream, partition, number, last})

      overlapping? ->
        ledger

      true ->
        Ledger.violation(ledger, :out_of_order, {stream, partition, number, last})
    end
  end

  @impl Kind
  def check({:list, number, outcome}, ledger) do
    stream = stream(@lists, number)
    size = div(@list_size, @partition_count)
    written = if outcome == :done, do: size..size, else: 0..size
    ledger = Enum.reduce(@partitions, ledger, &check({stream, &1, written}, &2))
    come = for partition <- @partitions, do: elem(Ledger.seen(ledger, {stream, partition}), 0)

    cond do
      outcome == :done -> Ledger.count(ledger, :lists_done)
      Enum.sum(come) in [0, @list_size] -> Ledger.count(ledger, :lists_none_or_all)
      true -> Ledger.count(ledger, :lists_cut_short)
    end
  end

  # The number of pushed items is a range, since a refused list may be pushed in part.
  def check({stream, partition, written}, ledger) do
    {last, windows} = Ledger.seen(ledger, {stream, partition})
    ledger = check_skipped(ledger, stream, partition)
    what = {stream, partition, last, written}

    cond do
      last > written.last -> Ledger.violation(ledger, :never_written, what)
      last >= written.first -> ledger
      true -> Ledger.missing(ledger, written.first - last, what, ledger.windows > windows)
    end
  end

  defp check_skipped(ledger, stream, partition) do
    ledger.seen
    |> :ets.match({{:skipped, {stream, partition}, :"$1"}, :"$2"})
    |> Enum.reduce(ledger, fn [number, excused?], ledger ->
      Ledger.missing(ledger, 1, {stream, partition, number}, excused?)
    end)
  end
end
