//! Gives a failed batch back, in steps.
//!
//! A step handles some entries of the batch and then releases all locks, so that its caller can
//! stop and go on later. The flush keeps the progress: if the process dies between two steps, its
//! heir gives back the rest.

use std::time::{Duration, Instant};

use super::batch::BatchState;
use super::flush::Flush;
use super::frozen::Frozen;
use super::notes::Fate;
use super::progress::{Ending, Partial};
use crate::limits::totals::Ended;
use crate::runs::Runs;
use crate::store::Store;

/// A step of giving back a batch. All steps of a batch have the same parameters otherwise.
#[derive(Clone, Copy, Debug)]
pub struct GiveBack<'a> {
    /// The reader of the batch.
    pub reader: u64,
    /// The numbers of the failed entries in ascending order, counted in the whole batch as it was
    /// leased; `None` means all. The processor succeeded with the other entries. Numbers of entries
    /// that other steps handle may be left out.
    pub failed: Option<&'a [usize]>,
    /// The numbers of the failed entries to be given up, whatever their attempts.
    pub cancelled: &'a [usize],
    /// Whether this failure counts as an attempt.
    pub counted: bool,
    /// The attempts at which an entry is given up; with 0 all are cancelled.
    pub max_attempts: Option<u32>,
    /// The pause of the partition after the last step.
    pub pause: Option<Duration>,
    /// The number of entries for this step, at least 1.
    pub count: usize,
}

/// The result of a step: the failed entries among those it handled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GaveBack {
    /// Entries to be retried.
    pub retried: usize,
    /// Replaced or deleted entries.
    pub superseded: usize,
    /// Exhausted entries. After the last step they are the batch.
    pub given_up: usize,
    /// Whether this was the last step.
    pub is_done: bool,
}

/// How far a leased batch is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leased {
    /// The number of the next entry, in the whole batch as it was leased.
    pub next: usize,
    /// The number of entries of the whole batch.
    pub length: usize,
}

/// The place of a failed entry from this step on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Retry {
    /// It waits.
    Waits,
    /// It is part of another entry, which waits, or in its place.
    Joins,
    /// It stays in the flush, before all entries without a batch.
    Stays,
    /// Nowhere: it was replaced or deleted.
    IsSuperseded,
}

/// The outcomes of one step.
#[derive(Default)]
struct Step {
    /// The result, without `is_done`.
    result: GaveBack,
    /// The number of entries with which the processor succeeded.
    processed: usize,
    /// The number of counted failures.
    failed: usize,
    /// The number of cancelled entries.
    cancelled: usize,
    /// The number of retried entries that wait.
    waiting: usize,
    /// The number of waiting entries that joined another one.
    joined: usize,
    /// Exhausted entries.
    given_up: Runs,
    /// Entries that stay.
    staying: Runs,
    /// Entries with which the processor succeeded.
    done: Runs,
    /// All others.
    moved: Runs,
}

impl<S: Store> Flush<S> {
    /// The batch that this reader has leased; `None` without one.
    pub fn leased(&self, reader: u64) -> Option<Leased> {
        let progress = self.lock();
        let is_own = progress.batch.state == BatchState::Leased && progress.batch.reader == reader;
        let next = progress.partial.as_ref().map_or(0, |partial| partial.next);
        is_own.then(|| Leased { next, length: next + progress.batch.runs.len() })
    }

