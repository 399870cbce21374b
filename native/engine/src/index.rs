//! From the hash of a key to the number of its entry, without long pauses: extendible hashing.
//!
//! One large hash table that doubles stops its writer for as long as moving all of it takes. Here the slots are spread
//! over many small tables, *stripes*, found through a directory by some bits of the hash. A full stripe splits in two
//! by one more bit; only the directory, four bytes a stripe or two, is ever copied as a whole.
//!
//! A stripe is probed linearly, and a slot holds enough of the hash to tell keys apart: looking a key up costs one
//! access to memory that is not in the cache, beside that to the entry. (A table with control bytes costs two: measured
//! as 40 of 170 ns of a `put` among 100,000 keys.)

use ahash::RandomState;

use crate::entries::EntryId;

/// Slots of a stripe at the most. It splits when three quarters are taken.
const STRIPE_SLOTS: usize = 2_048;

/// Slots of the first stripe of an index at first.
const FIRST_SLOTS: usize = 8;

/// The hash bits from this one on choose the stripe, those below the slot.
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
    /// The entry's number, or `Slot::FREE`.
    entry: EntryId,
}

impl Slot {
    /// Where there is no entry.
    const FREE: Self = Slot { seed: 0, entry: EntryId::MAX };

    /// Whether there is no entry.
    #[inline]
    fn is_free(self) -> bool {
        self.entry == EntryId::MAX
    }
}

/// A small hash table of slots whose hashes have `depth` directory bits in common.
///
/// Invariant: between the slot that a hash points to and the one that has it, none is free.
struct Stripe {
    /// The slots, a power of two of them, of which at most three quarters are taken.
    slots: Box<[Slot]>,
    /// How many are taken.
    taken: usize,
    /// How many bits the hashes of this stripe share.
    depth: u32,
}

impl Stripe {
    /// A stripe without entries.
    fn new(slots: usize, depth: u32) -> Self {
        Stripe { slots: vec![Slot::FREE; slots].into_boxed_slice(), taken: 0, depth }
    }

    /// Whether one more would be too many.
    #[inline]
    fn is_full(&self) -> bool {
        self.taken >= self.slots.len() / 4 * 3
    }

    /// The place of the entry of this hash for which `is_it` holds.
    #[inline]
    fn find(&self, hash: Hash, mut is_it: impl FnMut(EntryId) -> bool) -> Option<usize> {
        let mask = self.slots.len() - 1;
        let mut place = hash.spread as usize & mask;
        loop {
            let slot = self.slots[place];
            if slot.is_free() {
                return None;
            }
            if slot.seed == hash.seed && is_it(slot.entry) {
                return Some(place);
            }
            place = (place + 1) & mask;
        }
    }

    /// Adds a slot; the stripe must not be full.
    #[inline]
    fn insert(&mut self, hash: Hash, entry: EntryId) {
        let mask = self.slots.len() - 1;
        let mut place = hash.spread as usize & mask;
        while !self.slots[place].is_free() {
            place = (place + 1) & mask;
        }
        self.slots[place] = Slot { seed: hash.seed, entry };
        self.taken += 1;
    }

    /// Frees a slot. Those behind it move up, where that brings them closer to the one that their hash points to.
    fn remove(&mut self, mut gap: usize, hasher: &Hasher) {
        let mask = self.slots.len() - 1;
        let mut place = gap;
        loop {
            place = (place + 1) & mask;
            let slot = self.slots[place];
            if slot.is_free() {
                break;
            }
            let home = hasher.rehash(slot.seed).spread as usize & mask;
            if place.wrapping_sub(home) & mask >= place.wrapping_sub(gap) & mask {
                self.slots[gap] = slot;
                gap = place;
            }
        }
        self.slots[gap] = Slot::FREE;
        self.taken -= 1;
    }

    /// The taken slots with their hashes.
    fn entries<'a>(&'a self, hasher: &'a Hasher) -> impl Iterator<Item = (Hash, EntryId)> + 'a {
        self.slots.iter().filter(|slot| !slot.is_free()).map(|slot| (hasher.rehash(slot.seed), slot.entry))
    }
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
    pub fn find(&self, hash: Hash, is_it: impl FnMut(EntryId) -> bool) -> Option<EntryId> {
        if self.directory.is_empty() {
            return None;
        }
        let stripe = &self.stripes[self.stripe(hash)];
        stripe.find(hash, is_it).map(|place| stripe.slots[place].entry)
    }

    /// Adds an entry that is not yet there.
    #[inline]
    pub fn insert(&mut self, hash: Hash, entry: EntryId) {
        if self.directory.is_empty() {
            self.directory.push(0);
            self.stripes.push(Stripe::new(FIRST_SLOTS, 0));
        }
        let mut stripe = self.stripe(hash);
        while self.stripes[stripe].is_full() {
            self.make_room(stripe, hash);
            stripe = self.stripe(hash);
        }
        self.stripes[stripe].insert(hash, entry);
    }

    /// Takes out the entry of this hash for which `is_it` holds.
    pub fn remove(&mut self, hash: Hash, is_it: impl FnMut(EntryId) -> bool) -> Option<EntryId> {
        if self.directory.is_empty() {
            return None;
        }
        let stripe = self.stripe(hash);
        let stripe = &mut self.stripes[stripe];
        let place = stripe.find(hash, is_it)?;
        let entry = stripe.slots[place].entry;
        stripe.remove(place, &self.hasher);
        Some(entry)
    }

    /// The place in `stripes` of the stripe for a hash.
    #[inline]
    fn stripe(&self, hash: Hash) -> usize {
        self.directory[directory_bits(hash) & (self.directory.len() - 1)] as usize
    }

    /// Doubles a small stripe, divides a large one. `hash` belongs to it.
    #[cold]
    fn make_room(&mut self, number: usize, hash: Hash) {
        let Stripe { ref slots, depth, .. } = self.stripes[number];
        let can_split = depth < self.directory.len().trailing_zeros()
            || self.directory.len() < PLACES_PER_STRIPE * self.stripes.len();
        if slots.len() < STRIPE_SLOTS || !can_split {
            let mut larger = Stripe::new(slots.len() * 2, depth);
            self.stripes[number].entries(&self.hasher).for_each(|(hash, entry)| larger.insert(hash, entry));
            self.stripes[number] = larger;
        } else {
            self.split(number, hash);
        }
    }

    /// Divides the stripe `low`, to which `hash` belongs, by the next directory bit.
    fn split(&mut self, low: usize, hash: Hash) {
        let depth = self.stripes[low].depth;
        if self.directory.len() == 1 << depth {
            self.directory.extend_from_within(..);
        }
        let slots = self.stripes[low].slots.len();
        let mut halves = [Stripe::new(slots, depth + 1), Stripe::new(slots, depth + 1)];
        for (hash, entry) in self.stripes[low].entries(&self.hasher) {
            halves[directory_bits(hash) >> depth & 1].insert(hash, entry);
        }
        let high = u32::try_from(self.stripes.len()).expect("fewer stripes than entries");
        let [low_half, high_half] = halves;
        self.stripes[low] = low_half;
        self.stripes.push(high_half);
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
        assert!(index.stripes.iter().all(|stripe| stripe.slots.len() <= STRIPE_SLOTS));
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
