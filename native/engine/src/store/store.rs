//! The interface of tables and logs for a partition.

use std::ops::Range;
use std::time::Instant;

use super::hash::{Hash, Hasher};
use super::marks::Pin;
use crate::ids::EntryId;
use crate::limits::totals::Writes;

/// The entries of a shard since the last flush. Threads write it under the shard's lock. The flush
/// freezes it, and then any thread reads it without a lock.
pub trait Store: Send + Sync + 'static {
    /// An entry as readers get it.
    type Record: Copy;

    /// The key of an entry, or an item: the term that chooses its partition.
    type Term: Copy;

    /// Whether failed entries keep their place and are retried before all others, instead of
    /// waiting again.
    const KEEPS_ORDER: bool;

    /// Whether a failed entry is added to a newer one of its key, which otherwise replaces it.
    const ADDS_UP: bool;

    /// Freed heaps, to be dropped where it may take long.
    type Garbage: Send;

    /// An entry on its way to the journal.
    type Saved;

    /// Parts of a flush with fewer bytes are not freed apart.
    const LEAST_PART: usize;

    /// An empty store for keys hashed by `hasher`; allocates nothing.
    fn new(hasher: &Hasher) -> Self;

    /// An empty store to replace this one; allocates nothing.
    fn successor(&self) -> Self;

    /// Completes values that are kept apart for speed. To be called before the store is frozen.
    fn settle(&mut self) {}

    /// The number of entries.
    fn len(&self) -> usize;

    /// Whether the store has no entries.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One above the highest id.
    fn end(&self) -> usize;

    /// When the first entry was written, here or in an earlier store; `None` if none ever was.
    fn since(&self) -> Option<Instant>;

    /// The last version that the clock gave to an entry, here or in an earlier store of the shard.
    fn last_stamp(&self) -> i64 {
        0
    }

    /// The entries here replace entries of `earlier`, and take over their age.
    fn inherit_age(&mut self, earlier: &Self);

    /// The counts since the store was new.
    fn writes(&self) -> Writes;

    /// The number of entries with attempts.
    fn retried(&self) -> usize;

    /// Estimates how many bytes the store takes.
    fn bytes(&self) -> usize;

    /// Whether some terms may be large, so that copying even a few records may take long.
    fn has_large(&self) -> bool;

    /// The record of an entry; `None` if it was deleted, or for an unknown id.
    fn record(&self, id: EntryId) -> Option<Self::Record>;

    /// The key or item of an entry; `None` if it was deleted, or for an unknown id.
    fn term(&self, id: EntryId) -> Option<Self::Term>;

    /// Whether some entries have attempts.
    fn has_failed(&self) -> bool;

    /// The failed attempts of the processor with an entry, before it came here.
    fn attempts(&self, id: EntryId) -> u32;

    /// Whether this store has an entry that replaces one of `flushed`, an earlier store of the
    /// shard.
    fn supersedes(&self, flushed: &Self, id: EntryId) -> bool;

    /// Like [`supersedes`](Self::supersedes), for writers that did not see the entries of
    /// `flushed`: a lower version does not replace a higher one.
    fn overrides(&self, flushed: &Self, id: EntryId) -> bool {
        self.supersedes(flushed, id)
    }

    /// Takes back a failed entry of `flushed`, an earlier store of the shard, with these attempts.
    fn take_back(&mut self, flushed: &Self, id: EntryId, attempts: u32) -> TakenBack;

    /// Takes an entry of another partition's store. Of two entries of a key a map keeps the one
    /// with the higher version, or its own if the versions are equal.
    fn take_in(&mut self, evicted: &Self, id: EntryId, attempts: u32) -> TakenBack {
        self.take_back(evicted, id, attempts)
    }

    /// Frees entries of a frozen store, except for the ones accepted by `keeps`. From then on they
    /// count as deleted. Heaps that nothing lives in any longer become `garbage`.
    fn release(&mut self, ids: Range<EntryId>, keeps: impl Fn(EntryId) -> bool, garbage: &mut Vec<Self::Garbage>);

    /// Lets writers note which entries change, from now on, and numbers the store; or no longer, without
    /// a number.
    fn set_journaled(&mut self, generation: Option<u64>);

    /// The number of the store among those of its shard; `None` without a journal.
    fn generation(&self) -> Option<u64>;

    /// The number of entries that the journal does not have, deleted ones included.
    fn unsaved(&self) -> usize;

    /// Lets the journal take all entries again.
    fn unsave(&mut self);

    /// Hands entries that the journal does not have to it, from the id `from` on, and at most `most`.
    /// Calls `each` with the id; and with the entry, unless it was deleted. Returns the next id;
    /// `None` behind the last one. The terms stay in memory until the returned pin is released.
    fn save(
        &mut self,
        from: EntryId,
        most: usize,
        each: impl FnMut(EntryId, Option<Self::Saved>),
    ) -> (Option<EntryId>, Option<Pin>);

    /// An entry for the journal; `None` if it was deleted, or for an unknown id.
    fn saved(&self, id: EntryId) -> Option<Self::Saved>;

    /// Whether the journal does not have an entry as it is.
    fn is_unsaved(&self, id: EntryId) -> bool;

    /// The first entry whose id is at least `from` that was deleted before the store was frozen, and that
    /// the journal may have.
    fn deleted(&self, _from: EntryId) -> Option<EntryId> {
        None
    }

    /// Lets an entry wait that a journal had. It has the hash of its key. If the key is there, from
    /// another partition of then, a map keeps the entry with the higher version, and a counter adds both
    /// up.
    fn restore(&mut self, hash: Hash, entry: &Self::Saved);

    /// Whether the terms of the store must stay in memory: the journal reads them.
    fn is_pinned(&self) -> bool;

    /// Frees a piece of a store that nobody needs; `false` if little is left. Nothing else may follow.
    fn take_apart(&mut self) -> bool;
}

/// The result of taking an entry back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TakenBack {
    /// It waits again.
    Added,
    /// It was added to a waiting entry.
    Joined,
    /// It waits again in the place of the waiting entry of its key.
    Replaced,
    /// The waiting entry of its key stays.
    Superseded,
}