    /// Does a step, and calls `retry` with the position and the attempts of each failed entry below
    /// `max_attempts`. Leaves the batch of another reader, or without a lease, alone and is done.
    /// The caller allows one step at a time.
    pub(crate) fn give_back(
        &self,
        step: &GiveBack<'_>,
        mut retry: impl FnMut(&Frozen<S>, usize, u32) -> Retry,
    ) -> GaveBack {
        let mut progress = self.lock();
        let is_own = progress.batch.state == BatchState::Leased && progress.batch.reader == step.reader;
        let Some(frozen) = progress.frozen.clone().filter(|_| is_own) else {
            return GaveBack { is_done: true, ..GaveBack::default() };
        };
        // From here on nobody else can end the batch, so the step needs no lock of the progress.
        let next = progress.partial.get_or_insert(Partial::NONE).next;
        let entries = progress.batch.runs.head(step.count.max(1));
        drop(progress);
        if S::ADDS_UP {
            // The lock of a shard is too short for this allocation.
            self.gone();
        }
        let mut outcomes = Step::default();
        let mut is_failed = is_among(step.failed, next);
        let mut is_cancelled = is_among(Some(step.cancelled), next);
        for (number, (position, attempts)) in (next..).zip(entries.places()) {
            if !is_failed(number) {
                outcomes.processed += 1;
                outcomes.done.push(position, attempts);
                continue;
            }
            let attempts = attempts.saturating_add(step.counted.into());
            let is_cancelled = is_cancelled(number) || step.max_attempts == Some(0);
            outcomes.failed += usize::from(step.counted && !is_cancelled);
            outcomes.cancelled += usize::from(is_cancelled);
            if self.is_gone(position) {
                outcomes.result.superseded += 1;
                outcomes.moved.push(position, attempts);
            } else if is_cancelled || step.max_attempts.is_some_and(|max| attempts >= max) {
                outcomes.given_up.push(position, attempts);
            } else {
                let retry = retry(&frozen, position, attempts);
                match retry {
                    Retry::Waits => outcomes.waiting += 1,
                    Retry::Joins => (outcomes.waiting, outcomes.joined) = (outcomes.waiting + 1, outcomes.joined + 1),
                    Retry::Stays => outcomes.staying.push(position, attempts),
                    Retry::IsSuperseded => outcomes.result.superseded += 1,
                }
                if retry != Retry::Stays {
                    outcomes.moved.push(position, attempts);
                }
            }
        }
        self.finish(step, &entries, outcomes)
    }

    /// Writes the outcomes of a step down.
    fn finish(&self, step: &GiveBack<'_>, entries: &Runs, outcomes: Step) -> GaveBack {
        let Step { mut result, processed, failed, cancelled, waiting, joined, given_up, staying, done, moved } =
            outcomes;
        (result.retried, result.given_up) = (waiting + staying.len(), given_up.len());
        let kept = result.retried + result.superseded;
        let mut progress = self.lock();
        self.note(&done, |_attempts| Fate::Done);
        self.note(&moved, |_attempts| Fate::Moved);
        self.note(&given_up, |_attempts| Fate::GivenUp);
        self.note(&staying, Fate::Attempts);
        progress.batch.runs.advance(entries.len());
        self.hide(&progress, entries);
        let partial = progress.partial.get_or_insert(Partial::NONE);
        partial.next += entries.len();
        partial.given_up.append(&given_up);
        partial.staying.append(&staying);
        partial.has_success |= processed > 0;
        partial.has_failure |= failed > 0;
        partial.has_cancelled |= cancelled > 0;
        result.is_done = progress.batch.runs.is_empty();
        let ending = result.is_done.then(|| progress.end_partial());
        progress.has_success |= ending.as_ref().is_some_and(|ending| ending.has_success);
        self.leave(&progress, waiting, joined);
        let ended = Ended { processed, superseded: result.superseded, failed, given_up: 0 };
        self.learn(&progress, ended, |learned| {
            learned.failed += kept;
            if failed > 0 {
                learned.failed_at = Some(Instant::now());
            }
            let Some(Ending { length, has_success, has_failure, has_cancelled }) = ending else { return };
            if has_success {
                learned.succeed(length);
            } else if has_failure {
                learned.fail(length);
            } else if has_cancelled {
                learned.cancel(length);
            }
            if let Some(pause) = step.pause {
                learned.pause(pause, step.counted);
            }
        });
        self.settle(&mut progress);
        result
    }
}

/// Whether numbers from `first` on, asked in ascending order, are among `chosen`; `None` has all
/// numbers.
fn is_among(chosen: Option<&[usize]>, first: usize) -> impl FnMut(usize) -> bool + '_ {
    let rest = |numbers: &'_ [usize]| numbers.partition_point(|&number| number < first);
    let mut chosen = chosen.map(|numbers| numbers[rest(numbers)..].iter().copied().peekable());
    move |number| match &mut chosen {
        None => true,
        Some(numbers) => {
            while numbers.next_if(|&next| next < number).is_some() {}
            numbers.next_if_eq(&number).is_some()
        }
    }
}
