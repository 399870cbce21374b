//! A flush: the entries that a partition swapped out. They are in flight until each has an outcome.
//!
//! A reader puts entries together to a *batch* for the processor. A flush has at most one batch:
//!
//! | state | leaves it when |
//! |---|---|
//! | read | it is [claimed](Flush::claim): none |
//! | read | it is [leased](Flush::lease): leased |
//! | read | a reader begins a batch or [inherits](Flush::inherit): none; entries are read again |
//! | read | its reader was killed, and the next one inherits: leased |
//! | leased | it [succeeds](Flush::succeed): none |
//! | leased | it is [split](Flush::split): none; entries are read again, in smaller batches |
//! | leased | its last entry is [given back](crate::Partition::give_back): given up, or none |
//! | given up | it is [buried](Flush::bury): buried |
//! | given up, buried | it succeeds: given up while entries are left, then none |
//!
//! A batch that is given up consists of the exhausted entries. In each state the batch also ends
//! when its partition is [evicted](crate::Partition::evict). After that no call changes anything.
//!
//! A [reader](super::Reader) may claim or lease its batch under the lock under which it completes the
//! batch.
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
use super::deferred::Deferred;
use super::frozen::{Bytes, Frozen};
use super::notes::{Fate, Journaled, Notes};
use super::parts::part_of;
use super::progress::Progress;
use crate::limits::bound::Bound;
use crate::limits::outcomes::{Learned, Outcomes};
use crate::limits::totals::Ended;
use crate::limits::Isolation;
use crate::runs::Runs;
use crate::store::Store;
use crate::sync::{AtomicBool, AtomicUsize, Mutex, MutexGuard, Ordering};

/// With more deferred entries a flush releases no part: each release looks at all.
const MOST_KEPT: usize = 1024;

/// The result of [`Partition::flush`](crate::Partition::flush).
pub enum Flushed<S: Store> {
    /// The unfinished flush. Other entries may wait.
    Rest(Arc<Flush<S>>),
    /// A flush of the entries that waited.
    Fresh(Arc<Flush<S>>),
}

