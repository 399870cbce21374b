defmodule PartitionedBuffer.JournalLoop.Sink do
  @moduledoc false
  # The sink of a round. It writes down each call when it begins, and its outcome before it returns:
  #
  #     {:begin, number, time, entries}
  #     {:end, number, time, :all | :none | {:some, positions of failed entries, of cancelled ones}}
  #     {:bury, number, time, entries, reason}     before :dead_letter begins
  #     {:buried, number, time}                    before it returns
  #
  # The calls of a partition have a file, since they come one after the other.

  alias PartitionedBuffer.JournalLoop.Ledger

  @doc "Chooses outcomes at random, and kills the VM at a certain call."
  def start(%{number: life} = plan_of_life) do
    :persistent_term.put(__MODULE__, {plan_of_life, :atomics.new(1, [])})
    life
  end

  @doc "The processor."
  def store(entries) do
    {number, file, life} = call(entries)
    Ledger.note(file, {:begin, number, Ledger.now(), entries})
    maybe_kill(life, number, :begin)
    count = length(entries)
    {result, fate} = life.sink |> outcome() |> result(entries, count)
    if result == :hang, do: Process.sleep(:infinity)
    Ledger.note(file, {:end, number, Ledger.now(), fate})
    maybe_kill(life, number, :end)
    if is_function(result), do: result.(), else: result
  end

  @doc "The function `:dead_letter`."
  def bury(entries, reason) do
    {number, file, life} = call(entries)
    Ledger.note(file, {:bury, number, Ledger.now(), entries, inspect(reason)})
    maybe_kill(life, number, :begin)
    Ledger.note(file, {:buried, number, Ledger.now()})
    maybe_kill(life, number, :end)
  end

  defp call([entry | _entries]) do
    {life, numbers} = :persistent_term.get(__MODULE__)
    partition = partition(entry, life)
    key = {__MODULE__, partition}
    file = Process.get(key) || Ledger.open!(life.ledger, "sink-#{life.number}-#{partition}")
    Process.put(key, file)
    {:atomics.add_get(numbers, 1, 1), file, life}
  end

  @doc "The partition of an entry, or of its key."
  def partition(item, %{kind: :queue, routing: :by_writer} = life),
    do: :erlang.phash2(elem(item, 0), life.partitions)

  def partition(item, %{kind: :queue} = life), do: of_key(item, life)
  def partition(entry, life), do: of_key(elem(entry, 0), life)

  defp of_key(key, life), do: :erlang.phash2(:erlang.phash2(key), life.partitions)

  # A port to a shell is there before: to start a process takes longer.
  defp maybe_kill(%{kill: {:at_call, number, stage}, killer: killer}, number, stage) do
    Port.command(killer, "now\n")
    Process.sleep(:infinity)
  end

  defp maybe_kill(_life, _number, _stage), do: :ok

  defp outcome(:works), do: :ok

  defp outcome(:fails_at_times) do
    if :rand.uniform(100) <= 75, do: Enum.random([:ok, :ok, :ok, :ok, :slow]), else: failure()
  end

  defp outcome(:fails_often), do: if(:rand.uniform(100) <= 20, do: :ok, else: failure())
  defp outcome(:is_down), do: Enum.random([:error, :error, :raise, :exit])

  defp failure do
    if :rand.uniform(40) == 1 do
      :hang
    else
      Enum.random(
        [:error, :error, :raise, :exit, :throw, :die, :named, :named] ++
          [:partial, :snooze, :snooze_all, :cancel, :cancel_some]
      )
    end
  end

  defp result(:ok, _entries, _count), do: {:ok, :all}
  defp result(:slow, _entries, _count), do: {:slow |> rest(), :all}
  defp result(:hang, _entries, _count), do: {:hang, :none}
  defp result(:error, _entries, _count), do: {{:error, :down}, :none}
  defp result(:raise, _entries, _count), do: {fn -> raise "down" end, :none}
  defp result(:exit, _entries, _count), do: {fn -> exit(:down) end, :none}
  defp result(:throw, _entries, _count), do: {fn -> throw(:down) end, :none}

  defp result(:die, _entries, _count),
    do: {fn -> Process.exit(self(), :kill) && Process.sleep(:infinity) end, :none}

  defp result(:snooze, _entries, _count), do: {{:snooze, :rand.uniform(30)}, :none}
  defp result(:snooze_all, _entries, _count), do: {{:snooze, :rand.uniform(30), :buffer}, :none}
  defp result(:cancel, _entries, count), do: {{:cancel, :never}, {:some, [], Enum.to_list(0..(count - 1))}}

  defp result(:named, entries, count) do
    failed = some(count)
    {{:error, :some, pick(entries, failed)}, {:some, failed, []}}
  end

  defp result(:cancel_some, entries, count) do
    cancelled = some(count)
    {{:cancel, :never, pick(entries, cancelled)}, {:some, [], cancelled}}
  end

  defp result(:partial, entries, count) do
    {failed, cancelled} = Enum.split_with(some(count), fn _position -> :rand.uniform(2) == 1 end)

    {{:partial, :some, retry: pick(entries, failed), cancel: pick(entries, cancelled)},
     {:some, failed, cancelled}}
  end

  defp rest(:slow) do
    Process.sleep(:rand.uniform(30))
    :ok
  end

  defp some(count), do: Enum.filter(0..(count - 1), fn _position -> :rand.uniform(3) == 1 end)
  defp pick(entries, positions), do: Enum.map(positions, &Enum.at(entries, &1))
end
