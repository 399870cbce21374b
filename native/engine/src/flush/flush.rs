//! A flush: the entries that a partition swapped out. They are in flight until each has an outcome.
//!
//! A reader puts entries together to a *batch* for the processor. A flush has at most one batch:
//!
//! | state | leaves it when |
//! |---|---|
//! | read | it is [claimed](Flush::claim): none |
//! | read | it is [leased](Flush::lease): leased |
//! | read | a reader begins a batch or [inherits](Flush::inherit): none; entries are read again |
//! | read | its reader died of it, and the next one inherits: leased |
//! | leased | it [succeeds](Flush::succeed): none |
//! | leased | it is [split](Flush::split): none; entries are read again, in smaller batches |
//! | leased | its last entry is [given back](crate::Partition::give_back): given up, or none |
//! | given up | it is [buried](Flush::bury): buried |
//! | given up, buried | it succeeds: given up while entries are left, then none |
//!
//! A batch that is given up consists of the exhausted entries. In each state the batch also ends
//! when its partition is [evicted](crate::Partition::evict). After that no call changes anything.
//!
//! Claiming a batch gives it away for good, at most once. The claim stays an *open call* until its
//! reader reads again; if the reader dies before that, the call is [lost](Flush::lost). A leased
//! batch needs an outcome, which only its reader can give. If that reader dies, the next one
//! [inherits](Flush::inherit) the batch, or the rest after some steps of giving it back.
//!
//! A failed entry of a map or a counter waits again in its partition; a failed item of a queue
//! stays here and is read first, if the flush keeps the order. [`Isolation`] limits the size of a
//! batch, so a bad entry ends up alone. After a pause readers take failed entries last: one of the
//! others shows sooner whether the sink is back.
//!
//! One lock guards the [progress](Progress). Readers hold it for some hundred microseconds, and
//! nobody longer. Two facts are read without it: an entry before `settled` has an outcome or was
//! given up, and an entry in `gone` has an outcome or was deleted.

use std::sync::{Arc, OnceLock};
use std::time::Instant;

use super::batch::{Batch, BatchState};
use super::deferred::{in_order, Deferred};
use super::frozen::Frozen;
use super::progress::{OpenCall, Progress};
use crate::limits::bound::Bound;
use crate::limits::outcomes::{Learned, Outcomes};
use crate::limits::totals::Ended;
use crate::limits::Isolation;
use crate::runs::Runs;
use crate::store::Store;
use crate::sync::{AtomicBool, AtomicUsize, Mutex, MutexGuard, Ordering};

/// The result of [`Partition::flush`](crate::Partition::flush).
pub enum Flushed<S: Store> {
    /// The unfinished flush. Other entries may wait.
    Rest(Arc<Flush<S>>),
    /// A flush of the entries that waited.
    Fresh(Arc<Flush<S>>),
}

/// Frozen stores, and the progress of readers. The stores are freed with the outcome of the last
/// entry, even if the flush itself is still referred to.
pub struct Flush<S: Store> {
    /// The position behind the last entry.
    end: usize,
    /// When the first entry was written.
    since: Option<Instant>,
    /// The estimated bytes of the stores.
    bytes: usize,
    /// The number of entries without an outcome that do not wait again. A deleted entry counts
    /// until a reader comes to it.
    left: AtomicUsize,
    /// The number of failed entries to be read again.
    staying: AtomicUsize,
    /// Each entry before this position has an outcome or was given up.
    settled: AtomicUsize,
    /// A bit for each position. It is set when the entry is deleted, when a reader leaves it out
    /// for a newer one, and when it waits again in a counter. Most flushes have no such entry.
    gone: OnceLock<Box<[AtomicUsize]>>,
    /// The progress of readers.
    progress: Mutex<Progress<S>>,
    /// Counts the outcomes.
    outcomes: Arc<Outcomes>,
    /// Whether failed entries stay here, to be read before all others.
    keeps_order: AtomicBool,
    /// See [`leaves_out`](Self::leaves_out).
    leaves_out: bool,
    /// Whether a reader left out an entry for a newer one.
    has_left_out: AtomicBool,
}

/// Records, and the stores that hold them.
pub type Records<S> = (Arc<Frozen<S>>, Vec<<S as Store>::Record>);

/// How the reader before died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Death {
    /// It was killed, perhaps for its memory.
    Killed,
    /// It took too long.
    TimedOut,
}

/// The progress of readers, as their supervisor sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The number of claims and leases.
    pub calls: usize,
    /// The number of entries of the last one.
    pub called_with: usize,
    /// The number of positions without an outcome.
    pub left: usize,
    /// The time of the last call of a function of the user, or of a later step of the reader.
    pub called_at: Option<i64>,
}

