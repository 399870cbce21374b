//! The entries of a table, in chunks of a fixed size: growing moves no entry, so it never takes
//! long.
//!
//! Ids follow the order of insertion, so entries lie in memory in the order of their copies; a new
//! entry takes the id of a deleted one first. A chunk allocates *extras* with the first extra of an
//! entry: entries of a map without a version take half the memory, and half the cache.

use crate::ids::{EntryId, SegmentId};
use crate::term::{Heap, Term};

/// No entry.
const NONE: EntryId = EntryId::MAX;

/// Entries in a chunk: 24 kB or more, which the allocator hands out without asking the system each
/// time.
const CHUNK: usize = 1024;

/// A key and its value. The field `value` needs no padding if its type is packed.
#[derive(Clone, Copy, Debug)]
pub struct Entry<T, V> {
    /// The key.
    pub key: T,
    /// The value.
    pub value: V,
    /// The segment of the key; `VACANT` if the entry was deleted.
    pub key_segment: SegmentId,
}

/// A run of entries. Each entry has the same slot in all three lists.
struct Chunk<T, V, X> {
    /// The entries, deleted ones marked.
    entries: Vec<Entry<T, V>>,
    /// The seed of each key's hash, read only when the index grows. A deleted entry has the next
    /// vacant id here.
    seeds: Vec<u32>,
    /// The extras; missing ones are the default.
    extras: Vec<X>,
}

/// Entries by their id, each with an extra.
pub struct Entries<T, V, X> {
    /// All chunks but the last are full.
    chunks: Vec<Chunk<T, V, X>>,
    /// The first vacant id, or `NONE`. The others are linked through `seeds`: no list grows, so
    /// none has to be moved.
    vacant: EntryId,
    /// The number of vacant ids.
    vacancies: usize,
    /// One above the highest id.
    end: usize,
    /// The room for extras in all chunks.
    extra_room: usize,
    /// The number of freed chunks.
    freed: u32,
}

/// The chunk of an entry, and its slot in there.
#[inline]
fn locate(id: EntryId) -> (usize, usize) {
    (id as usize / CHUNK, id as usize % CHUNK)
}

impl<T: Term, V: Copy, X: Copy + Default + PartialEq> Entries<T, V, X> {
    /// No entries; allocates nothing.
    pub fn new() -> Self {
        Entries { chunks: Vec::new(), vacant: NONE, vacancies: 0, end: 0, extra_room: 0, freed: 0 }
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.end - self.vacancies
    }

    /// Whether all entries were deleted, or none was added.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One above the highest id ever given out.
    pub fn end(&self) -> usize {
        self.end
    }

    /// The bytes of the entries, without their terms.
    pub fn bytes(&self) -> usize {
        let entry = size_of::<Entry<T, V>>() + size_of::<u32>();
        // Only the first chunk may be small.
        let room = match self.end {
            0 => 0,
            1..=CHUNK => self.end.next_power_of_two(),
            _ => (self.chunks.len() - self.freed as usize) * CHUNK,
        };
        room * entry + self.extra_room * size_of::<X>()
    }

    /// The id that the next inserted entry gets.
    #[inline]
    pub fn next_id(&self) -> EntryId {
        if self.vacant != NONE {
            return self.vacant;
        }
        EntryId::try_from(self.end).ok().filter(|&id| id != NONE).expect("fewer than 2^32 entries")
    }

    /// Adds an entry without an extra, under `next_id`, with the seed of its key's hash. Returns
    /// whether it begins a chunk.
    #[inline]
    pub fn insert(&mut self, entry: Entry<T, V>, seed: u32) -> bool {
        if self.vacant != NONE {
            let id = self.vacant;
            let (chunk, slot) = locate(id);
            let chunk = &mut self.chunks[chunk];
            chunk.entries[slot] = entry;
            self.vacant = std::mem::replace(&mut chunk.seeds[slot], seed);
            self.vacancies -= 1;
            self.set_extra(id, X::default());
            return false;
        }
        let begins = self.end % CHUNK == 0;
        if begins {
            // The first chunk may stay small, the others are likely to fill.
            let capacity = if self.end == 0 { 4 } else { CHUNK };
            self.chunks.push(Chunk {
                entries: Vec::with_capacity(capacity),
                seeds: Vec::with_capacity(capacity),
                extras: Vec::new(),
            });
        }
        let chunk = &mut self.chunks[self.end / CHUNK];
        chunk.entries.push(entry);
        chunk.seeds.push(seed);
        self.end += 1;
        begins
    }

