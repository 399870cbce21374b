//! From the hash of a key to the number of its entry, without long pauses: extendible hashing.
//!
//! One large hash table that doubles stops its writer for as long as moving all of it takes. Here the slots are spread
//! over many small tables, *stripes*, found through a directory by some bits of the hash. A full stripe splits in two
//! by one more bit; only the directory, four bytes a stripe or two, is ever copied as a whole.

use ahash::RandomState;
use hashbrown::hash_table::HashTable;

use crate::entries::EntryId;

/// Slots at which a stripe splits: what a table of 2,048 buckets takes before it would grow.
const STRIPE_SLOTS: usize = 1_792;

/// The hash bits below this one choose the bucket within a stripe, the seven highest are its tag.
const DIRECTORY_SHIFT: u32 = 32;

/// The directory is not doubled beyond so many places a stripe. Only hashes that are equal get there; their stripe then
/// grows as any hash table does.
const PLACES_PER_STRIPE: usize = 64;

/// A 64-bit hash of a key, with the 32 bits that are kept and from which it can be made again.
#[derive(Clone, Copy, Debug)]
pub struct Hash {
    /// What is kept in the slot.
    seed: u32,
    /// `seed`, spread over 64 bits.
    spread: u64,
}

/// Makes hashes of one buffer. Its key is random, so that nobody can choose keys that collide.
#[derive(Clone, Debug)]
pub struct Hasher {
    /// Spreads 32 bits over 64.
    state: RandomState,
    /// Makes the hash function of the terms themselves differ from one buffer to the next.
    salt: u32,
}

impl Hasher {
    /// A hasher with a random key and salt.
    pub fn new() -> Self {
        let state = RandomState::new();
        let salt = state.hash_one(0x5eed_u32) as u32;
        Hasher { state, salt }
    }

    /// What the terms' own hash function is to be salted with.
    pub fn salt(&self) -> u32 {
        self.salt
    }

    /// The hash of a key, from the salted hash that its own type makes.
    #[inline]
    pub fn hash(&self, term_hash: u64) -> Hash {
        self.rehash((term_hash ^ (term_hash >> 32)) as u32)
    }

    /// The hash that belongs to the kept 32 bits.
    #[inline]
    fn rehash(&self, seed: u32) -> Hash {
        Hash { seed, spread: self.state.hash_one(seed) }
    }
}

impl Default for Hasher {
    fn default() -> Self {
        Self::new()
    }
}

/// What a stripe holds for an entry.
#[derive(Clone, Copy)]
struct Slot {
    /// The 32 bits from which the hash can be made again without reading the entry.
    seed: u32,
    /// The entry's number.
    entry: EntryId,
}

/// A small hash table of slots whose hashes have `depth` directory bits in common.
struct Stripe {
    /// The slots.
    table: HashTable<Slot>,
    /// How many bits the hashes of this stripe share.
    depth: u32,
}

/// The index of one generation. Its length and the hashes' uniqueness are its user's concern.
pub struct Index {
    /// Makes the hashes of kept seeds again.
    hasher: Hasher,
    /// From the low bits of the shifted hash to a stripe; empty or a power of two.
    directory: Vec<u32>,
    /// The stripes; each stands in the directory `2^(directory bits - depth)` times.
    stripes: Vec<Stripe>,
}

impl Index {
    /// An empty index for hashes made by `hasher`; allocates nothing.
    pub fn new(hasher: Hasher) -> Self {
        Index { hasher, directory: Vec::new(), stripes: Vec::new() }
    }

    /// The hasher whose hashes this index is for.
    pub fn hasher(&self) -> &Hasher {
        &self.hasher
    }

    /// The entry of this hash for which `is_it` holds.
    #[inline]
    pub fn find(&self, hash: Hash, mut is_it: impl FnMut(EntryId) -> bool) -> Option<EntryId> {
        if self.directory.is_empty() {
            return None;
        }
        let table = &self.stripes[self.stripe(hash)].table;
        table.find(hash.spread, |slot| slot.seed == hash.seed && is_it(slot.entry)).map(|slot| slot.entry)
    }

