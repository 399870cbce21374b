//! What a reader of a flush does: it reads a batch, lets go of the flush, and then claims or leases what it has read.

use partitioned_buffer_engine::{Flush, Flushed, Frozen, Partition, Store};

/// The flush that a partition gives, the rest of an earlier one or a fresh one.
pub fn flush<S: Store, const SHARDS: usize>(partition: &Partition<S, SHARDS>) -> Option<std::sync::Arc<Flush<S>>> {
    partition.flush().map(|flushed| match flushed {
        Flushed::Rest(flush) | Flushed::Fresh(flush) => flush,
    })
}

/// A batch of at most `size` entries, as `view` shows them; `None` if the flush has no batch for this reader. It is
/// neither claimed nor leased yet.
pub fn read<S: Store, V>(
    flush: &Flush<S>,
    reader: u64,
    size: usize,
    view: impl Fn(S::Record) -> V + Copy,
) -> Option<Vec<V>> {
    read_slices(flush, reader, size, usize::MAX, |_, _| false, view)
}

/// The same without what writes to the partition have replaced.
pub fn read_resumed<S: Store, const SHARDS: usize, V>(
    partition: &Partition<S, SHARDS>,
    flush: &Flush<S>,
    reader: u64,
    size: usize,
    view: impl Fn(S::Record) -> V + Copy,
) -> Option<Vec<V>> {
    let is_superseded = |frozen: &Frozen<S>, position| partition.supersedes(frozen, position);
    read_slices(flush, reader, size, usize::MAX, is_superseded, view)
}

/// The same by a reader that lets go of the flush after each `slice` positions.
pub fn read_slices<S: Store, V>(
    flush: &Flush<S>,
    reader: u64,
    size: usize,
    slice: usize,
    is_superseded: impl Fn(&Frozen<S>, usize) -> bool + Copy,
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
