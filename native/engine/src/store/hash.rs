//! Hashes of keys: each part of a hash chooses one step of the way to an entry.

use ahash::RandomState;

/// The lowest of the four hash bits that choose the shard.
const SHARD_SHIFT: u32 = 28;

/// The lowest of the hash bits that choose the stripe. The lowest bits of all choose the line.
const DIRECTORY_SHIFT: u32 = 32;

/// How many hash bits may choose the stripe. The next eight are the tag.
pub(super) const DIRECTORY_BITS: u32 = 24;

/// A 64-bit hash of a key, with the 32 bits that it can be recomputed from.
#[derive(Clone, Copy, Debug)]
pub struct Hash {
    /// The bits kept with the entry.
    seed: u32,
    /// The seed, spread over 64 bits.
    spread: u64,
}

impl Hash {
    /// The bits that the hash can be recomputed from.
    pub fn seed(self) -> u32 {
        self.seed
    }

    /// The bits that choose a shard.
    #[inline]
    pub fn shard_bits(self) -> usize {
        (self.spread >> SHARD_SHIFT) as usize & ((1 << (DIRECTORY_SHIFT - SHARD_SHIFT)) - 1)
    }

    /// The bits that choose a stripe; the directory uses the lowest.
    #[inline]
    pub(super) fn directory_bits(self) -> usize {
        (self.spread >> DIRECTORY_SHIFT) as usize & ((1 << DIRECTORY_BITS) - 1)
    }

    /// The bits that choose a line; a stripe uses the lowest.
    #[inline]
    pub(super) fn line_bits(self) -> usize {
        self.spread as usize
    }

    /// The bits that a slot keeps.
    #[inline]
    pub(super) fn tag(self) -> u8 {
        (self.spread >> (DIRECTORY_SHIFT + DIRECTORY_BITS)) as u8
    }
}

/// Makes the hashes of one buffer, with a random key, so that nobody can choose keys that collide.
#[derive(Clone, Debug)]
pub struct Hasher {
    /// Spreads a seed over 64 bits.
    state: RandomState,
    /// The salt for the terms' own hash function.
    salt: u32,
}

impl Hasher {
    /// A hasher with a random key and salt.
    pub fn new() -> Self {
        Hasher::with_state(RandomState::new())
    }

    /// A hasher that always makes the same hashes, for tests that can be repeated.
    pub fn seeded(seed: u64) -> Self {
        Hasher::with_state(RandomState::with_seeds(seed, 1, 2, 3))
    }

    /// A hasher with this key.
    fn with_state(state: RandomState) -> Self {
        let salt = state.hash_one(0x5eed_u32) as u32;
        Hasher { state, salt }
    }

    /// The salt for the terms' own hash function.
    pub fn salt(&self) -> u32 {
        self.salt
    }

    /// The hash of a key, from the salted hash of its term.
    #[inline]
    pub fn hash(&self, term_hash: u64) -> Hash {
        self.rehash((term_hash ^ (term_hash >> 32)) as u32)
    }

    /// Recomputes a hash from its seed.
    #[inline]
    pub(crate) fn rehash(&self, seed: u32) -> Hash {
        Hash { seed, spread: self.state.hash_one(seed) }
    }
}

impl Default for Hasher {
    fn default() -> Self {
        Self::new()
    }
}
