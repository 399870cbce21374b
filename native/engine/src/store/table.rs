//! A table: the entries of one shard since its last flush, each under its key.
//!
//! The [`Contents`] decide on the value of a key: a generation keeps terms, a tally sums.
//!
//! Invariants: `index` holds exactly the entries of `entries`, each under the hash of its key. The
//! segments that an entry names count it as one live copy.

use std::ops::Range;
use std::time::Instant;

use super::entries::{Entries, Entry};
use super::hash::{Hash, Hasher};
use super::index::{Index, Seeds};
use super::marks::{Marks, Pin};
use super::saved::{Saved, SavedEntry};
use super::store::{Store, TakenBack};
use crate::ids::EntryId;
use crate::limits::totals::Writes;
use crate::memory::arena::{Arena, Garbage};
use crate::memory::parcel::Parcel;
use crate::memory::reclaim::is_behind;
use crate::term::{Heap, Resident, Term};

/// The contents of a table beside its keys.
pub trait Contents<H: Heap>: Send + Sync + Sized + 'static {
    /// The value of a key.
    type Value: Copy + Send + Sync;

    /// An addition to the value, which few keys have. All others have the default.
    type Extra: Copy + Default + PartialEq + Send + Sync;

    /// An entry as readers get it.
    type Record: Copy;

    /// The part of the contents that each write changes.
    type Head: Copy + Default + Send + Sync;

    /// See [`Store::ADDS_UP`].
    const ADDS_UP: bool;

    /// The head of a table that replaces the one with this head.
    fn next_head(_head: Self::Head) -> Self::Head {
        Self::Head::default()
    }

    /// See [`Store::last_stamp`].
    fn last_stamp(_head: Self::Head) -> i64 {
        0
    }

    /// The contents of a table without entries; allocates nothing.
    fn new() -> Self;

    /// An entry as readers get it.
    fn record(key: Resident<H::Term>, value: Self::Value, extra: Self::Extra) -> Self::Record;

    /// The failed attempts of the processor with an entry.
    fn attempts(value: Self::Value, extra: Self::Extra) -> u32;

    /// See [`Store::settle`].
    fn settle(_table: &mut Table<H, Self>) {}

    /// Frees the value of a removed entry.
    fn removed(table: &mut Table<H, Self>, value: Self::Value);

    /// See [`Store::release`].
    fn freed(_table: &mut Table<H, Self>, _value: Self::Value, _garbage: &mut Vec<Garbage<H>>) {}

    /// See [`Store::take_apart`].
    fn take_apart(_table: &mut Table<H, Self>) -> bool {
        false
    }

    /// See [`Store::overrides`].
    fn overrides(_own: Self::Extra, _flushed: Self::Extra) -> bool {
        true
    }

    /// See [`Store::take_back`].
    fn take_back(table: &mut Table<H, Self>, flushed: &Table<H, Self>, id: EntryId, attempts: u32) -> TakenBack;

    /// An entry for the journal; see [`Store::saved`].
    fn saved(table: &Table<H, Self>, id: EntryId, entry: &Entry<H::Term, Self::Value>) -> Saved<H>;

    /// See [`Store::restore`]. An entry of another kind is left out.
    fn restore(table: &mut Table<H, Self>, hash: Hash, saved: &Saved<H>, attempts: u32);

    /// See [`Store::take_in`].
    fn take_in(table: &mut Table<H, Self>, evicted: &Table<H, Self>, id: EntryId, attempts: u32) -> TakenBack {
        Self::take_back(table, evicted, id, attempts)
    }

    /// The number of stale writes.
    fn stale(&self) -> usize;

    /// Estimates how many bytes the contents take beside the entries.
    fn bytes(&self) -> usize;

    /// Whether some terms may be large.
    fn has_large(&self) -> bool;
}

/// See the module's documentation. Most writes change the first fields, so these share the cache
/// line of the shard's lock. They fill it, and the index begins the next line: eight bytes more
/// before it cost a put of binaries a third.
#[repr(C)]
pub struct Table<H: Heap, C: Contents<H>> {
    /// The number of writes and returned entries that met an entry of their key.
    merged: usize,
    /// The number of deleted entries.
    deleted: usize,
    /// The head of the contents. It fills the line.
    pub(crate) head: C::Head,
    /// From the hash of a key to the id of its entry.
    index: Index,
    /// The entries.
    pub(crate) entries: Entries<H::Term, C::Value, C::Extra>,
    /// Where the keys live.
    keys: Arena<H>,
    /// The contents outside of the entries.
    pub(crate) contents: C,
    /// The number of returned entries. As all ids do, it fits in 32 bits.
    taken_back: u32,
    /// The number of present entries with attempts.
    retried: u32,
    /// When the first entry was written, here or in the store of a returned one.
    since: Option<Instant>,
    /// The heaps abandoned since the last [`Table::take_garbage`].
    pub(crate) garbage: Vec<Garbage<H>>,
    /// The entries that the journal does not have; `None` without a journal. An unlock reads the line
    /// of the garbage, so a write finds this there.
    pub(crate) marks: Option<Box<Marks>>,
}

