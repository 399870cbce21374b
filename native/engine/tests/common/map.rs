//! A partition of a map with outcomes, and what a processor does with it.

use std::sync::Arc;

use partitioned_buffer_engine::generation::Record;
use partitioned_buffer_engine::{Flush, Generation, GiveBack, Hasher, Heap, MapPartition, Stored};

use super::reading::{all_of, flush, give_back, read, read_resumed, GivenBack};
use super::{content, hash, to_version, version_number, TestHeap, TestTerm, ONE};

/// An entry that a reader has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Entry {
    pub key: i64,
    pub value: i64,
    pub version: i64,
    pub updates: u64,
}

pub fn entry(record: Record<TestTerm>) -> Entry {
    let Record { key, value, version, updates } = record;
    Entry { key: content(key).1, value: content(value).1, version: version_number(version), updates }
}

pub type MapFlush = Flush<Generation<TestHeap>>;

/// One of the partitions of a map. Keys, values and versions are numbers, the versions beyond a
/// bound are terms.
pub struct Map {
    pub partition: MapPartition<TestHeap>,
    pub hasher: Hasher,
}

impl Map {
    /// A partition that is open with outcomes, alone.
    pub fn start() -> Self {
        let map = Map::new(&Hasher::new());
        map.open(1);
        map
    }

    /// A closed partition.
    pub fn new(hasher: &Hasher) -> Self {
        Map { partition: MapPartition::new(hasher), hasher: hasher.clone() }
    }

    /// Opens it with outcomes.
    pub fn open(&self, partition_count: u32) {
        self.partition.set_outcomes(true);
        self.partition.open(partition_count);
    }

    pub fn put(&self, key: i64, value: i64) {
        let mut caller = TestHeap::new();
        let (key, value) = (caller.boxed(key), caller.boxed(value));
        self.partition.put(ONE, hash(&self.hasher, key), &key.parcel(), &value.parcel()).unwrap();
    }

    /// Puts keys, each with a value of its own number.
    pub fn put_all(&self, keys: impl IntoIterator<Item = i64>) {
        keys.into_iter().for_each(|key| self.put(key, key));
    }

    /// Whether the value is stored.
    pub fn put_new(&self, key: i64, value: i64) -> bool {
        let mut caller = TestHeap::new();
        let (key, value) = (caller.boxed(key), caller.boxed(value));
        let stored = self.partition.put_new(ONE, hash(&self.hasher, key), &key.parcel(), &value.parcel());
        stored.unwrap() == Stored::Stored
    }

    /// Whether the value is stored.
    pub fn put_newer(&self, key: i64, value: i64, number: i64) -> bool {
        let mut caller = TestHeap::new();
        let (key, value, number) = (caller.boxed(key), caller.boxed(value), to_version(&mut caller, number));
        let (value, number) = value.parcel_with(number);
        let stored = self.partition.put_newer(ONE, hash(&self.hasher, key), &key.parcel(), &value, number);
        stored.unwrap() == Stored::Stored
    }

    pub fn get(&self, key: i64) -> Option<i64> {
        let mut caller = TestHeap::new();
        let key = caller.boxed(key);
        self.partition.get(ONE, hash(&self.hasher, key), key, |value| value.term().content().1).unwrap()
    }

    pub fn delete(&self, key: i64) {
        let mut caller = TestHeap::new();
        let key = caller.boxed(key);
        self.partition.delete(ONE, hash(&self.hasher, key), key).unwrap();
    }

    /// How many entries wait.
    pub fn len(&self) -> usize {
        self.partition.len(ONE).unwrap()
    }

    pub fn flush(&self) -> Option<Arc<MapFlush>> {
        flush(&self.partition)
    }

    /// A batch of at most `size` entries of a flush, which the processor gets.
    pub fn lease(&self, flush: &Arc<MapFlush>, size: usize) -> Vec<Entry> {
        self.lease_read(flush, read(flush, 1, size, entry))
    }

    /// The same without what newer writes have replaced.
    pub fn lease_resumed(&self, flush: &Arc<MapFlush>, size: usize) -> Vec<Entry> {
        self.lease_read(flush, read_resumed(&self.partition, flush, 1, size, entry))
    }

    fn lease_read(&self, flush: &Arc<MapFlush>, read: Option<Vec<Entry>>) -> Vec<Entry> {
        let batch = read.expect("no other batch is with the processor");
        assert!(flush.lease(1, 0));
        self.partition.settle(flush);
        batch
    }

    /// Flushes, and leases all that the flush has.
    pub fn lease_all(&self) -> (Arc<MapFlush>, Vec<Entry>) {
        let flush = self.flush().expect("there are entries");
        let batch = self.lease_resumed(&flush, usize::MAX);
        (flush, batch)
    }

    pub fn succeed(&self, flush: &Arc<MapFlush>) {
        flush.succeed(1);
        self.partition.settle(flush);
    }

    /// The processor has failed with these entries of the batch, by their numbers, or with all.
    pub fn fail(&self, flush: &Arc<MapFlush>, failed: Option<&[usize]>, max_attempts: Option<u32>) -> GivenBack {
        self.give_back(flush, failed, true, max_attempts)
    }

    pub fn give_back(
        &self,
        flush: &Arc<MapFlush>,
        failed: Option<&[usize]>,
        counted: bool,
        max_attempts: Option<u32>,
    ) -> GivenBack {
        give_back(&self.partition, flush, GiveBack { failed, counted, max_attempts, ..all_of(1) })
    }

    /// All that is left, with which the processor succeeds. In the order of its keys.
    pub fn succeed_with_all(&self) -> Vec<Entry> {
        let mut all = Vec::new();
        while let Some(flush) = self.flush() {
            all.extend(self.lease_resumed(&flush, usize::MAX));
            self.succeed(&flush);
        }
        assert_eq!(self.partition.held(), 0);
        all.sort_unstable();
        all
    }
}
