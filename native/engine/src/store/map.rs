//! A generation: the values of one shard since its last flush, each under its key.
//!
//! Invariant: the segment that a value names counts it as one live copy.

mod absorb;

use super::entries::Entry;
use super::hash::Hash;
use super::history::{Counts, History};
use super::saved::Saved;
use super::store::{Store, TakenBack};
use super::table::{Contents, Table};
use crate::clock::Clock;
use crate::ids::{EntryId, SegmentId};
use crate::memory::arena::{Arena, Evacuation, Garbage, Unowned};
use crate::memory::parcel::{Kind, Parcel};
use crate::term::{Heap, Resident, Version};

/// See the module's documentation.
pub type Generation<H> = Table<H, Values<H>>;

/// The values of a generation.
pub struct Values<H: Heap> {
    /// Where they live, and the versions beyond 64 bits.
    arena: Arena<H>,
    /// The number of stale writes.
    stale: usize,
}

/// The versions that the clock gave to entries of a shard.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Stamps {
    /// The last one.
    last: i64,
    /// Fills the cache line.
    room: [u64; 2],
}

/// A value in an entry. Packed, so that the entry needs no padding.
#[derive(Clone, Copy, Debug)]
#[repr(Rust, packed(4))]
pub struct Value<T> {
    /// The value.
    term: T,
    /// Its segment, which also holds a version beyond 64 bits.
    segment: SegmentId,
}

/// An entry as readers get it.
#[derive(Clone, Copy, Debug)]
pub struct Record<T> {
    /// The key.
    pub key: Resident<T>,
    /// The value.
    pub value: Resident<T>,
    /// The version, 0 without one.
    pub version: Version<T>,
    /// The number of replacements by `put_newer`.
    pub updates: u64,
}

/// The result of [`Generation::put_newer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// The key was new.
    New,
    /// The value replaced another one.
    Replaced,
    /// The version is not newer.
    Stale,
    /// There is no room.
    Full,
}

impl<H: Heap> Generation<H> {
    /// The value of `key`.
    #[inline]
    pub fn get(&self, hash: Hash, key: H::Term) -> Option<Parcel<H>> {
        self.value(self.find(hash, key)?)
    }

    /// Stores `value` for `key` if `admits` finds room: it gets whether the key is new. Returns the
    /// same, or `None` without room.
    #[inline(always)]
    pub fn put(
        &mut self,
        hash: Hash,
        key: &Parcel<H>,
        value: &Parcel<H>,
        admits: impl FnOnce(bool) -> bool,
    ) -> Option<bool> {
        // The value is stored in almost any case, so it is copied while the index is loading.
        self.prefetch(hash);
        let copy = store_value(&mut self.contents.arena, value, Version::Int(0));
        let id = self.find(hash, key.term);
        if !admits(id.is_none()) {
            self.discard(copy);
            return None;
        }
        match id {
            Some(id) => {
                self.replace(id, copy, 0);
                Some(false)
            }
            None => {
                self.add(hash, key, copy, Counts::default());
                Some(true)
            }
        }
    }

    /// Abandons the copy of a value that finds no room.
    #[cold]
    fn discard(&mut self, copy: ValueCopy<H::Term>) {
        let Table { contents: Values { arena, .. }, entries, garbage, .. } = self;
        arena.discard(copy.unowned, entries.next_id(), copy.value, garbage);
    }

    /// Stores `value` for `key` if the key is new or `version` is greater than its version. For a
    /// new key `is_stale` returns whether the version in flight is as great. A version beyond 64
    /// bits lives in the heap of a packed `value`. `admits` gets whether the key is new, and returns
    /// whether there is room.
    #[inline]
    pub fn put_newer(
        &mut self,
        hash: Hash,
        key: &Parcel<H>,
        value: &Parcel<H>,
        version: Version<H::Term>,
        is_stale: impl FnOnce() -> bool,
        admits: impl FnOnce(bool) -> bool,
    ) -> Put {
        match self.find(hash, key.term) {
            None => {
                if is_stale() {
                    self.contents.stale += 1;
                    return Put::Stale;
                }
                if !admits(true) {
                    return Put::Full;
                }
                let copy = store_value(&mut self.contents.arena, value, version);
                self.add(hash, key, copy, Counts::default());
                Put::New
            }
            Some(id) => {
                let old = self.entries.extra(id);
                if !version.is_newer_than(old.version()) {
                    self.contents.stale += 1;
                    return Put::Stale;
                }
                if !admits(false) {
                    return Put::Full;
                }
                let copy = store_value(&mut self.contents.arena, value, version);
                let updates = old.counts().updates + 1;
                self.replace(id, copy, updates);
                Put::Replaced
            }
        }
    }

    /// The version for a write at `now`: greater than all that this shard stamped before.
    #[inline]
    pub(crate) fn stamp(&mut self, clock: &Clock, now: i64) -> Version<H::Term> {
        self.head.last = clock.stamp(now, self.head.last);
        Version::Int(self.head.last)
    }

