defmodule PartitionedBuffer.OverviewTest do
  use PartitionedBuffer.Case, async: true

  alias PartitionedBuffer.Observe.Overview

  @states ~w(not_running no_partitions closed on_hold journal_failed failing journal_behind full paused processing idle)a

  defp read(buffers), do: Overview.read(buffers, &PartitionedBuffer.info/1)

  defp info(changes) do
    buffer = start_buffer()
    Map.merge(PartitionedBuffer.info(buffer), Map.new(changes))
  end

  defp info_with_totals(written, processed) do
    info = info([])
    {:ok, %{info | totals: %{info.totals | written: written, processed: processed}}}
  end

  describe "read/2" do
    test "has an error for a buffer that is not running, beside the infos of the others" do
      buffer = start_buffer()
      gone = unique_name()
      assert [{^gone, {:error, :not_running}}, {^buffer, {:ok, %{size: 0}}}] = read([gone, buffer])
    end

    test "has an error for a buffer without partitions" do
      buffer = start_buffer(partitions: 0)
      assert read([buffer]) == [{buffer, {:error, :no_partitions}}]
    end
  end

  describe "rows/3" do
    test "have the numbers of the info" do
      buffer = start_buffer(max_size: 10)
      Buffer.put_all(buffer, %{1 => 1, 2 => 2})
      {[row], _memory} = Overview.rows(read([buffer]), %{}, 0)
      assert %{buffer: ^buffer, kind: :map, held: 2, max_size: 10, state: :idle, written: nil} = row
      assert row.name == inspect(buffer)
      assert row.bytes > 0 and row.oldest_ms >= 0
      assert %{held: "2 of 10", written: "-", failing_ms: "-", state: "idle"} = Overview.texts(row)
    end

    test "have the rates between two readings" do
      {_rows, memory} = Overview.rows([users: info_with_totals(100, 0)], %{}, 1_000)
      {[row], _memory} = Overview.rows([users: info_with_totals(400, 30)], memory, 3_000)
      assert {row.written, row.processed} == {150.0, 15.0}
      assert %{written: "150/s", processed: "15/s"} = Overview.texts(row)
    end

    test "keep their rates if the next reading comes at once" do
      {_rows, memory} = Overview.rows([users: info_with_totals(0, 0)], %{}, 0)
      {_rows, memory} = Overview.rows([users: info_with_totals(1_000, 0)], memory, 1_000)
      {[row], memory} = Overview.rows([users: info_with_totals(1_400, 0)], memory, 1_001)
      assert row.written == 1_000.0
      {[row], _memory} = Overview.rows([users: info_with_totals(2_000, 0)], memory, 2_000)
      assert row.written == 1_000.0
    end

    test "have no rate after the totals began anew" do
      {_rows, memory} = Overview.rows([users: info_with_totals(100, 0)], %{}, 0)

      for now <- [1, 1_000],
          {[row], _} = Overview.rows([users: info_with_totals(3, 0)], memory, now),
          do: assert(row.written == nil)
    end

    test "forget a buffer that ended" do
      {_rows, memory} = Overview.rows([users: info_with_totals(0, 0)], %{}, 0)

      assert {[%{state: :not_running, held: nil}], %{} = memory} =
               Overview.rows([users: {:error, :not_running}], memory, 9)

      assert memory == %{}
    end
  end

  describe "state/1" do
    test "is the first of the states that is true" do
      partitions = fn state -> [%{state: state}, %{state: :idle}] end

      steps = [
        {:idle, []},
        {:processing, partitions: partitions.(:processing)},
        {:paused, partitions: partitions.(:paused) ++ partitions.(:processing)},
        {:full, waiting_writers: 1},
        {:journal_behind, journal: %{state: :behind}},
        {:failing, failing_ms: 1},
        {:journal_failed, journal: %{state: :failed}},
        {:on_hold, paused?: true},
        {:closed, partitions: [%{state: :closed}, %{state: :closed}]}
      ]

      Enum.reduce(steps, info([]), fn {state, changes}, info ->
        info = Map.merge(info, Map.new(changes))
        assert Overview.state(info) == state
        assert state in @states
        info
      end)
    end

    test "is full at either bound" do
      assert Overview.state(info(size: 6, in_flight: 4, max_size: 10)) == :full
      assert Overview.state(info(size: 5, in_flight: 4, max_size: 10)) == :idle
      assert Overview.state(info(bytes: 100, max_bytes: 100)) == :full
    end

    test "is on hold while the buffer is paused" do
      buffer = start_buffer()
      PartitionedBuffer.pause(buffer)
      assert Overview.state(PartitionedBuffer.info(buffer)) == :on_hold
      PartitionedBuffer.resume(buffer)
      assert Overview.state(PartitionedBuffer.info(buffer)) == :idle
    end
  end
end
