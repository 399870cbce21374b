//! Buffers of partitions, and models of them. Long sequences of operations, read from bytes, are
//! done to both. Their answers and contents must be the same.
//!
//! A model is plain: what waits, and for each flush all its entries, with the place where each is.
//! [`map`], [`queue`] and [`counter`] have the operations of one kind of buffer, and this module
//! those of all. The random tests and the fuzz targets share them, since any bytes are a sequence
//! of operations.

use std::collections::HashMap;
use std::fmt::Debug;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};

use partitioned_buffer_engine::reclaim::settle;
use partitioned_buffer_engine::{
    Access, BatchState, Bound, Closed, Death, Evicted, Flush, Flushed, Frozen, GaveBack, GiveBack, Hasher, Held,
    Limits, Partition, Store,
};

use super::reading::{self, all_of, contents, read_slices};
use super::{assert_law, heaps, set_lanes, TestTerm, HIDDEN, LARGE};

pub mod counter;
mod keys;
pub mod map;
pub mod queue;

/// The most partitions of a buffer.
const PARTITIONS: usize = 3;

/// Whether a term is boxed, and its content.
type Content = (bool, i64);

/// What waits in a partition.
trait Waiting<S: Store>: Default + Debug {
    /// An entry or item.
    type Entry: Copy + PartialEq + Debug;

    fn entry(record: S::Record) -> Self::Entry;

    /// The content of the key or item, which no two entries of a store have in common.
    fn key(entry: Self::Entry) -> Content;

    /// How many entries there are.
    fn len(&self) -> usize;

    /// Whether there is a newer entry for the key of this one.
    fn supersedes(&self, entry: Self::Entry) -> bool;

    /// Whether there is a newer entry for the key of this one, of a writer that has not seen this
    /// one.
    fn overrides(&self, entry: Self::Entry) -> bool {
        self.supersedes(entry)
    }

    /// Whether there is an entry that replaces this one.
    fn replaces(&self, entry: Self::Entry, is_seen: bool) -> bool {
        if is_seen {
            self.supersedes(entry)
        } else {
            self.overrides(entry)
        }
    }

    /// Adds a failed entry.
    fn take_back(&mut self, entry: Self::Entry, attempts: u32);

    /// Each entry with its attempts, in the order in which others take them in.
    fn entries(&self) -> Vec<(Self::Entry, u32)>;

    /// How often each entry has failed. The entries are all that are here, in the order in which
    /// they are read.
    fn attempts(&self, entries: &[Self::Entry]) -> Vec<u32>;
}

/// The entries of an evicted partition, with their attempts: those given up, and the others.
type Left<E> = [Vec<(E, u32)>; 2];

/// A partition as it should be.
struct Model<S: Store, W: Waiting<S>> {
    partition_count: usize,
    waiting: W,
    /// The last flush. It stays until the next one.
    in_flight: Option<InFlight<S, W>>,
}

/// A flush as it should be.
struct InFlight<S: Store, W: Waiting<S>> {
    /// The entries, in the order in which they are read for the first time.
    entries: Vec<Entry<W::Entry>>,
    /// Where each key is among them.
    places: HashMap<Content, usize>,
    /// Whether operations see what is here.
    is_visible: bool,
    /// Whether all later writers saw it.
    is_seen: bool,
    /// Whether failed entries stay.
    keeps_order: bool,
    /// Of the entries in [`Place::Batch`].
    state: BatchState,
    /// How many entries of a batch given up come to the function for dead letters together; 0 for
    /// one with which a reader has died.
    together: usize,
    /// How many entries of a leased batch were given back.
    given_back: usize,
    /// How many batches were claimed or leased.
    calls: usize,
    /// Whether readers take the deferred entries.
    takes_deferred: bool,
    /// Whether an entry has succeeded, after its lease.
    has_success: bool,
    store: PhantomData<S>,
}

/// An entry in flight.
#[derive(Debug)]
struct Entry<E> {
    entry: E,
    attempts: u32,
    place: Place,
    /// Whether it is one of those to be retried first.
    is_retried: bool,
    /// Whether it waits for the others.
    is_deferred: bool,
    is_deleted: bool,
}

/// Where an entry in flight is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// To be read.
    Ahead,
    Batch,
    /// It was given up while the rest of its batch is given back.
    GivenUp,
    /// It failed and stays while the rest of its batch is given back.
    Stays,
    /// It has an outcome.
    Gone,
}

