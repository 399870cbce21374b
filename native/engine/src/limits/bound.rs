//! The bound of a buffer: how many entries all its partitions may hold together, waiting and in flight.
//!
//! `held` counts the entries, and *room* that was given out for entries to come: to a shard, which then adds entries
//! without a look at the bound, or to the writer of a list. It is never above `max`, unless `max` was lowered. A shard
//! gets much room at once only while there is plenty, and gives it back when another one finds none.
//!
//! While writers wait for room, in their order, only the one whose turn it is gets any.

use crate::sync::{AtomicBool, AtomicUsize, Ordering};

/// No bound.
const NONE: usize = usize::MAX;

/// The most room that a shard gets at once.
const MAX_BLOCK: usize = 64;

/// The buffer counts as full until one in this many entries has left.
const ROOM_DIVISOR: usize = 8;

/// See the module's documentation.
#[derive(Debug)]
pub struct Bound {
    /// How many entries there may be.
    max: AtomicUsize,
    /// How many there are, and how much room was given out.
    held: AtomicUsize,
    /// How many shards share the room.
    shards: AtomicUsize,
    /// Whether shards may have room that they do not need.
    is_lent: AtomicBool,
    /// Whether writers wait.
    is_queued: AtomicBool,
    /// Whether a write has found no room, and there was little since.
    is_full: AtomicBool,
    /// Whether entries have left while it was full.
    has_news: AtomicBool,
    /// Writes that found no room.
    refused: AtomicUsize,
    /// Writes that found no room and were dropped.
    dropped: AtomicUsize,
}

impl Default for Bound {
    fn default() -> Self {
        Bound {
            max: AtomicUsize::new(NONE),
            held: AtomicUsize::new(0),
            shards: AtomicUsize::new(1),
            is_lent: AtomicBool::new(false),
            is_queued: AtomicBool::new(false),
            is_full: AtomicBool::new(false),
            has_news: AtomicBool::new(false),
            refused: AtomicUsize::new(0),
            dropped: AtomicUsize::new(0),
        }
    }
}

impl Bound {
    /// How many entries there may be; `None` without a bound.
    pub fn max(&self) -> Option<usize> {
        Some(self.max.load(Ordering::SeqCst)).filter(|&max| max != NONE)
    }

    /// Changes how many entries there may be, and how many shards share the room.
    pub fn set_max(&self, max: Option<usize>, shards: usize) {
        self.shards.store(shards.max(1), Ordering::SeqCst);
        self.max.store(max.unwrap_or(NONE), Ordering::SeqCst);
        self.tell();
    }

    /// How many entries there are, and how much room was given out.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::SeqCst)
    }

    /// Whether there is room for so many entries.
    pub fn has_room(&self, count: usize) -> bool {
        self.held().saturating_add(count) <= self.max.load(Ordering::SeqCst)
    }

    /// Takes room for so many entries, if there is as much; a writer whose `turn` it is does not wait for others.
    pub fn reserve(&self, count: usize, turn: bool) -> bool {
        if !turn && self.is_queued.load(Ordering::SeqCst) {
            return false;
        }
        let max = self.max.load(Ordering::SeqCst);
        let take = |held: usize| held.checked_add(count).filter(|&held| held <= max);
        self.held.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok()
    }

    /// Takes room for a shard, and says how much: 0 if there is none.
    pub(crate) fn take(&self, turn: bool) -> usize {
        let free = self.max.load(Ordering::SeqCst).saturating_sub(self.held());
        if free == 0 || !turn && self.is_queued.load(Ordering::SeqCst) {
            return 0;
        }
        // Before the room is taken: who finds none after that must know that a shard has it, and waits for the shard's lock,
        // which the caller holds. If the room is gone by now, somebody looks for it once in vain.
        self.is_lent.store(true, Ordering::SeqCst);
        let block = (free / (2 * self.shards.load(Ordering::SeqCst))).clamp(1, MAX_BLOCK);
        // Other shards may have taken so much meanwhile that only single room is left.
        [block, 1].into_iter().find(|&block| self.reserve(block, turn)).unwrap_or(0)
    }

    /// Counts entries for which nobody has asked.
    pub(crate) fn add(&self, count: usize) {
        self.held.fetch_add(count, Ordering::SeqCst);
    }

    /// Entries have left, or room was not needed.
    pub fn release(&self, count: usize) {
        if count > 0 {
            self.held.fetch_sub(count, Ordering::SeqCst);
            self.tell();
        }
    }

    /// Whether shards may have room that they do not need. The caller takes it from all of them.
    pub fn take_lent(&self) -> bool {
        self.is_lent.load(Ordering::SeqCst) && self.is_lent.swap(false, Ordering::SeqCst)
    }

    /// Notes that a write has found no room; `true` if it is the first one.
    pub fn fill(&self) -> bool {
        !self.is_full.load(Ordering::SeqCst) && !self.is_full.swap(true, Ordering::SeqCst)
    }

    /// Notes whether writers wait. Then, or until there is room for more than a few, it counts as full.
    pub fn set_queued(&self, is_queued: bool) {
        self.is_queued.store(is_queued, Ordering::SeqCst);
        if is_queued {
            self.is_full.store(true, Ordering::SeqCst);
        }
    }

    /// Notes that it is not full any more; `false` if there is too little room for that.
    pub fn clear(&self) -> bool {
        let max = self.max.load(Ordering::SeqCst);
        let has_room = || self.has_room((max / ROOM_DIVISOR).max(1)) || max == NONE;
        while has_room() {
            self.is_full.store(false, Ordering::SeqCst);
            if has_room() {
                return true;
            }
            // A write may have found no room while it still counted as full. Of entries that leave before it does so again
            // nobody is told, so it is asked again.
            self.is_full.store(true, Ordering::SeqCst);
        }
        false
    }

    /// Whether there may be room since the last call, and somebody wants to know.
    pub fn take_news(&self) -> bool {
        self.has_news.load(Ordering::SeqCst) && self.has_news.swap(false, Ordering::SeqCst)
    }

    /// Counts writes that found no room.
    pub fn count_refused(&self, refused: usize, dropped: usize) {
        self.refused.fetch_add(refused, Ordering::Relaxed);
        self.dropped.fetch_add(dropped, Ordering::Relaxed);
    }

    /// How many writes found no room and were refused, and how many were dropped.
    pub fn refused(&self) -> (usize, usize) {
        (self.refused.load(Ordering::Relaxed), self.dropped.load(Ordering::Relaxed))
    }

    /// There may be room.
    fn tell(&self) {
        if self.is_full.load(Ordering::SeqCst) {
            self.has_news.store(true, Ordering::SeqCst);
        }
    }
}
