//! A flush: the entries that a partition has swapped out. They are in flight until each has an outcome.
//!
//! A reader puts entries together to a *batch* for the processor. There is one batch at a time:
//!
//! | state | leaves it when |
//! |---|---|
//! | read | it is [claimed](Flush::claim): none; it is [leased](Flush::lease): leased; another batch is begun: none |
//! | leased | it [succeeds](Flush::succeed): none; [entries fail](crate::Partition::give_back): given up, or none |
//! | given up | it is [buried](Flush::bury): buried |
//! | buried | the dead letters are written: it succeeds, none |
//!
//! If a batch that was read is neither claimed nor leased, its entries are as before. Who claims a batch gives it away
//! for good, at most once. Who leases it owes it an outcome, and nobody else can end it: if that reader dies, the next
//! one [inherits](Flush::inherit) the batch. A failed entry of a map waits again; a failed item of a queue is the first to
//! be read, for its order. A batch has fewer entries the more often one of them has failed, so a bad one ends up alone.
//!
//! All of this is guarded by one lock, which readers hold for some hundred microseconds, and nobody longer. It is taken
//! after the lock of [`Partition::in_flight`](crate::Partition) and before those of the shards. Two things are read
//! without it: an entry before `settled` has an outcome, and an entry in `gone` has one too, or was deleted.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use crate::ids::EntryId;
use crate::limits::bound::Bound;
use crate::limits::totals::{Ended, Outcomes};
use crate::memory::reclaim::reclaim;
use crate::store::Store;
use crate::sync::{AtomicUsize, Mutex, MutexGuard, Ordering};

/// The result of [`Partition::flush`](crate::Partition::flush).
pub enum Flushed<S: Store> {
    /// What is left of an earlier flush. Other entries may wait.
    Rest(Arc<Flush<S>>),
    /// The entries that waited.
    Fresh(Arc<Flush<S>>),
}

/// Frozen stores, and how far readers have come with them. The stores are freed with the outcome of the last entry,
/// even if the flush itself is still referred to.
pub struct Flush<S: Store> {
    /// The position behind the last entry.
    end: usize,
    /// When the first entry was written.
    since: Option<Instant>,
    /// The estimated bytes of the stores.
    bytes: usize,
    /// How many entries have no outcome and do not wait again. Of a deleted one this is known when a reader comes to it.
    left: AtomicUsize,
    /// How many of these have failed and stay here, to be retried.
    staying: AtomicUsize,
    /// Each entry before this position has an outcome.
    settled: AtomicUsize,
    /// A bit for each position, set when the entry is deleted, when a reader leaves it out since a newer one waits, when
    /// it waits again in a counter, and when it gets its outcome before an earlier entry of a table. Most flushes have no
    /// such entry.
    gone: OnceLock<Box<[AtomicUsize]>>,
    /// How far readers have come.
    progress: Mutex<Progress<S>>,
    /// Held while a batch is given back, which may take long. It is taken first of all locks.
    giving_back: Mutex<()>,
}

/// How far readers have come.
struct Progress<S: Store> {
    /// The stores, until all entries have an outcome.
    frozen: Option<Arc<Frozen<S>>>,
    /// No entry from this position on was in a batch.
    position: usize,
    /// Failed entries that stay here, before `position`. They come first.
    retries: VecDeque<Run>,
    /// The present batch.
    batch: Batch,
    /// How many batches were claimed or leased.
    calls: usize,
    /// How many entries the last one had.
    called_with: usize,
    /// The time of the last claim or lease, or of a later [`Flush::bury`].
    called_at: Option<i64>,
    /// Where the outcomes are counted.
    outcomes: Arc<Outcomes>,
    /// The bound that counts the entries, if there is one.
    bound: Option<Arc<Bound>>,
}

/// Entries at consecutive positions that have failed equally often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    /// The first position.
    first: usize,
    /// How many entries.
    length: usize,
    /// How often each has failed.
    attempts: u32,
}

/// The entries that are to be given to the processor together.
#[derive(Clone)]
struct Batch {
    /// Whose it is, by a number that no other reader has.
    reader: u64,
    /// What has been done with it.
    state: BatchState,
    /// [`Progress::position`] when it was begun.
    from: usize,
    /// The entries, in the order in which they were read.
    runs: Vec<Run>,
    /// How many there are.
    length: usize,
    /// How many there may be if none has failed.
    size: usize,
    /// How many there may be.
    limit: usize,
    /// How many entries from `from` on were left out, since they are superseded.
    skipped: usize,
}

