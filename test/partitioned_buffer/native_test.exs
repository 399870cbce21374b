defmodule PartitionedBuffer.NativeTest do
  # The NIFs do not trust their callers: arguments that do not fit raise badarg and change nothing.
  use PartitionedBuffer.Case, async: true

  alias PartitionedBuffer.Native

  import Bitwise

  # The kinds of the arguments of each NIF.
  @arguments %{
    open: [:name, :kind, :partitions, :boolean, :limit],
    run: [:name],
    owner: [:name],
    buffers: [],
    left: [:name],
    register: [:run, :place, :role],
    set_tasks: [:run, :partition, :pid],
    process: [:run, :place, :role],
    begin_task: [:run, :partition],
    end_task: [:run, :partition],
    options: [:run],
    put_options: [:run, :u64, :any],
    functions: [:run],
    functions_large: [:run],
    put_functions: [:run, :any],
    last_error: [:run],
    put_error: [:run, :any],
    set_max_size: [:run, :limit],
    set_threshold: [:run, :u32, :limit],
    set_next: [:run, :u32, :time],
    learned: [:run, :u32],
    pause: [:run, :u32, :u64, :boolean],
    end_pause: [:run, :u32],
    lost: [:run, :u32],
    reserve: [:name, :u64, :boolean],
    release: [:reservation],
    has_room: [:name, :u64],
    set_waiting: [:run, :u32, :boolean],
    clear_full: [:run],
    count_refused: [:name, :u32, :u32],
    bound: [:name],
    reopen: [:run, :u32],
    drain: [:run, :u32],
    close: [:run, :u32],
    partition_count: [:name],
    status: [:name],
    size: [:name],
    put: [:name, :route, :any, :any],
    put_new: [:name, :route, :any, :any],
    put_newer: [:name, :route, :any, :any, :version],
    get: [:name, :route, :any],
    delete: [:name, :route, :any],
    add: [:counter, :route, :any, :amount],
    add_all: [:counter, :route, :amounts, :checked],
    sum: [:counter, :route, :any],
    delete_sum: [:counter, :route, :any],
    check: [:shape, :any],
    put_all: [:name, :route, :pairs, :checked],
    put_all_newer: [:name, :route, :versioned, :checked],
    push: [:queue, :route, :any],
    push_all: [:queue, :route, :list, :checked],
    flush: [:run, :u32],
    in_flight: [:run, :u32],
    held: [:run, :u32],
    info: [:run, :u32],
    seen: [:flush],
    read: [:flush, :u64, :positive, :boolean],
    claim: [:flush],
    lease: [:flush],
    succeed: [:flush],
    give_back: [:flush, :numbers, :boolean, :attempts, :ms],
    inherit: [:flush],
    batch: [:flush],
    attempts: [:flush],
    bury: [:flush],
    memory: [],
    await_reclaimed: [],
    longest_calls: []
  }

  @no_nifs [hold: 0, load: 0]

  defp fits?(:any, _term), do: true
  defp fits?(kind, term) when kind in [:name, :queue, :counter], do: is_atom(term)
  defp fits?(:kind, term), do: term in [:map, :queue, :counter]
  defp fits?(:boolean, term), do: is_boolean(term)
  defp fits?(:shape, term), do: term in [:pair, :versioned, :amount, :item]
  defp fits?(:partitions, term), do: term in 0..4_096
  defp fits?(:u32, term), do: term in 0..((1 <<< 32) - 1)
  defp fits?(:u64, term), do: term in 0..((1 <<< 64) - 1)
  defp fits?(:positive, term), do: term in 1..((1 <<< 64) - 1)
  defp fits?(:numbers, term), do: term == :all or list_of?(term, &fits?(:u64, &1))
  defp fits?(:attempts, term), do: term == :infinity or fits?(:u32, term)
  defp fits?(:route, {:processor, to}), do: fits?(:to, to)
  defp fits?(:route, to), do: fits?(:to, to)
  defp fits?(:to, {number, among}), do: fits?(:u32, number) and fits?(:u32, among)
  defp fits?(:to, term), do: term == nil
  defp fits?(:limit, term), do: term == :infinity or term in 1..((1 <<< 32) - 1)
  defp fits?(:run, {name, number}), do: is_atom(name) and fits?(:u32, number)
  defp fits?(:run, _term), do: false
  defp fits?(:place, term), do: fits?(:partition, term)
  defp fits?(:partition, term), do: term in 0..4_095
  defp fits?(:role, term), do: term in [:server, :tasks, :task]
  defp fits?(:pid, term), do: is_pid(term) and node(term) == node()
  defp fits?(:ms, term), do: term == nil or fits?(:u64, term)
  defp fits?(:time, term), do: term == nil or (is_integer(term) and fits?(:amount, term))
  defp fits?(:checked, term), do: is_boolean(term)
  defp fits?(:reservation, _term), do: false
  defp fits?(:version, term), do: is_integer(term)
  defp fits?(:amount, term), do: is_integer(term) and term >= -(1 <<< 63) and term < 1 <<< 63

  defp fits?(:amounts, term),
    do: list_of?(term, &(match?({_key, _amount}, &1) and fits?(:amount, elem(&1, 1))))

  defp fits?(:list, term), do: list_of?(term, fn _item -> true end)
  defp fits?(:pairs, term), do: list_of?(term, &match?({_key, _value}, &1))

  defp fits?(:versioned, term),
    do: list_of?(term, &match?({_key, _value, version} when is_integer(version), &1))

  defp fits?(:flush, {:flush, _flush}), do: true
  defp fits?(:flush, _term), do: false

  # A list that its caller claims to have checked may be written up to the first element that does not fit.
  defp begins_well?(kind, [head | _tail]) when kind in [:list, :pairs, :versioned, :amounts],
    do: fits?(kind, [head])

  defp begins_well?(_kind, _term), do: false

  defp list_of?([head | tail], fits?), do: fits?.(head) and list_of?(tail, fits?)
  defp list_of?(tail, _fits?), do: tail == []

  defp garbage do
    numbers() ++ atoms_and_binaries() ++ lists() ++ tuples_and_maps() ++ opaque()
  end

  defp numbers do
    powers = for bits <- [12, 31, 32, 59, 60, 62, 63, 64, 70, 1_000], sign <- [1, -1], do: sign * (1 <<< bits)
    floats = [-0.0, 0.0, 1.0, 1.5, 1.0e300, 4_294_967_296.0]
    [-1, 0, 1, 2, 4_097, (1 <<< 64) - 1] ++ powers ++ floats
  end

  defp atoms_and_binaries do
    large = :binary.copy("0", 100)

    [nil, true, false, :ok, :infinity, :"", :"0", :undefined] ++
      ["", "0", "name", large, binary_part(large, 1, 70), <<1::3>>, <<large::binary, 1::1>>]
  end

  defp lists do
    [[], [1], [nil], [[]], ~c"name", [:name], Enum.to_list(1..10_000)] ++
      [[1 | 2], [{1, 1} | {2, 2}], [{1, 1, 1} | {2, 2, 2}], [{1, 1} | %{}], [[{1, 1}]]] ++
      [[{1, 1}, 2], [{1, 1}, {2, 2, 2}], [{1, 1, 1}, {2, 2}], [{1}], [{}], [{1, 1, 1, 1}], [[1, 1], [2, 2]]] ++
      for(version <- [1.0, :version, nil, "1", [1], {1}], do: [{1, 1, version}])
  end

  defp tuples_and_maps do
    [{}, {nil}, {0}, {:key, :value}, {:key, :value, 1}, List.to_tuple(Enum.to_list(1..1_000))] ++
      [{:processor, {0, -1}}, {:processor, {:processor, nil}}, {:processor, 0}, {0, 1, 2}, {0, :infinity}] ++
      [%{}, %{key: :value}, Map.new(1..100, &{&1, &1}), 1..2]
  end

  # Processes, ports, functions, and references of all kinds: of this node and others, of other resources and our own.
  defp opaque do
    there = <<119, 3, "a@b">>
    zlib = :zlib.open()
    table = :ets.new(:table, [])

    [self(), hd(Port.list()), :erlang.binary_to_term(<<131, 88, there::binary, 1::32, 0::32, 1::32>>)] ++
      [fn -> :ok end, fn _ -> self() end, &Kernel.self/0, &Native.put/4] ++
      [make_ref(), :erlang.binary_to_term(<<131, 90, 3::16, there::binary, 1::32, 1::32, 2::32, 3::32>>)] ++
      [:atomics.new(1, []), :counters.new(1, []), table, :ets.whereis(:code), zlib]
  end

  describe "the NIFs" do
    test "are all in the table of this test" do
      described = for {name, arguments} <- @arguments, do: {name, length(arguments)}
      assert Enum.sort(described) == Native.__info__(:functions) -- @no_nifs
    end

    test "raise nothing on arguments that fit" do
      for {name, kinds} <- @arguments do
        {buffer, flush} = opened()
        apply(Native, name, Enum.map(kinds, &fitting(&1, buffer, flush)))
      end
    end

    test "raise badarg on garbage in any argument, and leave the buffer as it is" do
      {buffer, flush} = opened()
      before = held(buffer, flush)

      garbage =
        [buffer, {:flush, flush}, {buffer, -1}, {buffer, 1 <<< 32}, {1, 1}, {buffer, 1, 1}] ++ garbage()

      answers =
        for {name, kinds} <- @arguments,
            {kind, index} <- Enum.with_index(kinds),
            term <- garbage,
            not fits?(kind, term) and not begins_well?(kind, term) do
          term = with {:flush, flush} <- term, do: flush
          arguments = kinds |> Enum.map(&fitting(&1, buffer, flush)) |> List.replace_at(index, term)
          result = call(name, arguments)
          assert {name, arguments, held(buffer, flush)} == {name, arguments, before}
          {{name, index}, term, result}
        end

      assert length(answers) > 3_000
      # An amount is refused by an answer, since the wrapper does not look at it before.
      refused? = fn {argument, _term, answer} ->
        answer == if(argument == {:add, 3}, do: :invalid, else: :badarg)
      end

      answered = Enum.reject(answers, refused?)
      assert Enum.uniq_by(answered, fn {argument, _term, _answer} -> argument end) == []

      assert {:rest, rest} = Native.flush(run(buffer), 0)
      assert Native.read(rest, 0, 10, false) == {[{:flushed, 1, 0, 0}], 1, true}
      assert Native.claim(rest)
      assert {:fresh, fresh} = Native.flush(run(buffer), 0)
      assert {entries, 2, true} = Native.read(fresh, 0, 10, false)
      assert Enum.sort(entries) == [{:key, :value, 0, 0}, {:versioned, :newer, 7, 1}]
      assert {:fresh, items} = Native.flush(run(queue(buffer)), 0)
      assert Native.read(items, 0, 10, false) == {[:first, :second], 2, true}
      assert {:fresh, sums} = Native.flush(run(counter(buffer)), 0)
      assert Native.read(sums, 0, 10, false) == {[{:key, 7, 1}], 1, true}
    end

    test "write the rest of a short list in its order once all room is reserved" do
      for {kind, operation, list, written} <- [
            {:map, :put_all, for(n <- 1..9, do: {rem(n, 7), n}), for(n <- 3..9, do: {rem(n, 7), n, 0, 0})},
            {:queue, :push_all, Enum.to_list(1..9), Enum.to_list(1..9)},
            {:counter, :add_all, for(n <- 1..9, do: {rem(n, 7), n}),
             for(
               n <- 0..6,
               do: {n, Enum.sum(Enum.filter(1..9, &(rem(&1, 7) == n))), if(n in 1..2, do: 2, else: 1)}
             )}
          ] do
        buffer = unique_name()
        Native.open(buffer, kind, 1, false, 3)
        assert apply(Native, operation, [buffer, nil, list, true]) == :ok
        assert {:fresh, flush} = Native.flush(run(buffer), 0)
        assert {entries, _length, true} = Native.read(flush, 0, 100, false)
        assert if(kind == :queue, do: entries, else: Enum.sort(entries)) == Enum.sort(written)
      end
    end

    test "tell that a partition does not exist, and change nothing" do
      {buffer, flush} = opened()
      before = held(buffer, flush)

      for number <- [1, 2, 4_096, 1 <<< 31, (1 <<< 32) - 1] do
        for name <- [:reopen, :drain, :close, :flush, :in_flight, :held, :info, :learned, :lost],
            do: assert(call(name, [run(buffer), number]) == :not_running)

        assert held(buffer, flush) == before
      end

      # There is one partition, with the number 0.
      for route <- [{1, 1}, {4_096, 1}, {(1 <<< 32) - 1, 1}, {0, 0}, {0, 2}, {1, 2}, {0, 1 <<< 31}] do
        for name <- [:get, :delete], do: assert(call(name, [buffer, route, :key]) == :not_running)
        assert Native.push(queue(buffer), route, :other) == :not_running
        assert Native.push_all(queue(buffer), route, [:other], true) == {:refused, [:other]}
        assert Native.put(buffer, route, :key, :other) == :not_running
        assert Native.put_newer(buffer, route, :key, :other, 9) == :not_running
        assert Native.put_all(buffer, route, [{:key, :other}], true) == {:refused, [{:key, :other}]}
        newer = [{:key, :other, 9}]
        assert Native.put_all_newer(buffer, route, newer, true) == {:refused, newer}
        assert held(buffer, flush) == before
      end
    end
  end

  describe "open/5" do
    test "leaves no buffer running if its process is killed during the call" do
      buffer = unique_name()

      for round <- 1..1_000 do
        # Many partitions, so that it takes a while.
        {pid, ref} = spawn_monitor(fn -> Native.open(buffer, :map, 4_096, false, :infinity) end)
        # It is killed at another moment in each round.
        for _ <- 1..(round * 13), do: :erlang.phash2(round)
        Process.exit(pid, :kill)
        assert_receive {:DOWN, ^ref, :process, ^pid, _reason}
        # A call that goes on may open the buffer later. Then the next round waits for its end.
        await_status(buffer, :not_running)
      end
    end
  end

  describe "status/1" do
    test "is of the kind that was opened last, until its process dies" do
      name = unique_name()
      assert Native.status(name) == :not_running

      for {kind, partitions} <- [map: 2, queue: 1, map: 0, map: 3, queue: 0, map: 1] do
        Native.open(name, kind, partitions, false, :infinity)
        assert Native.status(name) == {kind, partitions}
      end

      owner = spawn(fn -> Native.open(name, :queue, 0, false, :infinity) && receive(do: (:never -> :ok)) end)
      await_status(name, {:queue, 0})
      Process.exit(owner, :kill)
      await_status(name, :not_running)
    end
  end

  # What is invalid about a list.
  defp invalid(kind, [head | tail]),
    do: if(fits?(kind, [head]), do: invalid(kind, tail), else: {:invalid, head})

  defp invalid(_kind, tail), do: {:improper, tail}

  defp check(shape, list) do
    with {:more, rest} <- Native.check(shape, list), do: check(shape, rest)
  end

  describe "check/2" do
    test "finds what is invalid in a list of any length" do
      long = Enum.map(1..200_000, &{&1, &1})

      for {shape, kind} <- [pair: :pairs, versioned: :versioned, item: :list],
          list <- lists() ++ [long, long ++ [:bad], long ++ :tail] do
        assert check(shape, list) == if(fits?(kind, list), do: :ok, else: invalid(kind, list))
      end
    end
  end

  describe "a list" do
    test "is not written if it is long and its caller has not checked it" do
      {buffer, flush} = opened()
      before = held(buffer, flush)
      assert Native.put_all(buffer, nil, Enum.map(1..200_000, &{&1, &1}), false) == :long
      assert held(buffer, flush) == before
    end

    test "is not written if it is unchecked and an element does not fit" do
      {buffer, flush} = opened()
      before = held(buffer, flush)
      good = Enum.map(1..1_000, &{&1, &1})
      versioned = Enum.map(1..1_000, &{&1, &1, 1})

      for list <- lists() ++ [good ++ [:bad], good ++ :tail, [:bad | good]], not fits?(:pairs, list) do
        assert Native.put_all(buffer, nil, list, false) == invalid(:pairs, list)
        assert held(buffer, flush) == before
      end

      for list <- lists() ++ [good ++ :tail], not fits?(:list, list) do
        assert Native.push_all(queue(buffer), nil, list, false) == invalid(:list, list)
        assert held(buffer, flush) == before
      end

      for list <- lists() ++ [versioned ++ good, versioned ++ :tail], not fits?(:versioned, list) do
        assert Native.put_all_newer(buffer, nil, list, false) == invalid(:versioned, list)
        assert held(buffer, flush) == before
      end
    end

    test "is written up to a bad element if its caller claims to have checked it" do
      buffer = start_buffer()

      for list <- [[{1, 1}, :bad, {2, 2}], [{1, 1}, {1}, {2, 2}], [{1, 1} | {2, 2}]] do
        assert_raise ArgumentError, fn -> Native.put_all(buffer, nil, list, true) end
        assert Buffer.get(buffer, 2) == nil
        # All locks are released.
        assert Buffer.put(buffer, 1, 1) == :ok
      end
    end

    test "comes back in order, without written items, if a partition is draining" do
      buffer = unique_name()
      Native.open(queue(buffer), :queue, 3, false, :infinity)
      Native.drain(run(queue(buffer)), 1)
      in_draining = &(:erlang.phash2(:erlang.phash2(&1), 3) == 1)

      # A short list is written one by one, a longer one lock by lock.
      for size <- [10, 100], checked <- [false, true] do
        items = Enum.to_list(1..size)
        assert {:refused, rest} = Native.push_all(queue(buffer), nil, items, checked)
        written = items -- rest
        assert rest == Enum.sort(rest)
        assert Enum.filter(items, in_draining) -- rest == []
        assert Native.push_all(queue(buffer), {:processor, nil}, rest, true) == :ok

        flushed =
          for n <- 0..2, {:fresh, flush} <- [Native.flush(run(queue(buffer)), n)] do
            {items, _length, true} = Native.read(flush, 0, size, false)
            assert Native.claim(flush)
            assert items == Enum.sort(items)
            items
          end

        assert Enum.sort(Enum.concat(flushed)) == items
        if size == 10, do: assert(written == Enum.take_while(items, &(not in_draining.(&1))))
      end
    end

    test "is written by calls with at most 32 large entries beyond their time" do
      {buffer, _batch} = opened()
      large = Enum.to_list(1..100_000)
      entries = Enum.map(1..500, &{&1, &1}) ++ Enum.map(501..550, &{&1, large})

      written = entries |> rests(&Native.put_all(buffer, nil, &1, true)) |> Enum.map(&length/1)
      assert longest_step_behind(500, Enum.map(written, &(550 - &1))) <= 32

      # The earlier flush comes first.
      assert {:rest, first} = Native.flush(run(buffer), 0)
      assert {_flushed, 1, true} = Native.read(first, 0, 10, false)
      assert Native.claim(first)
      {:fresh, flush} = Native.flush(run(buffer), 0)

      read = Enum.map(reads(flush, 0), fn read -> Enum.count(read, &is_list(elem(&1, 1))) end)
      assert Enum.sum(read) == 50
      assert Enum.max(read) <= 32
    end

    test "is written by calls that hash no more large keys than time allows" do
      {buffer, _batch} = opened()
      large = :binary.copy("x", 100_000)
      newer = for n <- 1..1_000, do: {<<n::32, large::binary>>, n, 1}
      pairs = for {key, value, _version} <- newer, do: {key, value}

      for {nif, list} <- [put_all: pairs, put_all_newer: newer], checked <- [false, true] do
        times =
          for _ <- 1..10 do
            {microseconds, {:more, _rest}} = :timer.tc(Native, nif, [buffer, nil, list, checked])
            microseconds
          end

        # The shortest call was not interrupted. To hash all keys would take some 50 ms.
        assert Enum.min(times) < 5_000
      end
    end
  end

  describe "a flush" do
    test "reads and claims nothing beyond its end" do
      buffer = start_buffer(partitions: 1)
      Buffer.put(buffer, :key, 1)
      {:fresh, flush} = Native.flush(run(buffer), 0)
      largest = (1 <<< 64) - 1
      assert {[{:key, 1, 0, 0}], 1, true} = Native.read(flush, 0, largest, false)
      assert Native.read(flush, 1, largest, false) == {[], 1, true}
      assert Native.read(flush, largest, 1, false) == {[], largest, true}
      assert Native.claim(flush)
      refute Native.claim(flush)
      assert Native.read(flush, 0, 10, false) == {[], 0, true}
      assert Native.flush(run(buffer), 0) == :empty
    end

    test "has one batch at a time, owned by the process that began it last" do
      buffer = start_buffer(partitions: 1)
      Buffer.put_all(buffer, a: 1, b: 2)
      {:fresh, flush} = Native.flush(run(buffer), 0)
      assert {[first], 1, true} = Native.read(flush, 0, 1, false)
      assert Task.await(Task.async(fn -> Native.read(flush, 0, 1, false) end)) == {[first], 1, true}
      refute Native.claim(flush)
      refute Native.lease(flush)
      assert {[^first], 1, true} = Native.read(flush, 0, 1, false)
      assert Native.lease(flush)
      assert Native.inherit(flush) == {:leased, 1}
      # Nothing is read before the batch has an outcome.
      assert Native.read(flush, 0, 1, false) == {[], 0, true}
      assert Native.succeed(flush) == :ok
      assert Native.inherit(flush) == nil
      assert {[second], 1, true} = Native.read(flush, 0, 1, false)
      assert keys([first, second]) == [:a, :b]
    end

    test "outlives its buffer" do
      buffer = start_buffer(partitions: 1)
      Buffer.put(buffer, :key, 1)
      {:fresh, flush} = Native.flush(run(buffer), 0)
      stop_supervised!(buffer)
      # The drainer has given all of it to the processor.
      assert Native.read(flush, 0, 1, false) == {[], 0, true}
      refute Native.claim(flush)
    end
  end

  # The rests that the calls of `write` leave, after the whole list.
  defp rests(list, write) do
    case write.(list) do
      {:more, rest} -> [list | rests(rest, write)]
      :ok -> [list, []]
    end
  end

  # The entries that each call reads of one batch.
  defp reads(flush, length) do
    case Native.read(flush, length, 1_000, false) do
      {read, _length, true} -> [read]
      {read, length, false} -> [read | reads(flush, length)]
    end
  end

  # The most entries behind this number that one step has written.
  defp longest_step_behind(number, positions) do
    positions
    |> Enum.chunk_every(2, 1, :discard)
    |> Enum.map(fn [from, to] -> max(to, number) - max(from, number) end)
    |> Enum.max()
  end

  # A map without processes that has a flush and waiting entries, a queue beside it, and the map's flush.
  defp opened do
    buffer = unique_name()
    Native.open(queue(buffer), :queue, 1, false, :infinity)
    Native.push_all(queue(buffer), nil, [:first, :second], true)
    Native.open(counter(buffer), :counter, 1, false, :infinity)
    Native.add(counter(buffer), nil, :key, 7)
    Native.open(buffer, :map, 1, false, :infinity)
    Native.put(buffer, nil, :flushed, 1)
    {:fresh, flush} = Native.flush(run(buffer), 0)
    Native.put(buffer, nil, :key, :value)
    Native.put_newer(buffer, nil, :versioned, :newest, 6)
    Native.put_newer(buffer, nil, :versioned, :newer, 7)
    {buffer, flush}
  end

  defp queue(buffer), do: :"#{buffer}_queue"
  defp counter(buffer), do: :"#{buffer}_counter"

  defp held(buffer, flush) do
    %{
      queue: {Native.partition_count(queue(buffer)), Native.size(queue(buffer))},
      counter:
        {Native.partition_count(counter(buffer)),
         for(key <- [:key, :other, 1, 2], do: Native.sum(counter(buffer), nil, key))},
      partitions: Native.partition_count(buffer),
      size: Native.size(buffer),
      entries: for(key <- [:key, :versioned, :other, 1, 2], do: Native.get(buffer, nil, key)),
      seen: Native.seen(flush),
      flushed: Native.read(flush, 0, 10, false)
    }
  end

  # Nobody is told when the library has learnt of the death of a process.
  defp await_status(name, status), do: Native.status(name) == status || await_status(name, status)

  # None of these is in the buffer already.
  defp fitting(:any, _buffer, _flush), do: :other
  defp fitting(:queue, buffer, _flush), do: queue(buffer)
  defp fitting(:counter, buffer, _flush), do: counter(buffer)
  defp fitting(:amount, _buffer, _flush), do: 1
  defp fitting(:amounts, _buffer, _flush), do: [{:other, 1}]
  defp fitting(:kind, _buffer, _flush), do: :map
  defp fitting(:list, _buffer, _flush), do: [:other]
  defp fitting(:name, buffer, _flush), do: buffer
  defp fitting(:boolean, _buffer, _flush), do: true
  defp fitting(:shape, _buffer, _flush), do: :pair
  defp fitting(:partitions, _buffer, _flush), do: 2
  defp fitting(:u32, _buffer, _flush), do: 0
  defp fitting(:u64, _buffer, _flush), do: 1
  defp fitting(:positive, _buffer, _flush), do: 1
  defp fitting(:numbers, _buffer, _flush), do: [0]
  defp fitting(:attempts, _buffer, _flush), do: 1
  defp fitting(:route, _buffer, _flush), do: {:processor, nil}
  defp fitting(:limit, _buffer, _flush), do: :infinity
  defp fitting(:run, buffer, _flush), do: Native.run(buffer)
  defp fitting(kind, _buffer, _flush) when kind in [:place, :partition], do: 0
  defp fitting(:role, _buffer, _flush), do: :server
  defp fitting(:pid, _buffer, _flush), do: self()
  defp fitting(kind, _buffer, _flush) when kind in [:ms, :time], do: nil
  defp fitting(:checked, _buffer, _flush), do: true
  defp fitting(:reservation, buffer, _flush), do: Native.reserve(buffer, 1, true)
  defp fitting(:version, _buffer, _flush), do: 1 <<< 70
  defp fitting(:pairs, _buffer, _flush), do: [{:other, 1}]
  defp fitting(:versioned, _buffer, _flush), do: [{:other, 1, 1}]
  defp fitting(:flush, _buffer, flush), do: flush

  defp call(name, args) do
    apply(Native, name, args)
  rescue
    ArgumentError -> :badarg
  end
end
