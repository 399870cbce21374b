//! Writes the elements of a list. The elements are read in chunks and written in steps, and a step
//! takes each lock once.

use partitioned_buffer_engine::partition::{Write, TABLE_SHARDS};
use partitioned_buffer_engine::Written as Done;
use partitioned_buffer_engine::{Closed, CounterPartition, Hash, Heap, MapPartition, Parcel, Stored, Version};
use rustler::{Env, Error, NifResult, Term};

use crate::buffer::{CounterPartitions, MapPartitions, QueuePartitions};
use crate::pace::Pace;
use crate::reservation::{Reservation, Taken};
use crate::route::Route;
use crate::run::{News, NotRunning, Shared};
use crate::vm::term::{amount, cell, elements, parcel, parcel_with, tail, version, Environment, RawTerm};

/// The number of elements of a list read before the first is written.
const CHUNK: usize = 2048;

/// The number of elements that a chunk has room for at the start.
const SHORT: usize = 16;

/// The additional room for a full chunk: making room little by little costs more than it saves.
const LONG: usize = 1024;

/// Up to this number elements are written one by one. More are sorted by their locks.
const WRITTEN_ONE_BY_ONE: usize = 16;

/// After large copies of this many bytes, a step ends and the clock is read.
const LARGE_BYTES: usize = 256 * 1024;

/// The destination of the elements of a list.
pub(crate) trait Target {
    /// An element of the expected shape.
    type Element: Copy;

    /// A prepared write of an element.
    type Write;

    /// How many shards, each with a lock, a partition has.
    const SHARDS: usize;

    /// The state that the partitions of the buffer share.
    fn shared(&self) -> &Shared;

    /// The route to the partition of an element.
    fn route(&self) -> Route;

