//! Partitions with a journal over a disk that fails and crashes: after each crash the laws of a journal
//! hold.
//!
//! A model notes for each write when it came, and when it left the buffer. A pass that succeeded makes
//! what was before it *written*, and a sync makes it *synced*. After the death of the VM what was
//! written must be there in its last state or a later one, after a loss of power what was synced.
//!
//! `LAWS_SEED` and `LAWS_CRASHES` choose the histories. A failure prints the seed of its history, and with
//! `LAWS_TRACE` the history and the log. With `LAWS_FAILURES=50` it is the shortest one of so many.
#![allow(missing_docs, clippy::missing_docs_in_private_items, clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::persist::{decoded, number, restore, segments, Counters, Kind, Maps, Parts, Queues, TestCodec, SIZES};
use common::reading::{all_of, flush, read_slices};
use common::sim_disk::{Faults, Loss, SimDisk};
use common::{set_lanes, Random, SMALL_VERSION};
use partitioned_buffer_engine::journal::block;
use partitioned_buffer_engine::journal::disk::Disk;
use partitioned_buffer_engine::journal::log::{Log, Settings, Syncing};
use partitioned_buffer_engine::journal::record::{records, Record, SavedVersion};
use partitioned_buffer_engine::journal::replay::{self, replay, Content, Replayed};
use partitioned_buffer_engine::journal::{Journal, Level, Report, Times};
use partitioned_buffer_engine::{
    BatchState, Bound, Death, Flush, Flushed, GaveBack, GiveBack, Hasher, Held, Limits, Partition, Store, Stored,
};

const KEYS: u64 = 9;

/// Additions to a key, each with a bit of its own.
const BITS: usize = 61;

const MAX_ATTEMPTS: u32 = 3;

/// The number of the operation that did something.
type Time = u64;

/// Where a write is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Waiting,
    InFlight,
}

/// A put, an addition or a push that was accepted.
#[derive(Clone, Debug)]
struct Write {
    key: i64,
    born: Time,
    version: i64,
    updates: u64,
    place: Place,
    partition: usize,
    /// Where it is among the items of a queue, and since when.
    rank: (u64, Time),
    /// Its attempts from these times on.
    attempts: Vec<(Time, u32)>,
    /// When a newer one took its place.
    superseded: Option<Time>,
    /// When it was deleted, or had its last outcome.
    done: Option<Time>,
    given_up: Option<Time>,
    /// Whether it was deleted after it was given up, so that nobody knows about it.
    is_free: bool,
}

impl Write {
    fn is_held(&self) -> bool {
        self.superseded.is_none() && self.done.is_none() && self.given_up.is_none()
    }

    /// Whether it had left the buffer at a time, other than to the dead letters.
    fn has_left(&self, time: Time) -> bool {
        [self.superseded, self.done].into_iter().flatten().any(|left| left <= time)
    }

    fn attempts(&self) -> u32 {
        self.attempts.last().map_or(0, |&(_since, attempts)| attempts)
    }

    /// The fewest and the most attempts from a time on.
    fn attempts_from(&self, time: Time) -> (u32, u32) {
        let before = self.attempts.iter().rev().find(|(since, _attempts)| *since <= time);
        let later = self.attempts.iter().filter(|(since, _attempts)| *since > time);
        let all = || before.into_iter().chain(later.clone()).map(|(_since, attempts)| *attempts);
        (all().min().unwrap_or(0), all().max().unwrap_or(0))
    }
}

/// An entry of a log.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Found {
    partition: u32,
    key: i64,
    writes: Vec<usize>,
    attempts: u32,
    is_given_up: bool,
    version: i64,
    updates: u64,
}

/// Whether a start gives an entry up.
fn is_exhausted(entry: &Found) -> bool {
    entry.attempts >= MAX_ATTEMPTS
}

impl fmt::Debug for Found {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Found { partition, writes, attempts, is_given_up, .. } = self;
        let given_up = if *is_given_up { ", given up" } else { "" };
        write!(out, "{writes:?} in {partition} after {attempts} attempts{given_up}")
    }
}

/// What a reader plans to do with its batch.
#[derive(Clone, Default)]
struct Plan {
    failed: Option<Vec<usize>>,
    cancelled: Vec<usize>,
    counted: bool,
    has_pause: bool,
}

/// A flush, and who reads it.
struct InFlight<S: Store> {
    flush: Arc<Flush<S>>,
    reader: u64,
    /// Whether the journal had all before its first batch.
    has_barrier: bool,
    /// Whether the first batch came without that.
    is_unsafe: bool,
    plan: Option<Plan>,
    /// Whether the batch is only given back.
    returns: bool,
    /// Whether the last reader died before its call.
    is_uncalled: bool,
}

/// When the last pass that succeeded began, and the last one whose log is synced.
#[derive(Clone, Copy, Debug, Default)]
struct Reached {
    written: Time,
    synced: Time,
}

struct World<K: Kind<SHARDS>, const SHARDS: usize> {
    random: Random,
    hasher: Hasher,
    disk: SimDisk,
    settings: Settings,
    journal: Journal<SimDisk, Parts<K, SHARDS>>,
    partitions: Parts<K, SHARDS>,
    count: usize,
    bound: Option<Arc<Bound>>,
    keeps_order: bool,
    flights: Vec<Option<InFlight<K::Store>>>,
    now: Time,
    ranks: u64,
    readers: u64,
    reached: Arc<Mutex<Reached>>,
    writes: Vec<Write>,
    /// The additions of each key, by their bits.
    bits: HashMap<i64, Vec<usize>>,
    /// The newest write of each key with which the sink succeeded, after all of its flush was synced.
    sunk: BTreeMap<i64, usize>,
    has_faults: bool,
    /// Whether operations failed otherwise than for lack of room, since the start.
    is_failing: bool,
    crashes: usize,
    /// How often all entries were written anew.
    rewrites: usize,
    trace: Vec<String>,
    is_traced: bool,
}

/// All partitions that a buffer may have.
const PARTITIONS: usize = 3;

