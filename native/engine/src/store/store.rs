//! What a partition needs of a table or a log.

use std::time::Instant;

use super::index::Hasher;
use crate::ids::EntryId;
use crate::limits::totals::Writes;

/// The entries of a shard since the last flush. Threads write it under the shard's lock. The flush freezes it, and then
/// any thread reads it without a lock.
pub trait Store: Send + Sync + 'static {
    /// What readers get of an entry.
    type Record: Copy;

    /// The key of an entry, or an item: the term that chooses its partition.
    type Term: Copy;

    /// Whether failed entries are retried in their order, before all others. Else they are written again.
    const KEEPS_ORDER: bool;

    /// Whether a failed entry is added to what was written since. Else that replaces it.
    const ADDS_UP: bool;

    /// An empty store for keys hashed by `hasher`; allocates nothing.
    fn new(hasher: &Hasher) -> Self;

    /// An empty store to replace this one; allocates nothing.
    fn successor(&self) -> Self;

    /// Writes down what is kept apart for speed. To be called before the store is frozen.
    fn settle(&mut self) {}

    /// How many entries there are.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One above the highest id.
    fn end(&self) -> usize;

    /// When the first entry was written, or earlier if some entries are from an earlier store; `None` if there never was
    /// one.
    fn since(&self) -> Option<Instant>;

    /// What was counted since the store was new.
    fn writes(&self) -> Writes;

    /// How many entries the processor has failed with before they were written here.
    fn retried(&self) -> usize;

    /// Estimates how many bytes the store takes.
    fn bytes(&self) -> usize;

    /// Whether some terms may be large, so that copying even a few records may take long.
    fn has_large(&self) -> bool;

    /// The record of an entry; `None` if it was deleted or there is no such id.
    fn record(&self, id: EntryId) -> Option<Self::Record>;

    /// The key or item of an entry; `None` if it was deleted or there is no such id.
    fn term(&self, id: EntryId) -> Option<Self::Term>;

    /// Whether the processor may have failed with some of the entries before they were written here.
    fn has_failed(&self) -> bool;

    /// How often the processor had failed with an entry when it was written here.
    fn attempts(&self, id: EntryId) -> u32;

    /// Whether this store has an entry that replaces one of `flushed`, an earlier store of the shard.
    fn supersedes(&self, flushed: &Self, id: EntryId) -> bool;

    /// Takes an entry of `flushed` again, with which the processor has failed so often.
    fn take_back(&mut self, flushed: &Self, id: EntryId, attempts: u32) -> TakenBack;

    /// Takes an entry of another partition's store. Of two entries of a key a map keeps the one with
    /// the higher version, or its own if the versions are equal.
    fn take_in(&mut self, evicted: &Self, id: EntryId, attempts: u32) -> TakenBack {
        self.take_back(evicted, id, attempts)
    }
}

/// What becomes of an entry that is taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TakenBack {
    /// It waits again.
    Added,
    /// It was added to an entry that waits.
    Joined,
    /// Only one of two entries of its key stays, most often the other one.
    Superseded,
}
