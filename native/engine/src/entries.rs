//! The entries of a generation, in chunks of a fixed size: growing never moves an entry, so it never takes long.
//!
//! Entries keep the order of insertion, which is the order in which their copies lie in memory; the place of a deleted
//! entry is taken by the next new one.

use crate::arena::SegmentId;
use crate::term::Version;

/// Entries of a chunk: 48 kB, which the allocator hands out without asking the system each time.
const CHUNK: usize = 1024;

/// The number of an entry within its generation.
pub type EntryId = u32;

/// A key with what is stored for it.
#[derive(Clone, Copy, Debug)]
pub struct Entry<T> {
    /// The key, living in `key_segment`.
    pub key: T,
    /// The value, living in `value_segment`.
    pub value: T,
    /// The version; where it is a term, that lives in `value_segment`.
    pub version: Version<T>,
    /// How often `put_newer` has replaced the value.
    pub updates: u64,
    /// The segment of the key arena that holds the key, or `NONE`.
    pub key_segment: SegmentId,
    /// The segment of the value arena that holds value and version, or `NONE`.
    pub value_segment: SegmentId,
}

/// Entries by their number.
pub struct Entries<T> {
    /// All chunks but the last are full; a place without an entry is in `vacant`.
    chunks: Vec<Vec<Option<Entry<T>>>>,
    /// Places whose entry was deleted.
    vacant: Vec<EntryId>,
    /// Places in all chunks.
    places: usize,
}

impl<T: Copy> Entries<T> {
    /// No entries; allocates nothing.
    pub fn new() -> Self {
        Entries { chunks: Vec::new(), vacant: Vec::new(), places: 0 }
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.places - self.vacant.len()
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
        match self.vacant.last() {
            Some(&id) => id,
            None => EntryId::try_from(self.places).expect("fewer than 2^32 entries"),
        }
    }

    /// Adds an entry, at `next_id`.
    #[inline]
    pub fn insert(&mut self, entry: Entry<T>) {
        if let Some(id) = self.vacant.pop() {
            *self.place_mut(id) = Some(entry);
            return;
        }
        if self.places.is_multiple_of(CHUNK) {
            // The first chunk grows with a small buffer, the others are known to fill.
            self.chunks.push(Vec::with_capacity(if self.places == 0 { 4 } else { CHUNK }));
        }
        self.chunks[self.places / CHUNK].push(Some(entry));
        self.places += 1;
    }

    /// Takes out the entry `id`, which must be there.
    pub fn remove(&mut self, id: EntryId) -> Entry<T> {
        let entry = self.place_mut(id).take().expect("a removed entry is there");
        self.vacant.push(id);
        entry
    }

    /// The entry `id`, unless it was deleted.
    #[inline]
    pub fn get(&self, id: EntryId) -> Option<&Entry<T>> {
        self.chunks[id as usize / CHUNK][id as usize % CHUNK].as_ref()
    }

    /// The entry `id` for changing it, unless it was deleted.
    #[inline]
    pub fn get_mut(&mut self, id: EntryId) -> Option<&mut Entry<T>> {
        self.place_mut(id).as_mut()
    }

    /// The place of entry `id`.
    #[inline]
    fn place_mut(&mut self, id: EntryId) -> &mut Option<Entry<T>> {
        &mut self.chunks[id as usize / CHUNK][id as usize % CHUNK]
    }
}

impl<T: Copy> Default for Entries<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_takes_48_bytes_and_its_absence_none() {
        assert_eq!(std::mem::size_of::<Entry<usize>>(), 56 - 8);
        assert_eq!(std::mem::size_of::<Option<Entry<usize>>>(), 48);
    }
}
