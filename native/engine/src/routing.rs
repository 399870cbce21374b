//! Which partition a key belongs to.
//!
//! The documented routing is `:erlang.phash2(:erlang.phash2(key), partitions)`. The VM computes the
//! inner hash. The outer one is computed here: this saves a call and keeps all 32 bits, of which
//! the VM gives a NIF only 27.

/// `:erlang.phash2(key_hash, partition_count)` for a `key_hash` from `:erlang.phash2/1`.
#[inline]
pub fn partition(key_hash: u32, partition_count: u32) -> u32 {
    let hash = hash_of_small(key_hash);
    if partition_count.is_power_of_two() {
        hash & (partition_count - 1)
    } else {
        hash % partition_count
    }
}

/// All 32 bits of the hash of an integer below 2^27: Bob Jenkins' mix, as in `erl_term_hashing.c`.
#[inline]
fn hash_of_small(integer: u32) -> u32 {
    const GOLDEN_RATIO: u32 = 0x9e37_79b9;
    let (mut a, mut b, mut c) = (GOLDEN_RATIO.wrapping_add(integer), GOLDEN_RATIO, 0_u32);
    a = a.wrapping_sub(b).wrapping_sub(c) ^ (c >> 13);
    b = b.wrapping_sub(c).wrapping_sub(a) ^ (a << 8);
    c = c.wrapping_sub(a).wrapping_sub(b) ^ (b >> 13);
    a = a.wrapping_sub(b).wrapping_sub(c) ^ (c >> 12);
    b = b.wrapping_sub(c).wrapping_sub(a) ^ (a << 16);
    c = c.wrapping_sub(a).wrapping_sub(b) ^ (b >> 5);
    a = a.wrapping_sub(b).wrapping_sub(c) ^ (c >> 3);
    b = b.wrapping_sub(c).wrapping_sub(a) ^ (a << 10);
    c.wrapping_sub(a).wrapping_sub(b) ^ (b >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_hash_is_routed_as_by_phash2() {
        for (key_hash, partition_count, expected) in PHASH2 {
            assert_eq!(partition(key_hash, partition_count), expected, "phash2({key_hash}, {partition_count})");
        }
    }

    /// Key hash, partition count, and the result of `:erlang.phash2/2`.
    const PHASH2: [(u32, u32, u32); 12] = [
        (0, 2, 1),
        (0, 7, 1),
        (0, 1000, 469),
        (0, 4_294_967_295, 3_175_731_469),
        (1, 3, 1),
        (1, 1000, 162),
        (2, 4_294_967_295, 2_577_631_668),
        (1000, 1, 0),
        (1000, 1000, 57),
        (98_765_432, 1000, 921),
        (134_217_727, 7, 1),
        (134_217_727, 4_294_967_295, 4_273_352_567),
    ];
}
