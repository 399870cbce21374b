//! The progress of a flush: the state under its lock.

use std::sync::Arc;

use super::batch::{Batch, BatchState};
use super::deferred::Deferred;
use super::frozen::Frozen;
use crate::limits::bound::Bound;
use crate::runs::Runs;
use crate::store::Store;

/// See the module's documentation. Each entry without an outcome is in exactly one place: in the
/// batch, in one of the lists of `partial`, in `retries`, in `deferred`, or behind `position`. The
/// entries of one place are in ascending order, except for `deferred`.
pub(super) struct Progress<S: Store> {
    /// The stores, until all entries have an outcome.
    pub(super) frozen: Option<Arc<Frozen<S>>>,
    /// The number of positions that readers passed. It never goes back.
    pub(super) position: usize,
    /// The number of positions that nobody needs, except for deferred entries.
    pub(super) released: usize,
    /// Passed entries to be read again: failed items, and entries of a batch that was split or never
    /// called. Readers take them first.
    pub(super) retries: Runs,
    /// Passed entries that wait for the others. Readers take them last.
    pub(super) deferred: Deferred,
    /// The present batch.
    pub(super) batch: Batch,
    /// The first part of a leased batch, from the first step of giving it back to the last one. The
    /// rest in `batch` is never empty then.
    pub(super) partial: Option<Partial>,
    /// Whether failed entries wait for the others, also without a pause.
    pub(super) defers: bool,
    /// Whether readers take the deferred entries: no other ones remain.
    pub(super) takes_deferred: bool,
    /// Whether the processor succeeded with an entry of the flush.
    pub(super) has_success: bool,
    /// The last claim, until its reader reads again.
    pub(super) open_call: Option<OpenCall>,
    /// The number of claims and leases.
    pub(super) calls: usize,
    /// The number of entries of the last one.
    pub(super) called_with: usize,
    /// The time of the last one, or of a later [`bury`](super::Flush::bury) or step of the reader.
    pub(super) called_at: Option<i64>,
    /// The bound that counts the entries; `None` in a buffer without.
    pub(super) bound: Option<Arc<Bound>>,
    /// The bytes of the stores, as the bound counts them.
    pub(super) counted_bytes: usize,
}

/// The part of a leased batch already given back.
#[derive(Debug)]
pub(super) struct Partial {
    /// The number of the next entry, in the whole batch.
    pub(super) next: usize,
    /// Entries given up: the next batch.
    pub(super) given_up: Runs,
    /// Entries that stay in the flush.
    pub(super) staying: Runs,
    /// Whether the processor succeeded with an entry.
    pub(super) has_success: bool,
    /// Whether it failed with an entry that was not cancelled.
    pub(super) has_failure: bool,
    /// Whether it cancelled an entry.
    pub(super) has_cancelled: bool,
}

impl Partial {
    /// The part before the first step.
    pub(super) const NONE: Self = Partial {
        next: 0,
        given_up: Runs::NONE,
        staying: Runs::NONE,
        has_success: false,
        has_failure: false,
        has_cancelled: false,
    };
}

/// A batch that was given back.
pub(super) struct Ending {
    /// The number of its entries.
    pub(super) length: usize,
    /// See [`Partial::has_success`].
    pub(super) has_success: bool,
    /// See [`Partial::has_failure`].
    pub(super) has_failure: bool,
    /// See [`Partial::has_cancelled`].
    pub(super) has_cancelled: bool,
}

/// A claimed batch whose call did not return yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct OpenCall {
    /// The reader that claimed it.
    pub(super) reader: u64,
    /// The number of its entries.
    pub(super) length: usize,
}

impl<S: Store> Progress<S> {
    /// Lets the bound count this number of bytes.
    pub(super) fn count_bytes(&mut self, bytes: usize) {
        let bytes = if self.bound.as_ref().is_some_and(|bound| bound.counts_bytes()) { bytes } else { 0 };
        let old = std::mem::replace(&mut self.counted_bytes, bytes);
        if let Some(bound) = &self.bound {
            bound.change_bytes(old, bytes);
        }
    }

    /// Takes back a batch that never came to the processor.
    pub(super) fn undo_read(&mut self) {
        if self.batch.state == BatchState::Read {
            self.retries.prepend(std::mem::replace(&mut self.batch.runs, Runs::NONE));
            self.batch.end();
        }
    }

