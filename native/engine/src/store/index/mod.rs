//! From the hash of a key to the id of its entry: extendible hashing, without long pauses and with
//! few cache misses.
//!
//! A single hash table that doubles moves all of its entries while its writer waits. This index
//! spreads them over many small tables, *stripes*. The *directory* refers to the stripes by some
//! bits of the hash. A full stripe splits in two by one more bit, in the small steps of a
//! [growth], so only the directory, four or eight bytes a stripe, is ever copied as a whole.
//!
//! A stripe consists of *lines*, each a cache line of twelve *slots*. A slot holds the id of an
//! entry and its *tag*, eight bits of its hash. A lookup reads the line that the hash chooses, and
//! the next one if entries spilled from there. It misses the cache about once, and once more for
//! the entry. The index takes nine bytes an entry.

mod growth;
mod stripe;

use self::growth::Growth;
use self::stripe::{Line, Stripe};
use super::hash::{Hash, Hasher, DIRECTORY_BITS};
use crate::ids::EntryId;
use crate::term::Heap;

pub use self::stripe::Seeds;

/// Lines in a stripe at most: 4 kB. The longest put allocates two such stripes.
const STRIPE_LINES: usize = 64;

/// The directory doubles up to this many references per stripe. Only equal hashes get there: their
/// stripe then grows.
const REFERENCES_PER_STRIPE: usize = 64;

/// Stripes that are freed together: some ten microseconds.
const FREED_TOGETHER: usize = 64;

/// The index of one generation. Its user counts the entries and adds each only once.
pub struct Index {
    /// Recomputes hashes from their seeds.
    hasher: Hasher,
    /// From the lowest directory bits of a hash to the index of its stripe. The length is 0 or a
    /// power of two.
    directory: Box<[u32]>,
    /// The directory refers to each stripe `directory.len() >> depth` times.
    stripes: Vec<Stripe>,
    /// The growth under way; only one stripe at a time grows. Boxed, as most tables have none.
    growth: Option<Box<Growth>>,
}

impl Index {
    /// An empty index for hashes made by `hasher`; allocates nothing.
    pub fn new(hasher: Hasher) -> Self {
        Index { hasher, directory: Box::default(), stripes: Vec::new(), growth: None }
    }

    /// How many bytes the stripes take, as if they were equally large.
    pub fn bytes(&self) -> usize {
        self.stripes.first().map_or(0, |stripe| stripe.len() * size_of::<Line>()) * self.stripes.len()
    }

    /// Frees some of the stripes; `false` without any. Nothing else may follow.
    pub fn take_apart(&mut self) -> bool {
        let has_some = !self.stripes.is_empty();
        self.growth = None;
        self.stripes.truncate(self.stripes.len().saturating_sub(FREED_TOGETHER));
        has_some
    }

    /// The hasher that makes the hashes.
    pub fn hasher(&self) -> &Hasher {
        &self.hasher
    }

    /// Prefetches the line that this hash chooses.
    #[inline]
    pub fn prefetch<H: Heap>(&self, hash: Hash) {
        if !self.directory.is_empty() {
            H::prefetch(self.stripes[self.stripe_index(hash)].line(hash));
        }
    }

    /// The id of the entry with this hash that `is_match` accepts.
    #[inline]
    pub fn find(&self, hash: Hash, is_match: impl FnMut(EntryId) -> bool) -> Option<EntryId> {
        if self.directory.is_empty() {
            return None;
        }
        let stripe = &self.stripes[self.stripe_index(hash)];
        if stripe.is_target {
            return self.find_in_growth(stripe, hash, is_match);
        }
        stripe.find(hash, is_match).map(|place| stripe.id(place))
    }

    /// Finds an entry in a target of the growth under way, or in its source.
    #[cold]
    fn find_in_growth(
        &self,
        target: &Stripe,
        hash: Hash,
        mut is_match: impl FnMut(EntryId) -> bool,
    ) -> Option<EntryId> {
        let source = self.growth.as_ref().map(|growth| &growth.source);
        let stripes = [target].into_iter().chain(source);
        stripes.flat_map(|stripe| Some(stripe.id(stripe.find(hash, &mut is_match)?))).next()
    }

    /// Adds a new entry. `seeds` has the seeds of all others.
    #[inline]
    pub fn insert(&mut self, hash: Hash, id: EntryId, seeds: &impl Seeds) {
        if self.directory.is_empty() {
            self.directory = Box::new([0]);
            self.stripes.push(Stripe::new(1, 0));
        }
        if self.growth.is_some() {
            self.step(seeds);
        }
        let mut stripe_index = self.stripe_index(hash);
        if self.stripes[stripe_index].is_full() {
            self.make_room(hash, seeds);
            stripe_index = self.stripe_index(hash);
        }
        self.stripes[stripe_index].insert(hash, id);
    }

    /// Takes out the entry with this hash that `is_match` accepts.
    pub fn remove(&mut self, hash: Hash, mut is_match: impl FnMut(EntryId) -> bool) -> Option<EntryId> {
        if self.directory.is_empty() {
            return None;
        }
        let stripe_index = self.stripe_index(hash);
        let mut stripe = &mut self.stripes[stripe_index];
        loop {
            if let Some(place) = stripe.find(hash, &mut is_match) {
                return Some(stripe.remove(hash, place));
            }
            if !stripe.is_target {
                return None;
            }
            stripe = &mut self.growth.as_mut()?.source;
        }
    }

    /// The index of the stripe that a hash chooses.
    #[inline]
    fn stripe_index(&self, hash: Hash) -> usize {
        self.directory[hash.directory_bits() & (self.directory.len() - 1)] as usize
    }

