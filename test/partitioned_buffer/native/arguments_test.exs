defmodule PartitionedBuffer.Native.ArgumentsTest do
  # The NIFs do not trust their callers: arguments that do not fit raise badarg and change nothing.
  use PartitionedBuffer.NativeCase, async: true

  import Bitwise

  # The kinds of the arguments of each NIF.
  @arguments %{
    open: [:name, :kind, :partitions, :boolean, :boolean, :versions, :bound],
    run: [:name],
    owner: [:name],
    buffers: [],
    left: [:name],
    end_run: [:name],
    hold_run: [:run],
    resume_run: [:run],
    begin_stop: [:run],
    on_hold: [:run],
    touch: [:flush],
    register: [:run, :u32, :own_role],
    begin_event: [:run, :u64, :u64],
    end_event: [:run, :u64],
    set_tasks: [:run, :u32, :pid],
    process: [:run, :u32, :role],
    begin_task: [:run, :u32],
    end_task: [:run, :u32],
    options: [:run],
    put_options: [:run, :u64, :any, :any],
    functions: [:run],
    functions_large: [:run],
    last_error: [:run],
    put_error: [:run, :any],
    first_warning: [:run, :u32],
    leftovers: [],
    left_terms: [:name, :kind],
    put_stop: [:run, :leftovers],
    stop: [:run],
    settle: [:run],
    set_bound: [:run, :bound],
    set_threshold: [:run, :u32, :limit],
    set_next: [:run, :u32, :time],
    learned: [:run, :u32],
    pause: [:run, :u32, :u64, :boolean],
    pause_all: [:run, :u64],
    end_pause: [:run, :u32],
    pass_pause: [:run, :u32],
    lost: [:run, :u32],
    reserve: [:name, :count, :boolean],
    wait_again: [:waiting],
    leave: [:reservation],
    release: [:reservation],
    write: [:reservation, :write, :write_arguments],
    serve: [:run],
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
    get_versioned: [:name, :route, :any],
    delete: [:name, :route, :any],
    add: [:counter, :route, :any, :amount],
    add_counted: [:counter, :route, :any, :amount, :times],
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
    claim_next: [:flush, :u64, :positive],
    lease: [:flush, :boolean],
    lease_next: [:flush, :u64, :positive, :boolean, :boolean, :boolean],
    succeed: [:flush],
    give_back: [:flush, :numbers, :boolean, :attempts, :ms],
    inherit: [:flush, :death],
    split: [:flush],
    shorten: [:flush, :u64],
    defer: [:flush],
    lease_rest: [:flush, :boolean],
    alone: [:run, :u32],
    forget_limit: [:run, :u32],
    batch: [:flush],
    bury: [:flush],
    collect: [:run],
    mark: [:flush, :mark],
    marked: [:flush],
    latest_version: [:run, :u32],
    see_version: [:run, :amount, :u64],
    absorb: [:run, :absorbed, :stream, :positive, :modes],
    absorb_large: [:run, :absorbed, :stream, :positive, :modes],
    streams: [:run],
    forget_streams: [:run, :u64, :u64],
    incarnation: [:name],
    open_journal: [:name, :kind, :some_partitions, :place, :journal_settings, :attempts],
    close_journal: [:run],
    journal_wait: [:run, :level, :reference],
    journal_status: [:run],
    set_journal_times: [:run, :positive, :sync_ms],
    watch_journal: [:run],
    read_journal: [:path, :kind],
    delete_journal: [:path],
    refuse_writes: [:run, :boolean],
    refuses_writes: [:name],
    memory: [],
    await_reclaimed: [],
    longest_calls: []
  }

  # `shift_clock/1` would shift the clock of tests that run at the same time.
  @no_nifs [hold: 0, load: 0, shift_clock: 1]

  defp fits?(:any, _term), do: true
  defp fits?(kind, term) when kind in [:name, :queue, :counter], do: is_atom(term)
  defp fits?(:kind, term), do: term in [:map, :queue, :counter]
  defp fits?(:versions, term), do: term in [:any, :clock, :own]
  defp fits?(:mark, {number, node}), do: fits?(:u64, number) and is_atom(node)
  defp fits?(:mark, term), do: term == nil
  defp fits?(:boolean, term), do: is_boolean(term)
  defp fits?(:shape, term), do: term in [:pair, :versioned, :amount, :item]
  defp fits?(:partitions, term), do: term in 0..4_096
  defp fits?(:u32, term), do: term in 0..((1 <<< 32) - 1)
  defp fits?(:u64, term), do: term in 0..((1 <<< 64) - 1)
  defp fits?(:count, term), do: term in 0..(1 <<< 48)
  defp fits?(:death, term), do: term in [:killed, :timeout, nil]
  defp fits?(:positive, term), do: term in 1..((1 <<< 64) - 1)
  defp fits?(:numbers, term), do: term == :all or list_of?(term, &(is_integer(&1) and fits?(:amount, &1)))
  defp fits?(:attempts, term), do: term == :infinity or fits?(:u32, term)
  defp fits?(:route, {:processor, to}), do: fits?(:to, to)
  defp fits?(:route, to), do: fits?(:to, to)
  defp fits?(:to, {number, among}), do: fits?(:u32, number) and fits?(:u32, among)
  defp fits?(:to, term), do: term == nil
  defp fits?(:limit, term), do: term == :infinity or term in 1..((1 <<< 32) - 1)
  defp fits?(:bound, {size, bytes}), do: fits?(:limit, size) and fits?(:limit, bytes)
  defp fits?(:bound, _term), do: false
  defp fits?(:write, term), do: term == :put
  defp fits?(kind, _term) when kind in [:waiting, :write_arguments], do: false
  # Any other list gets an answer, as `PartitionedBuffer.Native.AbsorbTest` shows.
  defp fits?(:absorbed, _term), do: true
  defp fits?(:stream, {first, second}), do: fits?(:u64, first) and fits?(:u64, second)
  defp fits?(:stream, term), do: term == nil
  defp fits?(:modes, term), do: term == []
  defp fits?(:run, {name, number}), do: is_atom(name) and fits?(:u32, number)
  defp fits?(:run, _term), do: false
  defp fits?(:own_role, term), do: term == :server
  defp fits?(:role, term), do: term in [:server, :tasks, :task]
  defp fits?(:pid, term), do: is_pid(term) and node(term) == node()
  defp fits?(:ms, term), do: term == nil or fits?(:u64, term)
  defp fits?(:time, term), do: term == nil or (is_integer(term) and fits?(:amount, term))
  defp fits?(:checked, term), do: is_boolean(term)
  defp fits?(:reservation, term), do: match?({:reservation, _reservation}, term)
  defp fits?(:version, term), do: is_integer(term)
  defp fits?(:amount, term), do: is_integer(term) and term >= -(1 <<< 63) and term < 1 <<< 63

  defp fits?(:times, term), do: fits?(:amount, term) and term >= 0

  defp fits?(:amounts, term),
    do: list_of?(term, &(match?({_key, _amount}, &1) and fits?(:amount, elem(&1, 1))))

  defp fits?(:some_partitions, term), do: term in 1..4_096
  defp fits?(:place, term), do: term == nil

  defp fits?(:journal_settings, {write, sync, bytes}),
    do: Enum.all?([write, sync, bytes], &fits?(:positive, &1))

  defp fits?(:journal_settings, _term), do: false
  defp fits?(:level, term), do: term in [:written, :synced]
  defp fits?(:reference, {own, _reference}) when own in [:flush, :reservation], do: true
  defp fits?(:reference, term), do: is_reference(term)
  defp fits?(:sync_ms, term), do: term == :infinity or fits?(:positive, term)
  defp fits?(:path, term), do: is_binary(term) and String.valid?(term)
  defp fits?(:leftovers, term), do: is_atom(term)
  defp fits?(:list, term), do: list_of?(term, fn _item -> true end)
  defp fits?(:pairs, term), do: list_of?(term, &match?({_key, _value}, &1))

  defp fits?(:versioned, term),
    do: list_of?(term, &match?({_key, _value, version} when is_integer(version), &1))

  defp fits?(:flush, {:flush, _flush}), do: true
  defp fits?(:flush, _term), do: false

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
      {other, _flush} = opened()
      elsewhere = Native.reserve(other, 100, false)

      garbage =
        [buffer, {:flush, flush}, {:reservation, elsewhere}, {buffer, -1}, {buffer, 1 <<< 32}, {1, 1}] ++
          [{buffer, 1, 1} | garbage()]

      answers =
        for {name, kinds} <- @arguments,
            {kind, index} <- Enum.with_index(kinds),
            term <- garbage,
            not fits?(kind, term) do
          term = with {own, reference} when own in [:flush, :reservation] <- term, do: reference
          fit = fn {other, at} -> if at == index, do: term, else: fitting(other, buffer, flush) end
          arguments = kinds |> Enum.with_index() |> Enum.map(fit)
          result = call(name, arguments)

          for {{:reservation, at}, reservation} <- Enum.zip(Enum.with_index(kinds), arguments),
              at != index,
              do: Native.release(reservation)

          assert {name, arguments, held(buffer, flush)} == {name, arguments, before}
          {{name, index}, term, result}
        end

      assert length(answers) > 3_000
      # An amount or count is refused by an answer, since the wrapper does not look at it before.
      numbers = [add: 3, add_counted: 3, add_counted: 4]

      refused? = fn {argument, _term, answer} ->
        answer == if(argument in numbers, do: :invalid, else: :badarg)
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
  end

  # None of these is in the buffer already.
  defp fitting(:any, _buffer, _flush), do: :other
  defp fitting(:queue, buffer, _flush), do: queue(buffer)
  defp fitting(:counter, buffer, _flush), do: counter(buffer)
  defp fitting(kind, _buffer, _flush) when kind in [:amount, :times], do: 1
  defp fitting(:amounts, _buffer, _flush), do: [{:other, 1}]
  defp fitting(:kind, _buffer, _flush), do: :map
  defp fitting(:versions, _buffer, _flush), do: :any
  defp fitting(:some_partitions, _buffer, _flush), do: 2
  defp fitting(:place, _buffer, _flush), do: nil
  defp fitting(:journal_settings, _buffer, _flush), do: {5, :infinity, 1}
  defp fitting(:level, _buffer, _flush), do: :written
  defp fitting(:reference, _buffer, _flush), do: make_ref()
  defp fitting(:sync_ms, _buffer, _flush), do: :infinity
  defp fitting(:path, _buffer, _flush), do: "no/such/directory"
  defp fitting(:mark, _buffer, _flush), do: {1, :node}
  defp fitting(:leftovers, _buffer, _flush), do: :keep
  defp fitting(:list, _buffer, _flush), do: [:other]
  defp fitting(:name, buffer, _flush), do: buffer
  defp fitting(:boolean, _buffer, _flush), do: true
  defp fitting(:shape, _buffer, _flush), do: :pair
  defp fitting(:partitions, _buffer, _flush), do: 2
  defp fitting(:u32, _buffer, _flush), do: 0
  defp fitting(:count, _buffer, _flush), do: 1
  defp fitting(:death, _buffer, _flush), do: nil
  defp fitting(:u64, _buffer, _flush), do: 1
  defp fitting(:positive, _buffer, _flush), do: 1
  defp fitting(:numbers, _buffer, _flush), do: [0]
  defp fitting(:attempts, _buffer, _flush), do: 1
  defp fitting(:route, _buffer, _flush), do: {:processor, nil}
  defp fitting(:absorbed, _buffer, _flush), do: [{:other, 1, 1, 0}]
  defp fitting(:stream, _buffer, _flush), do: {1, 1}
  defp fitting(:modes, _buffer, _flush), do: [:force, :processor]
  defp fitting(:limit, _buffer, _flush), do: :infinity
  defp fitting(:bound, _buffer, _flush), do: {:infinity, :infinity}
  defp fitting(:write, _buffer, _flush), do: :put
  defp fitting(:write_arguments, buffer, _flush), do: [buffer, nil, :other, :other]
  defp fitting(:run, buffer, _flush), do: Native.run(buffer)
  defp fitting(kind, _buffer, _flush) when kind in [:role, :own_role], do: :server
  defp fitting(:pid, _buffer, _flush), do: self()
  defp fitting(kind, _buffer, _flush) when kind in [:ms, :time], do: nil
  defp fitting(:checked, _buffer, _flush), do: true
  defp fitting(:reservation, buffer, _flush), do: Native.reserve(buffer, 1, true)

  # A reservation of a writer that waits.
  defp fitting(:waiting, _buffer, _flush) do
    full = unique_name()
    Native.open(full, :map, 1, false, true, :any, {1, :infinity})
    Native.put(full, nil, :key, 1)
    {:wait, reservation, _place} = Native.reserve(full, 1, true)
    reservation
  end

  defp fitting(:version, _buffer, _flush), do: 1 <<< 70
  defp fitting(:pairs, _buffer, _flush), do: [{:other, 1}]
  defp fitting(:versioned, _buffer, _flush), do: [{:other, 1, 1}]
  defp fitting(:flush, _buffer, flush), do: flush
end
