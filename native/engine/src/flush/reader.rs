//! Reads batches from a flush.

use super::flush::Flush;
use super::frozen::Frozen;
use super::progress::Progress;
use crate::limits::totals::Ended;
use crate::store::Store;
use crate::sync::MutexGuard;

/// Puts a batch together. It holds the lock of the flush.
pub struct Reader<'f, S: Store> {
    /// The flush.
    flush: &'f Flush<S>,
    /// The progress of readers.
    progress: MutexGuard<'f, Progress<S>>,
}

impl<S: Store> Flush<S> {
    /// Continues the batch of this reader, which has `length` entries already; with 0 it begins a
    /// batch of at most `size` entries. `None` if all entries have an outcome, if the processor has
    /// a batch, or if another reader began one.
    ///
    /// Confirms the reader's open call, whatever it returns.
    pub fn read(&self, reader: u64, length: usize, size: usize) -> Option<Reader<'_, S>> {
        let mut progress = self.lock();
        self.confirm(&mut progress, reader);
        progress.frozen.as_ref()?;
        if length == 0 {
            self.undo_read(&mut progress);
            if !progress.batch.runs.is_empty() {
                return None;
            }
            progress.batch.begin(reader, size);
        } else if !progress.batch.is_read_by(reader, length) {
            return None;
        }
        Some(Reader { flush: self, progress })
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
        is_superseded: impl Fn(&Frozen<S>, usize) -> bool,
        mut each: impl FnMut(S::Record),
    ) -> bool {
        let Reader { flush, progress } = self;
        let Progress { frozen, position, retries, batch, .. } = &mut **progress;
        let Some(frozen) = frozen else { return true };
        let retry = retries.first();
        let (first, end) = retry.map_or((*position, flush.end()), |run| (run.first, run.end()));
        let stop = end.min(first.saturating_add(count));
        let (mut next, mut superseded) = (first, 0);
        while next < stop {
            if let Some(record) = frozen.record(next) {
                if is_superseded(frozen, next) {
                    flush.remove(next);
                }
                // This order matters: a delete may just remove both this entry and its replacement.
                if flush.is_gone(next) {
                    superseded += 1;
                } else {
                    let attempts = retry.map_or_else(|| frozen.attempts(next), |run| run.attempts);
                    if !batch.add(next, attempts) {
                        break;
                    }
                    each(record);
                }
            }
            next += 1;
        }
        if retry.is_some() {
            retries.advance(next - first);
        } else {
            *position = next;
        }
        let is_complete = next < stop || progress.is_read(flush.end());
        if superseded > 0 {
            flush.count(progress, Ended { superseded, ..Ended::default() });
        }
        flush.settle(progress);
        is_complete
    }
}
