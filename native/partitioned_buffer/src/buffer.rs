//! A buffer: the partitions of one name, and whether it runs.
//!
//! A name has [`Partitions`] for each kind of buffer. Those of the kind that was started last run, from
//! [`Partitions::open`] until the process that opened them, the buffer's supervisor, dies. The entries outlive that process:
//! the next supervisor finds them.
//!
//! Every operation reads `count`, which changes only at a start and a stop. Writers change only the partition.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use partitioned_buffer_engine::partition::{DRAINING, TABLE_SHARDS, TURN};
use partitioned_buffer_engine::{routing, Bound, Closed, Generation, Hash, Hasher, Log, Partition, Store, Tally};
use rustler::{Atom, Env, LocalPid, Monitor, Resource, ResourceArc};

use crate::flush::AnyPartitions;
use crate::vm::term::{Environment, RawTerm};

mod message {
    //! What processes are told.
    rustler::atoms! {
        enough,
        full,
        room
    }
}

mod kind {
    //! The names of the kinds.
    rustler::atoms! {
        map,
        queue,
        counter
    }
}

/// The partitions of a map.
pub(crate) type MapPartitions = Partitions<Generation<Environment>, TABLE_SHARDS>;

/// The partitions of a counter.
pub(crate) type CounterPartitions = Partitions<Tally<Environment>, TABLE_SHARDS>;

/// The partitions of a queue.
pub(crate) type QueuePartitions = Partitions<Log<Environment>, 1>;

/// Enough levels of partitions for the 4,096 that a buffer may have.
const LEVELS: usize = 13;

/// The count while no process has the partitions open.
const CLOSED: u32 = 0;

/// The count while a process has opened no partitions.
const NONE: u32 = u32::MAX;

/// The buffer was never started, has been stopped, has crashed, or has no partitions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NotRunning;

/// Which partition an operation is for, and who asks. A single word, since every NIF decodes one: larger results are copied
/// piece by piece, which costs a put a tenth.
///
/// The lower half is the partition count by which the caller has chosen the partition, or [`BY_TERM`], with the mark of the
/// writer. The upper half is the partition.
#[derive(Clone, Copy)]
pub(crate) struct Route(u64);

/// The partition is that of the key, or item, itself. No partition count is as high.
const BY_TERM: u32 = 1 << 29;

impl Route {
    /// The partition is that of the key, or item, itself.
    pub(crate) const BY_TERM: Self = Route(BY_TERM as u64);

    /// The caller has chosen a partition, by a partition count. If the buffer has another one now, the route is void.
    pub(crate) fn new(partition: u32, partition_count: u32) -> Self {
        // No buffer has as many partitions.
        Route(u64::from(partition) << 32 | u64::from(partition_count.min(BY_TERM - 1)))
    }

    /// The same with the mark of the writer: [`DRAINING`] is that of a processor, [`TURN`] that of a process that has waited
    /// for room.
    pub(crate) fn marked_with(self, mark: u32) -> Self {
        Route(self.0 | u64::from(mark))
    }

    /// The partition, if the caller has chosen one, and the partition count that it was chosen by.
    #[inline]
    fn chosen(self) -> Option<(u32, u32)> {
        let partition_count = self.0 as u32 & !(DRAINING | TURN);
        (partition_count != BY_TERM).then_some(((self.0 >> 32) as u32, partition_count))
    }

    /// The partition of a key or item.
    #[inline]
    pub(crate) fn partition(self, term: RawTerm, count: u32) -> Result<u32, NotRunning> {
        match self.chosen() {
            None if count == 1 => Ok(0),
            None => Ok(routing::partition(term.phash2(), count)),
            Some((partition, partition_count)) if partition_count == count && partition < count => Ok(partition),
            Some(_) => Err(NotRunning),
        }
    }

    /// The partition count as [`Partition`] takes it, with the mark of the writer.
    #[inline]
    pub(crate) fn marked(self, partition_count: u32) -> u32 {
        partition_count | self.0 as u32 & (DRAINING | TURN)
    }
}

/// See the module's documentation.
pub(crate) struct Buffer {
    /// Used while the buffer runs as a map.
    pub(crate) map: MapPartitions,
    /// Used while the buffer runs as a queue.
    pub(crate) queue: QueuePartitions,
    /// Used while the buffer runs as a counter.
    pub(crate) counter: CounterPartitions,
}

#[rustler::resource_impl]
impl Resource for Buffer {
    const IMPLEMENTS_DOWN: bool = true;

    fn down<'a>(&'a self, _env: Env<'a>, _pid: LocalPid, monitor: Monitor) {
        self.kinds().into_iter().for_each(|(_kind, partitions)| partitions.down(&monitor));
    }
}

impl Buffer {
    /// A buffer that is not running.
    pub(crate) fn new() -> Self {
        let hasher = Hasher::new();
        Buffer {
            map: Partitions::new(hasher.clone()),
            queue: Partitions::new(hasher.clone()),
            counter: Partitions::new(hasher),
        }
    }

