//! A partition: what is written to it, and what it has handed over.
//!
//! A partition has one or more *shards*, each a [`Store`] behind a lock of its own. The keys of a map are spread over
//! several by their hash, so that writers rarely meet; a queue has one, for its order. [`Partition::hand_over`] takes all
//! their locks and swaps each store for an empty one: a write comes before it, and is handed over, or after it, and waits
//! for the next time, with all that is written after it. A [`HandOver`] is frozen and read without a lock. The partition
//! keeps it until all of it has been [claimed], so what a crashed reader had not claimed is there for the next one. It looks
//! at that itself when it is to hand over again: who claims may have got the hand-over from another partition, before
//! the number of partitions changed.
//!
//! | state | reads, deletes | writes | writes of a processor | hand-over |
//! |---|---|---|---|---|
//! | open | are taken | are taken | are taken | gives what is left of the last hand-over, else what has come in |
//! | draining | are taken | are refused | are taken | the same |
//! | closed | are refused | are refused | are refused | the same |
//!
//! A partition drains while a stop processes what it holds: a processor may write to the buffer that it is called by.
//!
//! A lock is held for one operation on one store, or the swap; no store is freed and no foreign code runs inside it.
//! The lock of what is pending is taken before those of the shards, and those in their order. A write
//! changes its shard's lock, the line of its entry, and the one that counts the deaths in the old value's segment: these
//! pass from processor to processor. The copy goes to memory of the thread's own; see [`crate::arena`].
//!
//! [claimed]: HandOver::claim

use std::collections::VecDeque;
use std::sync::Arc;

use crate::entries::EntryId;
use crate::generation::{Found, Generation};
use crate::index::{Hash, Hasher};
use crate::log::Log;
use crate::parcel::Parcel;
use crate::reclaim::reclaim;
use crate::store::Store;
use crate::sync::{AtomicI64, AtomicUsize, Mutex, MutexGuard, Ordering};
use crate::term::{Heap, Version};

/// In the number of partitions that a write is routed among: it comes from a processor of the buffer, and is taken until
/// the partition is closed. No buffer has as many partitions.
pub const DRAINING: u32 = 1 << 31;

/// What a write or read is refused with when the partition is not open for the number of partitions that the caller
/// routed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;

/// One operation of a call with many of them.
pub enum Write<H: Heap> {
    /// Unconditional: key and value.
    Put(Parcel<H>, Parcel<H>),
    /// Newer version wins: key, value and version.
    PutNewer(Parcel<H>, Parcel<H>, Version<H::Term>),
}

/// How often a taken lock is looked at before the thread lets the system run others: some microseconds.
const SPINS: usize = 400;

/// Shards of a map's partition, a power of two. More of them let writers meet more rarely, and scatter what is written one
/// after the other over more places in memory: with eight a single writer is a fifth slower, and two are not faster.
pub const MAP_SHARDS: usize = 4;

/// A partition of a map.
pub type MapPartition<H> = Partition<Generation<H>, MAP_SHARDS>;

/// A partition of a queue.
pub type QueuePartition<H> = Partition<Log<H>, 1>;

/// See the module's documentation.
pub struct Partition<S: Store, const SHARDS: usize> {
    /// What is written.
    shards: [Shard<S>; SHARDS],
    /// Handed over, oldest first; those that have been claimed to the end are taken out by the next hand-over. At most one
    /// is not finished, but after a restart with another number of partitions.
    pending: Mutex<VecDeque<Arc<HandOver<S>>>>,
}

/// A part of what is written. Aligned to two cache lines, which processors fetch together.
#[repr(align(128))]
struct Shard<S: Store>(Mutex<State<S>>);

/// What the lock of a shard guards.
struct State<S: Store> {
    /// Among how many partitions writes are routed when one of them comes here, with [`DRAINING`] only those of processors;
    /// 0 while closed.
    routed_among: u32,
    /// What has come in since the last hand-over.
    active: S,
}