impl<S: Store> Flush<S> {
    /// A flush before its first reader.
    pub(crate) fn new(
        frozen: Arc<Frozen<S>>,
        outcomes: Arc<Outcomes>,
        bound: Option<Arc<Bound>>,
        keeps_order: bool,
        leaves_out: bool,
    ) -> Self {
        let stores = frozen.stores();
        let left = stores.iter().map(Store::len).sum();
        let since = stores.iter().filter_map(Store::since).min();
        let bytes = stores.iter().map(Store::bytes).sum();
        let end = frozen.end();
        let progress = Progress {
            frozen: Some(frozen),
            position: 0,
            retries: Runs::NONE,
            deferred: Deferred::default(),
            batch: Batch::NONE,
            partial: None,
            open_call: None,
            calls: 0,
            called_with: 0,
            called_at: None,
            bound,
        };
        Flush {
            end,
            since,
            bytes,
            left: AtomicUsize::new(left),
            staying: AtomicUsize::new(0),
            settled: AtomicUsize::new(0),
            gone: OnceLock::new(),
            progress: Mutex::new(progress),
            outcomes,
            keeps_order: AtomicBool::new(keeps_order),
            leaves_out,
            has_left_out: AtomicBool::new(false),
        }
    }

    /// Whether readers may leave out entries that a newer write replaced. They may not if readers of
    /// the flush before did: a key that is always written again would never come to the processor.
    pub fn leaves_out(&self) -> bool {
        self.leaves_out
    }

    /// Whether a reader left out an entry that a newer write replaced.
    pub(crate) fn has_left_out(&self) -> bool {
        self.has_left_out.load(Ordering::SeqCst)
    }

    /// A flush whose batch consists of all its entries, given up. Its next reader inherits them.
    pub(crate) fn given_up(frozen: Arc<Frozen<S>>, outcomes: Arc<Outcomes>) -> Self {
        let mut runs = Runs::NONE;
        let positions = (0..frozen.end()).filter(|&position| frozen.record(position).is_some());
        positions.for_each(|position| runs.push(position, frozen.attempts(position)));
        let flush = Flush::new(frozen, outcomes, None, S::KEEPS_ORDER, true);
        let mut progress = flush.progress.lock();
        progress.position = flush.end;
        progress.batch = Batch { state: BatchState::GivenUp, runs, size: usize::MAX, ..Batch::NONE };
        flush.settle(&mut progress);
        drop(progress);
        flush
    }

    /// Gives the batch away for good; `false` if it is not this reader's. `now` is the time.
    ///
    /// Opens a call, which the reader's next [`read`](Self::read) confirms. An open call of another
    /// reader is lost then.
    pub fn claim(&self, reader: u64, now: i64) -> bool {
        let mut progress = self.progress.lock();
        let is_own = progress.call(reader, now);
        if is_own {
            let processed = progress.batch.runs.len();
            let lost = if processed > 0 { progress.take_lost(Some(reader)) } else { 0 };
            if processed > 0 {
                progress.open_call = Some(OpenCall { reader, length: processed });
            }
            progress.batch.end();
            self.learn(&progress, Ended { processed, failed: lost, ..Ended::default() }, |learned| {
                learned.failed += lost
            });
            self.settle(&mut progress);
        }
        is_own
    }

    /// Closes an open call of another reader than this one, or of any reader, and counts its
    /// entries as failed. Returns their number.
    pub fn lost(&self, reader: Option<u64>) -> usize {
        let mut progress = self.progress.lock();
        let lost = progress.take_lost(reader);
        if lost > 0 {
            self.learn(&progress, Ended { failed: lost, ..Ended::default() }, |learned| learned.failed += lost);
        }
        lost
    }

    /// Confirms the open call of this reader: the processor returned.
    pub(super) fn confirm(&self, progress: &mut Progress<S>, reader: u64) {
        if let Some(call) = progress.open_call.take_if(|call| call.reader == reader) {
            self.learn(progress, Ended::default(), |learned| learned.succeed(call.length));
        }
    }

    /// Confirms the open call of this reader, which reads no more.
    pub fn confirm_call(&self, reader: u64) {
        self.confirm(&mut self.progress.lock(), reader);
    }

    /// Gives the batch to the processor until it has an outcome; `false` if it is not this
    /// reader's. `now` is the time.
    pub fn lease(&self, reader: u64, now: i64) -> bool {
        let mut progress = self.progress.lock();
        let is_own = progress.call(reader, now);
        if is_own && !progress.batch.runs.is_empty() {
            progress.batch.state = BatchState::Leased;
        }
        is_own
    }

