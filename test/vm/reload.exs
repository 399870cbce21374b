# Run by reload_test.exs in a VM of its own: loads the module of the NIFs again in all ways, while it holds data.
# Arguments: what to do, and a library of another build.
alias PartitionedBuffer.Map, as: Buffer
alias PartitionedBuffer.Native

defmodule Reload.NoLoading do
  # An error handler for writers: it does not load the module. OTP before 26.1 lets processes hang that load a module with
  # an `on_load` function at the same time (erlang/otp#7466).
  def undefined_function(module, function, arguments),
    do: :erlang.raise(:error, :undef, [{module, function, arguments, []}])

  def undefined_lambda(module, function, arguments),
    do: :error_handler.undefined_lambda(module, function, arguments)
end

defmodule Reload do
  @never 86_400_000

  def start(name, opts \\ []) do
    me = self()
    defaults = [name: name, processor: &send(me, {:batch, &1}), partitions: 2, processing_interval_ms: @never]
    {:ok, _pid} = Buffer.start_link(Keyword.merge(defaults, opts))
    for n <- 1..1_000, do: Buffer.put(name, n, {n, make_ref()})
    check(name)
  end

  def check(name) do
    for n <- 1..1_000, do: true = match?({^n, ref} when is_reference(ref), Buffer.get(name, n))
    1_000 = Buffer.size(name)
  end

  # All that was put is processed at the end.
  def stop(name) do
    :ok = Buffer.stop(name)
    1_000 = length(Enum.uniq(batches([])))
    Native.await_reclaimed()
    %{environments: 0} = PartitionedBuffer.memory()
  end

  # What was old is gone, then what is current is made old, then that is gone.
  def unload do
    purge()
    :code.delete(Native)
    purge()
  end

  # As often as it takes: a process that is in the old code is not killed.
  defp purge, do: :code.soft_purge(Native) || purge()

  def load, do: match?({:module, Native}, :code.ensure_loaded(Native)) || load()

  def replace(library, by) do
    File.cp!(by, library <> ".new")
    File.rename!(library <> ".new", library)
  end

  defp batches(all) do
    receive do
      {:batch, batch} -> batches(batch ++ all)
    after
      0 -> all
    end
  end

  # Writes, as many as it is asked for each time, until told to stop; returns what has been acknowledged.
  def write(name, writer, from, acknowledged) do
    receive do
      {:write, count, asker} ->
        acknowledged =
          for n <- from..(from + count - 1),
              put(name, {writer, n}),
              reduce: acknowledged,
              do: (all -> [{writer, n} | all])

        send(asker, {:written, writer})
        write(name, writer, from + count, acknowledged)

      :stop ->
        acknowledged
    end
  end

  defp put(name, key) do
    :ok == Buffer.put(name, key, [key])
  rescue
    # The module is not there at the moment; nothing has been written.
    UndefinedFunctionError -> false
  end
end

[what, other] = System.argv()
library = Application.app_dir(:partitioned_buffer, "priv/native/partitioned_buffer.so")
Logger.configure(level: :none)

