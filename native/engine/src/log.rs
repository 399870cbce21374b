//! A log: items in the order in which they were appended, what one partition of a queue has taken in since its last
//! flush.
//!
//! Items are never replaced or taken out, so an item needs no more than its word: the segments that the copies live in are
//! freed with the log.

use crate::arena::Arena;
use crate::ids::EntryId;
use crate::index::Hasher;
use crate::parcel::Parcel;
use crate::store::Store;
use crate::term::Heap;

/// Items of a chunk: growing never moves an item, so it never takes long.
const CHUNK: usize = 1024;

/// See the module's documentation.
pub struct Log<H: Heap> {
    /// The items. All chunks but the last are full.
    chunks: Vec<Vec<H::Term>>,
    /// How many items there are.
    length: usize,
    /// The copies of the items.
    copies: Arena<H>,
}

impl<H: Heap> Log<H> {
    /// Adds an item behind all others.
    #[inline]
    pub fn append(&mut self, item: &Parcel<H>) {
        assert!(self.length < EntryId::MAX as usize, "a log has fewer than 2^32 items");
        let (copy, unowned) = self.copies.store(item);
        self.copies.leave(unowned);
        if self.length % CHUNK == 0 {
            // The first chunk grows with a small log, the others are known to fill.
            self.chunks.push(Vec::with_capacity(if self.length == 0 { 4 } else { CHUNK }));
        }
        self.chunks[self.length / CHUNK].push(copy);
        self.length += 1;
    }
}

impl<H: Heap> Store for Log<H> {
    type Record = H::Term;

    fn new(_hasher: &Hasher) -> Self {
        Log { chunks: Vec::new(), length: 0, copies: Arena::new() }
    }

    fn successor(&self) -> Self {
        Log { chunks: Vec::new(), length: 0, copies: Arena::new() }
    }

    fn len(&self) -> usize {
        self.length
    }

    fn end(&self) -> usize {
        self.length
    }

    fn has_large(&self) -> bool {
        self.copies.had_large()
    }

    #[inline]
    fn record(&self, position: EntryId) -> Option<H::Term> {
        self.chunks.get(position as usize / CHUNK)?.get(position as usize % CHUNK).copied()
    }
}
