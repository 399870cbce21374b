//! A buffer: the partitions of one name, and whether it is running.
//!
//! A name has a [`Side`] for each kind of buffer, of which the one runs that the buffer was last started as. It runs from
//! [`Side::open`] until the process that opened it, its supervisor, dies. What it holds outlives that: a supervisor that
//! starts again finds it.
//!
//! Every operation reads `partitions`, which is written at start and stop only; what writers write is within the
//! partition.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::OnceLock;

use parking_lot::Mutex;
use partitioned_buffer_engine::partition::DRAINING;
use partitioned_buffer_engine::{routing, Closed, Generation, Hash, Hasher, Log, Partition, Store};
use rustler::{Env, LocalPid, Monitor, Resource, ResourceArc};

use crate::vm::term::{Environment, RawTerm};

/// The side of a name for maps.
pub(crate) type MapSide = Side<Generation<Environment>, { partitioned_buffer_engine::partition::MAP_SHARDS }>;

/// The side of a name for queues.
pub(crate) type QueueSide = Side<Log<Environment>, 1>;

/// What [`Side::partitions`] is while no process has the side open.
const CLOSED: u32 = 0;

/// What [`Side::partitions`] is while the side is open with none.
const NONE: u32 = u32::MAX;

/// The buffer was never started, has been stopped, has crashed, or has no partitions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NotRunning;

/// Where an entry is written to or looked for, and by whom.
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
    /// It is this one, if there are as many as it was chosen among.
    Partition {
        /// Its number.
        number: u32,
        /// How many there were.
        among: u32,
    },
}

/// Who writes.
#[derive(Clone, Copy)]
pub(crate) enum Writer {
    /// Anybody: while a partition drains, nothing is taken.
    Any,
    /// A processor of the buffer.
    Processor,
}

impl Route {
    /// Among how many partitions this is routed, of so many, as a partition takes it.
    #[inline]
    pub(crate) fn among(self, partitions: u32) -> u32 {
        match self.writer {
            Writer::Any => partitions,
            Writer::Processor => partitions | DRAINING,
        }
    }
}

/// See the module's documentation.
pub(crate) struct Buffer {
    /// What a `PartitionedBuffer.Map` writes to.
    pub(crate) map: MapSide,
    /// What a `PartitionedBuffer.Queue` writes to.
    pub(crate) queue: QueueSide,
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
        Buffer { map: Side::new(hasher.clone()), queue: Side::new(hasher) }
    }
}

/// The partitions of one kind of buffer.
pub(crate) struct Side<S: Store, const SHARDS: usize> {
    /// Hashes the keys of all partitions.
    hasher: Hasher,
    /// How many partitions there are, or [`CLOSED`], or [`NONE`].
    partitions: AtomicU32,
    /// Level `n` holds `2^n` partitions, so that more can be added while others are used.
    levels: [OnceLock<Box<[Partition<S, SHARDS>]>>; 32],
    /// Who opened it. Locked while it is opened or closed.
    owner: Mutex<Owner>,
}

/// The process that opened a buffer.
#[derive(Default)]
struct Owner {
    /// Tells of its death.
    monitor: Option<Monitor>,
    /// How many partitions it opened; still known when it is dead.
    partitions: u32,
}

impl<S: Store, const SHARDS: usize> Side<S, SHARDS> {
    /// A side that is not running.
    fn new(hasher: Hasher) -> Self {
        let levels = [const { OnceLock::new() }; 32];
        Side { hasher, partitions: AtomicU32::new(CLOSED), levels, owner: Mutex::default() }
    }

