//! The growth of a stripe of the [index](super), in small steps.
//!
//! A full stripe, the *source*, leaves its place to an empty stripe twice as large, or to two empty
//! stripes by the next directory bit: the *targets*. Each of the next insertions into the index
//! moves the entries of some lines. New entries go to the targets, so the source only loses entries.
//!
//! An entry is in the target of its hash, or else in the source. A search looks into both. The lines
//! of the source keep their counts of spilled entries, so it is searched as any stripe.

use super::stripe::{Line, Seeds, Stripe};
use crate::store::hash::Hasher;

/// How many lines an insertion moves: some hundred nanoseconds.
const LINES_A_STEP: usize = 4;

/// The growth of a stripe; see the module's documentation.
pub(super) struct Growth {
    /// The stripe that grew full.
    pub(super) source: Stripe,
    /// The index of the target for each value of the next directory bit.
    targets: [usize; 2],
    /// The number of moved lines. A source that lost its last entry has one line, however many
    /// moved.
    moved: usize,
}

impl Growth {
    /// The growth of `source` into the empty `targets`.
    pub(super) fn new(source: Stripe, targets: [usize; 2], seeds: &impl Seeds, stripes: &mut [Stripe]) -> Self {
        targets.into_iter().for_each(|target| stripes[target].is_target = true);
        let growth = Growth { source, targets, moved: 0 };
        growth.prefetch(seeds);
        growth
    }

    /// Moves the entries of some lines; `false` after the last ones.
    pub(super) fn step(&mut self, hasher: &Hasher, seeds: &impl Seeds, stripes: &mut [Stripe]) -> bool {
        let depth = self.source.depth;
        let end = self.source.len().min(self.moved + LINES_A_STEP);
        for line in self.moved..end {
            for &id in self.source.take_line(line).ids() {
                let hash = hasher.rehash(seeds.seed(id));
                stripes[self.targets[hash.directory_bits() >> depth & 1]].insert(hash, id);
            }
        }
        self.moved = end;
        if end == self.source.len() {
            self.targets.into_iter().for_each(|target| stripes[target].is_target = false);
            return false;
        }
        self.prefetch(seeds);
        true
    }

