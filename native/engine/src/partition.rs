//! A partition: the entries that wait in it, and the flushes that are in flight.
//!
//! A partition has one or more *shards*, each a [`Store`] behind a lock of its own. A map spreads its keys over several
//! shards by their hash, so writers rarely meet; a queue has one shard, for its order. [`Partition::flush`] takes the
//! locks of all shards and swaps each store for an empty one. So a write comes either before the flush and is part of
//! it, or after it and waits for the next one. The partition keeps a [`Flush`] until all of it has been [claimed]: what
//! a crashed reader has not claimed is there for the next reader. The next flush removes what is finished, since the
//! reader may have got the flush from another partition, before the count of partitions changed.
//!
//! | state | reads, deletes | writes | writes of a processor | flush |
//! |---|---|---|---|---|
//! | open | are taken | are taken | are taken | gives the rest of the last flush, else what waits |
//! | draining | are taken | are refused | are taken | the same |
//! | closed | are refused | are refused | are refused | the same |
//!
//! A partition drains while a stop processes what it holds: a processor may write to its own buffer.
//!
//! A lock is held for one operation on one store, or for the swap. No store is freed and no foreign code runs under a
//! lock. The lock of `in_flight` is taken before those of the shards, and those in their order. A write changes three
//! cache lines that move between processors: those of the shard's lock, of the entry, and of the deaths in the old
//! value's segment. The copy itself goes to memory of the thread's lane; see [`crate::arena`].
//!
//! [claimed]: Flush::claim

use std::collections::VecDeque;
use std::sync::Arc;

use crate::flush::{Flush, Flushed, Frozen};
use crate::generation::{Found, Generation};
use crate::index::{Hash, Hasher};
use crate::log::Log;
use crate::parcel::Parcel;
use crate::store::Store;
use crate::sync::{Mutex, MutexGuard};
use crate::term::{Heap, Version};

/// Added to a partition count, this marks the write of a processor, which is taken until the partition is closed. No
/// buffer has as many partitions.
pub const DRAINING: u32 = 1 << 31;

/// The partition refuses an operation: it is closed, drains, or is open for another partition count than the caller
/// chose it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;

/// A write for [`MapPartition::write_all`].
pub enum Write<H: Heap> {
    /// Unconditional: key and value.
    Put(Parcel<H>, Parcel<H>),
    /// Newer version wins: key, value and version.
    PutNewer(Parcel<H>, Parcel<H>, Version<H::Term>),
}

/// How often a thread looks at a taken lock before it leaves the wait to `parking_lot`: this takes some microseconds.
const SPINS: usize = 400;

/// Shards of a map's partition, a power of two. With more shards writers meet more rarely, but consecutive writes touch
/// more places in memory: with eight a single writer is a fifth slower, and two writers are not faster.
pub const MAP_SHARDS: usize = 4;

/// A partition of a map.
pub type MapPartition<H> = Partition<Generation<H>, MAP_SHARDS>;

/// A partition of a queue.
pub type QueuePartition<H> = Partition<Log<H>, 1>;

/// See the module's documentation.
pub struct Partition<S: Store, const SHARDS: usize> {
    /// Where entries wait.
    shards: [Shard<S>; SHARDS],
    /// The flushes in flight, oldest first, and finished ones that the next flush removes. Only a restart with another
    /// partition count makes more than one unfinished flush.
    in_flight: Mutex<VecDeque<Arc<Flush<S>>>>,
}

/// A store behind its lock. Aligned to two cache lines, which processors fetch together.
#[repr(align(128))]
struct Shard<S: Store>(Mutex<ShardState<S>>);

/// What the lock of a shard guards.
struct ShardState<S: Store> {
    /// The partition count by which callers must have chosen this partition; with [`DRAINING`] only processors may
    /// write; 0 while closed.
    partition_count: u32,
    /// The entries written since the last flush.
    waiting: S,
}

impl<S: Store> Shard<S> {
    /// The lock, if the shard takes writes of callers with this partition count.
    #[inline]
    fn lock_open(&self, partition_count: u32) -> Result<MutexGuard<'_, ShardState<S>>, Closed> {
        let state = self.lock();
        // The second case is a processor's write to an open partition.
        if state.partition_count == partition_count || state.partition_count | DRAINING == partition_count {
            Ok(state)
        } else {
            Err(Closed)
        }
    }

    /// The lock, if the shard takes reads and deletes of callers with this partition count.
    #[inline]
    fn lock_readable(&self, partition_count: u32) -> Result<MutexGuard<'_, ShardState<S>>, Closed> {
        let state = self.lock();
        if state.partition_count & !DRAINING == partition_count & !DRAINING {
            Ok(state)
        } else {
            Err(Closed)
        }
    }

    /// The lock. Holders keep it for some hundred nanoseconds, so spinning is cheaper than calling the system, which
    /// `parking_lot` soon does. After [`SPINS`] the holder has been interrupted, and `parking_lot` takes over.
    #[inline]
    fn lock(&self) -> MutexGuard<'_, ShardState<S>> {
        match self.0.try_lock() {
            Some(state) => state,
            None => self.lock_contended(),
        }
    }

    /// Waits for the lock.
    #[cold]
    fn lock_contended(&self) -> MutexGuard<'_, ShardState<S>> {
        for _ in 0..SPINS {
            std::hint::spin_loop();
            if !self.0.is_locked() {
                if let Some(state) = self.0.try_lock() {
                    return state;
                }
            }
        }
        self.0.lock()
    }
}

