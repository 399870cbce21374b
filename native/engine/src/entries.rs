//! The entries of a generation, in chunks of a fixed size: growing moves no entry, so it never takes long.
//!
//! Ids follow the order of insertion, so entries lie in memory in the order of their copies; a new entry takes the id
//! of a deleted one, if there is one. A chunk has histories only once one of its entries has a version: entries without
//! one take half the memory, and half the cache.

use crate::ids::{EntryId, SegmentId};
use crate::term::{Heap, Term, Version};

/// No entry.
const NONE: EntryId = EntryId::MAX;

/// Entries in a chunk: 24 kB, which the allocator hands out without asking the system each time.
const CHUNK: usize = 1024;

/// A key with its value.
#[derive(Clone, Copy, Debug)]
pub struct Entry<T> {
    /// The key.
    pub key: T,
    /// The value.
    pub value: T,
    /// The segment of the key; `VACANT` if the entry was deleted.
    pub key_segment: SegmentId,
    /// The segment of the value, and of the version if that is a term.
    pub value_segment: SegmentId,
}

/// The version of an entry's value, how often it was replaced, and how often the processor has failed with it. The
/// version's variants are those of [`Version`], since a field of that type would take more room.
#[derive(Clone, Copy, Debug)]
pub enum History<T> {
    /// The version is a term below the range of `i64`, in the entry's `value_segment`.
    Below(T, Counts),
    /// The version is an integer in the range of `i64`.
    Int(i64, Counts),
    /// The version is a term above the range of `i64`, in the entry's `value_segment`.
    Above(T, Counts),
}

/// What is counted of an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(Rust, packed(4))]
pub struct Counts {
    /// How often `put_newer` has replaced the value.
    pub updates: u64,
    /// How often the processor has failed with the entry, with [`TAKEN_BACK`] if it is not there by a new write.
    attempts: u32,
}

/// The mark of an entry that was taken back. It stays if the entry is replaced.
const TAKEN_BACK: u32 = 1 << 31;

impl Counts {
    /// Those of an entry that a write has made or replaced.
    #[inline]
    pub fn of_updates(updates: u64) -> Self {
        Counts { updates, attempts: 0 }
    }

    /// Those of an entry that is taken back.
    pub fn taken_back(updates: u64, attempts: u32) -> Self {
        Counts { updates, attempts: attempts.min(TAKEN_BACK - 1) | TAKEN_BACK }
    }

    /// How often the processor has failed with the entry.
    #[inline]
    pub fn attempts(self) -> u32 {
        self.attempts & !TAKEN_BACK
    }

    /// Whether the entry was taken back, and only replaced since.
    #[inline]
    pub fn is_taken_back(self) -> bool {
        self.attempts & TAKEN_BACK != 0
    }

    /// These of an entry that replaces one with the `old` ones.
    #[inline]
    pub fn after(self, old: Self) -> Self {
        Counts { attempts: self.attempts | old.attempts & TAKEN_BACK, ..self }
    }
}

impl<T: Term> History<T> {
    /// The history of an entry without a version.
    pub const UNVERSIONED: Self = History::Int(0, Counts { updates: 0, attempts: 0 });

    /// A history.
    #[inline]
    pub fn new(version: Version<T>, counts: Counts) -> Self {
        match version {
            Version::Below(version) => History::Below(version, counts),
            Version::Int(version) => History::Int(version, counts),
            Version::Above(version) => History::Above(version, counts),
        }
    }

    /// The version.
    #[inline]
    pub fn version(self) -> Version<T> {
        match self {
            History::Below(version, _) => Version::Below(version),
            History::Int(version, _) => Version::Int(version),
            History::Above(version, _) => Version::Above(version),
        }
    }

    /// What is counted.
    #[inline]
    pub fn counts(self) -> Counts {
        match self {
            History::Below(_, counts) | History::Int(_, counts) | History::Above(_, counts) => counts,
        }
    }

    /// Whether this is [`UNVERSIONED`](Self::UNVERSIONED).
    #[inline]
    fn is_unversioned(self) -> bool {
        matches!(self, History::Int(0, Counts { updates: 0, attempts: 0 }))
    }
}

/// What readers get of an entry.
#[derive(Clone, Copy, Debug)]
pub struct Record<T> {
    /// The key.
    pub key: T,
    /// The value.
    pub value: T,
    /// The version, 0 without one.
    pub version: Version<T>,
    /// How often `put_newer` has replaced the value.
    pub updates: u64,
}

/// A run of entries. Each entry has the same slot in all three lists.
struct Chunk<T> {
    /// The entries, deleted ones marked.
    entries: Vec<Entry<T>>,
    /// The seed of each key's hash, read only when the index grows. A deleted entry has the next vacant id here.
    seeds: Vec<u32>,
    /// The histories; those that are missing are `UNVERSIONED`.
    histories: Vec<History<T>>,
}

/// Entries by their id.
pub struct Entries<T> {
    /// All chunks but the last are full.
    chunks: Vec<Chunk<T>>,
    /// The first vacant id, or `NONE`. The others are linked through `seeds`: no list grows, so none has to be moved.
    vacant: EntryId,
    /// How many ids are vacant.
    vacancies: usize,
    /// One above the highest id.
    end: usize,
    /// The room for histories in all chunks.
    history_room: usize,
}

/// The chunk of an entry, and its slot in there.
#[inline]
fn locate(id: EntryId) -> (usize, usize) {
    (id as usize / CHUNK, id as usize % CHUNK)
}

