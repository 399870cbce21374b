//! A partition: what is written to it, and what it has handed over.
//!
//! The keys of a partition are spread over a few *shards* by their hash, each a generation behind a lock of its own, so
//! that writers rarely meet. [`Partition::hand_over`] swaps each shard's generation for an empty one under its lock: a
//! write comes before it, and is handed over, or after it, and waits for the next time. A [`HandOver`] is frozen and read
//! without a lock. The partition keeps it until all of it has been [claimed], so what a crashed reader had not claimed
//! is there for the next one.
//!
//! | state | writes | hand-over |
//! |---|---|---|
//! | closed | are refused | gives what is left |
//! | open | are taken | gives what is left of the last hand-over, else what has come in |
//!
//! A lock is held for one operation on one generation, or its swap; nothing is freed and no foreign code runs inside it.
//! The lock of what is pending is held while those of the shards are taken one after the other, never the other way
//! round. What concurrent writers write is a shard's lock with the state beside it, on cache lines of its own.
//!
//! [claimed]: Partition::claim

use std::collections::VecDeque;
use std::sync::Arc;

use crate::entries::{EntryId, Record};
use crate::generation::Generation;
use crate::index::{Hash, Hasher};
use crate::reclaim::reclaim;
use crate::sync::{AtomicUsize, Mutex, MutexGuard, Ordering};
use crate::term::{Heap, Version};

/// What a write or read is refused with when the partition is not open for the number of partitions that the caller
/// routed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;

/// One operation of a call with many of them.
#[derive(Clone, Copy, Debug)]
pub enum Write<T> {
    /// Unconditional: key and value.
    Put(T, T),
    /// Newer version wins: key, value and version.
    PutNewer(T, T, Version<T>),
}

/// How often a taken lock is looked at before the thread lets the system run others: some microseconds.
const SPINS: usize = 400;

/// Shards of a partition, a power of two: with as many partitions as schedulers, two writers that hold a lock most of the
/// time meet at one of sixteen.
pub const SHARDS: usize = 8;

/// See the module's documentation.
pub struct Partition<H: Heap> {
    /// What is written.
    shards: [Shard<H>; SHARDS],
    /// Handed over and not yet claimed to the end, oldest first. At most one, but after a restart with another number
    /// of partitions.
    pending: Mutex<VecDeque<Arc<HandOver<H>>>>,
}

/// A part of the keys. Aligned to two cache lines, which processors fetch together.
#[repr(align(128))]
struct Shard<H: Heap>(Mutex<State<H>>);

/// What the lock of a shard guards.
struct State<H: Heap> {
    /// Among how many partitions keys are routed when one of them comes here; 0 while closed.
    routed_among: u32,
    /// What has come in since the last hand-over.
    active: Generation<H>,
}

impl<H: Heap> Shard<H> {
    /// The lock, if keys routed among so many partitions may come here.
    #[inline]
    fn lock_open(&self, routed_among: u32) -> Result<MutexGuard<'_, State<H>>, Closed> {
        let state = self.lock();
        if state.routed_among == routed_among {
            Ok(state)
        } else {
            Err(Closed)
        }
    }

    /// The lock. It is held for some hundred nanoseconds, which is worth waiting for on the processor: `parking_lot` by
    /// itself soon asks the system to run somebody else, which costs more. It does so here when the wait is long: the
    /// holder may have been interrupted.
    #[inline]
    fn lock(&self) -> MutexGuard<'_, State<H>> {
        match self.0.try_lock() {
            Some(state) => state,
            None => self.lock_contended(),
        }
    }

    /// Waits for the lock.
    #[cold]
    fn lock_contended(&self) -> MutexGuard<'_, State<H>> {
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

    /// Replaces the generation by an empty one; `None` if nothing was ever written to it.
    fn retire(&self) -> Option<Generation<H>> {
        let mut state = self.0.lock();
        if state.active.end() == 0 {
            return None;
        }
        let successor = state.active.successor();
        Some(std::mem::replace(&mut state.active, successor))
    }
}

#[allow(clippy::len_without_is_empty)] // Only the size of all partitions together is asked for.
impl<H: Heap> Partition<H> {
    /// A closed, empty partition.
    pub fn new(hasher: &Hasher) -> Self {
        let shard = |_| Shard(Mutex::new(State { routed_among: 0, active: Generation::new(hasher.clone()) }));
        Partition { shards: std::array::from_fn(shard), pending: Mutex::default() }
    }

