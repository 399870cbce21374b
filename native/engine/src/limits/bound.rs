//! The bound of a buffer: how many entries all its partitions may hold together, waiting and in
//! flight.
//!
//! `held` counts the entries, and *room* for entries to come. A shard that takes room adds entries
//! without a look at the bound; the writer of a list takes room for the whole list. `held` exceeds
//! `max` only after `max` was lowered. A shard gets much room at once only while plenty is free,
//! and gives it back when another one finds none.
//!
//! While writers wait for room, in their order, only the writer whose turn it is gets any.

use crate::sync::{AtomicBool, AtomicUsize, Ordering};

/// No bound.
const NONE: usize = usize::MAX;

/// The most room that a shard gets at once.
const MAX_BLOCK: usize = 64;

/// The buffer counts as full until one in this many entries leaves.
const ROOM_DIVISOR: usize = 8;

/// See the module's documentation.
#[derive(Debug)]
pub struct Bound {
    /// The limit of `held`.
    max: AtomicUsize,
    /// The number of entries, plus the room given out.
    held: AtomicUsize,
    /// The number of shards that share the room.
    shards: AtomicUsize,
    /// Whether shards may have unused room.
    is_lent: AtomicBool,
    /// Whether writers wait.
    is_queued: AtomicBool,
    /// Whether a write found no room, and little was free since.
    is_full: AtomicBool,
    /// Whether entries left while it was full.
    has_news: AtomicBool,
    /// Writes that found no room and were refused.
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
    /// The limit of `held`; `None` without a bound.
    pub fn max(&self) -> Option<usize> {
        Some(self.max.load(Ordering::SeqCst)).filter(|&max| max != NONE)
    }

    /// Changes the limit, and the number of shards that share the room.
    pub fn set_max(&self, max: Option<usize>, shards: usize) {
        self.shards.store(shards.max(1), Ordering::SeqCst);
        self.max.store(max.unwrap_or(NONE), Ordering::SeqCst);
        self.announce();
    }

    /// The number of entries, plus the room given out.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::SeqCst)
    }

    /// Whether `count` entries have room.
    pub fn has_room(&self, count: usize) -> bool {
        self.held().saturating_add(count) <= self.max.load(Ordering::SeqCst)
    }

    /// Takes room for `count` entries; `false` without enough. A writer whose `turn` it is does not
    /// wait for others.
    pub fn reserve(&self, count: usize, turn: bool) -> bool {
        if !turn && self.is_queued.load(Ordering::SeqCst) {
            return false;
        }
        let max = self.max.load(Ordering::SeqCst);
        let take = |held: usize| held.checked_add(count).filter(|&held| held <= max);
        self.held.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok()
    }

    /// Takes room for a shard and returns the amount, 0 if the buffer is full.
    pub(crate) fn take(&self, turn: bool) -> usize {
        let free = self.max.load(Ordering::SeqCst).saturating_sub(self.held());
        if free == 0 || !turn && self.is_queued.load(Ordering::SeqCst) {
            return 0;
        }
        // This precedes the taking: a writer that finds no room afterwards must look into the
        // shards, where it waits for the lock that the caller holds. If the room is gone by then,
        // the writer looks once in vain.
        self.is_lent.store(true, Ordering::SeqCst);
        let block = (free / (2 * self.shards.load(Ordering::SeqCst))).clamp(1, MAX_BLOCK);
        // Other shards may be faster and leave room for a single entry.
        [block, 1].into_iter().find(|&block| self.reserve(block, turn)).unwrap_or(0)
    }

    /// Counts entries that took no room before.
    pub(crate) fn add(&self, count: usize) {
        self.held.fetch_add(count, Ordering::SeqCst);
    }

    /// Counts entries that left, or unused room.
    pub fn release(&self, count: usize) {
        if count > 0 {
            self.held.fetch_sub(count, Ordering::SeqCst);
            self.announce();
        }
    }

    /// Returns whether shards may have unused room, which the caller then takes from all shards.
    pub fn take_lent(&self) -> bool {
        self.is_lent.load(Ordering::SeqCst) && self.is_lent.swap(false, Ordering::SeqCst)
    }

    /// Notes that a write found no room; `true` for the first one.
    pub fn fill(&self) -> bool {
        !self.is_full.load(Ordering::SeqCst) && !self.is_full.swap(true, Ordering::SeqCst)
    }

    /// Notes whether writers wait. With writers the buffer counts as full until much room is free.
    pub fn set_queued(&self, is_queued: bool) {
        self.is_queued.store(is_queued, Ordering::SeqCst);
        if is_queued {
            self.is_full.store(true, Ordering::SeqCst);
        }
    }

    /// Ends the state of being full; `false` if too little room is free for that.
    pub fn clear(&self) -> bool {
        let max = self.max.load(Ordering::SeqCst);
        let has_room = || self.has_room((max / ROOM_DIVISOR).max(1)) || max == NONE;
        while has_room() {
            self.is_full.store(false, Ordering::SeqCst);
            if has_room() {
                return true;
            }
            // A write may find no room while the buffer still counts as full. Entries that leave
            // before the next line announce no room, so the loop checks again.
            self.is_full.store(true, Ordering::SeqCst);
        }
        false
    }

    /// Whether room may be free since the last call, and somebody waits for it.
    pub fn take_news(&self) -> bool {
        self.has_news.load(Ordering::SeqCst) && self.has_news.swap(false, Ordering::SeqCst)
    }

    /// Counts writes that found no room.
    pub fn count_refused(&self, refused: usize, dropped: usize) {
        self.refused.fetch_add(refused, Ordering::Relaxed);
        self.dropped.fetch_add(dropped, Ordering::Relaxed);
    }

    /// The number of refused writes, and of dropped ones.
    pub fn refused(&self) -> (usize, usize) {
        (self.refused.load(Ordering::Relaxed), self.dropped.load(Ordering::Relaxed))
    }

    /// Announces that room may be free.
    fn announce(&self) {
        if self.is_full.load(Ordering::SeqCst) {
            self.has_news.store(true, Ordering::SeqCst);
        }
    }
}