impl<H: Heap, C: Contents<H>> Table<H, C> {
    /// The bytes before the index.
    pub(crate) const HEAD: usize = std::mem::offset_of!(Self, index);

    /// An empty table for keys hashed by `hasher`; allocates nothing.
    fn empty(hasher: &Hasher, head: C::Head) -> Self {
        Table {
            index: Index::new(hasher.clone()),
            entries: Entries::new(),
            keys: Arena::new(),
            head,
            contents: C::new(),
            merged: 0,
            deleted: 0,
            taken_back: 0,
            retried: 0,
            since: None,
            garbage: Vec::new(),
            marks: None,
        }
    }

    /// Whether operations abandoned heaps, which nobody reads.
    #[inline]
    pub fn has_garbage(&self) -> bool {
        !self.garbage.is_empty() && !self.is_pinned()
    }

    /// Notes for the journal that an entry changed.
    #[inline(always)]
    pub(crate) fn mark(&mut self, id: EntryId) {
        if let Some(marks) = &mut self.marks {
            marks.mark(id);
        }
    }

    /// Takes out abandoned heaps. The caller drops them without the lock.
    #[cold]
    pub fn take_garbage(&mut self) -> Vec<Garbage<H>> {
        std::mem::take(&mut self.garbage)
    }

    /// Prefetches the line of the index that an operation with this hash reads.
    #[inline]
    pub fn prefetch(&self, hash: Hash) {
        self.index.prefetch::<H>(hash);
    }

    /// The id of the entry of `key`.
    #[inline]
    pub(crate) fn find(&self, hash: Hash, key: H::Term) -> Option<EntryId> {
        let id = self.index.find(hash, |id| self.entries.get(id).is_some_and(|entry| entry.key.is_identical(key)))?;
        self.entries.prefetch_following::<H>(id);
        Some(id)
    }

    /// The hash of the key of an entry, which must be there.
    pub(crate) fn hash(&self, id: EntryId) -> Hash {
        self.index.hasher().rehash(*self.entries.seed(id))
    }

    /// The key of an entry, on its way to another table.
    pub(crate) fn key(&self, entry: &Entry<H::Term, C::Value>) -> Parcel<H> {
        self.keys.parcel(entry.key_segment, entry.key)
    }

    /// Adds an entry for a new key, under the next id.
    #[inline]
    pub(crate) fn insert(&mut self, hash: Hash, key: &Parcel<H>, value: C::Value, extra: C::Extra) {
        let id = self.entries.next_id();
        if id == 0 {
            self.since.get_or_insert_with(Instant::now);
        }
        let (key, unowned) = self.keys.store(key);
        let key_segment = self.keys.own(unowned, id);
        if self.entries.insert(Entry { key, value, key_segment }, hash.seed()) {
            self.owe();
        }
        self.entries.set_extra(id, extra);
        if let Some(marks) = &mut self.marks {
            marks.occupy(id);
        }
        self.index.insert(hash, id, &EntrySeeds::<H, C>(&self.entries));
    }

    /// Lets the writer help the reclaimer, if it is behind, after the lock.
    #[cold]
    fn owe(&mut self) {
        if is_behind() {
            self.garbage.push(Garbage::Debt);
        }
    }

    /// Removes the entry of `key`; `false` for a missing key.
    pub fn delete(&mut self, hash: Hash, key: H::Term) -> bool {
        C::settle(self);
        let Table { index, entries, .. } = self;
        let is_key = |id| entries.get(id).is_some_and(|entry| entry.key.is_identical(key));
        let Some(id) = index.remove(hash, is_key) else { return false };
        let entry = self.entries.remove(id);
        self.deleted += 1;
        if let Some(marks) = &mut self.marks {
            marks.vacate(id);
        }
        if self.has_failed() {
            self.count_replaced(C::attempts(entry.value, self.entries.extra(id)));
        }
        self.keys.release(entry.key_segment, entry.key, &mut self.garbage);
        C::removed(self, entry.value);
        self.clean_keys();
        true
    }

