//! The heaps of large copies, in chunks of a fixed size, so that adding one never takes long.

use std::sync::Arc;

/// Slots in a chunk: 16 kB.
const CHUNK: usize = 1024;

/// No slot.
const NONE: u32 = u32::MAX;

/// Room for one heap.
enum Slot<H> {
    /// Holds a heap.
    Taken(Arc<H>),
    /// Holds the next free slot, or `NONE`.
    Free(u32),
}

/// See the module's documentation.
pub(crate) struct OwnHeaps<H> {
    /// All chunks but the last are full.
    chunks: Vec<Vec<Slot<H>>>,
    /// The first free slot, or `NONE`.
    free: u32,
    /// Whether the arena ever had a large copy, here or in a segment. It fills the room behind
    /// `free`.
    pub(super) had_large: bool,
}

impl<H> OwnHeaps<H> {
    /// No heaps; allocates nothing.
    pub(crate) fn new() -> Self {
        OwnHeaps { chunks: Vec::new(), free: NONE, had_large: false }
    }

    /// Adds a heap and returns its slot.
    pub(crate) fn add(&mut self, heap: Arc<H>) -> u32 {
        if self.free != NONE {
            let slot = self.free;
            if let Slot::Free(next) = std::mem::replace(self.slot_mut(slot), Slot::Taken(heap)) {
                self.free = next;
            }
            return slot;
        }
        if self.chunks.last().is_none_or(|chunk| chunk.len() == CHUNK) {
            // The first chunk may stay small, the others are likely to fill.
            let capacity = if self.chunks.is_empty() { 4 } else { CHUNK };
            self.chunks.push(Vec::with_capacity(capacity));
        }
        let last = self.chunks.len() - 1;
        let chunk = &mut self.chunks[last];
        chunk.push(Slot::Taken(heap));
        u32::try_from(last * CHUNK + chunk.len() - 1).expect("fewer heaps than entries")
    }

    /// The heap in a slot that [`OwnHeaps::add`] returned; `None` if it was removed.
    pub(crate) fn get(&self, slot: u32) -> Option<&Arc<H>> {
        match &self.chunks[slot as usize / CHUNK][slot as usize % CHUNK] {
            Slot::Taken(heap) => Some(heap),
            Slot::Free(_) => None,
        }
    }

    /// Takes out the heap in a slot that [`OwnHeaps::add`] returned.
    pub(crate) fn remove(&mut self, slot: u32) -> Option<Arc<H>> {
        let free = self.free;
        let removed = self.slot_mut(slot);
        match std::mem::replace(removed, Slot::Free(free)) {
            Slot::Taken(heap) => {
                self.free = slot;
                Some(heap)
            }
            was_free @ Slot::Free(_) => {
                *removed = was_free;
                None
            }
        }
    }

    /// Takes out the heaps of the last slots, at most `count`. Nothing may be added later.
    pub(crate) fn take_last(&mut self, count: usize) -> Vec<Arc<H>> {
        let Some(last) = self.chunks.last_mut() else { return Vec::new() };
        let slots = last.split_off(last.len().saturating_sub(count));
        if last.is_empty() {
            self.chunks.pop();
        }
        let heap = |slot| if let Slot::Taken(heap) = slot { Some(heap) } else { None };
        slots.into_iter().filter_map(heap).collect()
    }

    /// Whether no slots are left.
    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// The contents of a slot.
    fn slot_mut(&mut self, slot: u32) -> &mut Slot<H> {
        &mut self.chunks[slot as usize / CHUNK][slot as usize % CHUNK]
    }
}