    /// Adds an entry that is not yet there.
    #[inline]
    pub fn insert(&mut self, hash: Hash, entry: EntryId) {
        if self.directory.is_empty() {
            self.directory.push(0);
            self.stripes.push(Stripe { table: HashTable::new(), depth: 0 });
        }
        let mut stripe = self.stripe(hash);
        while self.stripes[stripe].table.len() >= STRIPE_SLOTS && self.can_split(stripe) {
            self.split(stripe, hash);
            stripe = self.stripe(hash);
        }
        let hasher = &self.hasher;
        let slot = Slot { seed: hash.seed, entry };
        self.stripes[stripe].table.insert_unique(hash.spread, slot, |slot| hasher.rehash(slot.seed).spread);
    }

    /// Takes out the entry of this hash for which `is_it` holds.
    pub fn remove(&mut self, hash: Hash, mut is_it: impl FnMut(EntryId) -> bool) -> Option<EntryId> {
        if self.directory.is_empty() {
            return None;
        }
        let stripe = self.stripe(hash);
        let table = &mut self.stripes[stripe].table;
        let found = table.find_entry(hash.spread, |slot| slot.seed == hash.seed && is_it(slot.entry)).ok()?;
        Some(found.remove().0.entry)
    }

    /// The place in `stripes` of the stripe for a hash.
    #[inline]
    fn stripe(&self, hash: Hash) -> usize {
        self.directory[directory_bits(hash) & (self.directory.len() - 1)] as usize
    }

    /// Whether there is a bit left to divide the stripe by.
    fn can_split(&self, stripe: usize) -> bool {
        self.stripes[stripe].depth < self.directory.len().trailing_zeros()
            || self.directory.len() < PLACES_PER_STRIPE * self.stripes.len()
    }

    /// Divides the full stripe `low`, to which `hash` belongs, by the next directory bit.
    #[cold]
    fn split(&mut self, low: usize, hash: Hash) {
        let depth = self.stripes[low].depth;
        if self.directory.len() == 1 << depth {
            self.directory.extend_from_within(..);
        }
        let hasher = &self.hasher;
        let spread = |slot: &Slot| hasher.rehash(slot.seed).spread;
        let old = std::mem::take(&mut self.stripes[low].table);
        let mut halves = [HashTable::with_capacity(old.len() / 2), HashTable::with_capacity(old.len() / 2)];
        for slot in old {
            let hash = hasher.rehash(slot.seed);
            let half = &mut halves[directory_bits(hash) >> depth & 1];
            half.insert_unique(hash.spread, slot, spread);
        }
        let [low_half, high_half] = halves;
        let high = u32::try_from(self.stripes.len()).expect("fewer stripes than entries");
        self.stripes[low] = Stripe { table: low_half, depth: depth + 1 };
        self.stripes.push(Stripe { table: high_half, depth: depth + 1 });
        let shared_bits = directory_bits(hash) & ((1 << depth) - 1);
        for place in (shared_bits | 1 << depth..self.directory.len()).step_by(1 << (depth + 1)) {
            self.directory[place] = high;
        }
    }
}

/// The bits of a hash that choose its place in a directory, of which a directory uses as many as it is long.
#[inline]
fn directory_bits(hash: Hash) -> usize {
    (hash.spread >> DIRECTORY_SHIFT) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_is_found_after_many_splits_and_removals() {
        let mut index = Index::new(Hasher::new());
        let hashes: Vec<Hash> = (0..100_000).map(|n| index.hasher().hash(n)).collect();
        for (id, &hash) in hashes.iter().enumerate() {
            assert_eq!(index.find(hash, |entry| entry == id as u32), None);
            index.insert(hash, id as u32);
        }
        assert!(index.stripes.len() >= 100_000 / STRIPE_SLOTS);
        assert!(index.stripes.iter().all(|stripe| stripe.table.len() <= STRIPE_SLOTS));
        for (id, &hash) in hashes.iter().enumerate().step_by(2) {
            assert_eq!(index.remove(hash, |entry| entry == id as u32), Some(id as u32));
        }
        for (id, &hash) in hashes.iter().enumerate() {
            let expected = (id % 2 == 1).then_some(id as u32);
            assert_eq!(index.find(hash, |entry| entry == id as u32), expected);
        }
    }

    #[test]
    fn equal_hashes_beyond_a_stripe_are_kept_apart_by_their_entries() {
        let mut index = Index::new(Hasher::new());
        let hash = index.hasher().hash(7);
        for id in 0..3_000 {
            index.insert(hash, id);
        }
        assert!((0..3_000).all(|id| index.find(hash, |entry| entry == id) == Some(id)));
    }
}