impl<K: Kind<SHARDS>, const SHARDS: usize> World<K, SHARDS> {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let syncing = if random.below(5) == 0 { Syncing::System } else { Syncing::Owner };
        let max_bytes = [3_000, 20_000, 1 << 20][random.below(3) as usize];
        let settings = Settings { segment_bytes: [500, 2_000, 50_000][random.below(3) as usize], max_bytes, syncing };
        let hasher = Hasher::seeded(seed);
        let is_bounded = random.below(3) == 0;
        let keeps_order = random.below(2) == 0;
        let bound = is_bounded.then(Arc::<Bound>::default);
        if let Some(bound) = &bound {
            bound.set_limits(Limits { entries: Some(1 + random.below(8) as usize), bytes: None });
        }
        let count = 1 + random.below(PARTITIONS as u64) as usize;
        let disk = SimDisk::default();
        let partitions = new_partitions::<K, SHARDS>(&hasher, bound.as_ref(), count);
        let journal = new_journal(&disk, settings, partitions.clone(), count, 0);
        let world = World {
            random,
            hasher,
            disk,
            settings,
            journal,
            partitions,
            count,
            bound,
            keeps_order,
            flights: (0..PARTITIONS).map(|_| None).collect(),
            now: 0,
            ranks: 0,
            readers: 0,
            reached: Arc::default(),
            writes: Vec::new(),
            bits: HashMap::new(),
            sunk: BTreeMap::new(),
            has_faults: false,
            is_failing: false,
            crashes: 0,
            rewrites: 0,
            trace: Vec::new(),
            is_traced: std::env::var("LAWS_TRACE").is_ok(),
        };
        world.open();
        world
    }

    fn note(&mut self, text: impl FnOnce() -> String) {
        if self.is_traced {
            let line = format!("{}: {}", self.now, text());
            self.trace.push(line);
        }
    }

    fn chance(&mut self, one_in: u64) -> bool {
        self.random.below(one_in) == 0
    }

    /// Opens the partitions in use.
    fn open(&self) {
        for partition in &self.partitions.0[..self.count] {
            partition.set_outcomes(true);
            partition.set_order(self.keeps_order && K::Store::KEEPS_ORDER);
            partition.set_bounded(self.bound.is_some());
            partition.open(1);
        }
    }

    fn place_of(&self, key: i64) -> usize {
        number(key) as usize % self.count
    }

    /// The held writes of a key at a place.
    fn held_at(&self, key: i64, place: Place) -> Vec<usize> {
        let is_at = |write: &Write| write.key == key && write.place == place && write.is_held();
        (0..self.writes.len()).filter(|&id| is_at(&self.writes[id])).collect()
    }

    fn write(&mut self) {
        let id = self.writes.len();
        let flags = SIZES[self.random.below(4) as usize];
        let (key, number) = match K::KIND {
            replay::Kind::Map => (self.random.below(KEYS) as i64, id as i64 | flags),
            replay::Kind::Queue => (id as i64 | flags, id as i64 | flags),
            replay::Kind::Counter => {
                let key = self.random.below(KEYS) as i64;
                let bits = self.bits.entry(key).or_default();
                if bits.len() == BITS {
                    return;
                }
                (key, 1 << bits.len())
            }
        };
        let is_newer = K::KIND == replay::Kind::Map && self.chance(2);
        let range = 3 * SMALL_VERSION as u64;
        let version = is_newer.then(|| self.random.below(range) as i64 - SMALL_VERSION * 3 / 2);
        let partition = self.place_of(key);
        let stored = K::write(&self.partitions.0[partition], &self.hasher, key, number, version);
        self.note(|| format!("write {id} to {key} in {partition}, version {version:?}: {stored:?}"));
        if !matches!(stored, Stored::Stored | Stored::Enough) {
            return;
        }
        let waiting = self.held_at(key, Place::Waiting);
        let old = waiting.first().map(|&old| &self.writes[old]);
        let attempts = old.filter(|_| K::KIND == replay::Kind::Counter).map_or(0, Write::attempts);
        let updates = old.filter(|_| version.is_some()).map_or(0, |old| old.updates + 1);
        if K::KIND == replay::Kind::Map {
            let now = self.now;
            let is_older = |write: &&mut Write| write.key == key && write.is_held();
            self.writes.iter_mut().filter(is_older).for_each(|write| write.superseded = Some(now));
        } else if K::KIND == replay::Kind::Counter {
            self.bits.entry(key).or_default().push(id);
        }
        self.ranks += 1;
        self.writes.push(Write {
            key,
            born: self.now,
            version: version.unwrap_or(0),
            updates: if K::KIND == replay::Kind::Map { updates } else { 0 },
            place: Place::Waiting,
            partition,
            rank: (self.ranks, self.now),
            attempts: vec![(self.now, attempts)],
            superseded: None,
            done: None,
            given_up: None,
            is_free: false,
        });
    }

    fn delete(&mut self) {
        if K::KIND == replay::Kind::Queue {
            return;
        }
        let key = self.random.below(KEYS) as i64;
        K::delete(&self.partitions.0[self.place_of(key)], &self.hasher, key);
        self.note(|| format!("delete {key}"));
        let now = self.now;
        for write in self.writes.iter_mut().filter(|write| write.key == key && write.done.is_none()) {
            if write.given_up.is_some() {
                write.is_free = true;
            } else {
                write.done = Some(now);
            }
        }
    }

    /// A pass. Returns whether it succeeded.
    fn pass(&mut self) -> bool {
        self.tick();
        let now = self.now;
        let reached = self.reached.clone();
        let has_written = Arc::new(Mutex::new(false));
        let answer = has_written.clone();
        let note = move |result: Result<(), _>| {
            *answer.lock().unwrap() = result.is_ok();
            if result.is_ok() {
                reached.lock().unwrap().written = now;
            }
        };
        assert!(self.journal.wait(Level::Written, Box::new(note)));
        let reached = self.reached.clone();
        let note = move |result: Result<(), _>| {
            if result.is_ok() {
                reached.lock().unwrap().synced = now;
            }
        };
        assert!(self.journal.wait(Level::Synced, Box::new(note)));
        let rewrites = &mut self.rewrites;
        self.journal.write(|report| *rewrites += usize::from(matches!(report, Report::Rewritten { .. })));
        let has_written = *has_written.lock().unwrap();
        self.note(|| format!("pass: {has_written}"));
        if has_written {
            assert_eq!(self.journal.status().unwritten, 0, "a pass takes all changes");
        }
        has_written
    }

    fn sync(&mut self) {
        self.tick();
        self.journal.sync(|_report| {});
        let reached = *self.reached.lock().unwrap();
        self.note(|| format!("sync: {reached:?}"));
    }

    /// A pass and its sync, as a flush waits for them. Returns whether they succeeded.
    fn barrier(&mut self) -> bool {
        let has_written = self.pass();
        let now = self.now;
        if self.settings.syncing == Syncing::System {
            return has_written;
        }
        self.sync();
        self.reached.lock().unwrap().synced >= now
    }

    fn tick(&mut self) {
        self.now += 1;
    }

    /// The writes of an entry that a reader got.
    fn writes_of(&self, seen: (i64, Vec<i64>)) -> Vec<usize> {
        let (key, numbers) = seen;
        let id = |number: i64| {
            if K::KIND == replay::Kind::Counter {
                self.bits[&key][number as usize]
            } else {
                number as usize
            }
        };
        numbers.into_iter().map(id).collect()
    }

    /// The entries of the present batch, of one given up those with one outcome.
    fn batch(&self, flush: &Flush<K::Store>) -> Vec<Vec<usize>>
    where
        K: Look<SHARDS>,
    {
        let mut batch = Vec::new();
        flush.batch(|record| batch.push(K::look(record)));
        batch.into_iter().map(|seen| self.writes_of(seen)).collect()
    }
}

