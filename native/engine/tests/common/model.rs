//! Buffers of partitions, and models of them. Long sequences of operations, read from bytes, are done to both. Their
//! answers and contents must be the same.
//!
//! A model is plain: what waits, and for each flush all its entries, with the place where each is. [`map`],
//! [`queue`] and [`counter`] have the operations of one kind of buffer, and this module those of all. The random tests
//! and the fuzz targets share them, since any bytes are a sequence of operations.

use std::collections::{HashMap, VecDeque};
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use partitioned_buffer_engine::reclaim::settle;
use partitioned_buffer_engine::{BatchState, Closed, Flush, Flushed, Frozen, GivenBack, Hasher, Partition, Store};

use super::reading::read_slices;
use super::{heaps, set_lanes, HIDDEN, LARGE};

pub mod counter;
mod keys;
pub mod map;
pub mod queue;

/// The most partitions of a buffer.
const PARTITIONS: usize = 3;

/// What waits in a partition.
trait Waiting<S: Store>: Default + Debug {
    /// An entry or item.
    type Entry: Copy + PartialEq + Debug;

    /// What no two entries of a store have in common.
    type Key: Copy + Eq + Hash;

    fn entry(record: S::Record) -> Self::Entry;

    fn key(entry: Self::Entry) -> Self::Key;

    /// How many entries there are.
    fn len(&self) -> usize;

    /// Whether there is a newer entry for the key of this one.
    fn supersedes(&self, entry: Self::Entry) -> bool;

    /// Adds an entry that has failed so often.
    fn take_back(&mut self, entry: Self::Entry, attempts: u32);

    /// How often each entry has failed. The entries are all that are here, in the order in which they are read.
    fn attempts(&self, entries: &[Self::Entry]) -> Vec<u32>;
}

/// A partition as it should be.
struct Model<S: Store, W: Waiting<S>> {
    partition_count: usize,
    waiting: W,
    /// The flushes, the oldest first. Finished ones stay until the next flush.
    in_flight: VecDeque<InFlight<S, W>>,
}

/// A flush as it should be.
struct InFlight<S: Store, W: Waiting<S>> {
    /// The entries, in the order in which they are read for the first time.
    entries: Vec<Entry<W::Entry>>,
    /// Where each key is among them.
    places: HashMap<W::Key, usize>,
    /// Whether operations see what is here.
    is_visible: bool,
    /// Of the entries in [`Place::Batch`].
    state: BatchState,
    /// How many batches were claimed or leased.
    calls: usize,
}

/// An entry in flight.
#[derive(Debug)]
struct Entry<E> {
    entry: E,
    attempts: u32,
    place: Place,
    /// Whether it is one of those to be retried first.
    is_retried: bool,
    is_deleted: bool,
}

/// Where an entry in flight is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// To be read.
    Ahead,
    Batch,
    /// It has an outcome.
    Gone,
}

/// What becomes of a batch.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Claimed,
    Succeeds,
    /// It fails: all of it, or every so many entries.
    Fails {
        every: usize,
        is_counted: bool,
        max_attempts: Option<u32>,
    },
    /// Its reader dies before it has leased it.
    IsLost,
    /// Its reader dies when it has leased it.
    IsLeft,
}

/// How a batch is read.
#[derive(Clone, Copy, Debug)]
struct Reading {
    size: usize,
    /// How many positions are read at a time.
    slice: usize,
    /// Whether what newer writes have replaced is left out, in a buffer with outcomes.
    is_resumed: bool,
}

/// See the module's documentation.
struct Buffer<S: Store, const SHARDS: usize, W: Waiting<S>> {
    partitions: [Partition<S, SHARDS>; PARTITIONS],
    models: [Model<S, W>; PARTITIONS],
    running: usize,
    has_outcomes: bool,
    /// The number of the last value: no two values are the same.
    writes: i64,
    /// The number of the last reader.
    readers: u64,
    operations: usize,
    slow_reader: Option<SlowReader<S, W>>,
}

/// A reader that still reads a flush after its last outcome.
struct SlowReader<S: Store, W: Waiting<S>> {
    frozen: Arc<Frozen<S>>,
    end: usize,
    /// What it has read at first.
    entries: Vec<W::Entry>,
}

/// Runs `operations` with these lanes. Only one sequence runs at a time, since all heaps of the process are counted.
fn run(lanes: Option<u64>, operations: impl FnOnce() -> usize) -> usize {
    static RUNNING: Mutex<()> = Mutex::new(());
    let _running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    set_lanes(lanes);
    operations()
}

