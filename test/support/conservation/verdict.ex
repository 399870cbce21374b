defmodule PartitionedBuffer.Conservation.Verdict do
  @moduledoc false
  # The orders for the processor of a buffer with retries on a batch: `first` it waits, perhaps, and
  # `then` it returns, fails or is killed. `outcome` is the meaning of this for the buffer. `chosen`
  # are the marks of all entries if the processor names some; else it is `:all`.

  defstruct first: :nothing, then: {:return, :ok}, outcome: :ok, chosen: :all

  @type t() :: %__MODULE__{}

  @doc "All succeed."
  def ok, do: %__MODULE__{}

  @doc "A verdict on these entries, by chance."
  def draw(entries) do
    case :rand.uniform(1_000) do
      n when n <= 830 -> returning(Enum.random([:ok, :ok, nil, {:ok, 3}, {3, nil}, {:ok, :error}]), :ok)
      n when n <= 845 -> returning(:error, :error)
      n when n <= 860 -> failing()
      n when n <= 880 -> some(entries, [:ok, :failed])
      n when n <= 890 -> some(entries, [:ok, :failed, :cancelled])
      n when n <= 905 -> snooze(Enum.random([-1, 0, 0.5, 3, 7]))
      n when n <= 910 -> returning({:cancel, :invalid}, :cancel)
      n when n <= 925 -> some(entries, [:ok, :cancelled])
      n when n <= 928 -> returning({:error, :foreign, [:not_of_the_batch]}, :error)
      n when n <= 930 -> returning({:partial, :twice, retry: entries, cancel: entries}, :error)
      n when n <= 940 -> failing(:raise)
      n when n <= 950 -> failing(:throw)
      n when n <= 960 -> failing(:exit)
      n when n <= 964 -> failing(:kill)
      n when n <= 980 -> %{failing() | first: {:slow, :rand.uniform(5)}}
      n when n <= 999 -> %{ok() | first: {:slow, :rand.uniform(5)}}
      1_000 -> %__MODULE__{first: :hang, then: :kill, outcome: :error}
    end
  end

  @doc "The whole batch fails."
  def failing, do: returning({:error, {:sink, "away"}}, :error)
  def failing(how), do: %__MODULE__{then: how, outcome: :error}

  @doc "The whole batch fails, in a way by chance."
  def failing_somehow, do: Enum.random([failing(), failing(:raise), failing(:throw), failing(:exit)])

  @doc "The orders of a fault."
  def ordered(how) when how in [:raise, :throw, :exit, :kill], do: failing(how)
  def ordered({:slow, _ms} = slow), do: %{ok() | first: slow}
  def ordered({:hang, _who} = hang), do: %__MODULE__{first: hang, then: :kill, outcome: :error}
  def ordered({:trap, _who, _ms} = trap), do: %{Enum.random([ok(), failing()]) | first: trap}

  defp returning(term, outcome), do: %__MODULE__{then: {:return, term}, outcome: outcome}

  # The partition pauses, or all do.
  defp snooze(ms) do
    case :rand.uniform(3) do
      1 -> returning({:snooze, ms, :buffer}, {:snooze, ms, :buffer})
      _more -> returning({:snooze, ms}, {:snooze, ms, :partition})
    end
  end

  @doc "Some entries, by chance, get each of the marks: a few of them another one than the first, or most."
  def some(entries, [first | others]) do
    share = Enum.random([0.02, 0.5, 0.9])

    marking(
      entries,
      for(_entry <- entries, do: if(:rand.uniform() < share, do: Enum.random(others), else: first))
    )
  end

  @doc "Each entry gets its mark. The processor names them in any order."
  def marking(entries, marks) do
    named = fn mark -> Enum.shuffle(for {entry, ^mark} <- Enum.zip(entries, marks), do: entry) end

    case {named.(:failed), named.(:cancelled)} do
      {[], []} -> marked(Enum.random([:ok, {:error, :some, []}, {:partial, :some, []}]), :ok, marks)
      {failed, []} -> marked(Enum.random(partial_or(:error, :retry, failed)), :error, marks)
      {[], cancelled} -> marked(Enum.random(partial_or(:cancel, :cancel, cancelled)), :cancel, marks)
      {failed, cancelled} -> marked({:partial, :some, retry: failed, cancel: cancelled}, :partial, marks)
    end
  end

  defp partial_or(outcome, key, named),
    do: [{outcome, :some, named}, {:partial, :some, [{key, named}]}]

  defp marked(term, outcome, marks), do: %{returning(term, outcome) | chosen: marks}

  @doc "Whether the batch fails as a whole."
  def whole?(%__MODULE__{outcome: :error, chosen: :all}), do: true
  def whole?(_verdict), do: false

  @doc "Whether the processor does not return in time."
  def hangs?(%__MODULE__{first: :hang}), do: true
  def hangs?(%__MODULE__{first: {:hang, _who}}), do: true
  def hangs?(_verdict), do: false

  @doc "The mark of each of `count` entries."
  def marks(%__MODULE__{outcome: outcome, chosen: :all}, count),
    do: List.duplicate(mark(outcome, count), count)

  def marks(%__MODULE__{chosen: chosen}, _count), do: chosen

  defp mark(:ok, _count), do: :ok
  defp mark(:error, 1), do: :failed
  defp mark(:error, _count), do: :split
  defp mark(:cancel, _count), do: :cancelled
  defp mark({:snooze, _ms, _scope}, _count), do: :snoozed

  @doc "Obeys, in the processor. Calls `returning` before the end."
  def obey(%__MODULE__{first: first, then: last}, returning) do
    first(first)
    returning.()

    case last do
      {:return, term} -> term
      :raise -> raise "as told"
      :throw -> throw(:as_told)
      :exit -> exit(:as_told)
      :kill -> Process.exit(self(), :kill)
    end
  end

  defp first(:nothing), do: :ok
  defp first({:slow, ms}), do: Process.sleep(ms)
  # It is killed long before, when its time is up.
  defp first(:hang), do: Process.sleep(20_000)

  defp first({:hang, who}) do
    send(who, {:hanging, self()})
    first(:hang)
  end

  # It outlives its supervisors, and goes on with the next batches.
  defp first({:trap, who, ms}) do
    Process.flag(:trap_exit, true)
    send(who, {:hanging, self()})
    Process.sleep(ms)
  end
end