    /// Reads an element; `None` if it has another shape. A large element must not take longer: a
    /// whole chunk is read without a look at the clock.
    fn decode(&self, element: Term<'_>) -> Option<Self::Element>;

    /// Prepares a write: looks at the whole key, copies large terms, and lets the CPU load the
    /// terms that will be copied.
    fn prepare(&self, env: Env<'_>, element: Self::Element) -> Self::Write;

    /// Bytes of the large copies of a write.
    fn large_bytes(write: &Self::Write) -> usize;

    /// The term that chooses the partition of a write, and the shard in there.
    fn place(write: &Self::Write) -> (RawTerm, usize);

    /// Does one write, for which no room is reserved.
    fn write(&self, write: &Self::Write) -> Result<Stored, NotRunning>;

    /// Does all writes of one shard of a partition, in order, with reserved room or without.
    fn write_all<'w>(
        &self,
        partition_count: u32,
        partition: u32,
        shard: usize,
        reserved: bool,
        writes: impl Iterator<Item = &'w Self::Write> + Clone,
    ) -> Result<Done, Closed>
    where
        Self::Write: 'w;

    /// The index of the lock that a write needs, among those of all partitions.
    fn lock(&self, write: &Self::Write, partition_count: u32) -> Result<usize, NotRunning> {
        let (term, shard) = Self::place(write);
        Ok(self.route().partition(term, partition_count)? as usize * Self::SHARDS + shard)
    }

    /// Sends the partition of a lock the news that enough entries wait.
    fn tell_enough(&self, env: Env<'_>, lock: usize) {
        self.shared().tell(env, News::Enough((lock / Self::SHARDS) as u32));
    }
}

/// The progress of writing a list.
pub(crate) enum Written<'a> {
    /// All elements are written.
    All,
    /// The time was up. This rest is not written.
    More(Term<'a>),
    /// A partition refused a write. This rest is not written.
    Refused(Term<'a>),
    /// Nothing is written: the list is too long to be checked and written by one call.
    Long,
    /// Nothing is written: the buffer has a bound, and no room is reserved.
    Bounded,
    /// Nothing is written: the list is invalid.
    Invalid(Invalid<'a>),
}

/// Why a list is invalid.
pub(crate) enum Invalid<'a> {
    /// This element has another shape.
    Element(Term<'a>),
    /// This is no list, but the tail of one.
    Tail(Term<'a>),
}

/// The shape of a list's elements.
#[derive(Clone, Copy)]
pub(crate) enum Shape {
    /// `{key, value}`
    Pair,
    /// `{key, value, version}`
    Versioned,
    /// `{key, amount}`
    Amount,
    /// Any term.
    Item,
}

impl Shape {
    /// Whether an element has this shape.
    fn fits(self, element: Term<'_>) -> bool {
        match self {
            Shape::Pair | Shape::Versioned => Entry::decode(self, element).is_some(),
            Shape::Amount => addition(element).is_some(),
            Shape::Item => true,
        }
    }
}

/// Checks the elements of a list until the time is up, and returns the unchecked rest, which is
/// empty at the end.
pub(crate) fn check_list<'a>(env: Env<'a>, shape: Shape, list: Term<'a>) -> Result<Term<'a>, Invalid<'a>> {
    let mut pace = Pace::start();
    let mut rest = list;
    loop {
        for _ in 0..CHUNK {
            match cell(rest) {
                Some((element, tail)) if shape.fits(element) => rest = tail,
                _ => {
                    pace.consume_timeslice(env);
                    return if rest.is_empty_list() { Ok(rest) } else { Err(invalid(rest)) };
                }
            }
        }
        if !pace.goes_on(CHUNK) {
            pace.consume_timeslice(env);
            return Ok(rest);
        }
    }
}

/// The error of a list that does not begin with an element of its shape.
fn invalid(list: Term<'_>) -> Invalid<'_> {
    match cell(list) {
        Some((element, _tail)) => Invalid::Element(element),
        None => Invalid::Tail(list),
    }
}

/// Writes the elements of a list until the time is up. A list that the caller did not check
/// (`checked`) is checked as a whole first, if it fits into one chunk. In a buffer with a bound,
/// the caller must have a reservation for all elements.
///
/// A chunk that cannot be written is an error only if it is the first one. Else the call returns
/// before it, so a call with an error changes nothing.
pub(crate) fn write_list<'a, T: Target>(
    env: Env<'a>,
    target: &T,
    list: Term<'a>,
    checked: bool,
    reservation: Option<&Reservation>,
) -> NifResult<Result<Written<'a>, NotRunning>> {
    let mut pace = Pace::start();
    let mut chunk = Vec::with_capacity(SHORT);
    let mut step = Step::new();
    let mut start = list;
    let stop = |pace: &Pace, rest: Term<'a>| {
        pace.consume_timeslice(env);
        if rest.as_c_arg() == list.as_c_arg() {
            Err(Error::BadArg)
        } else {
            Ok(Ok(Written::More(rest)))
        }
    };
    loop {
        let end = read(target, start, &mut chunk);
        let is_whole = end.is_empty_list();
        if !is_whole && !checked {
            return Ok(Ok(if chunk.len() == CHUNK { Written::Long } else { Written::Invalid(invalid(end)) }));
        }
        let has_room = reservation.is_none_or(|reservation| reservation.is_for(target.shared(), chunk.len()));
        if !has_room || !is_whole && chunk.len() < CHUNK {
            return stop(&pace, start);
        }
        if reservation.is_none() && !checked && target.shared().bound.max().is_some() {
            return Ok(Ok(Written::Bounded));
        }
        // An empty list has no write that would notice a stopped buffer.
        if let Err(NotRunning) = target.shared().count() {
            return Ok(Err(NotRunning));
        }
        let mut written = 0;
        while written < chunk.len() {
            let next = chunk.len().min(written + pace.step);
            let room = reservation.map(|reservation| reservation.take(next - written));
            // Another process may use the same reservation.
            let Ok(room) = room.transpose() else { return stop(&pace, tail(start, written)) };
            let Ok(done) = step.write(env, target, &chunk[written..next], room.as_ref()) else {
                return Ok(Ok(Written::Refused(step.rest(tail(start, written), next - written))));
            };
            written += done;
            let is_done = is_whole && written == chunk.len();
            if !pace.goes_on(done) && !is_done {
                pace.consume_timeslice(env);
                return Ok(Ok(Written::More(tail(start, written))));
            }
        }
        if is_whole {
            pace.consume_timeslice(env);
            return Ok(Ok(Written::All));
        }
        start = end;
    }
}

/// Reads elements of a list until the chunk is full or an element has another shape, and returns
/// the rest.
fn read<'a, T: Target>(target: &T, list: Term<'a>, chunk: &mut Vec<T::Element>) -> Term<'a> {
    let mut rest = list;
    chunk.clear();
    while chunk.len() < CHUNK {
        let Some((element, tail)) = cell(rest) else { break };
        let Some(decoded) = target.decode(element) else { break };
        if chunk.len() == chunk.capacity() {
            chunk.reserve(LONG);
        }
        chunk.push(decoded);
        rest = tail;
    }
    rest
}