    /// Lets this side of `buffer` run with so many partitions, until the calling process dies. What partitions of a former
    /// run still hold is kept; if their number was another, the remaining ones hand it over first. `false`, and without
    /// effect, if the process has been killed already: nobody would tell of its death.
    pub(crate) fn open(&self, buffer: &ResourceArc<Buffer>, env: Env<'_>, partitions: u32) -> bool {
        let mut owner = self.owner.lock();
        let Some(monitor) = env.monitor(buffer, &env.pid()) else { return false };
        if let Some(former) = owner.monitor.replace(monitor) {
            env.demonitor(buffer, &former);
        }
        self.end();
        if owner.partitions != partitions && partitions > 0 {
            let held: Vec<_> = (0..owner.partitions).map(|number| self.partition(number).evict()).collect();
            for (number, evicted) in (0..partitions).cycle().zip(held) {
                self.partition(number).adopt(evicted);
            }
            owner.partitions = partitions;
        }
        (0..partitions).for_each(|number| self.partition(number).open(partitions));
        self.partitions.store(if partitions == 0 { NONE } else { partitions }, Ordering::Release);
        true
    }

    /// Ends the run, whoever opened it.
    pub(crate) fn end(&self) {
        self.partitions.store(CLOSED, Ordering::Release);
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
    pub(crate) fn partitions(&self) -> Result<u32, NotRunning> {
        match self.partitions.load(Ordering::Acquire) {
            CLOSED | NONE => Err(NotRunning),
            partitions => Ok(partitions),
        }
    }

    /// With how many partitions this side is open, which may be none.
    pub(crate) fn opened_with(&self) -> Option<u32> {
        match self.partitions.load(Ordering::Acquire) {
            CLOSED => None,
            NONE => Some(0),
            partitions => Some(partitions),
        }
    }

    /// Lets a partition that was closed take writes again.
    pub(crate) fn reopen(&self, number: u32) -> Result<(), NotRunning> {
        let partitions = self.partitions()?;
        self.numbered(number)?.open(partitions);
        Ok(())
    }

    /// The partition with this number, if there is one.
    pub(crate) fn numbered(&self, number: u32) -> Result<&Partition<S, SHARDS>, NotRunning> {
        if number < self.partitions()? {
            Ok(self.partition(number))
        } else {
            Err(NotRunning)
        }
    }

    /// How many entries there are in all partitions.
    pub(crate) fn size(&self) -> Result<usize, NotRunning> {
        let partitions = self.partitions()?;
        (0..partitions).map(|number| self.partition(number).len(partitions).map_err(|Closed| NotRunning)).sum()
    }

    /// The hash of a key for the index of a partition.
    #[inline]
    pub(crate) fn hash(&self, key: RawTerm) -> Hash {
        self.hasher.hash(key.internal_hash(self.hasher.salt()))
    }

    /// The number of the partition that a key or item belongs to among so many.
    #[inline]
    pub(crate) fn route(route: Route, term: RawTerm, partitions: u32) -> Result<u32, NotRunning> {
        match route.to {
            To::ByTerm if partitions == 1 => Ok(0),
            To::ByTerm => Ok(routing::partition(term.phash2(), partitions)),
            To::Partition { number, among } if among == partitions && number < partitions => Ok(number),
            To::Partition { .. } => Err(NotRunning),
        }
    }

    /// Does `operation` on the partition of a key or item. It is given the number of partitions that was routed among, and
    /// tried again if that has changed on the way.
    #[inline]
    pub(crate) fn with_partition<R>(
        &self,
        route: Route,
        term: RawTerm,
        mut operation: impl FnMut(&Partition<S, SHARDS>, u32) -> Result<R, Closed>,
    ) -> Result<R, NotRunning> {
        loop {
            let partitions = self.partitions()?;
            let number = Self::route(route, term, partitions)?;
            match operation(self.partition(number), route.among(partitions)) {
                Ok(result) => return Ok(result),
                Err(Closed) if self.partitions()? == partitions => return Err(NotRunning),
                Err(Closed) => {}
            }
        }
    }

    /// The partition with this number, running or not.
    #[inline]
    pub(crate) fn partition(&self, number: u32) -> &Partition<S, SHARDS> {
        let position = u64::from(number) + 1;
        let level = position.ilog2();
        let partitions = self.levels[level as usize]
            .get_or_init(|| (0..1_u64 << level).map(|_| Partition::new(&self.hasher)).collect());
        &partitions[(position - (1 << level)) as usize]
    }
}