/// What becomes of a batch.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Claimed,
    Succeeds,
    /// It is taken back, to be read in smaller batches.
    IsSplit,
    /// It fails: all of it, or every so many entries.
    Fails {
        every: usize,
        is_counted: bool,
        max_attempts: Option<u32>,
        /// How many entries are given back at a time.
        step: usize,
        /// Whether the reader dies after the first step.
        dies: bool,
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
    /// How the reader before has died.
    death: Option<Death>,
    /// Whether the second half of the batch is put back.
    is_shortened: bool,
}

/// See the module's documentation.
struct Buffer<S: Store<Term = TestTerm>, const SHARDS: usize, W: Waiting<S>> {
    /// The bound of all partitions, if they are bounded.
    bound: Option<Arc<Bound>>,
    partitions: [Partition<S, SHARDS>; PARTITIONS],
    models: [Model<S, W>; PARTITIONS],
    running: usize,
    has_outcomes: bool,
    keeps_order: bool,
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
    /// What it has read at first.
    entries: Vec<W::Entry>,
}

/// Runs `operations` with these lanes. Only one sequence runs at a time, since all heaps of the
/// process are counted.
fn run(lanes: Option<u64>, operations: impl FnOnce() -> usize) -> usize {
    static RUNNING: Mutex<()> = Mutex::new(());
    let _running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    set_lanes(lanes);
    operations()
}

impl<S: Store, W: Waiting<S>> Default for Model<S, W> {
    fn default() -> Self {
        Model { partition_count: 0, waiting: W::default(), in_flight: None }
    }
}

impl<S: Store, W: Waiting<S>> Model<S, W> {
    /// The flush that is to be given: the rest of the last one, or a fresh one of these entries.
    fn flush(&mut self, fresh: Option<Vec<W::Entry>>, has_outcomes: bool, keeps_order: bool) {
        if let Some(entries) = fresh {
            assert!(self.unfinished().is_none(), "a rest comes before a fresh flush");
            let attempts = std::mem::take(&mut self.waiting).attempts(&entries);
            self.in_flight = Some(InFlight { is_seen: has_outcomes, keeps_order, ..InFlight::new(entries, attempts) });
        }
        self.look_into(has_outcomes);
    }

    fn unfinished(&mut self) -> Option<&mut InFlight<S, W>> {
        self.in_flight.as_mut().filter(|flush| !flush.is_finished())
    }

    /// The flush that a reader has.
    fn given(&mut self) -> &mut InFlight<S, W> {
        self.in_flight.as_mut().expect("the partition has given a flush")
    }

    /// Operations see the flush, if the partition has outcomes.
    fn look_into(&mut self, has_outcomes: bool) {
        self.in_flight.iter_mut().for_each(|flush| flush.is_visible = has_outcomes);
    }

    /// The entry of a key that operations see in flight.
    fn find_in_flight(&mut self, key: Content) -> Option<&mut Entry<W::Entry>> {
        self.in_flight.as_mut()?.find(key)
    }

    /// A step of giving the batch back.
    fn give_back(&mut self, step: &GiveBack<'_>) -> GaveBack {
        let Model { waiting, in_flight, .. } = self;
        let flush = in_flight.as_mut().expect("the partition has given a flush");
        let mut result = GaveBack::default();
        let mut given_back = flush.given_back;
        for entry in flush.entries.iter_mut().filter(|entry| entry.place == Place::Batch).take(step.count) {
            entry.place = Place::Gone;
            given_back += 1;
            if step.failed.is_some_and(|failed| !failed.contains(&(given_back - 1))) {
                flush.has_success = true;
                continue;
            }
            entry.attempts += u32::from(step.counted);
            if entry.is_deleted {
                result.superseded += 1;
            } else if step.max_attempts.is_some_and(|max| entry.attempts >= max) {
                result.given_up += 1;
                entry.place = Place::GivenUp;
            } else if flush.keeps_order {
                result.retried += 1;
                entry.place = Place::Stays;
            } else if waiting.replaces(entry.entry, flush.is_seen) {
                result.superseded += 1;
            } else {
                result.retried += 1;
                waiting.take_back(entry.entry, entry.attempts);
            }
        }
        flush.given_back = given_back;
        result.is_done = flush.batch().next().is_none();
        if result.is_done {
            flush.end_giving_back();
        }
        result
    }

