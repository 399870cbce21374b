//! The threshold of a partition: the number of waiting entries at which it is to flush.

use crate::sync::{AtomicBool, AtomicUsize, Ordering};

/// No threshold.
const NONE: usize = usize::MAX;

/// See the module's documentation. Entries given back do not count: the partition would flush them
/// again and again. A delete subtracts one all the same, so the count may be too low.
#[derive(Debug)]
pub(crate) struct Threshold {
    /// The number at which entries are enough.
    enough: AtomicUsize,
    /// The number of new entries since the last flush.
    waiting: AtomicUsize,
    /// Whether they were enough since the last flush.
    is_reached: AtomicBool,
}

impl Default for Threshold {
    fn default() -> Self {
        Threshold { enough: AtomicUsize::new(NONE), waiting: AtomicUsize::new(0), is_reached: AtomicBool::new(false) }
    }
}

impl Threshold {
    /// Whether the partition has a threshold.
    pub(crate) fn is_set(&self) -> bool {
        self.enough.load(Ordering::Relaxed) != NONE
    }

    /// Changes the threshold and the number of waiting entries; `true` if they are enough. The
    /// caller holds the locks of all shards.
    pub(crate) fn set(&self, enough: Option<usize>, waiting: usize) -> bool {
        self.enough.store(enough.unwrap_or(NONE), Ordering::Relaxed);
        self.waiting.store(waiting, Ordering::Relaxed);
        self.is_reached.store(false, Ordering::Relaxed);
        self.add(0)
    }

    /// Counts new entries. Returns `true` once for each flush, when they become enough.
    pub(crate) fn add(&self, count: usize) -> bool {
        let enough = self.enough.load(Ordering::Relaxed);
        // Without a threshold the shared cache line is only read.
        enough != NONE
            && self.waiting.fetch_add(count, Ordering::Relaxed) + count >= enough
            && !self.is_reached.swap(true, Ordering::Relaxed)
    }

    /// Counts a deleted entry.
    pub(crate) fn remove(&self) {
        if self.is_set() {
            let less = |waiting: usize| waiting.checked_sub(1);
            let _ = self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        }
    }

    /// Starts anew when a flush takes all entries. The caller holds the locks of all shards.
    pub(crate) fn reset(&self) {
        if self.is_set() {
            self.waiting.store(0, Ordering::Relaxed);
            self.is_reached.store(false, Ordering::Relaxed);
        }
    }
}
