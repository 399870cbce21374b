//! A stripe of the [index](super): a small hash table of lines.

use crate::ids::EntryId;
use crate::store::hash::Hash;

/// Slots in a line.
pub(super) const LINE_SLOTS: usize = 12;

/// A stripe with this many entries a line is full, and grows.
const FULL: usize = 9;

/// A full stripe waits up to this many entries a line for the growth of another one. During its own
/// growth it may get one more a line, which leaves one.
const CROWDED: usize = 10;

/// Entries whose hashes choose this line, or an earlier full line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line {
    /// The tag in each slot.
    tags: [u8; LINE_SLOTS],
    /// The number of taken slots, from the first on.
    pub(super) taken: u8,
    /// The number of entries that went past this full line to a later one. It stays at 255 once
    /// there.
    pub(super) spilled: u8,
    /// The id in each slot.
    pub(super) ids: [EntryId; LINE_SLOTS],
}

impl Line {
    /// An empty line.
    const EMPTY: Self = Line { tags: [0; LINE_SLOTS], taken: 0, spilled: 0, ids: [0; LINE_SLOTS] };

    /// Adds an entry; a slot must be free.
    #[inline]
    fn push(&mut self, tag: u8, id: EntryId) {
        let slot = usize::from(self.taken);
        self.tags[slot] = tag;
        self.ids[slot] = id;
        self.taken += 1;
    }

    /// The ids in the taken slots.
    pub(super) fn ids(&self) -> &[EntryId] {
        &self.ids[..usize::from(self.taken)]
    }

    /// The slot with this tag whose entry `is_match` accepts.
    #[inline]
    fn find(&self, tag: u8, mut is_match: impl FnMut(EntryId) -> bool) -> Option<usize> {
        const ONES: u64 = 0x0101_0101_0101_0101;
        let [a, b, c, d, e, f, g, h, i, j, k, l] = self.tags;
        let words = [u64::from_le_bytes([a, b, c, d, e, f, g, h]), u64::from_le_bytes([i, j, k, l, 0, 0, 0, 0])];
        for (word, tags) in words.into_iter().enumerate() {
            // A byte is zero where the tag matches. The search may also mark the byte above, and
            // free slots: the conditions below reject both.
            let differences = tags ^ (ONES * u64::from(tag));
            let mut zeros = differences.wrapping_sub(ONES) & !differences & (ONES << 7);
            while zeros != 0 {
                let slot = word * 8 + zeros.trailing_zeros() as usize / 8;
                if slot < usize::from(self.taken) && is_match(self.ids[slot]) {
                    return Some(slot);
                }
                zeros &= zeros - 1;
            }
        }
        None
    }
}

/// A slot of a stripe.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// The index of the line.
    line: usize,
    /// The index of the slot there.
    slot: usize,
}

/// A small hash table for the hashes that share `depth` directory bits.
pub(super) struct Stripe {
    /// The lines. Their number is a power of two.
    pub(super) lines: Box<[Line]>,
    /// The number of taken slots.
    pub(super) taken: usize,
    /// The number of directory bits that the hashes share.
    pub(super) depth: u32,
    /// Whether a growth moves entries here.
    pub(super) is_target: bool,
}

impl Stripe {
    /// An empty stripe.
    pub(super) fn new(lines: usize, depth: u32) -> Self {
        Stripe { lines: vec![Line::EMPTY; lines].into_boxed_slice(), taken: 0, depth, is_target: false }
    }

    /// The number of lines.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether three quarters of the slots are taken: it is time to grow.
    #[inline]
    pub(super) fn is_full(&self) -> bool {
        self.taken >= self.lines.len() * FULL
    }

    /// Whether the growth can no longer wait.
    pub(super) fn is_crowded(&self) -> bool {
        self.taken >= self.lines.len() * CROWDED
    }

    /// The index of the line that a hash chooses.
    #[inline]
    pub(super) fn home(&self, hash: Hash) -> usize {
        hash.line_bits() & (self.lines.len() - 1)
    }

    /// The line that a hash chooses.
    #[inline]
    pub(super) fn line(&self, hash: Hash) -> &Line {
        &self.lines[self.home(hash)]
    }

    /// The place of the entry with this hash that `is_match` accepts.
    #[inline]
    pub(super) fn find(&self, hash: Hash, mut is_match: impl FnMut(EntryId) -> bool) -> Option<Place> {
        let mask = self.lines.len() - 1;
        let mut line_index = self.home(hash);
        // Ends even if `spilled` stays at 255 in every line.
        for _ in 0..self.lines.len() {
            let line = &self.lines[line_index];
            if let Some(slot) = line.find(hash.tag(), &mut is_match) {
                return Some(Place { line: line_index, slot });
            }
            if line.spilled == 0 {
                return None;
            }
            line_index = (line_index + 1) & mask;
        }
        None
    }

    /// The id in a slot.
    #[inline]
    pub(super) fn id(&self, place: Place) -> EntryId {
        self.lines[place.line].ids[place.slot]
    }

    /// Adds an entry; some slot must be free.
    #[inline]
    pub(super) fn insert(&mut self, hash: Hash, id: EntryId) {
        let mask = self.lines.len() - 1;
        let mut line_index = self.home(hash);
        while usize::from(self.lines[line_index].taken) == LINE_SLOTS {
            self.lines[line_index].spilled = self.lines[line_index].spilled.saturating_add(1);
            line_index = (line_index + 1) & mask;
        }
        self.lines[line_index].push(hash.tag(), id);
        self.taken += 1;
    }

    /// Takes out the entry with this hash, and moves the last one of the line there.
    pub(super) fn remove(&mut self, hash: Hash, place: Place) -> EntryId {
        let mask = self.lines.len() - 1;
        let mut passed = self.home(hash);
        while passed != place.line {
            let spilled = &mut self.lines[passed].spilled;
            if *spilled < u8::MAX {
                *spilled -= 1;
            }
            passed = (passed + 1) & mask;
        }
        let line = &mut self.lines[place.line];
        let id = line.ids[place.slot];
        line.taken -= 1;
        let last = usize::from(line.taken);
        line.tags[place.slot] = line.tags[last];
        line.ids[place.slot] = line.ids[last];
        self.taken -= 1;
        if self.taken == 0 && mask > 0 && !self.is_target {
            // Clears any `spilled` that stayed at 255.
            *self = Stripe::new(1, self.depth);
        }
        id
    }

    /// Takes out all entries of a line. It still counts the entries that spilled to others.
    pub(super) fn take_line(&mut self, line: usize) -> Line {
        let line = &mut self.lines[line];
        self.taken -= usize::from(line.taken);
        let taken = *line;
        line.taken = 0;
        taken
    }
}

/// The seeds of the entries in an index, which does not keep them.
pub trait Seeds {
    /// The seed of the hash of an entry.
    fn seed(&self, id: EntryId) -> u32;

    /// Prefetches the seed.
    fn prefetch(&self, _id: EntryId) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_cache_line() {
        assert_eq!(size_of::<Line>(), 64);
    }
}
