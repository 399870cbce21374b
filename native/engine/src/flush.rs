//! A flush: the entries that a partition has swapped out, in flight until readers have claimed all of them.

use std::sync::Arc;

use crate::ids::EntryId;
use crate::reclaim::reclaim;
use crate::store::Store;
use crate::sync::{AtomicI64, AtomicUsize, Mutex, Ordering};

/// The result of [`Partition::flush`](crate::Partition::flush).
pub enum Flushed<S: Store> {
    /// What is left of an earlier flush. Other entries may wait.
    Rest(Arc<Flush<S>>),
    /// The entries that waited.
    Fresh(Arc<Flush<S>>),
}

/// Frozen stores, and how much of them has been claimed for the processor. The stores are freed after the claim of the
/// last entry, even if the flush itself is still referred to.
pub struct Flush<S: Store> {
    /// The stores, until all entries have been claimed. The lock is held only to take a reference to them.
    frozen: Mutex<Option<Arc<Frozen<S>>>>,
    /// The position behind the last entry.
    end: usize,
    /// Entries before this position have been claimed.
    position: AtomicUsize,
    /// The time of the last claim; [`NEVER`] before the first.
    claimed_at: AtomicI64,
}

/// The time before the first claim.
const NEVER: i64 = i64::MIN;

impl<S: Store> Flush<S> {
    /// A flush of which nothing has been claimed.
    pub(crate) fn new(frozen: Frozen<S>) -> Self {
        let end = frozen.end();
        Flush {
            frozen: Mutex::new(Some(Arc::new(frozen))),
            end,
            position: AtomicUsize::new(0),
            claimed_at: AtomicI64::new(NEVER),
        }
    }

    /// Marks the entries between two positions as given to the processor, so no reader gets them again. Returns `false`
    /// if `from` is not where the next batch begins, because another reader has claimed that batch. `now` is the time.
    pub fn claim(&self, from: usize, to: usize, now: i64) -> bool {
        let to = to.clamp(from, self.end.max(from));
        // Before the position: nobody may see the new position with the old time.
        self.claimed_at.store(now, Ordering::Relaxed);
        if self.position.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return false;
        }
        if to >= self.end {
            drop(self.frozen.lock().take());
        }
        true
    }

    /// Whether all entries have been claimed.
    pub(crate) fn is_finished(&self) -> bool {
        self.position() >= self.end
    }

    /// Where the next batch begins.
    pub fn position(&self) -> usize {
        self.position.load(Ordering::Acquire)
    }

    /// The time of the last claim, if there was one: after a call of [`position`](Self::position), the time of that
    /// claim or of a later attempt.
    pub fn claimed_at(&self) -> Option<i64> {
        Some(self.claimed_at.load(Ordering::Relaxed)).filter(|&time| time != NEVER)
    }

    /// How many entries have not been claimed. It looks at each of them.
    pub(crate) fn unclaimed(&self) -> usize {
        let position = self.position();
        let count = |frozen: Arc<Frozen<S>>| (position..self.end).filter_map(|at| frozen.record(at)).count();
        self.entries().map_or(0, count)
    }

    /// The position behind the last entry.
    pub fn end(&self) -> usize {
        self.end
    }

    /// The stores, to be read without a lock; `None` when all entries have been claimed.
    pub fn entries(&self) -> Option<Arc<Frozen<S>>> {
        self.frozen.lock().clone()
    }
}

/// The stores of a partition's shards, one after the other, which nobody writes. The reclaimer thread frees them.
pub struct Frozen<S: Store> {
    /// Only `drop` takes them out.
    stores: Vec<S>,
    /// The position behind each store's last record.
    ends: Vec<usize>,
}

impl<S: Store> Frozen<S> {
    /// Puts stores one after the other.
    pub(crate) fn new(stores: Vec<S>) -> Self {
        let sum = |end: &mut usize, store: &S| {
            *end += store.end();
            Some(*end)
        };
        let ends = stores.iter().scan(0, sum).collect();
        Frozen { stores, ends }
    }

    /// The position behind the last entry.
    fn end(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Whether some terms may be large, so that copying even a few records may take long.
    pub fn has_large(&self) -> bool {
        self.stores.iter().any(Store::has_large)
    }

    /// The record at a position, unless it was deleted or the position is too high.
    #[inline]
    pub fn record(&self, position: usize) -> Option<S::Record> {
        let store = self.ends.iter().position(|&end| position < end)?;
        let start = if store == 0 { 0 } else { self.ends[store - 1] };
        self.stores[store].record(EntryId::try_from(position - start).ok()?)
    }
}

impl<S: Store> Drop for Frozen<S> {
    fn drop(&mut self) {
        reclaim(std::mem::take(&mut self.stores));
    }
}
