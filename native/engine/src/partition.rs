//! A partition: the generation that is written, behind one lock, and what has been handed over.
//!
//! [`Partition::hand_over`] swaps the active generation for an empty one under the lock: a write comes before it, and
//! is handed over, or after it, and waits for the next time. A [`HandOver`] is frozen and read without a lock. The
//! partition keeps it until all of it has been [claimed], so what a crashed reader had not claimed is there for the
//! next one.
//!
//! | state | writes | hand-over |
//! |---|---|---|
//! | closed | are refused | gives what is left |
//! | open | are taken | gives what is left of the last hand-over, else the active generation |
//!
//! The lock is held for one operation on one generation, or the swap; nothing is freed and no foreign code runs inside
//! it. What is written by concurrent writers is the lock with the state beside it, on cache lines of the partition's
//! own.
//!
//! [claimed]: Partition::claim

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use crate::entries::{EntryId, Record};
use crate::generation::Generation;
use crate::index::{Hash, Hasher};
use crate::reclaim::reclaim;
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

/// See the module's documentation. Aligned to two cache lines, which processors fetch together.
#[repr(align(128))]
pub struct Partition<H: Heap> {
    /// All there is.
    state: Mutex<State<H>>,
}

/// What the lock guards.
struct State<H: Heap> {
    /// Among how many partitions keys are routed when one of them comes here; 0 while closed.
    routed_among: u32,
    /// What has come in since the last hand-over.
    active: Generation<H>,
    /// Handed over and not yet claimed to the end, oldest first. At most one, but after a restart with another number
    /// of partitions.
    pending: VecDeque<Arc<HandOver<H>>>,
}

#[allow(clippy::len_without_is_empty)] // Only the size of all partitions together is asked for.
impl<H: Heap> Partition<H> {
    /// A closed, empty partition.
    pub fn new(hasher: Hasher) -> Self {
        let state = State { routed_among: 0, active: Generation::new(hasher), pending: VecDeque::new() };
        Partition { state: Mutex::new(state) }
    }

    /// Lets keys in that were routed among `partitions`.
    pub fn open(&self, partitions: u32) {
        self.state.lock().routed_among = partitions;
    }

    /// Refuses reads and writes from now on. What was written before is still handed over.
    pub fn close(&self) {
        self.state.lock().routed_among = 0;
    }

    /// Stores `value` for `key`, whatever is there.
    #[inline]
    pub fn put(&self, routed_among: u32, hash: Hash, key: H::Term, value: H::Term) -> Result<(), Closed> {
        self.lock_open(routed_among)?.active.put(hash, key, value);
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
        self.lock_open(routed_among)?.active.put_newer(hash, key, value, version);
        Ok(())
    }

