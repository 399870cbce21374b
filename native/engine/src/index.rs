//! From the hash of a key to the number of its entry, without long pauses and with few cache misses: extendible hashing.
//!
//! One large hash table that doubles stops its writer for as long as moving all of it takes. Here the entries are spread
//! over many small tables, *stripes*, found through a directory by some bits of the hash. A full stripe splits in two
//! by one more bit; only the directory, four bytes a stripe or two, is ever copied as a whole.
//!
//! A stripe is made of *lines* the size of a cache line, each with up to twelve entry numbers and eight bits of each
//! one's hash. A key is looked for in the line that its hash points to, and in the next where that one has spilled: one
//! access to memory that is most likely not in the cache, beside that to the entry, and nine bytes an entry.

use ahash::RandomState;

use crate::ids::EntryId;
use crate::term::Heap;

/// Entries in a line.
const LINE_ENTRIES: usize = 12;

/// Lines of a stripe at the most: 4 kB. It splits when three quarters of their places are taken: of a put that takes longest.
const STRIPE_LINES: usize = 64;

/// The hash bits from this one on, and below those of the directory, choose the shard.
const SHARD_SHIFT: u32 = 28;

/// The hash bits from this one on choose the stripe, the lowest the line.
const DIRECTORY_SHIFT: u32 = 32;

/// How many bits may choose the stripe. Eight above them are the tag.
const DIRECTORY_BITS: u32 = 24;

/// The directory is not doubled beyond so many places a stripe. Only hashes that are equal get there; their stripe then
/// grows as any hash table does.
const PLACES_PER_STRIPE: usize = 64;

/// A 64-bit hash of a key, with the 32 bits that are kept and from which it can be made again.
#[derive(Clone, Copy, Debug)]
pub struct Hash {
    /// What is kept for each entry.
    seed: u32,
    /// `seed`, spread over 64 bits.
    spread: u64,
}

impl Hash {
    /// The bits from which the hash can be made again.
    pub fn seed(self) -> u32 {
        self.seed
    }

    /// The bits that choose a shard of the partition.
    #[inline]
    pub fn shard_bits(self) -> usize {
        (self.spread >> SHARD_SHIFT) as usize & ((1 << (DIRECTORY_SHIFT - SHARD_SHIFT)) - 1)
    }

    /// The bits that choose a stripe, of which a directory uses as many as it is long.
    #[inline]
    fn directory_bits(self) -> usize {
        (self.spread >> DIRECTORY_SHIFT) as usize & ((1 << DIRECTORY_BITS) - 1)
    }

    /// The bits that choose a line; a stripe uses as many as it has lines.
    #[inline]
    fn line_bits(self) -> usize {
        self.spread as usize
    }

    /// The bits that a line keeps of the hash.
    #[inline]
    fn tag(self) -> u8 {
        (self.spread >> (DIRECTORY_SHIFT + DIRECTORY_BITS)) as u8
    }
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
        Hasher::with_state(RandomState::new())
    }

    /// A hasher that makes the same hashes each time: for tests that are to be run again.
    pub fn seeded(seed: u64) -> Self {
        Hasher::with_state(RandomState::with_seeds(seed, 1, 2, 3))
    }

    /// A hasher with this key.
    fn with_state(state: RandomState) -> Self {
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

/// Entries whose hashes point to the same place, as far as there is room.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line {
    /// The tags of the entries, in the order of `entries`.
    tags: [u8; LINE_ENTRIES],
    /// How many entries there are, from the first place on.
    taken: u8,
    /// How many entries whose hash points here, or before, are in a later line; stays at 255 once there.
    spilled: u8,
    /// The numbers of the entries.
    entries: [EntryId; LINE_ENTRIES],
}

impl Line {
    /// A line without entries.
    const EMPTY: Self = Line { tags: [0; LINE_ENTRIES], taken: 0, spilled: 0, entries: [0; LINE_ENTRIES] };

    /// The place of the entry with this tag for which `is_it` holds.
    #[inline]
    fn find(&self, tag: u8, mut is_it: impl FnMut(EntryId) -> bool) -> Option<usize> {
        const ONES: u64 = 0x0101_0101_0101_0101;
        let [a, b, c, d, e, f, g, h, i, j, k, l] = self.tags;
        let words = [u64::from_le_bytes([a, b, c, d, e, f, g, h]), u64::from_le_bytes([i, j, k, l, 0, 0, 0, 0])];
        for (word, tags) in words.into_iter().enumerate() {
            // A byte is zero where the tag is the same. The trick may also mark a byte above such a one, or a place that
            // is not taken: `is_it` and the comparison below sort them out.
            let differences = tags ^ (ONES * u64::from(tag));
            let mut same = differences.wrapping_sub(ONES) & !differences & (ONES << 7);
            while same != 0 {
                let place = word * 8 + same.trailing_zeros() as usize / 8;
                if place < usize::from(self.taken) && is_it(self.entries[place]) {
                    return Some(place);
                }
                same &= same - 1;
            }
        }
        None
    }
}

