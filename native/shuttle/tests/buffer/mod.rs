//! For the tests of all kinds of buffers: the runs under shuttle, and a buffer as the NIF library
//! has it.
#![allow(dead_code, unreachable_pub, missing_docs)]

pub mod counter;
pub mod history;
pub mod map;

use std::fmt::Debug;
use std::hash::{BuildHasher, RandomState};
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard};

use partitioned_buffer_engine::{
    Access, BatchState, Bound, Closed, Evicted, Flush, GiveBack, Hasher, Partition, Store,
};
use shuttle::scheduler::{PctScheduler, RandomScheduler, ReplayScheduler};
use shuttle::sync::atomic::{AtomicU32, Ordering};
use shuttle::thread::{self, JoinHandle};
use shuttle::{Config, Runner};

use crate::common::reading::{all_of, contents, flush, give_back, read, read_resumed, GivenBack};
use crate::common::{assert_law, set_lanes, TestTerm};

/// How often a thread of lower priority may overtake one of higher priority in the schedules by
/// priority.
const PRIORITY_CHANGES: usize = 4;

fn setting<T: FromStr>(name: &str) -> Option<T> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} cannot be read")))
}

/// Runs `body` under random schedules, and under as many schedules by random priorities.
pub fn check(body: fn()) {
    let mut config = Config::new();
    config.stack_size = 128 * 1024;
    config.silence_warnings = true;
    if let Some(schedule) = setting::<String>("SHUTTLE_SCHEDULE") {
        Runner::new(ReplayScheduler::new_from_encoded(&schedule), config).run(body);
        return;
    }
    let seed = setting("SHUTTLE_SEED").unwrap_or_else(|| RandomState::new().hash_one(0));
    let iterations = setting("SHUTTLE_ITERATIONS").unwrap_or(1_000);
    println!("SHUTTLE_SEED={seed} SHUTTLE_ITERATIONS={iterations}");
    Runner::new(RandomScheduler::new_from_seed(seed, iterations), config.clone()).run(body);
    Runner::new(PctScheduler::new_from_seed(seed, PRIORITY_CHANGES, iterations), config).run(body);
}

/// A flush, held to the end of the test. Its memory has to be free earlier.
struct Known<S: Store, D> {
    flush: Arc<Flush<S>>,
    /// All its entries, in their order.
    entries: Vec<D>,
}

/// A batch that a reader has claimed, the number of its flush, and its place among the entries
/// there.
struct Batch<D> {
    flush: usize,
    start: usize,
    deliveries: Vec<D>,
}

/// A batch that the processor has.
pub struct Lease<S: Store, D> {
    /// Whose it is.
    pub reader: u64,
    /// The number of the partition that has given the flush.
    pub partition: usize,
    pub flush: Arc<Flush<S>>,
    pub entries: Vec<D>,
}

/// A buffer as the NIF library has it: partitions, and how many of them run.
pub struct Buffer<S: Store, const SHARDS: usize, D> {
    pub hasher: Hasher,
    pub partitions: [Partition<S, SHARDS>; 2],
    pub running: AtomicU32,
    /// The bound of all partitions.
    pub bound: Arc<Bound>,
    has_outcomes: bool,
    /// Whether a partition was evicted. Then some flushes are not claimed to their end.
    is_evicted: AtomicBool,
    /// What a reader notes of a record.
    delivery: fn(S::Record) -> D,
    /// The number that chooses the partition of a key or item, by its content.
    route: fn(i64) -> i64,
    /// All flushes.
    flushes: Mutex<Vec<Known<S, D>>>,
    batches: Mutex<Vec<Batch<D>>>,
    /// What readers have leased.
    leased: Mutex<Vec<D>>,
    /// What the processor has succeeded with, in order.
    sink: Mutex<Vec<D>>,
    /// The number of the last reader.
    readers: AtomicU64,
}

