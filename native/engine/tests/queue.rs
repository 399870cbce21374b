//! The partition of a queue: items come out once, in the order in which they went in.
#![allow(missing_docs, clippy::missing_docs_in_private_items, clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::sync::Arc;
use std::thread;

use common::reading::{flush, read};
use common::{TestHeap, TestTerm};
use partitioned_buffer_engine::{Closed, Flush, GivenBack, Hasher, Heap, Log, QueuePartition};

fn partition() -> QueuePartition<TestHeap> {
    let partition = QueuePartition::new(&Hasher::new());
    partition.open(1);
    partition
}

fn push(partition: &QueuePartition<TestHeap>, item: i64) -> Result<(), Closed> {
    let mut caller = TestHeap::new();
    partition.push(1, &caller.boxed(item).parcel())
}

fn items(flush: &Flush<Log<TestHeap>>) -> Vec<i64> {
    let frozen = flush.entries().expect("not all is claimed");
    let positions = flush.position()..flush.end();
    positions.map(|at| frozen.record(at).expect("no item is ever deleted").content().1).collect()
}

fn content(item: TestTerm) -> i64 {
    item.content().1
}

/// Reads a batch of at most `size` items and claims it.
fn claim(flush: &Flush<Log<TestHeap>>, size: usize) -> Vec<i64> {
    let batch = read(flush, 1, size, content).unwrap();
    assert!(flush.claim(1, 0));
    batch
}

#[test]
fn items_keep_their_order_over_many_chunks_and_segments() {
    let partition = partition();
    (0..10_000).for_each(|item| push(&partition, item).unwrap());
    let mut caller = TestHeap::new();
    let more: Vec<_> = (10_000..20_000).map(|item| caller.boxed(item).parcel()).collect();
    partition.push_all(1, more.iter()).unwrap();
    drop(caller);
    assert_eq!(partition.len(1), Ok(20_000));
    let first = flush(&partition).unwrap();
    assert_eq!(items(&first), (0..20_000).collect::<Vec<_>>());
    assert_eq!(partition.len(1), Ok(0));
}

#[test]
fn unclaimed_items_come_again_before_new_ones() {
    let partition = partition();
    (0..5).for_each(|item| push(&partition, item).unwrap());
    let first = flush(&partition).unwrap();
    assert_eq!(claim(&first, 2), [0, 1]);
    push(&partition, 5).unwrap();
    let rest = flush(&partition).unwrap();
    assert_eq!(items(&rest), [2, 3, 4]);
    assert_eq!(claim(&rest, usize::MAX), [2, 3, 4]);
    assert_eq!(items(&flush(&partition).unwrap()), [5]);
}

#[test]
fn a_closed_partition_refuses_items_and_still_flushes_its_own() {
    let partition = partition();
    push(&partition, 1).unwrap();
    partition.close();
    assert_eq!(push(&partition, 2), Err(Closed));
    assert_eq!(items(&flush(&partition).unwrap()), [1]);
}

#[test]
fn items_of_several_threads_come_out_once_and_in_the_order_of_their_thread() {
    const THREADS: i64 = 4;
    const ITEMS: i64 = 20_000;
    let partition = Arc::new(partition());
    let writers: Vec<_> = (0..THREADS)
        .map(|thread| {
            let partition = partition.clone();
            thread::spawn(move || (0..ITEMS).for_each(|item| push(&partition, thread * ITEMS + item).unwrap()))
        })
        .collect();
    let mut next: HashMap<i64, i64> = HashMap::new();
    let mut taken = 0;
    while taken < THREADS * ITEMS {
        let Some(flush) = flush(&partition) else {
            thread::yield_now();
            continue;
        };
        for item in claim(&flush, usize::MAX) {
            let expected = next.entry(item / ITEMS).or_default();
            assert_eq!(item % ITEMS, *expected, "thread {}", item / ITEMS);
            *expected += 1;
            taken += 1;
        }
    }
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    assert!(flush(&partition).is_none());
}

/// Reads a batch of at most `size` items for the processor.
fn lease(flush: &Flush<Log<TestHeap>>, size: usize) -> Vec<i64> {
    let batch = read(flush, 1, size, content).unwrap();
    assert!(flush.lease(1, 0));
    batch
}

#[test]
fn a_batch_of_retried_and_other_items_comes_again_if_its_reader_dies() {
    let partition = partition();
    (0..5).for_each(|item| push(&partition, item).unwrap());
    let first = flush(&partition).unwrap();
    assert_eq!(lease(&first, 2), [0, 1]);
    // Not counted, so these have failed as seldom as those behind them.
    let given_back = partition.give_back(&first, None, false, None);
    assert_eq!(given_back, GivenBack { retried: 2, superseded: 0, given_up: 0 });
    assert_eq!(read(&first, 2, 4, content).unwrap(), [0, 1, 2, 3]);
    assert_eq!(claim(&first, usize::MAX), [0, 1, 2, 3, 4]);
}