/// What has been done with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchState {
    /// It is being read.
    Read,
    /// It is with the processor, and has no outcome yet.
    Leased,
    /// The processor has failed with it, and it will not be retried.
    GivenUp,
    /// It is with the function for dead letters.
    Buried,
}

/// Records, and the stores that they are in.
pub type Records<S> = (Arc<Frozen<S>>, Vec<<S as Store>::Record>);

/// What became of the failed entries of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GivenBack {
    /// They will be retried.
    pub retried: usize,
    /// A newer write has replaced them, or they were deleted.
    pub superseded: usize,
    /// They have failed too often, and are the batch now.
    pub given_up: usize,
}

/// Where a failed entry is retried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retry {
    /// It waits again.
    Waits,
    /// It was added to another entry, which waits.
    Joins,
    /// It stays in this flush, before all entries that were in no batch.
    Stays,
    /// Nowhere: a newer write has replaced it, or it was deleted.
    IsSuperseded,
}

/// How far readers have come, as their supervisors see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// How many batches were claimed or leased.
    pub calls: usize,
    /// How many entries the last one had.
    pub called_with: usize,
    /// How many positions have no outcome yet.
    pub left: usize,
    /// When a function of the user was last called.
    pub called_at: Option<i64>,
}

impl Batch {
    /// No batch.
    const NONE: Batch = Batch {
        reader: 0,
        state: BatchState::Read,
        from: 0,
        runs: Vec::new(),
        length: 0,
        size: 0,
        limit: 0,
        skipped: 0,
    };

    /// Adds an entry. A run has only retried entries or only others, so that each goes back to where it came from.
    fn push(&mut self, position: usize, attempts: u32) {
        self.length += 1;
        let is_next = |run: &Run| run.first + run.length == position && run.attempts == attempts;
        match self.runs.last_mut() {
            Some(run) if is_next(run) && position != self.from => run.length += 1,
            _ => self.runs.push(Run { first: position, length: 1, attempts }),
        }
    }

    /// The position of each entry, and how often it has failed.
    fn entries(&self) -> impl Iterator<Item = (usize, u32)> + '_ {
        self.runs.iter().flat_map(|run| (run.first..run.first + run.length).map(|position| (position, run.attempts)))
    }
}

impl<S: Store> Progress<S> {
    /// Takes back a batch of which the processor knows nothing.
    fn undo_read(&mut self) {
        if self.batch.state == BatchState::Read && self.batch.length > 0 {
            let Batch { from, runs, .. } = std::mem::replace(&mut self.batch, Batch::NONE);
            self.position = from;
            runs.into_iter().filter(|run| run.first < from).rev().for_each(|run| self.retries.push_front(run));
        }
    }

    /// Ends the present batch, and keeps its memory for the next one.
    fn end_batch(&mut self) {
        let mut runs = std::mem::take(&mut self.batch.runs);
        runs.clear();
        self.batch = Batch { runs, ..Batch::NONE };
    }

    /// Goes on by some positions: of those to be retried, or of all others.
    fn pass(&mut self, is_retry: bool, count: usize) {
        if !is_retry {
            self.position += count;
        } else if let Some(run) = self.retries.front_mut() {
            (run.first, run.length) = (run.first + count, run.length - count);
            if run.length == 0 {
                self.retries.pop_front();
            }
        }
    }

    /// Whether each entry before `end` was read since it was last to be retried.
    fn is_read(&self, end: usize) -> bool {
        self.position >= end && self.retries.is_empty()
    }
}

impl<S: Store> Flush<S> {
    /// A flush of which nothing has been read.
    pub(crate) fn new(frozen: Arc<Frozen<S>>, outcomes: Arc<Outcomes>, bound: Option<Arc<Bound>>) -> Self {
        let end = frozen.end();
        let left = frozen.stores.iter().map(Store::len).sum();
        let since = frozen.stores.iter().filter_map(Store::since).min();
        let bytes = frozen.stores.iter().map(Store::bytes).sum();
        let progress = Progress {
            frozen: Some(frozen),
            position: 0,
            retries: VecDeque::new(),
            batch: Batch::NONE,
            calls: 0,
            called_with: 0,
            called_at: None,
            outcomes,
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
            giving_back: Mutex::new(()),
        }
    }

