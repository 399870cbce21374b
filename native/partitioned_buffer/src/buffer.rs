//! A buffer: the partitions of one name, and whether it runs.
//!
//! A name has [`Partitions`] for each kind of buffer. Those of the kind that was started last run, from
//! [`Partitions::open`] until the process that opened them, the buffer's supervisor, dies. The entries outlive that process:
//! the next supervisor finds them.
//!
//! Every operation reads `count`, which changes only at a start and a stop. Writers change only the partition.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::OnceLock;

use parking_lot::Mutex;
use partitioned_buffer_engine::partition::DRAINING;
use partitioned_buffer_engine::{routing, Closed, Generation, Hash, Hasher, Log, Partition, Store};
use rustler::{Env, LocalPid, Monitor, Resource, ResourceArc};

use crate::vm::term::{Environment, RawTerm};

/// The partitions of a map.
pub(crate) type MapPartitions =
    Partitions<Generation<Environment>, { partitioned_buffer_engine::partition::MAP_SHARDS }>;

/// The partitions of a queue.
pub(crate) type QueuePartitions = Partitions<Log<Environment>, 1>;

/// The count while no process has the partitions open.
const CLOSED: u32 = 0;

/// The count while a process has opened no partitions.
const NONE: u32 = u32::MAX;

/// The buffer was never started, has been stopped, has crashed, or has no partitions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NotRunning;

/// Which partition an operation is for, and who asks.
#[derive(Clone, Copy)]
pub(crate) struct Route {
    /// How its partition is found.
    pub(crate) to: To,
    /// Who writes it.
    pub(crate) writer: Writer,
}

/// How the partition of an entry is found.
#[derive(Clone, Copy)]
pub(crate) enum To {
    /// By the key, or item, itself.
    ByTerm,
    /// The caller has chosen it.
    Partition {
        /// The partition.
        partition: u32,
        /// The partition count that it was chosen by. If the buffer has another one now, the route is void.
        partition_count: u32,
    },
}

/// Who writes.
#[derive(Clone, Copy)]
pub(crate) enum Writer {
    /// Any process. A partition that drains refuses its writes.
    Any,
    /// A processor of the buffer.
    Processor,
}

impl Route {
    /// The partition count as [`Partition`] takes it, which marks the writes of processors.
    #[inline]
    pub(crate) fn marked(self, partition_count: u32) -> u32 {
        match self.writer {
            Writer::Any => partition_count,
            Writer::Processor => partition_count | DRAINING,
        }
    }
}

/// See the module's documentation.
pub(crate) struct Buffer {
    /// Used while the buffer runs as a map.
    pub(crate) map: MapPartitions,
    /// Used while the buffer runs as a queue.
    pub(crate) queue: QueuePartitions,
}

#[rustler::resource_impl]
impl Resource for Buffer {
    const IMPLEMENTS_DOWN: bool = true;

    fn down<'a>(&'a self, _env: Env<'a>, _pid: LocalPid, monitor: Monitor) {
        self.map.down(&monitor);
        self.queue.down(&monitor);
    }
}

impl Buffer {
    /// A buffer that is not running.
    pub(crate) fn new() -> Self {
        let hasher = Hasher::new();
        Buffer { map: Partitions::new(hasher.clone()), queue: Partitions::new(hasher) }
    }
}

/// The partitions of one kind of buffer.
pub(crate) struct Partitions<S: Store, const SHARDS: usize> {
    /// Hashes the keys of all partitions.
    hasher: Hasher,
    /// How many partitions there are, or [`CLOSED`], or [`NONE`].
    count: AtomicU32,
    /// Level `n` holds `2^n` partitions: more are added without moving those in use.
    levels: [OnceLock<Box<[Partition<S, SHARDS>]>>; 32],
    /// The process that opened them. Its lock is held while they are opened or closed.
    owner: Mutex<Owner>,
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
        let levels = [const { OnceLock::new() }; 32];
        Partitions { hasher, count: AtomicU32::new(CLOSED), levels, owner: Mutex::default() }
    }

    /// Opens `partition_count` of these partitions of `buffer` until the calling process dies, with outcomes or without. Entries of an earlier run stay
    /// in their partitions. If the earlier run had another partition count, the open partitions adopt its entries and flush
    /// them first.
    /// Gives `false` and changes nothing if the process has been killed already: nothing would report its death.
    pub(crate) fn open(
        &self,
        buffer: &ResourceArc<Buffer>,
        env: Env<'_>,
        partition_count: u32,
        has_outcomes: bool,
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
            owner.partition_count = partition_count;
        }
        for partition in (0..partition_count).map(|partition| self.partition(partition)) {
            partition.close();
            partition.set_outcomes(has_outcomes);
            partition.open(partition_count);
        }
        self.count.store(if partition_count == 0 { NONE } else { partition_count }, Ordering::Release);
        true
    }

    /// Ends the run, whoever opened it.
    pub(crate) fn end(&self) {
        self.count.store(CLOSED, Ordering::Release);
    }

    /// Ends the run if this is the monitor of the process that opened it.
    fn down(&self, monitor: &Monitor) {
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

    /// The partition that a key or item belongs to.
    #[inline]
    pub(crate) fn route(route: Route, term: RawTerm, count: u32) -> Result<u32, NotRunning> {
        match route.to {
            To::ByTerm if count == 1 => Ok(0),
            To::ByTerm => Ok(routing::partition(term.phash2(), count)),
            To::Partition { partition, partition_count } if partition_count == count && partition < count => {
                Ok(partition)
            }
            To::Partition { .. } => Err(NotRunning),
        }
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
            let partition = Self::route(route, term, count)?;
            match operation(self.partition(partition), route.marked(count)) {
                Ok(result) => return Ok(result),
                Err(Closed) if self.count()? == count => return Err(NotRunning),
                Err(Closed) => {}
            }
        }
    }

    /// A partition, running or not.
    #[inline]
    pub(crate) fn partition(&self, partition: u32) -> &Partition<S, SHARDS> {
        let position = u64::from(partition) + 1;
        let level = position.ilog2();
        let partitions = self.levels[level as usize]
            .get_or_init(|| (0..1_u64 << level).map(|_| Partition::new(&self.hasher)).collect());
        &partitions[(position - (1 << level)) as usize]
    }
}
