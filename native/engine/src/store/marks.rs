//! The entries of a table that the journal does not have: a bit for each id.
//!
//! Writers mark entries under the lock of the shard, each once until the journal takes it. A table of
//! a buffer without a journal has no marks.

use std::sync::Arc;

use crate::ids::EntryId;
use crate::sync::{AtomicBool, Ordering};

/// The bits in a word.
const BITS: usize = u64::BITS as usize;

/// A set of ids.
#[derive(Default)]
struct Ids {
    /// A bit for each id.
    words: Vec<u64>,
    /// A bit for each word other than 0.
    summary: Vec<u64>,
    /// The number of ids.
    count: usize,
}

impl Ids {
    /// Whether an id is in the set.
    #[inline]
    fn contains(&self, id: EntryId) -> bool {
        let word = self.words.get(id as usize / BITS);
        word.is_some_and(|word| word >> (id as usize % BITS) & 1 == 1)
    }

    /// Adds an id.
    #[inline]
    fn add(&mut self, id: EntryId) {
        let (at, bit) = (id as usize / BITS, 1 << (id as usize % BITS));
        let Some(word) = self.words.get_mut(at) else { return self.add_behind(id) };
        let before = *word;
        if before & bit != 0 {
            return;
        }
        *word = before | bit;
        self.count += 1;
        if before == 0 {
            self.summary[at / BITS] |= 1 << (at % BITS);
        }
    }

    /// Adds an id behind all words.
    #[cold]
    fn add_behind(&mut self, id: EntryId) {
        self.grow(id as usize / BITS);
        self.add(id);
    }

    /// Makes room for a word. A million ids take 128 kB, so this never takes long.
    fn grow(&mut self, word: usize) {
        let words = (word + 1).next_power_of_two().max(BITS);
        self.words.resize(words, 0);
        self.summary.resize(words / BITS, 0);
    }

    /// Removes an id.
    fn remove(&mut self, id: EntryId) {
        let (word, bit) = (id as usize / BITS, id as usize % BITS);
        if self.contains(id) {
            self.words[word] &= !(1 << bit);
            if self.words[word] == 0 {
                self.summary[word / BITS] &= !(1 << (word % BITS));
            }
            self.count -= 1;
        }
    }

    /// The first id from `from` on.
    fn next(&self, from: EntryId) -> Option<EntryId> {
        let from = from as usize;
        let first = from / BITS;
        let rest = self.words.get(first)? & (u64::MAX << (from % BITS));
        let word = if rest != 0 { first } else { self.next_word(first + 1)? };
        let bits = if rest != 0 { rest } else { self.words[word] };
        Some((word * BITS) as EntryId + bits.trailing_zeros())
    }

    /// The first word other than 0, from `from` on.
    fn next_word(&self, from: usize) -> Option<usize> {
        let mut mask = u64::MAX << (from % BITS);
        for (at, &summary) in self.summary.iter().enumerate().skip(from / BITS) {
            if summary & mask != 0 {
                return Some(at * BITS + (summary & mask).trailing_zeros() as usize);
            }
            mask = u64::MAX;
        }
        None
    }
}

/// Keeps the terms of a store in memory while the journal reads them without the lock.
///
/// Invariant: whoever frees memory of the store, which is its writers and the reclaimer, looks at the
/// pin before. It is set under the lock of the shard, together with the words of the terms.
#[derive(Clone, Default)]
pub struct Pin(Arc<AtomicBool>);

impl Pin {
    /// Keeps the terms.
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Lets the terms be freed.
    pub(crate) fn release(&self) {
        self.0.store(false, Ordering::Release);
    }

    /// Whether the terms must stay.
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// See the module's documentation.
pub(crate) struct Marks {
    /// The entries that changed since the journal took them.
    changed: Ids,
    /// The deleted ones, as long as no other entry has their place.
    gone: Ids,
    /// The entries of a counter that contain a failed sum of the generation before.
    absorbing: Ids,
    /// The generation of the store.
    generation: u64,
    /// Whether terms of the store must stay.
    pin: Pin,
}

impl Marks {
    /// No marks.
    pub(crate) fn new(generation: u64) -> Self {
        Marks {
            changed: Ids::default(),
            gone: Ids::default(),
            absorbing: Ids::default(),
            generation,
            pin: Pin::default(),
        }
    }

    /// The marks of the next store of the shard.
    pub(crate) fn successor(&self) -> Self {
        Self::new(self.generation + 1)
    }

