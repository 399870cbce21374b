# reload_test.exs runs this in a VM of its own: it loads the module of the NIFs again in all ways, while there is data.
# Arguments: what to do, and a library of another build.
alias PartitionedBuffer.Map, as: Buffer
alias PartitionedBuffer.Native

defmodule Reload.NoLoading do
  # An error handler for writers, which does not load the module of the NIFs. In OTP before 26.1 processes hang if they load
  # a module with an `on_load` function at the same time (erlang/otp#7466).
  def undefined_function(Native, function, arguments),
    do: :erlang.raise(:error, :undef, [{Native, function, arguments, []}])

  def undefined_function(module, function, arguments),
    do: :error_handler.undefined_function(module, function, arguments)

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

  # The stop has to process all that was put.
  def stop(name) do
    :ok = Buffer.stop(name)
    1_000 = length(Enum.uniq(batches([])))
    Native.await_reclaimed()
    %{environments: 0} = PartitionedBuffer.memory()
  end

  # Purges the old code, makes the current code old, and purges that.
  def unload do
    purge()
    :code.delete(Native)
    purge()
  end

  # Tries until no process is in the old code, since a purge must not kill one.
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

  # Writes as many entries as each message asks for, until it is told to stop; returns the acknowledged ones.
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
    # The module is unloaded at the moment, so nothing was written.
    UndefinedFunctionError -> false
  end
end

[what, other] = System.argv()
library = Application.app_dir(:partitioned_buffer, "priv/native/partitioned_buffer.so")
Logger.configure(level: :none)

case what do
  "load" ->
    # The code is current, then old, then purged.
    Reload.start(:b)
    {:error, :on_load_failure} = :code.load_file(Native)
    Reload.check(:b)
    {_module, binary, file} = :code.get_object_code(Native)
    {:error, :on_load_failure} = :code.load_binary(Native, file, binary)
    Reload.check(:b)
    # Old code stays, as Mix leaves it.
    true = :code.soft_purge(Native)
    true = :code.delete(Native)
    Reload.check(:b)
    Reload.stop(:b)

  "again" ->
    # Without a buffer, with one, and during a call of a processor.
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

    # The other two batches come, and the first does not come again.
    rest = for _ <- 1..2, do: receive(do: ({:busy, task, batch} -> send(task, :go_on) && batch))
    true = Enum.sort(for {key, key, 0, 0} <- Enum.concat([first | rest]), do: key) == Enum.to_list(1..30)
    for _ <- 1..20, do: Reload.unload() && Reload.check(:b)
    Buffer.stop(:busy)
    Reload.stop(:b)

  "replaced" ->
    # The module ignores other files of the same name, of the same build and of another.
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
    # A library of another path is what a release of another version would bring.
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

    # The old library still has the data.
    Code.delete_path(Path.join(elsewhere, "ebin"))
    Code.prepend_path(here)
    {:module, Native} = :code.load_file(Native)
    Reload.check(:b)
    Reload.stop(:b)

  "version" ->
    # Without a buffer the module takes another build of the same version.
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

    # The last claim of a flush frees it, while the module is being unloaded.
    for _ <- 1..50 do
      for {_writer, task} <- writers, do: send(task.pid, {:write, 5_000, me})
      Reload.unload()
      Reload.load()

      run = Native.run(:b)

      for number <- 0..1, {_kind, flush} <- [Native.flush(run, number)] do
        PartitionedBuffer.Processing.process(flush, PartitionedBuffer.Ref.new(run, :b, number), [])
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
