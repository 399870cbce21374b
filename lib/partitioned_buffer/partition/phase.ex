defmodule PartitionedBuffer.Partition.Phase do
  @moduledoc """
  Decides when a partition flushes: a pure state machine without a process, a clock or a timer.

  `handle/2` takes the phase and an event, and returns the next phase and actions. The process of
  the partition (`PartitionedBuffer.Partition.Server`) carries the actions out in their order and
  decides nothing. Everything that must survive this process is in the native partition, so after a
  crash `{:found, …}` rebuilds the phase.

  A *round* serves requests to flush: first the rest of the last flush, then the waiting entries.
  Requests that arrive during a round join the next one, since it already swapped out the entries.

  | event | passive | idle | processing | paused | on hold |
  |---|---|---|---|---|---|
  | `{:found, what}` | takes over what it found | – | – | – | – |
  | `{:due, trigger}` | – | starts | remembers the trigger | – | – |
  | `{:flush, request}` | keeps the request | starts a round | keeps the request for the next round | ends the pause, starts a round | refuses the request, remembers it |
  | `{:flushed, kind}` | – | – | remembers the kind, or ends the round | – | – |
  | `{:flushed, :on_hold}` | – | – | refuses all requests; on hold | – | – |
  | `{:ended, :done, failed}` | – | – | after a rest starts again; else ends the round, then next | – | – |
  | `{:ended, :held_up}` | – | – | starts again, for the same round | – | – |
  | `{:ended, :paused, held}` | – | – | the round failed; pauses, or starts the next round | – | – |
  | `{:ended, :lost, lost, held}` | – | – | the round failed; then next | – | – |
  | `{:ended, :died, reason, held}` | – | – | settles the batch; the second time pauses | – | – |
  | `:paused` | – | pauses | – | waits for the new end | – |
  | `:pause_over` | – | – | – | starts | – |
  | `:resume` | – | – | – | – | starts |
  | `:drain` | – | becomes passive | becomes passive, keeps all requests | ends the pause, becomes passive | becomes passive |
  | `{:passed, failed}` | answers its requests | – | – | – | – |

  *Next* is a round if requests wait, else a flush if a trigger was remembered, else idle. A dash
  changes nothing. A partition is *passive* until its whole buffer is started, and again from the
  moment a stop drains it: from that moment only the stop calls the processor. It is *on hold* when
  a hold of the buffer refused it a start, so the end of the hold makes the start good.

  | `what` it found | next |
  |---|---|
  | `:task` | processing: a task of an earlier process is running |
  | `:on_hold` | on hold; refuses its requests |
  | `:paused` | paused |
  | `:rest` | starts: a dead process left entries in flight |
  | `:nothing` | idle, or a round if requests wait |
  """

  defmodule Work do
    @moduledoc false
    # The work of a partition while a task is running. `round` has the requests that the task
    # serves, nil without a round, and `lost` counts entries lost before the round, which its answer
    # includes. `requests` wait for the next round. `missed` is a trigger that came during the task.
    @enforce_keys [:trigger]
    defstruct [:trigger, :kind, :round, :missed, lost: 0, requests: [], settling?: false]
  end

  @typedoc "Why a partition flushes."
  @type trigger() :: :interval | :threshold | :full | :flush

  @typedoc "A caller that waits for the result of a flush. The machine does not look into it."
  @type request() :: term()

  @typedoc "A passive partition has requests, and how many entries were lost before a stop drained it."
  @type t() ::
          {:passive, [request()], lost :: non_neg_integer()}
          | :idle
          | {:processing, %Work{}}
          | {:paused, trigger()}
          | {:on_hold, trigger()}

  @type event() ::
          {:found, :task | :on_hold | :paused | :rest | :nothing}
          | {:due, :interval | :threshold | :full}
          | {:flush, request()}
          | {:flushed, :rest | :fresh | :empty | :on_hold | :over}
          | {:flushed, :no_task, held :: non_neg_integer()}
          | {:ended, :done, failed :: non_neg_integer()}
          | {:ended, :held_up}
          | {:ended, :paused, held :: non_neg_integer()}
          | {:ended, :lost, lost :: non_neg_integer(), held :: non_neg_integer()}
          | {:ended, :died, reason :: term(), held :: non_neg_integer()}
          | :paused
          | :pause_over
          | :resume
          | :drain
          | {:passed, failed :: non_neg_integer()}

  @typedoc """
  `{:start, trigger, round}` flushes and starts a task, then `{:flushed, …}` follows. `{:settle,
  reason}` starts a task that only settles the batch of a dead one. `{:reply, requests, answer}`
  answers how many entries failed, or refuses. `:begin_pause` waits for the end of the native pause,
  and `:fall_back` makes one first. `:end_pause` ends it. `:stop_timers` stops ticks and pauses,
  `:start_timers` starts ticks.
  """
  @type action() ::
          {:start, trigger(), [request()] | nil}
          | {:settle, term()}
          | {:reply, [request()], non_neg_integer() | :on_hold}
          | :begin_pause
          | :fall_back
          | :end_pause
          | :start_timers
          | :stop_timers

  @doc """
  The phase of a newly started process.
  """
  @spec new() :: t()
  def new, do: {:passive, [], 0}

  @doc """
  The next phase, and the actions to carry out.
  """
  @spec handle(t(), event()) :: {t(), [action()]}
  def handle({:passive, requests, _lost}, {:found, what}), do: take_over(what, requests)

  def handle({:passive, requests, lost}, {:flush, request}),
    do: {{:passive, [request | requests], lost}, []}

  def handle({:passive, requests, lost}, {:passed, failed}),
    do: {{:passive, [], 0}, reply(requests, lost + failed)}

  def handle(:idle, {:due, trigger}), do: start(trigger)
  def handle(:idle, {:flush, request}), do: start_round([request], 0)
  def handle(:idle, :paused), do: {{:paused, :interval}, [:begin_pause]}
  def handle(:idle, :drain), do: {{:passive, [], 0}, [:stop_timers]}

  def handle({:paused, _trigger}, {:flush, request}), do: [request] |> start_round(0) |> first(:end_pause)
  def handle({:paused, trigger}, :paused), do: {{:paused, trigger}, [:begin_pause]}
  def handle({:paused, trigger}, :pause_over), do: start(trigger)
  def handle({:paused, _trigger}, :drain), do: {{:passive, [], 0}, [:stop_timers, :end_pause]}

  def handle({:on_hold, _trigger}, {:flush, request}), do: {{:on_hold, :flush}, reply([request], :on_hold)}
  def handle({:on_hold, trigger}, :resume), do: start(trigger)
  def handle({:on_hold, _trigger}, :drain), do: {{:passive, [], 0}, [:stop_timers]}

  def handle({:processing, %Work{} = work}, {:due, trigger}),
    do: {{:processing, %Work{work | missed: trigger}}, []}

  def handle({:processing, %Work{} = work}, {:flush, request}),
    do: {{:processing, %Work{work | requests: [request | work.requests]}}, []}

  def handle({:processing, %Work{} = work}, {:flushed, kind}) when kind in [:rest, :fresh],
    do: {{:processing, %Work{work | kind: kind}}, []}

  def handle({:processing, %Work{} = work}, {:flushed, :empty}), do: work |> next() |> answer(work, 0)

  def handle({:processing, %Work{} = work}, {:flushed, :on_hold}) do
    trigger = if work.requests == [], do: work.trigger, else: :flush
    requests = Enum.reverse(work.requests)
    {{:on_hold, trigger}, reply(requests, :on_hold)} |> refuse(work)
  end

  # The run is over, and this process is about to end. An answer would claim that all is done.
  def handle({:processing, _work}, {:flushed, :over}), do: {:idle, []}

  def handle({:processing, %Work{} = work}, {:flushed, :no_task, held}),
    do: work |> pause() |> first(:fall_back) |> answer(work, held)

  def handle({:processing, %Work{kind: :rest} = work}, {:ended, :done, _failed}), do: start_again(work)
  def handle({:processing, %Work{} = work}, {:ended, :held_up}), do: start_again(work)

  def handle({:processing, %Work{} = work}, {:ended, :done, failed}),
    do: work |> next() |> answer(work, failed)

  def handle({:processing, %Work{} = work}, {:ended, :paused, held}),
    do: work |> pause() |> answer(work, held)

  def handle({:processing, %Work{} = work}, {:ended, :lost, lost, held}),
    do: work |> next(lost) |> answer(work, lost + held)

  def handle({:processing, %Work{settling?: true} = work}, {:ended, :died, _reason, held}),
    do: work |> pause() |> first(:fall_back) |> answer(work, held)

  def handle({:processing, %Work{} = work}, {:ended, :died, reason, _held}),
    do: {{:processing, %Work{work | kind: :rest, settling?: true}}, [{:settle, reason}]}

  def handle({:processing, work}, :drain),
    do: {{:passive, work.requests ++ List.wrap(work.round), work.lost}, [:stop_timers]}

  def handle(phase, _event), do: {phase, []}

  defp take_over(:task, requests),
    do: {{:processing, %Work{trigger: :interval, requests: requests}}, [:start_timers]}

  defp take_over(:nothing, []), do: {:idle, [:start_timers]}
  defp take_over(:on_hold, []), do: {{:on_hold, :interval}, [:start_timers]}
  defp take_over(:paused, []), do: {{:paused, :interval}, [:start_timers, :begin_pause]}
  defp take_over(:rest, []), do: :interval |> start() |> first(:start_timers)
  defp take_over(_what, requests), do: requests |> start_round(0) |> first(:end_pause) |> first(:start_timers)

  defp start(trigger), do: {{:processing, %Work{trigger: trigger}}, [{:start, trigger, nil}]}

  defp start_again(%Work{} = work),
    do: {{:processing, %Work{work | kind: nil, settling?: false}}, [{:start, work.trigger, work.round}]}

  defp start_round(requests, lost) do
    round = Enum.reverse(requests)
    {{:processing, %Work{trigger: :flush, round: round, lost: lost}}, [{:start, :flush, round}]}
  end

  defp next(work, lost \\ 0)
  defp next(%Work{requests: [_ | _] = requests}, lost), do: start_round(requests, lost)
  defp next(%Work{missed: nil}, _lost), do: {:idle, []}
  defp next(%Work{missed: trigger}, _lost), do: start(trigger)

  # A request ends the pause at once. A remembered trigger does not.
  defp pause(%Work{requests: [_ | _] = requests}), do: requests |> start_round(0) |> first(:end_pause)
  # The retry after the pause is no requested flush.
  defp pause(%Work{trigger: :flush}), do: {{:paused, :interval}, [:begin_pause]}
  defp pause(%Work{trigger: trigger}), do: {{:paused, trigger}, [:begin_pause]}

  # The answer to the requests of the ended round comes before all other actions.
  defp answer({phase, actions}, %Work{round: nil}, _failed), do: {phase, actions}

  defp answer({phase, actions}, %Work{round: round, lost: lost}, failed),
    do: {phase, reply(round, lost + failed) ++ actions}

  # A round that lost entries failed all the same.
  defp refuse({phase, actions}, %Work{round: round, lost: lost}),
    do: {phase, reply(List.wrap(round), if(lost > 0, do: lost, else: :on_hold)) ++ actions}

  defp first({phase, actions}, action), do: {phase, [action | actions]}

  defp reply([], _answer), do: []
  defp reply(requests, answer), do: [{:reply, requests, answer}]
end