    /// Takes out all entries without an outcome: those given up, and the others in the order in
    /// which they are taken in.
    fn evict(&mut self) -> Left<W::Entry> {
        let Model { waiting, in_flight, .. } = std::mem::take(self);
        let (mut given_up, mut in_flight_still) = (Vec::new(), Vec::new());
        for entry in in_flight.iter().flat_map(|flush| &flush.entries) {
            let state = in_flight.as_ref().map(|flush| flush.state);
            let is_batch = entry.place == Place::Batch;
            let is_given_up = is_batch && matches!(state, Some(BatchState::GivenUp | BatchState::Buried));
            let attempts = entry.attempts + u32::from(is_batch && state == Some(BatchState::Leased));
            let is_seen = in_flight.as_ref().is_some_and(|flush| flush.is_seen);
            let is_replaced = waiting.replaces(entry.entry, is_seen);
            if is_given_up || entry.place == Place::GivenUp {
                given_up.push((entry.entry, attempts));
            } else if entry.place != Place::Gone && !entry.is_deleted && !is_replaced {
                in_flight_still.push((entry.entry, attempts));
            }
        }
        let both = [waiting.entries(), in_flight_still];
        let others = if S::KEEPS_ORDER { both.into_iter().rev().flatten().collect() } else { both.concat() };
        [given_up, others]
    }

    /// Takes in entries given up, in the order in which they are read.
    fn take_in_given_up(&mut self, given_up: W, entries: Vec<W::Entry>) {
        assert_eq!(given_up.len(), entries.len());
        let attempts = given_up.attempts(&entries);
        let mut flush = InFlight::new(entries, attempts);
        flush.move_batch(Place::Ahead, Place::Batch);
        flush.state = BatchState::GivenUp;
        self.in_flight = Some(flush);
    }
}

impl<S: Store, W: Waiting<S>> InFlight<S, W> {
    fn new(entries: Vec<W::Entry>, attempts: Vec<u32>) -> Self {
        let places = entries.iter().enumerate().map(|(place, &entry)| (W::key(entry), place)).collect();
        let new = |(entry, attempts)| Entry {
            entry,
            attempts,
            place: Place::Ahead,
            is_retried: false,
            is_deferred: false,
            is_deleted: false,
        };
        let entries = entries.into_iter().zip(attempts).map(new).collect();
        InFlight {
            entries,
            places,
            is_visible: false,
            is_seen: true,
            keeps_order: S::KEEPS_ORDER,
            state: BatchState::Read,
            together: usize::MAX,
            given_back: 0,
            calls: 0,
            takes_deferred: false,
            has_success: false,
            store: PhantomData,
        }
    }

    /// The entry of a key that operations see.
    fn find(&mut self, key: Content) -> Option<&mut Entry<W::Entry>> {
        let InFlight { entries, places, state, is_visible, .. } = self;
        let entry = &mut entries[*places.get(&key).filter(|_place| *is_visible)?];
        let is_live = match entry.place {
            Place::Ahead => true,
            Place::Batch => !matches!(state, BatchState::GivenUp | BatchState::Buried),
            Place::GivenUp | Place::Stays | Place::Gone => false,
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
            Place::GivenUp | Place::Stays => true,
            Place::Gone => false,
        };
        self.entries.iter().filter(is_held).count()
    }

    fn batch(&self) -> impl Iterator<Item = &Entry<W::Entry>> {
        self.entries.iter().filter(|entry| entry.place == Place::Batch)
    }

    /// The batch that a reader has left, which is none if it was not leased, unless the reader has
    /// died of it.
    fn inherit(&mut self, death: Option<Death>) -> Option<(BatchState, usize)> {
        if self.state == BatchState::Read && death.is_none() {
            self.retry(0);
        }
        let together = self.together();
        if together == 0 {
            return None;
        }
        match (self.state, death) {
            (BatchState::Read, _) => self.state = BatchState::Leased,
            (BatchState::GivenUp, Some(_)) | (BatchState::Buried, Some(Death::Killed)) => {
                self.state = if self.together == 0 { BatchState::Buried } else { BatchState::GivenUp };
                self.together = if together == 1 { 0 } else { (together / 4).max(1) };
            }
            _ => {}
        }
        Some((self.state, self.together()))
    }