case what do
  "load" ->
    # The current code is there, then as old code, then not at all.
    Reload.start(:b)
    {:error, :on_load_failure} = :code.load_file(Native)
    Reload.check(:b)
    {_module, binary, file} = :code.get_object_code(Native)
    {:error, :on_load_failure} = :code.load_binary(Native, file, binary)
    Reload.check(:b)
    # Old code that nobody has purged, as Mix leaves it.
    true = :code.soft_purge(Native)
    true = :code.delete(Native)
    Reload.check(:b)
    Reload.stop(:b)

  "again" ->
    # Before there is a buffer, with one, and with a flush that a processor is at.
    Reload.unload()
    Reload.start(:b)
    me = self()

    Buffer.start_link(
      name: :busy,
      processor: fn batch -> send(me, {:busy, self(), batch}) && receive(do: (:go_on -> :ok)) end,
      partitions: 1,
      processing_interval_ms: 10
    )

    for n <- 1..30, do: Buffer.put(:busy, n, n)
    {first, task} = receive(do: ({:busy, task, batch} -> {batch, task}))
    Reload.unload()
    Reload.check(:b)
    send(task, :go_on)

    # Batches of ten: what lies behind the first comes, and it does not.
    rest = for _ <- 1..2, do: receive(do: ({:busy, task, batch} -> send(task, :go_on) && batch))
    true = Enum.sort(for {key, key, 0, 0} <- Enum.concat([first | rest]), do: key) == Enum.to_list(1..30)
    for _ <- 1..20, do: Reload.unload() && Reload.check(:b)
    Buffer.stop(:busy)
    Reload.stop(:b)

  "replaced" ->
    # Other files of the same name, of the same build and of another, are not looked at.
    Reload.start(:b)

    for by <- [library, other] do
      Reload.replace(library, by)
      {:error, :on_load_failure} = :code.load_file(Native)
      Reload.check(:b)
      Reload.unload()
      Reload.check(:b)
      true = File.read!("/proc/self/maps") =~ "(deleted)"
    end

    Reload.stop(:b)

  "refused" ->
    # A library of another path: what a release of another version would bring.
    Reload.start(:b)
    elsewhere = Path.join(Path.dirname(other), "elsewhere/partitioned_buffer")
    File.mkdir_p!(Path.dirname(elsewhere))
    File.cp_r!(Application.app_dir(:partitioned_buffer), elsewhere)
    Reload.replace(Path.join(elsewhere, "priv/native/partitioned_buffer.so"), other)
    here = Application.app_dir(:partitioned_buffer, "ebin")
    Code.prepend_path(Path.join(elsewhere, "ebin"))
    Reload.unload()

    {:error, :on_load_failure} = :code.load_file(Native)

    try do
      Buffer.size(:b)
      raise "answered by another library"
    rescue
      UndefinedFunctionError -> :ok
    end

    # The one that fits still has the data.
    Code.delete_path(Path.join(elsewhere, "ebin"))
    Code.prepend_path(here)
    {:module, Native} = :code.load_file(Native)
    Reload.check(:b)
    Reload.stop(:b)

  "version" ->
    # Without a buffer another build is as good as this one, but not if it is of another version.
    Reload.unload()
    Reload.replace(library, other)
    {:module, Native} = :code.load_file(Native)
    Reload.start(:b)
    Reload.stop(:b)

  "storm" ->
    me = self()

    {:ok, _pid} =
      Buffer.start_link(
        name: :b,
        processor: &send(me, {:batch, &1}),
        partitions: 2,
        processing_interval_ms: 86_400_000,
        processing_batch_size: 1_000
      )

    writers =
      for writer <- 1..3 do
        {writer,
         Task.async(fn ->
           Process.flag(:error_handler, Reload.NoLoading)
           Reload.write(:b, writer, 1, [])
         end)}
      end

    # Each flush is released by its last claim while the module is being unloaded.
    for _ <- 1..50 do
      for {_writer, task} <- writers, do: send(task.pid, {:write, 5_000, me})
      Reload.unload()
      Reload.load()

      for number <- 0..1, {_kind, batch} <- [Native.flush(:b, number)] do
        options = %PartitionedBuffer.Options{name: :b, processor: &send(me, {:batch, &1}), module: Buffer}
        PartitionedBuffer.Flush.process(batch, %{options | processing_batch_size: 1_000}, :storm)
      end

      for {writer, _task} <- writers, do: receive(do: ({:written, ^writer} -> :ok))
    end

    for {_writer, task} <- writers, do: send(task.pid, :stop)
    acknowledged = Enum.flat_map(writers, fn {_writer, task} -> Task.await(task) end)
    Buffer.stop(:b)

    collect = fn collect, all ->
      receive do
        {:batch, batch} -> collect.(collect, [for({key, _, _, _} <- batch, do: key) | all])
      after
        0 -> Enum.concat(all)
      end
    end

    processed = collect.(collect, [])
    true = length(processed) == length(acknowledged)
    true = MapSet.new(processed) == MapSet.new(acknowledged)
    IO.puts("#{length(acknowledged)} writes")
end

IO.puts("#{what}: as it should be")
