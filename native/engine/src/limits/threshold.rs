//! The threshold of a partition: so many entries wait that it is to flush.

use crate::sync::{AtomicBool, AtomicUsize, Ordering};

/// No threshold.
const NONE: usize = usize::MAX;

/// See the module's documentation. Entries that were given back do not count: the partition would flush them again and
/// again.
#[derive(Debug)]
pub(crate) struct Threshold {
    /// How many entries are enough.
    enough: AtomicUsize,
    /// How many wait.
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
    /// Whether there is one.
    pub(crate) fn is_set(&self) -> bool {
        self.enough.load(Ordering::Relaxed) != NONE
    }

    /// Changes it, and counts the entries that wait; `true` if they are enough. No entry is written meanwhile.
    pub(crate) fn set(&self, enough: Option<usize>, waiting: usize) -> bool {
        self.enough.store(enough.unwrap_or(NONE), Ordering::Relaxed);
        self.waiting.store(waiting, Ordering::Relaxed);
        self.is_reached.store(false, Ordering::Relaxed);
        self.add(0)
    }

    /// Counts new entries; `true` if they are enough now. That is so once for each flush.
    pub(crate) fn add(&self, count: usize) -> bool {
        let enough = self.enough.load(Ordering::Relaxed);
        // Without a threshold no line that other processors read is written.
        enough != NONE
            && self.waiting.fetch_add(count, Ordering::Relaxed) + count >= enough
            && !self.is_reached.swap(true, Ordering::Relaxed)
    }

    /// An entry was deleted.
    pub(crate) fn remove(&self) {
        if self.is_set() {
            let less = |waiting: usize| waiting.checked_sub(1);
            let _ = self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        }
    }

    /// A flush takes all entries. No entry is written meanwhile.
    pub(crate) fn reset(&self) {
        if self.is_set() {
            self.waiting.store(0, Ordering::Relaxed);
            self.is_reached.store(false, Ordering::Relaxed);
        }
    }
}