    /// Notes that the function for dead letters gets a batch given up. `now` is the time.
    pub fn bury(&self, now: i64) {
        let mut progress = self.progress.lock();
        if progress.batch.is_given_up() {
            progress.batch.state = BatchState::Buried;
            progress.called_at = Some(now);
        }
    }

    /// Notes that the reader is at work. `now` is the time.
    pub fn touch(&self, now: i64) {
        self.progress.lock().called_at = Some(now);
    }

    /// Ends this reader's batch after its lease: the processor succeeded. A batch half given back
    /// cannot succeed. Of a batch given up it ends the entries whose dead letters are written, and
    /// returns how many are left.
    pub fn succeed(&self, reader: u64) -> usize {
        let mut progress = self.progress.lock();
        let Batch { state, reader: own, .. } = progress.batch;
        if state == BatchState::Read || own != reader || progress.partial.is_some() {
            return 0;
        }
        if state == BatchState::Leased {
            let length = progress.batch.runs.len();
            progress.batch.end();
            let ended = Ended { processed: length, ..Ended::default() };
            self.learn(&progress, ended, |learned| learned.succeed(length));
        } else {
            let given_up = progress.batch.part();
            progress.batch.runs.advance(given_up);
            progress.batch.state = BatchState::GivenUp;
            self.count(&progress, Ended { given_up, ..Ended::default() });
        }
        let left = progress.batch.runs.len();
        if left == 0 {
            progress.batch.end();
        }
        self.settle(&mut progress);
        left
    }

    /// Takes this reader's leased batch back: the processor failed with all of it, and gets its
    /// entries again in smaller batches. Of a batch half given back this is the rest. Returns the
    /// number of its entries, and how many the next batch may have; `None` without a lease.
    pub fn split(&self, reader: u64) -> Option<(usize, usize)> {
        let mut progress = self.progress.lock();
        let Batch { state, reader: own, .. } = progress.batch;
        if state != BatchState::Leased || own != reader {
            return None;
        }
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
        let mut progress = self.progress.lock();
        if progress.batch.state == BatchState::Read && progress.batch.reader == reader {
            let mut others = progress.batch.runs.clone();
            others.advance(length);
            progress.batch.runs = progress.batch.runs.head(length);
            progress.retries.prepend(others);
            self.settle(&mut progress);
        }
    }

    /// Leases all entries to a reader, which gives them back, if each has failed and none is in a
    /// batch. Returns whether it did.
    pub(crate) fn lease_failed(&self, reader: u64) -> bool {
        let mut progress = self.progress.lock();
        self.undo_read(&mut progress);
        if self.keeps_order() || !progress.batch.runs.is_empty() || !progress.has_only_failed(self.end) {
            return false;
        }
        let retries = std::mem::replace(&mut progress.retries, Runs::NONE);
        let mut runs = Runs::NONE;
        in_order(progress.deferred.lists().chain([&retries])).into_iter().for_each(|(_list, run)| runs.push_run(run));
        progress.deferred.clear();
        progress.batch = Batch { reader, state: BatchState::Leased, runs, ..Batch::NONE };
        self.settle(&mut progress);
        true
    }