    /// Does a step of the growth under way.
    #[inline(never)]
    fn step(&mut self, seeds: &impl Seeds) {
        let Some(growth) = &mut self.growth else { return };
        if !growth.step(&self.hasher, seeds, &mut self.stripes) {
            self.growth = None;
        }
    }

    /// Begins the growth of the full stripe of this hash. While another one grows, the stripe waits
    /// until it is crowded, which is rare: then the growth under way and its own end at once.
    #[cold]
    fn make_room(&mut self, hash: Hash, seeds: &impl Seeds) {
        loop {
            let stripe = &self.stripes[self.stripe_index(hash)];
            let is_crowded = stripe.is_crowded();
            if !stripe.is_full() || (self.growth.is_some() && !is_crowded) {
                return;
            }
            if self.growth.is_none() {
                self.grow(hash, seeds);
            }
            while is_crowded && self.growth.is_some() {
                self.step(seeds);
            }
        }
    }

    /// Begins to double or to split the stripe that `hash` chooses.
    fn grow(&mut self, hash: Hash, seeds: &impl Seeds) {
        let low = self.stripe_index(hash);
        let Stripe { ref lines, depth, .. } = self.stripes[low];
        let can_split = depth < DIRECTORY_BITS
            && (depth < self.directory.len().trailing_zeros()
                || self.directory.len() < REFERENCES_PER_STRIPE * self.stripes.len());
        let splits = lines.len() >= STRIPE_LINES && can_split;
        let (lines, depth) = if splits { (lines.len(), depth + 1) } else { (lines.len() * 2, depth) };
        let source = std::mem::replace(&mut self.stripes[low], Stripe::new(lines, depth));
        let high = if splits { self.add_half(hash, Stripe::new(lines, depth)) } else { low };
        self.growth = Some(Box::new(Growth::new(source, [low, high], seeds, &mut self.stripes)));
    }

    /// Adds the upper half of the stripe that `hash` chooses: the next directory bit is set. Returns
    /// its index.
    fn add_half(&mut self, hash: Hash, half: Stripe) -> usize {
        let bit = 1 << (half.depth - 1);
        if self.directory.len() == bit {
            self.directory = self.directory.repeat(2).into_boxed_slice();
        }
        let high = self.stripes.len();
        self.stripes.push(half);
        let reference = u32::try_from(high).expect("fewer stripes than entries");
        let shared_bits = hash.directory_bits() & (bit - 1);
        for bits in (shared_bits | bit..self.directory.len()).step_by(2 * bit) {
            self.directory[bits] = reference;
        }
        high
    }
}

#[cfg(test)]
mod tests {
    use super::stripe::LINE_SLOTS;
    use super::*;

    impl Seeds for Vec<Hash> {
        fn seed(&self, id: EntryId) -> u32 {
            self[id as usize].seed()
        }
    }

    #[test]
    fn every_entry_is_found_after_many_splits_and_removals() {
        let mut index = Index::new(Hasher::new());
        let hashes: Vec<Hash> = (0..100_000).map(|n| index.hasher().hash(n)).collect();
        for (id, &hash) in hashes.iter().enumerate() {
            assert_eq!(index.find(hash, |entry| entry == id as u32), None);
            index.insert(hash, id as u32, &hashes);
        }
        assert!(index.stripes.len() >= 100_000 / (STRIPE_LINES * LINE_SLOTS));
        assert!(index.stripes.iter().all(|stripe| stripe.lines.len() <= STRIPE_LINES));
        for (id, &hash) in hashes.iter().enumerate().filter(|(id, _)| id % 2 == 0) {
            assert_eq!(index.remove(hash, |entry| entry == id as u32), Some(id as u32));
        }
        for (id, &hash) in hashes.iter().enumerate() {
            let expected = (id % 2 == 1).then_some(id as u32);
            assert_eq!(index.find(hash, |entry| entry == id as u32), expected);
        }
        for (id, &hash) in hashes.iter().enumerate().filter(|(id, _)| id % 2 == 1) {
            assert_eq!(index.remove(hash, |entry| entry == id as u32), Some(id as u32));
        }
        let lines = || index.stripes.iter().flat_map(|stripe| &stripe.lines);
        assert!(lines().all(|line| line.taken == 0 && line.spilled == 0));
    }

    #[test]
    fn a_search_ends_even_if_every_line_has_spilled() {
        let mut index = Index::new(Hasher::new());
        let hash = index.hasher().hash(7);
        let hashes = vec![hash; 3_000];
        for _ in 0..2 {
            (0..3_000).for_each(|id| index.insert(hash, id, &hashes));
            let stripe_index = index.stripe_index(hash);
            index.stripes[stripe_index].lines.iter_mut().for_each(|line| line.spilled = u8::MAX);
            assert_eq!(index.find(hash, |_| false), None);
            (0..3_000).for_each(|id| assert_eq!(index.remove(hash, |entry| entry == id), Some(id)));
            let lines = &index.stripes[stripe_index].lines;
            assert!(lines.len() == 1 && lines[0].spilled == 0);
        }
    }

    #[test]
    fn equal_hashes_beyond_a_stripe_are_kept_apart_by_their_entries() {
        let mut index = Index::new(Hasher::new());
        let hash = index.hasher().hash(7);
        let hashes = vec![hash; 3_000];
        for id in 0..3_000 {
            index.insert(hash, id, &hashes);
        }
        assert!((0..3_000).all(|id| index.find(hash, |entry| entry == id) == Some(id)));
        assert!((0..3_000).all(|id| index.remove(hash, |entry| entry == id) == Some(id)));
    }
}