/// Sends the partition of a write the news that enough entries wait, if it still runs.
#[cold]
fn tell_enough<T: Target>(env: Env<'_>, target: &T, write: &T::Write) {
    let lock = target.shared().count().and_then(|partition_count| target.lock(write, partition_count));
    if let Ok(lock) = lock {
        target.tell_enough(env, lock);
    }
}

/// Some writes, and room to order them by their locks.
struct Step<W> {
    /// The writes to do by lock, in the order of the caller.
    writes: Vec<W>,
    /// The number of writes done before these.
    done: usize,
    /// The numbers of the undone writes, in the same order.
    left: Vec<u32>,
    /// The number of the lock of each undone write.
    locks: Vec<u32>,
    /// For each lock, where its writes begin in `sorted`, and later where they end.
    places: Vec<u32>,
    /// The numbers of the writes, by lock; the writes of a lock in the order of the caller.
    sorted: Vec<u32>,
}

impl<W> Step<W> {
    /// No writes.
    fn new() -> Self {
        Step {
            writes: Vec::new(),
            done: 0,
            left: Vec::new(),
            locks: Vec::new(),
            places: Vec::new(),
            sorted: Vec::new(),
        }
    }

    /// Writes some elements, fewer than all if they are large, and returns their number.
    fn write<T: Target<Write = W>>(
        &mut self,
        env: Env<'_>,
        target: &T,
        elements: &[T::Element],
        room: Option<&Taken<'_>>,
    ) -> Result<usize, NotRunning> {
        let (mut count, mut large_bytes) = (0, 0);
        let mut result = Ok(());
        let mut one_by_one = elements.len() <= WRITTEN_ONE_BY_ONE && room.is_none();
        self.writes.clear();
        self.left.clear();
        while count < elements.len() && large_bytes < LARGE_BYTES && result.is_ok() {
            let write = target.prepare(env, elements[count]);
            large_bytes += T::large_bytes(&write);
            if one_by_one {
                match target.write(&write) {
                    // The bound is younger than the list. The remaining writes keep their order.
                    Ok(Stored::Full) => one_by_one = false,
                    Ok(Stored::Enough) => tell_enough(env, target, &write),
                    Ok(Stored::Stored | Stored::Refused) => {}
                    Err(NotRunning) => result = Err(NotRunning),
                }
            }
            if !one_by_one {
                self.left.push(count as u32);
                self.writes.push(write);
            }
            count += usize::from(result.is_ok());
        }
        self.done = count - self.writes.len();
        result.and_then(|()| self.write_by_lock(env, target, room)).map(|()| count).inspect_err(|NotRunning| {
            self.left.extend(count as u32..elements.len() as u32);
        })
    }

    /// Does the writes, taking each lock once. If the buffer starts again with another number of
    /// partitions, the undone writes go on there.
    fn write_by_lock<T: Target<Write = W>>(
        &mut self,
        env: Env<'_>,
        target: &T,
        room: Option<&Taken<'_>>,
    ) -> Result<(), NotRunning> {
        while !self.left.is_empty() {
            let partition_count = target.shared().count()?;
            self.sort(target, partition_count)?;
            let done = self.write_sorted(env, target, partition_count, room);
            self.left = self.sorted.split_off(done);
            self.left.sort_unstable();
            if !self.left.is_empty() && target.shared().count()? == partition_count {
                return Err(NotRunning);
            }
        }
        Ok(())
    }

