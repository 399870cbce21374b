//! The outcomes of a partition's flushes, and the lessons from its failures.
//!
//! One lock guards both, so an outcome and its lesson appear together. It is the last lock that a
//! thread takes.

use std::time::{Duration, Instant};

use super::isolation::Isolation;
use super::totals::Ended;
use crate::sync::Mutex;

/// The longest pause, a century: the clock of the system may have no later time.
const LONGEST_PAUSE: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// Lessons of a partition from its failures. They outlive each process that processes a flush.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Learned {
    /// Counted failures in a row.
    pub failures: u32,
    /// The time of the first failure in the row, splits included.
    pub failing_since: Option<Instant>,
    /// The end of the pause; the time may be in the past.
    pub paused_until: Option<Instant>,
    /// Entries that failed and were not given up, since [`flush`](crate::Partition::flush) last
    /// returned a flush. An entry counts once for each failure, counted or not.
    pub failed: usize,
    /// The size of the next batch.
    pub isolation: Isolation,
    /// The time of the last counted failure of an entry.
    pub failed_at: Option<Instant>,
}

impl Learned {
    /// The processor succeeded with at least one entry of a batch of `length` entries.
    pub(crate) fn succeed(&mut self, length: usize) {
        (self.failures, self.failing_since) = (0, None);
        self.isolation.succeed(length);
    }

    /// A batch of `length` entries failed as a whole, and is tried again in smaller ones.
    pub(crate) fn split(&mut self, length: usize) {
        self.isolation.split(length);
        self.failing_since.get_or_insert_with(Instant::now);
    }

    /// Each entry of a batch of `length` entries failed.
    pub(crate) fn fail(&mut self, length: usize) {
        self.isolation.fail(length);
        self.failing_since.get_or_insert_with(Instant::now);
    }

    /// The processor cancelled a whole batch of `length` entries. No entry remains of the splits
    /// that led to it, so they are no failures in a row.
    pub(crate) fn cancel(&mut self, length: usize) {
        self.isolation.cancel(length);
        if self.failures == 0 {
            self.failing_since = None;
        }
    }

    /// Starts a pause or prolongs the present one, and counts the failure if it is `counted`.
    pub(crate) fn pause(&mut self, pause: Duration, counted: bool) {
        let now = Instant::now();
        self.paused_until = self.paused_until.max(now.checked_add(pause.min(LONGEST_PAUSE)));
        self.isolation.pause();
        if counted {
            self.failures = self.failures.saturating_add(1);
            self.failing_since.get_or_insert(now);
        }
    }
}

/// See the module's documentation.
#[derive(Default)]
pub(crate) struct Outcomes(Mutex<Counts>);

/// The state under the lock.
#[derive(Default)]
struct Counts {
    /// The totals.
    ended: Ended,
    /// The lessons.
    learned: Learned,
}

impl Outcomes {
    /// Adds to the totals.
    pub(crate) fn count(&self, ended: Ended) {
        self.0.lock().ended += ended;
    }

    /// Adds to the totals, and learns from the same outcome.
    pub(crate) fn learn(&self, ended: Ended, lesson: impl FnOnce(&mut Learned)) {
        let mut counts = self.0.lock();
        counts.ended += ended;
        lesson(&mut counts.learned);
    }

    /// The size of the next batch, after a lesson.
    pub(crate) fn isolation(&self, lesson: impl FnOnce(&mut Learned)) -> Isolation {
        let mut counts = self.0.lock();
        lesson(&mut counts.learned);
        counts.learned.isolation
    }

    /// The totals.
    pub(crate) fn ended(&self) -> Ended {
        self.0.lock().ended
    }

    /// The lessons.
    pub(crate) fn learned(&self) -> Learned {
        self.0.lock().learned
    }

    /// Takes out the totals.
    pub(crate) fn take(&self) -> Ended {
        std::mem::take(&mut self.0.lock().ended)
    }

    /// Forgets all lessons.
    pub(crate) fn forget(&self) {
        self.0.lock().learned = Learned::default();
    }
}
