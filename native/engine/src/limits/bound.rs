//! The bound of a buffer: how many entries all its partitions may hold together, waiting and in
//! flight, and how many bytes.
//!
//! `held` counts the entries, and *reserved* room for entries to come. It exceeds `max` only after
//! `max` was lowered, or room was reserved beyond it. A write that adds an entry reserves room for it first; the writer of a list
//! reserves room for the whole list.
//!
//! `bytes` follows the estimates of the stores: each shard and each flush adds its changes. A write
//! that needs memory is refused while `bytes` has reached `max_bytes`. What it needs is unknown
//! before, so `bytes` may exceed `max_bytes` by the writes under way.
//!
//! While the journal of a buffer is too far behind, and the buffer is to refuse writes then, no room is
//! given out at all.
//!
//! While writers [wait](super::waiting) for room, in their order, nobody else gets any.

use crate::sync::{AtomicBool, AtomicUsize, Ordering};

/// No bound.
const NONE: usize = usize::MAX;

/// The buffer counts as full until one in this many entries, or bytes, leaves.
const ROOM_DIVISOR: usize = 8;

/// See the module's documentation.
#[derive(Debug)]
pub struct Bound {
    /// The limit of `held`.
    max: AtomicUsize,
    /// The number of entries, plus the reserved room.
    held: AtomicUsize,
    /// The limit of `bytes`.
    max_bytes: AtomicUsize,
    /// The estimated bytes of all entries; 0 without a limit.
    bytes: AtomicUsize,
    /// Whether no write is admitted, whatever room there is: the journal is behind.
    is_refusing: AtomicBool,
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

/// The limits of a bound; `None` for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// The number of entries.
    pub entries: Option<usize>,
    /// The number of bytes.
    pub bytes: Option<usize>,
}

impl Limits {
    /// Whether there is any limit.
    pub fn any(self) -> bool {
        self.entries.is_some() || self.bytes.is_some()
    }
}

impl Default for Bound {
    fn default() -> Self {
        Bound {
            max: AtomicUsize::new(NONE),
            held: AtomicUsize::new(0),
            max_bytes: AtomicUsize::new(NONE),
            bytes: AtomicUsize::new(0),
            is_refusing: AtomicBool::new(false),
            is_queued: AtomicBool::new(false),
            is_full: AtomicBool::new(false),
            has_news: AtomicBool::new(false),
            refused: AtomicUsize::new(0),
            dropped: AtomicUsize::new(0),
        }
    }
}

impl Bound {
    /// The limits.
    pub fn limits(&self) -> Limits {
        let limit = |limit: &AtomicUsize| Some(limit.load(Ordering::SeqCst)).filter(|&limit| limit != NONE);
        Limits { entries: limit(&self.max), bytes: limit(&self.max_bytes) }
    }

    /// Changes the limits.
    pub fn set_limits(&self, limits: Limits) {
        self.max.store(limits.entries.unwrap_or(NONE), Ordering::SeqCst);
        self.max_bytes.store(limits.bytes.unwrap_or(NONE), Ordering::SeqCst);
        self.announce();
    }

    /// Lets no write be admitted, or those for which there is room.
    pub fn set_refusing(&self, is_refusing: bool) {
        self.is_refusing.store(is_refusing, Ordering::SeqCst);
        self.announce();
    }

    /// Whether no write is admitted.
    pub fn is_refusing(&self) -> bool {
        self.is_refusing.load(Ordering::SeqCst)
    }

    /// Whether writes need room.
    pub fn is_limited(&self) -> bool {
        self.limits().any() || self.is_refusing()
    }

    /// The number of entries, plus the reserved room.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::SeqCst)
    }

    /// The estimated bytes of all entries; 0 without a limit of bytes.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::SeqCst)
    }

    /// Whether there is a limit of bytes.
    pub(crate) fn counts_bytes(&self) -> bool {
        self.max_bytes.load(Ordering::Relaxed) != NONE
    }

    /// Whether `count` entries would ever have room.
    pub fn fits(&self, count: usize) -> bool {
        count <= self.max.load(Ordering::SeqCst)
    }

    /// Whether `count` entries have room.
    pub fn has_room(&self, count: usize) -> bool {
        self.held().saturating_add(count) <= self.max.load(Ordering::SeqCst)
            && self.bytes() < self.max_bytes.load(Ordering::SeqCst)
            && !self.is_refusing()
    }

    /// Reserves room for `count` entries; `false` without enough, or while others wait for some.
    #[inline]
    pub fn reserve(&self, count: usize) -> bool {
        !self.is_queued.load(Ordering::SeqCst) && self.reserve_first(count)
    }

    /// Reserves room for `count` entries of the first writer that waits; `false` without enough.
    pub(crate) fn reserve_first(&self, count: usize) -> bool {
        if self.bytes() >= self.max_bytes.load(Ordering::SeqCst) || self.is_refusing() {
            return false;
        }
        let max = self.max.load(Ordering::SeqCst);
        let take = |held: usize| held.checked_add(count).filter(|&held| held <= max);
        self.held.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok()
    }

    /// Whether a write that adds no entry may take memory.
    pub(crate) fn has_memory(&self) -> bool {
        let max_bytes = self.max_bytes.load(Ordering::SeqCst);
        let has_bytes = max_bytes == NONE || self.bytes() < max_bytes && !self.is_queued.load(Ordering::SeqCst);
        has_bytes && !self.is_refusing()
    }

    /// Reserves room for `count` entries, also beyond the limits.
    pub fn reserve_beyond(&self, count: usize) {
        self.add(count);
    }

    /// Counts entries that reserved no room.
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

    /// Counts a change of the bytes of a shard or a flush.
    pub(crate) fn change_bytes(&self, old: usize, new: usize) {
        if new > old {
            self.bytes.fetch_add(new - old, Ordering::SeqCst);
        } else if new < old {
            self.bytes.fetch_sub(old - new, Ordering::SeqCst);
            self.announce();
        }
    }

    /// Notes that a write found no room; `true` for the first one.
    pub fn fill(&self) -> bool {
        !self.is_full.load(Ordering::SeqCst) && !self.is_full.swap(true, Ordering::SeqCst)
    }

    /// Notes whether writers wait. With writers the buffer is full.
    pub(crate) fn set_queued(&self, is_queued: bool) {
        self.is_queued.store(is_queued, Ordering::SeqCst);
        if is_queued {
            self.is_full.store(true, Ordering::SeqCst);
        }
    }

    /// Ends the state of being full; `false` if too little room is free for that.
    pub fn clear(&self) -> bool {
        while self.is_full.load(Ordering::SeqCst) {
            if !self.has_much_room() {
                return false;
            }
            self.is_full.store(false, Ordering::SeqCst);
            if self.has_much_room() {
                return true;
            }
            // A write may find no room while the buffer still counts as full. Entries that leave
            // before the next line announce no room, so the loop checks again.
            self.is_full.store(true, Ordering::SeqCst);
        }
        true
    }

    /// Whether a part of the entries, and of the bytes, is free.
    fn has_much_room(&self) -> bool {
        let Limits { entries, bytes } = self.limits();
        !self.is_queued.load(Ordering::SeqCst)
            && !self.is_refusing()
            && entries.is_none_or(|max| self.held() <= max - (max / ROOM_DIVISOR).max(1))
            && bytes.is_none_or(|max| self.bytes() <= max - (max / ROOM_DIVISOR).max(1))
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
    pub(crate) fn announce(&self) {
        if self.is_full.load(Ordering::SeqCst) {
            self.has_news.store(true, Ordering::SeqCst);
        }
    }
}