/// A small hash table of entries whose hashes have `depth` directory bits in common.
struct Stripe {
    /// The lines, a power of two of them, of whose places at most three quarters are taken.
    lines: Box<[Line]>,
    /// How many places are taken.
    taken: usize,
    /// How many bits the hashes of this stripe share.
    depth: u32,
}

impl Stripe {
    /// A stripe without entries.
    fn new(lines: usize, depth: u32) -> Self {
        Stripe { lines: vec![Line::EMPTY; lines].into_boxed_slice(), taken: 0, depth }
    }

    /// Whether one more would be too many.
    #[inline]
    fn is_full(&self) -> bool {
        self.taken >= self.lines.len() * LINE_ENTRIES / 4 * 3
    }

    /// Line and place of the entry of this hash for which `is_it` holds.
    #[inline]
    fn find(&self, hash: Hash, mut is_it: impl FnMut(EntryId) -> bool) -> Option<(usize, usize)> {
        let mask = self.lines.len() - 1;
        let mut number = hash.line_bits() & mask;
        // A line that has spilled 255 times says so for ever, and so may all of them.
        for _ in 0..self.lines.len() {
            let line = &self.lines[number];
            if let Some(place) = line.find(hash.tag(), &mut is_it) {
                return Some((number, place));
            }
            if line.spilled == 0 {
                return None;
            }
            number = (number + 1) & mask;
        }
        None
    }

    /// Adds an entry; the stripe must not be full.
    #[inline]
    fn insert(&mut self, hash: Hash, entry: EntryId) {
        let mask = self.lines.len() - 1;
        let mut number = hash.line_bits() & mask;
        while usize::from(self.lines[number].taken) == LINE_ENTRIES {
            self.lines[number].spilled = self.lines[number].spilled.saturating_add(1);
            number = (number + 1) & mask;
        }
        let line = &mut self.lines[number];
        let place = usize::from(line.taken);
        line.tags[place] = hash.tag();
        line.entries[place] = entry;
        line.taken += 1;
        self.taken += 1;
    }

    /// Takes out the entry of this hash at a place. The last of its line takes the place.
    fn remove(&mut self, hash: Hash, number: usize, place: usize) -> EntryId {
        let mask = self.lines.len() - 1;
        let mut passed = hash.line_bits() & mask;
        while passed != number {
            let spilled = &mut self.lines[passed].spilled;
            if *spilled < u8::MAX {
                *spilled -= 1;
            }
            passed = (passed + 1) & mask;
        }
        let line = &mut self.lines[number];
        let entry = line.entries[place];
        line.taken -= 1;
        let last = usize::from(line.taken);
        line.tags[place] = line.tags[last];
        line.entries[place] = line.entries[last];
        self.taken -= 1;
        if self.taken == 0 && mask > 0 {
            // As new: without the marks of what had spilled.
            *self = Stripe::new(1, self.depth);
        }
        entry
    }

    /// Calls `place` with each entry and its hash.
    fn rehash(&self, hasher: &Hasher, seeds: &impl Seeds, mut place: impl FnMut(Hash, EntryId)) {
        for lines in self.lines.chunks(LINES_AHEAD) {
            let entries = || lines.iter().flat_map(|line| &line.entries[..usize::from(line.taken)]).copied();
            entries().for_each(|entry| seeds.prefetch(entry));
            entries().for_each(|entry| place(hasher.rehash(seeds.seed(entry)), entry));
        }
    }
}

/// Lines of a stripe whose entries' seeds are asked for at the same time when it is rehashed: they lie anywhere in memory.
const LINES_AHEAD: usize = 8;

/// Where an index asks for the seeds of its entries' hashes.
pub trait Seeds {
    /// The seed of the hash of an entry.
    fn seed(&self, entry: EntryId) -> u32;

    /// Lets it come into the cache meanwhile.
    fn prefetch(&self, _entry: EntryId) {}
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

    /// Lets the line that will be looked at for this hash come into the cache meanwhile.
    #[inline]
    pub fn prefetch<H: Heap>(&self, hash: Hash) {
        if !self.directory.is_empty() {
            let lines = &self.stripes[self.stripe(hash)].lines;
            H::prefetch(&lines[hash.line_bits() & (lines.len() - 1)]);
        }
    }