impl<S: Store<Term = TestTerm>, const SHARDS: usize, D: Clone + Debug + PartialEq> Buffer<S, SHARDS, D> {
    pub fn start(running: u32, has_outcomes: bool, delivery: fn(S::Record) -> D, route: fn(i64) -> i64) -> Arc<Self> {
        let hasher = Hasher::seeded(0);
        // The same in each run, since shuttle runs all its threads in one.
        set_lanes(Some(0));
        let bound = Arc::default();
        let partitions = [Partition::with_bound(&hasher, &bound), Partition::with_bound(&hasher, &bound)];
        partitions.iter().for_each(|partition| partition.set_outcomes(has_outcomes));
        partitions.iter().take(running as usize).for_each(|partition| partition.open(running));
        let running = AtomicU32::new(running);
        Arc::new(Buffer {
            hasher,
            partitions,
            running,
            bound,
            has_outcomes,
            is_evicted: AtomicBool::new(false),
            delivery,
            route,
            flushes: Mutex::default(),
            batches: Mutex::default(),
            leased: Mutex::default(),
            sink: Mutex::default(),
            readers: AtomicU64::new(0),
        })
    }

    pub fn first(&self) -> &Partition<S, SHARDS> {
        &self.partitions[0]
    }

    /// Does `operation` in the partition of `key`, and again if the partition count has changed.
    pub fn operate<R>(
        &self,
        key: i64,
        operation: impl Fn(&Partition<S, SHARDS>, Access) -> Result<R, Closed>,
    ) -> Result<R, Closed> {
        loop {
            let among = self.running.load(Ordering::SeqCst);
            let number = key.checked_rem(i64::from(among)).ok_or(Closed)?;
            let result = operation(&self.partitions[number as usize], Access::by_count(among));
            if result.is_ok() || self.running.load(Ordering::SeqCst) == among {
                return result;
            }
        }
    }

    /// Reads and claims a batch of at most `size` entries of a partition's flush, as a reader does
    /// that dies then. Returns whether there was a flush.
    pub fn deliver(&self, partition: &Partition<S, SHARDS>, size: usize) -> bool {
        let flush = flush(partition);
        flush.iter().for_each(|flush| self.claim(flush, size));
        flush.is_some()
    }

    /// Reads and claims a batch of at most `size` entries, unless another reader has begun one
    /// since.
    pub fn claim(&self, flush: &Arc<Flush<S>>, size: usize) {
        let Some(number) = self.number(flush) else { return };
        let reader = self.new_reader();
        let Some(deliveries) = read(flush, reader, size, self.delivery) else { return };
        if flush.claim(reader, 0) {
            self.note(number, deliveries);
            // Once more at the end, as a reader does that finds nothing after the last batch.
            let reader = self.new_reader();
            if flush.seen().left == 0 && read(flush, reader, size, self.delivery).is_some() {
                flush.claim(reader, 0);
            }
        }
    }

    /// The number of a reader, which no other one has.
    pub fn new_reader(&self) -> u64 {
        1 + self.readers.fetch_add(1, Ordering::SeqCst)
    }

    /// Notes a batch that was claimed.
    fn note(&self, flush: usize, deliveries: Vec<D>) {
        if let Some(first) = deliveries.first() {
            let start = held(&self.flushes)[flush].entries.iter().position(|entry| entry == first);
            let start = start.expect("a delivered entry is one of the flush");
            held(&self.batches).push(Batch { flush, start, deliveries });
        }
    }

    /// The number of a flush. Each is numbered before anything of it is claimed, and claimed before
    /// the next flush of its partition. So the numbers are in the order of the flushes. `None` if
    /// it was evicted before that.
    fn number(&self, flush: &Arc<Flush<S>>) -> Option<usize> {
        let number = |known: &[Known<S, D>]| known.iter().position(|known| Arc::ptr_eq(&known.flush, flush));
        if let Some(known) = number(&held(&self.flushes)) {
            return Some(known);
        }
        // Threads change here, so the notes must not be locked.
        let entries = flush.entries().map(|frozen| contents(&frozen, self.delivery));
        let mut flushes = held(&self.flushes);
        number(&flushes).or_else(|| {
            let is_evicted = self.has_evicted();
            assert!(entries.is_some() || is_evicted, "nothing is claimed before the flush has its number");
            let entries = entries?;
            flushes.push(Known { flush: flush.clone(), entries });
            Some(flushes.len() - 1)
        })
    }

    /// Delivers several times from the first partition.
    pub fn deliver_times(&self, times: usize, count: usize) {
        for _ in 0..times {
            self.deliver(self.first(), count);
        }
    }

