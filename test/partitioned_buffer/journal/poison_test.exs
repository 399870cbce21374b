defmodule PartitionedBuffer.Journal.PoisonTest do
  # An entry with which the processor ends its VM.
  use PartitionedBuffer.JournalCase, async: true

  @killed 137
  @poison {:poison, 1, 0, 0}
  @others for number <- 1..7, do: {number, 1, 0, 0}

  for {batches, opts} <- [
        {"batches of one", [max_attempts: 3, processing_batch_size: 1]},
        {"a batch of eight", [max_attempts: 3]},
        {"a batch of eight, with two attempts", [max_attempts: 2]},
        {"a batch of eight, with five attempts", [max_attempts: 5]},
        {"a batch of eight of a strict queue",
         [max_attempts: 3, module: PartitionedBuffer.Queue, order: :strict]}
      ] do
    test "an entry that kills its VM is given up after its attempts, and no other one: #{batches}", %{
      dir: dir
    } do
      give_up(dir, unquote(opts))
    end
  end

  defp give_up(dir, opts) do
    path = Path.join(dir, "calls")
    kind = if opts[:module] == Queue, do: :queue, else: :map

    opts =
      [
        processor: {PartitionedBuffer.JournalCase, :kill_on_poison, [path]},
        dead_letter: {PartitionedBuffer.JournalCase, :bury, []}
      ] ++ opts

    flush = quote(do: PartitionedBuffer.flush(:journaled, async: true))
    first = quote(do: {unquote(write(kind)), unquote(flush)})

    for start <- 1..opts[:max_attempts] do
      assert OtherVM.await_end(life(dir, opts, if(start == 1, do: first, else: flush))) == @killed
      assert Enum.count(calls(path), &(@poison in &1)) == start
    end

    # The last call has the poison alone.
    assert calls(path) |> Enum.filter(&(@poison in &1)) |> List.last() == [@poison]
    {_entries, _info, said} = next_life(dir, opts)
    assert Enum.filter(said, &match?({:dead, _, _}, &1)) == [{:dead, [@poison], :killed}]
    delivered = path |> calls() |> Enum.reject(&(@poison in &1)) |> Enum.concat() |> Enum.frequencies()
    assert delivered |> Map.keys() |> Enum.sort() == @others
    # Each once more for each kill, at most.
    assert delivered |> Map.values() |> Enum.all?(&(&1 <= 1 + opts[:max_attempts]))
    assert File.ls!(path(dir, kind)) == ["lock"]
  end

  # The poison is in the middle.
  defp write(kind) do
    {before, others} = Enum.split(@others, 4)

    for {key, value, _version, _updates} = entry <- before ++ [@poison] ++ others do
      case kind do
        :map -> quote(do: PartitionedBuffer.Map.put(:journaled, unquote(key), unquote(value)))
        :queue -> quote(do: PartitionedBuffer.Queue.push(:journaled, unquote(Macro.escape(entry))))
      end
    end
  end

  defp calls(path) do
    for line <- path |> File.read!() |> String.split("\n", trim: true),
        do: line |> Code.eval_string() |> elem(0)
  end
end
