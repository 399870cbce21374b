//! A buffer: the partitions of one name, and whether it is running.
//!
//! It runs from [`Buffer::open`] until the process that opened it, its supervisor, dies. What it holds outlives that: a
//! supervisor that starts again finds it.
//!
//! Every operation reads `partitions`, which is written at start and stop only; what writers write is within the
//! partition.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::OnceLock;

use parking_lot::Mutex;
use partitioned_buffer_engine::{routing, Closed, Hash, Hasher};
use rustler::{Env, LocalPid, Monitor, Resource, ResourceArc};

use crate::term::{Environment, RawTerm};

/// A partition of terms.
pub(crate) type Partition = partitioned_buffer_engine::Partition<Environment>;

/// A retired generation of terms.
pub(crate) type HandOver = partitioned_buffer_engine::HandOver<Environment>;

/// The buffer was never started, has been stopped, has crashed, or has no partitions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NotRunning;

/// How the partition of a key is found.
#[derive(Clone, Copy)]
pub(crate) enum Route {
    /// By the key itself.
    ByKey,
    /// It is this one.
    To(u32),
}

/// See the module's documentation.
pub(crate) struct Buffer {
    /// Hashes the keys of all partitions.
    hasher: Hasher,
    /// How many partitions there are; 0 while the buffer is not running.
    partitions: AtomicU32,
    /// Level `n` holds `2^n` partitions, so that more can be added while others are used.
    levels: [OnceLock<Box<[Partition]>>; 32],
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

#[rustler::resource_impl]
impl Resource for Buffer {
    const IMPLEMENTS_DOWN: bool = true;

    fn down<'a>(&'a self, _env: Env<'a>, _pid: LocalPid, monitor: Monitor) {
        let mut owner = self.owner.lock();
        if owner.monitor.as_ref() == Some(&monitor) {
            owner.monitor = None;
            self.partitions.store(0, Ordering::Release);
        }
    }
}

impl Buffer {
    /// A buffer that is not running.
    pub(crate) fn new() -> Self {
        Buffer {
            hasher: Hasher::new(),
            partitions: AtomicU32::new(0),
            levels: [const { OnceLock::new() }; 32],
            owner: Mutex::default(),
        }
    }

    /// Lets the buffer run with so many partitions, until the calling process dies. What partitions of a former run
    /// still hold is kept; if their number was another, the remaining ones hand it over first.
    pub(crate) fn open(this: &ResourceArc<Buffer>, env: Env<'_>, partitions: u32) {
        let mut owner = this.owner.lock();
        if let Some(monitor) = owner.monitor.take() {
            env.demonitor(this, &monitor);
        }
        this.partitions.store(0, Ordering::Release);
        if owner.partitions != partitions && partitions > 0 {
            let held: Vec<_> = (0..owner.partitions).map(|number| this.partition(number).evict()).collect();
            for (number, evicted) in (0..partitions).cycle().zip(held) {
                this.partition(number).adopt(evicted);
            }
            owner.partitions = partitions;
        }
        (0..partitions).for_each(|number| this.partition(number).open(partitions));
        owner.monitor = env.monitor(this, &env.pid());
        this.partitions.store(partitions, Ordering::Release);
    }

    /// How many partitions there are.
    pub(crate) fn partitions(&self) -> Result<u32, NotRunning> {
        match self.partitions.load(Ordering::Acquire) {
            0 => Err(NotRunning),
            partitions => Ok(partitions),
        }
    }

    /// Lets a partition that was closed take writes again.
    pub(crate) fn reopen(&self, number: u32) -> Result<(), NotRunning> {
        let partitions = self.partitions()?;
        self.numbered(number)?.open(partitions);
        Ok(())
    }

    /// The partition with this number, if there is one.
    pub(crate) fn numbered(&self, number: u32) -> Result<&Partition, NotRunning> {
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

    /// The number of the partition that a key belongs to among so many.
    #[inline]
    pub(crate) fn route(route: Route, key: RawTerm, partitions: u32) -> Result<u32, NotRunning> {
        match route {
            Route::ByKey if partitions == 1 => Ok(0),
            Route::ByKey => Ok(routing::partition(key.phash2(), partitions)),
            Route::To(number) if number < partitions => Ok(number),
            Route::To(_) => Err(NotRunning),
        }
    }

    /// Does `operation` on the partition of a key. It is given the number of partitions that the key was routed among,
    /// and tried again if that has changed on the way.
    #[inline]
    pub(crate) fn with_partition<R>(
        &self,
        route: Route,
        key: RawTerm,
        mut operation: impl FnMut(&Partition, u32) -> Result<R, Closed>,
    ) -> Result<R, NotRunning> {
        loop {
            let partitions = self.partitions()?;
            let number = Self::route(route, key, partitions)?;
            match operation(self.partition(number), partitions) {
                Ok(result) => return Ok(result),
                Err(Closed) if self.partitions()? == partitions => return Err(NotRunning),
                Err(Closed) => {}
            }
        }
    }

    /// The partition with this number, running or not.
    #[inline]
    pub(crate) fn partition(&self, number: u32) -> &Partition {
        let position = u64::from(number) + 1;
        let level = position.ilog2();
        let partitions = self.levels[level as usize]
            .get_or_init(|| (0..1_u64 << level).map(|_| Partition::new(&self.hasher)).collect());
        &partitions[(position - (1 << level)) as usize]
    }
}