    /// Leases a batch of at most `size` entries of the first partition.
    pub fn lease(&self, size: usize) -> Option<Lease<S, D>> {
        self.lease_from(0, size)
    }

    /// Leases a batch of at most `size` entries of a partition, without what newer writes have
    /// replaced. `None` if there is no flush, or none of its entries is for this reader.
    pub fn lease_from(&self, number: usize, size: usize) -> Option<Lease<S, D>> {
        let partition = &self.partitions[number];
        let flush = flush(partition)?;
        let reader = self.new_reader();
        let entries = read_resumed(partition, &flush, reader, size, self.delivery)?;
        let is_own = flush.lease(reader, 0);
        partition.settle(&flush);
        if is_own {
            held(&self.leased).extend(entries.iter().cloned());
        }
        (is_own && !entries.is_empty()).then_some(Lease { reader, partition: number, flush, entries })
    }

    /// The processor succeeds with a batch.
    pub fn succeed(&self, lease: Lease<S, D>) {
        held(&self.sink).extend(lease.entries);
        lease.flush.succeed(lease.reader);
        self.partitions[lease.partition].settle(&lease.flush);
    }

    /// The processor fails with entries of a batch, those with these numbers or all, and succeeds
    /// with the others.
    pub fn fail(&self, lease: &Lease<S, D>, failed: Option<&[usize]>) -> GivenBack {
        let is_failed = |number: &usize| failed.is_none_or(|failed| failed.contains(number));
        let succeeded = lease.entries.iter().enumerate().filter(|(number, _)| !is_failed(number));
        held(&self.sink).extend(succeeded.map(|(_, entry)| entry.clone()));
        self.give_back(lease.partition, &lease.flush, lease.reader, failed)
    }

    /// Gives back a reader's batch to a partition, or the entries with these numbers.
    pub fn give_back(
        &self,
        partition: usize,
        flush: &Arc<Flush<S>>,
        reader: u64,
        failed: Option<&[usize]>,
    ) -> GivenBack {
        // One entry at a time, so that others come between two steps.
        give_back(&self.partitions[partition], flush, GiveBack { failed, count: 1, ..all_of(reader) })
    }

    /// The processor fails with the batch that a dead reader of the flush has left.
    pub fn inherit(&self, partition: usize, flush: &Arc<Flush<S>>) -> GivenBack {
        let reader = self.new_reader();
        match flush.inherit(reader, None) {
            Some((BatchState::Leased, _length)) => self.give_back(partition, flush, reader, None),
            left => {
                assert_eq!(left, None);
                GivenBack::default()
            }
        }
    }

    /// The processor succeeds with all that the running partitions have, in batches of at most
    /// `size` entries. Then nothing must be left.
    pub fn succeed_with_all(&self, size: usize) {
        for number in 0..self.running.load(Ordering::SeqCst) as usize {
            // A batch may be empty, if newer writes have replaced all of it.
            while let Some(flush) = flush(&self.partitions[number]) {
                self.inherit(number, &flush);
                self.lease_from(number, size).into_iter().for_each(|lease| self.succeed(lease));
            }
        }
        assert!(self.partitions.iter().all(|partition| partition.held() == 0), "nothing is held");
    }

    /// What readers have leased. Its memory has to be free when all has succeeded.
    pub fn leased(&self) -> Vec<D> {
        held(&self.leased).clone()
    }

    /// What the processor has succeeded with, in order.
    pub fn sink(&self) -> Vec<D> {
        held(&self.sink).clone()
    }

    /// Closes the first partition, delivers one of its entries, and opens it again.
    pub fn close_and_open(&self) {
        self.first().close();
        self.deliver(self.first(), 1);
        self.first().open(1);
    }

    /// Delivers all that the running partitions have, when all readers are done.
    pub fn drain(&self) {
        let running = self.running.load(Ordering::SeqCst) as usize;
        for partition in &self.partitions[..running] {
            while let Some(flush) = flush(partition) {
                assert!(flush.seen().left > 0, "a finished flush does not come again");
                self.claim(&flush, usize::MAX);
            }
        }
    }

