//! The clock whose versions a map gives to its entries: the wall clock, made monotone.
//!
//! A version is a time in microseconds since 1970, times 128. So versions of two nodes have the order
//! of the writes, as far as the wall clocks agree, and 128 writes fit in a microsecond. A version
//! takes less than 60 bits until 2112, which is a small integer for the VM.
//!
//! Each shard stamps its entries under its lock, above the last stamp of the shard. So the versions of
//! a key have the order of its writes, also when the wall clock is set back.

use crate::sync::{AtomicI64, Ordering};
use crate::term::Heap;

/// Versions in a microsecond.
pub const STEPS: i64 = 128;

/// The version of the present moment.
#[inline]
pub fn now<H: Heap>() -> i64 {
    H::wall_clock().saturating_mul(STEPS)
}

/// A clock that all partitions of a map share.
#[derive(Debug, Default)]
pub struct Clock {
    /// The greatest version of another clock that was seen.
    seen: AtomicI64,
}

impl Clock {
    /// Lets all later stamps be greater than a version of another clock.
    pub fn see(&self, version: i64) {
        self.seen.fetch_max(version, Ordering::AcqRel);
    }

    /// The greatest version of another clock that was seen.
    pub fn seen(&self) -> i64 {
        self.seen.load(Ordering::Acquire)
    }

    /// A version for a write at `now`, greater than the `last` stamp of its shard.
    #[inline]
    pub(crate) fn stamp(&self, now: i64, last: i64) -> i64 {
        now.max(last.max(self.seen()).saturating_add(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_greater_than_all_before_it() {
        let clock = Clock::default();
        assert_eq!([clock.stamp(100, 0), clock.stamp(100, 100), clock.stamp(50, 101)], [100, 101, 102]);
        clock.see(200);
        clock.see(150);
        assert_eq!([clock.stamp(100, 0), clock.stamp(300, 201)], [201, 300]);
        clock.see(i64::MAX);
        assert_eq!(clock.stamp(300, 301), i64::MAX);
    }
}
