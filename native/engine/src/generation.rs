//! A generation: the map from keys to values that one shard has taken in since its last flush.
//!
//! Invariants: `index` holds exactly the entries of `entries`, each under the hash of its key. The segments that an
//! entry names count it as one live copy.

use std::sync::Arc;
use std::time::Instant;

use crate::arena::{Arena, Evacuation, Garbage, Unowned};
use crate::entries::{Counts, Entries, Entry, History, Record};
use crate::ids::EntryId;
use crate::index::{Hash, Hasher, Index, Seeds};
use crate::parcel::Parcel;
use crate::store::Store;
use crate::term::{Heap, Term, Version};
use crate::totals::Writes;

/// See the module's documentation.
pub struct Generation<H: Heap> {
    /// From the hash of a key to the id of its entry.
    index: Index,
    /// The entries.
    entries: Entries<H::Term>,
    /// Where the keys live.
    keys: Arena<H>,
    /// Where the values live, and the versions beyond 64 bits.
    values: Arena<H>,
    /// How many entries were replaced.
    replaced: usize,
    /// How many writes were stale.
    stale: usize,
    /// How many entries were deleted.
    deleted: usize,
    /// How many entries were taken back.
    taken_back: usize,
    /// How many of the present entries were taken back, and only replaced since.
    returned: usize,
    /// How many of the present entries have failed before.
    retried: usize,
    /// When the first entry was written, or the first of those that were taken back.
    since: Option<Instant>,
    /// The heaps given up since the last [`Generation::take_garbage`].
    garbage: Vec<Garbage<H>>,
}

/// The result of [`Generation::put_newer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// The key was new.
    New,
    /// The value has replaced another one.
    Replaced,
    /// The version there is as high.
    Stale,
}

/// The result of [`Generation::get`].
pub struct Found<H: Heap> {
    /// The value.
    pub value: H::Term,
    /// The value's own heap, if it has one, to be held while the value is used.
    pub heap: Option<Arc<H>>,
}

impl<H: Heap> Generation<H> {
    /// The value of `key`.
    #[inline]
    pub fn get(&self, hash: Hash, key: H::Term) -> Option<Found<H>> {
        self.value(self.find(hash, key)?)
    }

    /// Whether operations have given up heaps.
    #[inline]
    pub fn has_garbage(&self) -> bool {
        !self.garbage.is_empty()
    }

    /// Takes out the heaps that operations have given up. The caller drops them without the lock.
    #[cold]
    pub fn take_garbage(&mut self) -> Vec<Garbage<H>> {
        std::mem::take(&mut self.garbage)
    }

    /// Prefetches the line of the index that an operation with this hash reads.
    #[inline]
    pub fn prefetch(&self, hash: Hash) {
        self.index.prefetch::<H>(hash);
    }

    /// Stores `value` for `key`, whatever is there; `true` if the key is new.
    #[inline(always)]
    pub fn put(&mut self, hash: Hash, key: &Parcel<H>, value: &Parcel<H>) -> bool {
        // The value is stored in any case, so it is copied while the index is loading.
        self.prefetch(hash);
        let copy = store_value(&mut self.values, value, Version::Int(0));
        match self.find(hash, key.term) {
            Some(id) => {
                self.replace(id, copy, Counts::default());
                false
            }
            None => {
                self.insert(hash, key, copy, Counts::default());
                true
            }
        }
    }

    /// Stores `value` for `key` if the key is new or `version` is greater than its version. For a new key it must be greater than `in_flight`, if that is a version. A version beyond 64 bits lives in the heap of
    /// `value` if that is packed.
    #[inline]
    pub fn put_newer(
        &mut self,
        hash: Hash,
        key: &Parcel<H>,
        value: &Parcel<H>,
        version: Version<H::Term>,
        in_flight: impl FnOnce() -> Option<Version<H::Term>>,
    ) -> Put {
        match self.find(hash, key.term) {
            None => {
                if in_flight().is_some_and(|old| !version.is_newer_than(old)) {
                    self.stale += 1;
                    return Put::Stale;
                }
                let copy = store_value(&mut self.values, value, version);
                self.insert(hash, key, copy, Counts::default());
                Put::New
            }
            Some(id) => {
                let old = self.entries.history(id);
                if !version.is_newer_than(old.version()) {
                    self.stale += 1;
                    return Put::Stale;
                }
                let copy = store_value(&mut self.values, value, version);
                let updates = old.counts().updates + 1;
                self.replace(id, copy, Counts::of_updates(updates));
                Put::Replaced
            }
        }
    }