    /// Removes the entry `id`, which must be there.
    pub fn remove(&mut self, id: EntryId) -> Entry<T, V> {
        let (chunk, slot) = locate(id);
        let chunk = &mut self.chunks[chunk];
        let vacated = &mut chunk.entries[slot];
        let entry = *vacated;
        debug_assert!(entry.key_segment != SegmentId::VACANT, "a removed entry is there");
        vacated.key_segment = SegmentId::VACANT;
        chunk.seeds[slot] = std::mem::replace(&mut self.vacant, id);
        self.vacancies += 1;
        entry
    }

    /// Removes the entry `id` for good; `None` if it is not there. Nothing may be inserted later.
    pub fn free(&mut self, id: EntryId) -> Option<Entry<T, V>> {
        let entry = self.get_mut(id)?;
        let freed = *entry;
        entry.key_segment = SegmentId::VACANT;
        self.vacancies += 1;
        Some(freed)
    }

    /// Frees the chunk that ends at `end`, if it is full and without entries.
    pub fn free_chunk(&mut self, end: EntryId) {
        let Some(chunk) = (end as usize / CHUNK).checked_sub(1).filter(|_| end as usize % CHUNK == 0) else { return };
        let Some(chunk) = self.chunks.get_mut(chunk) else { return };
        if chunk.entries.iter().all(|entry| entry.key_segment == SegmentId::VACANT) {
            self.freed += u32::from(chunk.entries.capacity() > 0);
            self.extra_room -= chunk.extras.len();
            *chunk = Chunk { entries: Vec::new(), seeds: Vec::new(), extras: Vec::new() };
        }
    }

    /// Frees the last chunk; `false` without any. Nothing else may follow.
    pub fn take_apart(&mut self) -> bool {
        let Some(chunk) = self.chunks.pop() else { return false };
        self.freed -= u32::from(chunk.entries.capacity() == 0);
        self.extra_room -= chunk.extras.len();
        self.end = self.chunks.len() * CHUNK;
        self.vacancies = self.vacancies.min(self.end);
        true
    }

    /// The entry `id`; `None` if it was deleted, or for an unknown id.
    #[inline]
    pub fn get(&self, id: EntryId) -> Option<&Entry<T, V>> {
        let (chunk, slot) = locate(id);
        let entry = self.chunks.get(chunk)?.entries.get(slot)?;
        (entry.key_segment != SegmentId::VACANT).then_some(entry)
    }

    /// The entry `id`, to be changed; `None` as in [`get`](Self::get).
    #[inline]
    pub fn get_mut(&mut self, id: EntryId) -> Option<&mut Entry<T, V>> {
        let (chunk, slot) = locate(id);
        let entry = self.chunks.get_mut(chunk)?.entries.get_mut(slot)?;
        (entry.key_segment != SegmentId::VACANT).then_some(entry)
    }

    /// Prefetches the entries after `id`. Keys are often written again in the same order, and
    /// several shards make more streams than a processor follows.
    #[inline]
    pub fn prefetch_following<H: Heap<Term = T>>(&self, id: EntryId) {
        let (chunk, slot) = locate(id);
        let entries = &self.chunks[chunk].entries;
        // Two cache lines ahead.
        if let Some(entry) = entries.get(slot + 128 / size_of::<Entry<T, V>>()) {
            H::prefetch(entry);
        }
        // An earlier call prefetched this entry, so reading it does not wait.
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

    /// The extra of entry `id`, present or just removed.
    #[inline]
    pub fn extra(&self, id: EntryId) -> X {
        let (chunk, slot) = locate(id);
        self.chunks[chunk].extras.get(slot).copied().unwrap_or_default()
    }

    /// Changes the extra of entry `id`, which must be there.
    #[inline]
    pub fn set_extra(&mut self, id: EntryId, extra: X) {
        let (chunk, slot) = locate(id);
        let extras = &mut self.chunks[chunk].extras;
        if slot >= extras.len() {
            if extra == X::default() {
                return;
            }
            let length = if chunk > 0 { CHUNK } else { (slot + 1).next_power_of_two() };
            self.extra_room += length - extras.len();
            extras.resize(length, X::default());
        }
        extras[slot] = extra;
    }
}

impl<T: Term, V: Copy, X: Copy + Default + PartialEq> Default for Entries<T, V, X> {
    fn default() -> Self {
        Self::new()
    }
}
