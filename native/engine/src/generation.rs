//! A generation: what one partition has taken in since its last hand-over.
//!
//! A map from keys to values with their version and count of updates. It is written under the partition's lock; once
//! retired it is frozen, and read from any thread without one.
//!
//! Invariant: `index` holds exactly the entries of `entries`, each under the hash of its key; the segments that an entry
//! names count it as one live copy.

use crate::arena::{Arena, SegmentId};
use crate::entries::{Entries, Entry, EntryId, History, Record};
use crate::index::{Hash, Hasher, Index};
use crate::term::{Heap, Term, Version};

/// See the module's documentation.
pub struct Generation<H: Heap> {
    /// From a key's hash to its entry.
    index: Index,
    /// The entries, in the order of their insertion.
    entries: Entries<H::Term>,
    /// The copies of the keys: made once for each entry.
    keys: Arena<H>,
    /// The copies of values and of versions beyond 64 bits.
    values: Arena<H>,
}

impl<H: Heap> Generation<H> {
    /// An empty generation for hashes made by `hasher`; allocates nothing.
    pub fn new(hasher: Hasher) -> Self {
        Generation { index: Index::new(hasher), entries: Entries::new(), keys: Arena::new(), values: Arena::new() }
    }

    /// An empty generation for the same hashes.
    pub fn successor(&self) -> Self {
        Generation::new(self.index.hasher().clone())
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The numbers of all entries are below this one.
    pub fn end(&self) -> usize {
        self.entries.places()
    }

    /// What is stored with this number, unless it was deleted.
    #[inline]
    pub fn record(&self, id: EntryId) -> Option<Record<H::Term>> {
        let &Entry { key, value, .. } = self.entries.get(id)?;
        let History { version, updates } = self.entries.history(id);
        Some(Record { key, value, version, updates })
    }

    /// The value of `key`.
    #[inline]
    pub fn get(&self, hash: Hash, key: H::Term) -> Option<H::Term> {
        let id = self.find(hash, key)?;
        self.entries.get(id).map(|entry| entry.value)
    }

    /// Stores `value` for `key`, whatever is there.
    #[inline]
    pub fn put(&mut self, hash: Hash, key: H::Term, value: H::Term) {
        match self.find(hash, key) {
            Some(id) => self.replace(id, value, History::UNVERSIONED),
            None => self.insert(hash, key, value, History::UNVERSIONED),
        }
    }

    /// Stores `value` for `key`, unless there is an entry whose version is as high.
    #[inline]
    pub fn put_newer(&mut self, hash: Hash, key: H::Term, value: H::Term, version: Version<H::Term>) {
        match self.find(hash, key) {
            None => self.insert(hash, key, value, History { version, updates: 0 }),
            Some(id) => {
                let old = self.entries.history(id);
                if version.is_newer_than(old.version) {
                    self.replace(id, value, History { version, updates: old.updates + 1 });
                }
            }
        }
    }

    /// Takes out the entry of `key`, if there is one.
    pub fn delete(&mut self, hash: Hash, key: H::Term) {
        let Generation { index, entries, .. } = self;
        let found = index.remove(hash, |id| entries.get(id).is_some_and(|entry| entry.key.is_identical(key)));
        if let Some(id) = found {
            let entry = self.entries.remove(id);
            self.keys.release(entry.key_segment);
            self.values.release(entry.value_segment);
            self.clean_keys();
            self.clean_values();
        }
    }

    /// The number of the entry of `key`.
    #[inline]
    fn find(&self, hash: Hash, key: H::Term) -> Option<EntryId> {
        self.index.find(hash, |id| self.entries.get(id).is_some_and(|entry| entry.key.is_identical(key)))
    }

    /// Adds an entry for a key that has none.
    #[inline]
    fn insert(&mut self, hash: Hash, key: H::Term, value: H::Term, history: History<H::Term>) {
        let id = self.entries.next_id();
        let ([key], key_segment) = self.keys.store(id, [key]);
        let (value, version, value_segment) = store_value(&mut self.values, id, value, history.version);
        self.entries.insert(Entry { key, value, key_segment, value_segment }, hash.seed());
        self.entries.set_history(id, History { version, ..history });
        let entries = &self.entries;
        self.index.insert(hash, id, |other| entries.seed(other));
    }

    /// Replaces value and history of an entry.
    #[inline]
    fn replace(&mut self, id: EntryId, value: H::Term, history: History<H::Term>) {
        let (value, version, value_segment) = store_value(&mut self.values, id, value, history.version);
        let entry = self.entries.get_mut(id).expect("a replaced entry is there");
        entry.value = value;
        let old_segment = std::mem::replace(&mut entry.value_segment, value_segment);
        self.entries.set_history(id, History { version, ..history });
        self.values.release(old_segment);
        self.clean_values();
    }

    /// Evacuates one sparse segment of values, where there is one.
    #[inline]
    fn clean_values(&mut self) {
        if let Some((segment, owners)) = self.values.take_sparse() {
            self.evacuate_values(segment, owners);
        }
    }

    /// Moves the live values of a segment to the open one.
    fn evacuate_values(&mut self, segment: SegmentId, owners: Vec<EntryId>) {
        for &owner in &owners {
            let Some(entry) = self.entries.get_mut(owner).filter(|entry| entry.value_segment == segment) else {
                continue;
            };
            let value = entry.value;
            let history = self.entries.history(owner);
            let (value, version, new_segment) = store_value(&mut self.values, owner, value, history.version);
            self.entries.set_history(owner, History { version, ..history });
            if let Some(entry) = self.entries.get_mut(owner) {
                (entry.value, entry.value_segment) = (value, new_segment);
            }
            self.values.release(segment);
        }
        self.values.vacate(segment, owners);
    }

    /// Evacuates one sparse segment of keys, where there is one.
    #[inline]
    fn clean_keys(&mut self) {
        let Some((segment, owners)) = self.keys.take_sparse() else { return };
        for &owner in &owners {
            let Some(entry) = self.entries.get_mut(owner).filter(|entry| entry.key_segment == segment) else {
                continue;
            };
            let ([key], key_segment) = self.keys.store(owner, [entry.key]);
            (entry.key, entry.key_segment) = (key, key_segment);
            self.keys.release(segment);
        }
        self.keys.vacate(segment, owners);
    }
}

/// Copies a value and its version, which live and die together.
#[inline]
fn store_value<H: Heap>(
    arena: &mut Arena<H>,
    owner: EntryId,
    value: H::Term,
    version: Version<H::Term>,
) -> (H::Term, Version<H::Term>, SegmentId) {
    match version {
        Version::Int(_) => {
            let ([value], segment) = arena.store(owner, [value]);
            (value, version, segment)
        }
        Version::Below(big) => {
            let ([value, big], segment) = arena.store(owner, [value, big]);
            (value, Version::Below(big), segment)
        }
        Version::Above(big) => {
            let ([value, big], segment) = arena.store(owner, [value, big]);
            (value, Version::Above(big), segment)
        }
    }
}
