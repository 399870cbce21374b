//! The heaps that hold one large copy each, by number. They stand in chunks of fixed size, so adding one never takes long.

use std::sync::Arc;

/// Heaps of a chunk: 16 kB.
const CHUNK: usize = 1024;

/// The number of no place.
const NONE: u32 = u32::MAX;

/// A place for a heap.
enum Place<H> {
    /// Its heap.
    Taken(Arc<H>),
    /// It is free; the number of the next free place, or `NONE`.
    Free(u32),
}

/// See the module's documentation.
pub(crate) struct OwnHeaps<H> {
    /// All chunks but the last are full.
    chunks: Vec<Vec<Place<H>>>,
    /// The first free place of the list of free places, or `NONE`.
    free: u32,
}

impl<H> OwnHeaps<H> {
    /// No heaps; allocates nothing.
    pub(crate) fn new() -> Self {
        OwnHeaps { chunks: Vec::new(), free: NONE }
    }

    /// Adds a heap and gives its number.
    pub(crate) fn add(&mut self, heap: Arc<H>) -> u32 {
        if self.free != NONE {
            let number = self.free;
            let place = self.place(number);
            if let Place::Free(next) = std::mem::replace(place, Place::Taken(heap)) {
                self.free = next;
            }
            return number;
        }
        if self.chunks.last().is_none_or(|chunk| chunk.len() == CHUNK) {
            // The first chunk grows with a small buffer, the others are known to fill.
            let capacity = if self.chunks.is_empty() { 4 } else { CHUNK };
            self.chunks.push(Vec::with_capacity(capacity));
        }
        let last = self.chunks.len() - 1;
        let chunk = &mut self.chunks[last];
        chunk.push(Place::Taken(heap));
        u32::try_from(last * CHUNK + chunk.len() - 1).expect("fewer heaps than entries")
    }

    /// The heap of a number that [`OwnHeaps::add`] gave.
    pub(crate) fn get(&self, number: u32) -> Option<&Arc<H>> {
        match &self.chunks[number as usize / CHUNK][number as usize % CHUNK] {
            Place::Taken(heap) => Some(heap),
            Place::Free(_) => None,
        }
    }

    /// Takes a heap out.
    pub(crate) fn remove(&mut self, number: u32) -> Option<Arc<H>> {
        let free = self.free;
        let place = self.place(number);
        match std::mem::replace(place, Place::Free(free)) {
            Place::Taken(heap) => {
                self.free = number;
                Some(heap)
            }
            was_free @ Place::Free(_) => {
                *place = was_free;
                None
            }
        }
    }

    /// The place of a number.
    fn place(&mut self, number: u32) -> &mut Place<H> {
        &mut self.chunks[number as usize / CHUNK][number as usize % CHUNK]
    }
}
