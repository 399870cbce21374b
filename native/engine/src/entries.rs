//! The entries of a generation, in chunks of a fixed size: growing never moves an entry, so it never takes long.
//!
//! Entries keep the order of insertion, which is the order in which their copies lie in memory; the place of a deleted
//! entry is taken by the next new one. Versions are kept beside the entries, and only in chunks that ever had one: an
//! entry written without takes half the memory, and half the cache.

use crate::ids::{EntryId, SegmentId};
use crate::term::{Heap, Term, Version};

/// The number of no entry.
const NONE: EntryId = EntryId::MAX;

/// Entries of a chunk: 24 kB, which the allocator hands out without asking the system each time.
const CHUNK: usize = 1024;

/// A key with what is stored for it.
#[derive(Clone, Copy, Debug)]
pub struct Entry<T> {
    /// The key, living in `key_segment`.
    pub key: T,
    /// The value, living in `value_segment`.
    pub value: T,
    /// The segment of the key arena that holds the key, or `NONE`; `VACANT` where the entry was deleted.
    pub key_segment: SegmentId,
    /// The segment of the value arena that holds the value, and the version where that is a term; or `NONE`.
    pub value_segment: SegmentId,
}

/// How an entry came to its value.
#[derive(Clone, Copy, Debug)]
pub struct History<T> {
    /// The version; where it is a term, that lives in the entry's `value_segment`.
    pub version: Version<T>,
    /// How often `put_newer` has replaced the value.
    pub updates: u64,
}

impl<T: Term> History<T> {
    /// Of an entry that was written without a version.
    pub const UNVERSIONED: Self = History { version: Version::Int(0), updates: 0 };
}

/// All that is stored for a key.
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

/// A run of entries.
struct Chunk<T> {
    /// The entries, deleted ones marked.
    entries: Vec<Entry<T>>,
    /// The seeds of their keys' hashes by the same place: read only when the index grows. For a deleted entry, the number of
    /// the one that was deleted before it and is still vacant, or `NONE`.
    seeds: Vec<u32>,
    /// Their histories by the same place, or nothing while all are `UNVERSIONED`.
    histories: Vec<History<T>>,
}

/// Entries by their number.
pub struct Entries<T> {
    /// All chunks but the last are full.
    chunks: Vec<Chunk<T>>,
    /// The entry that was deleted last, of those whose places are vacant; or `NONE`. The others hang on it, so that however
    /// many are deleted no list of them has to be moved when it grows.
    vacant: EntryId,
    /// How many are vacant.
    vacancies: usize,
    /// Places in all chunks.
    places: usize,
}

impl<T: Term> Entries<T> {
    /// No entries; allocates nothing.
    pub fn new() -> Self {
        Entries { chunks: Vec::new(), vacant: NONE, vacancies: 0, places: 0 }
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.places - self.vacancies
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many numbers have been given out: every entry's is below.
    pub fn places(&self) -> usize {
        self.places
    }

    /// The number that the next inserted entry will have.
    #[inline]
    pub fn next_id(&self) -> EntryId {
        if self.vacant != NONE {
            return self.vacant;
        }
        EntryId::try_from(self.places).ok().filter(|&id| id != NONE).expect("fewer than 2^32 entries")
    }

    /// Adds an entry, at `next_id`, unversioned, with the seed of its key's hash.
    #[inline]
    pub fn insert(&mut self, entry: Entry<T>, seed: u32) {
        if self.vacant != NONE {
            let id = self.vacant;
            let chunk = &mut self.chunks[id as usize / CHUNK];
            chunk.entries[id as usize % CHUNK] = entry;
            self.vacant = std::mem::replace(&mut chunk.seeds[id as usize % CHUNK], seed);
            self.vacancies -= 1;
            self.set_history(id, History::UNVERSIONED);
            return;
        }
        if self.places % CHUNK == 0 {
            // The first chunk grows with a small buffer, the others are known to fill.
            let capacity = if self.places == 0 { 4 } else { CHUNK };
            self.chunks.push(Chunk {
                entries: Vec::with_capacity(capacity),
                seeds: Vec::with_capacity(capacity),
                histories: Vec::new(),
            });
        }
        let chunk = &mut self.chunks[self.places / CHUNK];
        chunk.entries.push(entry);
        chunk.seeds.push(seed);
        self.places += 1;
    }

    /// Takes out the entry `id`, which must be there.
    pub fn remove(&mut self, id: EntryId) -> Entry<T> {
        let chunk = &mut self.chunks[id as usize / CHUNK];
        let place = &mut chunk.entries[id as usize % CHUNK];
        let entry = *place;
        debug_assert!(entry.key_segment != SegmentId::VACANT, "a removed entry is there");
        place.key_segment = SegmentId::VACANT;
        place.value_segment = SegmentId::VACANT;
        chunk.seeds[id as usize % CHUNK] = std::mem::replace(&mut self.vacant, id);
        self.vacancies += 1;
        entry
    }

    /// The entry `id`, unless it was deleted.
    #[inline]
    pub fn get(&self, id: EntryId) -> Option<&Entry<T>> {
        let entry = &self.chunks[id as usize / CHUNK].entries[id as usize % CHUNK];
        (entry.key_segment != SegmentId::VACANT).then_some(entry)
    }

    /// Lets what stands behind the entry `id` come into the cache meanwhile. Keys that came one after the other often come
    /// so again, and with several shards these are more streams than a processor follows by itself.
    #[inline]
    pub fn prefetch_behind<H: Heap<Term = T>>(&self, id: EntryId) {
        let entries = &self.chunks[id as usize / CHUNK].entries;
        let place = id as usize % CHUNK;
        // In the next cache line but one, while the nearer one should be there.
        if let Some(entry) = entries.get(place + 5) {
            H::prefetch(entry);
        }
        if let Some(entry) = entries.get(place + 2) {
            H::prefetch_term(entry.key);
        }
    }

    /// The entry `id` for changing it, unless it was deleted.
    #[inline]
    pub fn get_mut(&mut self, id: EntryId) -> Option<&mut Entry<T>> {
        let entry = &mut self.chunks[id as usize / CHUNK].entries[id as usize % CHUNK];
        (entry.key_segment != SegmentId::VACANT).then_some(entry)
    }

    /// The seed of the hash of the key of entry `id`, which must be there.
    #[inline]
    pub fn seed(&self, id: EntryId) -> &u32 {
        &self.chunks[id as usize / CHUNK].seeds[id as usize % CHUNK]
    }

    /// The history of entry `id`.
    #[inline]
    pub fn history(&self, id: EntryId) -> History<T> {
        let histories = &self.chunks[id as usize / CHUNK].histories;
        histories.get(id as usize % CHUNK).copied().unwrap_or(History::UNVERSIONED)
    }

    /// Changes the history of entry `id`.
    #[inline]
    pub fn set_history(&mut self, id: EntryId, history: History<T>) {
        let histories = &mut self.chunks[id as usize / CHUNK].histories;
        let place = id as usize % CHUNK;
        if place >= histories.len() {
            if matches!(history, History { version: Version::Int(0), updates: 0 }) {
                return;
            }
            // All of a chunk at once but for a small buffer: they come in order.
            let length = if id as usize >= CHUNK { CHUNK } else { (place + 1).next_power_of_two() };
            histories.resize(length, History::UNVERSIONED);
        }
        histories[place] = history;
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
