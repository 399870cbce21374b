//! Which partition a key belongs to.
//!
//! The documented routing is `:erlang.phash2(:erlang.phash2(key), partitions)`. The inner hash is the VM's; the outer
//! one is of a small integer, and computing it here saves a call and keeps all 32 bits, of which NIFs see only 27.

/// `:erlang.phash2(key_hash, partitions)` for a `key_hash` that is itself the result of `:erlang.phash2/1`.
#[inline]
pub fn partition(key_hash: u32, partitions: u32) -> u32 {
    let hash = hash_of_small(key_hash);
    if partitions.is_power_of_two() {
        hash & (partitions - 1)
    } else {
        hash % partitions
    }
}

/// The 32 bits behind `phash2` of a non-negative integer below 2^27: Bob Jenkins' mix of the integer, as in `erl_term_hashing.c`.
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
        for (key_hash, partitions, expected) in PHASH2 {
            assert_eq!(partition(key_hash, partitions), expected, "phash2({key_hash}, {partitions})");
        }
    }

    /// Key hash, number of partitions, and what `:erlang.phash2(key_hash, partitions)` gives.
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