    /// Stores `value` for `key` with a version that is most likely the greatest. `admits` gets whether
    /// the key is new, and returns whether there is room.
    pub(crate) fn put_stamped(
        &mut self,
        hash: Hash,
        key: &Parcel<H>,
        value: &Parcel<H>,
        version: Version<H::Term>,
        admits: impl FnOnce(bool) -> bool,
    ) -> Put {
        let copy = store_value(&mut self.contents.arena, value, version);
        let id = self.find(hash, key.term);
        let old = id.map(|id| self.entries.extra(id));
        if old.is_some_and(|old| !version.is_newer_than(old.version())) {
            self.contents.stale += 1;
            self.discard(copy);
            return Put::Stale;
        }
        if !admits(id.is_none()) {
            self.discard(copy);
            return Put::Full;
        }
        match id.zip(old) {
            Some((id, old)) => {
                self.replace(id, copy, old.counts().updates + 1);
                Put::Replaced
            }
            None => {
                self.add(hash, key, copy, Counts::default());
                Put::New
            }
        }
    }

    /// Stores `value` for `key` if the key is new; `false` if it is not.
    pub fn put_new(&mut self, hash: Hash, key: &Parcel<H>, value: &Parcel<H>, version: Version<H::Term>) -> bool {
        if self.find(hash, key.term).is_some() {
            return false;
        }
        let copy = store_value(&mut self.contents.arena, value, version);
        self.add(hash, key, copy, Counts::default());
        true
    }

    /// The version of an entry, which must be there.
    pub(crate) fn version(&self, id: EntryId) -> Version<H::Term> {
        self.entries.extra(id).version()
    }

    /// The value of an entry.
    #[inline]
    pub(crate) fn value(&self, id: EntryId) -> Option<Parcel<H>> {
        let Value { term, segment } = self.entries.get(id)?.value;
        Some(self.contents.arena.parcel(segment, term))
    }

    /// The value and the version of an entry. The heap of a large value also holds the version.
    pub(crate) fn versioned(&self, id: EntryId) -> Option<(Parcel<H>, Version<H::Term>)> {
        Some((self.value(id)?, self.version(id)))
    }

    /// Adds an entry for a new key.
    #[inline]
    fn add(&mut self, hash: Hash, key: &Parcel<H>, copy: ValueCopy<H::Term>, counts: Counts) {
        let segment = self.contents.arena.own(copy.unowned, self.entries.next_id());
        let value = Value { term: copy.value, segment };
        self.insert(hash, key, value, History::new(copy.version, counts));
    }

    /// Replaces the value and the history of an entry.
    #[inline]
    fn replace(&mut self, id: EntryId, copy: ValueCopy<H::Term>, updates: u64) {
        self.count_merged();
        if self.has_failed() {
            self.count_replaced(self.entries.extra(id).counts().attempts);
        }
        self.set(id, copy, Counts { updates, attempts: 0 });
    }

    /// Changes the value and the history of an entry.
    #[inline(always)]
    fn set(&mut self, id: EntryId, copy: ValueCopy<H::Term>, counts: Counts) {
        let segment = self.contents.arena.own(copy.unowned, id);
        let entry = self.entries.get_mut(id).expect("a replaced entry is there");
        let old = std::mem::replace(&mut entry.value, Value { term: copy.value, segment });
        self.entries.set_extra(id, History::new(copy.version, counts));
        self.mark(id);
        Values::removed(self, old);
    }

    /// Moves live values to an open segment.
    #[cold]
    fn evacuate_values(&mut self, mut evacuation: Evacuation) {
        let Table { entries, contents: Values { arena, .. }, garbage, .. } = self;
        let evacuated = evacuation.segment;
        while let Some(owner) = evacuation.next_owner() {
            let Some(Value { term: old, segment }) = entries.get(owner).map(|entry| entry.value) else { continue };
            if segment != evacuated {
                continue;
            }
            let history = entries.extra(owner);
            let copy = copy_value(arena, old, history.version());
            let segment = arena.own(copy.unowned, owner);
            if let Some(entry) = entries.get_mut(owner) {
                entry.value = Value { term: copy.value, segment };
            }
            entries.set_extra(owner, History::new(copy.version, history.counts()));
            arena.release(evacuated, old, garbage);
            evacuation.moved();
        }
        arena.evacuated(evacuation, garbage);
    }
}

impl<H: Heap> Contents<H> for Values<H> {
    type Value = Value<H::Term>;

    type Extra = History<H::Term>;

    type Record = Record<H::Term>;

    type Head = Stamps;

    const ADDS_UP: bool = false;

    fn next_head(head: Stamps) -> Stamps {
        head
    }

    fn last_stamp(head: Stamps) -> i64 {
        head.last
    }

