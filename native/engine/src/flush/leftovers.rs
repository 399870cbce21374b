//! The entries of a flush without an outcome: their number, and their removal.

use std::sync::Arc;

use super::batch::BatchState;
use super::deferred::in_order;
use super::flush::Flush;
use super::frozen::Frozen;
use super::progress::{Partial, Progress};
use crate::limits::totals::Ended;
use crate::runs::{Run, Runs};
use crate::store::Store;

/// The unfinished entries of a flush after [`Flush::end_early`].
pub(crate) struct Leftovers<S: Store> {
    /// The stores.
    pub(crate) frozen: Arc<Frozen<S>>,
    /// The number of entries, deleted ones included.
    pub(crate) left: usize,
    /// The entries that readers passed, except for those given up.
    passed: Runs,
    /// The entries given up, whose dead letters are not written.
    given_up: Runs,
    /// The position of the first other entry.
    position: usize,
}

impl<S: Store> Leftovers<S> {
    /// The entries given up.
    pub(crate) fn given_up(&self) -> &Runs {
        &self.given_up
    }

    /// Each other entry with its attempts, in ascending order.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (usize, u32)> + '_ {
        let ahead = (self.position..self.frozen.end()).map(|position| (position, self.frozen.attempts(position)));
        let all = self.passed.places().chain(ahead);
        all.filter(|(position, _attempts)| self.frozen.has(*position))
    }
}

impl<S: Store> Flush<S> {
    /// Ends the flush before its last outcome, and hands its entries over; `None` after the last
    /// outcome. Later calls of readers change nothing. The caller excludes steps of giving back.
    ///
    /// Entries of a leased batch get another attempt, since their outcome stays unknown. The batch
    /// of an open call counts as lost.
    pub(crate) fn end_early(&self) -> Option<Leftovers<S>> {
        let mut progress = self.lock();
        let lost = progress.take_lost(None);
        self.learn(&progress, Ended { failed: lost, ..Ended::default() }, |_learned| {});
        let Progress { frozen, batch, partial, retries, deferred, position, .. } = &mut *progress;
        let frozen = frozen.take()?;
        let is_leased = batch.state == BatchState::Leased && !batch.returns;
        let Partial { mut given_up, staying, .. } = partial.take().unwrap_or(Partial::NONE);
        if batch.is_given_up() {
            given_up.append(&batch.runs);
            batch.end();
        }
        let mut runs = Runs::NONE;
        for (list, run) in in_order([&batch.runs, &staying, &*retries].into_iter().chain(deferred.lists())) {
            let attempts = run.attempts.saturating_add((list == 0 && is_leased).into());
            runs.push_run(Run { attempts, ..run });
        }
        batch.end();
        retries.clear();
        deferred.clear();
        let position = std::mem::replace(position, self.end());
        let left = self.take_left();
        progress.count_bytes(0);
        if let Some(bound) = progress.bound.take() {
            bound.release(left);
        }
        self.settle(&mut progress);
        Some(Leftovers { frozen, left, passed: runs, given_up, position })
    }

    /// The entries without an outcome, some of them perhaps [gone](Self::is_gone), with their attempts,
    /// which count the call that is under way. Those given up are apart.
    pub(crate) fn unsettled_runs(&self) -> Vec<(Runs, bool)> {
        let progress = self.lock();
        let Progress { frozen, batch, partial, retries, deferred, position, .. } = &*progress;
        let (frozen, position) = (frozen.clone(), *position);
        let is_called = batch.state == BatchState::Leased && !batch.returns;
        let mut in_batch = Runs::NONE;
        for run in batch.runs.iter() {
            in_batch.push_run(Run { attempts: run.attempts.saturating_add(is_called.into()), ..run });
        }
        let mut lists = vec![(in_batch, batch.is_given_up()), (retries.clone(), false)];
        lists.extend(deferred.lists().map(|runs| (runs.clone(), false)));
        if let Some(partial) = partial {
            lists.extend([(partial.given_up.clone(), true), (partial.staying.clone(), false)]);
        }
        drop(progress);
        let Some(frozen) = frozen else { return Vec::new() };
        let mut ahead = Runs::NONE;
        for position in (position..frozen.end()).filter(|&position| frozen.has(position)) {
            ahead.push(position, frozen.attempts(position));
        }
        lists.push((ahead, false));
        lists
    }

    /// Counts the entries without an outcome. The returned closure looks at each entry, without a
    /// lock.
    pub(crate) fn unsettled(&self) -> impl FnOnce() -> usize + '_ {
        let progress = self.lock();
        let (position, frozen) = (progress.position, progress.frozen.clone());
        let (batch, retries, deferred) = (progress.batch.clone(), progress.retries.clone(), progress.deferred.clone());
        let partial = progress.partial.as_ref().map_or(0, |partial| partial.given_up.len() + partial.staying.len());
        drop(progress);
        move || {
            let Some(frozen) = frozen else { return 0 };
            let is_held = |position: &usize| frozen.has(*position) && !self.is_gone(*position);
            let count = |runs: &Runs| runs.places().filter(|(position, _attempts)| is_held(position)).count();
            // An entry of a counter that waits again is gone, and perhaps not counted there.
            let is_whole = batch.is_given_up() || S::ADDS_UP;
            let in_batch = if is_whole { batch.runs.len() } else { count(&batch.runs) };
            let deferred: usize = deferred.lists().map(count).sum();
            in_batch + partial + count(&retries) + deferred + (position..self.end()).filter(is_held).count()
        }
    }
}