    /// The generation of the store.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// The pin of the store.
    pub(crate) fn pin(&self) -> &Pin {
        &self.pin
    }

    /// The number of marked entries.
    pub(crate) fn count(&self) -> usize {
        self.changed.count
    }

    /// Marks an entry. A call, so that writes without a journal stay as short as they were.
    #[inline(never)]
    pub(crate) fn mark(&mut self, id: EntryId) {
        self.changed.add(id);
    }

    /// Marks all ids before `end`.
    pub(crate) fn mark_all(&mut self, end: usize) {
        let words = end.div_ceil(BITS);
        if words > self.changed.words.len() {
            self.changed.grow(words - 1);
        }
        self.changed.words[..words].fill(u64::MAX);
        if let Some(last) = self.changed.words[..words].last_mut().filter(|_| end % BITS > 0) {
            *last = (1 << (end % BITS)) - 1;
        }
        (0..words).for_each(|word| self.changed.summary[word / BITS] |= 1 << (word % BITS));
        self.changed.count = end;
    }

    /// Notes that an entry contains a failed sum of the generation before.
    pub(crate) fn absorb(&mut self, id: EntryId) {
        self.absorbing.add(id);
    }

    /// Whether an entry contains a failed sum of the generation before.
    pub(crate) fn absorbs(&self, id: EntryId) -> bool {
        self.absorbing.contains(id)
    }

    /// Notes that an id is free: another entry may take it.
    pub(crate) fn vacate(&mut self, id: EntryId) {
        self.absorbing.remove(id);
        self.mark(id);
        if !self.gone.contains(id) {
            self.gone.add(id);
        }
    }

    /// Marks a new entry, which may have the id of a deleted one.
    #[inline]
    pub(crate) fn occupy(&mut self, id: EntryId) {
        self.gone.remove(id);
        self.mark(id);
    }

    /// The first deleted entry with a mark whose id is at least `from`.
    pub(crate) fn next_gone(&self, from: EntryId) -> Option<EntryId> {
        self.gone.next(from)
    }

    /// The first marked entry whose id is at least `from`.
    pub(crate) fn next(&self, from: EntryId) -> Option<EntryId> {
        self.changed.next(from)
    }

    /// Removes the mark of an entry.
    pub(crate) fn unmark(&mut self, id: EntryId) {
        self.changed.remove(id);
        self.gone.remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The marked ids.
    fn marked(marks: &Marks) -> Vec<EntryId> {
        let next = |id: &EntryId| marks.next(id + 1);
        std::iter::successors(marks.next(0), next).collect()
    }

    #[test]
    fn marks_are_a_set_of_ids_in_ascending_order() {
        let mut marks = Marks::new(3);
        let ids = [70_000, 0, 63, 64, 4_096, 5_000, 0, 4_095, 64];
        ids.iter().for_each(|&id| marks.mark(id));
        assert_eq!(marked(&marks), [0, 63, 64, 4_095, 4_096, 5_000, 70_000]);
        assert_eq!((marks.count(), marks.next(4_097), marks.next(70_001)), (7, Some(5_000), None));
        [64, 70_000, 1].iter().for_each(|&id| marks.unmark(id));
        assert_eq!((marked(&marks), marks.count()), (vec![0, 63, 4_095, 4_096, 5_000], 5));
        assert_eq!(marks.successor().generation(), 4);
    }

    #[test]
    fn all_ids_are_marked_at_once() {
        for end in [0, 1, 63, 64, 65, 4_096, 5_000] {
            let mut marks = Marks::new(0);
            marks.mark(0);
            marks.unmark(0);
            marks.mark_all(end);
            assert_eq!(marked(&marks), (0..end as EntryId).collect::<Vec<_>>());
            assert_eq!(marks.count(), end);
        }
    }

    #[test]
    fn a_vacated_id_absorbs_nothing_and_is_marked() {
        let mut marks = Marks::new(0);
        marks.absorb(9);
        assert!(marks.absorbs(9) && marks.count() == 0);
        marks.vacate(9);
        assert!(!marks.absorbs(9) && marked(&marks) == [9]);
        assert_eq!((marks.next_gone(0), marks.next_gone(10)), (Some(9), None));
        marks.occupy(9);
        assert_eq!((marks.next_gone(0), marked(&marks)), (None, vec![9]));
        marks.vacate(9);
        marks.vacate(9);
        marks.unmark(9);
        assert_eq!((marks.next_gone(0), marks.count()), (None, 0));
    }
}
