//! Writing the elements of a list: in slices, each lock of a slice taken once.

use partitioned_buffer_engine::partition::{Write, MAP_SHARDS};
use partitioned_buffer_engine::{Closed, Hash, MapPartition};
use rustler::{Env, Error, NifResult, Term};

use crate::buffer::{MapSide, NotRunning, QueueSide, Route};
use crate::pace::Pace;
use crate::vm::term::{cell, Environment, RawTerm};

/// So many elements of a list are checked before the first is written.
const CHECKED_AT_ONCE: usize = 2048;

/// So many are written one by one; more are sorted by their locks.
const WRITTEN_ONE_BY_ONE: usize = 16;

/// Where the elements of a list are written to.
pub(crate) trait Target {
    /// What an element is to the target.
    type Write: Copy;

    /// Whether an element is what is expected.
    fn accepts(&self, element: Term<'_>) -> bool;

    /// Reads an element; `None` if it is not what is expected.
    fn decode(&self, element: Term<'_>) -> Option<Self::Write>;

    /// How many partitions there are.
    fn partitions(&self) -> Result<u32, NotRunning>;

    /// How many locks so many partitions have.
    fn locks(partitions: u32) -> usize;

    /// The number of the lock that a write needs among so many partitions.
    fn lock(&self, write: Self::Write, partitions: u32) -> Result<usize, NotRunning>;

    /// Does one write.
    fn write(&self, write: Self::Write) -> Result<(), NotRunning>;

    /// Does all writes of one lock, in order.
    fn write_all(
        &self,
        partitions: u32,
        lock: usize,
        writes: impl Iterator<Item = Self::Write> + Clone,
    ) -> Result<(), Closed>;
}

/// How far the writing of a list came.
pub(crate) enum Written<'a> {
    /// To its end.
    All,
    /// The time was up: to this rest.
    More(Term<'a>),
    /// The list has not been checked and is long, or not what it should be: nothing has been written.
    Unchecked,
}

/// Writes the elements of a list until the time is up. One that the caller has not `checked` is checked here before
/// anything is written, if it is short.
pub(crate) fn write_list<'a, T: Target>(
    env: Env<'a>,
    target: &T,
    list: Term<'a>,
    checked: bool,
) -> NifResult<Result<Written<'a>, NotRunning>> {
    let mut pace = Pace::start();
    if !checked && !is_short(list, target) {
        return Ok(Ok(Written::Unchecked));
    }
    // The list may be empty.
    if let Err(NotRunning) = target.partitions() {
        return Ok(Err(NotRunning));
    }
    let mut rest = list;
    let mut slice = Slice::new();
    loop {
        slice.writes.clear();
        while slice.writes.len() < pace.step {
            let Some((element, tail)) = cell(rest) else { break };
            slice.writes.push(target.decode(element).ok_or(Error::BadArg)?);
            rest = tail;
        }
        let is_last = slice.writes.len() < pace.step;
        if let Err(NotRunning) = slice.write(target) {
            return Ok(Err(NotRunning));
        }
        let goes_on = pace.goes_on();
        if is_last {
            pace.consume_timeslice(env);
            return if rest.is_empty_list() { Ok(Ok(Written::All)) } else { Err(Error::BadArg) };
        }
        if !goes_on {
            pace.consume_timeslice(env);
            return Ok(Ok(Written::More(rest)));
        }
    }
}

/// Whether all elements of a list are what the target expects, and it is no longer than can be told at once.
fn is_short(list: Term<'_>, target: &impl Target) -> bool {
    let mut rest = list;
    for _ in 0..CHECKED_AT_ONCE {
        match cell(rest) {
            Some((element, tail)) if target.accepts(element) => rest = tail,
            Some(_) => return false,
            None => return rest.is_empty_list(),
        }
    }
    false
}

/// Some writes, and room to order them by their locks.
struct Slice<W> {
    /// The writes, in the order of the caller.
    writes: Vec<W>,
    /// The number of each one's lock.
    locks: Vec<u32>,
    /// For each lock, where its writes begin in `sorted`, and later where they end.
    places: Vec<u32>,
    /// The numbers of the writes, by lock, those of a lock in the order of the caller.
    sorted: Vec<u32>,
}

impl<W: Copy> Slice<W> {
    /// No writes.
    fn new() -> Self {
        Slice { writes: Vec::new(), locks: Vec::new(), places: Vec::new(), sorted: Vec::new() }
    }

    /// Does the writes.
    fn write<T: Target<Write = W>>(&mut self, target: &T) -> Result<(), NotRunning> {
        if self.writes.len() > WRITTEN_ONE_BY_ONE {
            self.write_by_lock(target)
        } else {
            self.writes.iter().try_for_each(|&write| target.write(write))
        }
    }

    /// Does the writes, each lock taken once; goes on with what is left where the buffer has started again with another
    /// number of partitions.
    fn write_by_lock<T: Target<Write = W>>(&mut self, target: &T) -> Result<(), NotRunning> {
        loop {
            let partitions = target.partitions()?;
            self.sort(target, partitions)?;
            let done = self.write_sorted(target, partitions);
            if done == self.sorted.len() {
                return Ok(());
            }
            if target.partitions()? == partitions {
                return Err(NotRunning);
            }
            let mut left = self.sorted.split_off(done);
            left.sort_unstable();
            self.writes = left.iter().map(|&number| self.writes[number as usize]).collect();
        }
    }