impl<S: Store> ShardState<S> {
    /// Replaces the store by an empty one; `None` if nothing was ever written to it.
    fn freeze(&mut self) -> Option<S> {
        if self.waiting.end() == 0 {
            return None;
        }
        let successor = self.waiting.successor();
        Some(std::mem::replace(&mut self.waiting, successor))
    }
}

#[allow(clippy::len_without_is_empty)] // Only the size of all partitions together is asked for.
impl<S: Store, const SHARDS: usize> Partition<S, SHARDS> {
    /// A closed, empty partition.
    pub fn new(hasher: &Hasher) -> Self {
        let shard = |_| Shard(Mutex::new(ShardState { partition_count: 0, waiting: S::new(hasher) }));
        Partition { shards: std::array::from_fn(shard), in_flight: Mutex::default() }
    }

    /// Takes operations of callers with this partition count.
    pub fn open(&self, partition_count: u32) {
        self.shards.iter().for_each(|shard| shard.0.lock().partition_count = partition_count);
    }

    /// Refuses all writes but those of processors from now on. A closed partition stays closed.
    pub fn drain(&self) -> Result<(), Closed> {
        for shard in &self.shards {
            let mut state = shard.lock();
            if state.partition_count == 0 {
                return Err(Closed);
            }
            state.partition_count |= DRAINING;
        }
        Ok(())
    }

    /// Refuses all operations from now on. Entries that are here can still be flushed.
    pub fn close(&self) {
        self.open(0);
    }

    /// How many entries wait for the next flush.
    pub fn len(&self, partition_count: u32) -> Result<usize, Closed> {
        self.shards.iter().map(|shard| Ok(shard.lock_readable(partition_count)?.waiting.len())).sum()
    }

    /// How many entries wait, or are in flight and not claimed. It looks at each of the latter.
    pub fn held(&self) -> usize {
        let in_flight = self.in_flight.lock();
        let waiting: usize = self.shards.iter().map(|shard| shard.lock().waiting.len()).sum();
        let flushed = in_flight.clone();
        drop(in_flight);
        waiting + flushed.iter().map(|flush| flush.unclaimed()).sum::<usize>()
    }

    /// The rest of the oldest unfinished flush; else a new flush of the entries that wait; `None` if there are none.
    pub fn flush(&self) -> Option<Flushed<S>> {
        let mut in_flight = self.in_flight.lock();
        while in_flight.front().is_some_and(|oldest| oldest.is_finished()) {
            in_flight.pop_front();
        }
        if let Some(rest) = in_flight.front() {
            return Some(Flushed::Rest(rest.clone()));
        }
        let fresh = self.freeze()?;
        in_flight.push_back(fresh.clone());
        Some(Flushed::Fresh(fresh))
    }

    /// The oldest flush, at which a reader may be at work. It may be finished by now.
    pub fn in_flight(&self) -> Option<Arc<Flush<S>>> {
        self.in_flight.lock().front().cloned()
    }

    /// Closes the partition and takes out its flushes, oldest first, the entries that wait as the last one.
    pub fn evict(&self) -> VecDeque<Arc<Flush<S>>> {
        self.close();
        // Locked to the end: a concurrent flush could otherwise add its entries in between.
        let mut in_flight = self.in_flight.lock();
        let mut evicted = std::mem::take(&mut *in_flight);
        evicted.retain(|flush| !flush.is_finished());
        evicted.extend(self.freeze());
        evicted
    }

    /// Takes over the flushes of another partition. They come before all new ones.
    pub fn adopt(&self, evicted: VecDeque<Arc<Flush<S>>>) {
        self.in_flight.lock().extend(evicted);
    }

