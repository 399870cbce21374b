//! The operations on the partitions of a counter.

use std::sync::Arc;

use partitioned_buffer_engine::partition::TABLE_SHARDS;
use partitioned_buffer_engine::tally::Counted;
use partitioned_buffer_engine::{Access, Closed, CounterPartition, Heap, Stored, Tally};

use crate::common::{hash, TestHeap, TestTerm};

/// An entry that a reader has read.
#[derive(Clone, Debug, PartialEq)]
pub struct Delivery {
    pub key: i64,
    pub sum: i128,
    pub count: u128,
    /// The partition's copy of the key.
    pub copy: TestTerm,
}

pub type Buffer = super::Buffer<Tally<TestHeap>, TABLE_SHARDS, Delivery>;

pub type Lease = super::Lease<Tally<TestHeap>, Delivery>;

/// A buffer of so many partitions, with outcomes or without.
pub fn start(running: u32, has_outcomes: bool) -> Arc<Buffer> {
    let delivery = |Counted { key, sum, count }: Counted<TestTerm>| Delivery {
        key: key.term.content().1,
        sum,
        count,
        copy: key.term,
    };
    Buffer::start(running, has_outcomes, delivery, |key| key)
}

impl Buffer {
    /// Does `operation` with a key in its partition.
    fn operate_on<R>(
        &self,
        key: i64,
        operation: impl Fn(&CounterPartition<TestHeap>, Access, TestTerm) -> Result<R, Closed>,
    ) -> Result<R, Closed> {
        let mut caller = TestHeap::new();
        let term = caller.boxed(key);
        self.operate(key, |partition, among| operation(partition, among, term))
    }

    pub fn add(&self, key: i64, amount: i64) -> Stored {
        let add = |partition: &CounterPartition<TestHeap>, among, key: TestTerm| {
            partition.add(among, hash(&self.hasher, key), &key.parcel(), amount)
        };
        self.operate_on(key, add).expect("the buffer runs")
    }

    pub fn sum(&self, key: i64) -> Option<i128> {
        let sum =
            |partition: &CounterPartition<TestHeap>, among, key| partition.sum(among, hash(&self.hasher, key), key);
        self.operate_on(key, sum).expect("the buffer runs")
    }

    pub fn delete(&self, key: i64) {
        let delete =
            |partition: &CounterPartition<TestHeap>, among, key| partition.delete(among, hash(&self.hasher, key), key);
        self.operate_on(key, delete).expect("the buffer runs");
    }

    /// The sum of the sums, and of the counts, of a key that the processor has succeeded with.
    pub fn sunk(&self, key: i64) -> (i128, u128) {
        let sink = self.sink();
        let own = || sink.iter().filter(|entry| entry.key == key);
        (own().map(|entry| entry.sum).sum(), own().map(|entry| entry.count).sum())
    }
}
