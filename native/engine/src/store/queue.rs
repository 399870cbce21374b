//! A log: the items of one partition of a queue since its last flush, in the order of their writes.
//!
//! Items are never replaced or deleted, so the log keeps only their terms, and not where these live.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Instant;

use super::hash::{Hash, Hasher};
use super::marks::Pin;
use super::saved::{Saved, SavedEntry};
use super::store::{Store, TakenBack};
use crate::ids::EntryId;
use crate::limits::totals::Writes;
use crate::memory::arena::{Arena, Garbage};
use crate::memory::parcel::Parcel;
use crate::runs::Runs;
use crate::term::{Heap, Resident};

/// Items in a chunk. Growing moves no item, so it never takes long.
const CHUNK: usize = 1024;

/// The bits in a word of [`Chunk::freed`].
const BITS: usize = u64::BITS as usize;

/// A run of items.
struct Chunk<T> {
    /// The items; empty if all are free.
    items: Vec<T>,
    /// Whether all items are immediates.
    is_immediate: bool,
    /// A bit for each item, which is set when the item is freed; empty before the first one.
    freed: Vec<u64>,
}

/// See the module's documentation.
pub struct Log<H: Heap> {
    /// All chunks but the last are full.
    chunks: Vec<Chunk<H::Term>>,
    /// The number of chunks whose items are all free.
    freed: usize,
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
    /// The state of the journal; `None` without one.
    journaled: Option<Box<Journaled>>,
}

/// The state of the journal in a log.
struct Journaled {
    /// The generation of the log.
    generation: u64,
    /// The number of items that the journal has, which are the first ones.
    saved: EntryId,
    /// The generations and ids that items had first, by their ids here.
    origins: BTreeMap<EntryId, (u64, EntryId)>,
    /// Whether terms must stay.
    pin: Pin,
}

impl Journaled {
    /// Of a log without items.
    fn new(generation: u64) -> Self {
        Journaled { generation, saved: 0, origins: BTreeMap::new(), pin: Pin::default() }
    }
}

impl<H: Heap> Log<H> {
    /// A log without items; allocates nothing.
    fn empty() -> Self {
        Log {
            chunks: Vec::new(),
            freed: 0,
            length: 0,
            copies: Arena::new(),
            since: None,
            taken_back: 0,
            failed: Runs::NONE,
            journaled: None,
        }
    }

    /// Adds an item behind all others. Returns whether it begins a chunk.
    #[inline]
    pub fn append(&mut self, item: &Parcel<H>) -> bool {
        assert!(self.length < EntryId::MAX as usize, "a log has fewer than 2^32 items");
        let (copy, unowned) = self.copies.store(item);
        let is_immediate = unowned.is_nothing();
        self.copies.leave(unowned, self.length as EntryId);
        let begins = self.length % CHUNK == 0;
        if begins {
            // The first chunk may stay small, the others are likely to fill.
            let items = Vec::with_capacity(if self.length == 0 { 4 } else { CHUNK });
            self.chunks.push(Chunk { items, is_immediate: true, freed: Vec::new() });
            self.since.get_or_insert_with(Instant::now);
        }
        let chunk = &mut self.chunks[self.length / CHUNK];
        chunk.items.push(copy);
        chunk.is_immediate &= is_immediate;
        self.length += 1;
        begins
    }

    /// Whether an item is free.
    #[inline]
    fn is_free(&self, id: EntryId) -> bool {
        is_free(&self.chunks, id as usize)
    }
}

impl<H: Heap> Store for Log<H> {
    type Record = Resident<H::Term>;

    type Term = H::Term;

    const KEEPS_ORDER: bool = true;

    const ADDS_UP: bool = false;

    type Garbage = Garbage<H>;

    type Saved = SavedEntry<H>;

    const LEAST_PART: usize = H::LEAST_PART;

    fn new(_hasher: &Hasher) -> Self {
        Self::empty()
    }

    fn successor(&self) -> Self {
        let next = |generation| Box::new(Journaled::new(generation + 1));
        Log { journaled: self.generation().map(next), ..Self::empty() }
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
        let last = self.chunks.last().map_or(0, |chunk| chunk.items.capacity());
        let full = self.chunks.len().saturating_sub(1 + self.freed) * CHUNK;
        (last + full) * size_of::<H::Term>() + self.copies.bytes()
    }

    fn has_large(&self) -> bool {
        self.copies.had_large()
    }

    #[inline]
    fn record(&self, id: EntryId) -> Option<Resident<H::Term>> {
        let chunk = self.chunks.get(id as usize / CHUNK)?;
        let &term = chunk.items.get(id as usize % CHUNK)?;
        (!self.is_free(id)).then_some(Resident { term, is_immediate: chunk.is_immediate })
    }