    fn new() -> Self {
        Values { arena: Arena::new(), stale: 0 }
    }

    #[inline]
    fn record(key: Resident<H::Term>, value: Value<H::Term>, history: History<H::Term>) -> Record<H::Term> {
        let value = value.segment.resident(value.term);
        Record { key, value, version: history.version(), updates: history.counts().updates }
    }

    fn attempts(_value: Value<H::Term>, history: History<H::Term>) -> u32 {
        history.counts().attempts
    }

    #[inline]
    fn removed(table: &mut Generation<H>, value: Value<H::Term>) {
        if value.segment == SegmentId::NONE {
            return;
        }
        table.contents.arena.release(value.segment, value.term, &mut table.garbage);
        if let Some(evacuation) = table.contents.arena.take_sparse() {
            table.evacuate_values(evacuation);
        }
    }

    #[inline]
    fn freed(table: &mut Generation<H>, value: Value<H::Term>, garbage: &mut Vec<Garbage<H>>) {
        table.contents.arena.free(value.segment, garbage);
    }

    fn take_apart(table: &mut Generation<H>) -> bool {
        table.contents.arena.take_apart()
    }

    // A plain write has no version, and replaces any value.
    fn overrides(own: History<H::Term>, flushed: History<H::Term>) -> bool {
        matches!(own.version(), Version::Int(0)) || !flushed.version().is_newer_than(own.version())
    }

    fn take_back(table: &mut Generation<H>, flushed: &Generation<H>, id: EntryId, attempts: u32) -> TakenBack {
        let Some(entry) = flushed.entries.get(id) else { return TakenBack::Superseded };
        let hash = flushed.hash(id);
        if table.find(hash, entry.key).is_some() {
            return TakenBack::Superseded;
        }
        let history = flushed.entries.extra(id);
        let value = flushed.contents.arena.parcel(entry.value.segment, entry.value.term);
        let copy = store_value(&mut table.contents.arena, &value, history.version());
        table.add(hash, &flushed.key(entry), copy, Counts { attempts, ..history.counts() });
        table.count_taken_back(flushed, attempts);
        TakenBack::Added
    }

    fn take_in(table: &mut Generation<H>, evicted: &Generation<H>, id: EntryId, attempts: u32) -> TakenBack {
        let Some(entry) = evicted.entries.get(id) else { return TakenBack::Superseded };
        let Some(own) = table.find(evicted.hash(id), entry.key) else {
            return Self::take_back(table, evicted, id, attempts);
        };
        let (history, own_history) = (evicted.entries.extra(id), table.entries.extra(own));
        if !history.version().is_newer_than(own_history.version()) {
            return TakenBack::Superseded;
        }
        let value = evicted.contents.arena.parcel(entry.value.segment, entry.value.term);
        let copy = store_value(&mut table.contents.arena, &value, history.version());
        table.count_age(evicted, own_history.counts().attempts, attempts);
        table.set(own, copy, Counts { attempts, ..history.counts() });
        TakenBack::Replaced
    }

    fn saved(table: &Generation<H>, id: EntryId, entry: &Entry<H::Term, Value<H::Term>>) -> Saved<H> {
        let (Value { term, segment }, history) = (entry.value, table.entries.extra(id));
        let (key, value) = (table.key(entry), table.contents.arena.parcel(segment, term));
        Saved::Value { key, value, version: history.version(), updates: history.counts().updates }
    }

    fn restore(table: &mut Generation<H>, hash: Hash, saved: &Saved<H>, attempts: u32) {
        let Saved::Value { key, value, version, updates } = saved else { return };
        let (old, counts) = (table.find(hash, key.term), Counts { updates: *updates, attempts });
        let Some(old) = old else {
            let copy = store_value(&mut table.contents.arena, value, *version);
            table.add(hash, key, copy, counts);
            return table.count_restored(None, attempts);
        };
        let history = table.entries.extra(old);
        if version.is_newer_than(history.version()) {
            let copy = store_value(&mut table.contents.arena, value, *version);
            table.set(old, copy, counts);
            table.count_restored(Some(history.counts().attempts), attempts);
        }
    }

    fn stale(&self) -> usize {
        self.stale
    }

    fn bytes(&self) -> usize {
        self.arena.bytes()
    }

    fn has_large(&self) -> bool {
        self.arena.had_large()
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
    match (&value.kind, version) {
        (Kind::Large(heap), _) => ValueCopy { value: value.term, version, unowned: arena.keep(heap) },
        (Kind::Immediate, Version::Int(_)) => ValueCopy { value: value.term, version, unowned: Unowned::NOTHING },
        (Kind::Immediate | Kind::Small, _) => copy_value(arena, value.term, version),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_takes_24_bytes_and_its_history_as_many() {
        assert_eq!(size_of::<Entry<usize, Value<usize>>>(), 24);
        assert_eq!(size_of::<History<usize>>(), 24);
    }
}