    /// Counts a write to an existing key.
    #[inline]
    pub(crate) fn count_merged(&mut self) {
        self.merged += 1;
    }

    /// Counts that a write replaces or deletes an entry with these attempts. Only needed if entries
    /// [failed](Store::has_failed).
    pub(crate) fn count_replaced(&mut self, attempts: u32) {
        self.retried -= u32::from(attempts > 0);
    }

    /// Counts a returned entry with a new key.
    pub(crate) fn count_taken_back(&mut self, flushed: &Self, attempts: u32) {
        self.taken_back += 1;
        self.count_age(flushed, 0, attempts);
    }

    /// Counts an entry of a journal, whose key had an entry with the `old` attempts.
    pub(crate) fn count_restored(&mut self, old: Option<u32>, new: u32) {
        self.taken_back += 1;
        self.merged += usize::from(old.is_some());
        self.retried += u32::from(new > 0);
        self.retried -= u32::from(old.is_some_and(|old| old > 0));
    }

    /// Counts a returned entry that joined another one.
    pub(crate) fn count_joined(&mut self, flushed: &Self, old: u32, new: u32) {
        self.merged += 1;
        self.taken_back += 1;
        self.count_age(flushed, old, new);
    }

    /// Counts that an entry from an earlier store changes the attempts of an entry here.
    pub(crate) fn count_age(&mut self, earlier: &Self, old: u32, new: u32) {
        self.retried += u32::from(new > 0);
        self.retried -= u32::from(old > 0);
        self.inherit_age(earlier);
    }

    /// Does a step of the evacuation of keys, if one is due.
    #[inline]
    fn clean_keys(&mut self) {
        let Some(mut evacuation) = self.keys.take_sparse() else { return };
        let segment = evacuation.segment;
        while let Some(owner) = evacuation.next_owner() {
            let Some(entry) = self.entries.get_mut(owner).filter(|entry| entry.key_segment == segment) else {
                continue;
            };
            let ([key], unowned) = self.keys.copy([entry.key]);
            let old_key = std::mem::replace(&mut entry.key, key);
            entry.key_segment = self.keys.own(unowned, owner);
            self.keys.release(segment, old_key, &mut self.garbage);
            evacuation.moved();
        }
        self.keys.evacuated(evacuation, &mut self.garbage);
    }
}

impl<H: Heap, C: Contents<H>> Store for Table<H, C> {
    type Record = C::Record;

    type Term = H::Term;

    const KEEPS_ORDER: bool = false;

    const ADDS_UP: bool = C::ADDS_UP;

    type Garbage = Garbage<H>;

    type Saved = SavedEntry<H>;

    const LEAST_PART: usize = H::LEAST_PART;

    fn new(hasher: &Hasher) -> Self {
        Self::empty(hasher, C::Head::default())
    }

    fn successor(&self) -> Self {
        let marks = self.marks.as_ref().map(|marks| Box::new(marks.successor()));
        Table { marks, ..Self::empty(self.index.hasher(), C::next_head(self.head)) }
    }

    fn settle(&mut self) {
        C::settle(self);
    }

    fn len(&self) -> usize {
        self.entries.len()
    }

    fn end(&self) -> usize {
        self.entries.end()
    }

    fn since(&self) -> Option<Instant> {
        self.since
    }

    fn last_stamp(&self) -> i64 {
        C::last_stamp(self.head)
    }

    fn inherit_age(&mut self, earlier: &Self) {
        self.since = [self.since, earlier.since].into_iter().flatten().min();
    }

    fn writes(&self) -> Writes {
        let Table { merged: coalesced, deleted, taken_back, .. } = *self;
        let written = self.len() + deleted + coalesced - taken_back as usize;
        Writes { written, coalesced, stale: self.contents.stale(), deleted }
    }

    fn retried(&self) -> usize {
        self.retried as usize
    }

    fn bytes(&self) -> usize {
        self.index.bytes() + self.entries.bytes() + self.keys.bytes() + self.contents.bytes()
    }

    fn has_large(&self) -> bool {
        self.keys.had_large() || self.contents.has_large()
    }

    #[inline]
    fn record(&self, id: EntryId) -> Option<C::Record> {
        let &Entry { key, key_segment, value } = self.entries.get(id)?;
        Some(C::record(key_segment.resident(key), value, self.entries.extra(id)))
    }

    fn term(&self, id: EntryId) -> Option<H::Term> {
        self.entries.get(id).map(|entry| entry.key)
    }