    /// Goes on with the batch of this reader, which has `length` entries already; with 0 it begins a batch of at most
    /// `size`. `None` if all entries have an outcome, if the processor has a batch, or if another reader has begun one.
    pub fn read(&self, reader: u64, length: usize, size: usize) -> Option<Reader<'_, S>> {
        let mut progress = self.progress.lock();
        progress.frozen.as_ref()?;
        if length == 0 {
            progress.undo_read();
            if progress.batch.length > 0 {
                return None;
            }
            let from = progress.position;
            let batch = &mut progress.batch;
            (batch.reader, batch.from, batch.size, batch.limit) = (reader, from, size, size);
            // No reader comes to these again.
            let superseded = std::mem::take(&mut batch.skipped);
            self.count(&progress, Ended { superseded, ..Ended::default() });
        } else if !progress.is_read_by(reader, length) {
            return None;
        }
        Some(Reader { flush: self, progress })
    }

    /// Gives the batch away for good; `false` if it is not this reader's. `now` is the time.
    pub fn claim(&self, reader: u64, now: i64) -> bool {
        let mut progress = self.progress.lock();
        let is_own = progress.call(reader, now);
        if is_own {
            let Batch { length: processed, skipped: superseded, .. } = progress.batch;
            progress.end_batch();
            self.count(&progress, Ended { processed, superseded, ..Ended::default() });
            self.settle(&mut progress);
        }
        is_own
    }

    /// Gives the batch to the processor until it has an outcome; `false` if it is not this reader's. `now` is the time.
    pub fn lease(&self, reader: u64, now: i64) -> bool {
        let mut progress = self.progress.lock();
        let is_own = progress.call(reader, now);
        if is_own {
            let superseded = std::mem::take(&mut progress.batch.skipped);
            self.count(&progress, Ended { superseded, ..Ended::default() });
            if progress.batch.length > 0 {
                progress.batch.state = BatchState::Leased;
            } else {
                self.settle(&mut progress);
            }
        }
        is_own
    }

    /// The function for dead letters is called with a batch that is given up. `now` is the time.
    pub fn bury(&self, now: i64) {
        let mut progress = self.progress.lock();
        if matches!(progress.batch.state, BatchState::GivenUp | BatchState::Buried) {
            progress.batch.state = BatchState::Buried;
            progress.called_at = Some(now);
        }
    }

    /// The end of this reader's batch, which was leased.
    pub fn succeed(&self, reader: u64) {
        let mut progress = self.progress.lock();
        let Batch { state, reader: own, length, .. } = progress.batch;
        if state != BatchState::Read && own == reader {
            progress.end_batch();
            self.count(
                &progress,
                match state {
                    BatchState::GivenUp | BatchState::Buried => Ended { given_up: length, ..Ended::default() },
                    _ => Ended { processed: length, ..Ended::default() },
                },
            );
            self.settle(&mut progress);
        }
    }

    /// The batch that another reader has left, which is this one's from now on, and how many entries it has; `None` if
    /// there is none. If the other has died while it gave the batch back, it is leased until that is done, and who
    /// gives it back again waits for that.
    pub fn inherit(&self, reader: u64) -> Option<(BatchState, usize)> {
        let mut progress = self.progress.lock();
        progress.undo_read();
        progress.batch.reader = reader;
        (progress.batch.length > 0).then_some((progress.batch.state, progress.batch.length))
    }

    /// The records of the present batch, and the stores that they are in.
    pub fn batch(&self) -> Option<Records<S>> {
        let batch = self.progress.lock().batch.clone();
        let frozen = self.entries()?;
        let records = batch.entries().filter_map(|(position, _attempts)| frozen.record(position)).collect();
        Some((frozen, records))
    }

    /// How often the entries of the present batch have failed, at most.
    pub fn attempts(&self) -> u32 {
        self.progress.lock().batch.runs.iter().map(|run| run.attempts).max().unwrap_or(0)
    }

    /// Takes the failed entries out of this reader's batch, and calls `retry` for each that has failed less than
    /// `max_attempts` times, with its position and how often it has failed. The others of them are the batch from now on. All
    /// entries that have not failed have succeeded. `failed` has the numbers of the failed ones in the batch, in their
    /// order; `None` means all.
    pub(crate) fn give_back(
        &self,
        reader: u64,
        failed: Option<&[usize]>,
        counted: bool,
        max_attempts: Option<u32>,
        mut retry: impl FnMut(&Frozen<S>, usize, u32) -> Retry,
    ) -> GivenBack {
        let (mut result, mut joined) = (GivenBack::default(), 0);
        // Nobody else ends a leased batch, so its entries are gone through without the lock of `progress`.
        let _giving_back = self.giving_back.lock();
        let batch = self.progress.lock().batch.clone();
        let is_own = batch.state == BatchState::Leased && batch.reader == reader;
        let Some(frozen) = self.entries().filter(|_| is_own) else { return result };
        if S::ADDS_UP {
            // Entries will be removed under the locks of shards, which are not held for long.
            self.gone();
        }
        let mut given_up = Batch { state: BatchState::GivenUp, ..Batch::NONE };
        let mut retries = Batch::NONE;
        let mut is_failed = is_among(failed);
        for (_number, (position, attempts)) in batch.entries().enumerate().filter(|(number, _)| is_failed(*number)) {
            let attempts = attempts.saturating_add(counted.into());
            if self.is_gone(position) {
                result.superseded += 1;
            } else if max_attempts.is_some_and(|max| attempts >= max) {
                given_up.push(position, attempts);
                result.given_up += 1;
            } else {
                match retry(&frozen, position, attempts) {
                    Retry::Waits => result.retried += 1,
                    Retry::Joins => {
                        joined += 1;
                        result.retried += 1;
                    }
                    Retry::Stays => {
                        retries.push(position, attempts);
                        result.retried += 1;
                    }
                    Retry::IsSuperseded => result.superseded += 1,
                }
            }
        }
        if !S::KEEPS_ORDER && retries.length > 0 {
            // `settled` will not go beyond the first that stays.
            let mut staying = retries.entries().map(|(position, _attempts)| position).peekable();
            let ended = batch.entries().map(|(position, _attempts)| position);
            ended.filter(|position| staying.next_if_eq(position).is_none()).for_each(|position| self.remove(position));
        }
        let waits = result.retried - retries.length;
        let failed = result.retried + result.superseded + result.given_up;
        let processed = batch.length - failed;
        let mut progress = self.progress.lock();
        retries.runs.into_iter().rev().for_each(|run| progress.retries.push_front(run));
        // Another reader may have inherited the batch meanwhile.
        given_up.reader = progress.batch.reader;
        progress.batch = if given_up.length > 0 { given_up } else { Batch::NONE };
        self.left.fetch_sub(waits, Ordering::Relaxed);
        if let Some(bound) = &progress.bound {
            bound.release(joined);
        }
        self.count(
            &progress,
            Ended { processed, superseded: result.superseded, failed: if counted { failed } else { 0 }, given_up: 0 },
        );
        self.settle(&mut progress);
        result
    }

    /// Counts outcomes.
    fn count(&self, progress: &Progress<S>, ended: Ended) {
        self.left.fetch_sub(ended.left(), Ordering::Relaxed);
        progress.outcomes.add(ended);
        if let Some(bound) = &progress.bound {
            bound.release(ended.left());
        }
    }

    /// Counts outcomes here from now on.
    pub(crate) fn set_outcomes(&self, outcomes: &Arc<Outcomes>) {
        self.progress.lock().outcomes = outcomes.clone();
    }

    /// No batch is given back as long as the result lives. This may have to wait until one is.
    pub(crate) fn hold(&self) -> MutexGuard<'_, ()> {
        self.giving_back.lock()
    }

    /// Lets the bound count the entries without an outcome, or no bound. The caller [holds](Self::hold) the flush.
    pub(crate) fn set_bound(&self, bound: Option<&Arc<Bound>>) {
        let mut progress = self.progress.lock();
        match (&progress.bound, bound) {
            (None, Some(new)) => new.add(self.left()),
            (Some(old), None) => old.release(self.left()),
            _ => {}
        }
        progress.bound = bound.cloned();
    }

    /// Publishes what has an outcome, and frees the stores after the last one.
    fn settle(&self, progress: &mut Progress<S>) {
        let failed = progress.retries.iter().filter(|run| run.attempts > 0).map(|run| run.length);
        self.staying.store(failed.sum(), Ordering::Relaxed);
        let settled = progress.retries.front().map_or(progress.position, |run| run.first);
        self.settled.store(settled, Ordering::Release);
        if progress.is_finished(self.end) {
            progress.frozen = None;
            progress.batch = Batch::NONE;
        }
    }

    /// Whether all entries have an outcome.
    pub(crate) fn is_finished(&self) -> bool {
        self.progress.lock().is_finished(self.end)
    }

    /// No entry from this position on was in a batch.
    pub fn position(&self) -> usize {
        self.progress.lock().position
    }

    /// How far readers have come.
    pub fn seen(&self) -> Seen {
        let Progress { position, ref retries, ref batch, calls, called_with, called_at, .. } = *self.progress.lock();
        let retried: usize = retries.iter().map(|run| run.length).sum();
        Seen { calls, called_with, left: self.end - position + retried + batch.length, called_at }
    }

    /// How many entries have no outcome now. The result counts them, and looks at each without a lock.
    pub(crate) fn unsettled(&self) -> impl FnOnce() -> usize + '_ {
        let progress = self.progress.lock();
        let (position, batch) = (progress.position, progress.batch.clone());
        let retries: Vec<Run> = progress.retries.iter().copied().collect();
        let frozen = progress.frozen.clone();
        drop(progress);
        move || {
            let Some(frozen) = frozen else { return 0 };
            let is_held = |position: &usize| frozen.record(*position).is_some() && !self.is_gone(*position);
            let rest = retries.iter().flat_map(|run| run.first..run.first + run.length).chain(position..self.end);
            let batch = match batch.state {
                BatchState::GivenUp | BatchState::Buried => batch.length,
                // Entries that wait again since are gone here, and perhaps not counted there.
                _ if S::ADDS_UP => batch.length,
                _ => batch.entries().filter(|(position, _attempts)| is_held(position)).count(),
            };
            batch + rest.filter(is_held).count()
        }
    }

    /// The position behind the last entry.
    pub fn end(&self) -> usize {
        self.end
    }

    /// How many entries have no outcome and do not wait again.
    pub(crate) fn left(&self) -> usize {
        self.left.load(Ordering::Relaxed)
    }

    /// How many entries have failed and stay here.
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

    /// Whether an entry of a table has no outcome yet, and was neither given up nor deleted.
    pub(crate) fn is_live(&self, position: usize) -> bool {
        position >= self.settled.load(Ordering::Acquire) && !self.is_gone(position)
    }

    /// Whether an entry was [removed](Self::remove).
    pub(crate) fn is_gone(&self, position: usize) -> bool {
        let bit = 1 << (position % BITS);
        self.gone.get().is_some_and(|words| words[position / BITS].load(Ordering::Acquire) & bit != 0)
    }

    /// Takes an entry out, which was deleted or has an outcome: it is in no further batch, and not seen any more.
    pub(crate) fn remove(&self, position: usize) {
        let bit = 1 << (position % BITS);
        self.gone()[position / BITS].fetch_or(bit, Ordering::AcqRel);
    }

    /// [`Flush::gone`], made by the first call.
    fn gone(&self) -> &[AtomicUsize] {
        self.gone.get_or_init(|| (0..self.end.div_ceil(BITS)).map(|_| AtomicUsize::new(0)).collect())
    }
}

