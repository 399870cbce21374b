//! What is counted of a partition's entries.
//!
//! All counts only grow. Each entry that a write has added leaves in exactly one way, so at any time at which nothing
//! is under way:
//!
//! `written - coalesced = waiting + in flight + deleted + superseded + processed + given up`

use std::ops::AddAssign;

use crate::sync::{AtomicUsize, Ordering};

/// What writes and deletes have done to entries that wait. Counted under the lock of a shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Writes {
    /// Writes that were taken.
    pub written: usize,
    /// Those of them that have replaced an entry that waited.
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
#[derive(Debug, Default)]
pub struct Outcomes {
    /// Entries that were claimed, or have succeeded.
    processed: AtomicUsize,
    /// Entries that a newer write has replaced, or that were deleted.
    superseded: AtomicUsize,
    /// Entries that were given up.
    given_up: AtomicUsize,
    /// How often the processor has failed with an entry.
    failed: AtomicUsize,
}

/// The counts of [`Outcomes`].
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

impl Outcomes {
    /// Counts.
    pub fn add(&self, ended: Ended) {
        let Ended { processed, superseded, given_up, failed } = ended;
        let counts = [&self.processed, &self.superseded, &self.given_up, &self.failed];
        for (count, by) in counts.into_iter().zip([processed, superseded, given_up, failed]) {
            if by > 0 {
                count.fetch_add(by, Ordering::Relaxed);
            }
        }
    }

    /// Takes out the counts.
    pub(crate) fn take(&self) -> Ended {
        let take = |count: &AtomicUsize| count.swap(0, Ordering::Relaxed);
        Ended {
            processed: take(&self.processed),
            superseded: take(&self.superseded),
            given_up: take(&self.given_up),
            failed: take(&self.failed),
        }
    }

    /// The counts.
    pub fn get(&self) -> Ended {
        let get = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        Ended {
            processed: get(&self.processed),
            superseded: get(&self.superseded),
            given_up: get(&self.given_up),
            failed: get(&self.failed),
        }
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
