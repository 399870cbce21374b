//! Flushes as resources: reading, claiming, leasing and settling their batches.

mod reading;

use std::sync::Arc;
use std::time::Duration;

use partitioned_buffer_engine::generation::Record;
use partitioned_buffer_engine::partition::TABLE_SHARDS;
use partitioned_buffer_engine::reclaim::help;
use partitioned_buffer_engine::tally::Counted;
use partitioned_buffer_engine::{
    BatchState, Death, Flush, Flushed, GaveBack, Generation, GiveBack, Leased, Log, Mark, Partition, Resident, Seen,
    Store, Tally,
};
use rustler::{Encoder, Env, Resource, Term};

pub(crate) use self::reading::{Begun, Next, Reading};
use crate::any::each;
use crate::buffer::Partitions;
use crate::clock::now;
use crate::pace::Pace;
use crate::run::{NotRunning, Shared};
use crate::vm::caller::{count_to, resident_to, sum_to, tuple, unsigned_to, version_to, ListBuilder};
use crate::vm::environment::Environment;
use crate::vm::term::RawTerm;

/// A record as the processor gets it.
pub(crate) trait ToTerm: Copy {
    /// A copy in the environment of the caller.
    fn to_term(self, env: Env<'_>) -> Term<'_>;
}

impl ToTerm for Record<RawTerm> {
    #[inline]
    fn to_term(self, env: Env<'_>) -> Term<'_> {
        let (key, value) = (resident_to(env, self.key), resident_to(env, self.value));
        tuple(env, [key, value, version_to(env, self.version), unsigned_to(env, self.updates)])
    }
}

impl ToTerm for Counted<RawTerm> {
    #[inline]
    fn to_term(self, env: Env<'_>) -> Term<'_> {
        tuple(env, [resident_to(env, self.key), sum_to(env, self.sum), count_to(env, self.count)])
    }
}

impl ToTerm for Resident<RawTerm> {
    #[inline]
    fn to_term(self, env: Env<'_>) -> Term<'_> {
        resident_to(env, self)
    }
}

/// The number of entries that a call leases to be given back: it looks at each of them.
const REST: usize = 4096;

/// A flush of any kind of buffer, as a resource.
pub(crate) enum FlushResource {
    /// A flush of a map.
    Map(PartitionFlush<Generation<Environment>, TABLE_SHARDS>),
    /// A flush of a counter.
    Counter(PartitionFlush<Tally<Environment>, TABLE_SHARDS>),
    /// A flush of a queue.
    Queue(PartitionFlush<Log<Environment>, 1>),
}

#[rustler::resource_impl]
impl Resource for FlushResource {}

impl FlushResource {
    /// The state that the partitions of the flush share, and the number of its run.
    fn run(&self) -> (&'static Shared, u32) {
        each!(FlushResource, self, own => (&own.partitions.shared, own.number))
    }

    /// Acts for the run of the flush, unless another run began since.
    pub(crate) fn enter<R>(&self, act: impl FnOnce(&Self) -> R) -> Result<R, NotRunning> {
        let (shared, number) = self.run();
        shared.enter_last(number, || act(self))
    }

    /// Reads records for a batch until it is complete or the time is up. Then it begins the call of
    /// the processor, as far as it is asked to. Returns the records, how many the batch has, and
    /// whether the call began.
    pub(crate) fn read<'a>(&self, env: Env<'a>, reading: &Reading) -> (Term<'a>, usize, Begun) {
        each!(FlushResource, self, own => own.read(env, reading))
    }

    /// See [`Flush::confirm_call`]. A task whose run is over still confirms its last call.
    pub(crate) fn confirm(&self, env: Env<'_>) {
        each!(FlushResource, self, own => own.flush.confirm_call(reader(env)));
    }

    /// See [`Flush::claim`].
    pub(crate) fn claim(&self, env: Env<'_>) -> Begun {
        each!(FlushResource, self, own => own.begin(env, true, || own.flush.claim(reader(env), now()).then_some(0)))
    }

