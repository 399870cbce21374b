defmodule PartitionedBuffer.Native.RunTest do
  # Runs: their start, their end, their roles, and what is over with them.
  use PartitionedBuffer.NativeCase, async: true

  import Bitwise

  describe "open/7" do
    test "leaves no buffer running if its process is killed during the call" do
      buffer = unique_name()

      for round <- 1..1_000 do
        # Many partitions, so that it takes a while.
        {pid, ref} =
          spawn_monitor(fn -> Native.open(buffer, :map, 4_096, false, true, :any, {:infinity, :infinity}) end)

        # It is killed at another moment in each round.
        for _ <- 1..(round * 13), do: :erlang.phash2(round)
        Process.exit(pid, :kill)
        assert_receive {:DOWN, ^ref, :process, ^pid, _reason}
        # Waits for the call, which may go on after the death.
        Native.left(buffer)
        await_status(buffer, :not_running)
        assert Native.partition_count(buffer) == :not_running
      end
    end
  end

  describe "status/1" do
    test "is of the kind that was opened last, until its process dies" do
      name = unique_name()
      assert Native.status(name) == :not_running

      for {kind, partitions} <- [map: 2, queue: 1, map: 0, map: 3, queue: 0, map: 1] do
        Native.open(name, kind, partitions, false, true, :any, {:infinity, :infinity})
        assert Native.status(name) == {kind, partitions}
      end

      owner =
        spawn(fn ->
          Native.open(name, :queue, 0, false, true, :any, {:infinity, :infinity}) &&
            receive(do: (:never -> :ok))
        end)

      await_status(name, {:queue, 0})
      Process.exit(owner, :kill)
      await_status(name, :not_running)
    end
  end

  describe "a partition that does not exist" do
    test "takes and changes nothing, whoever names it" do
      {buffer, flush} = opened()
      before = held(buffer, flush)

      for number <- [1, 2, 4_095, 4_096, 1 <<< 31, (1 <<< 32) - 1] do
        for role <- [:server, :tasks, :task],
            do: assert(Native.process(run(buffer), number, role) == :not_running)

        assert Native.register(run(buffer), number, :server) == :not_running
        assert Native.set_tasks(run(buffer), number, self()) == :not_running
        assert Native.begin_task(run(buffer), number) == :not_running
        assert Native.end_task(run(buffer), number) == :ok
        assert Native.set_threshold(run(buffer), number, 1) == :not_running
        assert Native.set_next(run(buffer), number, 1) == :not_running
        assert Native.pause(run(buffer), number, 1_000, true) == :not_running
        assert Native.end_pause(run(buffer), number) == :not_running

        for name <- [:reopen, :drain, :close, :flush, :in_flight, :held, :info, :learned, :lost],
            do: assert(call(name, [run(buffer), number]) == :not_running)

        assert Native.left(buffer) == {false, [server: self(), tasks: self()]}
        assert held(buffer, flush) == before
      end

      # There is one partition, with the number 0.
      largest = (1 <<< 32) - 1

      for {_number, _among} = to <-
            [{1, 1}, {4_096, 1}, {largest, 1}, {0, 0}, {0, 2}, {1, 2}, {0, 1 <<< 31}] ++
              for(bits <- [30, 31, 32], less <- 1..4, do: {0, (1 <<< bits) - less}) ++ [{largest, largest}],
          route <- [to, {:processor, to}] do
        for name <- [:get, :delete], do: assert(call(name, [buffer, route, :key]) == :not_running)
        assert Native.push(queue(buffer), route, :other) == :not_running
        assert Native.push_all(queue(buffer), route, [:other], true) == {:refused, [:other]}
        assert Native.put(buffer, route, :key, :other) == :not_running
        assert Native.put_newer(buffer, route, :key, :other, 9) == :not_running
        assert Native.put_all(buffer, route, [{:key, :other}], true) == {:refused, [{:key, :other}]}
        newer = [{:key, :other, 9}]
        assert Native.put_all_newer(buffer, route, newer, true) == {:refused, newer}
        assert Native.put_new(buffer, route, :other, :other) == :not_running
        assert Native.add(counter(buffer), route, :key, 1) == :not_running
        assert Native.add_all(counter(buffer), route, [key: 1], true) == {:refused, [key: 1]}
        assert Native.sum(counter(buffer), route, :key) == :not_running
        assert Native.delete_sum(counter(buffer), route, :key) == :not_running
        assert held(buffer, flush) == before
      end
    end
  end

  # All NIFs that act for a run, with arguments that fit.
  @of_runs [
    register: [0, :server],
    set_tasks: [0, :self],
    process: [0, :server],
    begin_task: [0],
    options: [],
    put_options: [1, :other, :other],
    functions: [],
    functions_large: [],
    last_error: [],
    put_error: [:other],
    first_warning: [0],
    set_bound: [{1, 1}],
    set_threshold: [0, 1],
    set_next: [0, 1],
    learned: [0],
    pause: [0, 1_000, true],
    end_pause: [0],
    pass_pause: [0],
    lost: [0],
    serve: [],
    clear_full: [],
    reopen: [0],
    drain: [0],
    close: [0],
    flush: [0],
    in_flight: [0],
    held: [0],
    info: [0]
  ]

  defp calls_for(run) do
    for {name, arguments} <- @of_runs do
      arguments = Enum.map(arguments, &if(&1 == :self, do: self(), else: &1))
      {name, call(name, [run | arguments])}
    end
  end

  describe "a run that is over" do
    test "takes nothing, and the next run of the name stays as it is" do
      {other, _flush} = opened()

      for kind <- [:map, :queue, :counter] do
        {buffer, flush} = opened()
        name = %{map: buffer, queue: queue(buffer), counter: counter(buffer)}[kind]
        dead = run(name)
        # The test opened the first run, so this one replaces it.
        Native.open(name, kind, 1, false, true, :any, {:infinity, :infinity})
        before = held(buffer, flush)
        {_name, number} = dead

        for run <- [dead, {other, number}, {unique_name(), number}, {name, 0}, {name, (1 <<< 32) - 1}] do
          assert Enum.reject(calls_for(run), &match?({_name, :not_running}, &1)) == []
          assert Native.end_task(run, 0) == :ok
        end

        assert held(buffer, flush) == before
      end
    end

    test "takes nothing when no other has begun, and neither does its buffer" do
      buffer = unique_name()

      for kind <- [:map, :queue, :counter] do
        {owner, run} = open_elsewhere(buffer, kind, 1)
        reservation = Native.reserve(buffer, 2, false)
        kill_owner(buffer, owner)

        assert Enum.reject(calls_for(run), &match?({_name, :not_running}, &1)) == []
        assert Native.end_task(run, 0) == :ok
        assert_nothing_takes(buffer)
        assert Native.release(reservation) == :ok
      end

      assert_nothing_takes(unique_name())
    end
  end

  # A buffer that does not run, or a partition that is closed.
  defp assert_nothing_takes(buffer) do
    for nif <- [:run, :owner, :status, :partition_count, :size, :bound],
        do: assert({nif, call(nif, [buffer])} == {nif, :not_running})

    assert Native.reserve(buffer, 1, false) == :not_running
    assert Native.count_refused(buffer, 1, 1) == :not_running
    refute buffer in Native.buffers()
    assert Native.left(buffer) == {false, []}
    assert_takes_no_entries(buffer, [:map, :queue, :counter])
  end

  # The NIFs of these kinds neither read nor write.
  defp assert_takes_no_entries(buffer, kinds) do
    operations = [
      map: [put: [:key, 1], put_new: [:key, 1], put_newer: [:key, 1, 1], get: [:key], delete: [:key]],
      queue: [push: [:item]],
      counter: [add: [:key, 1], sum: [:key], delete_sum: [:key]]
    ]

    lists = [
      map: [put_all: [{:key, 1}], put_all_newer: [{:key, 1, 1}]],
      queue: [push_all: [:item]],
      counter: [add_all: [{:key, 1}]]
    ]

    for kind <- kinds, to <- [nil, {:processor, nil}] do
      for {nif, arguments} <- operations[kind],
          do: assert({nif, call(nif, [buffer, to | arguments])} == {nif, :not_running})

      for {nif, list} <- lists[kind],
          do: assert(call(nif, [buffer, to, list, true]) in [:not_running, {:refused, list}])
    end
  end

  describe "a buffer of another kind" do
    test "takes no entries, and keeps what it has" do
      {buffer, flush} = opened()
      before = held(buffer, flush)
      assert_takes_no_entries(buffer, [:queue, :counter])
      assert_takes_no_entries(queue(buffer), [:map, :counter])
      assert_takes_no_entries(counter(buffer), [:map, :queue])
      assert held(buffer, flush) == before
    end
  end

  describe "a closed partition" do
    test "takes no entries, is not drained, and can be flushed" do
      for {kind, nif, list, entries} <- [
            {:map, :put_all, [key: 1], [{:key, 1, 0, 0}]},
            {:queue, :push_all, [:item], [:item]},
            {:counter, :add_all, [key: 1], [{:key, 1, 1}]}
          ] do
        buffer = unique_name()
        Native.open(buffer, kind, 1, false, true, :any, {:infinity, :infinity})
        call(nif, [buffer, nil, list, true])
        assert Native.close(run(buffer), 0) == :ok
        assert_takes_no_entries(buffer, [:map, :queue, :counter])
        assert Native.drain(run(buffer), 0) == :closed
        assert Native.size(buffer) == :not_running
        assert take(buffer) == entries
      end
    end
  end

  describe "a role" do
    test "is refused for another place, and register/3 refuses :tasks and :task" do
      buffer = unique_name()
      Native.open(buffer, :map, 1, false, true, :any, {:infinity, :infinity})

      for {place, role} <- [
            {0, :room},
            {0, :drainer},
            {:room, :server},
            {:room, :drainer},
            {:server, :server},
            {:task, :task},
            {nil, :room},
            {1.0, :server},
            {-1, :server},
            {1 <<< 32, :task}
          ],
          nif <- [:register, :process],
          do: assert(call(nif, [run(buffer), place, role]) == :badarg)

      for role <- [:tasks, :task], do: assert(call(:register, [run(buffer), 0, role]) == :badarg)
      assert Native.left(buffer) == {false, []}
      assert Native.register(run(buffer), :room, :room) == :ok
      assert Native.register(run(buffer), :drainer, :drainer) == :ok
      assert Native.left(buffer) == {false, [room: self(), drainer: self()]}
    end

    test "is of no partition in a buffer without partitions" do
      buffer = unique_name()
      Native.open(buffer, :map, 0, false, true, :any, {:infinity, :infinity})
      assert Native.register(run(buffer), 0, :server) == :not_running
      assert Native.begin_task(run(buffer), 0) == :not_running
      assert Native.register(run(buffer), :room, :room) == :ok
    end

    test "of a task that outlives its run is still ended by it" do
      buffer = unique_name()
      {owner, run} = open_elsewhere(buffer, :map, 2)
      assert Native.begin_task(run, 1) == :ok
      kill_owner(buffer, owner)
      assert Native.left(buffer) == {false, [task: self()]}
      assert Native.end_task(run, 0) == :ok
      assert Native.left(buffer) == {false, [task: self()]}
      assert Native.end_task(run, 1) == :ok
      assert Native.left(buffer) == {false, []}
    end
  end

  describe "left/1" do
    test "names the processes of all partitions, alive or dead" do
      buffer = unique_name()
      Native.open(buffer, :map, 4_096, true, true, :any, {:infinity, :infinity})
      assert Native.left(buffer) == {true, []}
      for number <- 0..4_095, do: assert(Native.register(run(buffer), number, :server) == :ok)
      dead = spawn(fn -> :ok end)
      kill_processes([dead])
      for number <- 0..4_095//2, do: Native.set_tasks(run(buffer), number, dead)
      {true, left} = Native.left(buffer)
      assert Enum.frequencies(left) == %{{:server, self()} => 4_096, {:tasks, dead} => 2_048}
    end
  end

  describe "begin_event/3 and end_event/2" do
    test "drop all events from the limit on, until none is pending, and count them" do
      {run, own} = {opened_run(), self()}
      assert Native.begin_event(run, 1, 3) == nil
      Native.register(run, :events, :events)
      assert Enum.map([2, 2, 1, 1], &Native.begin_event(run, &1, 3)) == [own, own, :full, :full]
      assert Native.end_event(run, 2) == 0
      assert Native.begin_event(run, 1, 3) == :full
      assert Native.end_event(run, 2) == 3
      assert Native.begin_event(run, 1, 3) == own
      assert Native.end_event(run, 1) == 0
    end

    test "count anew for a new process, which reports the dropped ones" do
      run = opened_run()
      Native.register(run, :events, :events)
      for _ <- 1..2, do: Native.begin_event(run, 1, 1)
      test = self()

      spawn_link(fn ->
        send(test, {Native.register(run, :events, :events), Native.end_event(run, 0), self()})
      end)

      assert_receive {:ok, 1, next}
      assert Native.begin_event(run, 1, 1) == next
      assert Native.begin_event(run, 1, 1) == :full
    end

    test "count nothing once the run is over" do
      run = opened_run()
      Native.register(run, :events, :events)
      Native.end_run(elem(run, 0))
      assert Native.begin_event(run, 1, 1) == :not_running
      assert Native.end_event(run, 1) == :not_running
    end

    defp opened_run, do: Native.open(unique_name(), :map, 1, false, true, :any, {:infinity, :infinity})
  end

  describe "end_run/1" do
    test "lets no process act for the run, and no task begin" do
      buffer = unique_name()
      Native.open(buffer, :map, 2, true, true, :any, {:infinity, :infinity})
      run = run(buffer)
      assert Native.begin_task(run, 0) == :ok
      assert Native.end_run(buffer) == :ok
      assert Native.begin_task(run, 1) == :not_running
      assert Native.register(run, 1, :server) == :not_running
      assert Native.flush(run, 0) == :not_running
      assert Native.left(buffer) == {true, [task: self()]}
      assert Native.run(buffer) == :not_running
      assert Native.end_run(unique_name()) == :ok
    end
  end
end
