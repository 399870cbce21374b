//! Buffers of partitions, and models of their waiting entries and their flushes. Long sequences of operations, read from
//! bytes, are done to both. Their answers and contents must be the same.
//!
//! The random tests and the fuzz targets share this module, since any bytes are a sequence of operations. [`map`] and
//! [`queue`] have the operations of one kind of buffer, and this module those of all.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use partitioned_buffer_engine::reclaim::settle;
use partitioned_buffer_engine::{Closed, Flush, Flushed, Frozen, Hasher, Partition, Store};

use super::reading::read;
use super::{heaps, set_lanes, HIDDEN, LARGE};

pub mod map;
pub mod queue;

/// The most partitions of a buffer.
const PARTITIONS: usize = 3;

/// The contents of a store, or of a part of one.
trait Contents<S: Store>: Default + PartialEq + Debug {
    /// Reads records, in their order.
    fn read(records: impl Iterator<Item = S::Record>) -> Self;

    /// The number of entries or items.
    fn len(&self) -> usize;

    /// Removes what was claimed, all of which must be there.
    fn remove(&mut self, claimed: &Self);
}

/// A partition as it should be.
#[derive(Default)]
struct Model<C> {
    partition_count: usize,
    waiting: C,
    /// The unclaimed rests of the flushes, the oldest first.
    in_flight: VecDeque<C>,
}

/// See the module's documentation.
struct Buffer<S: Store, const SHARDS: usize, C> {
    partitions: [Partition<S, SHARDS>; PARTITIONS],
    models: [Model<C>; PARTITIONS],
    running: usize,
    /// The number of the last value: no two values are the same.
    writes: i64,
    operations: usize,
    /// A reader that still reads a flush after its last claim, with its end and its contents at first.
    reader: Option<(Arc<Frozen<S>>, usize, C)>,
}

/// Runs `operations` with these lanes. Only one sequence runs at a time, since all heaps of the process are counted.
fn run(lanes: Option<u64>, operations: impl FnOnce() -> usize) -> usize {
    static RUNNING: Mutex<()> = Mutex::new(());
    let _running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    set_lanes(lanes);
    operations()
}

impl<S: Store, const SHARDS: usize, C: Contents<S>> Buffer<S, SHARDS, C> {
    fn start(hasher: &Hasher, running: usize) -> Self {
        let mut buffer = Buffer {
            partitions: std::array::from_fn(|_| Partition::new(hasher)),
            models: Default::default(),
            running: 0,
            writes: 0,
            operations: 0,
            reader: None,
        };
        buffer.restart(running);
        buffer
    }

    /// Does an operation that all kinds have: those from number 24 on.
    fn step(&mut self, operation: u8, a: u8, b: u8) {
        let partition = usize::from(a) % PARTITIONS;
        match operation % 32 {
            24 => self.flush(partition, |_left| usize::from(b)),
            25 => self.flush(partition, |left| left.saturating_sub(usize::from(b) % 4)),
            26..=27 => self.flush(partition, |_left| usize::MAX),
            28 => self.read_again(),
            29 => self.restart(1 + partition),
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

    /// Compares a flush of a partition with the model, and claims a batch of a size that is given how many entries are left.
    fn flush(&mut self, number: usize, size: impl Fn(usize) -> usize) {
        self.operations += 1;
        let model = &mut self.models[number];
        let flushed = match self.partitions[number].flush() {
            None => {
                assert!(
                    model.in_flight.is_empty() && model.waiting.len() == 0,
                    "nothing is flushed though there is something"
                );
                return;
            }
            Some(Flushed::Rest(flush)) => flush,
            Some(Flushed::Fresh(flush)) => {
                assert!(model.in_flight.is_empty(), "a rest comes before a fresh flush");
                model.in_flight.push_back(std::mem::take(&mut model.waiting));
                flush
            }
        };
        let (start, end) = (flushed.position(), flushed.end());
        let rest = &mut model.in_flight[0];
        let frozen = flushed.entries().expect("not all is claimed");
        let between = |start, end| C::read((start..end).filter_map(|position| frozen.record(position)));
        assert_eq!(*rest, between(start, end), "the unclaimed rest of a flush");
        assert!(frozen.record(end).is_none(), "there is no record after the end");
        if start == 0 {
            self.reader = Some((frozen.clone(), end, between(0, end)));
        }

        let size = size(rest.len());
        let batch =
            if size == 0 { Vec::new() } else { read(&flushed, 1, size, |record| record).expect("no other reader") };
        assert_eq!(batch.len(), size.min(rest.len()), "a batch is as large as it may be");
        rest.remove(&C::read(batch.iter().copied()));
        assert_eq!(*rest, between(flushed.position(), end), "a batch is what comes next");
        self.claim(number, &flushed, batch.len());
    }

    fn claim(&mut self, number: usize, flushed: &Arc<Flush<S>>, length: usize) {
        let position = flushed.position();
        if length > 0 {
            assert!(!flushed.claim(2, 0), "a batch is claimed by its reader");
            assert!(flushed.claim(1, 0));
            assert!(!flushed.claim(1, 0), "nothing is claimed twice");
        }
        assert_eq!(flushed.position(), position);
        let is_finished = self.models[number].in_flight[0].len() == 0;
        assert_eq!(flushed.entries().is_none(), is_finished);
        if is_finished {
            self.models[number].in_flight.pop_front();
        }
    }

    /// Checks that the contents of a reader have not changed, whatever has been written or freed since.
    fn read_again(&mut self) {
        self.operations += 1;
        if let Some((frozen, end, first)) = &self.reader {
            assert_eq!(C::read((0..*end).filter_map(|position| frozen.record(position))), *first);
        }
    }

    /// Restarts with this number of partitions, as a supervisor does.
    fn restart(&mut self, running: usize) {
        self.operations += 1;
        if running != self.running {
            let held: Vec<_> = (0..self.running)
                .map(|number| {
                    let model = std::mem::take(&mut self.models[number]);
                    let active = Some(model.waiting).filter(|active| active.len() > 0);
                    (self.partitions[number].evict(), model.in_flight.into_iter().chain(active).collect::<Vec<_>>())
                })
                .collect();
            for (number, (evicted, in_flight)) in (0..running).cycle().zip(held) {
                assert_eq!(evicted.len(), in_flight.len(), "the number of evicted flushes");
                self.partitions[number].adopt(evicted);
                self.models[number].in_flight.extend(in_flight);
            }
            self.running = running;
        }
        (0..running).for_each(|number| self.open_or_close(number, true));
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
        for number in 0..PARTITIONS {
            let expected = self.expected(number, self.models[number].waiting.len());
            assert_eq!(self.partitions[number].len(self.running as u32), expected);
        }
    }

    /// Flushes the rest, after which all memory must be free. Returns the number of operations.
    fn finish(mut self) -> usize {
        self.check_sizes();
        self.read_again();
        for number in 0..PARTITIONS {
            while !self.models[number].in_flight.is_empty() || self.models[number].waiting.len() > 0 {
                self.flush(number, |_left| usize::MAX);
            }
            self.flush(number, |_left| usize::MAX);
        }
        self.read_again();
        self.reader = None;
        settle();
        assert_eq!(heaps(), 0, "no heap outlives its claim");
        self.operations
    }
}
