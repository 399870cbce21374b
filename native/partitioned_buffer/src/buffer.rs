//! A buffer: the partitions of one name.
//!
//! A name has [`Partitions`] for each kind of buffer. The partitions of the last started kind run,
//! from [`Partitions::open`] until the end of the [run](crate::run). The entries outlive a run: the
//! next run finds them.
//!
//! Every operation reads the partition count, which changes only at a start and a stop. Writers
//! change only the partition.

use std::collections::hash_map::RandomState;
use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher as _};
use std::sync::OnceLock;

use partitioned_buffer_engine::partition::TABLE_SHARDS;
use partitioned_buffer_engine::{
    routing, Access, Closed, Generation, Hash, Hasher, Limits, Log, Partition, Store, Tally, Versions,
};
use rustler::{Env, Resource};

use crate::route::Route;
use crate::run::{News, NotRunning, Owner, Shared};
use crate::vm::environment::Environment;
use crate::vm::term::RawTerm;

/// The partitions of a map.
pub(crate) type MapPartitions = Partitions<Generation<Environment>, TABLE_SHARDS>;

/// The partitions of a counter.
pub(crate) type CounterPartitions = Partitions<Tally<Environment>, TABLE_SHARDS>;

/// The partitions of a queue.
pub(crate) type QueuePartitions = Partitions<Log<Environment>, 1>;

/// Enough levels of partitions for the 4,096 that a buffer may have.
const LEVELS: usize = 13;

/// The bits of an incarnation: the VM has a word for as many.
const INCARNATION_BITS: u32 = 58;

/// See the module's documentation.
pub(crate) struct Buffer {
    /// Used while the buffer runs as a map.
    pub(crate) map: MapPartitions,
    /// Used while the buffer runs as a queue.
    pub(crate) queue: QueuePartitions,
    /// Used while the buffer runs as a counter.
    pub(crate) counter: CounterPartitions,
    /// A random positive number, which tells this buffer from those of its name in other VMs.
    pub(crate) incarnation: u64,
}

#[rustler::resource_impl]
impl Resource for Buffer {}

impl Buffer {
    /// A new buffer, which does not run.
    pub(crate) fn new() -> Self {
        let hasher = Hasher::new();
        Buffer {
            map: Partitions::new(hasher.clone()),
            queue: Partitions::new(hasher.clone()),
            counter: Partitions::new(hasher),
            incarnation: incarnation(),
        }
    }
}

/// A random positive number that takes no memory as a term.
fn incarnation() -> u64 {
    // The keys of a hash are random, and so is the hash of nothing.
    let random = RandomState::new().build_hasher().finish();
    (random >> (u64::BITS - INCARNATION_BITS)).max(1)
}

/// The partitions of one kind of buffer.
pub(crate) struct Partitions<S: Store, const SHARDS: usize> {
    /// Hashes the keys of all partitions.
    hasher: Hasher,
    /// Level `n` holds `2^n` partitions: more are added without moving those in use.
    levels: [OnceLock<Box<[Partition<S, SHARDS>]>>; LEVELS],
    /// The run of the partitions, and the state that they share.
    pub(crate) shared: Shared,
}

impl<S: Store<Term = RawTerm>, const SHARDS: usize> Partitions<S, SHARDS> {
    /// Opens the first `partition_count` partitions until the calling process dies, with or without
    /// outcomes, a kept order of failed items, these versions, and a bound. Returns the number of the run. Entries of an earlier
    /// run stay in their partitions. If the earlier run had another partition count, each of its
    /// entries waits in the partition that its key or item chooses now.
    ///
    /// Returns `None` and changes nothing if the process was killed already: nothing would report
    /// its death.
    pub(crate) fn open(
        &'static self,
        env: Env<'_>,
        partition_count: u32,
        has_outcomes: bool,
        keeps_order: bool,
        versions: Versions,
        limits: Limits,
    ) -> Option<u32> {
        let shared = &self.shared;
        let mut opened = shared.opened.write();
        let number = Shared::next_number();
        let owner = Owner::monitor(env, shared, number)?;
        shared.prepare(number);
        shared.processes.lock().forget(env, partition_count);
        shared.kept.begin(number);
        if opened.partition_count != partition_count && partition_count > 0 {
            let reroute = || self.reroute(opened.partition_count, partition_count);
            match shared.journaled() {
                Some(journaled) => journaled.moving(partition_count, reroute),
                None => reroute(),
            }
            opened.partition_count = partition_count;
        }
        opened.has_outcomes = has_outcomes;
        opened.owner = Some(owner.clone());
        let partitions = || (0..partition_count).map(|partition| self.partition(partition));
        for partition in partitions() {
            partition.close();
            partition.set_outcomes(has_outcomes);
            partition.set_order(keeps_order && S::KEEPS_ORDER);
            partition.set_versions(versions);
            partition.end_pause();
        }
        self.set_bound(partition_count, limits);
        partitions().for_each(|partition| partition.open(partition_count));
        shared.begin(number, partition_count);
        // A death that the monitor reported before the run began had no effect.
        if !owner.pid.is_alive(env) {
            shared.end(Some(number));
        }
        Some(number)
    }