    /// How many entries of the batch have their outcome together.
    fn together(&self) -> usize {
        let length = self.batch().count();
        if matches!(self.state, BatchState::GivenUp | BatchState::Buried) {
            length.min(self.together.max(1))
        } else {
            length
        }
    }

    /// The entries of the batch from a number on come first from now on.
    fn retry(&mut self, from: usize) {
        for entry in self.entries.iter_mut().filter(|entry| entry.place == Place::Batch).skip(from) {
            (entry.place, entry.is_retried) = (Place::Ahead, true);
        }
    }

    /// The function for dead letters is called, if the batch is given up.
    fn bury(&mut self) {
        if self.state == BatchState::GivenUp {
            self.state = BatchState::Buried;
        }
    }

    fn move_batch(&mut self, from: Place, to: Place) {
        self.entries.iter_mut().filter(|entry| entry.place == from).for_each(|entry| entry.place = to);
    }

    /// The batch has succeeded, or was claimed. One that is given back in part cannot.
    fn end_batch(&mut self) {
        if self.given_back == 0 {
            let together = self.together();
            self.has_success |= self.state == BatchState::Leased && together > 0;
            let batch = self.entries.iter_mut().filter(|entry| entry.place == Place::Batch);
            batch.take(together).for_each(|entry| entry.place = Place::Gone);
            self.together = self.together.max(1);
            let is_left = self.batch().next().is_some();
            self.state = if is_left { BatchState::GivenUp } else { BatchState::Read };
        }
    }

    /// The last step of giving the batch back.
    fn end_giving_back(&mut self) {
        self.given_back = 0;
        self.entries.iter_mut().filter(|entry| entry.place == Place::Stays).for_each(|entry| entry.is_retried = true);
        self.move_batch(Place::Stays, Place::Ahead);
        self.move_batch(Place::GivenUp, Place::Batch);
        self.together = usize::MAX;
        self.state = if self.batch().next().is_some() { BatchState::GivenUp } else { BatchState::Read };
    }

    /// The next batch; `None` if there is one with the processor. After a pause failed entries wait
    /// for the others.
    fn read(
        &mut self,
        size: usize,
        has_paused: bool,
        is_superseded: impl Fn(W::Entry) -> bool,
    ) -> Option<Vec<W::Entry>> {
        if self.inherit(None).is_some() {
            return None;
        }
        let mut batch = Vec::new();
        let mut defers = has_paused && !self.keeps_order && !self.takes_deferred;
        loop {
            for is_retried in [true, false] {
                let ahead = |entry: &&mut Entry<W::Entry>| {
                    entry.place == Place::Ahead && entry.is_retried == is_retried && !entry.is_deferred
                };
                for entry in self.entries.iter_mut().filter(ahead) {
                    if entry.is_deleted || is_superseded(entry.entry) {
                        entry.place = Place::Gone;
                    } else if defers && entry.attempts > 0 {
                        entry.is_deferred = true;
                    } else if batch.len() >= size {
                        return Some(batch);
                    } else {
                        entry.place = Place::Batch;
                        batch.push(entry.entry);
                    }
                }
            }
            let deferred = |entry: &&mut Entry<W::Entry>| entry.place == Place::Ahead && entry.is_deferred;
            let fewest = self.entries.iter_mut().filter(deferred).map(|entry| entry.attempts).min();
            if fewest.is_none() || !batch.is_empty() {
                return Some(batch);
            }
            for entry in self.entries.iter_mut().filter(deferred).filter(|entry| Some(entry.attempts) == fewest) {
                (entry.is_retried, entry.is_deferred) = (true, false);
            }
            (defers, self.takes_deferred) = (false, true);
        }
    }
}