    /// Lets keys in that were routed among `partitions`.
    pub fn open(&self, partitions: u32) {
        self.shards.iter().for_each(|shard| shard.0.lock().routed_among = partitions);
    }

    /// Refuses reads and writes from now on. What was written before is still handed over.
    pub fn close(&self) {
        self.open(0);
    }

    /// The number of the shard that keys of this hash belong to.
    #[inline]
    pub fn shard_of(hash: Hash) -> usize {
        hash.shard_bits() & (SHARDS - 1)
    }

    /// The shard that keys of this hash belong to, if they were routed among so many partitions.
    #[inline]
    fn lock_open(&self, routed_among: u32, hash: Hash) -> Result<MutexGuard<'_, State<H>>, Closed> {
        self.shards[Self::shard_of(hash)].lock_open(routed_among)
    }

    /// Stores `value` for `key`, whatever is there.
    #[inline]
    pub fn put(&self, routed_among: u32, hash: Hash, key: H::Term, value: H::Term) -> Result<(), Closed> {
        self.lock_open(routed_among, hash)?.active.put(hash, key, value);
        Ok(())
    }

    /// Stores `value` for `key`, unless there is an entry whose version is as high.
    #[inline]
    pub fn put_newer(
        &self,
        routed_among: u32,
        hash: Hash,
        key: H::Term,
        value: H::Term,
        version: Version<H::Term>,
    ) -> Result<(), Closed> {
        self.lock_open(routed_among, hash)?.active.put_newer(hash, key, value, version);
        Ok(())
    }

    /// Does all `writes`, which belong to one shard, in order, with its lock taken once. The caller keeps their number
    /// small.
    pub fn write_all(
        &self,
        routed_among: u32,
        shard: usize,
        writes: impl Iterator<Item = (Hash, Write<H::Term>)> + Clone,
    ) -> Result<(), Closed> {
        let mut state = self.shards[shard].lock_open(routed_among)?;
        writes.clone().for_each(|(hash, _)| state.active.prefetch(hash));
        for (hash, write) in writes {
            debug_assert_eq!(Self::shard_of(hash), shard, "all writes belong to the shard");
            match write {
                Write::Put(key, value) => state.active.put(hash, key, value),
                Write::PutNewer(key, value, version) => state.active.put_newer(hash, key, value, version),
            }
        }
        Ok(())
    }

    /// The value of `key` as `copy` takes it along; `None` if there is none.
    #[inline]
    pub fn get<R>(
        &self,
        routed_among: u32,
        hash: Hash,
        key: H::Term,
        copy: impl FnOnce(H::Term) -> R,
    ) -> Result<Option<R>, Closed> {
        let state = self.lock_open(routed_among, hash)?;
        Ok(state.active.get(hash, key).map(copy))
    }

    /// Takes out the entry of `key`, if there is one.
    pub fn delete(&self, routed_among: u32, hash: Hash, key: H::Term) -> Result<(), Closed> {
        self.lock_open(routed_among, hash)?.active.delete(hash, key);
        Ok(())
    }

    /// How many entries wait for the next hand-over.
    pub fn len(&self, routed_among: u32) -> Result<usize, Closed> {
        self.shards.iter().map(|shard| Ok(shard.lock_open(routed_among)?.active.len())).sum()
    }

    /// What has not been claimed of the last hand-over; else what has come in since, of which every key has its entry;
    /// `None` if there is nothing.
    pub fn hand_over(&self) -> Option<HandedOver<H>> {
        let mut pending = self.pending.lock();
        if let Some(rest) = pending.front() {
            return Some(HandedOver::Rest(rest.clone()));
        }
        let fresh = self.retire()?;
        pending.push_back(fresh.clone());
        Some(HandedOver::Fresh(fresh))
    }

    /// Takes the entries from one position to another as handed to the processor: no later hand-over gives them again.
    /// `false` if `from` is not where the next batch begins: another reader has claimed what is there.
    pub fn claim(&self, hand_over: &Arc<HandOver<H>>, from: usize, to: usize) -> bool {
        let to = to.clamp(from, hand_over.end().max(from));
        if hand_over.position.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return false;
        }
        if to >= hand_over.end() {
            drop(hand_over.retired.lock().take());
            let mut pending = self.pending.lock();
            let place = pending.iter().position(|pending| Arc::ptr_eq(pending, hand_over));
            let finished = place.and_then(|place| pending.remove(place));
            drop(pending);
            drop(finished);
        }
        true
    }

    /// Closes the partition and takes out all that it holds, oldest first.
    pub fn evict(&self) -> VecDeque<Arc<HandOver<H>>> {
        self.close();
        // Its lock is held to the end: what a hand-over meanwhile took from the shards would stay behind.
        let mut pending = self.pending.lock();
        let mut evicted = std::mem::take(&mut *pending);
        evicted.extend(self.retire());
        evicted
    }

    /// Takes over what another partition held, to hand it over before anything of its own.
    pub fn adopt(&self, evicted: VecDeque<Arc<HandOver<H>>>) {
        self.pending.lock().extend(evicted);
    }

    /// All that the shards hold; they are empty then.
    fn retire(&self) -> Option<Arc<HandOver<H>>> {
        let generations: Vec<_> = self.shards.iter().filter_map(Shard::retire).collect();
        // Generations of which all entries were deleted again are only memory, freed with the others.
        let is_empty = generations.iter().all(Generation::is_empty);
        let retired = Retired::new(generations);
        (!is_empty).then(|| Arc::new(HandOver::new(retired)))
    }
}