/// What a reader sees of a record: its key, and the numbers of its writes; of a sum their bits.
trait Look<const SHARDS: usize>: Kind<SHARDS> {
    fn look(record: <Self::Store as Store>::Record) -> (i64, Vec<i64>);
}

impl Look<4> for Maps {
    fn look(record: <Self::Store as Store>::Record) -> (i64, Vec<i64>) {
        (common::content(record.key).1, vec![number(common::content(record.value).1)])
    }
}

impl Look<4> for Counters {
    fn look(record: <Self::Store as Store>::Record) -> (i64, Vec<i64>) {
        (common::content(record.key).1, bits(record.sum, record.count))
    }
}

impl Look<1> for Queues {
    fn look(record: <Self::Store as Store>::Record) -> (i64, Vec<i64>) {
        let content = common::content(record).1;
        (content, vec![number(content)])
    }
}

/// The bits of a sum of different powers of two.
fn bits(sum: i128, count: u128) -> Vec<i64> {
    assert_eq!(u128::from(sum.count_ones()), count, "each addition is in the sum {sum:#b} once");
    (0..BITS as i64).filter(|bit| sum >> bit & 1 == 1).collect()
}

fn new_partitions<K: Kind<SHARDS>, const SHARDS: usize>(
    hasher: &Hasher,
    bound: Option<&Arc<Bound>>,
    count: usize,
) -> Parts<K, SHARDS> {
    let unbound = Arc::default();
    let partitions = (0..PARTITIONS).map(|_| Partition::with_bound(hasher, bound.unwrap_or(&unbound)));
    let partitions: Vec<_> = partitions.collect();
    partitions[..count].iter().for_each(|partition| partition.set_journaled(true));
    Parts(Arc::new(partitions))
}

fn new_journal<K: Kind<SHARDS>, const SHARDS: usize>(
    disk: &SimDisk,
    settings: Settings,
    partitions: Parts<K, SHARDS>,
    count: usize,
    epoch: u32,
) -> Journal<SimDisk, Parts<K, SHARDS>> {
    let next = disk.segments().unwrap().last().map_or(1, |&(number, _)| number + 1);
    let log = Log::new(disk.clone(), settings, epoch + 1, next).unwrap();
    let sync = (settings.syncing == Syncing::Owner).then_some(Duration::ZERO);
    Journal::new(log, partitions, TestCodec, count as u32, Times { write: Duration::ZERO, sync })
}

impl<K: Look<SHARDS>, const SHARDS: usize> World<K, SHARDS> {
    fn partition(&self, number: usize) -> &Partition<K::Store, SHARDS> {
        &self.partitions.0[number]
    }

    /// Adds to the attempts of writes.
    fn change_attempts(&mut self, writes: &[usize], change: impl Fn(u32) -> u32) {
        for &id in writes {
            let attempts = change(self.writes[id].attempts());
            let now = self.now;
            self.writes[id].attempts.push((now, attempts));
        }
    }

    /// Does a step with the flush of a partition.
    fn process(&mut self, number: usize) {
        let Some(flight) = &mut self.flights[number] else { return self.begin(number) };
        let (flush, reader) = (flight.flush.clone(), flight.reader);
        let is_uncalled = std::mem::take(&mut flight.is_uncalled);
        if flush.seen().left == 0 {
            self.partition(number).settle(&flush);
            self.flights[number] = None;
            return self.begin(number);
        }
        let batch = self.batch(&flush);
        if flush.leased(reader).is_some() {
            self.end(number, &flush, reader, &batch);
        } else if batch.is_empty() || is_uncalled {
            self.begin(number);
        } else {
            self.bury(number, &flush, reader, &batch);
        }
    }