    /// The entry of this hash for which `is_it` holds.
    #[inline]
    pub fn find(&self, hash: Hash, is_it: impl FnMut(EntryId) -> bool) -> Option<EntryId> {
        if self.directory.is_empty() {
            return None;
        }
        let stripe = &self.stripes[self.stripe(hash)];
        stripe.find(hash, is_it).map(|(line, place)| stripe.lines[line].entries[place])
    }

    /// Adds an entry that is not yet there. `seeds` knows those of the others.
    #[inline]
    pub fn insert(&mut self, hash: Hash, entry: EntryId, seeds: &impl Seeds) {
        if self.directory.is_empty() {
            self.directory.push(0);
            self.stripes.push(Stripe::new(1, 0));
        }
        let mut stripe = self.stripe(hash);
        while self.stripes[stripe].is_full() {
            self.make_room(stripe, hash, seeds);
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
        let (line, place) = stripe.find(hash, is_it)?;
        Some(stripe.remove(hash, line, place))
    }

    /// The place in `stripes` of the stripe for a hash.
    #[inline]
    fn stripe(&self, hash: Hash) -> usize {
        self.directory[hash.directory_bits() & (self.directory.len() - 1)] as usize
    }

    /// Doubles a small stripe, divides a large one. `hash` belongs to it.
    #[cold]
    fn make_room(&mut self, number: usize, hash: Hash, seeds: &impl Seeds) {
        let Stripe { ref lines, depth, .. } = self.stripes[number];
        let can_split = depth < DIRECTORY_BITS
            && (depth < self.directory.len().trailing_zeros()
                || self.directory.len() < PLACES_PER_STRIPE * self.stripes.len());
        if lines.len() < STRIPE_LINES || !can_split {
            let mut larger = Stripe::new(lines.len() * 2, depth);
            self.stripes[number].rehash(&self.hasher, seeds, |hash, entry| larger.insert(hash, entry));
            self.stripes[number] = larger;
        } else {
            self.split(number, hash, seeds);
        }
    }

    /// Divides the stripe `low`, to which `hash` belongs, by the next directory bit.
    fn split(&mut self, low: usize, hash: Hash, seeds: &impl Seeds) {
        let depth = self.stripes[low].depth;
        if self.directory.len() == 1 << depth {
            self.directory.extend_from_within(..);
        }
        let lines = self.stripes[low].lines.len();
        let mut halves = [Stripe::new(lines, depth + 1), Stripe::new(lines, depth + 1)];
        self.stripes[low].rehash(&self.hasher, seeds, |hash, entry| {
            halves[hash.directory_bits() >> depth & 1].insert(hash, entry);
        });
        let high = u32::try_from(self.stripes.len()).expect("fewer stripes than entries");
        let [low_half, high_half] = halves;
        self.stripes[low] = low_half;
        self.stripes.push(high_half);
        let shared_bits = hash.directory_bits() & ((1 << depth) - 1);
        for place in (shared_bits | 1 << depth..self.directory.len()).step_by(1 << (depth + 1)) {
            self.directory[place] = high;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Seeds for Vec<Hash> {
        fn seed(&self, entry: EntryId) -> u32 {
            self[entry as usize].seed()
        }
    }

    #[test]
    fn a_line_is_a_cache_line() {
        assert_eq!(size_of::<Line>(), 64);
    }

    #[test]
    fn every_entry_is_found_after_many_splits_and_removals() {
        let mut index = Index::new(Hasher::new());
        let hashes: Vec<Hash> = (0..100_000).map(|n| index.hasher().hash(n)).collect();
        for (id, &hash) in hashes.iter().enumerate() {
            assert_eq!(index.find(hash, |entry| entry == id as u32), None);
            index.insert(hash, id as u32, &hashes);
        }
        assert!(index.stripes.len() >= 100_000 / (STRIPE_LINES * LINE_ENTRIES));
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
    fn a_search_ends_where_every_line_has_spilled_and_an_empty_stripe_is_as_new() {
        let mut index = Index::new(Hasher::new());
        let hash = index.hasher().hash(7);
        let hashes = vec![hash; 3_000];
        for _ in 0..2 {
            (0..3_000).for_each(|id| index.insert(hash, id, &hashes));
            let stripe = index.stripe(hash);
            index.stripes[stripe].lines.iter_mut().for_each(|line| line.spilled = u8::MAX);
            assert_eq!(index.find(hash, |_| false), None);
            (0..3_000).for_each(|id| assert_eq!(index.remove(hash, |entry| entry == id), Some(id)));
            let lines = &index.stripes[stripe].lines;
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