    /// Stores `value` for `key` if the key is new; `false` if it is not.
    pub fn put_new(&mut self, hash: Hash, key: &Parcel<H>, value: &Parcel<H>) -> bool {
        if self.find(hash, key.term).is_some() {
            return false;
        }
        let copy = store_value(&mut self.values, value, Version::Int(0));
        self.insert(hash, key, copy, Counts::default());
        true
    }

    /// The version of an entry, which must be there.
    pub(crate) fn version(&self, id: EntryId) -> Version<H::Term> {
        self.entries.history(id).version()
    }

    /// The value of an entry.
    #[inline]
    pub(crate) fn value(&self, id: EntryId) -> Option<Found<H>> {
        let entry = self.entries.get(id)?;
        Some(Found { value: entry.value, heap: self.values.own_heap(entry.value_segment).cloned() })
    }

    /// Takes out the entry of `key`, if there is one, and says whether it was taken back.
    pub fn delete(&mut self, hash: Hash, key: H::Term) -> Option<bool> {
        let Generation { index, entries, .. } = self;
        let found = index.remove(hash, |id| entries.get(id).is_some_and(|entry| entry.key.is_identical(key)));
        let mut was_taken_back = false;
        if let Some(id) = found {
            self.deleted += 1;
            if self.taken_back > 0 {
                let old = self.entries.history(id).counts();
                self.retried -= usize::from(old.attempts() > 0);
                was_taken_back = old.is_taken_back();
                self.returned -= usize::from(was_taken_back);
            }
            let entry = self.entries.remove(id);
            self.keys.release(entry.key_segment, entry.key, &mut self.garbage);
            self.values.release(entry.value_segment, entry.value, &mut self.garbage);
            self.clean_keys();
            self.clean_values();
        }
        found.map(|_id| was_taken_back)
    }

    /// The id of the entry of `key`.
    #[inline]
    pub(crate) fn find(&self, hash: Hash, key: H::Term) -> Option<EntryId> {
        let id = self.index.find(hash, |id| self.entries.get(id).is_some_and(|entry| entry.key.is_identical(key)))?;
        self.entries.prefetch_following::<H>(id);
        Some(id)
    }

    /// The hash of the key of an entry, which must be there.
    fn hash(&self, id: EntryId) -> Hash {
        self.index.hasher().rehash(*self.entries.seed(id))
    }

    /// Adds an entry for a key that has none.
    #[inline]
    fn insert(&mut self, hash: Hash, key: &Parcel<H>, copy: ValueCopy<H::Term>, counts: Counts) {
        let id = self.entries.next_id();
        if id == 0 {
            self.since.get_or_insert_with(Instant::now);
        }
        let (key, unowned) = self.keys.store(key);
        let key_segment = self.keys.own(unowned, id);
        let value_segment = self.values.own(copy.unowned, id);
        let entry = Entry { key, value: copy.value, key_segment, value_segment };
        self.entries.insert(entry, hash.seed());
        self.entries.set_history(id, History::new(copy.version, counts));
        self.index.insert(hash, id, &EntrySeeds::<H>(&self.entries));
    }

    /// Replaces the value and the history of an entry.
    #[inline]
    fn replace(&mut self, id: EntryId, copy: ValueCopy<H::Term>, counts: Counts) {
        self.replaced += 1;
        let mut counts = counts;
        if self.taken_back > 0 {
            let old = self.entries.history(id).counts();
            self.retried -= usize::from(old.attempts() > 0);
            counts = counts.after(old);
        }
        let segment = self.values.own(copy.unowned, id);
        let entry = self.entries.get_mut(id).expect("a replaced entry is there");
        let old_value = std::mem::replace(&mut entry.value, copy.value);
        let old_segment = std::mem::replace(&mut entry.value_segment, segment);
        self.entries.set_history(id, History::new(copy.version, counts));
        self.values.release(old_segment, old_value, &mut self.garbage);
        self.clean_values();
    }

    /// Does a step of the evacuation of values, if one is due.
    #[inline]
    fn clean_values(&mut self) {
        if let Some(evacuation) = self.values.take_sparse() {
            self.evacuate_values(evacuation);
        }
    }

