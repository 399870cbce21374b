defmodule PartitionedBuffer.Journal.PoisonTest do
  # An entry with which the processor ends its VM.
  use PartitionedBuffer.JournalCase, async: true

  @killed 137

  test "an entry that kills its VM three times is dead at the fourth start", %{dir: dir} do
    path = Path.join(dir, "calls")

    opts = [
      processor: {PartitionedBuffer.JournalCase, :kill_on_poison, [path]},
      dead_letter: {PartitionedBuffer.JournalCase, :bury, []},
      max_attempts: 3,
      processing_batch_size: 1
    ]

    calls = fn -> with {:ok, lines} <- File.read(path), do: String.split(lines, "\n", trim: true) end
    put = quote(do: for(key <- [:first, :poison, :last], do: PartitionedBuffer.Map.put(:journaled, key, 1)))
    flush = quote(do: PartitionedBuffer.flush(:journaled, async: true))

    for {code, start} <- [
          {quote(
             do:
               (
                 unquote(put)
                 unquote(flush)
               )
           ), 1},
          {flush, 2},
          {flush, 3}
        ] do
      assert OtherVM.await_end(life(dir, opts, code)) == @killed
      assert Enum.count(calls.(), &(&1 == "[{:poison, 1, 0, 0}]")) == start
    end

    {_entries, _info, said} = next_life(dir, opts)
    assert [{:dead, [{:poison, 1, 0, 0}], :killed}] = Enum.filter(said, &match?({:dead, _, _}, &1))
    calls = Enum.frequencies(calls.())
    assert calls["[{:poison, 1, 0, 0}]"] == 3
    # The others came, each once more for each kill at most.
    for key <- [:first, :last], do: assert(calls["[{#{inspect(key)}, 1, 0, 0}]"] in 1..4)
    assert File.ls!(path(dir)) == ["lock"]
  end
end
