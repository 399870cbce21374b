defmodule PartitionedBuffer.JournalLoop do
  @moduledoc false
  # Rounds of a kill loop: VMs that write to a buffer with a journal, and are killed; a last one that
  # delivers what they left; and a model that checks all of it.

  alias PartitionedBuffer.JournalLoop.{Life, Model, Plan}
  alias PartitionedBuffer.{Journal, OtherVM}

  @doc "Does the round of a seed in a directory. Returns its violations, its numbers and its plan."
  def round(seed, dir) do
    plan = Plan.new(seed) |> Map.merge(%{dir: Path.join(dir, "journal"), ledger: Path.join(dir, "ledger")})
    Enum.each([plan.dir, plan.ledger], &File.mkdir_p!/1)
    path = Path.join([plan.dir, Atom.to_string(Life.buffer()), Atom.to_string(plan.kind)])

    {lives, {newly, _found}} =
      Enum.map_reduce(plan.lives, {[], nil}, fn life, {newly, _} ->
        found = live_and_die(plan, life)
        entries = read(path)
        {Map.merge(life, %{entries: entries, newly: newly, found_at_start: found}), {entries, found}}
      end)

    last = %{number: length(lives) + 1, partitions: plan.last_partitions, kill: nil}
    vm = start(:finish, plan, last)
    {:finished, replayed} = OtherVM.hear(vm)
    0 = OtherVM.await_end(vm)
    founds = Enum.map(tl(lives), & &1.found_at_start) ++ [replayed]
    lives = for {life, found} <- Enum.zip(lives, founds), do: Map.put(life, :found, found)
    {violations, numbers} = Model.check(plan, lives, Map.merge(last, %{files: File.ls!(path), newly: newly}))
    {violations, numbers, plan}
  end

  defp start(function, plan, life),
    do:
      OtherVM.start(
        quote(do: unquote(Life).unquote(function)(unquote(Macro.escape(plan)), unquote(Macro.escape(life))))
      )

  # Returns the number of entries that the VM found, if it came so far.
  defp live_and_die(plan, %{kill: kill} = life) do
    vm = start(:run, plan, life)

    said =
      case kill do
        {:at_start_ms, ms} ->
          Process.sleep(ms)
          OtherVM.kill(vm)

        {:after_ms, ms} ->
          running = OtherVM.hear(vm)
          Process.sleep(ms)
          [running | OtherVM.kill(vm)]

        # A sink that is not called so often does not kill. What was replayed may be given to it before
        # the VM says anything.
        {:at_call, _number, _stage} ->
          with [running] <- OtherVM.hear_or_end(vm), do: [running | OtherVM.drain_or_kill(vm, 1_000)]
      end

    with [{:running, found} | _more] <- said, do: found, else: ([] -> nil)
  end

  # A directory that a VM did not come to has nothing.
  defp read(path) do
    case Journal.read(path) do
      {:ok, %{entries: entries, damaged: [], damaged_records: 0}} -> entries
      {:error, :enoent} -> []
    end
  end
end
