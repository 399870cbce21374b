//! Flushes as resources, and the operations that the NIFs do on all kinds of buffers.

use std::sync::Arc;

use partitioned_buffer_engine::generation::Record;
use partitioned_buffer_engine::tally::Counted;
use partitioned_buffer_engine::{
    BatchState, Bound, Closed, Flush, Flushed, Frozen, GivenBack, Info, Partition, Seen, Store,
};
use rustler::{Encoder, Env, LocalPid, Monitor, Resource, ResourceArc, Term};

use crate::buffer::{Buffer, News, NotRunning, Partitions};
use crate::pace::Pace;
use crate::vm::clock::monotonic_time;
use crate::vm::term::{copy_to, sum_to, tuple, unsigned_to, version_to, ListBuilder, RawTerm};

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

impl ToTerm for Counted<RawTerm> {
    #[inline]
    fn to_term(self, env: Env<'_>) -> Term<'_> {
        tuple(env, [copy_to(env, self.key), sum_to(env, self.sum), unsigned_to(env, self.count)])
    }
}

impl ToTerm for RawTerm {
    #[inline]
    fn to_term(self, env: Env<'_>) -> Term<'_> {
        copy_to(env, self)
    }
}

/// A flush, as a resource.
pub(crate) struct FlushResource(pub(crate) Box<dyn AnyFlush>);

#[rustler::resource_impl]
impl Resource for FlushResource {}

/// Records that a read reserves room for: more than most batches have, and more than it usually has time for.
const ROOM: usize = 1024;

/// A flush of any kind of buffer. The methods are those of [`Flush`] and, for a failed batch, of [`Partition`].
pub(crate) trait AnyFlush: Send + Sync {
    /// Reads records for a batch until it is complete or the time is up. Gives the records, how many the batch has, and
    /// whether it is complete. `resumed` leaves out what newer writes have replaced.
    fn read<'a>(&self, env: Env<'a>, length: usize, size: usize, resumed: bool) -> (Term<'a>, usize, bool);

    /// See [`Flush::claim`].
    fn claim(&self, env: Env<'_>) -> bool;

    /// See [`Flush::lease`].
    fn lease(&self, env: Env<'_>) -> bool;

    /// See [`Flush::succeed`].
    fn succeed(&self, env: Env<'_>);

    /// See [`Partition::give_back`].
    fn give_back(&self, env: Env<'_>, failed: Option<&[usize]>, counted: bool, max: Option<u32>) -> GivenBack;

    /// See [`Flush::inherit`].
    fn inherit(&self, env: Env<'_>) -> Option<(BatchState, usize)>;

    /// All records of the batch, however long it takes.
    fn batch<'a>(&self, env: Env<'a>) -> Term<'a>;

    /// See [`Flush::attempts`].
    fn attempts(&self) -> u32;

    /// See [`Flush::bury`].
    fn bury(&self);

    /// See [`Flush::seen`].
    fn seen(&self) -> Seen;
}

/// A flush and the partition that gave it.
struct PartitionFlush<S: Store, const SHARDS: usize> {
    /// All partitions of the buffer.
    partitions: &'static Partitions<S, SHARDS>,
    /// The partition.
    partition: &'static Partition<S, SHARDS>,
    /// Its flush.
    flush: Arc<Flush<S>>,
}

/// The calling process, as a reader of a flush.
fn reader(env: Env<'_>) -> u64 {
    RawTerm::from(env.pid().encode(env)).word() as u64
}

impl<S: Store, const SHARDS: usize> PartitionFlush<S, SHARDS> {
    /// Some entries may have an outcome now.
    fn settle(&self, env: Env<'_>) {
        self.partition.settle(&self.flush);
        self.partitions.tell_of_room(env);
    }
}

impl<S: Store<Record: ToTerm>, const SHARDS: usize> AnyFlush for PartitionFlush<S, SHARDS> {
    fn read<'a>(&self, env: Env<'a>, length: usize, size: usize, resumed: bool) -> (Term<'a>, usize, bool) {
        let mut pace = Pace::start();
        let mut records = ListBuilder::with_capacity(env, size.min(ROOM));
        let Some(mut reader) = self.flush.read(reader(env), length, size) else {
            return (records.build(), length, true);
        };
        let has_large = reader.has_large();
        let is_superseded = |frozen: &Frozen<S>, position| resumed && self.partition.supersedes(frozen, position);
        let is_complete = loop {
            // Nothing announces a large record, so the clock is read after each one.
            let step = if has_large { 1 } else { pace.step };
            if reader.read(step, is_superseded, |record| records.push(record.to_term(env))) {
                break true;
            }
            if !pace.goes_on(step) {
                break false;
            }
        };
        let length = reader.length();
        drop(reader);
        pace.consume_timeslice(env);
        (records.build(), length, is_complete)
    }

    fn claim(&self, env: Env<'_>) -> bool {
        let is_own = self.flush.claim(reader(env), monotonic_time());
        self.settle(env);
        is_own
    }

    fn lease(&self, env: Env<'_>) -> bool {
        let is_own = self.flush.lease(reader(env), monotonic_time());
        self.settle(env);
        is_own
    }

    fn succeed(&self, env: Env<'_>) {
        self.flush.succeed(reader(env));
        self.settle(env);
    }

    fn give_back(&self, env: Env<'_>, failed: Option<&[usize]>, counted: bool, max: Option<u32>) -> GivenBack {
        let given_back = self.partition.give_back(&self.flush, reader(env), failed, counted, max);
        self.settle(env);
        given_back
    }

    fn inherit(&self, env: Env<'_>) -> Option<(BatchState, usize)> {
        self.flush.inherit(reader(env))
    }

    fn batch<'a>(&self, env: Env<'a>) -> Term<'a> {
        let mut list = ListBuilder::with_capacity(env, ROOM);
        if let Some((_frozen, records)) = self.flush.batch() {
            records.into_iter().for_each(|record| list.push(record.to_term(env)));
        }
        list.build()
    }

    fn attempts(&self) -> u32 {
        self.flush.attempts()
    }

    fn bury(&self) {
        self.flush.bury(monotonic_time());
    }

    fn seen(&self) -> Seen {
        self.flush.seen()
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
pub(crate) trait AnyPartitions: Send + Sync {
    /// See [`Partitions::open`].
    fn open(
        &self,
        buffer: &ResourceArc<Buffer>,
        env: Env<'_>,
        partition_count: u32,
        has_outcomes: bool,
        max_size: Option<usize>,
    ) -> bool;
    /// See [`Partitions::opened`].
    fn opened(&self) -> Option<u32>;
    /// See [`Partitions::end`].
    fn end(&self);
    /// See [`Partitions::down`].
    fn down(&self, monitor: &Monitor);
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
    /// See [`Partition::info`].
    fn info(&self, partition: u32) -> Result<Info, NotRunning>;
    /// See [`Partition::count_failed`].
    fn count_failed(&self, partition: u32, failed: usize) -> Result<(), NotRunning>;
    /// See [`Partition::set_threshold`].
    fn set_threshold(&self, partition: u32, enough: Option<usize>) -> Result<bool, NotRunning>;
    /// See [`Partitions::watch`].
    fn watch(&self, pid: LocalPid, partition: Option<u32>);
    /// See [`Partitions::change_bound`].
    fn change_bound(&self, max_size: Option<usize>) -> Result<(), NotRunning>;
    /// See [`Partitions::take_room`].
    fn take_room(&self) -> bool;
    /// The bound of the buffer.
    fn bound(&self) -> &Arc<Bound>;
    /// See [`Partitions::tell`].
    fn tell(&self, env: Env<'_>, news: News);
    /// See [`Partitions::tell_of_room`].
    fn tell_of_room(&self, env: Env<'_>);
    /// Tells that there is too little room, once until there is more.
    fn tell_of_full(&self, env: Env<'_>);
    /// See [`Partition::flush`].
    fn flush(&'static self, partition: u32) -> Result<AnyFlushed, NotRunning>;
    /// See [`Partition::in_flight`].
    fn in_flight(&'static self, partition: u32) -> Result<Option<FlushResource>, NotRunning>;
}

impl<S: Store<Record: ToTerm>, const SHARDS: usize> AnyPartitions for Partitions<S, SHARDS> {
    fn open(
        &self,
        buffer: &ResourceArc<Buffer>,
        env: Env<'_>,
        partition_count: u32,
        has_outcomes: bool,
        max_size: Option<usize>,
    ) -> bool {
        self.open(buffer, env, partition_count, has_outcomes, max_size)
    }

    fn opened(&self) -> Option<u32> {
        self.opened()
    }

    fn end(&self) {
        self.end();
    }

    fn down(&self, monitor: &Monitor) {
        self.down(monitor);
    }

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

    fn info(&self, partition: u32) -> Result<Info, NotRunning> {
        self.running(partition).map(Partition::info)
    }

    fn count_failed(&self, partition: u32, failed: usize) -> Result<(), NotRunning> {
        self.running(partition).map(|partition| partition.count_failed(failed))
    }

    fn set_threshold(&self, partition: u32, enough: Option<usize>) -> Result<bool, NotRunning> {
        self.running(partition).map(|partition| partition.set_threshold(enough))
    }

    fn watch(&self, pid: LocalPid, partition: Option<u32>) {
        self.watch(pid, partition);
    }

    fn change_bound(&self, max_size: Option<usize>) -> Result<(), NotRunning> {
        self.change_bound(max_size)
    }

    fn take_room(&self) -> bool {
        self.take_room()
    }

    fn bound(&self) -> &Arc<Bound> {
        &self.bound
    }

    fn tell(&self, env: Env<'_>, news: News) {
        self.tell(env, news);
    }

    fn tell_of_room(&self, env: Env<'_>) {
        self.tell_of_room(env);
    }

    fn tell_of_full(&self, env: Env<'_>) {
        // What was taken from the shards may be enough for somebody else.
        self.tell_of_room(env);
        if self.bound.fill() {
            self.tell(env, News::Full);
        }
    }

    fn flush(&'static self, partition: u32) -> Result<AnyFlushed, NotRunning> {
        let partition = self.running(partition)?;
        let resource = |flush| FlushResource(Box::new(PartitionFlush { partitions: self, partition, flush }));
        Ok(match partition.flush() {
            Some(Flushed::Rest(flush)) => AnyFlushed::Rest(resource(flush)),
            Some(Flushed::Fresh(flush)) => AnyFlushed::Fresh(resource(flush)),
            None => AnyFlushed::Nothing,
        })
    }

    fn in_flight(&'static self, partition: u32) -> Result<Option<FlushResource>, NotRunning> {
        let partition = self.running(partition)?;
        let resource = |flush| FlushResource(Box::new(PartitionFlush { partitions: self, partition, flush }));
        Ok(partition.in_flight().map(resource))
    }
}