impl<S: Store, W: Waiting<S>> Default for Model<S, W> {
    fn default() -> Self {
        Model { partition_count: 0, waiting: W::default(), in_flight: VecDeque::new() }
    }
}

impl<S: Store, W: Waiting<S>> Model<S, W> {
    /// The flush that is to be given: the rest of an earlier one, or a fresh one of these entries.
    fn flush(&mut self, fresh: Option<Vec<W::Entry>>, has_outcomes: bool) {
        while self.in_flight.front().is_some_and(InFlight::is_finished) {
            self.in_flight.pop_front();
        }
        if let Some(entries) = fresh {
            assert!(self.in_flight.is_empty(), "a rest comes before a fresh flush");
            let attempts = std::mem::take(&mut self.waiting).attempts(&entries);
            self.in_flight.push_back(InFlight::new(entries, attempts));
        }
        self.look_into(has_outcomes);
    }

    /// Operations see the flushes that are not finished, if the partition has outcomes.
    fn look_into(&mut self, has_outcomes: bool) {
        self.in_flight.iter_mut().for_each(|flush| flush.is_visible = has_outcomes);
    }

    /// The entries of a key that operations see in flight, the latest first.
    fn find_in_flight(&mut self, key: W::Key) -> impl Iterator<Item = &mut Entry<W::Entry>> {
        self.in_flight.iter_mut().rev().filter_map(move |flush| flush.find(key))
    }

    /// The failure of the oldest flush's batch, in its own partition or in another.
    fn give_back(&mut self, failed: &[usize], is_counted: bool, max: Option<u32>, is_own: bool) -> GivenBack {
        let can_wait = is_own && !S::KEEPS_ORDER && self.partition_count > 0;
        let mut result = GivenBack::default();
        let Some((oldest, later)) = self.in_flight.make_contiguous().split_first_mut() else { return result };
        for (number, entry) in oldest.entries.iter_mut().filter(|entry| entry.place == Place::Batch).enumerate() {
            entry.place = Place::Gone;
            if !failed.contains(&number) {
                continue;
            }
            entry.attempts += u32::from(is_counted);
            let is_later = !S::ADDS_UP && later.iter().any(|flush| flush.places.contains_key(&W::key(entry.entry)));
            if entry.is_deleted {
                result.superseded += 1;
            } else if max.is_some_and(|max| entry.attempts >= max) {
                result.given_up += 1;
                entry.place = Place::Batch;
            } else if !can_wait {
                result.retried += 1;
                (entry.place, entry.is_retried) = (Place::Ahead, true);
            } else if is_later || self.waiting.supersedes(entry.entry) {
                result.superseded += 1;
            } else {
                result.retried += 1;
                self.waiting.take_back(entry.entry, entry.attempts);
            }
        }
        oldest.state = if result.given_up > 0 { BatchState::GivenUp } else { BatchState::Read };
        result
    }
}

impl<S: Store, W: Waiting<S>> InFlight<S, W> {
    fn new(entries: Vec<W::Entry>, attempts: Vec<u32>) -> Self {
        let places = entries.iter().enumerate().map(|(place, &entry)| (W::key(entry), place)).collect();
        let new =
            |(entry, attempts)| Entry { entry, attempts, place: Place::Ahead, is_retried: false, is_deleted: false };
        let entries = entries.into_iter().zip(attempts).map(new).collect();
        InFlight { entries, places, is_visible: false, state: BatchState::Read, calls: 0 }
    }

    /// The entry of a key that operations see.
    fn find(&mut self, key: W::Key) -> Option<&mut Entry<W::Entry>> {
        let InFlight { entries, places, state, is_visible, .. } = self;
        let entry = &mut entries[*places.get(&key).filter(|_place| *is_visible)?];
        let is_live = match entry.place {
            Place::Ahead => true,
            Place::Batch => !matches!(state, BatchState::GivenUp | BatchState::Buried),
            Place::Gone => false,
        };
        (is_live && !entry.is_deleted).then_some(entry)
    }

    fn is_finished(&self) -> bool {
        self.entries.iter().all(|entry| entry.place == Place::Gone)
    }

    /// How many entries have no outcome.
    fn held(&self) -> usize {
        let is_held = |entry: &&Entry<W::Entry>| match entry.place {
            Place::Ahead => !entry.is_deleted,
            // Of a counter also what was deleted: it may wait again.
            Place::Batch => !entry.is_deleted || S::ADDS_UP,
            Place::Gone => false,
        };
        self.entries.iter().filter(is_held).count()
    }

    fn batch(&self) -> impl Iterator<Item = &Entry<W::Entry>> {
        self.entries.iter().filter(|entry| entry.place == Place::Batch)
    }