    /// See [`Flush::lease`]. The call begins `in_pause`, or not.
    pub(crate) fn lease(&self, env: Env<'_>, in_pause: bool) -> Begun {
        each!(FlushResource, self, own => {
            own.begin(env, in_pause, || own.flush.lease(reader(env), now()).then(|| own.flush.attempts()))
        })
    }

    /// See [`Flush::succeed`].
    pub(crate) fn succeed(&self, env: Env<'_>) -> usize {
        each!(FlushResource, self, own => {
            let left = own.flush.succeed(reader(env));
            own.settle(env);
            left
        })
    }

    /// See [`Flush::split`].
    pub(crate) fn split(&self, env: Env<'_>) -> Option<(usize, usize)> {
        each!(FlushResource, self, own => own.flush.split(reader(env)))
    }

    /// See [`Flush::shorten`].
    pub(crate) fn shorten(&self, env: Env<'_>, length: usize) {
        each!(FlushResource, self, own => own.flush.shorten(reader(env), length));
    }

    /// See [`Flush::defer`].
    pub(crate) fn defer(&self) {
        each!(FlushResource, self, own => own.flush.defer());
    }

    /// See [`Partition::lease_rest`].
    pub(crate) fn lease_rest(&self, env: Env<'_>, if_others: bool) -> bool {
        each!(FlushResource, self, own => own.partition.lease_rest(&own.flush, reader(env), REST, if_others))
    }

    /// Gives back entries of the batch until all known ones are done or the time is up, and returns
    /// the number of the next entry. See [`Partition::give_back`].
    pub(crate) fn give_back(&self, env: Env<'_>, failed: &Failed, terms: &Terms) -> Result<(GaveBack, usize), NoEntry> {
        each!(FlushResource, self, own => own.give_back(env, failed, terms))
    }

    /// See [`Flush::inherit`].
    pub(crate) fn inherit(&self, env: Env<'_>, death: Option<Death>) -> Option<(BatchState, usize)> {
        each!(FlushResource, self, own => own.flush.inherit(reader(env), death))
    }

    /// The records of the batch, however long it takes.
    pub(crate) fn batch<'a>(&self, env: Env<'a>) -> Term<'a> {
        each!(FlushResource, self, own => own.batch(env))
    }

    /// See [`Flush::mark`].
    pub(crate) fn mark(&self, env: Env<'_>, mark: Option<Mark>) -> bool {
        each!(FlushResource, self, own => own.flush.mark(reader(env), mark))
    }

    /// See [`Flush::marked`].
    pub(crate) fn marked(&self) -> Option<Mark> {
        each!(FlushResource, self, own => own.flush.marked())
    }

    /// See [`Flush::bury`].
    pub(crate) fn bury(&self) {
        each!(FlushResource, self, own => own.flush.bury(now()));
    }

    /// See [`Flush::touch`].
    pub(crate) fn touch(&self) {
        each!(FlushResource, self, own => own.flush.touch(now()));
    }