    /// Reads and leases a batch of a flush.
    fn begin(&mut self, number: usize) {
        let flush = match self.partition(number).flush() {
            None => return,
            Some(Flushed::Rest(flush)) => flush,
            Some(Flushed::Fresh(flush)) => {
                self.note(|| format!("flush of {number}"));
                for write in self.writes.iter_mut().filter(|write| write.partition == number) {
                    write.place = Place::InFlight;
                }
                flush
            }
        };
        let is_known = self.flights[number].as_ref().is_some_and(|known| Arc::ptr_eq(&known.flush, &flush));
        if !is_known {
            let flush = flush.clone();
            self.flights[number] = Some(InFlight {
                flush,
                reader: 0,
                has_barrier: false,
                is_unsafe: false,
                plan: None,
                returns: false,
                is_uncalled: false,
            });
        }
        if !self.flights[number].as_ref().unwrap().has_barrier {
            let has_barrier = self.barrier();
            if self.disk.is_crashed() || (!has_barrier && self.chance(2)) {
                return;
            }
            let flight = self.flights[number].as_mut().unwrap();
            (flight.has_barrier, flight.is_unsafe) = (true, !has_barrier);
        }
        if self.chance(12) {
            flush.defer();
        }
        self.readers += 1;
        let reader = self.readers;
        let lease_rest = !K::Store::KEEPS_ORDER && self.chance(10);
        let size = 1 + self.random.below(5) as usize;
        self.tick();
        if lease_rest {
            let is_leased = self.partition(number).lease_rest(&flush, reader, size, false);
            let batch = self.batch(&flush);
            self.note(|| format!("lease_rest of {number}: {is_leased}, {batch:?}"));
            let flight = self.flights[number].as_mut().unwrap();
            if is_leased {
                (flight.reader, flight.returns, flight.plan) = (reader, true, Some(Plan::default()));
                return;
            }
        }
        let all = self.partitions.clone();
        let partition = &all.0[number];
        let is_superseded = |held: &Held<'_, K::Store>| flush.leaves_out() && partition.supersedes(held);
        let Some(batch) = read_slices(&flush, reader, size, usize::MAX, is_superseded, K::look) else { return };
        if self.chance(8) {
            // This reader dies before its call.
            self.note(|| format!("read of {number} without a call"));
            self.flights[number].as_mut().unwrap().is_uncalled = true;
            return;
        }
        assert!(flush.lease(reader, self.now as i64));
        partition.settle(&flush);
        let batch: Vec<_> = batch.into_iter().map(|seen| self.writes_of(seen)).collect();
        self.note(|| format!("lease of {number} by {reader}: {batch:?}"));
        self.change_attempts(&batch.concat(), |attempts| attempts + 1);
        let flight = self.flights[number].as_mut().unwrap();
        (flight.reader, flight.returns, flight.plan) = (reader, false, None);
        if !self.chance(4) {
            // The journal has the call before it begins.
            self.pass();
        }
    }

    /// Gives a leased batch an outcome, or a part of it.
    fn end(&mut self, number: usize, flush: &Arc<Flush<K::Store>>, reader: u64, batch: &[Vec<usize>]) {
        self.tick();
        let leased = flush.leased(reader).unwrap();
        let flight = self.flights[number].as_ref().unwrap();
        let (is_unsafe, returns) = (flight.is_unsafe, flight.returns);
        if flight.plan.is_none() {
            match self.random.below(8) {
                0..=2 => {
                    flush.succeed(reader);
                    self.note(|| format!("success of {number}: {batch:?}"));
                    batch.iter().for_each(|entry| self.succeed(entry, is_unsafe));
                    self.partition(number).settle(flush);
                    return;
                }
                3 => {
                    flush.split(reader).unwrap();
                    self.note(|| format!("split of {number}: {batch:?}"));
                    self.change_attempts(&batch.concat(), |attempts| attempts - 1);
                    self.partition(number).settle(flush);
                    return;
                }
                _ => {}
            }
        }
        if self.chance(8) {
            self.readers += 1;
            let death = [None, Some(Death::Killed), Some(Death::TimedOut)][self.random.below(3) as usize];
            let inherited = flush.inherit(self.readers, death);
            let flight = self.flights[number].as_mut().unwrap();
            flight.reader = self.readers;
            self.note(|| format!("reader of {number} died ({death:?}): {inherited:?}"));
            if returns {
                // What was only to be given back is read again.
                assert_ne!(inherited.map(|(state, _)| state), Some(BatchState::Leased));
                let flight = self.flights[number].as_mut().unwrap();
                (flight.plan, flight.returns) = (None, false);
                self.partition(number).settle(flush);
                return;
            }
            // The heir does not know the plan.
            let flight = self.flights[number].as_mut().unwrap();
            if flight.plan.take().is_some() {
                flight.plan = Some(Plan { counted: true, ..Plan::default() });
            }
            return;
        }
        if self.flights[number].as_ref().unwrap().plan.is_none() {
            let some = |random: &mut Random, one_in: u64| {
                (0..leased.length).filter(|_| random.below(one_in) == 0).collect::<Vec<_>>()
            };
            let failed = (!self.chance(3)).then(|| some(&mut self.random, 2));
            let cancelled = some(&mut self.random, 8);
            let plan = Plan { failed, cancelled, counted: !self.chance(3), has_pause: self.chance(4) };
            self.flights[number].as_mut().unwrap().plan = Some(plan);
        }
        let plan = self.flights[number].as_ref().unwrap().plan.clone().unwrap();
        for entry in batch.iter().take(1 + self.random.below(3) as usize) {
            let step = GiveBack {
                failed: plan.failed.as_deref(),
                cancelled: &plan.cancelled,
                counted: plan.counted,
                max_attempts: Some(MAX_ATTEMPTS),
                pause: plan.has_pause.then_some(Duration::ZERO),
                count: 1,
                ..all_of(reader)
            };
            let gave_back = self.partition(number).give_back(flush, step);
            self.note(|| format!("{entry:?} of {number} comes back, counted {}: {gave_back:?}", plan.counted));
            let GaveBack { retried, superseded, given_up, is_done } = gave_back;
            let is_called = u32::from(!returns);
            match (retried, superseded, given_up) {
                (0, 0, 0) => self.succeed(entry, is_unsafe),
                (1, 0, 0) => self.retry(entry, u32::from(plan.counted), is_called),
                (0, 1, 0) => {
                    let is_gone = |id: &usize| !self.writes[*id].is_held();
                    assert!(entry.iter().all(is_gone), "only what was replaced or deleted is superseded");
                }
                (0, 0, 1) => {
                    let now = self.now;
                    entry.iter().for_each(|&id| self.writes[id].given_up = Some(now));
                }
                other => panic!("a step of one entry comes to {other:?}"),
            }
            if is_done {
                let flight = self.flights[number].as_mut().unwrap();
                (flight.plan, flight.returns) = (None, false);
                break;
            }
        }
        self.partition(number).settle(flush);
    }