/// Bits in a word of [`Flush::gone`].
const BITS: usize = usize::BITS as usize;

impl<S: Store> Progress<S> {
    /// Whether this reader has read as many entries of the present batch.
    fn is_read_by(&self, reader: u64, length: usize) -> bool {
        let Batch { state, reader: own, length: read, .. } = self.batch;
        state == BatchState::Read && own == reader && read == length
    }

    /// Notes that the processor is called with the batch, if this reader has read one.
    fn call(&mut self, reader: u64, now: i64) -> bool {
        let is_own = self.is_read_by(reader, self.batch.length);
        if is_own && self.batch.length > 0 {
            self.calls += 1;
            self.called_with = self.batch.length;
            self.called_at = Some(now);
        }
        is_own
    }

    /// Whether all entries before `end` have an outcome.
    fn is_finished(&self, end: usize) -> bool {
        self.is_read(end) && self.batch.length == 0
    }
}

/// Whether numbers, which are asked in their order, are among `chosen`; `None` has all of them.
fn is_among(chosen: Option<&[usize]>) -> impl FnMut(usize) -> bool + '_ {
    let mut chosen = chosen.map(|numbers| numbers.iter().copied().peekable());
    move |number| match &mut chosen {
        None => true,
        Some(numbers) => {
            while numbers.next_if(|&next| next < number).is_some() {}
            numbers.next_if_eq(&number).is_some()
        }
    }
}