    /// Does all `writes`, in order, with the lock taken once. The caller keeps their number small.
    pub fn write_all(&self, routed_among: u32, writes: &[(Hash, Write<H::Term>)]) -> Result<(), Closed> {
        let mut state = self.lock_open(routed_among)?;
        writes.iter().for_each(|&(hash, _)| state.active.prefetch(hash));
        for &(hash, write) in writes {
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
        let state = self.lock_open(routed_among)?;
        Ok(state.active.get(hash, key).map(copy))
    }

    /// Takes out the entry of `key`, if there is one.
    pub fn delete(&self, routed_among: u32, hash: Hash, key: H::Term) -> Result<(), Closed> {
        self.lock_open(routed_among)?.active.delete(hash, key);
        Ok(())
    }

    /// How many entries wait for the next hand-over.
    pub fn len(&self, routed_among: u32) -> Result<usize, Closed> {
        Ok(self.lock_open(routed_among)?.active.len())
    }

    /// What has not been claimed of the last hand-over; else the active generation, replaced by an empty one; `None` if
    /// both are empty.
    pub fn hand_over(&self) -> Option<HandedOver<H>> {
        let mut state = self.state.lock();
        if let Some(rest) = state.pending.front() {
            return Some(HandedOver::Rest(rest.clone()));
        }
        let generation = retire(&mut state.active)?;
        if generation.is_empty() {
            // All that came in was deleted again: what is left is memory.
            drop(state);
            reclaim(generation);
            return None;
        }
        let fresh = Arc::new(HandOver::new(generation));
        state.pending.push_back(fresh.clone());
        Some(HandedOver::Fresh(fresh))
    }

    /// Takes the entries below `position` as handed to the processor: no later hand-over gives them again.
    pub fn claim(&self, hand_over: &Arc<HandOver<H>>, position: usize) {
        hand_over.position.fetch_max(position, Ordering::Relaxed);
        if position >= hand_over.end() {
            drop(hand_over.generation.lock().take());
            let mut state = self.state.lock();
            let place = state.pending.iter().position(|pending| Arc::ptr_eq(pending, hand_over));
            let finished = place.and_then(|place| state.pending.remove(place));
            drop(state);
            drop(finished);
        }
    }

    /// Closes the partition and takes out all that it holds, oldest first.
    pub fn evict(&self) -> VecDeque<Arc<HandOver<H>>> {
        let mut state = self.state.lock();
        state.routed_among = 0;
        let mut evicted = std::mem::take(&mut state.pending);
        evicted.extend(retire(&mut state.active).map(|retired| Arc::new(HandOver::new(retired))));
        evicted
    }

    /// Takes over what another partition held, to hand it over before anything of its own.
    pub fn adopt(&self, evicted: VecDeque<Arc<HandOver<H>>>) {
        self.state.lock().pending.extend(evicted);
    }

    /// The lock, if keys routed among so many partitions may come here.
    #[inline]
    fn lock_open(&self, routed_among: u32) -> Result<MutexGuard<'_, State<H>>, Closed> {
        let state = self.state.lock();
        if state.routed_among == routed_among {
            Ok(state)
        } else {
            Err(Closed)
        }
    }
}

/// Replaces a generation by an empty one; `None` if nothing was ever written to it.
fn retire<H: Heap>(active: &mut Generation<H>) -> Option<Generation<H>> {
    if active.end() == 0 {
        return None;
    }
    let successor = active.successor();
    Some(std::mem::replace(active, successor))
}

/// What [`Partition::hand_over`] gives.
pub enum HandedOver<H: Heap> {
    /// What has not been claimed of an earlier hand-over. There may be more behind it.
    Rest(Arc<HandOver<H>>),
    /// All that came in since the last one.
    Fresh(Arc<HandOver<H>>),
}

/// A retired generation and how much of it has been handed to the processor.
///
/// Its memory goes with the claim of the last entry, however long the hand-over itself is referred to.
pub struct HandOver<H: Heap> {
    /// The frozen entries, until all have been claimed. Locked for taking a reference to them.
    generation: Mutex<Option<Arc<Retired<H>>>>,
    /// Behind the last entry.
    end: usize,
    /// Entries below this number have been claimed.
    position: AtomicUsize,
}

impl<H: Heap> HandOver<H> {
    /// A hand-over of which nothing has been claimed.
    fn new(generation: Generation<H>) -> Self {
        let end = generation.end();
        let retired = Arc::new(Retired(Some(generation)));
        HandOver { generation: Mutex::new(Some(retired)), end, position: AtomicUsize::new(0) }
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
        self.generation.lock().clone()
    }
}

/// A frozen generation, freed on the reclaimer thread.
pub struct Retired<H: Heap>(Option<Generation<H>>);

impl<H: Heap> Retired<H> {
    /// What is stored at `position`, unless it was deleted or there are not so many.
    #[inline]
    pub fn record(&self, position: usize) -> Option<Record<H::Term>> {
        let generation = self.0.as_ref()?;
        if position >= generation.end() {
            return None;
        }
        generation.record(EntryId::try_from(position).ok()?)
    }
}

impl<H: Heap> Drop for Retired<H> {
    fn drop(&mut self) {
        if let Some(generation) = self.0.take() {
            reclaim(generation);
        }
    }
}