    fn succeed(&mut self, entry: &[usize], is_unsafe: bool) {
        let now = self.now;
        for &id in entry {
            let write = &mut self.writes[id];
            write.done.get_or_insert(now);
            if K::KIND == replay::Kind::Map && !is_unsafe {
                let newest = self.sunk.entry(write.key).or_insert(id);
                *newest = id.max(*newest);
            }
        }
    }

    /// An entry waits again, or stays in a queue that keeps its order.
    fn retry(&mut self, entry: &[usize], counted: u32, is_called: u32) {
        let now = self.now;
        let key = self.writes[entry[0]].key;
        let mut attempts = self.writes[entry[0]].attempts() + counted - is_called;
        let stays = K::Store::KEEPS_ORDER && self.keeps_order;
        let mut all = entry.to_vec();
        if K::KIND == replay::Kind::Counter {
            // What waits may have been deleted, and what failed not.
            let waiting = self.held_at(key, Place::Waiting);
            attempts = waiting.iter().map(|&id| self.writes[id].attempts()).fold(attempts, u32::max);
            all.extend(waiting);
        }
        for id in all {
            let write = &mut self.writes[id];
            assert!(write.is_held(), "what was replaced or deleted does not wait again: {write:?}");
            write.attempts.push((now, attempts));
            if !stays {
                write.place = Place::Waiting;
                if entry.contains(&id) {
                    self.ranks += 1;
                    write.rank = (self.ranks, now);
                }
            }
        }
    }

    /// Handles a batch given up, or the batch of a reader that died.
    fn bury(&mut self, number: usize, flush: &Arc<Flush<K::Store>>, reader: u64, batch: &[Vec<usize>]) {
        self.tick();
        if self.chance(3) {
            self.readers += 1;
            let death = [None, Some(Death::Killed), Some(Death::TimedOut)][self.random.below(3) as usize];
            let inherited = flush.inherit(self.readers, death);
            self.flights[number].as_mut().unwrap().reader = self.readers;
            self.note(|| format!("dead letters of {number} are inherited ({death:?}): {inherited:?}"));
            return;
        }
        flush.bury(self.now as i64);
        if self.chance(4) {
            return;
        }
        let now = self.now;
        flush.succeed(reader);
        self.note(|| format!("dead letters of {number} are written: {batch:?}"));
        for &id in batch.iter().flatten() {
            let write = &mut self.writes[id];
            assert!(write.given_up.is_some(), "{id} was given up: {write:?}");
            write.done.get_or_insert(now);
        }
        self.partition(number).settle(flush);
    }

    /// Changes the number of partitions, as a restart in the same VM does.
    fn reroute(&mut self) {
        let (old, new) = (self.count, 1 + self.random.below(PARTITIONS as u64) as usize);
        if old == new {
            return;
        }
        self.tick();
        self.note(|| format!("{old} partitions become {new}"));
        // A new partition of a journal has it before the entries come.
        self.partitions.0[..new].iter().filter(|partition| !partition.is_journaled()).for_each(|partition| {
            partition.set_journaled(true);
        });
        let now = self.now;
        // What the processor has keeps the attempt of its call, since nobody knows its outcome.
        self.flights.fill_with(|| None);
        self.count = new;
        let (partitions, journal) = (&self.partitions.0, &self.journal);
        let place = |content: i64| number(content) as usize % new;
        journal.moving(new as u32, || {
            let evicted: Vec<_> = partitions[..old].iter().map(Partition::evict).collect();
            for leftover in evicted.iter().flat_map(|evicted| evicted.entries()) {
                partitions[place(leftover.term().content().1)].take_in(&leftover);
            }
            let mut given_up: Vec<Vec<_>> = (0..new).map(|_| Vec::new()).collect();
            for leftover in evicted.iter().flat_map(|evicted| evicted.given_up()) {
                given_up[place(leftover.term().content().1)].push(leftover);
            }
            for (partition, leftovers) in partitions.iter().zip(&given_up).filter(|(_, all)| !all.is_empty()) {
                partition.take_in_given_up(leftovers);
            }
        });
        let mut held: Vec<usize> = (0..self.writes.len()).filter(|&id| self.writes[id].is_held()).collect();
        held.sort_by_key(|&id| {
            (self.writes[id].partition, self.writes[id].place == Place::Waiting, self.writes[id].rank)
        });
        let mut most = HashMap::new();
        for &id in &held {
            let write = &self.writes[id];
            let most = most.entry(write.key).or_insert(0);
            *most = write.attempts().max(*most);
        }
        for id in held {
            self.ranks += 1;
            let place = self.place_of(self.writes[id].key);
            let write = &mut self.writes[id];
            (write.place, write.partition, write.rank) = (Place::Waiting, place, (self.ranks, now));
            if K::KIND == replay::Kind::Counter {
                write.attempts.push((now, most[&write.key]));
            }
        }
        for id in 0..self.writes.len() {
            let place = self.place_of(self.writes[id].key);
            self.writes[id].partition = place;
        }
        self.open();
    }

    /// Lets operations of the disk fail from now on, or no longer.
    fn change_faults(&mut self) {
        self.tick();
        let operations = self.disk.operations();
        if self.has_faults {
            self.has_faults = false;
            self.disk.set_faults(Faults::default());
            self.note(|| "the disk works".to_owned());
            return;
        }
        let mut faults = Faults::default();
        match self.random.below(6) {
            0 => {
                let from = operations + 1 + self.random.below(6);
                faults.io_error = Some((from, from + 1 + self.random.below(4)));
            }
            1 => faults.failing_syncs = 1 + self.random.below(2) as u32,
            2 | 3 => faults.room = Some(self.disk.used() + self.random.below(3_000) as usize),
            4 => {
                faults.is_uncut = true;
                faults.room = Some(self.disk.used() + self.random.below(2_000) as usize);
            }
            _ => faults.is_kept = true,
        }
        self.has_faults = true;
        self.is_failing |= faults.io_error.is_some() || faults.is_uncut;
        self.disk.set_faults(faults);
        self.note(|| format!("{faults:?}"));
    }

