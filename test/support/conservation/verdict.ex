defmodule PartitionedBuffer.Conservation.Verdict do
  @moduledoc false
  # The orders for the processor of a buffer with retries on a batch: `first` it waits, perhaps, and
  # `then` it returns, fails or is killed. `outcome` is the meaning of this for the buffer, and
  # `chosen` marks the entries that the processor returns; `:all` if it names none.

  defstruct first: :nothing, then: {:return, :ok}, outcome: :ok, chosen: :all

  @type t() :: %__MODULE__{}

  @doc "All succeed."
  def ok, do: %__MODULE__{}

  @doc """
  A verdict on these entries, by chance. In `any_order?` the processor may name some in any order.
  """
  def draw(entries, any_order?) do
    case :rand.uniform(1_000) do
      n when n <= 830 -> returning(Enum.random([:ok, :ok, nil, {:ok, 3}, {3, nil}, {:ok, :error}]), :ok)
      n when n <= 845 -> returning(:error, :error)
      n when n <= 860 -> failing()
      n when n <= 890 -> some(entries, :error, any_order?)
      n when n <= 905 -> snooze(:rand.uniform(8) - 1)
      n when n <= 910 -> returning({:cancel, :invalid}, :cancel)
      n when n <= 925 -> some(entries, :cancel, any_order?)
      n when n <= 928 -> returning({:error, :foreign, [:not_of_the_batch]}, :error)
      n when n <= 930 -> returning({:snooze, -1}, :error)
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

  @doc "The orders of a fault."
  def ordered(how) when how in [:raise, :throw, :exit, :kill], do: failing(how)
  def ordered({:slow, _ms} = slow), do: %{ok() | first: slow}
  def ordered({:hang, _who} = hang), do: %__MODULE__{first: hang, then: :kill, outcome: :error}
  def ordered({:trap, _who, _ms} = trap), do: %{Enum.random([ok(), failing()]) | first: trap}

  defp returning(term, outcome), do: %__MODULE__{then: {:return, term}, outcome: outcome}

  defp snooze(ms), do: returning({:snooze, ms}, {:snooze, ms})

  # A few entries, or most.
  defp some(entries, outcome, any_order?) do
    share = Enum.random([0.02, 0.5, 0.9])
    chosen = for _entry <- entries, do: :rand.uniform() < share
    named = for {entry, true} <- Enum.zip(entries, chosen), do: entry
    outcome_of_named = if named == [], do: :ok, else: outcome
    named = if any_order?, do: Enum.shuffle(named), else: named
    %__MODULE__{then: {:return, {outcome, :some, named}}, outcome: outcome_of_named, chosen: chosen}
  end

  @doc "Whether the processor does not return in time."
  def hangs?(%__MODULE__{first: :hang}), do: true
  def hangs?(%__MODULE__{first: {:hang, _who}}), do: true
  def hangs?(_verdict), do: false

  @doc "The mark of each of `count` entries."
  def marks(%__MODULE__{outcome: outcome, chosen: :all}, count), do: List.duplicate(mark(outcome), count)

  def marks(%__MODULE__{outcome: outcome, chosen: chosen}, _count),
    do: for(chosen? <- chosen, do: if(chosen?, do: mark(outcome), else: :ok))

  defp mark(:ok), do: :ok
  defp mark(:error), do: :failed
  defp mark(:cancel), do: :cancelled
  defp mark({:snooze, _ms}), do: :snoozed

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