    /// Makes the batch of another reader this one's. Returns its state, and the number of its
    /// entries without an outcome; `None` without a batch. If the other reader died while it gave
    /// the batch back, the rest is leased.
    ///
    /// With a `death` the batch may be its cause, by its size. So a batch that was only read counts
    /// as leased, and the function for dead letters gets fewer entries together. A single one with
    /// which two readers died is returned as buried.
    pub fn inherit(&self, reader: u64, death: Option<Death>) -> Option<(BatchState, usize)> {
        let mut progress = self.progress.lock();
        if death.is_none() {
            self.undo_read(&mut progress);
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

    /// The records of the present batch, and their stores. Of a batch given up, only those that the
    /// function for dead letters gets together.
    pub fn batch(&self) -> Option<Records<S>> {
        let progress = self.progress.lock();
        let runs = progress.batch.runs.head(progress.batch.part());
        drop(progress);
        let frozen = self.entries()?;
        let records = runs.places().filter_map(|(position, _attempts)| frozen.record(position)).collect();
        Some((frozen, records))
    }

    /// The highest attempts of an entry in the present batch.
    pub fn attempts(&self) -> u32 {
        self.progress.lock().batch.runs.most_attempts()
    }

    /// The lock of the progress.
    pub(super) fn lock(&self) -> MutexGuard<'_, Progress<S>> {
        self.progress.lock()
    }

    /// Counts outcomes.
    pub(super) fn count(&self, progress: &Progress<S>, ended: Ended) {
        self.learn(progress, ended, |_learned| {});
    }

    /// Counts outcomes, and learns from them.
    pub(super) fn learn(&self, progress: &Progress<S>, ended: Ended, lesson: impl FnOnce(&mut Learned)) {
        self.outcomes.learn(ended, lesson);
        self.leave(progress, ended.left(), ended.left());
    }

    /// Subtracts entries from those in flight, and releases their room or less.
    pub(super) fn leave(&self, progress: &Progress<S>, left: usize, room: usize) {
        self.left.fetch_sub(left, Ordering::Relaxed);
        if let Some(bound) = &progress.bound {
            bound.release(room);
        }
    }

    /// Lets the bound count the entries without an outcome, or no bound. The caller excludes steps
    /// of giving back.
    pub(crate) fn set_bound(&self, bound: Option<&Arc<Bound>>) {
        let mut progress = self.progress.lock();
        match (&progress.bound, bound) {
            (None, Some(new)) => new.add(self.left()),
            (Some(old), None) => old.release(self.left()),
            _ => {}
        }
        progress.bound = bound.cloned();
    }

    /// The size of the next batch.
    pub(super) fn isolation(&self) -> Isolation {
        self.outcomes.learned().isolation
    }

    /// Whether failed entries stay, to be read before all others.
    pub(crate) fn keeps_order(&self) -> bool {
        self.keeps_order.load(Ordering::Relaxed)
    }

    /// Changes whether failed entries stay. The caller has no other task.
    pub(crate) fn set_order(&self, keeps_order: bool) {
        self.keeps_order.store(keeps_order, Ordering::Relaxed);
    }

    /// Publishes the progress, and gives up the stores after the last outcome.
    pub(super) fn settle(&self, progress: &mut Progress<S>) {
        self.staying.store(progress.retries.failed() + progress.deferred.len(), Ordering::Relaxed);
        self.settled.store(progress.settled(), Ordering::Release);
        if progress.is_finished(self.end) {
            progress.frozen = None;
            progress.batch.runs = Runs::NONE;
        }
    }

    /// Whether all entries have an outcome.
    pub(crate) fn is_finished(&self) -> bool {
        self.progress.lock().is_finished(self.end)
    }

    /// The progress of readers.
    pub fn seen(&self) -> Seen {
        let progress = self.progress.lock();
        let Progress { calls, called_with, called_at, .. } = *progress;
        Seen { calls, called_with, left: progress.left(self.end), called_at }
    }

    /// The position behind the last entry.
    pub fn end(&self) -> usize {
        self.end
    }

    /// The number of entries without an outcome that do not wait again.
    pub(crate) fn left(&self) -> usize {
        self.left.load(Ordering::Relaxed)
    }

    /// Sets [`left`](Self::left) to 0, and returns its last value.
    pub(super) fn take_left(&self) -> usize {
        self.left.swap(0, Ordering::Relaxed)
    }

    /// The number of failed entries to be read again.
    pub(crate) fn staying(&self) -> usize {
        self.staying.load(Ordering::Relaxed)
    }

    /// When the first entry was written.
    pub(crate) fn since(&self) -> Option<Instant> {
        self.since
    }

    /// The estimated bytes of the stores.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The stores, to be read without a lock; `None` when all entries have an outcome.
    pub fn entries(&self) -> Option<Arc<Frozen<S>>> {
        self.progress.lock().frozen.clone()
    }

    /// Whether an entry of a table has no outcome, and was neither given up nor deleted.
    pub(crate) fn is_live(&self, position: usize) -> bool {
        position >= self.settled.load(Ordering::Acquire) && !self.is_gone(position)
    }

    /// Whether an entry was [removed](Self::remove).
    pub(crate) fn is_gone(&self, position: usize) -> bool {
        let bit = 1 << (position % BITS);
        self.gone.get().is_some_and(|words| words[position / BITS].load(Ordering::Acquire) & bit != 0)
    }

    /// Removes an entry: no further batch has it, and no operation sees it.
    pub(crate) fn remove(&self, position: usize) {
        let bit = 1 << (position % BITS);
        self.gone()[position / BITS].fetch_or(bit, Ordering::AcqRel);
    }

    /// Removes an entry that a newer write replaced.
    pub(crate) fn leave_out(&self, position: usize) {
        self.has_left_out.store(true, Ordering::SeqCst);
        self.remove(position);
    }

    /// [`Flush::gone`], allocated by the first call.
    pub(super) fn gone(&self) -> &[AtomicUsize] {
        self.gone.get_or_init(|| (0..self.end.div_ceil(BITS)).map(|_| AtomicUsize::new(0)).collect())
    }
}

/// Bits in a word of [`Flush::gone`].
const BITS: usize = usize::BITS as usize;
