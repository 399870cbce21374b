defmodule PartitionedBuffer.Cluster.Forward do
  @moduledoc false
  # The work of the collecting stage: gives each batch of a slot to the owner of the slot. A partition
  # of the stage is a slot, so a batch has one owner, and a slot has one batch under way.
  #
  # A batch is leased and marked with its number and its owner before the call, so a task that
  # inherits the batch of a dead one asks the same owner with the same number.
  #
  # | the answer | the batch |
  # |---|---|
  # | taken, or taken before | succeeded |
  # | the owner is full | goes back, and is tried after a pause, in smaller batches |
  # | certainly not taken | goes back, and on to the present owner |
  # | unknown, and the owner stopped | is settled as the owner said, see `Ending` |
  # | unknown, and the owner is a member | is asked for again |
  # | unknown, and the owner is away: a map | goes back: its versions make a repetition harmless |
  # | the same: a counter | is kept from others for `:uncertain_ms`, and asked for when the owner is back |
  #
  # What goes back waits together with new entries, and coalesces. The task goes on until nothing is
  # left, so a flush by request waits for that, and a move or a full owner is no failure. In a stop the
  # drain decides about pauses.

  @behaviour PartitionedBuffer.Processing

  alias PartitionedBuffer.Cluster.{Receiver, State, Taking}
  alias PartitionedBuffer.{Emitter, Native, Options, Ref, Telemetry}
  alias PartitionedBuffer.Processing.{Batch, DeadLetter, Job}

  # The pauses, in milliseconds: before the next owner is asked, between two questions about a batch,
  # and the shortest and longest one for a full owner.
  @moved_ms 20
  @ask_ms 100
  @full_ms {100, 1_000}

  # The most entries of a forward.
  @batch_size 1_000

  # A batch under way. It is `sure?` while no owner may have it.
  @enforce_keys [:entries, :number, :to]
  defstruct @enforce_keys ++ [:since, sure?: true]

  # The work so far: whether entries went back, and the next pause for a full owner.
  @start %{back?: false, full_ms: elem(@full_ms, 0)}

  @doc """
  The most entries of a forward.
  """
  @spec batch_size() :: pos_integer()
  def batch_size, do: @batch_size

  @impl true
  def run(%Job{reason: nil} = job) do
    State.delete(job.ref.buffer, {:uncertain, job.ref.number})
    if job.resumed?, do: inherit(job), else: next(job, false, @start)
  end

  # The batch of a dead task stays leased for the next task.
  def run(%Job{} = job), do: job

  defp inherit(job) do
    case Native.inherit(job.flush, nil) do
      {:leased, _count} ->
        case Native.marked(job.flush) do
          {number, to} ->
            ask(
              job,
              %__MODULE__{entries: Native.batch(job.flush), number: number, to: to, sure?: false},
              @start
            )

          nil ->
            give_back(job, 0, @start)
        end

      nil ->
        next(job, false, @start)

      # A task died while it gave up entries at the end of a stop.
      {_given_up, _count} ->
        DeadLetter.bury(job, :killed)
        next(job, false, @start)
    end
  end

  defp next(job, succeeded?, work) do
    batch = Batch.lease_next(job, succeeded?)

    case batch.begun do
      _begun when batch.count == 0 -> finish(job, work)
      attempts when is_integer(attempts) -> send_batch(job, batch.entries, work)
      refused when refused in [:on_hold, :paused] -> job
      # Another task began a batch since the read.
      false -> next(job, false, work)
    end
  end

  # What went back waits together with newer entries.
  defp finish(job, %{back?: false}), do: job

  defp finish(%Job{ref: ref} = job, work) do
    case Native.flush(ref.run, ref.number) do
      {kind, flush} -> next(%Job{job | flush: flush, resumed?: kind == :rest}, false, %{work | back?: false})
      _nothing -> job
    end
  end

  defp send_batch(%Job{ref: ref} = job, entries, work) do
    number = State.next_number()
    to = State.owner(ref.buffer, ref.number)

    # Without the mark the batch is another task's, or the stage ended.
    if Native.mark(job.flush, {number, to}),
      do: ask(job, %__MODULE__{entries: entries, number: number, to: to}, work),
      else: job
  end

  defp ask(%Job{ref: %Ref{buffer: buffer}} = job, batch, work) do
    case Telemetry.forward(job.ref, batch.to, batch.entries, fn -> call(job.ref, batch) end) do
      answer when answer in [:ok, :duplicate] -> taken(job, batch, work)
      # A full or stopping owner knows the numbers that it took.
      :full -> full(job, batch, work)
      :moved when batch.sure? -> moved(job, work)
      _unknown -> unknown(job, batch, work, State.options(buffer).kind)
    end
  end

  defp call(%Ref{buffer: buffer, number: slot}, %__MODULE__{to: to} = batch) when to == node(),
    do: outcome(Taking.take(buffer, to_batch(buffer, slot, batch), :bounded))

  defp call(%Ref{buffer: buffer, number: slot}, %__MODULE__{to: to} = batch) do
    clock = Taking.clock(buffer, slot)
    call_ms = State.settings(buffer).call_ms

    case Receiver.forward(buffer, to, to_batch(buffer, slot, batch), :bounded, clock, call_ms) do
      {answer, clock, incarnation} ->
        Taking.see_clock(buffer, clock, to)
        other? = State.other_incarnation?(buffer, to, incarnation)
        # The owner that was asked before died with its entries.
        if other? and answer == :ok and not batch.sure?, do: State.count(buffer, :resent)
        outcome(answer)

      :not_taken ->
        :moved

      _unknown ->
        :uncertain
    end
  end

  defp to_batch(buffer, slot, %__MODULE__{number: number, entries: entries}),
    do: {{State.incarnation(buffer), slot}, number, entries}

  defp outcome(answer) when answer in [:ok, :duplicate, :full], do: answer
  defp outcome(_stopping_or_not_running), do: :moved

  defp taken(%Job{ref: %Ref{buffer: buffer}} = job, batch, work) do
    State.count(buffer, :forwarded)
    State.note_forwarded(buffer, batch.to)
    settled(job, batch, :taken)
    job = job |> Job.delivered(length(batch.entries)) |> resize(4 * batch_size(job))
    next(job, true, %{work | full_ms: elem(@full_ms, 0)})
  end

  # The bound of the owner may be below the size of the batch.
  defp full(job, batch, %{full_ms: ms} = work) do
    job
    |> resize(div(length(batch.entries), 2))
    |> give_back(ms, %{work | full_ms: min(2 * ms, elem(@full_ms, 1))})
  end

  defp batch_size(%Job{options: %Options{processing_batch_size: size}}), do: size

  defp resize(%Job{options: %Options{} = options} = job, size),
    do: %Job{job | options: %Options{options | processing_batch_size: size |> max(1) |> min(@batch_size)}}

  defp moved(%Job{ref: %Ref{buffer: buffer, number: slot}} = job, work) do
    State.delete(buffer, {:uncertain, slot})
    State.count(buffer, :rerouted)
    give_back(job, @moved_ms, work)
  end

  # The entries wait again. A stop ends its task with the pause, and decides what follows.
  defp give_back(%Job{trigger: trigger} = job, ms, work) do
    Native.mark(job.flush, nil)
    stop? = trigger == :stop
    Batch.give_back(job.flush, :all, false, :infinity, if(stop?, do: ms))

    if stop? or State.stop(job.ref.buffer) != nil do
      job
    else
      Process.sleep(ms)
      next(%Job{job | resumed?: true}, false, %{work | back?: true})
    end
  end

  # An owner that stopped said what it took.
  defp unknown(%Job{ref: %Ref{buffer: buffer, number: slot}} = job, batch, work, kind) do
    case State.ended(buffer, batch.to, slot, batch.number) do
      :taken -> taken(job, batch, work)
      :not_taken -> moved(job, work)
      nil -> undecided(job, batch, work, kind)
    end
  end

  # An owner that is a member will answer one day. Only its absence ends that.
  defp undecided(%Job{ref: %Ref{buffer: buffer} = ref} = job, %__MODULE__{} = batch, work, kind) do
    now = System.monotonic_time(:millisecond)
    {members, _owners} = State.view(buffer)
    member? = batch.to in members or batch.to == node()
    since = if member?, do: nil, else: away_since(buffer, batch.to, batch.since || now)
    batch = %__MODULE__{batch | sure?: false, since: since}

    cond do
      member? ->
        wait(job, batch, work)

      kind == :map ->
        resend(job, batch, work)

      now - since >= State.settings(buffer).uncertain_ms ->
        resend(job, batch, work)

      true ->
        State.put(buffer, {:uncertain, ref.number}, {batch.to, since})
        wait(job, batch, work)
    end
  end

  # The owner may have been back since the last question.
  defp away_since(buffer, owner, since) do
    case State.away_since(buffer, owner) do
      nil -> since
      away -> max(away, since)
    end
  end

  # The stop inherits the batch.
  defp wait(%Job{trigger: trigger} = job, batch, work) do
    if trigger != :stop and State.stop(job.ref.buffer) != nil do
      job
    else
      Process.sleep(@ask_ms)
      ask_again(job, batch, work)
    end
  end

  # A node that is away is not asked.
  defp ask_again(%Job{ref: %Ref{buffer: buffer}} = job, batch, work) do
    if batch.to == node() or batch.to in Node.list(:connected),
      do: ask(job, batch, work),
      else: unknown(job, batch, work, State.options(buffer).kind)
  end

  defp resend(job, batch, work) do
    State.count(job.ref.buffer, :resent)
    settled(job, batch, :resent)
    give_back(job, @moved_ms, work)
  end

  # Reports the end of an uncertainty.
  defp settled(_job, %__MODULE__{since: nil}, _outcome), do: :ok

  defp settled(%Job{ref: %Ref{buffer: buffer} = ref}, batch, outcome) do
    State.delete(buffer, {:uncertain, ref.number})

    duration =
      System.convert_time_unit(System.monotonic_time(:millisecond) - batch.since, :millisecond, :native)

    Emitter.event(
      ref.run,
      [:cluster, :uncertain],
      %{count: length(batch.entries), duration: duration},
      %{buffer: buffer, slot: ref.number, to: batch.to, outcome: outcome}
    )
  end
end
