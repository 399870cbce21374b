defmodule PartitionedBuffer.Conservation.Queues do
  @moduledoc false
  # Each writer pushes the items of a stream, those of each partition in the order of their numbers. So of each stream the
  # next item of a partition is known: what is skipped is lost, unless it comes later, out of order.
  #
  # A push of a list that raises because the buffer is not running has pushed of each partition the first items, nobody
  # knows how many. The stream ends with it, and the writer's next one begins.

  @behaviour PartitionedBuffer.Conservation.Kind

  alias PartitionedBuffer.Conservation.{Item, Kind, Ledger, Writer}
  alias PartitionedBuffer.Queue

  # The writer of a stream is what is left over by this; the last is of the lists that are written by processes of their own.
  @writers 16
  @lists @writers - 1

  @count Item.partitions()
  @partitions 0..(@count - 1)
  @list_size 10_000
  @backlog 1_000

  @impl Kind
  def buffer, do: Queue

  # In one partition all items have an order as well.
  @impl Kind
  def partitions, do: [1, Item.partitions()]

  ## Writers

  # How many streams there have been before, the last numbers of this one, what was written of the others.
  @impl Kind
  def new, do: {0, Map.new(@partitions, &{&1, 0}), []}

  @impl Kind
  def written(%{number: writer, state: {stream, numbers, cut_short}}) when writer < @lists,
    do: cut_short ++ for({partition, last} <- numbers, do: {stream(writer, stream), partition, last..last})

  @impl Kind
  def write_one(writer) do
    partition = any_partition()
    {[item], state} = take(writer, [partition])
    %{Writer.single(writer, {:push, item}, option(partition)) | state: state}
  end

  # Some are written one by one by the NIF, others by their locks, and of the longest it returns the rest.
  @impl Kind
  def write_many(writer) do
    longest = Enum.random([1, 16, 16, 16, 16, 200, 200, 200, 200, 5_000])
    length = :rand.uniform(longest + 1) - 1
    partition = any_partition()
    option = option(partition)
    all_of_one? = option == [partition_key: Item.partition_key(partition)]
    places = for _ <- 1..length//1, do: if(all_of_one?, do: partition, else: any_partition())
    {items, {stream, numbers, cut_short} = state} = take(writer, places)

    case writer.target.({:push, items}, option) do
      :ok ->
        Writer.done(%{writer | state: state}, :push_list, length)

      :refused ->
        {_stream, before, _cut_short} = writer.state

        ended =
          for {partition, last} <- numbers,
              do: {stream(writer.number, stream), partition, before[partition]..last}

        {_zero, none, []} = new()
        Writer.count(%{writer | state: {stream + 1, none, ended ++ cut_short}}, :lists_cut_short)
    end
  end

  # The processor is slower than the writers: without waiting for it there would be few flushes, of very many items.
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

  # The next items for these partitions.
  defp take(%{number: writer, state: {stream, numbers, cut_short}}, partitions) do
    {items, numbers} =
      Enum.map_reduce(partitions, numbers, fn partition, numbers ->
        number = numbers[partition] + 1
        {Item.item(stream(writer, stream), partition, number), %{numbers | partition => number}}
      end)

    {items, {stream, numbers, cut_short}}
  end

  defp stream(writer, number), do: number * @writers + writer

  defp any_partition, do: Enum.random(@partitions)

  # How the partition is chosen, the same by each: by the item, a function of it, an MFA, a term.
  defp option(partition) do
    case :rand.uniform(4) do
      1 -> []
      2 -> [partition_key: &Item.key/1]
      3 -> [partition_key: {:erlang, :phash2, []}]
      4 -> [partition_key: Item.partition_key(partition)]
    end
  end

  ## What is written to

  @impl Kind
  def call(buffer, {:push, item_or_items}, opts), do: Queue.push(buffer, item_or_items, opts)
  def call(buffer, :size, []), do: Queue.size(buffer)

  @impl Kind
  def call_design(design, handle, {:push, items}) when is_list(items),
    do: Enum.each(items, &call_design(design, handle, {:push, &1}))

  def call_design(design, handle, {:push, item}), do: design.push(handle, Item.key(item), item) && :ok
  def call_design(design, handle, :size), do: design.size(handle)

  ## Faults

  @impl Kind
  def list(number) do
    for place <- 1..div(@list_size, Item.partitions()),
        partition <- @partitions,
        do: Item.item(stream(@lists, number), partition, place)
  end

  @impl Kind
  def write_list(buffer, list), do: Queue.push(buffer, list)

  @impl Kind
  def written_list(number, outcome), do: {:list, stream(@lists, number), outcome}

  @impl Kind
  def write_code(buffer, number, value), do: Queue.push(buffer, {:code, number, value})

  @impl Kind
  def code_waits?(_buffer, number, ledger), do: not Ledger.code_came?(ledger, number)

  ## The ledger

  @impl Kind
  def entries(table), do: for({:entry, {:key, _time, _ref}, item, 0, 0} <- :ets.tab2list(table), do: item)

  @impl Kind
  def entry({:code, number, value}, _partition, ledger), do: Ledger.code(ledger, number, value)

  def entry(item, {partition, among, overlapping?}, ledger) do
    case Item.read(item) do
      {stream, own, number} when partition == own or among != @count ->
        ledger |> check_stream(stream, own) |> check_number(stream, own, number, overlapping?)

      {_stream, _own, _number} ->
        Ledger.violation(ledger, :wrong_partition, {item, partition})

      :error ->
        Ledger.violation(ledger, :wrong, item)
    end
  end

  # A writer's streams come one after the other. Among those of the lists there is no order.
  defp check_stream(ledger, stream, _own) when rem(stream, @writers) == @lists, do: ledger

  defp check_stream(ledger, stream, own) do
    key = {:stream, rem(stream, @writers), own}

    case Ledger.seen(ledger, key, 0) do
      {^stream, _windows} ->
        ledger

      {later, _windows} when later > stream ->
        Ledger.violation(ledger, :out_of_order, {stream, own, later})

      {_before, _windows} ->
        Ledger.see(ledger, key, stream)
        ledger
    end
  end

  defp check_number(ledger, stream, own, number, overlapping?) do
    {last, windows} = Ledger.seen(ledger, {stream, own}, 0)

    cond do
      number > last ->
        excused? = ledger.windows > windows
        skipped = for skipped <- (last + 1)..(number - 1)//1, do: {{:skipped, stream, own, skipped}, excused?}
        :ets.insert(ledger.seen, skipped)
        Ledger.see(ledger, {stream, own}, number)
        ledger

      :ets.take(ledger.seen, {:skipped, stream, own, number}) != [] ->
        if overlapping?,
          do: ledger,
          else: Ledger.violation(ledger, :out_of_order, {stream, own, number, last})

      true ->
        Ledger.violation(ledger, :again, {stream, own, number, last})
    end
  end

  @impl Kind
  def check({:list, stream, outcome}, ledger) do
    size = div(@list_size, Item.partitions())
    written = if outcome == :done, do: size..size, else: 0..size
    come = for partition <- @partitions, do: elem(Ledger.seen(ledger, {stream, partition}, 0), 0)
    ledger = Enum.reduce(@partitions, ledger, &check({stream, &1, written}, &2))

    cond do
      outcome == :done -> Ledger.count(ledger, :lists_done)
      Enum.sum(come) in [0, @list_size] -> Ledger.count(ledger, :lists_none_or_all)
      true -> Ledger.count(ledger, :lists_cut_short)
    end
  end

  # How many were written: a range, where a list was cut short.
  def check({stream, own, written}, ledger) do
    {last, windows} = Ledger.seen(ledger, {stream, own}, 0)
    skipped = :ets.match(ledger.seen, {{:skipped, stream, own, :"$1"}, :"$2"})

    ledger =
      Enum.reduce(skipped, ledger, fn [number, excused?], ledger ->
        Ledger.missing(ledger, 1, {stream, own, number}, excused?)
      end)

    cond do
      last > written.last -> Ledger.violation(ledger, :never_written, {stream, own, last, written})
      last >= written.first -> ledger
      true -> missing_end(ledger, {stream, own, last, written}, windows)
    end
  end

  defp missing_end(ledger, {_stream, _own, last, written} = what, windows),
    do: Ledger.missing(ledger, written.first - last, what, ledger.windows > windows)
end