    /// Moves live values to an open segment.
    fn evacuate_values(&mut self, mut evacuation: Evacuation) {
        let segment = evacuation.segment;
        while let Some(owner) = evacuation.next_owner() {
            let Some(entry) = self.entries.get(owner).filter(|entry| entry.value_segment == segment) else {
                continue;
            };
            let history = self.entries.history(owner);
            let old_value = entry.value;
            let copy = copy_value(&mut self.values, old_value, history.version());
            let new_segment = self.values.own(copy.unowned, owner);
            if let Some(entry) = self.entries.get_mut(owner) {
                (entry.value, entry.value_segment) = (copy.value, new_segment);
            }
            self.entries.set_history(owner, History::new(copy.version, history.counts()));
            self.values.release(segment, old_value, &mut self.garbage);
            evacuation.moved();
        }
        self.values.evacuated(evacuation, &mut self.garbage);
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

impl<H: Heap> Store for Generation<H> {
    type Record = Record<H::Term>;

    const KEEPS_ORDER: bool = false;

    fn new(hasher: &Hasher) -> Self {
        let index = Index::new(hasher.clone());
        Generation {
            index,
            entries: Entries::new(),
            keys: Arena::new(),
            values: Arena::new(),
            replaced: 0,
            stale: 0,
            deleted: 0,
            taken_back: 0,
            returned: 0,
            retried: 0,
            since: None,
            garbage: Vec::new(),
        }
    }

    fn successor(&self) -> Self {
        Generation::new(self.index.hasher())
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

    fn writes(&self) -> Writes {
        let Generation { replaced: coalesced, stale, deleted, taken_back, .. } = *self;
        Writes { written: self.len() + deleted + coalesced - taken_back, coalesced, stale, deleted }
    }

    fn returned(&self) -> usize {
        self.returned
    }

    fn retried(&self) -> usize {
        self.retried
    }

    fn bytes(&self) -> usize {
        self.index.bytes() + self.entries.bytes() + self.keys.bytes() + self.values.bytes()
    }

    fn has_large(&self) -> bool {
        self.keys.had_large() || self.values.had_large()
    }

    #[inline]
    fn record(&self, id: EntryId) -> Option<Record<H::Term>> {
        let &Entry { key, value, .. } = self.entries.get(id)?;
        let history = self.entries.history(id);
        Some(Record { key, value, version: history.version(), updates: history.counts().updates })
    }

    fn has_failed(&self) -> bool {
        self.taken_back > 0
    }

    fn attempts(&self, id: EntryId) -> u32 {
        self.entries.history(id).counts().attempts()
    }

    fn supersedes(&self, flushed: &Self, id: EntryId) -> bool {
        flushed.entries.get(id).is_some_and(|entry| self.find(flushed.hash(id), entry.key).is_some())
    }

    fn take_back(&mut self, flushed: &Self, id: EntryId, attempts: u32) -> bool {
        let Some(entry) = flushed.entries.get(id) else { return false };
        let hash = flushed.hash(id);
        if self.find(hash, entry.key).is_some() {
            return false;
        }
        let history = flushed.entries.history(id);
        let key = flushed.keys.parcel(entry.key_segment, entry.key);
        let value = flushed.values.parcel(entry.value_segment, entry.value);
        let copy = store_value(&mut self.values, &value, history.version());
        self.insert(hash, &key, copy, Counts::taken_back(history.counts().updates, attempts));
        self.taken_back += 1;
        self.returned += 1;
        self.retried += usize::from(attempts > 0);
        self.since = [self.since, flushed.since].into_iter().flatten().min();
        true
    }
}

/// The seeds in the entries.
struct EntrySeeds<'e, H: Heap>(&'e Entries<H::Term>);

impl<H: Heap> Seeds for EntrySeeds<'_, H> {
    #[inline]
    fn seed(&self, id: EntryId) -> u32 {
        *self.0.seed(id)
    }

    #[inline]
    fn prefetch(&self, id: EntryId) {
        H::prefetch(self.0.seed(id));
    }
}

/// The copy of a value and its version, without an owner.
struct ValueCopy<T> {
    /// The value.
    value: T,
    /// The version.
    version: Version<T>,
    /// Where both live.
    unowned: Unowned,
}

/// Stores a value and its version, which live and die together.
#[inline]
fn store_value<H: Heap>(arena: &mut Arena<H>, value: &Parcel<H>, version: Version<H::Term>) -> ValueCopy<H::Term> {
    match &value.heap {
        None => copy_value(arena, value.term, version),
        Some(heap) => ValueCopy { value: value.term, version, unowned: arena.keep(heap) },
    }
}

/// Copies a value and its version to a segment.
#[inline]
fn copy_value<H: Heap>(arena: &mut Arena<H>, value: H::Term, version: Version<H::Term>) -> ValueCopy<H::Term> {
    match version {
        Version::Int(_) => {
            let ([value], unowned) = arena.copy([value]);
            ValueCopy { value, version, unowned }
        }
        Version::Below(big) => {
            let ([value, big], unowned) = arena.copy([value, big]);
            ValueCopy { value, version: Version::Below(big), unowned }
        }
        Version::Above(big) => {
            let ([value, big], unowned) = arena.copy([value, big]);
            ValueCopy { value, version: Version::Above(big), unowned }
        }
    }
}