impl<S: Store> Shard<S> {
    /// The lock, if writes routed among so many partitions may come here.
    #[inline]
    fn lock_open(&self, routed_among: u32) -> Result<MutexGuard<'_, State<S>>, Closed> {
        let state = self.lock();
        // The second is for the writes of processors to an open partition.
        if state.routed_among == routed_among || state.routed_among | DRAINING == routed_among {
            Ok(state)
        } else {
            Err(Closed)
        }
    }

    /// The lock, if reads and deletes routed among so many partitions may come here.
    #[inline]
    fn lock_readable(&self, routed_among: u32) -> Result<MutexGuard<'_, State<S>>, Closed> {
        let state = self.lock();
        if state.routed_among & !DRAINING == routed_among & !DRAINING {
            Ok(state)
        } else {
            Err(Closed)
        }
    }

    /// The lock. It is held for some hundred nanoseconds, which is worth waiting for on the processor: `parking_lot` by
    /// itself soon asks the system to run somebody else, which costs more. It does so here when the wait is long: the
    /// holder may have been interrupted.
    #[inline]
    fn lock(&self) -> MutexGuard<'_, State<S>> {
        match self.0.try_lock() {
            Some(state) => state,
            None => self.lock_contended(),
        }
    }

    /// Waits for the lock.
    #[cold]
    fn lock_contended(&self) -> MutexGuard<'_, State<S>> {
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

impl<S: Store> State<S> {
    /// Replaces the store by an empty one; `None` if nothing was ever written to it.
    fn retire(&mut self) -> Option<S> {
        if self.active.end() == 0 {
            return None;
        }
        let successor = self.active.successor();
        Some(std::mem::replace(&mut self.active, successor))
    }
}

#[allow(clippy::len_without_is_empty)] // Only the size of all partitions together is asked for.
impl<S: Store, const SHARDS: usize> Partition<S, SHARDS> {
    /// A closed, empty partition.
    pub fn new(hasher: &Hasher) -> Self {
        let shard = |_| Shard(Mutex::new(State { routed_among: 0, active: S::new(hasher) }));
        Partition { shards: std::array::from_fn(shard), pending: Mutex::default() }
    }

    /// Lets writes in that were routed among `partitions`.
    pub fn open(&self, partitions: u32) {
        self.shards.iter().for_each(|shard| shard.0.lock().routed_among = partitions);
    }

    /// Refuses writes from now on, but those of processors, unless it is closed.
    pub fn drain(&self) -> Result<(), Closed> {
        for shard in &self.shards {
            let mut state = shard.lock();
            if state.routed_among == 0 {
                return Err(Closed);
            }
            state.routed_among |= DRAINING;
        }
        Ok(())
    }

    /// Refuses reads and writes from now on. What was written before is still handed over.
    pub fn close(&self) {
        self.open(0);
    }

    /// How many entries wait for the next hand-over.
    pub fn len(&self, routed_among: u32) -> Result<usize, Closed> {
        self.shards.iter().map(|shard| Ok(shard.lock_readable(routed_among)?.active.len())).sum()
    }

    /// How many entries it holds: those that wait for the next hand-over, and those handed over and not claimed. It looks at
    /// each of the latter.
    pub fn held(&self) -> usize {
        let pending = self.pending.lock();
        let waiting: usize = self.shards.iter().map(|shard| shard.lock().active.len()).sum();
        let handed_over = pending.clone();
        drop(pending);
        waiting + handed_over.iter().map(|hand_over| hand_over.unclaimed()).sum::<usize>()
    }

    /// What has not been claimed of the last hand-over; else what has come in since; `None` if there is nothing.
    pub fn hand_over(&self) -> Option<HandedOver<S>> {
        let mut pending = self.pending.lock();
        while pending.front().is_some_and(|oldest| oldest.is_finished()) {
            pending.pop_front();
        }
        if let Some(rest) = pending.front() {
            return Some(HandedOver::Rest(rest.clone()));
        }
        let fresh = self.retire()?;
        pending.push_back(fresh.clone());
        Some(HandedOver::Fresh(fresh))
    }

    /// The hand-over that a reader is at, if there is one: the oldest, of which all may have been claimed by now.
    pub fn pending(&self) -> Option<Arc<HandOver<S>>> {
        self.pending.lock().front().cloned()
    }

    /// Closes the partition and takes out all that it holds, oldest first.
    pub fn evict(&self) -> VecDeque<Arc<HandOver<S>>> {
        self.close();
        // Its lock is held to the end: what a hand-over meanwhile took from the shards would stay behind.
        let mut pending = self.pending.lock();
        let mut evicted = std::mem::take(&mut *pending);
        evicted.retain(|hand_over| !hand_over.is_finished());
        evicted.extend(self.retire());
        evicted
    }

    /// Takes over what another partition held, to hand it over before anything of its own.
    pub fn adopt(&self, evicted: VecDeque<Arc<HandOver<S>>>) {
        self.pending.lock().extend(evicted);
    }

