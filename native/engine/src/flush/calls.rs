//! The life of a batch after it was read: its calls, and the outcomes of the whole batch.

use super::batch::{Batch, BatchState, Mark};
use super::deferred::in_order;
use super::flush::Flush;
use super::frozen::Held;
use super::notes::Fate;
use super::progress::{OpenCall, Progress};
use crate::limits::totals::Ended;
use crate::limits::Isolation;
use crate::runs::Runs;
use crate::store::Store;

/// How the reader before died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// It was killed, perhaps for its memory.
    Killed,
    /// It took too long.
    TimedOut,
}

impl<S: Store> Flush<S> {
    /// Gives the batch away for good; `false` if it is not this reader's. `now` is the time.
    ///
    /// Opens a call, which the reader's next [`read`](Self::read) confirms. An open call of another
    /// reader is lost then.
    pub fn claim(&self, reader: u64, now: i64) -> bool {
        let mut progress = self.lock();
        let is_own = self.claim_read(&mut progress, reader, now);
        if is_own {
            self.settle(&mut progress);
        }
        is_own
    }

    /// [`claim`](Self::claim), before the progress is published.
    #[inline]
    pub(super) fn claim_read(&self, progress: &mut Progress<S>, reader: u64, now: i64) -> bool {
        let is_own = progress.call(reader, now);
        if is_own {
            let processed = progress.batch.runs.len();
            let lost = if processed > 0 { progress.take_lost(Some(reader)) } else { 0 };
            if processed > 0 {
                progress.open_call = Some(OpenCall { reader, length: processed });
            }
            self.hide(progress, &progress.batch.runs);
            progress.batch.end();
            self.learn(progress, Ended { processed, failed: lost, ..Ended::default() }, |learned| {
                learned.failed += lost
            });
        }
        is_own
    }

    /// Closes an open call of another reader than this one, or of any reader, and counts its
    /// entries as failed. Returns their number.
    pub fn lost(&self, reader: Option<u64>) -> usize {
        let mut progress = self.lock();
        let lost = progress.take_lost(reader);
        if lost > 0 {
            self.learn(&progress, Ended { failed: lost, ..Ended::default() }, |learned| learned.failed += lost);
        }
        lost
    }

    /// Confirms the open call of this reader: the processor returned. Returns the size of the next
    /// batch.
    pub(super) fn confirm(&self, progress: &mut Progress<S>, reader: u64) -> Isolation {
        let call = progress.open_call.take_if(|call| call.reader == reader);
        self.isolation(|learned| {
            if let Some(call) = call {
                learned.succeed(call.length);
            }
        })
    }

    /// Confirms the open call of this reader, which has read its last batch.
    pub fn confirm_call(&self, reader: u64) {
        self.confirm(&mut self.lock(), reader);
    }

    /// Gives the batch to the processor until it has an outcome; `false` if it is not this
    /// reader's. `now` is the time.
    pub fn lease(&self, reader: u64, now: i64) -> bool {
        self.lease_read(&mut self.lock(), reader, now)
    }

    /// [`lease`](Self::lease), with the lock of the flush.
    pub(super) fn lease_read(&self, progress: &mut Progress<S>, reader: u64, now: i64) -> bool {
        let is_own = progress.lease(reader, now);
        if is_own {
            self.note(&progress.batch.runs, |attempts| Fate::Attempts(attempts.saturating_add(1)));
            if progress.batch.has_suspect {
                self.isolation(|learned| learned.isolation.suspects.call());
            }
        }
        is_own
    }

    /// Sets or removes the mark of this reader's leased batch; `false` without such a batch. The mark
    /// ends with the batch.
    pub fn mark(&self, reader: u64, mark: Option<Mark>) -> bool {
        let batch = &mut self.lock().batch;
        let is_own = batch.state == BatchState::Leased && batch.reader == reader;
        if is_own {
            batch.mark = mark;
        }
        is_own
    }

    /// The mark of the leased batch.
    pub fn marked(&self) -> Option<Mark> {
        self.lock().batch.mark
    }

    /// Notes that the function for dead letters gets a batch given up. `now` is the time.
    pub fn bury(&self, now: i64) {
        let mut progress = self.lock();
        if progress.batch.is_given_up() {
            progress.batch.state = BatchState::Buried;
            progress.called_at = Some(now);
        }
    }

    /// Notes that the reader is at work. `now` is the time.
    pub fn touch(&self, now: i64) {
        self.lock().called_at = Some(now);
    }

    /// Ends this reader's batch after its lease: the processor succeeded. A batch half given back
    /// cannot succeed. Of a batch given up it ends the entries whose dead letters are written, and
    /// returns how many are left.
    pub fn succeed(&self, reader: u64) -> usize {
        let mut progress = self.lock();
        let Batch { state, reader: own, .. } = progress.batch;
        if state == BatchState::Read || own != reader || progress.partial.is_some() {
            return 0;
        }
        if state == BatchState::Leased {
            let length = progress.batch.runs.len();
            progress.has_success = true;
            self.note(&progress.batch.runs, |_attempts| Fate::Done);
            self.hide(&progress, &progress.batch.runs);
            progress.batch.end();
            let ended = Ended { processed: length, ..Ended::default() };
            self.learn(&progress, ended, |learned| learned.succeed(length));
        } else {
            let given_up = progress.batch.part();
            self.note(&progress.batch.runs.head(given_up), |_attempts| Fate::Done);
            progress.batch.runs.advance(given_up);
            progress.batch.state = BatchState::GivenUp;
            // Nobody died of the next entry yet.
            progress.batch.size = progress.batch.size.max(1);
            self.count(&progress, Ended { given_up, ..Ended::default() });
        }
        let left = progress.batch.runs.len();
        if left == 0 {
            progress.batch.end();
        }
        self.settle(&mut progress);
        left
    }

