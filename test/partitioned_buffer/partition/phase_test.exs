defmodule PartitionedBuffer.Partition.PhaseTest do
  # The state machine of a partition, without processes: first its table, then random sequences of
  # events beside a model that counts what is promised.
  use ExUnit.Case, async: true

  alias PartitionedBuffer.Partition.Phase
  alias PartitionedBuffer.Partition.Phase.Work

  @triggers [:interval, :threshold, :full]

  # 10^5 sequences take some seconds.
  @sequences 100_000
  @longest 25

  defp processing(fields \\ []), do: {:processing, struct!(%Work{trigger: :interval, kind: :fresh}, fields)}

  describe "a partition that starts" do
    test "is passive: nothing starts before it is activated" do
      for event <- [{:due, :interval}, :pause_over, :drain, {:ended, :done, 0}],
          do: assert(Phase.handle(Phase.new(), event) == {Phase.new(), []})

      assert Phase.handle(Phase.new(), {:flush, :a}) == {{:passive, [:a], 0}, []}
    end

    test "takes over what it finds" do
      assert Phase.handle({:passive, [], 0}, {:found, :nothing}) == {:idle, [:start_timers]}

      assert {{:processing, %Work{requests: [:a]}}, [:start_timers]} =
               Phase.handle({:passive, [:a], 0}, {:found, :task})

      assert Phase.handle({:passive, [], 0}, {:found, :paused}) ==
               {{:paused, :interval}, [:start_timers, :begin_pause]}

      assert {{:processing, _work}, [:start_timers, {:start, :interval, nil}]} =
               Phase.handle({:passive, [], 0}, {:found, :rest})

      for what <- [:nothing, :paused, :rest] do
        assert {{:processing, %Work{round: [:a, :b]}},
                [:start_timers, :end_pause, {:start, :flush, [:a, :b]}]} =
                 Phase.handle({:passive, [:b, :a], 0}, {:found, what})
      end
    end
  end

  describe "an idle partition" do
    test "starts for every trigger and request" do
      for trigger <- @triggers do
        assert {{:processing, %Work{round: nil}}, [{:start, ^trigger, nil}]} =
                 Phase.handle(:idle, {:due, trigger})
      end

      assert {{:processing, %Work{round: [:a]}}, [{:start, :flush, [:a]}]} = Phase.handle(:idle, {:flush, :a})
    end
  end

  describe "a partition whose task runs" do
    test "remembers a trigger and keeps requests" do
      assert Phase.handle(processing(), {:due, :full}) == {processing(missed: :full), []}
      assert Phase.handle(processing(), {:flush, :a}) == {processing(requests: [:a]), []}
    end

    test "flushes what waits after the rest of the last flush" do
      assert {{:processing, %Work{round: [:a]}}, [{:start, :flush, [:a]}]} =
               Phase.handle(processing(kind: :rest, trigger: :flush, round: [:a]), {:ended, :done, 3})
    end

    test "answers the round before it starts the next one" do
      work = processing(round: [:a], requests: [:c, :b], missed: :interval)

      assert {{:processing, %Work{round: [:b, :c], missed: nil}},
              [{:reply, [:a], 2}, {:start, :flush, [:b, :c]}]} = Phase.handle(work, {:ended, :done, 2})
    end

    test "makes a remembered trigger good, unless it pauses" do
      assert {{:processing, _work}, [{:start, :threshold, nil}]} =
               Phase.handle(processing(missed: :threshold), {:ended, :done, 0})

      assert Phase.handle(processing(missed: :threshold), {:ended, :paused, 4}) ==
               {{:paused, :interval}, [:begin_pause]}
    end

    test "lets a request end a pause at once" do
      assert {{:processing, %Work{round: [:b]}}, [{:reply, [:a], 4}, :end_pause, {:start, :flush, [:b]}]} =
               Phase.handle(processing(round: [:a], requests: [:b]), {:ended, :paused, 4})
    end

    test "tells requests that waited of the entries that the task lost" do
      {next, actions} = Phase.handle(processing(round: [:a], requests: [:b]), {:ended, :lost, 2, 5})
      assert [{:reply, [:a], 7}, {:start, :flush, [:b]}] = actions
      assert {:idle, [{:reply, [:b], 2}]} = Phase.handle(next, {:flushed, :empty})
    end

    test "settles the batch of a dead task once, and then falls back to a pause" do
      {settling, actions} = Phase.handle(processing(round: [:a]), {:ended, :died, :killed, 3})
      assert actions == [{:settle, :killed}]

      assert Phase.handle(settling, {:ended, :died, :killed, 3}) ==
               {{:paused, :interval}, [{:reply, [:a], 3}, :fall_back, :begin_pause]}
    end

    test "answers nobody once the run is over" do
      assert Phase.handle(processing(round: [:a]), {:flushed, :over}) == {:idle, []}
    end
  end

  describe "a paused partition" do
    test "ignores triggers, and starts at its end or for a request" do
      for trigger <- @triggers,
          do: assert(Phase.handle({:paused, :full}, {:due, trigger}) == {{:paused, :full}, []})

      assert {{:processing, _work}, [{:start, :full, nil}]} = Phase.handle({:paused, :full}, :pause_over)

      assert {{:processing, _work}, [:end_pause, {:start, :flush, [:a]}]} =
               Phase.handle({:paused, :full}, {:flush, :a})
    end
  end

  describe "a partition of a buffer on hold" do
    test "refuses the requests of a start, and starts at the end of the hold" do
      refused = processing(trigger: :flush, round: [:a], requests: [:c, :b])

      assert Phase.handle(refused, {:flushed, :on_hold}) ==
               {{:on_hold, :flush}, [{:reply, [:a], :on_hold}, {:reply, [:b, :c], :on_hold}]}

      assert Phase.handle(processing(trigger: :full), {:flushed, :on_hold}) == {{:on_hold, :full}, []}

      assert {{:processing, %Work{round: nil}}, [{:start, :full, nil}]} =
               Phase.handle({:on_hold, :full}, :resume)
    end

    test "tells refused requests of entries that were lost before" do
      assert Phase.handle(processing(trigger: :flush, round: [:a], lost: 2), {:flushed, :on_hold}) ==
               {{:on_hold, :flush}, [{:reply, [:a], 2}]}
    end

    test "goes on with the round of a task that was held up" do
      for kind <- [:fresh, :rest] do
        work = processing(kind: kind, trigger: :flush, round: [:a], requests: [:b])

        assert {{:processing, %Work{round: [:a], requests: [:b], kind: nil}}, [{:start, :flush, [:a]}]} =
                 Phase.handle(work, {:ended, :held_up})
      end
    end

    test "ignores triggers, refuses requests and remembers them" do
      for event <- [{:due, :interval}, :pause_over, :paused],
          do: assert(Phase.handle({:on_hold, :full}, event) == {{:on_hold, :full}, []})

      assert Phase.handle({:on_hold, :full}, {:flush, :a}) == {{:on_hold, :flush}, [{:reply, [:a], :on_hold}]}
    end

    test "is on hold in a new process, which makes a lost trigger good" do
      assert Phase.handle({:passive, [], 0}, {:found, :on_hold}) == {{:on_hold, :interval}, [:start_timers]}

      assert {{:processing, %Work{round: [:a]}}, [:start_timers, :end_pause, {:start, :flush, [:a]}]} =
               Phase.handle({:passive, [:a], 0}, {:found, :on_hold})
    end

    test "is passive in a stop" do
      assert Phase.handle({:on_hold, :full}, :drain) == {{:passive, [], 0}, [:stop_timers]}
    end
  end

  describe "a pause of all partitions" do
    test "pauses an idle partition, and moves the end of a pause" do
      assert Phase.handle(:idle, :paused) == {{:paused, :interval}, [:begin_pause]}
      assert Phase.handle({:paused, :full}, :paused) == {{:paused, :full}, [:begin_pause]}
    end

    test "leaves other partitions to their tasks and stops" do
      for phase <- [processing(), {:passive, [], 0}], do: assert(Phase.handle(phase, :paused) == {phase, []})
    end
  end

  describe "a partition that a stop drains" do
    test "is passive, and the stop answers all requests" do
      assert Phase.handle(:idle, :drain) == {{:passive, [], 0}, [:stop_timers]}
      assert Phase.handle({:paused, :full}, :drain) == {{:passive, [], 0}, [:stop_timers, :end_pause]}
      {passive, [:stop_timers]} = Phase.handle(processing(round: [:a], requests: [:b]), :drain)
      {passive, []} = Phase.handle(passive, {:flush, :c})
      assert {{:passive, [], 0}, [{:reply, requests, 4}]} = Phase.handle(passive, {:passed, 4})
      assert Enum.sort(requests) == [:a, :b, :c]
    end

    test "tells requests of the entries that were lost before the stop" do
      {round, _actions} = Phase.handle(processing(requests: [:a]), {:ended, :lost, 2, 5})
      {passive, _actions} = Phase.handle(round, :drain)
      assert {{:passive, [], 0}, [{:reply, [:a], 3}]} = Phase.handle(passive, {:passed, 1})
    end

    test "starts nothing, whatever happens" do
      for event <- [{:due, :full}, {:flush, :a}, :pause_over, {:ended, :done, 0}, {:ended, :paused, 1}] do
        assert {{:passive, _requests, _lost}, []} = Phase.handle({:passive, [], 0}, event)
      end
    end
  end

  describe "any sequence of events" do
    test "keeps every promise of the model" do
      seed = System.get_env("PHASE_SEED", "#{:rand.uniform(1_000_000_000)}")
      :rand.seed(:exsss, String.to_integer(seed))
      IO.puts("\n#{@sequences} sequences of a partition's events, PHASE_SEED=#{seed}")

      started =
        for _ <- 1..@sequences, reduce: 0 do
          started -> started + sequence()
        end

      # The sequences are not trivial.
      assert started > @sequences
    end
  end

  # The model: is a task running, is there a pause, do timers run; which requests are open, and which of them
  # the running flush covers; what was lost that they must hear of.
  defp sequence do
    model = %{phase: Phase.new(), task?: false, pause?: false, active?: false, starts: 0, requests: 0}
    model = Map.put(model, :held?, false)
    model = Map.merge(model, %{open: MapSet.new(), covered: MapSet.new(), events: []})
    Enum.reduce(1..:rand.uniform(@longest), model, fn _, model -> step(model, event(model)) end).starts
  end

  defp event(%{active?: false} = model) do
    Enum.random([
      {:flush, model.requests},
      {:due, Enum.random(@triggers)},
      {:passed, :rand.uniform(3) - 1},
      :drain,
      {:found, if(model.task?, do: :task, else: Enum.random([:nothing, :paused, :rest, :on_hold]))}
    ])
  end

  defp event(%{task?: true} = model) do
    Enum.random([
      {:flush, model.requests},
      {:due, Enum.random(@triggers)},
      :drain,
      :paused,
      :ended,
      :ended,
      :ended
    ])
    |> end_of_task()
  end

  defp event(model) do
    over = if model.pause?, do: [:pause_over, :pause_over], else: []
    over = if model.held?, do: [:resume, :resume], else: over
    Enum.random([{:flush, model.requests}, {:due, Enum.random(@triggers)}, :drain, :paused] ++ over)
  end

  defp end_of_task(:ended) do
    count = :rand.uniform(3) - 1

    Enum.random([
      {:ended, :done, count},
      {:ended, :held_up},
      {:ended, :paused, count},
      {:ended, :lost, count, count},
      {:ended, :died, :killed, count}
    ])
  end

  defp end_of_task(event), do: event

  defp step(model, event) do
    model = %{model | events: [event | model.events]} |> before(event)
    {phase, actions} = Phase.handle(model.phase, event)
    model = Enum.reduce(actions, %{model | phase: phase}, &act(&2, &1))
    check(model)
    model
  end

  defp before(model, {:flush, request}),
    do: %{model | requests: request + 1, open: MapSet.put(model.open, request)}

  defp before(model, {:ended, _}), do: %{model | task?: false}
  defp before(model, {:ended, _, _}), do: %{model | task?: false}
  defp before(model, {:ended, _, _, _}), do: %{model | task?: false}
  # The stop waits for the task, so it may be found again.
  defp before(model, :drain), do: %{model | active?: false, task?: false, pause?: false, held?: false}
  defp before(model, :pause_over), do: %{model | pause?: false}
  defp before(model, :resume), do: %{model | held?: false}
  defp before(model, {:found, :task}), do: %{model | active?: true}

  # A new process with requests starts their round.
  defp before(model, {:found, what}) do
    held? = what == :on_hold and MapSet.size(model.open) == 0
    %{model | active?: true, pause?: what == :paused, held?: held?}
  end

  # A stop has gone through everything.
  defp before(model, {:passed, _failed}), do: %{model | covered: model.open}
  defp before(model, _event), do: model

  defp act(model, {kind, _, _} = start) when kind == :start do
    assert model.active?, "a passive partition starts nothing"
    refute model.task?, "one task at a time"
    refute model.pause?, "nothing starts during a pause"
    refute model.held?, "nothing starts on hold"
    model = %{model | covered: model.open, starts: model.starts + 1}
    {:start, trigger, round} = start
    assert trigger == :flush or round == nil
    started(model, Enum.random([:fresh, :fresh, :rest, :empty, :no_task, :on_hold]))
  end

  defp act(model, {:settle, _reason}) do
    assert model.active? and not model.task?
    %{model | task?: true}
  end

  defp act(model, {:reply, requests, :on_hold}) do
    assert model.held?, "only a hold refuses requests"
    %{model | open: MapSet.difference(model.open, MapSet.new(requests))}
  end

  defp act(model, {:reply, requests, failed}) do
    assert failed >= 0
    answered = MapSet.new(requests)
    assert MapSet.size(answered) == length(requests), "nobody is answered twice"
    assert MapSet.subset?(answered, model.open), "nobody is answered again"
    assert MapSet.subset?(answered, model.covered), "a flush after the request comes before its answer"
    %{model | open: MapSet.difference(model.open, answered)}
  end

  defp act(model, :begin_pause) do
    assert model.active? and not model.task?
    %{model | pause?: true}
  end

  defp act(model, :end_pause), do: %{model | pause?: false}
  defp act(model, action) when action in [:fall_back, :start_timers, :stop_timers], do: model

  # The process of the partition reports at once what became of a start.
  defp started(model, kind) do
    event = if kind == :no_task, do: {:flushed, :no_task, 1}, else: {:flushed, kind}
    model = %{model | task?: kind in [:fresh, :rest], events: [event | model.events]}
    model = %{model | held?: kind == :on_hold}
    {phase, actions} = Phase.handle(model.phase, event)
    Enum.reduce(actions, %{model | phase: phase}, &act(&2, &1))
  end

  defp check(%{phase: phase} = model) do
    unless consistent?(phase, model) and MapSet.new(requests(phase)) == model.open,
      do: flunk("forgets a request, or is in the wrong phase: #{inspect(model, limit: :infinity)}")
  end

  defp consistent?({:passive, _requests, _lost}, model), do: not model.active?
  defp consistent?(:idle, model), do: not (model.task? or model.pause? or model.held?)
  defp consistent?({:processing, _work}, model), do: model.task? and not model.pause?
  defp consistent?({:paused, _trigger}, model), do: model.pause? and not (model.task? or model.held?)
  defp consistent?({:on_hold, _trigger}, model), do: model.held? and not (model.task? or model.pause?)

  defp requests({:passive, requests, _lost}), do: requests
  defp requests({:processing, work}), do: work.requests ++ List.wrap(work.round)
  defp requests(_idle_or_paused), do: []
end
