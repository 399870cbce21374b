//! A partition of a counter with outcomes, and its processor.

use std::sync::Arc;

use partitioned_buffer_engine::tally::Counted;
use partitioned_buffer_engine::{CounterPartition, Flush, Hasher, Heap, Tally};

use super::reading::{flush, read_resumed};
use super::{content, hash, TestHeap, TestTerm, ONE};

/// The key of an entry, its sum, and how often something was added.
pub type Sum = (i64, i128, u128);

pub fn sum(record: Counted<TestTerm>) -> Sum {
    (content(record.key).1, record.sum, record.count)
}

pub type CounterFlush = Flush<Tally<TestHeap>>;

/// One of the partitions of a counter. Keys are numbers.
pub struct Counter {
    pub partition: CounterPartition<TestHeap>,
    pub hasher: Hasher,
}

impl Counter {
    /// A partition that is open with outcomes, alone.
    pub fn start() -> Self {
        let counter = Counter::new(&Hasher::new());
        counter.open();
        counter
    }

    /// A closed partition.
    pub fn new(hasher: &Hasher) -> Self {
        Counter { partition: CounterPartition::new(hasher), hasher: hasher.clone() }
    }

    pub fn open(&self) {
        self.partition.set_outcomes(true);
        self.partition.open(1);
    }

    pub fn add(&self, key: i64, amount: i64) {
        let mut caller = TestHeap::new();
        let key = caller.boxed(key);
        self.partition.add(ONE, hash(&self.hasher, key), &key.parcel(), amount).unwrap();
    }

    pub fn add_counted(&self, key: i64, amount: i64, count: u64) {
        let mut caller = TestHeap::new();
        let key = caller.boxed(key);
        self.partition.add_counted(ONE, hash(&self.hasher, key), &key.parcel(), amount, count).unwrap();
    }

    pub fn sum(&self, key: i64) -> Option<i128> {
        let mut caller = TestHeap::new();
        let key = caller.boxed(key);
        self.partition.sum(ONE, hash(&self.hasher, key), key).unwrap()
    }

    pub fn delete(&self, key: i64) {
        let mut caller = TestHeap::new();
        let key = caller.boxed(key);
        self.partition.delete(ONE, hash(&self.hasher, key), key).unwrap();
    }

    /// Flushes, and leases all entries of the flush.
    pub fn lease_all(&self) -> (Arc<CounterFlush>, Vec<Sum>) {
        let flush = flush(&self.partition).expect("there are entries");
        let mut batch = read_resumed(&self.partition, &flush, 1, usize::MAX, sum).unwrap();
        assert!(flush.lease(1, 0));
        batch.sort_unstable();
        (flush, batch)
    }
}
