defmodule PartitionedBuffer.JournalCase do
  @moduledoc false
  # The common parts of the tests of journals: directories, and VMs whose buffers are killed.

  use ExUnit.CaseTemplate

  alias PartitionedBuffer.OtherVM

  using do
    quote do
      import PartitionedBuffer.Case, only: [unique_name: 0, unique_name: 1]
      import PartitionedBuffer.JournalCase
      alias PartitionedBuffer.{Counter, Journal, OtherVM, Queue}
    end
  end

  setup do
    dir = Path.join(System.tmp_dir!(), "pb_journal_#{System.unique_integer([:positive])}_#{System.pid()}")
    File.mkdir_p!(dir)
    on_exit(fn -> File.rm_rf!(dir) end)
    {:ok, dir: dir}
  end

  @doc """
  The options of a buffer with a journal that flushes on request only, and sends each batch as
  `{:batch, batch}`.
  """
  def journal_options(dir, opts \\ []) do
    test = self()

    defaults = [
      name: :journaled,
      module: PartitionedBuffer.Map,
      processor: &send_batch(test, &1),
      partitions: 1,
      processing_interval_ms: :infinity,
      processing_batch_size: 1_000,
      max_attempts: :infinity,
      retry_backoff_ms: {10, 10},
      drain_timeout_ms: 10_000,
      journal: dir
    ]

    Keyword.merge(defaults, opts)
  end

  defp send_batch(test, batch) do
    send(test, {:batch, batch})
    :ok
  end

  @doc "Starts a buffer with the options of `journal_options/2`, and returns its name."
  def start_journaled(dir, opts \\ []) do
    options = journal_options(dir, Keyword.put_new_lazy(opts, :name, &PartitionedBuffer.Case.unique_name/0))

    start_supervised!(
      Supervisor.child_spec({PartitionedBuffer, options}, id: options[:name], restart: :temporary)
    )

    options[:name]
  end

  @doc "The directory of a journal."
  def path(dir, kind \\ :map, name \\ :journaled),
    do: Path.join([dir, Atom.to_string(name), Atom.to_string(kind)])

  @doc "The entries of a journal, without any damage."
  def entries(path) do
    assert {:ok, %{entries: entries, damaged: [], torn_bytes: 0, damaged_records: 0}} =
             PartitionedBuffer.Journal.read(path)

    entries
  end

  @doc "A VM with a buffer, in which code runs after the start. It says each batch as `{:batch, batch}`."
  def life(dir, opts, code, start \\ []) do
    options =
      dir
      |> journal_options(opts)
      |> Keyword.update!(:processor, &if(is_function(&1), do: {__MODULE__, :deliver, []}, else: &1))

    OtherVM.start(
      quote do
        :logger.set_primary_config(:level, :none)
        {:ok, _started} = Application.ensure_all_started(:partitioned_buffer)
        {:ok, _pid} = PartitionedBuffer.start_link(unquote(Macro.escape(options)))
        unquote(code)
        Process.sleep(:infinity)
      end,
      start
    )
  end

  @doc "Lets a VM with a buffer write, syncs that, and kills the VM. Returns what it said."
  def live_and_die(dir, opts, code) do
    code =
      quote do
        unquote(code)
        :ok = PartitionedBuffer.sync(unquote(opts[:name] || :journaled), level: :written)
        say(:synced)
      end

    vm = life(dir, opts, code)
    said = hear_until(vm, :synced)
    OtherVM.kill(vm)
    said
  end

  @doc "Lets the next VM deliver all that it finds, and returns the entries, with the last info before."
  def next_life(dir, opts \\ []) do
    name = opts[:name] || :journaled

    vm =
      life(
        dir,
        opts,
        quote do
          info = PartitionedBuffer.info(unquote(name))
          :ok = PartitionedBuffer.flush(unquote(name))
          :ok = PartitionedBuffer.stop(unquote(name))
          say({:info, info})
          System.halt(0)
        end
      )

    said = hear_until(vm, fn term -> match?({:info, _info}, term) end)
    assert OtherVM.await_end(vm) == 0
    {:info, info} = List.last(said)
    {Enum.flat_map(said, &with({:batch, batch} <- &1, do: batch, else: (_other -> []))), info, said}
  end

  @doc "What a VM says until it says a certain term; all of it, for a function also that term."
  def hear_until(vm, last) do
    term = OtherVM.hear(vm)

    cond do
      is_function(last) and last.(term) -> [term]
      term == last -> []
      true -> [term | hear_until(vm, last)]
    end
  end

  ## A VM that obeys

  @doc """
  A VM whose buffer says its events, and which evaluates code by `order/2`. It may have variables of the
  system's environment.
  """
  def obedient(dir, opts, env \\ []) do
    vm =
      life(
        dir,
        opts,
        quote do
          for event <- [:error, :recovered] do
            fun = fn _event, measurements, metadata, _config ->
              say({unquote(:event), event, measurements, metadata})
            end

            :telemetry.attach(event, [:partitioned_buffer, :journal, event], fun, nil)
          end

          say(:ready)

          obey = fn obey ->
            with(code <- told(), {result, _} = Code.eval_quoted(code), do: say({:result, result})) &&
              obey.(obey)
          end

          obey.(obey)
        end,
        env: env
      )

    assert OtherVM.hear(vm) == :ready
    vm
  end

  @doc "Lets the VM evaluate code; returns the result, and what it said before."
  def order(vm, code) do
    OtherVM.tell(vm, code)
    {said, [{:result, result}]} = vm |> hear_until(&match?({:result, _}, &1)) |> Enum.split(-1)
    {result, said}
  end

  @doc "An event that a VM said, or says."
  def hear_event(vm, event, said), do: List.last(hear_up_to(vm, event, said))

  @doc "What a VM said, and what it says, up to an event."
  def hear_up_to(vm, event, said) do
    event? = &match?({:event, ^event, _, _}, &1)

    case Enum.split_while(said, &(not event?.(&1))) do
      {before, [event | _later]} -> before ++ [event]
      {before, []} -> before ++ hear_until(vm, event?)
    end
  end

  @doc "Code that puts keys with values of a size."
  def put(keys, bytes \\ 1_000) do
    quote do
      for key <- unquote(Macro.escape(keys)),
          do: PartitionedBuffer.Map.put(:journaled, key, {key, :binary.copy("x", unquote(bytes))})

      :put
    end
  end

  @doc "Code that is true if all keys are read."
  def all_read(keys) do
    quote(
      do: Enum.all?(unquote(Macro.escape(keys)), &match?({_, _}, PartitionedBuffer.Map.get(:journaled, &1)))
    )
  end

  @doc "The keys of entries, sorted."
  def keys_of(entries), do: entries |> Enum.map(&elem(&1, 0)) |> Enum.sort()

  ## Functions of the options, in the other VM

  def deliver(batch) do
    OtherVM.say({:batch, batch})
    :ok
  end

  def refuse(batch) do
    OtherVM.say({:refused, batch})
    {:error, :down}
  end

  def hang(batch) do
    OtherVM.say({:hangs, batch})
    Process.sleep(:infinity)
  end

  def snooze(batch) do
    OtherVM.say({:snoozed, batch})
    {:snooze, 60_000}
  end

  def bury(entries, reason), do: OtherVM.say({:dead, entries, reason})

  def hang_with_the_dead(entries, reason) do
    OtherVM.say({:dying, entries, reason})
    Process.sleep(:infinity)
  end

  @doc "A line of the file has each call, also if the VM ends with it."
  def kill_on_poison(batch, path) do
    File.write!(path, "#{inspect(batch)}\n", [:append])

    if Enum.any?(batch, &(elem(&1, 0) == :poison)) do
      OtherVM.signal(System.pid(), "KILL")
      Process.sleep(:infinity)
    end

    :ok
  end
end