    #[inline]
    fn has_failed(&self) -> bool {
        self.retried > 0
    }

    fn attempts(&self, id: EntryId) -> u32 {
        self.entries.get(id).map_or(0, |entry| C::attempts(entry.value, self.entries.extra(id)))
    }

    fn supersedes(&self, flushed: &Self, id: EntryId) -> bool {
        !C::ADDS_UP && flushed.entries.get(id).is_some_and(|entry| self.find(flushed.hash(id), entry.key).is_some())
    }

    fn overrides(&self, flushed: &Self, id: EntryId) -> bool {
        let is_outdated = |entry: &Entry<H::Term, C::Value>| {
            let own = self.find(flushed.hash(id), entry.key)?;
            Some(C::overrides(self.entries.extra(own), flushed.entries.extra(id)))
        };
        !C::ADDS_UP && flushed.entries.get(id).and_then(is_outdated) == Some(true)
    }

    fn take_back(&mut self, flushed: &Self, id: EntryId, attempts: u32) -> TakenBack {
        C::take_back(self, flushed, id, attempts)
    }

    fn take_in(&mut self, evicted: &Self, id: EntryId, attempts: u32) -> TakenBack {
        C::take_in(self, evicted, id, attempts)
    }

    fn release(&mut self, ids: Range<EntryId>, keeps: impl Fn(EntryId) -> bool, garbage: &mut Vec<Garbage<H>>) {
        let end = ids.end;
        for id in ids.filter(|&id| !keeps(id)) {
            if let Some(entry) = self.entries.free(id) {
                self.keys.free(entry.key_segment, garbage);
                C::freed(self, entry.value, garbage);
            }
        }
        self.entries.free_chunk(end);
    }

    fn set_journaled(&mut self, generation: Option<u64>) {
        self.marks = generation.map(|generation| Box::new(Marks::new(generation)));
    }

    fn generation(&self) -> Option<u64> {
        self.marks.as_ref().map(|marks| marks.generation())
    }

    fn unsaved(&self) -> usize {
        self.marks.as_ref().map_or(0, |marks| marks.count())
    }

    fn unsave(&mut self) {
        if let Some(marks) = &mut self.marks {
            marks.mark_all(self.entries.end());
        }
    }

    fn save(
        &mut self,
        from: EntryId,
        most: usize,
        mut each: impl FnMut(EntryId, Option<SavedEntry<H>>),
    ) -> (Option<EntryId>, Option<Pin>) {
        // A hot sum is beside its entry, which has no mark then.
        C::settle(self);
        let Some(marks) = &self.marks else { return (None, None) };
        let mut next = marks.next(from);
        let pin = next.map(|_| marks.pin().clone());
        pin.iter().for_each(Pin::set);
        for _ in 0..most {
            let Some(id) = next else { break };
            each(id, self.saved(id));
            next = self.marks.as_mut().and_then(|marks| {
                marks.unmark(id);
                marks.next(id)
            });
        }
        (next, pin)
    }

    fn saved(&self, id: EntryId) -> Option<SavedEntry<H>> {
        let entry = self.entries.get(id)?;
        Some(SavedEntry { attempts: self.attempts(id), saved: C::saved(self, id, entry) })
    }

    fn is_unsaved(&self, id: EntryId) -> bool {
        self.marks.as_ref().is_some_and(|marks| marks.next(id) == Some(id))
    }

    fn deleted(&self, from: EntryId) -> Option<EntryId> {
        self.marks.as_ref()?.next_gone(from)
    }

    fn restore(&mut self, hash: Hash, SavedEntry { attempts, saved }: &SavedEntry<H>) {
        C::restore(self, hash, saved, *attempts);
    }

    #[inline]
    fn is_pinned(&self) -> bool {
        self.marks.as_ref().is_some_and(|marks| marks.pin().is_set())
    }

    fn take_apart(&mut self) -> bool {
        C::take_apart(self) || self.keys.take_apart() || self.index.take_apart() || self.entries.take_apart()
    }
}

/// The seeds in the entries.
struct EntrySeeds<'e, H: Heap, C: Contents<H>>(&'e Entries<H::Term, C::Value, C::Extra>);

impl<H: Heap, C: Contents<H>> Seeds for EntrySeeds<'_, H, C> {
    #[inline]
    fn seed(&self, id: EntryId) -> u32 {
        *self.0.seed(id)
    }

    #[inline]
    fn prefetch(&self, id: EntryId) {
        H::prefetch(self.0.seed(id));
    }
}
