//! A step of a list: some writes, sorted by their locks, so that it takes each lock once.

use partitioned_buffer_engine::{Stored, Written};
use rustler::{Env, Term};

use super::target::Target;
use crate::reservation::Taken;
use crate::run::NotRunning;
use crate::vm::caller::cells;

/// Up to this number elements are written one by one. More are sorted by their locks.
const WRITTEN_ONE_BY_ONE: usize = 16;

/// After large copies of this many bytes, a step ends and the clock is read.
const LARGE_BYTES: usize = 256 * 1024;

/// Some writes, and room to order them by their locks.
pub(super) struct Step<W> {
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
    pub(super) fn new() -> Self {
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
    pub(super) fn write<T: Target<Write = W>>(
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
    pub(super) fn rest<'a>(&self, list: Term<'a>, count: usize) -> Term<'a> {
        let (elements, behind) = cells(list, count);
        self.left.iter().rev().fold(behind, |rest, &number| rest.list_prepend(elements[number as usize]))
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
            let Ok(Written { used, is_enough }) =
                target.write_all(partition_count, partition, shard, is_reserved, writes)
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

/// Sends the partition of a write the news that enough entries wait, if it still runs.
#[cold]
fn tell_enough<T: Target>(env: Env<'_>, target: &T, write: &T::Write) {
    let lock = target.shared().count().and_then(|partition_count| target.lock(write, partition_count));
    if let Ok(lock) = lock {
        target.tell_enough(env, lock);
    }
}