/// Puts a batch together. It holds the lock of the flush.
pub struct Reader<'f, S: Store> {
    /// The flush.
    flush: &'f Flush<S>,
    /// How far readers have come, and the stores.
    progress: MutexGuard<'f, Progress<S>>,
}

impl<S: Store> Reader<'_, S> {
    /// Whether some terms may be large, so that copying even a few records may take long.
    pub fn has_large(&self) -> bool {
        self.progress.frozen.as_ref().is_some_and(|frozen| frozen.has_large())
    }

    /// How many entries the batch has.
    pub fn length(&self) -> usize {
        self.progress.batch.length
    }

    /// Looks at the next `count` positions, or fewer. Adds their entries to the batch and calls `each` with their records;
    /// leaves out those that were deleted or that a newer write has replaced, as `is_superseded` says. Gives `true` when the
    /// batch has no room for the next entry, or there are no more entries.
    #[inline]
    pub fn read(
        &mut self,
        count: usize,
        is_superseded: impl Fn(&Frozen<S>, usize) -> bool,
        mut each: impl FnMut(S::Record),
    ) -> bool {
        let Reader { flush, progress } = self;
        let progress = &mut **progress;
        let Some(frozen) = &progress.frozen else { return true };
        let retry = progress.retries.front().copied();
        let (first, end) = match retry {
            Some(run) => (run.first, run.first + run.length),
            None => (progress.position, flush.end),
        };
        let batch = &mut progress.batch;
        let stop = end.min(first.saturating_add(count));
        let (mut position, mut skipped) = (first, 0);
        while position < stop {
            let record = frozen.record(position);
            if record.is_some() && is_superseded(frozen, position) {
                flush.remove(position);
            }
            // Only now: a delete may just have taken out both this entry and the one that replaces it.
            if record.is_some() && flush.is_gone(position) {
                skipped += 1;
            } else if let Some(record) = record {
                let attempts = match retry {
                    Some(run) => run.attempts,
                    None if frozen.has_failed => frozen.attempts(position),
                    None => 0,
                };
                let limit = batch.size >> attempts.saturating_mul(2).min(usize::BITS - 1);
                let limit = batch.limit.min(limit.max(1));
                if batch.length >= limit {
                    break;
                }
                batch.limit = limit;
                batch.push(position, attempts);
                each(record);
            }
            position += 1;
        }
        if retry.is_none() {
            batch.skipped += skipped;
        } else {
            // Nobody comes to these again.
            flush.count(progress, Ended { superseded: skipped, ..Ended::default() });
        }
        progress.pass(retry.is_some(), position - first);
        let is_full = position < stop;
        is_full || progress.is_read(flush.end)
    }
}