    /// The batch that a reader has left, which is none if it was not leased.
    fn inherit(&mut self) -> Option<(BatchState, usize)> {
        if self.state == BatchState::Read {
            self.move_batch(Place::Ahead);
        }
        let length = self.batch().count();
        (length > 0).then_some((self.state, length))
    }

    /// The function for dead letters is called, if the batch is given up.
    fn bury(&mut self) {
        if self.state == BatchState::GivenUp {
            self.state = BatchState::Buried;
        }
    }

    fn move_batch(&mut self, place: Place) {
        let batch = self.entries.iter_mut().filter(|entry| entry.place == Place::Batch);
        batch.for_each(|entry| entry.place = place);
    }

    /// The batch has succeeded, or was claimed.
    fn end_batch(&mut self) {
        self.move_batch(Place::Gone);
        self.state = BatchState::Read;
    }

    /// The next batch; `None` if there is one with the processor.
    fn read(&mut self, size: usize, is_superseded: impl Fn(W::Entry) -> bool) -> Option<Vec<W::Entry>> {
        if self.inherit().is_some() {
            return None;
        }
        let mut batch = Vec::new();
        let mut limit = size;
        for is_retried in [true, false] {
            let ahead = |entry: &&mut Entry<W::Entry>| entry.place == Place::Ahead && entry.is_retried == is_retried;
            for entry in self.entries.iter_mut().filter(ahead) {
                if entry.is_deleted || is_superseded(entry.entry) {
                    entry.place = Place::Gone;
                    continue;
                }
                let quartered = (0..entry.attempts).fold(size, |size, _attempt| size / 4);
                let shorter = limit.min(quartered).max(1);
                if batch.len() >= shorter {
                    return Some(batch);
                }
                limit = shorter;
                entry.place = Place::Batch;
                batch.push(entry.entry);
            }
        }
        Some(batch)
    }
}

impl<S: Store, const SHARDS: usize, W: Waiting<S>> Buffer<S, SHARDS, W> {
    fn start(hasher: &Hasher, running: usize, has_outcomes: bool) -> Self {
        let mut buffer = Buffer {
            partitions: std::array::from_fn(|_| Partition::new(hasher)),
            models: Default::default(),
            running: 0,
            has_outcomes,
            writes: 0,
            readers: 0,
            operations: 0,
            slow_reader: None,
        };
        buffer.restart(running, has_outcomes);
        buffer
    }

    /// Does an operation that all kinds have: those from number 22 on.
    fn step(&mut self, operation: u8, a: u8, b: u8) {
        let (partition, more) = (usize::from(a) % PARTITIONS, usize::from(a) / PARTITIONS);
        match operation % 32 {
            22..=27 => {
                let left = self.models[partition].in_flight.front().map_or(0, InFlight::held);
                let size = match operation % 32 {
                    22..=23 => usize::from(b) % 16,
                    24 => usize::from(b),
                    25 => left.saturating_sub(usize::from(b) % 4),
                    _ => usize::MAX,
                };
                self.process(partition, Reading::new(size, more), fate(operation, b), more % 8 == 7);
            }
            28 => self.read_again(),
            29 => self.restart(1 + partition, self.has_outcomes != (b % 4 == 0)),
            30 => self.open_or_close(partition, b < 128),
            _ => self.check_sizes(),
        }
    }

    /// The next value. Some large values look small.
    fn value(&mut self, is_large: bool) -> i64 {
        self.writes += 1;
        match is_large {
            false => self.writes,
            true if self.writes % 2 == 0 => LARGE + self.writes,
            true => HIDDEN + self.writes,
        }
    }

    /// The result of an operation that the partition refuses unless it is open.
    fn expected<R>(&self, number: usize, result: R) -> Result<R, Closed> {
        if self.models[number].partition_count == self.running {
            Ok(result)
        } else {
            Err(Closed)
        }
    }

    /// Takes the flush that a partition gives, and compares a fresh one with what waits.
    fn flush(&mut self, number: usize) -> Option<Arc<Flush<S>>> {
        self.operations += 1;
        let (flush, fresh) = match self.partitions[number].flush() {
            None => (None, None),
            Some(Flushed::Rest(flush)) => (Some(flush), None),
            Some(Flushed::Fresh(flush)) => {
                let (frozen, end) = (flush.entries().expect("it has no outcome"), flush.end());
                let entries = contents::<S, W>(&frozen, end);
                assert!(frozen.record(end).is_none(), "there is no record after the end");
                self.slow_reader = Some(SlowReader { frozen, end, entries: entries.clone() });
                (Some(flush), Some(entries))
            }
        };
        let model = &mut self.models[number];
        model.flush(fresh, self.has_outcomes);
        assert_eq!(flush.is_some(), !model.in_flight.is_empty(), "a rest is given, and nothing else is");
        if flush.is_none() {
            assert_eq!(model.waiting.len(), 0, "what waits is given");
        }
        flush
    }