    /// Takes this reader's leased batch back: the processor failed with the whole batch, and gets
    /// its entries again in smaller batches. Of a batch half given back this is the rest. Returns
    /// the number of its entries, and how many the next batch may have; `None` without a lease.
    pub fn split(&self, reader: u64) -> Option<(usize, usize)> {
        let mut progress = self.lock();
        let Batch { state, reader: own, .. } = progress.batch;
        if state != BatchState::Leased || own != reader {
            return None;
        }
        self.note(&progress.batch.runs, Fate::Attempts);
        let (length, first_part) = progress.split();
        let mut limit = 0;
        self.learn(&progress, Ended::default(), |learned| {
            if first_part.has_success {
                learned.succeed(0);
            }
            learned.split(length);
            limit = learned.isolation.limit;
        });
        self.settle(&mut progress);
        Some((length, limit))
    }

    /// Shortens this reader's batch, which it has read and not leased, to its first entries. The
    /// others are read again.
    pub fn shorten(&self, reader: u64, length: usize) {
        let mut progress = self.lock();
        if progress.batch.state == BatchState::Read && progress.batch.reader == reader {
            let mut others = progress.batch.runs.clone();
            others.advance(length);
            progress.batch.runs = progress.batch.runs.head(length);
            progress.retries.prepend(others);
            self.settle(&mut progress);
        }
    }

    /// Lets failed entries wait for the others: what the sink refused once it most likely refuses
    /// again.
    pub fn defer(&self) {
        self.lock().defers = true;
    }

    /// Leases entries to a reader, which gives them back: the passed ones, and `count` others. It
    /// does so only if no entry is in a batch, and either the processor succeeded with one or all
    /// failed. Returns whether it did.
    pub(crate) fn lease_rest(&self, reader: u64, count: usize) -> bool {
        let mut progress = self.lock();
        self.undo_read(&mut progress);
        let is_free = !self.keeps_order() && progress.batch.runs.is_empty();
        let Some(frozen) = progress.frozen.clone().filter(|_| is_free) else { return false };
        if !progress.has_success && !progress.has_only_failed(self.end()) {
            return false;
        }
        let retries = std::mem::replace(&mut progress.retries, Runs::NONE);
        let mut runs = Runs::NONE;
        in_order(progress.deferred.lists().chain([&retries])).into_iter().for_each(|(_list, run)| runs.push_run(run));
        progress.deferred.clear();
        let end = self.end().min(progress.position.saturating_add(count));
        for position in progress.position..end {
            if frozen.has(position) {
                runs.push(position, frozen.attempts(position));
            }
        }
        progress.position = end;
        let is_leased = !runs.is_empty();
        progress.batch = Batch { reader, state: BatchState::Leased, runs, returns: true, ..Batch::NONE };
        if !is_leased {
            progress.batch.end();
        }
        self.settle(&mut progress);
        is_leased
    }

    /// Makes the batch of another reader this one's. Returns its state, and the number of its
    /// entries without an outcome; `None` without a batch. If the other reader died while it gave
    /// the batch back, the rest is leased.
    ///
    /// Entries of a batch that was only to be given back are read again.
    ///
    /// With a `death` the batch may be its cause, by its size. So a batch that was only read counts
    /// as leased, and the function for dead letters gets fewer entries together. A single one with
    /// which two readers died is returned as buried.
    pub fn inherit(&self, reader: u64, death: Option<Death>) -> Option<(BatchState, usize)> {
        let mut progress = self.lock();
        if death.is_none() {
            self.undo_read(&mut progress);
        }
        if progress.batch.returns {
            progress.split();
            self.settle(&mut progress);
        }
        let Batch { state, runs, .. } = &mut progress.batch;
        if runs.is_empty() {
            return None;
        }
        match (*state, death) {
            (BatchState::Read, _) => *state = BatchState::Leased,
            (BatchState::GivenUp, Some(_)) | (BatchState::Buried, Some(Death::Killed)) => progress.batch.shrink(),
            _ => {}
        }
        progress.batch.reader = reader;
        Some((progress.batch.state, progress.batch.part()))
    }

    /// Takes back a batch that never came to the processor.
    pub(super) fn undo_read(&self, progress: &mut Progress<S>) {
        if progress.batch.state == BatchState::Read && !progress.batch.runs.is_empty() {
            progress.undo_read();
            self.settle(progress);
        }
    }

    /// Calls `each` with the records of the present batch. Of a batch given up, only with those that
    /// the function for dead letters gets together.
    pub fn batch(&self, mut each: impl FnMut(S::Record)) {
        let progress = self.lock();
        let runs = progress.batch.runs.head(progress.batch.part());
        let frozen = progress.frozen.clone();
        drop(progress);
        let Some(frozen) = frozen else { return };
        for (position, _attempts) in runs.places() {
            let held = frozen.hold(position);
            held.as_ref().and_then(Held::record).into_iter().for_each(&mut each);
        }
    }

    /// The highest attempts of an entry in the present batch.
    pub fn attempts(&self) -> u32 {
        self.lock().batch.runs.most_attempts()
    }
}