/// Frozen stores, and the progress of readers. The stores are freed in parts, as readers progress,
/// and the rest with the outcome of the last entry, even if the flush itself is still referred to.
pub struct Flush<S: Store> {
    /// The position behind the last entry.
    end: usize,
    /// When the first entry was written.
    since: Option<Instant>,
    /// The estimated bytes of the stores, as far as they are not free.
    bytes: Arc<Bytes>,
    /// The number of positions that are released together.
    part: usize,
    /// The number of entries without an outcome that do not wait again. A deleted entry counts
    /// until a reader comes to it.
    left: AtomicUsize,
    /// The number of failed entries to be read again.
    staying: AtomicUsize,
    /// Each entry before this position has an outcome or was given up.
    settled: AtomicUsize,
    /// A bit for each position. It is set when the entry is deleted, when a reader leaves it out
    /// for a newer one, when it waits again in a counter, and when it has its outcome before a
    /// deferred entry. Most flushes have no such entry.
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
    /// The part for the journal; `None` without one.
    pub(super) journaled: Option<Journaled>,
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
        notes: &Arc<Notes>,
    ) -> Self {
        let journaled =
            frozen.generation().map(|generation| Journaled::new(generation, frozen.ends.clone(), notes.clone()));
        let (left, since, end) = (frozen.len(), frozen.since(), frozen.end());
        let bytes = frozen.bytes().clone();
        let part = part_of::<S>(end, bytes.get(), bound.is_some());
        let mut progress = Progress {
            frozen: Some(frozen),
            position: 0,
            released: 0,
            retries: Runs::NONE,
            deferred: Deferred::default(),
            batch: Batch::NONE,
            partial: None,
            defers: false,
            takes_deferred: false,
            has_success: false,
            open_call: None,
            calls: 0,
            called_with: 0,
            called_at: None,
            bound,
            counted_bytes: 0,
        };
        progress.count_bytes(bytes.get());
        Flush {
            end,
            since,
            bytes,
            part,
            left: AtomicUsize::new(left),
            staying: AtomicUsize::new(0),
            settled: AtomicUsize::new(0),
            gone: OnceLock::new(),
            progress: Mutex::new(progress),
            outcomes,
            keeps_order: AtomicBool::new(keeps_order),
            leaves_out,
            has_left_out: AtomicBool::new(false),
            journaled,
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
    pub(crate) fn given_up(frozen: Arc<Frozen<S>>, outcomes: Arc<Outcomes>, notes: &Arc<Notes>) -> Self {
        let mut runs = Runs::NONE;
        let positions = (0..frozen.end()).filter(|&position| frozen.has(position));
        positions.for_each(|position| runs.push(position, frozen.attempts(position)));
        let flush = Flush::new(frozen, outcomes, None, S::KEEPS_ORDER, true, notes);
        let mut progress = flush.progress.lock();
        progress.position = flush.end;
        progress.batch = Batch { state: BatchState::GivenUp, runs, size: usize::MAX, ..Batch::NONE };
        flush.settle(&mut progress);
        drop(progress);
        flush
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
        if bound.is_none() {
            progress.count_bytes(0);
        }
        progress.bound = bound.cloned();
        self.count_bytes(&mut progress);
    }

    /// The size of the next batch, after a lesson.
    pub(super) fn isolation(&self, lesson: impl FnOnce(&mut Learned)) -> Isolation {
        self.outcomes.isolation(lesson)
    }

    /// Whether failed entries stay, to be read before all others.
    pub(crate) fn keeps_order(&self) -> bool {
        self.keeps_order.load(Ordering::Relaxed)
    }

    /// Changes whether failed entries stay. The caller has no other task.
    pub(crate) fn set_order(&self, keeps_order: bool) {
        self.keeps_order.store(keeps_order, Ordering::Relaxed);
    }

    /// Publishes the progress, releases the entries that readers are done with, and gives up the
    /// stores after the last outcome.
    pub(super) fn settle(&self, progress: &mut Progress<S>) {
        self.staying.store(progress.retries.failed() + progress.deferred.len(), Ordering::Relaxed);
        self.settled.store(progress.settled(), Ordering::Release);
        if progress.is_finished(self.end) {
            if progress.frozen.take().is_some() {
                self.note_end();
            }
            progress.batch.runs = Runs::NONE;
        } else if self.part < usize::MAX {
            self.release(progress);
        }
        self.count_bytes(progress);
    }

    /// Releases the next part of the stores, if nobody needs it but a few deferred entries.
    fn release(&self, progress: &mut Progress<S>) {
        let needed = progress.needed();
        let is_due = needed >= progress.released + self.part && progress.deferred.len() <= MOST_KEPT;
        let Some(frozen) = progress.frozen.as_ref().filter(|_| is_due) else { return };
        let positions = progress.released..needed;
        let deferred = progress.deferred.lists().flat_map(Runs::places).map(|(position, _attempts)| position);
        let mut kept: Vec<usize> = deferred.filter(|position| positions.contains(position)).collect();
        // An entry that failed again is behind others in its list.
        kept.sort_unstable();
        frozen.release(positions, kept);
        progress.released = needed;
    }

    /// Returns the estimated bytes of the stores, and lets the bound count them.
    fn count_bytes(&self, progress: &mut Progress<S>) -> usize {
        let bytes = if progress.frozen.is_some() { self.bytes.get() } else { 0 };
        progress.count_bytes(bytes);
        bytes
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

    /// Whether the processor succeeded with an entry, after its lease.
    pub fn has_success(&self) -> bool {
        self.progress.lock().has_success
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

    /// The estimated bytes of the stores, as far as they are not free, until all entries have an
    /// outcome. Lets the bound count them.
    pub(crate) fn bytes(&self) -> usize {
        self.count_bytes(&mut self.progress.lock())
    }

    /// The stores; `None` when all entries have an outcome.
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

    /// Removes an entry: no further batch has it, and no operation sees it. Returns `false` if it was
    /// removed before.
    pub(crate) fn remove(&self, position: usize) -> bool {
        let bit = 1 << (position % BITS);
        self.gone()[position / BITS].fetch_or(bit, Ordering::AcqRel) & bit == 0
    }

    /// Removes an entry that a newer write replaced.
    pub(crate) fn leave_out(&self, position: usize) {
        // A deleted entry is left out for nothing newer.
        if self.remove(position) {
            self.note_one(position, Fate::Moved);
            self.has_left_out.store(true, Ordering::SeqCst);
        }
    }

    /// Hides entries with an outcome. Only those behind a deferred entry need it: `settled` does not
    /// pass that one.
    pub(super) fn hide(&self, progress: &Progress<S>, runs: &Runs) {
        if !progress.deferred.is_empty() {
            for (position, _attempts) in runs.places() {
                self.remove(position);
            }
        }
    }

    /// [`Flush::gone`], allocated by the first call.
    pub(super) fn gone(&self) -> &[AtomicUsize] {
        self.gone.get_or_init(|| (0..self.end.div_ceil(BITS)).map(|_| AtomicUsize::new(0)).collect())
    }
}

/// Bits in a word of [`Flush::gone`].
const BITS: usize = usize::BITS as usize;