    /// The undone elements among the first `count` elements of a list, and all elements behind
    /// them.
    fn rest<'a>(&self, mut list: Term<'a>, count: usize) -> Term<'a> {
        let mut elements = Vec::with_capacity(count);
        while let Some((element, tail)) = cell(list).filter(|_| elements.len() < count) {
            elements.push(element);
            list = tail;
        }
        self.left.iter().rev().fold(list, |rest, &number| rest.list_prepend(elements[number as usize]))
    }

    /// Does the sorted writes, as long as the partitions take them, and returns their number.
    fn write_sorted<T: Target<Write = W>>(
        &self,
        env: Env<'_>,
        target: &T,
        partition_count: u32,
        room: Option<&Taken<'_>>,
    ) -> usize {
        let mut start = 0;
        for (lock, &end) in self.places.iter().enumerate() {
            let numbers = &self.sorted[start..end as usize];
            if numbers.is_empty() {
                continue;
            }
            let writes = numbers.iter().map(|&number| &self.writes[number as usize - self.done]);
            let (partition, shard) = ((lock / T::SHARDS) as u32, lock % T::SHARDS);
            let is_reserved = room.is_some();
            let Ok(Done { used, is_enough }) = target.write_all(partition_count, partition, shard, is_reserved, writes)
            else {
                break;
            };
            if let Some(room) = room {
                room.use_room(used);
            }
            if is_enough {
                target.tell_enough(env, lock);
            }
            start = end as usize;
        }
        start
    }

    /// Finds the lock of each write, and sorts the writes by their locks, with a counting sort.
    fn sort<T: Target<Write = W>>(&mut self, target: &T, partition_count: u32) -> Result<(), NotRunning> {
        let Step { writes, done, left, locks, places, sorted } = self;
        locks.clear();
        places.clear();
        places.resize(partition_count as usize * T::SHARDS, 0);
        for &number in &*left {
            let lock = target.lock(&writes[number as usize - *done], partition_count)?;
            places[lock] += 1;
            locks.push(lock as u32);
        }
        let mut start = 0;
        for place in &mut *places {
            start += std::mem::replace(place, start);
        }
        sorted.clear();
        sorted.resize(left.len(), 0);
        for (&number, &lock) in left.iter().zip(&*locks) {
            let place = &mut places[lock as usize];
            sorted[*place as usize] = number;
            *place += 1;
        }
        Ok(())
    }
}

/// An entry of a list, with the terms of the caller.
#[derive(Clone, Copy)]
pub(crate) enum Entry {
    /// To be put: key and value.
    Put(RawTerm, RawTerm),
    /// To be put if it is newer: key, value and version.
    PutNewer(RawTerm, RawTerm, Version<RawTerm>),
}

impl Entry {
    /// The entry in an element of a list; `None` if it has another shape.
    fn decode(shape: Shape, element: Term<'_>) -> Option<Self> {
        if let Shape::Versioned = shape {
            let [key, value, number] = elements(element)?;
            Some(Entry::PutNewer(key.into(), value.into(), version(number)?))
        } else {
            let [key, value] = elements(element)?;
            Some(Entry::Put(key.into(), value.into()))
        }
    }
}

/// A map, to which entries are written.
pub(crate) struct ToMap<'b> {
    /// The map.
    pub(crate) map: &'b MapPartitions,
    /// The route to the partition of an entry.
    pub(crate) route: Route,
    /// The shape of the list's elements.
    pub(crate) shape: Shape,
}

impl Target for ToMap<'_> {
    type Element = Entry;

    type Write = (Hash, Write<Environment>);

    const SHARDS: usize = TABLE_SHARDS;

    fn shared(&self) -> &Shared {
        &self.map.shared
    }

    fn route(&self) -> Route {
        self.route
    }

    fn decode(&self, element: Term<'_>) -> Option<Entry> {
        Entry::decode(self.shape, element)
    }

    #[inline]
    fn prepare(&self, env: Env<'_>, entry: Entry) -> Self::Write {
        let (Entry::Put(key, value) | Entry::PutNewer(key, value, _)) = entry;
        value.prefetch();
        let hash = self.map.hash(key);
        match entry {
            Entry::Put(key, value) => (hash, Write::Put(parcel(env, key), parcel(env, value))),
            Entry::PutNewer(key, value, version) => {
                let (value, version) = parcel_with(env, value, version);
                (hash, Write::PutNewer(parcel(env, key), value, version))
            }
        }
    }

    #[inline]
    fn large_bytes((_hash, write): &Self::Write) -> usize {
        let (Write::Put(key, value) | Write::PutNewer(key, value, _)) = write;
        [key, value].into_iter().filter_map(Parcel::heap).map(Environment::large_bytes).sum()
    }

    #[inline]
    fn place((hash, write): &Self::Write) -> (RawTerm, usize) {
        let (Write::Put(key, _) | Write::PutNewer(key, _, _)) = write;
        (key.term(), MapPartition::<Environment>::shard_of(*hash))
    }

    fn write(&self, (hash, write): &Self::Write) -> Result<Stored, NotRunning> {
        let (Write::Put(key, _) | Write::PutNewer(key, _, _)) = write;
        self.map.with_partition(self.route, key.term(), |partition, access| match write {
            Write::Put(key, value) => partition.put(access, *hash, key, value),
            Write::PutNewer(key, value, version) => partition.put_newer(access, *hash, key, value, *version),
        })
    }

    fn write_all<'w>(
        &self,
        partition_count: u32,
        partition: u32,
        shard: usize,
        reserved: bool,
        writes: impl Iterator<Item = &'w Self::Write> + Clone,
    ) -> Result<Done, Closed> {
        self.map.partition(partition).write_all(self.route.access_to(partition_count), shard, reserved, writes)
    }
}