    /// The partitions of each kind, with its name.
    pub(crate) fn kinds(&self) -> [(Atom, &(dyn AnyPartitions + 'static)); 3] {
        [(kind::map(), &self.map), (kind::queue(), &self.queue), (kind::counter(), &self.counter)]
    }

    /// The partitions of the running kind.
    pub(crate) fn running(&'static self) -> Result<&'static dyn AnyPartitions, NotRunning> {
        let kinds = self.kinds().into_iter();
        kinds.map(|(_kind, partitions)| partitions).find(|partitions| partitions.count().is_ok()).ok_or(NotRunning)
    }
}

/// The partitions of one kind of buffer.
pub(crate) struct Partitions<S: Store, const SHARDS: usize> {
    /// Hashes the keys of all partitions.
    hasher: Hasher,
    /// How many partitions there are, or [`CLOSED`], or [`NONE`].
    count: AtomicU32,
    /// Level `n` holds `2^n` partitions: more are added without moving those in use.
    levels: [OnceLock<Box<[Partition<S, SHARDS>]>>; LEVELS],
    /// The process that opened them. Its lock is held while they are opened or closed.
    owner: Mutex<Owner>,
    /// How many entries they may hold.
    pub(crate) bound: Arc<Bound>,
    /// The processes that are told of them.
    watchers: Mutex<Watchers>,
}

/// The processes that are told when something is to be done. Those that are dead hear nothing.
#[derive(Default)]
struct Watchers {
    /// Is told when there is no room, and when there may be room again.
    room: Option<LocalPid>,
    /// Each is told when enough entries wait in its partition.
    partitions: Vec<Option<LocalPid>>,
}

/// What a process is told.
#[derive(Clone, Copy)]
pub(crate) enum News {
    /// Enough entries wait in this partition.
    Enough(u32),
    /// There is no room.
    Full,
    /// There may be room again.
    Room,
}

/// The process that opened a buffer's partitions.
#[derive(Default)]
struct Owner {
    /// Reports its death.
    monitor: Option<Monitor>,
    /// How many partitions it opened. This outlives the process.
    partition_count: u32,
}

impl<S: Store, const SHARDS: usize> Partitions<S, SHARDS> {
    /// Partitions that are closed.
    fn new(hasher: Hasher) -> Self {
        let levels = [const { OnceLock::new() }; LEVELS];
        Partitions {
            hasher,
            count: AtomicU32::new(CLOSED),
            levels,
            owner: Mutex::default(),
            bound: Arc::default(),
            watchers: Mutex::default(),
        }
    }

    /// Opens `partition_count` of these partitions of `buffer` until the calling process dies, with outcomes or without,
    /// and with a bound or without. Entries of an earlier run stay in their partitions. If the earlier run had another
    /// partition count, the open partitions adopt its entries and flush them first.
    /// Gives `false` and changes nothing if the process has been killed already: nothing would report its death.
    pub(crate) fn open(
        &self,
        buffer: &ResourceArc<Buffer>,
        env: Env<'_>,
        partition_count: u32,
        has_outcomes: bool,
        max_size: Option<usize>,
    ) -> bool {
        let mut owner = self.owner.lock();
        let Some(monitor) = env.monitor(buffer, &env.pid()) else { return false };
        if let Some(former) = owner.monitor.replace(monitor) {
            env.demonitor(buffer, &former);
        }
        self.end();
        if owner.partition_count != partition_count && partition_count > 0 {
            let held: Vec<_> = (0..owner.partition_count).map(|partition| self.partition(partition).evict()).collect();
            for (partition, evicted) in (0..partition_count).cycle().zip(held) {
                self.partition(partition).adopt(evicted);
            }
            // The totals of the buffer go on.
            let first = self.partition(0);
            (1..owner.partition_count).for_each(|partition| first.adopt_counts(self.partition(partition)));
            owner.partition_count = partition_count;
        }
        let partitions = || (0..partition_count).map(|partition| self.partition(partition));
        for partition in partitions() {
            partition.close();
            partition.set_outcomes(has_outcomes);
        }
        self.set_bound(partition_count, max_size);
        partitions().for_each(|partition| partition.open(partition_count));
        self.count.store(if partition_count == 0 { NONE } else { partition_count }, Ordering::Release);
        true
    }

    /// Changes how many entries the first `partition_count` partitions may hold.
    fn set_bound(&self, partition_count: u32, max_size: Option<usize>) {
        let set_max = || self.bound.set_max(max_size, partition_count as usize * SHARDS);
        let set_bounded = |is_bounded| {
            (0..partition_count).for_each(|partition| self.partition(partition).set_bounded(is_bounded));
        };
        // A shard that has a bound must not find that there is none.
        if max_size.is_some() {
            set_max();
            set_bounded(true);
        } else {
            set_bounded(false);
            set_max();
        }
    }

    /// The same of a buffer that runs.
    pub(crate) fn change_bound(&self, max_size: Option<usize>) -> Result<(), NotRunning> {
        let _owner = self.owner.lock();
        self.set_bound(self.count()?, max_size);
        Ok(())
    }

    /// Takes the room from all shards that they have not used; `false` if they had none.
    pub(crate) fn take_room(&self) -> bool {
        let is_lent = self.bound.take_lent();
        if is_lent {
            let count = self.count().unwrap_or(0);
            (0..count).for_each(|partition| self.partition(partition).take_room());
        }
        is_lent
    }

    /// The calling process will be told of room, or of what waits in this partition.
    pub(crate) fn watch(&self, pid: LocalPid, partition: Option<u32>) {
        let mut watchers = self.watchers.lock();
        let Some(partition) = partition.map(|partition| partition as usize) else {
            watchers.room = Some(pid);
            return;
        };
        if watchers.partitions.len() <= partition {
            watchers.partitions.resize(partition + 1, None);
        }
        watchers.partitions[partition] = Some(pid);
    }

    /// Tells the process that has to know.
    #[cold]
    pub(crate) fn tell(&self, env: Env<'_>, news: News) {
        let watchers = self.watchers.lock();
        let (pid, message) = match news {
            News::Enough(partition) => {
                (watchers.partitions.get(partition as usize).copied().flatten(), message::enough())
            }
            News::Full => (watchers.room, message::full()),
            News::Room => (watchers.room, message::room()),
        };
        drop(watchers);
        if let Some(pid) = pid {
            // It may be dead. The next one looks for itself.
            let _ = env.send(&pid, message);
        }
    }

    /// Tells of room, if there may be some that somebody waits for.
    #[inline]
    pub(crate) fn tell_of_room(&self, env: Env<'_>) {
        if self.bound.take_news() {
            self.tell(env, News::Room);
        }
    }

    /// Ends the run, whoever opened it.
    pub(crate) fn end(&self) {
        self.count.store(CLOSED, Ordering::Release);
    }

    /// Ends the run if this is the monitor of the process that opened it.
    pub(crate) fn down(&self, monitor: &Monitor) {
        let mut owner = self.owner.lock();
        if owner.monitor.as_ref() == Some(monitor) {
            owner.monitor = None;
            self.end();
        }
    }

    /// How many partitions there are.
    #[inline]
    pub(crate) fn count(&self) -> Result<u32, NotRunning> {
        match self.count.load(Ordering::Acquire) {
            CLOSED | NONE => Err(NotRunning),
            count => Ok(count),
        }
    }

    /// The partition count, which may be 0; `None` if no process has the partitions open.
    pub(crate) fn opened(&self) -> Option<u32> {
        match self.count.load(Ordering::Acquire) {
            CLOSED => None,
            NONE => Some(0),
            count => Some(count),
        }
    }

    /// Lets a partition that was closed take writes again.
    pub(crate) fn reopen(&self, partition: u32) -> Result<(), NotRunning> {
        let count = self.count()?;
        self.running(partition)?.open(count);
        Ok(())
    }

    /// A partition, if it is one of those that run.
    pub(crate) fn running(&self, partition: u32) -> Result<&Partition<S, SHARDS>, NotRunning> {
        if partition < self.count()? {
            Ok(self.partition(partition))
        } else {
            Err(NotRunning)
        }
    }

    /// How many entries wait in all partitions.
    pub(crate) fn size(&self) -> Result<usize, NotRunning> {
        let count = self.count()?;
        (0..count).map(|partition| self.partition(partition).len(count).map_err(|Closed| NotRunning)).sum()
    }

    /// The hash of a key for the index of a partition.
    #[inline]
    pub(crate) fn hash(&self, key: RawTerm) -> Hash {
        self.hasher.hash(key.internal_hash(self.hasher.salt()))
    }

    /// Does `operation` on the partition of a key or item, and gives it the partition count. Tries again if the count
    /// changes before the operation gets the lock.
    #[inline]
    pub(crate) fn with_partition<R>(
        &self,
        route: Route,
        term: RawTerm,
        mut operation: impl FnMut(&Partition<S, SHARDS>, u32) -> Result<R, Closed>,
    ) -> Result<R, NotRunning> {
        loop {
            let count = self.count()?;
            let partition = route.partition(term, count)?;
            match operation(self.partition(partition), route.marked(count)) {
                Ok(result) => return Ok(result),
                Err(Closed) if self.count()? == count => return Err(NotRunning),
                Err(Closed) => {}
            }
        }
    }

    /// Tells the partition of a key or item that enough entries wait.
    #[cold]
    pub(crate) fn tell_enough(&self, env: Env<'_>, route: Route, term: RawTerm) {
        if let Some(partition) = self.count().ok().and_then(|count| route.partition(term, count).ok()) {
            self.tell(env, News::Enough(partition));
        }
    }

    /// A partition, running or not.
    #[inline]
    pub(crate) fn partition(&self, partition: u32) -> &Partition<S, SHARDS> {
        let position = u64::from(partition) + 1;
        let level = position.ilog2();
        let partitions = self.levels[level as usize]
            .get_or_init(|| (0..1_u64 << level).map(|_| Partition::with_bound(&self.hasher, &self.bound)).collect());
        &partitions[(position - (1 << level)) as usize]
    }
}