    /// Closes the open call of another reader than this one, or of any reader. Returns the number
    /// of its entries.
    pub(super) fn take_lost(&mut self, reader: Option<u64>) -> usize {
        self.open_call.take_if(|call| Some(call.reader) != reader).map_or(0, |call| call.length)
    }

    /// Notes a call with the batch, if this reader put one together.
    pub(super) fn call(&mut self, reader: u64, now: i64) -> bool {
        let length = self.batch.runs.len();
        let is_own = self.batch.is_read_by(reader, length);
        if is_own && length > 0 {
            self.calls += 1;
            self.called_with = length;
            self.called_at = Some(now);
        }
        is_own
    }

    /// See [`Flush::lease`](super::Flush::lease).
    pub(super) fn lease(&mut self, reader: u64, now: i64) -> bool {
        let is_own = self.call(reader, now);
        if is_own && !self.batch.runs.is_empty() {
            self.batch.state = BatchState::Leased;
        }
        is_own
    }

    /// Ends a batch after the last step of giving it back. Returns what that came to.
    pub(super) fn end_partial(&mut self) -> Ending {
        let Partial { next, given_up, staying, has_success, has_failure, has_cancelled } =
            self.partial.take().unwrap_or(Partial::NONE);
        self.retries.prepend(staying);
        let reader = self.batch.reader;
        self.batch.end();
        if !given_up.is_empty() {
            self.batch = Batch { reader, state: BatchState::GivenUp, runs: given_up, size: usize::MAX, ..Batch::NONE };
        }
        Ending { length: next, has_success, has_failure, has_cancelled }
    }

    /// Takes back a leased batch, or the rest of one half given back, to be read again before all
    /// others. Returns its length, and what the first part came to.
    pub(super) fn split(&mut self) -> (usize, Ending) {
        let runs = std::mem::replace(&mut self.batch.runs, Runs::NONE);
        let length = runs.len();
        self.retries.prepend(runs);
        (length, self.end_partial())
    }

    /// Whether only deferred entries remain before `end`, outside of the batch.
    pub(super) fn has_only_deferred(&self, end: usize) -> bool {
        self.position >= end && self.retries.is_empty() && !self.deferred.is_empty()
    }

    /// Lets the deferred entries with the fewest attempts be read.
    pub(super) fn take_deferred(&mut self) {
        self.retries = self.deferred.take_first().unwrap_or(Runs::NONE);
        self.takes_deferred = true;
        self.batch.defers = false;
    }

    /// Whether only failed entries remain before `end`, outside of the batch.
    pub(super) fn has_only_failed(&self, end: usize) -> bool {
        self.position >= end && self.retries.len() == self.retries.failed()
    }

    /// Whether readers passed all entries before `end`, and none is to be read again.
    pub(super) fn is_read(&self, end: usize) -> bool {
        self.position >= end && self.retries.is_empty() && self.deferred.is_empty()
    }

    /// Whether all entries before `end` have an outcome.
    pub(super) fn is_finished(&self, end: usize) -> bool {
        self.is_read(end) && self.batch.runs.is_empty()
    }

    /// The lowest position without an outcome, except for entries given up. Only for tables: an
    /// item that stays may be lower.
    pub(super) fn settled(&self) -> usize {
        let in_batch = self.batch.runs.first().filter(|_run| !self.batch.is_given_up());
        let first = in_batch.or(self.retries.first()).map_or(self.position, |run| run.first);
        self.deferred.first().map_or(first, |deferred| deferred.min(first))
    }

    /// The lowest position that somebody needs, except for deferred entries.
    pub(super) fn needed(&self) -> usize {
        let partial = self.partial.iter().flat_map(|partial| [&partial.given_up, &partial.staying]);
        let firsts = [&self.batch.runs, &self.retries].into_iter().chain(partial).filter_map(Runs::first);
        firsts.map(|run| run.first).min().unwrap_or(self.position).min(self.position)
    }

    /// The number of positions without an outcome before `end`.
    pub(super) fn left(&self, end: usize) -> usize {
        let partial = self.partial.as_ref().map_or(0, |partial| partial.given_up.len() + partial.staying.len());
        end - self.position + self.retries.len() + self.deferred.len() + self.batch.runs.len() + partial
    }
}
