//! A log: the items of one partition of a queue since its last flush, in the order of their writes.
//!
//! Items are never replaced or deleted, so the log keeps only their terms and frees all segments at
//! its end.

use std::time::Instant;

use super::hash::Hasher;
use super::store::{Store, TakenBack};
use crate::ids::EntryId;
use crate::limits::totals::Writes;
use crate::memory::arena::Arena;
use crate::memory::parcel::Parcel;
use crate::runs::Runs;
use crate::term::Heap;

/// Items in a chunk. Growing moves no item, so it never takes long.
const CHUNK: usize = 1024;

/// See the module's documentation.
pub struct Log<H: Heap> {
    /// All chunks but the last are full.
    chunks: Vec<Vec<H::Term>>,
    /// The number of items.
    length: usize,
    /// Where the items live.
    copies: Arena<H>,
    /// When the first item was written, here or in an earlier log.
    since: Option<Instant>,
    /// The number of items from an earlier log.
    taken_back: usize,
    /// The attempts of failed items, by their ids.
    failed: Runs,
}

impl<H: Heap> Log<H> {
    /// A log without items; allocates nothing.
    fn empty() -> Self {
        Log { chunks: Vec::new(), length: 0, copies: Arena::new(), since: None, taken_back: 0, failed: Runs::NONE }
    }

    /// Adds an item behind all others.
    #[inline]
    pub fn append(&mut self, item: &Parcel<H>) {
        assert!(self.length < EntryId::MAX as usize, "a log has fewer than 2^32 items");
        let (copy, unowned) = self.copies.store(item);
        self.copies.leave(unowned);
        if self.length % CHUNK == 0 {
            // The first chunk may stay small, the others are likely to fill.
            self.chunks.push(Vec::with_capacity(if self.length == 0 { 4 } else { CHUNK }));
            self.since.get_or_insert_with(Instant::now);
        }
        self.chunks[self.length / CHUNK].push(copy);
        self.length += 1;
    }
}

impl<H: Heap> Store for Log<H> {
    type Record = H::Term;

    type Term = H::Term;

    const KEEPS_ORDER: bool = true;

    const ADDS_UP: bool = false;

    fn new(_hasher: &Hasher) -> Self {
        Self::empty()
    }

    fn successor(&self) -> Self {
        Self::empty()
    }

    fn len(&self) -> usize {
        self.length
    }

    fn end(&self) -> usize {
        self.length
    }

    fn since(&self) -> Option<Instant> {
        self.since
    }

    fn inherit_age(&mut self, earlier: &Self) {
        self.since = [self.since, earlier.since].into_iter().flatten().min();
    }

    fn writes(&self) -> Writes {
        Writes { written: self.length - self.taken_back, ..Writes::default() }
    }

    fn retried(&self) -> usize {
        self.failed.len()
    }

    fn bytes(&self) -> usize {
        self.chunks.iter().last().map_or(0, Vec::capacity) * size_of::<H::Term>()
            + self.length / CHUNK * CHUNK * size_of::<H::Term>()
            + self.copies.bytes()
    }

    fn has_large(&self) -> bool {
        self.copies.had_large()
    }

    #[inline]
    fn record(&self, id: EntryId) -> Option<H::Term> {
        self.chunks.get(id as usize / CHUNK)?.get(id as usize % CHUNK).copied()
    }

    fn term(&self, id: EntryId) -> Option<H::Term> {
        self.record(id)
    }

    fn has_failed(&self) -> bool {
        !self.failed.is_empty()
    }

    fn attempts(&self, id: EntryId) -> u32 {
        self.failed.attempts(id as usize)
    }

    fn supersedes(&self, _flushed: &Self, _id: EntryId) -> bool {
        false
    }

    fn take_back(&mut self, flushed: &Self, id: EntryId, attempts: u32) -> TakenBack {
        let Some(item) = flushed.record(id) else { return TakenBack::Superseded };
        self.inherit_age(flushed);
        if attempts > 0 {
            self.failed.push(self.length, attempts);
        }
        // A log does not note which items are large, so this copies them all.
        self.append(&Parcel::loose(item));
        self.taken_back += 1;
        TakenBack::Added
    }
}