    /// Reads a batch of a partition's flush, or takes the one that a reader has left, and settles it. Another partition
    /// does that if the reader `is_old`, and had the flush before a restart.
    fn process(&mut self, number: usize, reading: Reading, fate: Fate, is_old: bool) {
        let Some(flush) = self.flush(number) else { return };
        let oldest = &mut self.models[number].in_flight[0];
        self.readers += 1;
        assert_eq!(flush.inherit(self.readers), oldest.inherit());
        if let Some(batch) = self.read(number, &flush, reading) {
            if !self.call(number, &flush, &batch, fate) {
                return;
            }
        }
        let through = if is_old { (number + 1) % PARTITIONS } else { number };
        self.settle(number, &flush, fate, through);
        self.partitions[through].settle(&flush);
        self.check(number, &flush);
    }

    /// Reads the next batch, unless there is one with the processor.
    fn read(&mut self, number: usize, flush: &Flush<S>, reading: Reading) -> Option<Vec<W::Entry>> {
        let Reading { size, slice, is_resumed } = reading;
        let is_resumed = is_resumed && self.has_outcomes;
        let partition = &self.partitions[number];
        let is_superseded = |frozen: &Frozen<S>, position| is_resumed && partition.supersedes(frozen, position);
        let batch = read_slices(flush, self.readers, size, slice, is_superseded, W::entry);
        let Model { waiting, in_flight, .. } = &mut self.models[number];
        assert_eq!(batch, in_flight[0].read(size, |entry| is_resumed && waiting.supersedes(entry)));
        batch
    }

    /// Claims or leases a batch. Whether it has to be settled.
    fn call(&mut self, number: usize, flush: &Flush<S>, batch: &[W::Entry], fate: Fate) -> bool {
        let (reader, now) = (self.readers, self.operations as i64);
        let oldest = &mut self.models[number].in_flight[0];
        assert!(!flush.claim(reader + 1, 0) && !flush.lease(reader + 1, 0), "a batch belongs to its reader");
        match fate {
            Fate::IsLost => return false,
            Fate::Claimed => assert!(flush.claim(reader, now)),
            _ => assert!(flush.lease(reader, now)),
        }
        if !batch.is_empty() {
            oldest.calls += 1;
            assert_eq!((flush.seen().called_with, flush.seen().called_at), (batch.len(), Some(now)));
            assert!(!flush.claim(reader, 0) && !flush.lease(reader, 0), "nothing is claimed or leased twice");
            oldest.state = BatchState::Leased;
        }
        assert_eq!(flush.seen().calls, oldest.calls);
        true
    }

    /// Ends the batch that was leased or is given up.
    fn settle(&mut self, number: usize, flush: &Arc<Flush<S>>, fate: Fate, through: usize) {
        let (reader, now) = (self.readers, self.operations as i64);
        let model = &mut self.models[number];
        match fate {
            Fate::IsLost | Fate::IsLeft => {}
            Fate::Claimed | Fate::Succeeds => {
                flush.succeed(reader + 1);
                flush.succeed(reader);
                model.in_flight[0].end_batch();
            }
            Fate::Fails { every, is_counted, max_attempts } => {
                let failed: Vec<usize> = (0..model.in_flight[0].batch().count()).step_by(every).collect();
                let numbers = (every > 1).then_some(&failed[..]);
                let give_back =
                    |reader| self.partitions[through].give_back(flush, reader, numbers, is_counted, max_attempts);
                assert_eq!(give_back(reader + 1), GivenBack::default(), "a batch belongs to its reader");
                let given_back = give_back(reader);
                if model.in_flight[0].state == BatchState::Leased {
                    assert_eq!(given_back, model.give_back(&failed, is_counted, max_attempts, through == number));
                } else {
                    assert_eq!(given_back, GivenBack::default(), "what is given up is not given back");
                    flush.bury(now);
                    model.in_flight[0].bury();
                    assert!(model.in_flight[0].state == BatchState::Read || flush.seen().called_at == Some(now));
                }
            }
        }
    }

    /// Compares what a flush tells of itself.
    fn check(&mut self, number: usize, flush: &Flush<S>) {
        let oldest = &self.models[number].in_flight[0];
        let batch: Vec<&Entry<W::Entry>> = oldest.batch().collect();
        assert_eq!(flush.attempts(), batch.iter().map(|entry| entry.attempts).max().unwrap_or(0));
        if let Some((_frozen, records)) = flush.batch() {
            assert!(records.into_iter().map(W::entry).eq(batch.iter().map(|entry| entry.entry)));
        }
        let is_finished = oldest.is_finished();
        assert_eq!(flush.seen().left == 0, is_finished);
        assert_eq!(flush.entries().is_none(), is_finished, "the last outcome frees the stores");
    }

