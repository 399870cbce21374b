//! What is counted of a partition's entries.
//!
//! All counts only grow. Each entry that a write has added leaves in exactly one way, so at any time at which nothing
//! is under way:
//!
//! `written - coalesced = waiting + in flight + deleted + superseded + processed + given up`

use std::ops::AddAssign;

use crate::sync::Mutex;

/// What writes and deletes have done to entries that wait. Counted under the lock of a shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Writes {
    /// Writes that were taken.
    pub written: usize,
    /// Those of them that have replaced an entry that waited, or were added to it; and entries that were given back and
    /// added to one.
    pub coalesced: usize,
    /// Writes that were not taken, because the version there is as high.
    pub stale: usize,
    /// Entries that were deleted while they waited.
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

/// How entries in flight have ended, and how often the processor has failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// Entries that were claimed, or have succeeded.
    pub processed: usize,
    /// Entries that a newer write has replaced, or that were deleted.
    pub superseded: usize,
    /// Entries that were given up.
    pub given_up: usize,
    /// How often the processor has failed with an entry.
    pub failed: usize,
}

impl Ended {
    /// How many entries have left.
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

/// Where the flushes of a partition count how their entries have ended. Its lock is taken last of all.
#[derive(Default)]
pub(crate) struct Outcomes(Mutex<Ended>);

impl Outcomes {
    /// Counts.
    pub(crate) fn add(&self, ended: Ended) {
        *self.0.lock() += ended;
    }

    /// The counts.
    pub(crate) fn get(&self) -> Ended {
        *self.0.lock()
    }

    /// Takes out the counts.
    pub(crate) fn take(&self) -> Ended {
        std::mem::take(&mut *self.0.lock())
    }
}