    /// See [`Flush::seen`].
    pub(crate) fn seen(&self) -> Seen {
        each!(FlushResource, self, own => own.flush.seen())
    }
}

/// The failed entries of a batch, as far as one call looks at them.
pub(crate) struct Failed {
    /// The numbers in ascending order; `None` for all.
    pub(crate) numbers: Option<Vec<usize>>,
    /// Those that are given up, whatever their attempts.
    pub(crate) cancelled: Vec<usize>,
    /// Whether no other entries failed behind these.
    pub(crate) is_whole: bool,
}

/// A failed entry is not in the batch.
pub(crate) struct NoEntry;

/// How failed entries are given back: as in [`GiveBack`].
pub(crate) struct Terms {
    /// Whether the failure counts.
    pub(crate) counted: bool,
    /// How often an entry may fail.
    pub(crate) max_attempts: Option<u32>,
    /// The pause of the partition.
    pub(crate) pause: Option<Duration>,
}

/// A flush, the partition that gave it, and the run.
pub(crate) struct PartitionFlush<S: Store, const SHARDS: usize> {
    /// All partitions of the buffer.
    partitions: &'static Partitions<S, SHARDS>,
    /// The partition.
    partition: &'static Partition<S, SHARDS>,
    /// Its flush.
    flush: Arc<Flush<S>>,
    /// The number of the run.
    number: u32,
}

/// A new flush, or the rest of the last one.
pub(crate) enum Resumed<F> {
    /// The rest of the last flush.
    Rest(F),
    /// The entries that waited.
    Fresh(F),
}

impl<F> Resumed<F> {
    /// The same with another flush.
    pub(crate) fn map<G>(self, other: impl FnOnce(F) -> G) -> Resumed<G> {
        match self {
            Resumed::Rest(flush) => Resumed::Rest(other(flush)),
            Resumed::Fresh(flush) => Resumed::Fresh(other(flush)),
        }
    }
}

/// The calling process, as a reader of a flush.
fn reader(env: Env<'_>) -> u64 {
    RawTerm::from(env.pid().encode(env)).word() as u64
}

impl<S: Store, const SHARDS: usize> PartitionFlush<S, SHARDS> {
    /// Flushes a partition for a run; `None` if it has no entries.
    pub(crate) fn start(
        partitions: &'static Partitions<S, SHARDS>,
        number: u32,
        partition: u32,
    ) -> Result<Option<Resumed<Self>>, NotRunning> {
        let partition = partitions.running(partition)?;
        let own = |flush| PartitionFlush { partitions, partition, flush, number };
        Ok(match partition.flush() {
            Some(Flushed::Rest(flush)) => Some(Resumed::Rest(own(flush))),
            Some(Flushed::Fresh(flush)) => Some(Resumed::Fresh(own(flush))),
            None => None,
        })
    }

    /// The flush in flight of a partition, for a run.
    pub(crate) fn in_flight(
        partitions: &'static Partitions<S, SHARDS>,
        number: u32,
        partition: u32,
    ) -> Result<Option<Self>, NotRunning> {
        let partition = partitions.running(partition)?;
        Ok(partition.in_flight().map(|flush| PartitionFlush { partitions, partition, flush, number }))
    }

    /// Lets the shards give up a finished flush, sends the news of room, and helps the reclaimer.
    fn settle(&self, env: Env<'_>) {
        self.partition.settle(&self.flush);
        self.partitions.shared.tell_of_room(env);
        help();
    }

    /// See [`FlushResource::give_back`].
    fn give_back(&self, env: Env<'_>, failed: &Failed, terms: &Terms) -> Result<(GaveBack, usize), NoEntry> {
        let &Terms { counted, max_attempts, pause } = terms;
        let (reader, numbers) = (reader(env), failed.numbers.as_deref());
        let mut pace = Pace::start();
        let mut all = GaveBack::default();
        let Some(Leased { mut next, length }) = self.flush.leased(reader) else {
            return Ok((GaveBack { is_done: true, ..all }, 0));
        };
        let last = numbers.and_then(|numbers| numbers.last());
        if last.is_some_and(|&last| last >= length) {
            return Err(NoEntry);
        }
        let end = if failed.is_whole { length } else { last.map_or(next, |last| last + 1) };
        while !all.is_done && next < end {
            let count = pace.step.min(end - next);
            let cancelled = &failed.cancelled;
            let step = GiveBack { reader, failed: numbers, cancelled, counted, max_attempts, pause, count };
            let GaveBack { retried, superseded, given_up, is_done } = self.partition.give_back(&self.flush, step);
            all.retried += retried;
            all.superseded += superseded;
            all.given_up += given_up;
            all.is_done = is_done;
            next += count;
            if !pace.goes_on(count) {
                break;
            }
        }
        self.settle(env);
        pace.consume_timeslice(env);
        Ok((all, next))
    }
}

impl<S: Store<Record: ToTerm>, const SHARDS: usize> PartitionFlush<S, SHARDS> {
    /// See [`FlushResource::batch`].
    fn batch<'a>(&self, env: Env<'a>) -> Term<'a> {
        let mut list = ListBuilder::start(env);
        self.flush.batch(|record| list.push(record.to_term(env)));
        list.build()
    }
}