    fn term(&self, id: EntryId) -> Option<H::Term> {
        self.record(id).map(|item| item.term)
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
        if let (Some(journaled), Some(before)) = (&mut self.journaled, &flushed.journaled) {
            let origin = before.origins.get(&id).copied().unwrap_or((before.generation, id));
            journaled.origins.insert(self.length as EntryId, origin);
        }
        // A log does not note which items are large, so this copies them all.
        self.append(&if item.is_immediate { Parcel::immediate(item.term) } else { Parcel::loose(item.term) });
        self.taken_back += 1;
        TakenBack::Added
    }

    fn take_in(&mut self, evicted: &Self, id: EntryId, attempts: u32) -> TakenBack {
        let taken_in = self.take_back(evicted, id, attempts);
        if let Some(journaled) = &mut self.journaled {
            // It comes to another log.
            journaled.origins.remove(&(self.length as EntryId - 1));
        }
        taken_in
    }

    fn release(&mut self, ids: Range<EntryId>, keeps: impl Fn(EntryId) -> bool, garbage: &mut Vec<Garbage<H>>) {
        for id in ids.clone().filter(|&id| !keeps(id)) {
            let Some(chunk) = self.chunks.get_mut(id as usize / CHUNK) else { break };
            let at = id as usize % CHUNK;
            chunk.freed.resize(CHUNK / BITS, 0);
            chunk.freed[at / BITS] |= 1 << (at % BITS);
        }
        let Log { chunks, length, copies, freed, .. } = self;
        let all_free = |ids: Range<EntryId>| ids.rev().all(|id| is_free(chunks, id as usize));
        copies.free_left(ids.clone(), *length as EntryId, all_free, garbage);
        let end = ids.end as usize;
        if let Some(chunk) = (end / CHUNK).checked_sub(1).filter(|_| end % CHUNK == 0) {
            let chunk = &mut chunks[chunk];
            // Without a freed item it has no bits.
            let is_free = !chunk.freed.is_empty() && chunk.freed.iter().all(|&word| word == u64::MAX);
            if is_free && !chunk.items.is_empty() {
                chunk.items = Vec::new();
                *freed += 1;
            }
        }
    }

    fn set_journaled(&mut self, generation: Option<u64>) {
        self.journaled = generation.map(|generation| Box::new(Journaled::new(generation)));
    }

    fn generation(&self) -> Option<u64> {
        self.journaled.as_ref().map(|journaled| journaled.generation)
    }

    fn unsaved(&self) -> usize {
        self.journaled.as_ref().map_or(0, |journaled| self.length - journaled.saved as usize)
    }

    fn unsave(&mut self) {
        if let Some(journaled) = &mut self.journaled {
            journaled.saved = 0;
        }
    }

    fn save(
        &mut self,
        _from: EntryId,
        most: usize,
        mut each: impl FnMut(EntryId, Option<SavedEntry<H>>),
    ) -> (Option<EntryId>, Option<Pin>) {
        let Some(journaled) = &self.journaled else { return (None, None) };
        // A log that just replaced another one is saved from its start.
        let (first, end) = (journaled.saved, self.length as EntryId);
        let pin = (first < end).then(|| journaled.pin.clone());
        pin.iter().for_each(Pin::set);
        let next = end.min(first.saturating_add(most as EntryId));
        (first..next).for_each(|id| each(id, self.saved(id)));
        if let Some(journaled) = &mut self.journaled {
            journaled.saved = next;
        }
        ((next < end).then_some(next), pin)
    }

    fn saved(&self, id: EntryId) -> Option<SavedEntry<H>> {
        let record = self.record(id)?;
        let origin = self.journaled.as_ref().and_then(|journaled| journaled.origins.get(&id).copied());
        let item = if record.is_immediate { Parcel::immediate(record.term) } else { Parcel::loose(record.term) };
        Some(SavedEntry { attempts: self.attempts(id), saved: Saved::Item { item, origin } })
    }

    fn is_unsaved(&self, id: EntryId) -> bool {
        self.journaled.as_ref().is_some_and(|journaled| journaled.saved <= id)
    }

    fn restore(&mut self, _hash: Hash, SavedEntry { attempts, saved }: &SavedEntry<H>) {
        if let Saved::Item { item, .. } = saved {
            if *attempts > 0 {
                self.failed.push(self.length, *attempts);
            }
            self.append(item);
            self.taken_back += 1;
        }
    }

    fn is_pinned(&self) -> bool {
        self.journaled.as_ref().is_some_and(|journaled| journaled.pin.is_set())
    }

    fn take_apart(&mut self) -> bool {
        if self.copies.take_apart() {
            return true;
        }
        let Some(chunk) = self.chunks.pop() else { return false };
        self.freed -= usize::from(chunk.items.is_empty());
        true
    }
}

/// Whether the item with this id is free.
#[inline]
fn is_free<T>(chunks: &[Chunk<T>], id: usize) -> bool {
    let at = id % CHUNK;
    chunks[id / CHUNK].freed.get(at / BITS).is_some_and(|word| word >> (at % BITS) & 1 == 1)
}
