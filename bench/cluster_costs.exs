# The CPU time that versions and `cluster: true` cost, beside a buffer without them.
#
#     MIX_ENV=prod mix run bench/cluster_costs.exs
#
# Prints the median of rounds that alternate: the time of a put, the ratio of a put with
# `versions: :clock`, the ratios of writes with `:cluster` beside a buffer with as many partitions and
# with two, and the time of a forwarded entry on its origin, with its put, and on its owner, with its
# delivery. The last needs epmd: it starts two nodes on 127.0.0.1. Each part checks what came to the sink.

# The nodes load the module from here.
{:module, module, binary, _main} =
  defmodule Bench.ClusterCosts do
    alias PartitionedBuffer.{Cluster, Counter}
    alias PartitionedBuffer.Map, as: Buffer

    @rounds 9
    @keys 1_000
    @writes 800_000
    # Written together before a flush: a batch of a thousand for each slot.
    @wave 64_000

    def main do
      versions()
      stages()
      forwards()
    end

    defp versions do
      value = %{id: 7, name: "payload", at: 12_345}
      for {name, opts} <- [plain: [], clock: [versions: :clock]], do: start(Buffer, name, opts)

      for {what, write} <- [
            "put int→int": &Buffer.put(&1, &2, &2),
            "put int→map of 4": &Buffer.put(&1, &2, value),
            "put one hot key": &Buffer.put(&1, :hot, &2)
          ] do
        [plain, clock] = rounds([:plain, :clock], write)
        IO.puts("#{what}: #{round(median(plain))} ns, with versions: :clock × #{ratio(clock, plain)}")
      end

      stop([:plain, :clock])
    end

    defp stages do
      cluster = [cluster: [forward_ms: 60_000]]
      clock = [versions: :clock]

      for {what, module, opts, write} <- [
            {"add", Counter, [], &Counter.add(&1, &2)},
            {"put with versions: :clock", Buffer, clock, &Buffer.put(&1, &2, &2)}
          ] do
        start(module, :two, [partitions: 2] ++ opts)
        start(module, :many, [partitions: 64] ++ opts)
        start(module, :clustered, cluster)
        [two, many, clustered] = rounds([:two, :many, :clustered], write)

        IO.puts(
          "#{what}: #{round(median(two))} ns with 2 partitions, with :cluster × #{ratio(clustered, two)}, " <>
            "beside 64 partitions × #{ratio(clustered, many)}"
        )

        stop([:two, :many, :clustered])
      end
    end

    ## Both sides of a forward

    defp forwards do
      nodes = start_nodes()

      for {kind, module} <- [map: Buffer, counter: Counter] do
        for node <- nodes, do: call(node, :start_stage, [module])
        [node | _] = nodes
        await(fn -> Enum.all?(nodes, &(length(:erpc.call(&1, Cluster, :members, [:forwards])) == 2)) end)
        owner = :erpc.call(node, Cluster, :owner, [:forwards, 1])
        [origin] = nodes -- [owner]
        call(origin, :waves, [kind, 0, 2])

        times =
          for round <- 1..@rounds do
            before = for node <- [origin, owner], do: call(node, :cpu_us, [])
            call(origin, :waves, [kind, 2 * round, 2])
            later = for node <- [origin, owner], do: call(node, :cpu_us, [])
            for {from, to} <- Enum.zip(before, later), do: (to - from) / (2 * @wave)
          end

        delivered = :erpc.call(owner, PartitionedBuffer, :info, [:forwards]).cluster.totals.taken
        true = delivered > 0
        [at_origin, at_owner] = for side <- 0..1, do: median(Enum.map(times, &Enum.at(&1, side)))

        IO.puts(
          "a forwarded entry of a #{kind}: #{Float.round(at_origin + at_owner, 2)} µs " <>
            "(origin #{Float.round(at_origin, 2)}, owner #{Float.round(at_owner, 2)})"
        )

        for node <- nodes, do: :erpc.call(node, PartitionedBuffer, :stop, [:forwards])
      end

      for node <- nodes, do: :erpc.cast(node, :erlang, :halt, [0])
    end

    def start_stage(module) do
      caller = self()

      spawn(fn ->
        options = [
          cluster: [owners: 1],
          partitions: 2,
          processing_batch_size: 1_000,
          processing_interval_ms: 1_000
        ]

        start(module, :forwards, options)
        send(caller, :started)
        Process.sleep(:infinity)
      end)

      receive do: (:started -> :ok)
    end

    def waves(kind, first, count) do
      for wave <- first..(first + count - 1) do
        for key <- (wave * @wave)..((wave + 1) * @wave - 1), do: write(kind, key)
        :ok = PartitionedBuffer.flush(:forwards)
      end

      :ok
    end

    defp write(:map, key), do: Buffer.put(:forwards, key, {key, "0123456789"})
    defp write(:counter, key), do: Counter.add(:forwards, key)

    def cpu_us, do: elem(:erlang.statistics(:runtime), 0) * 1_000

    defp call(node, function, args), do: :erpc.call(node, __MODULE__, function, args, 60_000)

    defp start_nodes do
      System.cmd("epmd", ["-daemon", "-address", "127.0.0.1"])

      {:ok, _} =
        :net_kernel.start(:"costs_#{System.pid()}@127.0.0.1", %{name_domain: :longnames, hidden: true})

      args = [~c"-setcookie", ~c"#{Node.get_cookie()}", ~c"+sbwt", ~c"none", ~c"-pa" | :code.get_path()]

      nodes =
        for number <- 1..2 do
          {:ok, _pid, node} =
            :peer.start(%{
              name: :"costs#{number}_#{System.pid()}",
              host: ~c"127.0.0.1",
              longnames: true,
              args: args
            })

          for app <- [:elixir, :logger, :partitioned_buffer],
              do: {:ok, _} = :erpc.call(node, :application, :ensure_all_started, [app])

          binary = :persistent_term.get(__MODULE__)
          {:module, _} = :erpc.call(node, :code, :load_binary, [__MODULE__, ~c"bench", binary])
          node
        end

      true = :erpc.call(hd(nodes), Node, :connect, [List.last(nodes)])
      nodes
    end

    defp await(condition), do: condition.() || (Process.sleep(10) && await(condition))

    ## Rounds

    defp start(module, name, opts) do
      {:ok, _pid} =
        module.start_link(
          [
            name: name,
            processor: {__MODULE__, :store, []},
            max_attempts: :infinity,
            processing_interval_ms: 60_000
          ] ++ opts
        )
    end

    def store(_batch), do: :ok

    # Each buffer holds all keys at the end, and nothing was delivered on the way.
    defp stop(names) do
      for name <- names do
        true = PartitionedBuffer.buffer_size(name) >= 1
        :ok = PartitionedBuffer.stop(name)
      end
    end

    defp rounds(names, write) do
      keys = 1..@keys |> Enum.shuffle() |> List.duplicate(div(@writes, @keys)) |> List.flatten()
      loop = fn name -> Enum.each(keys, &write.(name, &1)) end
      Enum.each(names, loop)
      times = for _round <- 1..@rounds, do: for(name <- names, do: time(fn -> loop.(name) end))
      Enum.zip_with(times, & &1)
    end

    defp time(fun) do
      :erlang.garbage_collect()
      from = cpu_us()
      fun.()
      (cpu_us() - from) * 1_000 / @writes
    end

    defp ratio(times, others),
      do: times |> Enum.zip(others) |> Enum.map(fn {a, b} -> a / b end) |> median() |> Float.round(2)

    defp median(list), do: list |> Enum.sort() |> Enum.at(div(length(list), 2))
  end

Logger.configure(level: :error)
:persistent_term.put(module, binary)
module.main()