    /// Does a random operation.
    fn step(&mut self) {
        self.tick();
        let number = self.random.below(self.count as u64) as usize;
        match self.random.below(100) {
            0..=29 => self.write(),
            30..=36 => self.delete(),
            37..=68 => self.process(number),
            69..=80 => {
                self.pass();
            }
            81..=88 => self.sync(),
            89..=91 => self.change_faults(),
            92 => self.partition(number).pause(Duration::ZERO, true),
            93 => self.partition(number).end_pause(),
            94 => self.reroute(),
            95..=96 => {
                let operations = self.disk.operations();
                let faults = Faults { crash: Some(operations + 1 + self.random.below(12)), ..self.disk.faults() };
                self.disk.set_faults(faults);
                self.note(|| "a crash is due".to_owned());
            }
            97 => {
                self.barrier();
            }
            _ => {}
        }
    }

    /// Runs a history with this many crashes. Returns how many there were.
    fn run(&mut self, crashes: usize) -> usize {
        while self.crashes < crashes {
            let steps = 10 + self.random.below(120);
            for _ in 0..steps {
                self.step();
                if self.disk.is_crashed() {
                    break;
                }
            }
            self.crash();
        }
        self.finish();
        self.crashes
    }

    /// The VM dies, and the next one starts.
    fn crash(&mut self) {
        self.tick();
        self.crashes += 1;
        let reached = *self.reached.lock().unwrap();
        let loss = match self.settings.syncing {
            Syncing::System => Loss::Nothing,
            Syncing::Owner => {
                [Loss::Nothing, Loss::Nothing, Loss::Random, Loss::Random, Loss::All][self.random.below(5) as usize]
            }
        };
        let since = if loss == Loss::Nothing { reached.written } else { reached.synced };
        self.note(|| format!("crash with {loss:?} lost, all before {since} is safe"));
        let disk = self.disk.crash(&mut self.random, loss);
        let segments = segments(&disk);
        let replayed = replay(&segments, K::KIND);
        assert_eq!(replayed.damaged_records, 0, "each record can be read");
        let found = self.found(&replayed);
        if self.is_traced {
            let all = segments.iter().flat_map(|(segment, bytes)| block::read(*segment, bytes)).collect::<Vec<_>>();
            for stretch in all {
                self.note(|| shown(&stretch));
            }
        }
        self.note(|| format!("found {found:#?}"));
        self.check(&found, since, loss == Loss::Nothing);
        let replayed_disk = if self.chance(4) { self.start_again_and_again(disk, &found) } else { disk };
        self.restart(replayed_disk, &found);
    }

    /// The entries of a log.
    fn found(&self, replayed: &Replayed) -> Vec<Found> {
        let all = replayed.entries.iter().map(|kept| (kept, false));
        let all = all.chain(replayed.given_up.iter().map(|kept| (kept, true)));
        all.map(|(kept, is_given_up)| {
            let (key, numbers, version, updates) = match kept.content {
                Content::Value { updates, version, key, value } => {
                    let version = match version {
                        SavedVersion::Int(version) => version,
                        SavedVersion::Below(term) | SavedVersion::Above(term) => decoded(term).1,
                    };
                    (decoded(key).1, vec![number(decoded(value).1)], version, updates)
                }
                Content::Sum { sum, count, key } => (decoded(key).1, bits(sum, count), 0, 0),
                Content::Item { item } => (decoded(item).1, vec![number(decoded(item).1)], 0, 0),
            };
            let writes = self.writes_of((key, numbers));
            Found { partition: kept.partition, key, writes, attempts: kept.attempts, is_given_up, version, updates }
        })
        .collect()
    }

    /// Checks what a log holds, of which all before `since` must be there.
    fn check(&self, found: &[Found], since: Time, is_kill: bool) {
        let mut times = vec![0; self.writes.len()];
        let mut given_up = vec![false; self.writes.len()];
        for entry in found {
            for &id in &entry.writes {
                let write = self.writes.get(id).expect("only what was written is there");
                times[id] += 1;
                given_up[id] = entry.is_given_up || is_exhausted(entry);
                assert_eq!(write.key, entry.key, "a value is under its key");
                let expected = (write.version, write.updates);
                assert_eq!((entry.version, entry.updates), expected, "{id} has its version and updates");
                // The outcome of an entry may come before it then.
                let has_left = write.has_left(since) && !self.is_failing;
                let is_done = has_left && write.done.is_some_and(|done| done <= since);
                assert!(!is_done, "{id} was done or deleted: {write:?}");
                if entry.is_given_up {
                    assert!(write.given_up.is_some(), "{id} was never given up: {write:?}");
                } else {
                    let is_given_up = write.given_up.is_some_and(|time| time <= since) && !is_exhausted(entry);
                    assert!(!is_given_up, "{id} was given up: {write:?}");
                    assert!(!has_left, "{id} had left the buffer: {write:?}");
                }
            }
            let ranges = entry.writes.iter().map(|&id| self.writes[id].attempts_from(since));
            let most = ranges.clone().map(|(_least, most)| most).max().unwrap();
            let is_old = |id: &&usize| self.writes[**id].born <= since;
            let old = entry.writes.iter().filter(is_old).map(|&id| self.writes[id].attempts_from(since).0);
            let least = old.max().unwrap_or(0);
            // Nobody calls the processor with what was given up, and nobody counts for what had left.
            let is_back = self.is_failing && entry.writes.iter().all(|&id| self.writes[id].has_left(since));
            let is_possible = entry.is_given_up || is_back || (least..=most).contains(&entry.attempts);
            assert!(is_possible, "{entry:?} has {least} to {most} attempts");
        }
        for (id, write) in self.writes.iter().enumerate() {
            assert!(times[id] <= 1, "{id} is there once: {write:?}");
            if write.is_free || write.born > since || write.done.is_some() {
                continue;
            }
            if write.given_up.is_some_and(|time| time <= since) {
                assert!(given_up[id], "{id} is still given up: {write:?}");
            } else if write.superseded.is_none() {
                // If the log does not say that it was given up, a newer one of its key replaces it.
                let is_newer = |other: &Found| other.key == write.key && other.writes[0] > id;
                let is_replaced =
                    K::KIND == replay::Kind::Map && write.given_up.is_some() && found.iter().any(is_newer);
                assert!(times[id] == 1 || is_replaced, "{id} is lost: {write:?}");
            }
        }
        self.check_keys(found, since);
        self.check_order(found, since, is_kill);
    }

