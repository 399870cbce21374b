//! The totals of a partition's entries.
//!
//! All totals only grow. Each entry that a write adds leaves in exactly one way, so whenever the
//! partition is at rest:
//!
//! `written - coalesced = waiting + in flight + deleted + superseded + processed + given up`
//!
//! A change of the partition count keeps the law for the sum of all partitions: a partition that
//! takes in a leftover counts no write.

use std::ops::AddAssign;

/// Effects of writes and deletes on waiting entries. Counted under the lock of a shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Writes {
    /// Accepted writes.
    pub written: usize,
    /// Accepted writes that replaced a waiting entry or were added to it, and failed entries that
    /// joined a waiting one.
    pub coalesced: usize,
    /// Writes refused for a stale version.
    pub stale: usize,
    /// Entries deleted while they waited.
    pub deleted: usize,
}

impl AddAssign for Writes {
    fn add_assign(&mut self, other: Self) {
        self.written += other.written;
        self.coalesced += other.coalesced;
        self.stale += other.stale;
        self.deleted += other.deleted;
    }
}

/// Outcomes of entries in flight, and failures of the processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// Claimed entries, and entries with which the processor succeeded.
    pub processed: usize,
    /// Entries replaced by a newer write, or deleted in flight.
    pub superseded: usize,
    /// Entries given up.
    pub given_up: usize,
    /// Failures: an entry counts once for each, except for splits. Entries of a lost call count as
    /// well.
    pub failed: usize,
}

impl Ended {
    /// The number of entries that left.
    pub(crate) fn left(self) -> usize {
        self.processed + self.superseded + self.given_up
    }
}

impl AddAssign for Ended {
    fn add_assign(&mut self, other: Self) {
        self.processed += other.processed;
        self.superseded += other.superseded;
        self.given_up += other.given_up;
        self.failed += other.failed;
    }
}