/// The stores of a partition's shards, one after the other, which nobody writes. The reclaimer thread frees them.
pub struct Frozen<S: Store> {
    /// One for each shard. Only `drop` takes them out.
    pub(crate) stores: Vec<S>,
    /// The position behind each store's last record.
    ends: Vec<usize>,
    /// Whether the processor may have failed with some of the entries before.
    has_failed: bool,
}

impl<S: Store> Frozen<S> {
    /// Puts stores one after the other.
    pub(crate) fn new(stores: Vec<S>) -> Self {
        let sum = |end: &mut usize, store: &S| {
            *end += store.end();
            Some(*end)
        };
        let ends = stores.iter().scan(0, sum).collect();
        let has_failed = stores.iter().any(Store::has_failed);
        Frozen { stores, ends, has_failed }
    }

    /// The position behind the last entry.
    fn end(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// Whether some terms may be large, so that copying even a few records may take long.
    pub fn has_large(&self) -> bool {
        self.stores.iter().any(Store::has_large)
    }

    /// The shard of the entry at a position, and its id there.
    #[inline]
    pub(crate) fn locate(&self, position: usize) -> Option<(usize, EntryId)> {
        let shard = self.ends.iter().position(|&end| position < end)?;
        Some((shard, EntryId::try_from(position - self.start(shard)).ok()?))
    }

    /// The position of the first entry of a shard.
    pub(crate) fn start(&self, shard: usize) -> usize {
        if shard == 0 {
            0
        } else {
            self.ends[shard - 1]
        }
    }

    /// The record at a position, unless it was deleted or the position is too high.
    #[inline]
    pub fn record(&self, position: usize) -> Option<S::Record> {
        let (shard, id) = self.locate(position)?;
        self.stores[shard].record(id)
    }

    /// How often the entry at a position had failed when it was written.
    #[inline]
    fn attempts(&self, position: usize) -> u32 {
        self.locate(position).map_or(0, |(shard, id)| self.stores[shard].attempts(id))
    }
}

impl<S: Store> Drop for Frozen<S> {
    fn drop(&mut self) {
        reclaim(std::mem::take(&mut self.stores));
    }
}