    /// Checks that what a slow reader reads has not changed, whatever has been written or freed since.
    fn read_again(&mut self) {
        self.operations += 1;
        if let Some(SlowReader { frozen, end, entries }) = &self.slow_reader {
            assert_eq!(contents::<S, W>(frozen, *end), *entries);
        }
    }

    /// Restarts with this number of partitions, as a supervisor does, with outcomes or without.
    fn restart(&mut self, running: usize, has_outcomes: bool) {
        self.operations += 1;
        if running != self.running {
            let held: Vec<_> = (0..self.running)
                .map(|number| {
                    let Model { waiting, mut in_flight, .. } = std::mem::take(&mut self.models[number]);
                    in_flight.retain(|flush| !flush.is_finished());
                    let evicted = self.partitions[number].evict();
                    if waiting.len() > 0 {
                        let fresh = evicted.back().expect("what waits is evicted");
                        let entries = contents::<S, W>(&fresh.entries().expect("it has no outcome"), fresh.end());
                        let attempts = waiting.attempts(&entries);
                        in_flight.push_back(InFlight::new(entries, attempts));
                    }
                    (evicted, in_flight)
                })
                .collect();
            for (number, (evicted, in_flight)) in (0..running).cycle().zip(held) {
                assert_eq!(evicted.len(), in_flight.len(), "the number of evicted flushes");
                self.partitions[number].adopt(evicted);
                self.models[number].in_flight.extend(in_flight);
            }
            self.running = running;
        }
        self.has_outcomes = has_outcomes;
        for number in 0..running {
            self.open_or_close(number, false);
            self.partitions[number].set_outcomes(has_outcomes);
            self.models[number].look_into(has_outcomes);
            self.open_or_close(number, true);
        }
    }

    fn open_or_close(&mut self, number: usize, is_open: bool) {
        self.operations += 1;
        if is_open && number < self.running {
            self.partitions[number].open(self.running as u32);
            self.models[number].partition_count = self.running;
        } else {
            self.partitions[number].close();
            self.models[number].partition_count = 0;
        }
    }

    fn check_sizes(&mut self) {
        self.operations += 1;
        for (number, model) in self.models.iter().enumerate() {
            let waiting = model.waiting.len();
            assert_eq!(self.partitions[number].len(self.running as u32), self.expected(number, waiting));
            let held: usize = model.in_flight.iter().map(InFlight::held).sum();
            assert_eq!(self.partitions[number].held(), waiting + held);
        }
    }

    /// Lets the rest succeed, after which all memory must be free. Returns the number of operations.
    fn finish(mut self) -> usize {
        self.check_sizes();
        self.read_again();
        let all = Reading { size: usize::MAX, slice: usize::MAX, is_resumed: false };
        for number in 0..PARTITIONS {
            while self.flush(number).is_some() {
                self.process(number, all, Fate::Succeeds, false);
            }
        }
        self.check_sizes();
        self.read_again();
        self.slow_reader = None;
        settle();
        assert_eq!(heaps(), 0, "no heap outlives the last outcome");
        self.operations
    }
}

impl Reading {
    fn new(size: usize, number: usize) -> Self {
        let slice = if number % 3 == 0 { 1 + number } else { usize::MAX };
        Reading { size: size.max(1), slice, is_resumed: number % 2 == 0 }
    }
}

/// The fate of a batch that the highest bits of an operation and a byte choose.
fn fate(operation: u8, b: u8) -> Fate {
    let max_attempts = [None, Some(3), Some(1), Some(0)][usize::from(b / 8) % 4];
    match operation / 32 {
        0..=1 => Fate::Claimed,
        2 => Fate::Succeeds,
        3 => Fate::IsLost,
        4 => Fate::IsLeft,
        5 => Fate::Fails { every: 1, is_counted: true, max_attempts },
        6 => Fate::Fails { every: 1 + usize::from(b % 8), is_counted: true, max_attempts },
        _ => Fate::Fails { every: 1 + usize::from(b % 2), is_counted: false, max_attempts },
    }
}

/// All records of a flush.
fn contents<S: Store, W: Waiting<S>>(frozen: &Frozen<S>, end: usize) -> Vec<W::Entry> {
    (0..end).filter_map(|position| frozen.record(position)).map(W::entry).collect()
}
