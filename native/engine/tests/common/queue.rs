//! A partition of a queue with outcomes, and its processor.

use std::sync::Arc;

use partitioned_buffer_engine::{Flush, Hasher, Heap, Log, QueuePartition, Resident};

use super::reading::{flush, read};
use super::{content, TestHeap, TestTerm, ONE};

pub type QueueFlush = Flush<Log<TestHeap>>;

pub fn item(item: Resident<TestTerm>) -> i64 {
    content(item).1
}

/// A closed partition.
pub fn closed() -> QueuePartition<TestHeap> {
    QueuePartition::new(&Hasher::new())
}

/// A partition that is open with outcomes, alone.
pub fn start() -> QueuePartition<TestHeap> {
    let queue = closed();
    open(&queue);
    queue
}

pub fn open(queue: &QueuePartition<TestHeap>) {
    queue.set_outcomes(true);
    queue.open(1);
}

pub fn push_all(queue: &QueuePartition<TestHeap>, items: impl IntoIterator<Item = i64>) {
    for item in items {
        let mut caller = TestHeap::new();
        queue.push(ONE, &caller.boxed(item).parcel()).unwrap();
    }
}

/// Leases at most `size` items of the queue's flush.
pub fn lease(queue: &QueuePartition<TestHeap>, size: usize) -> (Arc<QueueFlush>, Vec<i64>) {
    let flush = flush(queue).expect("there are items");
    let batch = read(&flush, 1, size, item).unwrap();
    assert!(flush.lease(1, 0));
    (flush, batch)
}