    /// Moves the entries of the first `old` partitions to those of the new partition count.
    fn reroute(&self, old: u32, new: u32) {
        let evicted: Vec<_> = (0..old).map(|partition| self.partition(partition).evict()).collect();
        for leftover in evicted.iter().flat_map(|evicted| evicted.entries()) {
            self.partition(routing::partition(leftover.term().phash2(), new)).take_in(&leftover);
        }
        let mut given_up = BTreeMap::<_, Vec<_>>::new();
        for leftover in evicted.iter().flat_map(|evicted| evicted.given_up()) {
            given_up.entry(routing::partition(leftover.term().phash2(), new)).or_default().push(leftover);
        }
        for (partition, leftovers) in given_up {
            self.partition(partition).take_in_given_up(&leftovers);
        }
        // The totals of the buffer go on.
        let first = self.partition(0);
        (1..old).for_each(|partition| first.adopt_counts(self.partition(partition)));
    }
}

impl<S: Store, const SHARDS: usize> Partitions<S, SHARDS> {
    /// Closed partitions.
    fn new(hasher: Hasher) -> Self {
        Partitions { hasher, levels: [const { OnceLock::new() }; LEVELS], shared: Shared::default() }
    }

    /// Changes how much the first `partition_count` partitions may hold.
    fn set_bound(&self, partition_count: u32, limits: Limits) {
        let set_limits = || self.shared.bound.set_limits(limits);
        let set_bounded = |is_bounded| {
            (0..partition_count).for_each(|partition| self.partition(partition).set_bounded(is_bounded));
        };
        // A bounded shard must always find a bound.
        if limits.any() || self.shared.bound.is_refusing() {
            set_limits();
            set_bounded(true);
        } else {
            set_bounded(false);
            set_limits();
        }
    }

    /// Changes the bound of a running buffer. Of two changes at once, the second one waits: else
    /// some partitions would have a bound, and others none.
    pub(crate) fn change_bound(&self, limits: Limits) -> Result<(), NotRunning> {
        let _changing = self.shared.changing_bound.lock();
        self.set_bound(self.count()?, limits);
        Ok(())
    }

    /// Lets a running buffer refuse all writes, or no longer.
    pub(crate) fn refuse(&self, is_refusing: bool) -> Result<(), NotRunning> {
        let _changing = self.shared.changing_bound.lock();
        self.shared.bound.set_refusing(is_refusing);
        self.set_bound(self.count()?, self.shared.bound.limits());
        Ok(())
    }

    /// How many partitions are open.
    #[inline]
    pub(crate) fn count(&self) -> Result<u32, NotRunning> {
        self.shared.count()
    }

    /// Lets a drained or closed partition accept writes again.
    pub(crate) fn reopen(&self, partition: u32) -> Result<(), NotRunning> {
        let count = self.count()?;
        self.running(partition)?.open(count);
        Ok(())
    }

    /// A partition, if it runs.
    pub(crate) fn running(&self, partition: u32) -> Result<&Partition<S, SHARDS>, NotRunning> {
        if partition < self.count()? {
            Ok(self.partition(partition))
        } else {
            Err(NotRunning)
        }
    }

    /// The partition count of the last run, and how many entries wait or are in flight there.
    pub(crate) fn left(&self) -> (u32, usize) {
        let count = self.shared.opened.read().partition_count;
        (count, (0..count).map(|partition| self.partition(partition).held()).sum())
    }

    /// How many entries wait in all partitions.
    pub(crate) fn size(&self) -> Result<usize, NotRunning> {
        let count = self.count()?;
        let access = Access::by_count(count);
        (0..count).map(|partition| self.partition(partition).len(access).map_err(|Closed| NotRunning)).sum()
    }

    /// The hash of a key for the index of a partition.
    #[inline]
    pub(crate) fn hash(&self, key: RawTerm) -> Hash {
        self.hasher.hash(key.internal_hash(self.hasher.salt()))
    }

    /// Does `operation` on the partition of a key or item, with the access of the caller. Tries
    /// again if the count changes before the operation gets the lock.
    #[inline]
    pub(crate) fn with_partition<R>(
        &self,
        route: Route,
        term: RawTerm,
        mut operation: impl FnMut(&Partition<S, SHARDS>, Access) -> Result<R, Closed>,
    ) -> Result<R, NotRunning> {
        loop {
            let count = self.count()?;
            let partition = route.partition(term, count)?;
            match operation(self.partition(partition), route.access_to(count)) {
                Ok(result) => return Ok(result),
                Err(Closed) if self.count()? == count => return Err(NotRunning),
                Err(Closed) => {}
            }
        }
    }

    /// Sends the partition of a key or item the news that enough entries wait.
    #[cold]
    pub(crate) fn tell_enough(&self, env: Env<'_>, route: Route, term: RawTerm) {
        if let Some(partition) = self.count().ok().and_then(|count| route.partition(term, count).ok()) {
            self.shared.tell(env, News::Enough(partition));
        }
    }

    /// A partition, running or not.
    #[inline]
    pub(crate) fn partition(&self, partition: u32) -> &Partition<S, SHARDS> {
        let position = u64::from(partition) + 1;
        let level = position.ilog2();
        let partitions = self.levels[level as usize].get_or_init(|| {
            (0..1_u64 << level)
                .map(|_| Partition::sharing(&self.hasher, &self.shared.bound, &self.shared.clock))
                .collect()
        });
        &partitions[(position - (1 << level)) as usize]
    }
}