    /// Each key of a map is as it was at some time from `since` on.
    fn check_keys(&self, found: &[Found], since: Time) {
        if K::KIND != replay::Kind::Map {
            return;
        }
        for key in 0..KEYS as i64 {
            let own = |id: &usize| self.writes[*id].key == key;
            let there = found.iter().find(|entry| entry.key == key && !entry.is_given_up).map(|entry| entry.writes[0]);
            let was_held = |id: &usize| {
                let write = &self.writes[*id];
                let is_given_up = write.given_up.is_some_and(|time| time <= since);
                write.born <= since && !write.has_left(since) && !is_given_up
            };
            let newest = (0..self.writes.len()).filter(own).filter(was_held).last();
            if let (Some(there), Some(newest), false) = (there, newest, self.is_failing) {
                assert!(there >= newest, "{key} has {there}, but had {newest} before");
            }
            if let (None, Some(newest)) = (there, newest) {
                let has_ended = |id: &usize| self.writes[*id].done.is_some() || self.writes[*id].given_up.is_some();
                let may_be_gone = (newest..self.writes.len()).filter(own).any(|id| has_ended(&id));
                assert!(may_be_gone, "{key} is lost: {:?}", self.writes[newest]);
            }
            if let (Some(there), Some(&sunk), false) = (there, self.sunk.get(&key), self.is_failing) {
                assert!(there >= sunk, "{key} goes back from {sunk} to {there}");
            }
        }
    }

    /// Items are in their order. What is lost are the newest ones.
    fn check_order(&self, found: &[Found], since: Time, is_kill: bool) {
        if K::KIND != replay::Kind::Queue {
            return;
        }
        let items = found.iter().filter(|entry| !entry.is_given_up).map(|entry| (entry.partition, entry.writes[0]));
        let mut last = BTreeMap::new();
        for (partition, id) in items.filter(|&(_partition, id)| self.writes[id].rank.1 <= since) {
            let rank = self.writes[id].rank.0;
            let before = last.insert(partition, rank);
            assert!(before.is_none_or(|before| before < rank), "the items of {partition} are in their order");
        }
        let there: BTreeSet<usize> = found.iter().map(|entry| entry.writes[0]).collect();
        for number in (0..self.count).filter(|_| is_kill) {
            let is_plain = |id: &usize| {
                let write = &self.writes[*id];
                let is_new = write.born > since && write.rank.1 == write.born;
                is_new && write.partition == number && write.done.is_none() && write.given_up.is_none()
            };
            let mut pushed = (0..self.writes.len()).filter(is_plain).skip_while(|id| there.contains(id));
            let behind_a_gap = pushed.find(|id| there.contains(id));
            assert_eq!(behind_a_gap, None, "what is there of {number} has no gaps");
        }
    }

    /// Dies after each operation of a start, with some of them before, and syncs that fail. Each time the
    /// entries are the same. Returns a disk with them.
    fn start_again_and_again(&mut self, disk: SimDisk, found: &[Found]) -> SimDisk {
        let mut base = disk;
        let mut last = None;
        for operation in 1.. {
            let disk = base.crash(&mut self.random, Loss::Nothing);
            let failing_syncs = self.random.below(4) as u32;
            disk.set_faults(Faults { crash: Some(operation), failing_syncs, ..Faults::default() });
            let partitions = self.restored(&disk, self.count);
            let journal = new_journal(&disk, self.settings, partitions.0, self.count, partitions.1);
            for _ in 0..6 {
                journal.write(|_report| {});
                journal.sync(|_report| {});
            }
            let is_crashed = disk.is_crashed();
            let loss = [Loss::Nothing, Loss::Random, Loss::All][self.random.below(3) as usize];
            let after = disk.crash(&mut self.random, loss);
            self.crashes += 1;
            let all = segments(&after);
            let mut again = self.found(&replay(&all, K::KIND));
            let mut expected = found.to_vec();
            let give_up = |entry: &mut Found| entry.is_given_up |= is_exhausted(entry);
            expected.iter_mut().for_each(give_up);
            again.iter_mut().for_each(give_up);
            again.iter_mut().chain(&mut expected).for_each(|entry| entry.partition = 0);
            again.sort();
            expected.sort();
            assert_eq!(again, expected, "a start that died at operation {operation} changes nothing");
            if !is_crashed {
                let kept = last.filter(|_| self.random.below(2) == 0).unwrap_or(after);
                return kept.crash(&mut self.random, Loss::Nothing);
            }
            if self.chance(4) {
                base = after.crash(&mut self.random, Loss::Nothing);
            }
            last = Some(after);
        }
        unreachable!("a start has an end")
    }

    /// New partitions with what a disk holds, and the last epoch there.
    fn restored(&self, disk: &SimDisk, count: usize) -> (Parts<K, SHARDS>, u32) {
        let segments = segments(disk);
        let replayed = replay(&segments, K::KIND);
        let partitions = new_partitions::<K, SHARDS>(&self.hasher, self.bound.as_ref(), count);
        let place = |content: i64| number(content) as usize % count;
        restore(&partitions.0, &self.hasher, &replayed, Some(MAX_ATTEMPTS), place);
        (partitions, replayed.epoch)
    }

