//! Reads batches from a flush.

use super::flush::Flush;
use super::frozen::Held;
use super::progress::Progress;
use crate::limits::totals::Ended;
use crate::store::Store;
use crate::sync::MutexGuard;

/// Puts a batch together, and may begin its call. It holds the lock of the flush, and publishes the
/// progress at its end.
pub struct Reader<'f, S: Store> {
    /// The flush.
    flush: &'f Flush<S>,
    /// The progress of readers.
    progress: MutexGuard<'f, Progress<S>>,
}

impl<S: Store> Flush<S> {
    /// Continues the batch of this reader, which has `length` entries already; with 0 it begins a
    /// batch. Either has at most `size` entries, and at most as many as the [limit](Isolation). `None`
    /// if all entries have an outcome, if the processor has a batch, or if another reader began one.
    ///
    /// After a pause, or if the reader [defers](Flush::defer) them, failed entries wait for the
    /// others.
    ///
    /// Confirms the reader's open call, whatever it returns.
    pub fn read(&self, reader: u64, length: usize, size: usize) -> Option<Reader<'_, S>> {
        let mut progress = self.lock();
        let isolation = self.confirm(&mut progress, reader);
        progress.frozen.as_ref()?;
        if length == 0 {
            self.undo_read(&mut progress);
            if !progress.batch.runs.is_empty() {
                return None;
            }
            let defers = isolation.has_paused || progress.defers;
            let defers = defers && !self.keeps_order() && !progress.takes_deferred;
            progress.batch.begin(reader, defers);
            if progress.has_only_deferred(self.end()) {
                progress.take_deferred();
            }
        } else if !progress.batch.is_read_by(reader, length) {
            return None;
        }
        progress.batch.size = size.min(isolation.limit);
        progress.batch.suspects = isolation.suspects;
        Some(Reader { flush: self, progress })
    }
}

impl<S: Store> Drop for Reader<'_, S> {
    fn drop(&mut self) {
        self.flush.settle(&mut self.progress);
    }
}

impl<S: Store> Reader<'_, S> {
    /// Whether some terms may be large, so that copying even a few records may take long.
    pub fn has_large(&self) -> bool {
        self.progress.frozen.as_ref().is_some_and(|frozen| frozen.has_large())
    }

    /// The number of entries in the batch.
    pub fn length(&self) -> usize {
        self.progress.batch.runs.len()
    }

    /// Notes that the reader is at work. `now` is the time.
    pub fn touch(&mut self, now: i64) {
        self.progress.called_at = Some(now);
    }

    /// Looks at the next `count` positions, or fewer. Adds their entries to the batch and calls
    /// `each` with their records. Leaves out deleted entries, and entries that a newer write
    /// replaced, by `is_superseded`; they have their outcome at once. Returns `true` when the batch
    /// is complete: it has no room for the next entry, or the flush has no other entries.
    #[inline]
    pub fn read(
        &mut self,
        count: usize,
        is_superseded: impl Fn(&Held<'_, S>) -> bool,
        mut each: impl FnMut(S::Record),
    ) -> bool {
        let Reader { flush, progress } = self;
        let Progress { frozen, position, retries, deferred, batch, .. } = &mut **progress;
        let Some(frozen) = frozen else { return true };
        let retry = retries.first();
        let (first, end) = retry.map_or((*position, flush.end()), |run| (run.first, run.end()));
        let stop = end.min(first.saturating_add(count));
        let (mut next, mut superseded) = (first, 0);
        let mut place = None;
        while next < stop {
            if !place.as_mut().is_some_and(|held: &mut Held<'_, S>| held.move_to(next)) {
                // No two stores are held: the old one is first let go.
                drop(place.take());
                place = frozen.hold(next);
            }
            let Some(held) = &place else { break };
            if let Some(record) = held.record() {
                if is_superseded(held) {
                    flush.leave_out(next);
                }
                // This order matters: a delete may just remove both this entry and its replacement.
                if flush.is_gone(next) {
                    superseded += 1;
                } else {
                    let attempts = retry.map_or_else(|| held.attempts(), |run| run.attempts);
                    if batch.defers && attempts > 0 {
                        deferred.push(next, attempts);
                    } else if batch.add(next, attempts) {
                        each(record);
                    } else {
                        break;
                    }
                }
            }
            next += 1;
        }
        drop(place);
        if retry.is_some() {
            retries.advance(next - first);
        } else {
            *position = next;
        }
        let mut is_complete = next < stop || progress.is_read(flush.end());
        if progress.has_only_deferred(flush.end()) {
            is_complete = !progress.batch.runs.is_empty();
            if !is_complete {
                progress.take_deferred();
            }
        }
        if superseded > 0 {
            flush.count(progress, Ended { superseded, ..Ended::default() });
        }
        is_complete
    }

    /// Gives the batch away, as [`Flush::claim`] does.
    pub fn claim(mut self, now: i64) {
        let reader = self.progress.batch.reader;
        self.flush.claim_read(&mut self.progress, reader, now);
    }

    /// Gives the batch to the processor, as [`Flush::lease`] does. Returns the most attempts of an
    /// entry.
    pub fn lease(mut self, now: i64) -> u32 {
        let reader = self.progress.batch.reader;
        self.flush.lease_read(&mut self.progress, reader, now);
        self.progress.batch.runs.most_attempts()
    }
}