    /// Does the sorted writes, as long as the partitions take them, and says how many.
    fn write_sorted<T: Target<Write = W>>(&self, target: &T, partitions: u32) -> usize {
        let mut start = 0;
        for (lock, &end) in self.places.iter().enumerate() {
            let numbers = &self.sorted[start..end as usize];
            if numbers.is_empty() {
                continue;
            }
            let writes = numbers.iter().map(|&number| self.writes[number as usize]);
            if let Err(Closed) = target.write_all(partitions, lock, writes) {
                break;
            }
            start = end as usize;
        }
        start
    }

    /// Finds the lock of each write, and sorts the writes by it, by counting.
    fn sort<T: Target<Write = W>>(&mut self, target: &T, partitions: u32) -> Result<(), NotRunning> {
        let Slice { writes, locks, places, sorted } = self;
        locks.clear();
        places.clear();
        places.resize(T::locks(partitions), 0);
        for &write in &*writes {
            let lock = target.lock(write, partitions)?;
            places[lock] += 1;
            locks.push(lock as u32);
        }
        let mut start = 0;
        for place in &mut *places {
            start += std::mem::replace(place, start);
        }
        sorted.clear();
        sorted.resize(writes.len(), 0);
        for (number, &lock) in locks.iter().enumerate() {
            let place = &mut places[lock as usize];
            sorted[*place as usize] = number as u32;
            *place += 1;
        }
        Ok(())
    }
}

/// A map, to which elements are written that `decode` understands.
pub(crate) struct ToMap<'b, D> {
    /// The map.
    pub(crate) map: &'b MapSide,
    /// How the partition of an entry is found.
    pub(crate) route: Route,
    /// From an element to a write.
    pub(crate) decode: D,
}

impl<D: Fn(Term<'_>) -> Option<Write<RawTerm>>> Target for ToMap<'_, D> {
    type Write = (Hash, Write<RawTerm>);

    fn accepts(&self, element: Term<'_>) -> bool {
        (self.decode)(element).is_some()
    }

    fn decode(&self, element: Term<'_>) -> Option<Self::Write> {
        let write = (self.decode)(element)?;
        let (Write::Put(key, value) | Write::PutNewer(key, value, _)) = write;
        value.prefetch();
        Some((self.map.hash(key), write))
    }

    fn partitions(&self) -> Result<u32, NotRunning> {
        self.map.partitions()
    }

    fn locks(partitions: u32) -> usize {
        partitions as usize * MAP_SHARDS
    }

    fn lock(&self, (hash, write): Self::Write, partitions: u32) -> Result<usize, NotRunning> {
        let (Write::Put(key, _) | Write::PutNewer(key, _, _)) = write;
        let partition = MapSide::route(self.route, key, partitions)?;
        Ok(partition as usize * MAP_SHARDS + MapPartition::<Environment>::shard_of(hash))
    }

    fn write(&self, (hash, write): Self::Write) -> Result<(), NotRunning> {
        match write {
            Write::Put(key, value) => {
                self.map.with_partition(self.route, key, |partition, among| partition.put(among, hash, key, value))
            }
            Write::PutNewer(key, value, version) => self.map.with_partition(self.route, key, |partition, among| {
                partition.put_newer(among, hash, key, value, version)
            }),
        }
    }

    fn write_all(
        &self,
        partitions: u32,
        lock: usize,
        writes: impl Iterator<Item = Self::Write> + Clone,
    ) -> Result<(), Closed> {
        self.map.partition((lock / MAP_SHARDS) as u32).write_all(partitions, lock % MAP_SHARDS, writes)
    }
}

/// A queue, to which every element is pushed.
pub(crate) struct ToQueue<'b> {
    /// The queue.
    pub(crate) queue: &'b QueueSide,
    /// How the partition of an item is found.
    pub(crate) route: Route,
}

impl Target for ToQueue<'_> {
    type Write = RawTerm;

    fn accepts(&self, _element: Term<'_>) -> bool {
        true
    }

    fn decode(&self, element: Term<'_>) -> Option<RawTerm> {
        Some(element.into())
    }

    fn partitions(&self) -> Result<u32, NotRunning> {
        self.queue.partitions()
    }

    fn locks(partitions: u32) -> usize {
        partitions as usize
    }

    fn lock(&self, item: RawTerm, partitions: u32) -> Result<usize, NotRunning> {
        QueueSide::route(self.route, item, partitions).map(|number| number as usize)
    }

    fn write(&self, item: RawTerm) -> Result<(), NotRunning> {
        self.queue.with_partition(self.route, item, |partition, among| partition.push(among, item))
    }

    fn write_all(
        &self,
        partitions: u32,
        lock: usize,
        writes: impl Iterator<Item = RawTerm> + Clone,
    ) -> Result<(), Closed> {
        self.queue.partition(lock as u32).push_all(partitions, writes)
    }
}
