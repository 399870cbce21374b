defmodule PartitionedBuffer.TableTest do
  use PartitionedBuffer.Case, async: true

  @moduletag :capture_log

  defp start_table_buffer(processor) do
    start_buffer(partitions: 1, processing_batch_size: :table, processor: processor)
  end

  describe "a table" do
    test "is a named set of records that is deleted after the call" do
      test = self()

      buffer =
        start_table_buffer(fn table ->
          send(test, {table, :ets.info(table), :ets.tab2list(table)})
        end)

      Buffer.put_all(buffer, for(n <- 1..2_000, do: {n, n}))
      Buffer.put_newer(buffer, 1, :versioned, 7)
      flush(buffer)
      assert_received {table, info, records}
      assert is_atom(table) and info[:named_table] and info[:type] == :set and info[:keypos] == 2
      assert length(records) == 2_000
      assert {:entry, 1, :versioned, 7, 1} in records
      assert {:entry, 2_000, 2_000, 0, 0} in records
      assert :ets.whereis(table) == :undefined
    end

    test "stays with its new owner if renamed, and the next has the usual name" do
      test = self()

      buffer =
        start_table_buffer(fn table ->
          renamed = :ets.rename(table, unique_name("table"))
          :ets.give_away(renamed, test, table)
        end)

      Buffer.put(buffer, 1, 1)
      flush(buffer)
      assert_receive {:"ETS-TRANSFER", first, _from, name}
      Buffer.put(buffer, 2, 2)
      flush(buffer)
      assert_receive {:"ETS-TRANSFER", second, _from, ^name}
      assert :ets.tab2list(first) == [{:entry, 1, 1, 0, 0}]
      assert :ets.tab2list(second) == [{:entry, 2, 2, 0, 0}]
    end

    test "does not stop the next flush if it was given away under its own name" do
      test = self()
      buffer = start_table_buffer(fn table -> :ets.give_away(table, test, :gift) end)
      Buffer.put(buffer, 1, 1)
      flush(buffer)
      assert_receive {:"ETS-TRANSFER", _table, _from, :gift}
      Buffer.put(buffer, 2, 2)
      flush(buffer)
      assert_receive {:"ETS-TRANSFER", _table, _from, :gift}
    end

    test "is gone if the processor raises" do
      buffer = start_table_buffer(fn _table -> raise "no" end)
      Buffer.put(buffer, 1, 1)
      flush(buffer)
      assert :ets.whereis(Module.concat(hd(partitions(buffer)), Table)) == :undefined
    end
  end
end