    /// All that the shards hold; they are empty then. All locks are held at once, so that it is one point in time; each waits
    /// for one operation of another thread at most.
    fn retire(&self) -> Option<Arc<HandOver<S>>> {
        let mut stores = Vec::with_capacity(SHARDS);
        let mut states = self.shards.each_ref().map(Shard::lock);
        stores.extend(states.iter_mut().filter_map(|state| state.retire()));
        drop(states);
        // Stores of which all records were deleted again are only memory, freed with the others.
        let is_empty = stores.iter().all(Store::is_empty);
        let retired = Retired::new(stores);
        (!is_empty).then(|| Arc::new(HandOver::new(retired)))
    }
}

impl<H: Heap> MapPartition<H> {
    /// The number of the shard that keys of this hash belong to.
    #[inline]
    pub fn shard_of(hash: Hash) -> usize {
        hash.shard_bits() & (MAP_SHARDS - 1)
    }

    /// The shard that keys of this hash belong to, if they were routed among so many partitions.
    #[inline]
    fn lock_open(&self, routed_among: u32, hash: Hash) -> Result<MutexGuard<'_, State<Generation<H>>>, Closed> {
        self.shards[Self::shard_of(hash)].lock_open(routed_among)
    }

    /// Releases the lock, then frees what the operation has given up.
    #[inline]
    fn unlock(mut state: MutexGuard<'_, State<Generation<H>>>) {
        if state.active.has_garbage() {
            let garbage = state.active.take_garbage();
            drop(state);
            drop(garbage);
        }
    }

    /// Stores `value` for `key`, whatever is there.
    #[inline]
    pub fn put(&self, routed_among: u32, hash: Hash, key: &Parcel<H>, value: &Parcel<H>) -> Result<(), Closed> {
        let mut state = self.lock_open(routed_among, hash)?;
        state.active.put(hash, key, value);
        Self::unlock(state);
        Ok(())
    }

    /// Stores `value` for `key`, unless there is an entry whose version is as high.
    #[inline]
    pub fn put_newer(
        &self,
        routed_among: u32,
        hash: Hash,
        key: &Parcel<H>,
        value: &Parcel<H>,
        version: Version<H::Term>,
    ) -> Result<(), Closed> {
        let mut state = self.lock_open(routed_among, hash)?;
        state.active.put_newer(hash, key, value, version);
        Self::unlock(state);
        Ok(())
    }

    /// Does all `writes`, which belong to one shard, in order, with its lock taken once. The caller keeps their number
    /// small.
    pub fn write_all<'w>(
        &self,
        routed_among: u32,
        shard: usize,
        writes: impl Iterator<Item = &'w (Hash, Write<H>)> + Clone,
    ) -> Result<(), Closed> {
        let mut state = self.shards[shard].lock_open(routed_among)?;
        writes.clone().for_each(|(hash, _)| state.active.prefetch(*hash));
        for (hash, write) in writes {
            debug_assert_eq!(Self::shard_of(*hash), shard, "all writes belong to the shard");
            match write {
                Write::Put(key, value) => state.active.put(*hash, key, value),
                Write::PutNewer(key, value, version) => state.active.put_newer(*hash, key, value, *version),
            }
        }
        Self::unlock(state);
        Ok(())
    }

    /// The value of `key` as `copy` takes it along, given the value's heap if it has one of its own; `None` if there is no
    /// such key. A value with a heap of its own is copied without the lock.
    #[inline]
    pub fn get<R>(
        &self,
        routed_among: u32,
        hash: Hash,
        key: H::Term,
        copy: impl FnOnce(H::Term, Option<&H>) -> R,
    ) -> Result<Option<R>, Closed> {
        let state = self.shards[Self::shard_of(hash)].lock_readable(routed_among)?;
        let Some(Found { value, heap }) = state.active.get(hash, key) else { return Ok(None) };
        let Some(heap) = heap else { return Ok(Some(copy(value, None))) };
        drop(state);
        Ok(Some(copy(value, Some(&heap))))
    }

    /// Takes out the entry of `key`, if there is one.
    pub fn delete(&self, routed_among: u32, hash: Hash, key: H::Term) -> Result<(), Closed> {
        let mut state = self.shards[Self::shard_of(hash)].lock_readable(routed_among)?;
        state.active.delete(hash, key);
        Self::unlock(state);
        Ok(())
    }
}

impl<H: Heap> QueuePartition<H> {
    /// Adds an item behind all others.
    #[inline]
    pub fn push(&self, routed_among: u32, item: &Parcel<H>) -> Result<(), Closed> {
        self.push_all(routed_among, std::iter::once(item))
    }