    /// Prefetches the seeds for the next step, as they lie anywhere in memory.
    fn prefetch(&self, seeds: &impl Seeds) {
        let next = self.source.lines[self.moved..].iter().take(LINES_A_STEP);
        next.flat_map(Line::ids).for_each(|&id| seeds.prefetch(id));
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::collections::BTreeMap;

    use super::super::stripe::LINE_SLOTS;
    use super::super::{Index, STRIPE_LINES};
    use super::*;
    use crate::ids::EntryId;
    use crate::store::hash::Hash;

    /// The hash of each entry by its id, and how many were looked up.
    #[derive(Default)]
    struct Hashes(Vec<Hash>, Cell<usize>);

    impl Seeds for Hashes {
        fn seed(&self, id: EntryId) -> u32 {
            self.1.set(self.1.get() + 1);
            self.0[id as usize].seed()
        }
    }

    /// An index beside a model. Two entries may have the same hash, and a new entry takes the id of
    /// the last removed one.
    struct Checked {
        index: Index,
        hashes: Hashes,
        vacant: Vec<EntryId>,
        model: BTreeMap<EntryId, Hash>,
        random: u64,
        /// The growths that were seen under way, and those of them that a removal met.
        seen: [usize; 2],
    }

    impl Checked {
        fn new(seed: u64) -> Self {
            let index = Index::new(Hasher::seeded(seed));
            Checked {
                index,
                hashes: Hashes::default(),
                vacant: Vec::new(),
                model: BTreeMap::new(),
                random: seed,
                seen: [0; 2],
            }
        }

        fn below(&mut self, end: u64) -> u64 {
            self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.random >> 33) % end
        }

        fn insert(&mut self, key: u64) {
            let hash = self.index.hasher().hash(key);
            let id = self.vacant.pop().unwrap_or(self.hashes.0.len() as EntryId);
            if id as usize == self.hashes.0.len() {
                self.hashes.0.push(hash);
            } else {
                self.hashes.0[id as usize] = hash;
            }
            assert_eq!(self.index.find(hash, |found| found == id), None);
            self.index.insert(hash, id, &self.hashes);
            self.model.insert(id, hash);
            self.seen[0] += usize::from(self.index.growth.is_some());
        }

        fn remove(&mut self) {
            let from = self.below(self.hashes.0.len().max(1) as u64) as EntryId;
            let Some((&id, &hash)) = self.model.range(from..).next() else { return };
            assert_eq!(self.index.remove(hash, |found| found == id), Some(id));
            assert_eq!(self.index.remove(hash, |found| found == id), None);
            self.model.remove(&id);
            self.vacant.push(id);
            self.seen[1] += usize::from(self.index.growth.is_some());
        }

        /// Every entry is found, and is in one stripe only.
        fn check(&self) {
            for (&id, &hash) in &self.model {
                assert_eq!(self.index.find(hash, |found| found == id), Some(id));
            }
            let stripes = || self.index.stripes.iter().chain(self.index.growth.iter().map(|growth| &growth.source));
            assert_eq!(stripes().map(|stripe| stripe.taken).sum::<usize>(), self.model.len());
            for stripe in stripes() {
                let taken: usize = stripe.lines.iter().map(|line| line.ids().len()).sum();
                assert!(taken == stripe.taken && taken < stripe.len() * (LINE_SLOTS - 1));
            }
            let targets = self.index.stripes.iter().filter(|stripe| stripe.is_target).count();
            assert_eq!(targets > 0, self.index.growth.is_some());
        }
    }

    #[test]
    fn the_index_agrees_with_a_model_at_each_step_of_a_growth() {
        for (seed, keys) in [(1, u64::MAX), (2, 2_000), (3, 200), (4, 9), (5, 1)] {
            let mut checked = Checked::new(seed);
            // It grows and shrinks in turn.
            for operation in 0..if keys < 10 { 6_000 } else { 16_000 } {
                let insertions = if operation / 4_000 % 2 == 0 { 7 } else { 4 };
                if checked.below(10) < insertions {
                    let key = checked.below(1 << 31) % keys;
                    checked.insert(key);
                } else {
                    checked.remove();
                }
                if operation % 64 == 0 || (checked.index.growth.is_some() && operation % 4 == 0) {
                    checked.check();
                }
            }
            assert!(checked.seen.iter().all(|&seen| seen > 20), "{:?}", checked.seen);
            while !checked.model.is_empty() {
                checked.remove();
            }
            checked.check();
            checked.insert(7);
            checked.check();
        }
    }

    #[test]
    fn a_removal_of_all_entries_in_the_middle_of_a_growth_leaves_an_index_that_grows_again() {
        for moved in [0, LINES_A_STEP, STRIPE_LINES / 2] {
            let mut checked = Checked::new(8);
            let is_here = |index: &Index| {
                index.growth.as_ref().is_some_and(|growth| growth.source.len() == STRIPE_LINES && growth.moved == moved)
            };
            for key in 0.. {
                checked.insert(key);
                if is_here(&checked.index) {
                    break;
                }
            }
            while !checked.model.is_empty() {
                checked.remove();
                checked.check();
            }
            (0..3_000).for_each(|key| checked.insert(key));
            checked.check();
        }
    }

    #[test]
    fn no_insertion_moves_more_than_some_lines() {
        let mut checked = Checked::new(9);
        let mut most = 0;
        for key in 0..200_000 {
            checked.hashes.1.set(0);
            checked.insert(key);
            most = checked.hashes.1.get().max(most);
        }
        assert!(most > 0 && most <= LINES_A_STEP * LINE_SLOTS, "{most} entries were moved at once");
    }
}