    /// The next VM starts with these entries.
    fn restart(&mut self, disk: SimDisk, found: &[Found]) {
        self.tick();
        if self.chance(3) {
            self.count = 1 + self.random.below(PARTITIONS as u64) as usize;
        }
        if let Some(bound) = &mut self.bound {
            let limits = bound.limits();
            *bound = Arc::default();
            bound.set_limits(limits);
        }
        let (partitions, epoch) = self.restored(&disk, self.count);
        (self.partitions, self.disk) = (partitions, disk);
        self.journal = new_journal(&self.disk, self.settings, self.partitions.clone(), self.count, epoch);
        (self.has_faults, self.is_failing) = (false, false);
        let now = self.now;
        *self.reached.lock().unwrap() = Reached { written: now, synced: now };
        for write in &mut self.writes {
            write.done.get_or_insert(now);
        }
        for entry in found {
            for &id in &entry.writes {
                self.ranks += 1;
                let place = self.place_of(entry.key);
                let write = &mut self.writes[id];
                let is_given_up = entry.is_given_up || entry.attempts >= MAX_ATTEMPTS;
                (write.superseded, write.done, write.given_up) = (None, None, is_given_up.then_some(now));
                (write.place, write.partition, write.is_free) = (Place::Waiting, place, false);
                (write.rank, write.attempts) = ((self.ranks, now), vec![(now, entry.attempts)]);
            }
        }
        self.flights = (0..PARTITIONS).map(|_| None).collect();
        for number in 0..self.count {
            if let Some(flush) = self.partition(number).in_flight() {
                self.flights[number] = Some(InFlight {
                    flush,
                    reader: 0,
                    has_barrier: true,
                    is_unsafe: false,
                    plan: None,
                    returns: false,
                    is_uncalled: false,
                });
            }
        }
        self.open();
        let partitions = &self.partitions.0;
        let held: usize = partitions.iter().map(Partition::held).sum();
        assert_eq!(held, found.len(), "the partitions hold what was found");
        self.note(|| "restart".to_owned());
    }

    /// All that is left succeeds. Then the log has no file.
    fn finish(&mut self) {
        self.disk.set_faults(Faults::default());
        self.has_faults = false;
        for number in 0..self.count {
            while let Some(flush) = flush(self.partition(number)) {
                self.readers += 1;
                let reader = self.readers;
                flush.inherit(reader, None);
                if flush.leased(reader).is_none() && self.batch(&flush).is_empty() {
                    read_slices(&flush, reader, usize::MAX, usize::MAX, |_| false, K::look);
                    flush.lease(reader, 0);
                }
                let step = all_of(reader);
                if flush.leased(reader).is_some_and(|leased| leased.next > 0) {
                    self.partition(number).give_back(&flush, step);
                }
                flush.succeed(reader);
                self.partition(number).settle(&flush);
            }
        }
        // What a pass ends goes with its sync.
        for _ in 0..3 {
            assert!(self.pass());
            self.sync();
        }
        let segments = self.journal.status().numbers.segments;
        assert!(segments <= 1, "segments go when all their entries are done");
        self.journal.finish();
        let left = self.disk.segments().unwrap();
        assert!(self.disk.is_empty(), "{left:?} is left of the log of an empty buffer, {:?}", self.journal.status());
    }
}

/// A part of a log, for people.
fn shown(stretch: &block::Stretch) -> String {
    let block::Stretch::Block { place, payload } = stretch else { return format!("{stretch:?}") };
    let text = |record: Record| match record {
        Record::Value { place, attempts, key, value, .. } => {
            format!("{place:?} {attempts} {:?} {:?}", decoded(key), decoded(value))
        }
        Record::Sum { place, attempts, key, sum, .. } => format!("{place:?} {attempts} {:?} {sum:b}", decoded(key)),
        Record::Item { place, attempts, item, origin } => {
            format!("{place:?} {attempts} {:?} {origin:?}", decoded(item))
        }
        other => format!("{other:?}"),
    };
    let records: Vec<_> = records(payload).map(|record| text(record.unwrap())).collect();
    format!("{place:?}\n        {}", records.join("\n        "))
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

/// Runs histories until there were enough crashes.
fn check<K: Look<SHARDS>, const SHARDS: usize>() {
    let wanted = setting("LAWS_CRASHES").unwrap_or(1_500) as usize;
    let first = setting("LAWS_SEED");
    let mut seeds = Random(RandomState::new().hash_one(0));
    let (mut crashes, mut histories, mut rewrites) = (0, 0, 0);
    let most_failures = setting("LAWS_FAILURES").unwrap_or(1);
    let mut failures = 0;
    let mut shortest = None;
    while crashes < wanted {
        let seed = first.unwrap_or_else(|| seeds.below(u64::MAX));
        set_lanes(Some(seed));
        let mut world = World::<K, SHARDS>::new(seed);
        let ran = catch_unwind(AssertUnwindSafe(|| {
            let most = 1 + world.random.below(6) as usize;
            world.run(most)
        }));
        if let Err(error) = &ran {
            let text = error.downcast_ref::<String>().cloned().unwrap_or_default();
            world.trace.push(text);
        }
        let Ok(ran) = ran else {
            // Of many histories that fail the shortest one tells most.
            if shortest.as_ref().is_none_or(|(trace, _seed): &(Vec<String>, u64)| world.trace.len() < trace.len()) {
                shortest = Some((std::mem::take(&mut world.trace), seed));
            }
            failures += 1;
            if failures < most_failures && first.is_none() {
                continue;
            }
            break;
        };
        crashes += ran;
        histories += 1;
        rewrites += world.rewrites;
        if first.is_some() {
            break;
        }
    }
    println!("{crashes} crashes and {rewrites} rewrites in {histories} histories");
    if let Some((trace, seed)) = shortest {
        trace.iter().for_each(|line| println!("{line}"));
        panic!("LAWS_SEED={seed} fails, LAWS_TRACE=1 shows its history");
    }
}

#[test]
fn maps_keep_the_laws() {
    check::<Maps, 4>();
}

#[test]
fn counters_keep_the_laws() {
    check::<Counters, 4>();
}

#[test]
fn queues_keep_the_laws() {
    check::<Queues, 1>();
}
