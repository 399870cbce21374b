defmodule PartitionedBuffer.DefaultLoggerTest do
  # There is one default logger in a VM, and it logs for all buffers.
  use ExUnit.Case, async: false

  import ExUnit.CaptureLog
  import PartitionedBuffer.Case, only: [unique_name: 0, start_buffer: 1]
  import PartitionedBuffer.VM, only: [tmp_dir: 1]

  alias PartitionedBuffer.Observe.DefaultLogger
  alias PartitionedBuffer.VM

  # A buffer that stops with entries left has lines of its own.
  @moduletag :capture_log

  @format [format: "[$level] $message ($metadata)\n", metadata: [:event, :buffer, :partition]]

  setup do
    on_exit(fn -> DefaultLogger.detach() end)
    {:ok, buffer: unique_name()}
  end

  defp attach(opts), do: assert(DefaultLogger.attach(opts) == :ok)

  defp log(event, measurements, metadata) do
    capture_log(@format, fn -> :telemetry.execute([:partitioned_buffer | event], measurements, metadata) end)
  end

  defp full_stop(buffer, counts) do
    duration = System.convert_time_unit(1_500, :millisecond, :native)
    measurements = Map.merge(%{duration: duration, refused: 0, dropped: 0, waited: 0}, counts)
    log([:full, :stop], measurements, %{buffer: buffer})
  end

  defp dead_letter(buffer, handled?, reason) do
    metadata = %{buffer: buffer, partition: Module.concat([buffer, "0"]), reason: reason, handled: handled?}
    log([:partition, :dead_letter], %{count: 3}, metadata)
  end

  defp processing_stop(buffer, size) do
    metadata = %{buffer: buffer, partition: Module.concat([buffer, "0"]), trigger: :interval}
    log([:partition, :processing, :stop], %{duration: 0, monotonic_time: 0, size: size}, metadata)
  end

  test "a buffer that becomes full is a warning, with its metadata", %{buffer: buffer} do
    attach([])
    line = log([:full, :start], %{system_time: 0}, %{buffer: buffer})
    assert line =~ "[warning] buffer #{inspect(buffer)} is full"
    assert line =~ "event=full_start"
    assert line =~ "buffer=#{buffer}"
  end

  test "a buffer that has room again has a line at the level", %{buffer: buffer} do
    attach(level: :notice)
    line = full_stop(buffer, %{waited: 2})
    assert line =~ "[notice] buffer #{inspect(buffer)} has room again after 1500 ms"
    assert line =~ "writers that waited: 2"
  end

  test "writes that were refused or dropped are a warning", %{buffer: buffer} do
    attach(level: :debug)
    assert full_stop(buffer, %{refused: 7}) =~ ~r/\[warning\].*refused: 7/
    assert full_stop(buffer, %{dropped: 9}) =~ ~r/\[warning\].*dropped: 9/
  end

  test "entries that :dead_letter has taken are an error that nobody else logs", %{buffer: buffer} do
    attach([])
    line = dead_letter(buffer, true, :no_name)

    assert line =~
             "[error] partition :\"Elixir.#{buffer}.0\" of buffer #{inspect(buffer)} has given 3 entries"

    assert line =~ ":no_name"
    assert line =~ "partition=#{buffer}.0"
    assert dead_letter(buffer, false, :no_name) == ""
  end

  test "no line shows a term of a reason", %{buffer: buffer} do
    attach([])

    for reason <- [
          {:exit, {:secret, %{}}},
          {:throw, "secret"},
          %RuntimeError{message: "secret"},
          {:bad_return, {:error, :no, ["secret"]}},
          {:invalid, "secret"},
          ["secret"]
        ] do
      line = dead_letter(buffer, true, reason)
      assert line =~ "3 entries"
      refute line =~ ~s("secret")
    end
  end

  test "a flush has a line only if asked for and if something was processed", %{buffer: buffer} do
    attach([])
    assert processing_stop(buffer, 5) == ""
    DefaultLogger.detach()
    attach(events: [:processing])
    assert processing_stop(buffer, 5) =~ ~r/\[info\].*has processed 5 entries in 0 ms/
    assert processing_stop(buffer, 0) == ""
    assert log([:full, :start], %{system_time: 0}, %{buffer: buffer}) == ""
  end

  describe "of a buffer on several nodes" do
    test "a change of the members is a line at the level", %{buffer: buffer} do
      attach(level: :notice)
      metadata = %{buffer: buffer, joined: [:c@host, :d@host], left: []}
      line = log([:cluster, :members], %{count: 4, slots: 16, moved: 12}, metadata)

      assert line =~
               "[notice] buffer #{inspect(buffer)} has 4 members, and this node owns 16 slots, joined: c@host, d@host "

      assert line =~ "event=cluster_members"
      refute line =~ "left:"
      metadata = %{metadata | joined: [], left: [:b@host]}
      assert log([:cluster, :members], %{count: 1, slots: 64, moved: 32}, metadata) =~ ", left: b@host "
    end

    test "entries that are sent again are a warning, and entries that were taken are none", %{buffer: buffer} do
      attach([])
      measurements = %{count: 12, duration: System.convert_time_unit(15_000, :millisecond, :native)}
      metadata = %{buffer: buffer, slot: 3, to: :b@host, outcome: :resent}

      assert log([:cluster, :uncertain], measurements, metadata) =~
               ~r/\[warning\] buffer .* sends 12 entries again: node b@host, .*15000 ms.*cluster_uncertain/

      assert log([:cluster, :uncertain], measurements, %{metadata | outcome: :taken}) == ""
    end

    test "a hand-over is a warning", %{buffer: buffer} do
      attach([])

      assert log([:cluster, :hand_over], %{count: 7}, %{buffer: buffer, to: :b@host}) =~
               ~r/\[warning\] buffer .* handed 7 entries.* node b@host .*event=cluster_hand_over/
    end

    test "a clock that is not followed is a warning", %{buffer: buffer} do
      attach([])

      assert log([:cluster, :skew], %{ahead_ms: 86_400_000}, %{buffer: buffer, node: :b@host}) =~
               ~r/\[warning\] buffer .* clock of node b@host, which is 86400000 ms ahead .*cluster_skew/
    end

    test "no line is logged without the event", %{buffer: buffer} do
      attach(events: [:full])
      assert log([:cluster, :hand_over], %{count: 7}, %{buffer: buffer, to: :b@host}) == ""
    end
  end

  test "with all events the flush of a buffer has one line", %{buffer: buffer} do
    attach(events: :all)
    start_buffer(name: buffer, partitions: 1)
    PartitionedBuffer.Map.put_all(buffer, [{"key", "value"}, {"other", "value"}])
    log = capture_log(@format, fn -> assert PartitionedBuffer.flush(buffer) == :ok end)
    assert [line] = log |> String.split("\n") |> Enum.filter(&(&1 =~ inspect(buffer)))
    assert line =~ "has processed 2 entries"
    refute line =~ ~r/key|value|other/
  end

  test "a retry has the library's own line, and no other", %{buffer: buffer} do
    attach(events: :all)
    start_buffer(name: buffer, partitions: 1, processor: fn _batch -> {:error, :away} end, max_attempts: 2)
    PartitionedBuffer.Map.put(buffer, 1, 1)
    log = capture_log(@format, fn -> assert PartitionedBuffer.flush(buffer) == {:error, {:failed, 1}} end)
    assert [line] = log |> String.split("\n") |> Enum.filter(&(&1 =~ inspect(buffer)))
    assert line =~ "processor failed (:away); retrying 1 entries in"
  end

  test "it is attached once, and not after it was detached", %{buffer: buffer} do
    attach([])
    assert DefaultLogger.attach([]) == {:error, :already_exists}
    assert DefaultLogger.detach() == :ok
    assert DefaultLogger.detach() == {:error, :not_found}
    assert log([:full, :start], %{system_time: 0}, %{buffer: buffer}) == ""
  end

  test "an unknown option or an invalid value raises and attaches nothing" do
    for {opts, message} <- [
          {[level: :loud], ~r/:level of the default logger: expected one of .*, got: :loud/},
          {[events: [:full, :retry]], ~r/:events of the default logger: expected :all or a list of .*:retry/},
          {[events: :full], ~r/got: :full/},
          {[color: :red], ~r/color/}
        ] do
      assert_raise ArgumentError, message, fn -> DefaultLogger.attach(opts) end
    end

    assert DefaultLogger.detach() == {:error, :not_found}
  end

  describe "without telemetry" do
    setup :tmp_dir

    test "it is not attached", %{dir: dir} do
      app = VM.copy_package(dir, VM.library())
      File.rm(Path.join(app, "ebin/telemetry.beam"))

      assert VM.elixir!(app, "no_telemetry.exs", []) =~
               "{{:error, :no_telemetry}, {:error, :no_telemetry}}"
    end
  end
end