    /// Adds items in their order, with the lock taken once. The caller keeps their number small.
    #[inline]
    pub fn push_all<'i>(&self, routed_among: u32, items: impl Iterator<Item = &'i Parcel<H>>) -> Result<(), Closed> {
        let mut state = self.shards[0].lock_open(routed_among)?;
        items.for_each(|item| state.active.append(item));
        Ok(())
    }
}

/// What [`Partition::hand_over`] gives.
pub enum HandedOver<S: Store> {
    /// What has not been claimed of an earlier hand-over. There may be more behind it.
    Rest(Arc<HandOver<S>>),
    /// All that came in since the last one.
    Fresh(Arc<HandOver<S>>),
}

/// Retired stores and how much of them has been handed to the processor.
///
/// Their memory goes with the claim of the last entry, however long the hand-over itself is referred to.
pub struct HandOver<S: Store> {
    /// The frozen entries, until all have been claimed. Locked for taking a reference to them.
    retired: Mutex<Option<Arc<Retired<S>>>>,
    /// Behind the last entry.
    end: usize,
    /// Entries below this number have been claimed.
    position: AtomicUsize,
    /// The time of the last claim; [`NEVER`] before the first.
    claimed_at: AtomicI64,
}

/// No time: nothing has been claimed.
const NEVER: i64 = i64::MIN;

impl<S: Store> HandOver<S> {
    /// A hand-over of which nothing has been claimed.
    fn new(retired: Retired<S>) -> Self {
        let end = retired.end();
        HandOver {
            retired: Mutex::new(Some(Arc::new(retired))),
            end,
            position: AtomicUsize::new(0),
            claimed_at: AtomicI64::new(NEVER),
        }
    }

    /// Takes the entries from one position to another as handed to the processor: no later hand-over gives them again.
    /// `false` if `from` is not where the next batch begins: another reader has claimed what is there. `now` is the time.
    pub fn claim(&self, from: usize, to: usize, now: i64) -> bool {
        let to = to.clamp(from, self.end.max(from));
        // First, so that who sees the new position does not see the old time with it.
        self.claimed_at.store(now, Ordering::Relaxed);
        if self.position.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return false;
        }
        if to >= self.end {
            drop(self.retired.lock().take());
        }
        true
    }

    /// Whether all entries have been claimed.
    fn is_finished(&self) -> bool {
        self.position() >= self.end
    }

    /// Where the next batch begins.
    pub fn position(&self) -> usize {
        self.position.load(Ordering::Acquire)
    }

    /// When the batch before that was claimed, `None` if there was none. Asked for after [`position`](Self::position) it is the
    /// time of that claim, or of a later attempt.
    pub fn claimed_at(&self) -> Option<i64> {
        Some(self.claimed_at.load(Ordering::Relaxed)).filter(|&time| time != NEVER)
    }

    /// How many entries have not been claimed. Looks at each of them.
    fn unclaimed(&self) -> usize {
        let position = self.position();
        let count = |retired: Arc<Retired<S>>| (position..self.end).filter_map(|at| retired.record(at)).count();
        self.entries().map_or(0, count)
    }

    /// Behind the last entry.
    pub fn end(&self) -> usize {
        self.end
    }

    /// The entries, to be read without a lock; `None` when all have been claimed.
    pub fn entries(&self) -> Option<Arc<Retired<S>>> {
        self.retired.lock().clone()
    }
}

/// The frozen stores of a partition's shards, one after the other. Freed on the reclaimer thread.
pub struct Retired<S: Store> {
    /// The stores; taken out only to be freed.
    stores: Vec<S>,
    /// The position behind each store's last record.
    ends: Vec<usize>,
}

impl<S: Store> Retired<S> {
    /// Puts stores one after the other.
    fn new(stores: Vec<S>) -> Self {
        let sum = |end: &mut usize, store: &S| {
            *end += store.end();
            Some(*end)
        };
        let ends = stores.iter().scan(0, sum).collect();
        Retired { stores, ends }
    }

    /// Behind the last entry.
    fn end(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Whether some terms may be large, so that copying a few records may take long.
    pub fn has_large(&self) -> bool {
        self.stores.iter().any(Store::has_large)
    }

    /// What is stored at `position`, unless it was deleted or there are not so many.
    #[inline]
    pub fn record(&self, position: usize) -> Option<S::Record> {
        let number = self.ends.iter().position(|&end| position < end)?;
        let start = if number == 0 { 0 } else { self.ends[number - 1] };
        self.stores[number].record(EntryId::try_from(position - start).ok()?)
    }
}

impl<S: Store> Drop for Retired<S> {
    fn drop(&mut self) {
        reclaim(std::mem::take(&mut self.stores));
    }
}
