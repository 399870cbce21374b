//! A reader of a flush: it reads a batch, lets go of the flush, claims or leases the batch, and
//! gives it back.

use std::sync::Arc;

use partitioned_buffer_engine::{Flush, Flushed, Frozen, GaveBack, GiveBack, Held, Partition, Store};

/// The failed entries of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GivenBack {
    pub retried: usize,
    pub superseded: usize,
    pub given_up: usize,
}

impl GivenBack {
    pub fn retried(retried: usize) -> Self {
        GivenBack { retried, ..Self::default() }
    }
}

/// A step that gives back all of a reader's batch, as a counted failure without a pause.
pub fn all_of(reader: u64) -> GiveBack<'static> {
    GiveBack { reader, failed: None, cancelled: &[], counted: true, max_attempts: None, pause: None, count: usize::MAX }
}

/// Gives a batch back, step by step.
pub fn give_back<S: Store, const SHARDS: usize>(
    partition: &Partition<S, SHARDS>,
    flush: &Arc<Flush<S>>,
    step: GiveBack<'_>,
) -> GivenBack {
    let mut all = GivenBack::default();
    loop {
        let GaveBack { retried, superseded, given_up, is_done } = partition.give_back(flush, step);
        all.retried += retried;
        all.superseded += superseded;
        all.given_up += given_up;
        if is_done {
            partition.settle(flush);
            return all;
        }
    }
}

/// The flush that a partition gives, the rest of an earlier one or a fresh one.
pub fn flush<S: Store, const SHARDS: usize>(partition: &Partition<S, SHARDS>) -> Option<Arc<Flush<S>>> {
    partition.flush().map(|flushed| match flushed {
        Flushed::Rest(flush) | Flushed::Fresh(flush) => flush,
    })
}

/// A batch of at most `size` entries, as `view` shows them; `None` if the flush has no batch for
/// this reader. It is neither claimed nor leased yet.
pub fn read<S: Store, V>(
    flush: &Flush<S>,
    reader: u64,
    size: usize,
    view: impl Fn(S::Record) -> V + Copy,
) -> Option<Vec<V>> {
    read_slices(flush, reader, size, usize::MAX, |_| false, view)
}

/// The same without what writes to the partition have replaced.
pub fn read_resumed<S: Store, const SHARDS: usize, V>(
    partition: &Partition<S, SHARDS>,
    flush: &Flush<S>,
    reader: u64,
    size: usize,
    view: impl Fn(S::Record) -> V + Copy,
) -> Option<Vec<V>> {
    let is_superseded = |held: &Held<'_, S>| flush.leaves_out() && partition.supersedes(held);
    read_slices(flush, reader, size, usize::MAX, is_superseded, view)
}

/// The same by a reader that lets go of the flush after each `slice` positions.
pub fn read_slices<S: Store, V>(
    flush: &Flush<S>,
    reader: u64,
    size: usize,
    slice: usize,
    is_superseded: impl Fn(&Held<'_, S>) -> bool + Copy,
    view: impl Fn(S::Record) -> V + Copy,
) -> Option<Vec<V>> {
    let mut batch = Vec::new();
    loop {
        let mut reading = flush.read(reader, batch.len(), size)?;
        for _ in 0..slice {
            if reading.read(1, is_superseded, |record| batch.push(view(record))) {
                return Some(batch);
            }
        }
        assert_eq!(reading.length(), batch.len());
    }
}

/// The present batch of a flush.
pub fn batch<S: Store, V>(flush: &Flush<S>, view: impl Fn(S::Record) -> V) -> Vec<V> {
    let mut batch = Vec::new();
    flush.batch(|record| batch.push(view(record)));
    batch
}

/// All entries of frozen stores that are still there.
pub fn contents<S: Store, V>(frozen: &Frozen<S>, view: impl Fn(S::Record) -> V) -> Vec<V> {
    let mut contents = Vec::new();
    frozen.each(|record| contents.push(view(record)));
    contents
}
