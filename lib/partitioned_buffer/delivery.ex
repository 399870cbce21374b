defmodule PartitionedBuffer.Delivery do
  @moduledoc false
  # Processes a flush of a buffer with `:max_attempts`: leases each batch, calls the processor with it, and settles it by what
  # the processor returns. A failure ends the task, and the partition pauses.
  #
  # Nothing is settled by a process that has died. So each task begins with the batch that the last one has left: the
  # processor has failed with it. If the last task died before it called `:dead_letter`, this one does; if it died in that
  # call, this one calls it again only if the whole supervision tree was killed.

  require Logger

  alias PartitionedBuffer.{Flush, Identity, Native, Options, Outcome, Telemetry}

  # `delivered` is how many entries have succeeded, `failed` how many have failed and were not given up.
  @enforce_keys [:flush, :identity, :options, :resumed?, :failures]
  defstruct @enforce_keys ++ [delivered: 0, failed: 0]

  @doc """
  Processes what is left of a flush. Returns how many entries have succeeded, and how it has ended.
  """
  @spec process(reference(), Identity.t(), Options.t(), keyword()) :: {non_neg_integer(), Flush.ended()}
  def process(flush, %Identity{} = identity, %Options{} = options, opts) do
    state = %__MODULE__{
      flush: flush,
      identity: identity,
      options: options,
      resumed?: opts[:resumed?],
      failures: opts[:failures]
    }

    # Only an earlier task can have left something.
    left = if opts[:resumed?], do: Native.inherit(flush)

    case {left, opts[:reason]} do
      {nil, nil} ->
        deliver(state)

      {nil, _reason} ->
        pause(state, Options.backoff(options, state.failures + 1))

      {{:leased, _count}, reason} ->
        fail(state, reason || :killed, :all, :pause)

      {{:buried, count}, reason} when reason != nil ->
        state |> bury_failed(count, reason) |> pause(Options.backoff(options, state.failures + 1))

      {{given_up, _count}, nil} when given_up in [:given_up, :buried] ->
        state |> bury(:killed) |> deliver()

      {{:given_up, _count}, reason} ->
        state |> bury(reason) |> pause(Options.backoff(options, state.failures + 1))
    end
  end

  @doc """
  Gives back the batch that a dead task has left, for a buffer that has no outcomes now.
  """
  @spec settle_left(reference()) :: :ok
  def settle_left(flush) do
    with {_state, _count} <- Native.inherit(flush) do
      give_back(flush, :all, false, :infinity)
      Native.succeed(flush)
    end

    :ok
  end

  @doc """
  Gives up all entries of a flush without another call of the processor.
  """
  @spec give_up(reference(), Identity.t(), any()) :: :ok
  def give_up(flush, %Identity{} = identity, reason) do
    options = Identity.options(identity)
    state = %__MODULE__{flush: flush, identity: identity, options: options, resumed?: true, failures: 0}
    if Native.inherit(flush) == nil, do: give_up_rest(state, reason), else: give_up_batch(state, reason)
  end

  defp give_up_rest(state, reason) do
    {_entries, count} = Flush.read(state.flush, state.options, true)
    Native.lease(state.flush)
    if count > 0, do: give_up_batch(state, reason), else: :ok
  end

  defp give_up_batch(state, reason) do
    give_back(state.flush, :all, true, 0)
    bury(state, reason)
    give_up_rest(state, reason)
  end

  defp deliver(%__MODULE__{flush: flush, options: options} = state) do
    {entries, count} = Flush.read(flush, options, state.resumed?)

    case {Native.lease(flush), count} do
      {_leased?, 0} -> {state.delivered, %{pause: nil, failures: state.failures, failed: state.failed}}
      {true, count} -> settle(state, call(state, entries, count), count)
      # Another task has begun a batch since.
      {false, _count} -> deliver(state)
    end
  end

  defp call(state, entries, count) do
    Telemetry.batch(state.identity, count, Native.attempts(state.flush) + 1, fn ->
      state.options.processor
      |> Flush.call([entries])
      |> Outcome.new(Options.kind(state.options), entries)
    end)
  catch
    kind, reason ->
      log_exception(state.identity, kind, reason, __STACKTRACE__)
      {:error, Outcome.reason(kind, reason), :all}
  end

  defp settle(state, :ok, count) do
    Native.succeed(state.flush)
    deliver(succeeded(state, count))
  end

  defp settle(state, {:error, reason, :all}, _count), do: fail(state, reason, :all, :pause)

  defp settle(state, {:error, reason, failed}, count) do
    state = succeeded(state, count - length(failed))

    if Options.kind(state.options) == :queue,
      do: fail(state, reason, failed, :pause),
      else: fail(state, reason, failed, :go_on)
  end

  defp settle(state, {:snooze, ms}, count) do
    {retried, superseded, 0} = give_back(state.flush, :all, false, :infinity)

    Telemetry.retry(state.identity, %{
      count: retried,
      superseded: superseded,
      delay: ms,
      reason: :snooze,
      failures: state.failures
    })

    {state.delivered, %{pause: ms, failures: state.failures, failed: state.failed + count}}
  end

  defp settle(state, {:cancel, reason, cancelled}, count) do
    {0, _superseded, given_up} = give_back(state.flush, cancelled, true, 0)
    kept = if cancelled == :all, do: 0, else: count - length(cancelled)
    state = if kept > 0, do: succeeded(state, kept), else: state
    state = if given_up > 0, do: bury(state, reason), else: state
    deliver(state)
  end

  # The longest batch that is given back in less than a millisecond.
  @many 1_000

  defp give_back(flush, failed, counted?, max_attempts) do
    {_calls, length, _left, _called_at} = Native.seen(flush)

    if length <= @many,
      do: Native.give_back(flush, failed, counted?, max_attempts),
      else: Native.give_back_many(flush, failed, counted?, max_attempts)
  end

  defp succeeded(state, count), do: %{state | delivered: state.delivered + count, failures: 0}

  # Ends the task, or goes on because the sink has taken other entries of the batch.
  defp fail(state, reason, failed, next) do
    {retried, superseded, given_up} = give_back(state.flush, failed, true, state.options.max_attempts)
    state = %{state | failed: state.failed + retried}
    delay = if next == :pause, do: Options.backoff(state.options, state.failures + 1), else: 0
    log_failure(state.identity, reason, retried, delay)
    Identity.put_error(state.identity, Outcome.summary(reason))
    Telemetry.processing_failed(state.identity, reason, retried)

    Telemetry.retry(state.identity, %{
      count: retried,
      superseded: superseded,
      delay: delay,
      reason: reason,
      failures: if(next == :pause, do: state.failures + 1, else: state.failures)
    })

    state = if given_up > 0, do: bury(state, reason), else: state
    if next == :pause, do: pause(state, delay), else: deliver(state)
  end

  defp pause(state, delay),
    do: {state.delivered, %{pause: delay, failures: state.failures + 1, failed: state.failed}}

  # Gives the entries that are given up, which are the batch now, to `:dead_letter`.
  defp bury(%__MODULE__{flush: flush, options: options} = state, reason) do
    entries = Native.batch(flush)
    handled? = options.dead_letter != nil and dead_letter(state, entries, reason)
    Native.succeed(flush)
    buried(state, length(entries), reason, handled?)
  end

  # The task that did this has died of it.
  defp bury_failed(state, count, reason) do
    Native.succeed(state.flush)
    buried(state, count, reason, false)
  end

  defp dead_letter(state, entries, reason) do
    Native.bury(state.flush)
    Flush.call(state.options.dead_letter, [entries, reason])
    true
  catch
    kind, cause ->
      Logger.error(
        "#{Identity.describe(state.identity)} has failed with its function :dead_letter:\n" <>
          format_exception(kind, cause, __STACKTRACE__)
      )

      false
  end

  defp buried(state, count, reason, handled?) do
    unless handled? do
      Logger.error(
        "#{Identity.describe(state.identity)} gives up #{count} entries: #{Outcome.describe(reason)}"
      )
    end

    Telemetry.dead_letter(state.identity, %{count: count, reason: reason, handled: handled?})
    state
  end

  defp log_failure(identity, reason, count, delay) do
    Logger.warning(
      "#{Identity.describe(identity)} retries #{count} entries after a pause of #{delay} ms, since its processor has failed: " <>
        Outcome.describe(reason)
    )
  end

  defp log_exception(identity, kind, reason, stacktrace) do
    Logger.error(
      "#{Identity.describe(identity)} has a processor that fails:\n#{format_exception(kind, reason, stacktrace)}"
    )
  end

  # The arguments in a stack trace or of a call that has exited may be entries, and so may what was thrown.
  defp format_exception(kind, reason, stacktrace) do
    stacktrace =
      for {module, function, arity_or_args, location} <- stacktrace do
        arity = if is_list(arity_or_args), do: length(arity_or_args), else: arity_or_args
        {module, function, arity, location}
      end

    banner(kind, reason) <> "\n" <> Exception.format_stacktrace(stacktrace)
  end

  defp banner(:exit, {reason, {module, function, args}})
       when is_atom(module) and is_atom(function) and is_list(args),
       do: "** (exit) in #{Exception.format_mfa(module, function, length(args))}: #{Outcome.describe(reason)}"

  defp banner(:error, reason), do: Exception.format_banner(:error, reason)
  defp banner(kind, reason), do: "** " <> Outcome.describe(Outcome.reason(kind, reason))
end