/// A queue, to which every element is pushed.
pub(crate) struct ToQueue<'b> {
    /// The queue.
    pub(crate) queue: &'b QueuePartitions,
    /// The route to the partition of an item.
    pub(crate) route: Route,
}

impl Target for ToQueue<'_> {
    type Element = RawTerm;

    type Write = Parcel<Environment>;

    const SHARDS: usize = 1;

    fn shared(&self) -> &Shared {
        &self.queue.shared
    }

    fn route(&self) -> Route {
        self.route
    }

    fn decode(&self, element: Term<'_>) -> Option<RawTerm> {
        Some(element.into())
    }

    fn prepare(&self, env: Env<'_>, item: RawTerm) -> Self::Write {
        item.prefetch();
        parcel(env, item)
    }

    fn large_bytes(item: &Self::Write) -> usize {
        item.heap().map_or(0, Environment::large_bytes)
    }

    fn place(item: &Self::Write) -> (RawTerm, usize) {
        (item.term(), 0)
    }

    fn write(&self, item: &Self::Write) -> Result<Stored, NotRunning> {
        self.queue.with_partition(self.route, item.term(), |partition, access| partition.push(access, item))
    }

    fn write_all<'w>(
        &self,
        partition_count: u32,
        partition: u32,
        _shard: usize,
        reserved: bool,
        writes: impl Iterator<Item = &'w Self::Write> + Clone,
    ) -> Result<Done, Closed> {
        self.queue.partition(partition).push_all(self.route.access_to(partition_count), reserved, writes)
    }
}

/// The key and the amount in an element of a list; `None` if it has another shape.
fn addition(element: Term<'_>) -> Option<(RawTerm, i64)> {
    let [key, number] = elements(element)?;
    Some((key.into(), amount(number)?))
}

/// A counter, to which amounts are added.
pub(crate) struct ToCounter<'b> {
    /// The counter.
    pub(crate) counter: &'b CounterPartitions,
    /// The route to the partition of a key.
    pub(crate) route: Route,
}

impl Target for ToCounter<'_> {
    type Element = (RawTerm, i64);

    type Write = (Hash, (Parcel<Environment>, i64));

    const SHARDS: usize = TABLE_SHARDS;

    fn shared(&self) -> &Shared {
        &self.counter.shared
    }

    fn route(&self) -> Route {
        self.route
    }

    fn decode(&self, element: Term<'_>) -> Option<Self::Element> {
        addition(element)
    }

    #[inline]
    fn prepare(&self, env: Env<'_>, (key, amount): Self::Element) -> Self::Write {
        (self.counter.hash(key), (parcel(env, key), amount))
    }

    fn large_bytes((_hash, (key, _amount)): &Self::Write) -> usize {
        key.heap().map_or(0, Environment::large_bytes)
    }

    #[inline]
    fn place((hash, (key, _amount)): &Self::Write) -> (RawTerm, usize) {
        (key.term(), CounterPartition::<Environment>::shard_of(*hash))
    }

    fn write(&self, (hash, (key, amount)): &Self::Write) -> Result<Stored, NotRunning> {
        self.counter
            .with_partition(self.route, key.term(), |partition, access| partition.add(access, *hash, key, *amount))
    }

    fn write_all<'w>(
        &self,
        partition_count: u32,
        partition: u32,
        shard: usize,
        reserved: bool,
        writes: impl Iterator<Item = &'w Self::Write> + Clone,
    ) -> Result<Done, Closed> {
        self.counter.partition(partition).add_all(self.route.access_to(partition_count), shard, reserved, writes)
    }
}