    /// Takes the entries of all shards at one point in time, when all their locks are held. At each lock it waits for
    /// at most one operation of another thread.
    fn freeze(&self) -> Option<Arc<Flush<S>>> {
        let mut stores = Vec::with_capacity(SHARDS);
        let mut states = self.shards.each_ref().map(Shard::lock);
        stores.extend(states.iter_mut().filter_map(|state| state.freeze()));
        drop(states);
        // Stores whose records were all deleted are only memory, freed like the others.
        let is_empty = stores.iter().all(Store::is_empty);
        let frozen = Frozen::new(stores);
        (!is_empty).then(|| Arc::new(Flush::new(frozen)))
    }
}

impl<H: Heap> MapPartition<H> {
    /// The index of the shard for keys of this hash.
    #[inline]
    pub fn shard_of(hash: Hash) -> usize {
        hash.shard_bits() & (MAP_SHARDS - 1)
    }

    /// The lock of the shard for keys of this hash, if it takes writes of callers with this partition count.
    #[inline]
    fn lock_open(&self, partition_count: u32, hash: Hash) -> Result<MutexGuard<'_, ShardState<Generation<H>>>, Closed> {
        self.shards[Self::shard_of(hash)].lock_open(partition_count)
    }

    /// Releases the lock, then frees the heaps that the operation gave up.
    #[inline]
    fn unlock(mut state: MutexGuard<'_, ShardState<Generation<H>>>) {
        if state.waiting.has_garbage() {
            let garbage = state.waiting.take_garbage();
            drop(state);
            drop(garbage);
        }
    }

    /// Stores `value` for `key`, whatever is there.
    #[inline]
    pub fn put(&self, partition_count: u32, hash: Hash, key: &Parcel<H>, value: &Parcel<H>) -> Result<(), Closed> {
        let mut state = self.lock_open(partition_count, hash)?;
        state.waiting.put(hash, key, value);
        Self::unlock(state);
        Ok(())
    }

    /// Stores `value` for `key` if the key is new or `version` is greater than its version.
    #[inline]
    pub fn put_newer(
        &self,
        partition_count: u32,
        hash: Hash,
        key: &Parcel<H>,
        value: &Parcel<H>,
        version: Version<H::Term>,
    ) -> Result<(), Closed> {
        let mut state = self.lock_open(partition_count, hash)?;
        state.waiting.put_newer(hash, key, value, version);
        Self::unlock(state);
        Ok(())
    }

    /// Performs `writes`, which all belong to one shard, in their order under one lock. The caller keeps them few.
    pub fn write_all<'w>(
        &self,
        partition_count: u32,
        shard: usize,
        writes: impl Iterator<Item = &'w (Hash, Write<H>)> + Clone,
    ) -> Result<(), Closed> {
        let mut state = self.shards[shard].lock_open(partition_count)?;
        writes.clone().for_each(|(hash, _)| state.waiting.prefetch(*hash));
        for (hash, write) in writes {
            debug_assert_eq!(Self::shard_of(*hash), shard, "all writes belong to the shard");
            match write {
                Write::Put(key, value) => state.waiting.put(*hash, key, value),
                Write::PutNewer(key, value, version) => state.waiting.put_newer(*hash, key, value, *version),
            }
        }
        Self::unlock(state);
        Ok(())
    }

    /// The result of `copy` for the value of `key` and the value's own heap, if it has one; `None` if there is no such
    /// key. A value with a heap of its own is copied without the lock.
    #[inline]
    pub fn get<R>(
        &self,
        partition_count: u32,
        hash: Hash,
        key: H::Term,
        copy: impl FnOnce(H::Term, Option<&H>) -> R,
    ) -> Result<Option<R>, Closed> {
        let state = self.shards[Self::shard_of(hash)].lock_readable(partition_count)?;
        let Some(Found { value, heap }) = state.waiting.get(hash, key) else { return Ok(None) };
        let Some(heap) = heap else { return Ok(Some(copy(value, None))) };
        drop(state);
        Ok(Some(copy(value, Some(&heap))))
    }

    /// Takes out the entry of `key`, if there is one.
    pub fn delete(&self, partition_count: u32, hash: Hash, key: H::Term) -> Result<(), Closed> {
        let mut state = self.shards[Self::shard_of(hash)].lock_readable(partition_count)?;
        state.waiting.delete(hash, key);
        Self::unlock(state);
        Ok(())
    }
}

impl<H: Heap> QueuePartition<H> {
    /// Adds an item behind all others.
    #[inline]
    pub fn push(&self, partition_count: u32, item: &Parcel<H>) -> Result<(), Closed> {
        self.push_all(partition_count, std::iter::once(item))
    }

    /// Adds items in their order under one lock. The caller keeps them few.
    #[inline]
    pub fn push_all<'i>(&self, partition_count: u32, items: impl Iterator<Item = &'i Parcel<H>>) -> Result<(), Closed> {
        let mut state = self.shards[0].lock_open(partition_count)?;
        items.for_each(|item| state.waiting.append(item));
        Ok(())
    }
}