/// What [`Partition::hand_over`] gives.
pub enum HandedOver<H: Heap> {
    /// What has not been claimed of an earlier hand-over. There may be more behind it.
    Rest(Arc<HandOver<H>>),
    /// All that came in since the last one.
    Fresh(Arc<HandOver<H>>),
}

/// Retired generations and how much of them has been handed to the processor.
///
/// Their memory goes with the claim of the last entry, however long the hand-over itself is referred to.
pub struct HandOver<H: Heap> {
    /// The frozen entries, until all have been claimed. Locked for taking a reference to them.
    retired: Mutex<Option<Arc<Retired<H>>>>,
    /// Behind the last entry.
    end: usize,
    /// Entries below this number have been claimed.
    position: AtomicUsize,
}

impl<H: Heap> HandOver<H> {
    /// A hand-over of which nothing has been claimed.
    fn new(retired: Retired<H>) -> Self {
        let end = retired.end();
        HandOver { retired: Mutex::new(Some(Arc::new(retired))), end, position: AtomicUsize::new(0) }
    }

    /// Where the next batch begins.
    pub fn position(&self) -> usize {
        self.position.load(Ordering::Relaxed)
    }

    /// Behind the last entry.
    pub fn end(&self) -> usize {
        self.end
    }

    /// The entries, to be read without a lock; `None` when all have been claimed.
    pub fn entries(&self) -> Option<Arc<Retired<H>>> {
        self.retired.lock().clone()
    }
}

/// The frozen generations of a partition's shards, one after the other. Freed on the reclaimer thread.
pub struct Retired<H: Heap> {
    /// The generations; taken out only to be freed.
    generations: Vec<Generation<H>>,
    /// The position behind each generation's last entry.
    ends: Vec<usize>,
}

impl<H: Heap> Retired<H> {
    /// Puts generations one after the other.
    fn new(generations: Vec<Generation<H>>) -> Self {
        let sum = |end: &mut usize, generation: &Generation<H>| {
            *end += generation.end();
            Some(*end)
        };
        let ends = generations.iter().scan(0, sum).collect();
        Retired { generations, ends }
    }

    /// Behind the last entry.
    fn end(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// What is stored at `position`, unless it was deleted or there are not so many.
    #[inline]
    pub fn record(&self, position: usize) -> Option<Record<H::Term>> {
        let number = self.ends.iter().position(|&end| position < end)?;
        let start = if number == 0 { 0 } else { self.ends[number - 1] };
        self.generations[number].record(EntryId::try_from(position - start).ok()?)
    }
}

impl<H: Heap> Drop for Retired<H> {
    fn drop(&mut self) {
        reclaim(std::mem::take(&mut self.generations));
    }
}