impl<T: Term> Entries<T> {
    /// No entries; allocates nothing.
    pub fn new() -> Self {
        Entries { chunks: Vec::new(), vacant: NONE, vacancies: 0, end: 0, history_room: 0 }
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.end - self.vacancies
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One above the highest id that was ever given out.
    pub fn end(&self) -> usize {
        self.end
    }

    /// How many bytes the entries take, without their terms.
    pub fn bytes(&self) -> usize {
        let entry = size_of::<Entry<T>>() + size_of::<u32>();
        // Only the first chunk may be small.
        let room = match self.end {
            0 => 0,
            1..=CHUNK => self.end.next_power_of_two(),
            _ => self.chunks.len() * CHUNK,
        };
        room * entry + self.history_room * size_of::<History<T>>()
    }

    /// The id that the next inserted entry gets.
    #[inline]
    pub fn next_id(&self) -> EntryId {
        if self.vacant != NONE {
            return self.vacant;
        }
        EntryId::try_from(self.end).ok().filter(|&id| id != NONE).expect("fewer than 2^32 entries")
    }

    /// Adds an entry without a version, under `next_id`, with the seed of its key's hash.
    #[inline]
    pub fn insert(&mut self, entry: Entry<T>, seed: u32) {
        if self.vacant != NONE {
            let id = self.vacant;
            let (chunk, slot) = locate(id);
            let chunk = &mut self.chunks[chunk];
            chunk.entries[slot] = entry;
            self.vacant = std::mem::replace(&mut chunk.seeds[slot], seed);
            self.vacancies -= 1;
            self.set_history(id, History::UNVERSIONED);
            return;
        }
        if self.end % CHUNK == 0 {
            // The first chunk may stay small, the others are likely to fill.
            let capacity = if self.end == 0 { 4 } else { CHUNK };
            self.chunks.push(Chunk {
                entries: Vec::with_capacity(capacity),
                seeds: Vec::with_capacity(capacity),
                histories: Vec::new(),
            });
        }
        let chunk = &mut self.chunks[self.end / CHUNK];
        chunk.entries.push(entry);
        chunk.seeds.push(seed);
        self.end += 1;
    }

    /// Takes out the entry `id`, which must be there.
    pub fn remove(&mut self, id: EntryId) -> Entry<T> {
        let (chunk, slot) = locate(id);
        let chunk = &mut self.chunks[chunk];
        let vacated = &mut chunk.entries[slot];
        let entry = *vacated;
        debug_assert!(entry.key_segment != SegmentId::VACANT, "a removed entry is there");
        vacated.key_segment = SegmentId::VACANT;
        vacated.value_segment = SegmentId::VACANT;
        chunk.seeds[slot] = std::mem::replace(&mut self.vacant, id);
        self.vacancies += 1;
        entry
    }

    /// The entry `id`; `None` if it was deleted or there is no such id.
    #[inline]
    pub fn get(&self, id: EntryId) -> Option<&Entry<T>> {
        let (chunk, slot) = locate(id);
        let entry = self.chunks.get(chunk)?.entries.get(slot)?;
        (entry.key_segment != SegmentId::VACANT).then_some(entry)
    }

    /// The entry `id`, to be changed; `None` as in [`get`](Self::get).
    #[inline]
    pub fn get_mut(&mut self, id: EntryId) -> Option<&mut Entry<T>> {
        let (chunk, slot) = locate(id);
        let entry = self.chunks.get_mut(chunk)?.entries.get_mut(slot)?;
        (entry.key_segment != SegmentId::VACANT).then_some(entry)
    }

    /// Prefetches the entries after `id`. Keys are often written again in the same order, and several shards make more
    /// streams than a processor follows by itself.
    #[inline]
    pub fn prefetch_following<H: Heap<Term = T>>(&self, id: EntryId) {
        let (chunk, slot) = locate(id);
        let entries = &self.chunks[chunk].entries;
        // Two cache lines ahead.
        if let Some(entry) = entries.get(slot + 5) {
            H::prefetch(entry);
        }
        // An earlier call has prefetched this entry, so reading it does not wait.
        if let Some(entry) = entries.get(slot + 2) {
            H::prefetch_term(entry.key);
        }
    }

    /// The seed of the hash of the key of entry `id`, which must be there.
    #[inline]
    pub fn seed(&self, id: EntryId) -> &u32 {
        let (chunk, slot) = locate(id);
        &self.chunks[chunk].seeds[slot]
    }

    /// The history of entry `id`, which must be there.
    #[inline]
    pub fn history(&self, id: EntryId) -> History<T> {
        let (chunk, slot) = locate(id);
        self.chunks[chunk].histories.get(slot).copied().unwrap_or(History::UNVERSIONED)
    }

    /// Changes the history of entry `id`, which must be there.
    #[inline]
    pub fn set_history(&mut self, id: EntryId, history: History<T>) {
        let (chunk, slot) = locate(id);
        let histories = &mut self.chunks[chunk].histories;
        if slot >= histories.len() {
            if history.is_unversioned() {
                return;
            }
            let length = if chunk > 0 { CHUNK } else { (slot + 1).next_power_of_two() };
            self.history_room += length - histories.len();
            histories.resize(length, History::UNVERSIONED);
        }
        histories[slot] = history;
    }
}

impl<T: Term> Default for Entries<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_takes_24_bytes_and_its_history_as_many() {
        assert_eq!(size_of::<Entry<usize>>(), 24);
        assert_eq!(size_of::<History<usize>>(), 24);
    }
}
