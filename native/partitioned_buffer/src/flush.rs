//! Flushes as resources, and the operations that the NIFs do on all kinds of buffers.

use std::sync::Arc;

use partitioned_buffer_engine::entries::Record;
use partitioned_buffer_engine::{Closed, Flush, Flushed, Partition, Store};
use rustler::{Env, Resource, Term};

use crate::buffer::{Buffer, NotRunning, Partitions};
use crate::pace::Pace;
use crate::vm::clock::monotonic_time;
use crate::vm::term::{copy_to, tuple, unsigned_to, version_to, ListBuilder, RawTerm};

/// A record as the processor gets it.
pub(crate) trait ToTerm: Copy {
    /// A copy in the environment of the caller.
    fn to_term(self, env: Env<'_>) -> Term<'_>;
}

impl ToTerm for Record<RawTerm> {
    #[inline]
    fn to_term(self, env: Env<'_>) -> Term<'_> {
        let (key, value) = (copy_to(env, self.key), copy_to(env, self.value));
        tuple(env, [key, value, version_to(env, self.version), unsigned_to(env, self.updates)])
    }
}

impl ToTerm for RawTerm {
    #[inline]
    fn to_term(self, env: Env<'_>) -> Term<'_> {
        copy_to(env, self)
    }
}

/// A flush, as a resource.
pub(crate) struct FlushResource(pub(crate) Arc<dyn AnyFlush>);

#[rustler::resource_impl]
impl Resource for FlushResource {}

/// Records that a read reserves room for: more than most batches have, and more than it usually has time for.
const ROOM: usize = 1024;

/// A flush of any kind of buffer.
pub(crate) trait AnyFlush: Send + Sync {
    /// Where the next batch begins.
    fn position(&self) -> usize;

    /// Where the next batch begins, where the last one ends, and when the one before was claimed.
    fn progress(&self) -> (usize, usize, Option<i64>);

    /// At most `count` records from `position` on, and the position behind them. It gives fewer when the time is up.
    fn read<'a>(&self, env: Env<'a>, position: usize, count: usize) -> (Term<'a>, usize);

    /// Marks the records between two positions as given to the processor; `false` if another reader has claimed them.
    fn claim(&self, from: usize, to: usize) -> bool;
}

impl<S: Store<Record: ToTerm>> AnyFlush for Flush<S> {
    fn position(&self) -> usize {
        self.position()
    }

    fn progress(&self) -> (usize, usize, Option<i64>) {
        (self.position(), self.end(), self.claimed_at())
    }

    fn read<'a>(&self, env: Env<'a>, mut position: usize, count: usize) -> (Term<'a>, usize) {
        let mut pace = Pace::start();
        let mut records = ListBuilder::with_capacity(env, count.min(ROOM));
        if let Some(frozen) = self.entries() {
            let end = self.end();
            let has_large = frozen.has_large();
            while position < end && records.len() < count {
                // Positions of deleted entries count as well.
                let start = position;
                // Nothing announces a large record, so the clock is read after each one.
                let step = if has_large { 1 } else { pace.step };
                let stop = position.saturating_add(step).min(end);
                while position < stop && records.len() < count {
                    if let Some(record) = frozen.record(position) {
                        records.push(record.to_term(env));
                    }
                    position += 1;
                }
                if !pace.goes_on(position - start) {
                    break;
                }
            }
        }
        pace.consume_timeslice(env);
        (records.build(), position)
    }

    fn claim(&self, from: usize, to: usize) -> bool {
        self.claim(from, to, monotonic_time())
    }
}

/// The flush that a partition of any kind of buffer gives.
pub(crate) enum AnyFlushed {
    /// The rest of an earlier flush.
    Rest(FlushResource),
    /// The entries that waited.
    Fresh(FlushResource),
    /// There are no entries.
    Nothing,
}

/// The partitions of any kind of buffer.
pub(crate) trait AnyPartitions {
    /// See [`Partitions::count`].
    fn count(&self) -> Result<u32, NotRunning>;
    /// See [`Partitions::size`].
    fn size(&self) -> Result<usize, NotRunning>;
    /// See [`Partitions::reopen`].
    fn reopen(&self, partition: u32) -> Result<(), NotRunning>;
    /// See [`Partition::drain`].
    fn drain(&self, partition: u32) -> Result<Result<(), Closed>, NotRunning>;
    /// See [`Partition::close`].
    fn close(&self, partition: u32) -> Result<(), NotRunning>;
    /// See [`Partition::held`].
    fn held(&self, partition: u32) -> Result<usize, NotRunning>;
    /// See [`Partition::flush`].
    fn flush(&self, partition: u32) -> Result<AnyFlushed, NotRunning>;
    /// See [`Partition::in_flight`].
    fn in_flight(&self, partition: u32) -> Result<Option<FlushResource>, NotRunning>;
}

impl<S: Store<Record: ToTerm>, const SHARDS: usize> AnyPartitions for Partitions<S, SHARDS> {
    fn count(&self) -> Result<u32, NotRunning> {
        self.count()
    }

    fn size(&self) -> Result<usize, NotRunning> {
        self.size()
    }

    fn reopen(&self, partition: u32) -> Result<(), NotRunning> {
        self.reopen(partition)
    }

    fn drain(&self, partition: u32) -> Result<Result<(), Closed>, NotRunning> {
        self.running(partition).map(Partition::drain)
    }

    fn close(&self, partition: u32) -> Result<(), NotRunning> {
        self.running(partition).map(Partition::close)
    }

    fn held(&self, partition: u32) -> Result<usize, NotRunning> {
        self.running(partition).map(Partition::held)
    }

    fn flush(&self, partition: u32) -> Result<AnyFlushed, NotRunning> {
        Ok(match self.running(partition)?.flush() {
            Some(Flushed::Rest(flush)) => AnyFlushed::Rest(FlushResource(flush)),
            Some(Flushed::Fresh(flush)) => AnyFlushed::Fresh(FlushResource(flush)),
            None => AnyFlushed::Nothing,
        })
    }

    fn in_flight(&self, partition: u32) -> Result<Option<FlushResource>, NotRunning> {
        Ok(self.running(partition)?.in_flight().map(|flush| FlushResource(flush)))
    }
}

impl Buffer {
    /// The partitions of the running kind.
    pub(crate) fn running(&'static self) -> Result<&'static dyn AnyPartitions, NotRunning> {
        if self.map.count().is_ok() {
            return Ok(&self.map);
        }
        self.queue.count().map(|_| &self.queue as &dyn AnyPartitions)
    }
}