    /// Restarts with another partition count, as the NIF library does.
    pub fn restart(&self, before: u32, running: u32) {
        self.running.store(0, Ordering::SeqCst);
        let evicted: Vec<_> = (0..before as usize).map(|number| self.evict(number)).collect();
        evicted.iter().for_each(|evicted| self.take_in(evicted, running));
        self.partitions[1..before as usize].iter().for_each(|old| self.first().adopt_counts(old));
        for partition in &self.partitions[..running as usize] {
            partition.set_outcomes(self.has_outcomes);
            partition.open(running);
        }
        self.running.store(running, Ordering::SeqCst);
    }

    pub fn has_evicted(&self) -> bool {
        self.is_evicted.load(Ordering::SeqCst)
    }

    pub fn evict(&self, number: usize) -> Evicted<S> {
        self.is_evicted.store(true, Ordering::SeqCst);
        self.partitions[number].evict()
    }

    /// Takes in all entries of an evicted partition, each in its own one among `running`.
    pub fn take_in(&self, evicted: &Evicted<S>, running: u32) {
        for leftover in evicted.entries() {
            let (_is_boxed, content) = leftover.term().content();
            let number = (self.route)(content) as usize % running as usize;
            self.partitions[number].take_in(&leftover);
        }
    }

    /// Checks that each entry left in one way, or is still there.
    pub fn assert_law(&self) {
        assert_law(&self.partitions, self.bound.limits().any().then_some(&*self.bound));
    }

    /// All deliveries, in order. Panics unless each entry of each flush was claimed exactly once.
    pub fn delivered(&self) -> Vec<D> {
        let batches = held(&self.batches);
        for (number, Known { flush, entries }) in held(&self.flushes).iter().enumerate() {
            let mut own: Vec<_> = batches.iter().filter(|batch| batch.flush == number).collect();
            own.sort_by_key(|batch| batch.start);
            let claimed: Vec<D> = own.iter().flat_map(|batch| batch.deliveries.iter().cloned()).collect();
            let mut left = entries.iter();
            assert!(claimed.iter().all(|entry| left.any(|other| other == entry)), "each entry is claimed once at most");
            let is_evicted = self.has_evicted();
            assert!(is_evicted || claimed.len() == entries.len(), "each entry is claimed");
            assert_eq!(flush.seen().left, 0, "a flush is claimed to its end");
        }
        batches.iter().flat_map(|batch| batch.deliveries.iter().cloned()).collect()
    }

    /// All deliveries, batch by batch.
    pub fn batches(&self) -> Vec<Vec<D>> {
        held(&self.batches).iter().map(|batch| batch.deliveries.clone()).collect()
    }

    /// Sorts the deliveries in the order of the flushes, since concurrent readers note their
    /// batches in any order.
    pub fn sort(&self) {
        held(&self.batches).sort_by_key(|batch| (batch.flush, batch.start));
    }

    /// The number of positions in all flushes.
    pub fn flushed(&self) -> usize {
        held(&self.flushes).iter().map(|known| known.flush.end()).sum()
    }
}

/// Locks notes of the test. This is no lock of shuttle, so threads do not change at it.
fn held<T>(notes: &Mutex<T>) -> MutexGuard<'_, T> {
    notes.lock().expect("no thread panics with the lock")
}

pub fn spawn<B: Send + Sync + 'static, R: Send + 'static>(
    buffer: &Arc<B>,
    body: impl FnOnce(&B) -> R + Send + 'static,
) -> JoinHandle<R> {
    let buffer = buffer.clone();
    thread::spawn(move || body(&buffer))
}

/// Runs two writers, 0 and 1, and another thread at the same time. Returns the results of the
/// writers.
pub fn race<B: Send + Sync + 'static, R: Send + 'static>(
    buffer: &Arc<B>,
    write: impl Fn(&B, i64) -> R + Copy + Send + 'static,
    meanwhile: impl FnOnce(&B) + Send + 'static,
) -> Vec<R> {
    let writers = [0, 1].map(|writer| spawn(buffer, move |buffer| write(buffer, writer)));
    let other = spawn(buffer, meanwhile);
    let results = writers.into_iter().map(join).collect();
    join(other);
    results
}

pub fn join<R>(thread: JoinHandle<R>) -> R {
    thread.join().expect("the thread does not panic")
}
