defmodule PartitionedBuffer.ClusterModel do
  @moduledoc """
  Members of a buffer with `:cluster` in one process: the rules of `Cluster.Forward` and `Cluster.Taking`
  without processes and nodes, in a time of commands. Owners are those of `Cluster.Slots`.

  A history is a list of commands, and every command is possible at any time: what makes no sense does
  nothing. Between two members are two queues of messages, in order. A cut loses what they have.

  Writes are numbered. Number n adds 16^n to a counter, so a digit of a final sum counts how often the
  write was stored. In a map n is the value.

  `broken` is a rule that the model breaks, so that a test sees that histories find it (`rules/0`).
  """

  alias PartitionedBuffer.Cluster.Slots
  alias PartitionedBuffer.Routing

  defmodule Member do
    @moduledoc false
    # `collecting` has the waiting entries of each slot, `slots` its batch under way, `owning` a store of
    # entries and of the numbers taken.
    @enforce_keys [:node, :incarnation, :owning, :view]
    defstruct @enforce_keys ++ [collecting: %{}, slots: %{}, clock: 0, number: 0, left?: false]
  end

  # `asked` is the incarnation of the first owner. No rule uses it.
  @batch %{entries: %{}, number: nil, to: nil, since: nil, sure?: true, phase: :new, call: nil, asked: nil}

  # `may_lose` and `may_double` have the entries that the contract allows to get lost, or to be stored once more.
  @enforce_keys [:kind, :store, :members]
  defstruct @enforce_keys ++
              [
                broken: nil,
                now: 0,
                unique: 0,
                links: MapSet.new(),
                queues: %{},
                sink: %{},
                writes: [],
                absent: %{},
                may_lose: [],
                may_double: [],
                violations: [],
                resent: 0,
                seen: %{}
              ]

  @nodes [:"n0@127.0.0.1", :"n1@127.0.0.1", :"n2@127.0.0.1"]
  @slots 4
  @batch_size 2
  @uncertain 10
  # Sums of a native counter have 120 bits.
  @most_writes 29

  @doc "The rules that a test may break, each with the kinds of buffers that need it."
  def rules do
    [
      new_number: [:counter],
      forget_mark: [:counter],
      give_back_unknown: [:counter],
      give_back_unsure: [:counter],
      no_wait: [:counter],
      first_absence: [:counter],
      take_again: [:counter],
      same_number: [:counter, :map],
      last_wins: [:map]
    ]
  end

  @doc "Runs a history, lets all connections and views heal, and returns the world when all is stored."
  def run(kind, store, commands, broken \\ nil) do
    world = %__MODULE__{kind: kind, store: store, members: %{}, broken: broken}
    world = Enum.reduce(@nodes, world, &start(&2, &1))
    world = Enum.reduce(commands, heal(world), &command/2)
    settle(heal(world), 100)
  end

  ## Commands

  defp command({:write, m, key}, world), do: at(world, m, &write(world, &1, key))
  defp command({:step, m, slot}, world), do: at(world, m, &step(world, &1, slot))

  defp command({:die_after, m, slot}, world),
    do: at(world, m, &(world |> step(&1, slot) |> kill_task(&1.node, slot)))

  defp command({:kill_task, m, slot}, world), do: at(world, m, &kill_task(world, &1.node, slot))
  defp command({:timeout, m, slot}, world), do: at(world, m, &lose_call(world, &1, slot))
  defp command({:deliver, a, b}, world), do: deliver(world, {node_of(a), node_of(b)})
  defp command({:cut, a, b}, world), do: cut(world, node_of(a), node_of(b))
  defp command({:connect, a, b}, world), do: connect(world, node_of(a), node_of(b))
  defp command({:view, m}, world), do: at(world, m, &view(world, &1))
  defp command({:leave, m}, world), do: at(world, m, &put(world, %{&1 | left?: not &1.left?}))
  defp command({:elapse, time}, world), do: %{world | now: world.now + time}
  defp command({:store, m}, world), do: at(world, m, &store(world, &1))
  defp command({:kill, m}, world), do: at(world, m, &kill(world, &1))

  defp command({:start, m}, world),
    do: if(world.members[node_of(m)], do: world, else: start(world, node_of(m)))

  defp node_of(m), do: Enum.at(@nodes, m)

  defp at(world, m, act) do
    case world.members[node_of(m)] do
      nil -> world
      member -> act.(member)
    end
  end

  defp put(world, member), do: %{world | members: Map.put(world.members, member.node, member)}

  defp unique(world), do: {world.unique + 1, %{world | unique: world.unique + 1}}

  defp start(world, node) do
    {incarnation, world} = unique(world)
    owning = world.store.new(world.kind, world.broken)
    put(world, %Member{node: node, incarnation: incarnation, owning: owning, view: [node]})
  end

  defp write(%{writes: writes} = world, _member, _key) when length(writes) >= @most_writes, do: world

  # The clocks of members differ by one, so their versions do.
  defp write(world, member, key) do
    number = length(world.writes)
    clock = max(member.clock + 1, 10 * world.now)
    version = 4 * clock + Enum.find_index(@nodes, &(&1 == member.node))
    entry = if world.kind == :counter, do: {Integer.pow(16, number), 1}, else: {number, version, 0}
    {slot, @slots} = Routing.route(nil, key, @slots)
    world = %{world | writes: [{number, key, version} | world.writes], now: world.now + 1}
    put(world, collect(%{member | clock: clock}, slot, %{key => entry}, world))
  end

  defp collect(member, slot, entries, world) do
    waiting = Map.get(member.collecting, slot, %{})
    # The entries of a batch are older than waiting ones.
    together = Map.merge(waiting, entries, fn _key, one, other -> merge(one, other, world.broken) end)
    %{member | collecting: Map.put(member.collecting, slot, together)}
  end

  @doc "Two entries of a key as one."
  def merge({sum, count}, {other, more}, _broken), do: {sum + other, count + more}
  def merge(_one, {_value, _version, _updates} = other, :last_wins), do: other
  def merge({_, version, _} = one, {_, older, _}, _broken) when version >= older, do: one
  def merge(_older, other, _broken), do: other

  ## The work of the collecting stage: `Cluster.Forward`

  defp step(world, member, slot) do
    case member.slots[slot] do
      nil -> send_batch(world, member, slot)
      %{phase: :calling} -> world
      %{phase: :waiting} = batch -> ask_again(world, member, slot, batch)
      %{phase: :dead} = batch -> inherit(world, member, slot, batch)
    end
  end

  defp send_batch(world, member, slot) do
    {entries, rest} = member.collecting |> Map.get(slot, %{}) |> Enum.split(@batch_size)
    member = %{member | collecting: Map.put(member.collecting, slot, Map.new(rest))}
    to = elem(Slots.owners(@slots, member.view, :all), slot)
    {number, member} = number(world, member)

    if entries == [],
      do: world,
      else: ask(world, member, slot, %{@batch | entries: Map.new(entries), number: number, to: to})
  end

  defp number(%{broken: :same_number}, member), do: {1, member}
  defp number(_world, member), do: {member.number + 1, %{member | number: member.number + 1}}

  defp inherit(%{broken: :forget_mark} = world, member, slot, batch),
    do: give_back(world, member, slot, batch)

  defp inherit(%{broken: :new_number} = world, member, slot, batch) do
    {number, member} = number(world, member)
    ask(world, member, slot, %{batch | number: number, sure?: false})
  end

  defp inherit(world, member, slot, batch), do: ask(world, member, slot, %{batch | sure?: false, since: nil})

  defp ask(world, %Member{node: to} = member, slot, %{to: to} = batch) do
    {answer, owning} = take(world, member, {member.incarnation, slot}, batch.number, entries(batch.entries))
    answered(world, %{member | owning: owning}, slot, batch, answer)
  end

  defp ask(world, member, slot, %{to: to} = batch) do
    if connected?(world, member.node, to) do
      {call, world} = unique(world)

      message =
        {:forward, call, {member.incarnation, slot}, batch.number, entries(batch.entries), member.clock}

      {world, batch} = asked(world, batch)

      world
      |> put(%{member | slots: Map.put(member.slots, slot, %{batch | phase: :calling, call: call})})
      |> enqueue({member.node, to}, message)
    else
      answered(world, member, slot, batch, :moved)
    end
  end

  # A restarted owner has no numbers.
  defp asked(world, %{to: to, asked: asked} = batch) do
    incarnation = world.members[to].incarnation
    world = if asked in [nil, incarnation], do: world, else: allow_double(world, batch)
    {world, %{batch | asked: incarnation}}
  end

  defp answered(world, member, slot, batch, answer) do
    world = %{world | seen: Map.update(world.seen, {answer, batch.sure?}, 1, &(&1 + 1))}
    settle_batch(world, member, slot, batch, answer)
  end

  defp settle_batch(world, member, slot, _batch, answer) when answer in [:ok, :duplicate],
    do: put(world, %{member | slots: Map.delete(member.slots, slot)})

  defp settle_batch(world, member, slot, batch, :full), do: give_back(world, member, slot, batch)

  defp settle_batch(%{broken: broken} = world, member, slot, batch, :moved)
       when batch.sure? or broken == :give_back_unsure,
       do: give_back(world, member, slot, batch)

  defp settle_batch(world, member, slot, batch, _unknown), do: unknown(world, member, slot, batch)

  defp give_back(world, member, slot, batch) do
    member = collect(member, slot, batch.entries, world)
    put(world, %{member | slots: Map.delete(member.slots, slot)})
  end

  defp unknown(world, member, slot, batch) do
    member? = batch.to in member.view or batch.to == member.node
    since = if member?, do: nil, else: away_since(world, member, batch)
    batch = %{batch | sure?: false, since: since, phase: :waiting, call: nil}

    cond do
      world.broken == :give_back_unknown -> give_back(world, member, slot, batch)
      member? -> put(world, %{member | slots: Map.put(member.slots, slot, batch)})
      world.kind == :map or world.broken == :no_wait -> resend(world, member, slot, batch)
      world.now - since >= @uncertain -> resend(world, member, slot, batch)
      true -> put(world, %{member | slots: Map.put(member.slots, slot, batch)})
    end
  end

  # The owner may return between two questions.
  defp away_since(%{broken: :first_absence} = world, _member, batch), do: batch.since || world.now

  defp away_since(world, member, batch),
    do: max(batch.since || world.now, Map.get(world.absent, {member.node, batch.to}, 0))

  # The world decides whether the member waited for that time.
  defp resend(world, member, slot, batch) do
    absent = world.now - Map.get(world.absent, {member.node, batch.to}, world.now)
    early? = world.kind == :counter and absent < @uncertain
    world = if early?, do: %{world | violations: [{:early, batch} | world.violations]}, else: world
    %{allow_double(world, batch) | resent: world.resent + 1} |> give_back(member, slot, batch)
  end

  defp ask_again(world, member, slot, batch) do
    if batch.to == member.node or connected?(world, member.node, batch.to),
      do: ask(world, member, slot, batch),
      else: unknown(world, member, slot, batch)
  end

  defp kill_task(world, node, slot) do
    member = world.members[node]
    dead = fn batch -> %{batch | phase: :dead, call: nil} end
    if member.slots[slot], do: put(world, update_in(member.slots[slot], dead)), else: world
  end

  defp lose_call(world, member, slot) do
    case member.slots[slot] do
      %{phase: :calling} = batch -> unknown(world, member, slot, batch)
      _no_call -> world
    end
  end

  ## Messages

  defp enqueue(world, queue, message),
    do: %{world | queues: Map.update(world.queues, queue, [message], &(&1 ++ [message]))}

  defp deliver(world, {from, to} = queue) do
    case world.queues[queue] do
      [message | rest] ->
        receive_message(%{world | queues: Map.put(world.queues, queue, rest)}, from, to, message)

      _none ->
        world
    end
  end

  # `Cluster.Receiver`
  defp receive_message(world, from, to, {:forward, call, stream, number, entries, clock}) do
    member = world.members[to]
    {answer, owning} = take(world, member, stream, number, entries)
    member = %{member | owning: owning, clock: max(member.clock, clock)}
    world |> put(member) |> enqueue({to, from}, {:answer, call, elem(stream, 1), answer, member.clock})
  end

  defp receive_message(world, _from, to, {:answer, call, slot, answer, clock}) do
    member = world.members[to]
    member = %{member | clock: max(member.clock, clock)}

    case member.slots[slot] do
      %{call: ^call, phase: :calling} = batch -> answered(world, member, slot, batch, answer)
      # The task died, or asked again.
      _late -> put(world, member)
    end
  end

  defp take(world, member, stream, number, entries),
    do: world.store.take(member.owning, stream, number, entries)

  ## Connections and views

  defp connected?(world, a, b), do: pair(a, b) in world.links

  defp pair(a, b), do: Enum.sort([a, b])

  defp connect(world, a, b) do
    if a != b and world.members[a] && world.members[b],
      do: %{world | links: MapSet.put(world.links, pair(a, b))},
      else: world
  end

  defp cut(world, a, b) do
    world = %{
      world
      | links: MapSet.delete(world.links, pair(a, b)),
        queues: Map.drop(world.queues, [{a, b}, {b, a}])
    }

    for {from, to} <- [{a, b}, {b, a}], slot <- 0..(@slots - 1), reduce: world do
      world ->
        member = world.members[from]
        if member && match?(%{to: ^to}, member.slots[slot]), do: lose_call(world, member, slot), else: world
    end
  end

  defp view(world, %Member{node: node} = member) do
    others = for other <- @nodes, connected?(world, node, other), not world.members[other].left?, do: other
    view = if member.left? and others != [], do: others, else: Enum.sort([node | others])

    absent =
      Enum.reduce(@nodes, world.absent, fn other, absent ->
        if other in view,
          do: Map.delete(absent, {node, other}),
          else: Map.put_new(absent, {node, other}, world.now)
      end)

    put(%{world | absent: absent}, %{member | view: view})
  end

  ## Deaths

  defp kill(world, %Member{node: node} = member) do
    batches = for {_slot, batch} <- member.slots, do: batch.entries
    {owned, _store} = world.store.drain(member.owning)
    lost = [Map.new(owned, &of_entry/1) | batches ++ Map.values(member.collecting)]
    world = %{world | may_lose: Enum.flat_map(lost, &Map.to_list/1) ++ world.may_lose}
    world = Enum.reduce(@nodes -- [node], world, &cut(&2, node, &1))
    %{world | members: Map.delete(world.members, node)}
  end

  defp allow_double(world, batch), do: %{world | may_double: Map.to_list(batch.entries) ++ world.may_double}

  ## The sink

  defp store(world, member) do
    {entries, owning} = world.store.drain(member.owning)
    sink = Enum.reduce(entries, world.sink, fn entry, sink -> store_entry(sink, of_entry(entry)) end)
    put(%{world | sink: sink}, %{member | owning: owning})
  end

  # It refuses older versions.
  defp store_entry(sink, {key, entry}), do: Map.update(sink, key, entry, &merge(&1, entry, nil))

  defp entries(entries), do: for({key, entry} <- entries, do: List.to_tuple([key | Tuple.to_list(entry)]))

  @doc "An entry of a batch: its key, and the rest."
  def of_entry(entry) do
    [key | rest] = Tuple.to_list(entry)
    {key, List.to_tuple(rest)}
  end

  ## The end

  defp heal(world) do
    world = for a <- @nodes, b <- @nodes, reduce: world, do: (world -> connect(world, a, b))
    Enum.reduce(Map.values(world.members), world, &view(&2, &1))
  end

  defp settle(world, 0), do: %{world | violations: [:stuck | world.violations]}

  defp settle(world, rounds) do
    world = %{world | now: world.now + @uncertain}

    world =
      for m <- 0..2, slot <- 0..(@slots - 1), reduce: world, do: (world -> command({:step, m, slot}, world))

    queues = for a <- 0..2, b <- 0..2, _ <- 1..12, do: {:deliver, a, b}
    world = Enum.reduce(queues ++ for(m <- 0..2, do: {:store, m}), world, &command/2)
    if settled?(world), do: world, else: settle(world, rounds - 1)
  end

  defp settled?(world) do
    Enum.all?(Map.values(world.queues), &(&1 == [])) and
      Enum.all?(Map.values(world.members), fn member ->
        member.slots == %{} and Enum.all?(Map.values(member.collecting), &(&1 == %{}))
      end)
  end
end