impl<S: Store<Term = TestTerm>, const SHARDS: usize, W: Waiting<S>> Buffer<S, SHARDS, W> {
    fn start(hasher: &Hasher, running: usize, has_outcomes: bool) -> Self {
        let bound = Arc::new(Bound::default());
        let partitions: [Partition<S, SHARDS>; PARTITIONS] =
            std::array::from_fn(|_| Partition::with_bound(hasher, &bound));
        let is_bounded = running % 2 == 1;
        if is_bounded {
            bound.set_limits(Limits { entries: Some(usize::MAX / 2), bytes: Some(usize::MAX / 2) });
            partitions.iter().for_each(|partition| partition.set_bounded(true));
        }
        let mut buffer = Buffer {
            bound: is_bounded.then_some(bound),
            partitions,
            models: Default::default(),
            running: 0,
            has_outcomes,
            keeps_order: S::KEEPS_ORDER,
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
                let left = self.models[partition].in_flight.as_ref().map_or(0, InFlight::held);
                let size = match operation % 32 {
                    22..=23 => usize::from(b) % 16,
                    24 => usize::from(b),
                    25 => left.saturating_sub(usize::from(b) % 4),
                    _ => usize::MAX,
                };
                self.process(partition, Reading::new(size, more), fate(operation, b));
            }
            28 => self.read_again(),
            29 => self.restart(1 + partition, self.has_outcomes != (b % 4 == 0)),
            30 => self.open_or_close(partition, b < 128),
            _ => self.check_sizes(),
        }
    }

    /// A plain caller of the running partitions.
    fn access(&self) -> Access {
        Access::by_count(self.running as u32)
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
                let frozen = flush.entries().expect("it has no outcome");
                let entries = contents(&frozen, W::entry);
                self.slow_reader = Some(SlowReader { frozen, entries: entries.clone() });
                (Some(flush), Some(entries))
            }
        };
        let model = &mut self.models[number];
        model.flush(fresh, self.has_outcomes, self.keeps_order);
        assert_eq!(flush.is_some(), model.unfinished().is_some(), "a rest is given, and nothing else is");
        if flush.is_none() {
            assert_eq!(model.waiting.len(), 0, "what waits is given");
        }
        flush
    }

    /// Reads a batch of a partition's flush, or takes the one that a reader has left, and settles
    /// it.
    fn process(&mut self, number: usize, reading: Reading, fate: Fate) {
        let Some(flush) = self.flush(number) else { return };
        self.readers += 1;
        assert_eq!(flush.inherit(self.readers, reading.death), self.models[number].given().inherit(reading.death));
        if reading.is_resumed && self.wait_together(number, &flush) {
            self.partitions[number].settle(&flush);
            self.check(number, &flush);
            return;
        }
        if let Some(mut batch) = self.read(number, &flush, reading) {
            if reading.is_shortened {
                batch.truncate(batch.len() / 2);
                flush.shorten(self.readers, batch.len());
                self.models[number].given().retry(batch.len());
            }
            if !self.call(number, &flush, &batch, fate) {
                return;
            }
        }
        self.settle(number, &flush, fate);
        self.partitions[number].settle(&flush);
        self.check(number, &flush);
    }

    /// Lets all entries of a flush wait, if each has failed, and returns whether it did.
    fn wait_together(&mut self, number: usize, flush: &Arc<Flush<S>>) -> bool {
        if !self.partitions[number].lease_rest(flush, self.readers, usize::MAX, true) {
            return false;
        }
        let model = self.models[number].given();
        assert!(!model.keeps_order && model.batch().next().is_none());
        for entry in model.entries.iter_mut().filter(|entry| entry.place == Place::Ahead) {
            assert!(model.has_success || entry.attempts > 0 || entry.is_deleted);
            entry.place = Place::Batch;
        }
        model.state = BatchState::Leased;
        let step = GiveBack { counted: false, ..all_of(self.readers) };
        assert_eq!(self.partitions[number].give_back(flush, step), self.models[number].give_back(&step));
        true
    }

    /// Reads the next batch, unless there is one with the processor.
    fn read(&mut self, number: usize, flush: &Flush<S>, reading: Reading) -> Option<Vec<W::Entry>> {
        let Reading { size, slice, is_resumed, .. } = reading;
        let is_resumed = is_resumed && self.has_outcomes && flush.leaves_out();
        let partition = &self.partitions[number];
        let isolation = partition.learned().isolation;
        let is_superseded = |held: &Held<'_, S>| is_resumed && partition.supersedes(held);
        let batch = read_slices(flush, self.readers, size, slice, is_superseded, W::entry);
        let Model { waiting, in_flight, .. } = &mut self.models[number];
        let flush = in_flight.as_mut().expect("the partition has given a flush");
        let is_seen = flush.is_seen;
        let is_superseded = |entry| is_resumed && waiting.replaces(entry, is_seen);
        assert_eq!(batch, flush.read(size.min(isolation.limit), isolation.has_paused, is_superseded));
        batch
    }

    /// Claims or leases a batch. Whether it has to be settled.
    fn call(&mut self, number: usize, flush: &Flush<S>, batch: &[W::Entry], fate: Fate) -> bool {
        let (reader, now) = (self.readers, self.operations as i64);
        let oldest = self.models[number].given();
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
    fn settle(&mut self, number: usize, flush: &Arc<Flush<S>>, fate: Fate) {
        let (reader, now) = (self.readers, self.operations as i64);
        let model = &mut self.models[number];
        match fate {
            Fate::IsLost | Fate::IsLeft => {}
            Fate::IsSplit => {
                let flight = model.given();
                let is_leased = flight.state == BatchState::Leased;
                let length = flight.batch().count();
                assert_eq!(flush.split(reader + 1), None, "a batch belongs to its reader");
                assert_eq!(flush.split(reader), is_leased.then_some((length, (length / 4).max(1))));
                if is_leased {
                    flight.retry(0);
                    flight.end_giving_back();
                }
            }
            Fate::Claimed | Fate::Succeeds => {
                flush.succeed(reader + 1);
                flush.succeed(reader);
                model.given().end_batch();
            }
            Fate::Fails { every, is_counted: counted, max_attempts, step, dies } => {
                let length = model.given().given_back + model.given().batch().count();
                let failed: Vec<usize> = (0..length).step_by(every).collect();
                let failed = (every > 1).then_some(&failed[..]);
                let step = GiveBack { failed, counted, max_attempts, count: step, ..all_of(reader) };
                let nothing = GaveBack { is_done: true, ..GaveBack::default() };
                let give_back = |step| self.partitions[number].give_back(flush, step);
                assert_eq!(give_back(all_of(reader + 1)), nothing, "a batch belongs to its reader");
                if model.given().state != BatchState::Leased {
                    assert_eq!(give_back(step), nothing, "what is given up is not given back");
                    flush.bury(now);
                    model.given().bury();
                    assert!(model.given().state == BatchState::Read || flush.seen().called_at == Some(now));
                    return;
                }
                loop {
                    let gave_back = give_back(step);
                    assert_eq!(gave_back, model.give_back(&step));
                    if gave_back.is_done || dies {
                        return;
                    }
                    flush.succeed(reader);
                }
            }
        }
    }

    /// Compares what a flush tells of itself.
    fn check(&mut self, number: usize, flush: &Flush<S>) {
        let oldest = self.models[number].in_flight.as_ref().expect("the partition has given a flush");
        let batch: Vec<&Entry<W::Entry>> = oldest.batch().collect();
        assert_eq!(flush.attempts(), batch.iter().map(|entry| entry.attempts).max().unwrap_or(0));
        let expected = batch.iter().take(oldest.together()).map(|entry| entry.entry);
        assert!(reading::batch(flush, W::entry).into_iter().eq(expected));
        let is_finished = oldest.is_finished();
        assert_eq!(flush.seen().left == 0, is_finished);
        assert_eq!(flush.entries().is_none(), is_finished, "the last outcome frees the stores");
    }

    /// Checks that what a slow reader reads has not changed, whatever has been written since, but
    /// that some of it may be freed.
    fn read_again(&mut self) {
        self.operations += 1;
        if let Some(SlowReader { frozen, entries }) = &self.slow_reader {
            let mut first = entries.iter();
            let rest = contents(frozen, W::entry);
            assert!(rest.iter().all(|entry| first.any(|other| other == entry)), "{rest:?} of {entries:?}");
        }
    }

    /// Restarts with this number of partitions, as a supervisor does, with outcomes or without.
    fn restart(&mut self, running: usize, has_outcomes: bool) {
        self.operations += 1;
        if running != self.running {
            let evicted: Vec<_> = (0..self.running)
                .map(|number| (self.partitions[number].evict(), self.models[number].evict()))
                .collect();
            for (evicted, [_given_up, entries]) in &evicted {
                for leftover in evicted.entries() {
                    self.partitions[partition_of(leftover.term().content(), running)].take_in(&leftover);
                }
                for &(entry, attempts) in entries {
                    self.models[partition_of(W::key(entry), running)].waiting.take_back(entry, attempts);
                }
            }
            (0..running).for_each(|number| self.take_in_given_up(number, running, &evicted));
            (1..self.running).for_each(|number| self.partitions[0].adopt_counts(&self.partitions[number]));
            self.running = running;
        }
        self.has_outcomes = has_outcomes;
        self.keeps_order = S::KEEPS_ORDER && self.operations % 3 != 0;
        for number in 0..running {
            self.open_or_close(number, false);
            self.partitions[number].set_outcomes(has_outcomes);
            self.partitions[number].set_order(self.keeps_order);
            let keeps_order = self.keeps_order;
            self.models[number].in_flight.iter_mut().for_each(|flush| flush.keeps_order = keeps_order);
            self.models[number].look_into(has_outcomes);
            self.open_or_close(number, true);
        }
    }

    /// Lets a partition take in the entries given up that belong to it.
    fn take_in_given_up(&mut self, number: usize, running: usize, evicted: &[(Evicted<S>, Left<W::Entry>)]) {
        let is_own = |key: Content| partition_of(key, running) == number;
        let all = evicted.iter().flat_map(|(evicted, _entries)| evicted.given_up());
        let leftovers: Vec<_> = all.filter(|leftover| is_own(leftover.term().content())).collect();
        let mut given_up = W::default();
        for &(entry, attempts) in evicted.iter().flat_map(|(_evicted, [given_up, _others])| given_up) {
            if is_own(W::key(entry)) {
                given_up.take_back(entry, attempts);
            }
        }
        assert_eq!(leftovers.len(), given_up.len());
        if leftovers.is_empty() {
            return;
        }
        self.partitions[number].take_in_given_up(&leftovers);
        let flush = self.partitions[number].in_flight().expect("it has a batch given up");
        let frozen = flush.entries().expect("the batch has no outcome");
        self.models[number].take_in_given_up(given_up, contents(&frozen, W::entry));
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
            assert_eq!(self.partitions[number].len(self.access()), self.expected(number, waiting));
            let held = model.in_flight.as_ref().map_or(0, InFlight::held);
            assert_eq!(self.partitions[number].held(), waiting + held);
        }
        assert_law(&self.partitions, self.bound.as_deref());
    }

    /// Lets the rest succeed, after which all memory must be free. Returns the number of
    /// operations.
    fn finish(mut self) -> usize {
        self.check_sizes();
        self.read_again();
        let all = Reading::all();
        for number in 0..PARTITIONS {
            let rest =
                Fate::Fails { every: usize::MAX, is_counted: true, max_attempts: None, step: usize::MAX, dies: false };
            while self.flush(number).is_some() {
                // Only the last step ends a batch that is given back in part.
                let fate = if self.models[number].given().given_back > 0 { rest } else { Fate::Succeeds };
                self.process(number, all, fate);
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
        let death = [None, None, Some(Death::Killed), None, Some(Death::TimedOut)][number % 5];
        Reading { size: size.max(1), slice, is_resumed: number % 2 == 0, death, is_shortened: number % 7 == 3 }
    }

    /// All entries at once, by the reader after one that has not died.
    fn all() -> Self {
        Reading { size: usize::MAX, slice: usize::MAX, is_resumed: false, death: None, is_shortened: false }
    }
}

/// The fate of a batch that the highest bits of an operation and a byte choose.
fn fate(operation: u8, b: u8) -> Fate {
    let max_attempts = [None, Some(3), Some(1), Some(0)][usize::from(b / 8) % 4];
    let step = if b % 3 == 0 { usize::MAX } else { 1 + usize::from(b % 8) };
    let dies = b % 16 == 1;
    match operation / 32 {
        0..=1 => Fate::Claimed,
        2 => Fate::Succeeds,
        3 => Fate::IsLost,
        4 if b % 2 == 0 => Fate::IsLeft,
        4 => Fate::IsSplit,
        5 => Fate::Fails { every: 1, is_counted: true, max_attempts, step, dies },
        6 => Fate::Fails { every: 1 + usize::from(b % 8), is_counted: true, max_attempts, step, dies },
        _ => Fate::Fails { every: 1 + usize::from(b % 2), is_counted: false, max_attempts, step, dies },
    }
}

/// The partition of a key or item.
fn partition_of((_is_boxed, content): Content, running: usize) -> usize {
    content as usize % running
}
