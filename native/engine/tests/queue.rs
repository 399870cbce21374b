//! The partition of a queue: items come out once, in the order in which they went in.
#![allow(missing_docs, clippy::missing_docs_in_private_items, clippy::unwrap_used)]

mod common;

use std::collections::HashMap;
use std::sync::Arc;
use std::thread;

use common::reading::{all_of, batch, contents, flush, give_back, read, GivenBack};
use common::{Random, TestHeap, TestTerm, ONE};
use partitioned_buffer_engine::{
    BatchState, Closed, Flush, GiveBack, Hasher, Heap, Log, QueuePartition, Resident, Stored,
};

fn partition() -> QueuePartition<TestHeap> {
    let partition = QueuePartition::new(&Hasher::new());
    partition.open(1);
    partition
}

fn push(partition: &QueuePartition<TestHeap>, item: i64) -> Result<(), Closed> {
    let mut caller = TestHeap::new();
    partition.push(ONE, &caller.boxed(item).parcel()).map(|stored| assert_eq!(stored, Stored::Stored))
}

fn items(flush: &Flush<Log<TestHeap>>) -> Vec<i64> {
    let mut items = contents(&flush.entries().expect("not all is claimed"), content);
    items.split_off(items.len() - flush.seen().left)
}

fn content(item: Resident<TestTerm>) -> i64 {
    item.term.content().1
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
    partition.push_all(ONE, false, more.iter()).unwrap();
    drop(caller);
    assert_eq!(partition.len(ONE), Ok(20_000));
    let first = flush(&partition).unwrap();
    assert_eq!(items(&first), (0..20_000).collect::<Vec<_>>());
    assert_eq!(partition.len(ONE), Ok(0));
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
fn items_come_out_once_and_in_the_order_of_their_thread() {
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

/// A partition that is open with outcomes.
fn partition_with_outcomes() -> QueuePartition<TestHeap> {
    let partition = QueuePartition::new(&Hasher::new());
    partition.set_outcomes(true);
    partition.open(1);
    partition
}

/// The same with so many items from 0 on, and its flush of them.
fn start_in_flight(items: i64) -> (QueuePartition<TestHeap>, Arc<Flush<Log<TestHeap>>>) {
    let partition = partition_with_outcomes();
    (0..items).for_each(|item| push(&partition, item).unwrap());
    let flush = flush(&partition).unwrap();
    (partition, flush)
}

/// Reads a batch of at most `size` items for the processor.
fn lease(flush: &Flush<Log<TestHeap>>, size: usize) -> Vec<i64> {
    let batch = read(flush, 1, size, content).unwrap();
    assert!(flush.lease(1, 0));
    batch
}

/// Gives a batch back.
fn fail(
    partition: &QueuePartition<TestHeap>,
    flush: &Arc<Flush<Log<TestHeap>>>,
    failed: Option<&[usize]>,
    counted: bool,
    max_attempts: Option<u32>,
) -> GivenBack {
    give_back(partition, flush, GiveBack { failed, counted, max_attempts, ..all_of(1) })
}

/// The result of giving back a batch of which all failed entries are retried.
fn retried(retried: usize) -> GivenBack {
    GivenBack::retried(retried)
}

#[test]
fn failed_items_stay_at_the_head_in_their_order() {
    let (partition, first) = start_in_flight(8);
    assert_eq!(lease(&first, 4), [0, 1, 2, 3]);
    assert_eq!(fail(&partition, &first, Some(&[1, 3]), true, None), retried(2));
    push(&partition, 8).unwrap();
    assert_eq!((partition.len(ONE), partition.held()), (Ok(1), 7), "what is retried does not wait");
    assert!(Arc::ptr_eq(&flush(&partition).unwrap(), &first));
    assert_eq!(lease(&first, 4), [1, 3, 4, 5]);
    assert_eq!(fail(&partition, &first, Some(&[0, 2]), true, None), retried(2));
    assert_eq!((lease(&first, 2), first.attempts()), (vec![1, 4], 2));
    first.succeed(1);
    assert_eq!((lease(&first, 16), first.attempts()), (vec![6, 7], 0));
    first.succeed(1);
    assert_eq!(lease(&flush(&partition).unwrap(), 16), [8]);
}

#[test]
fn a_split_batch_of_items_comes_again_in_parts_and_in_order() {
    let (partition, first) = start_in_flight(600);
    for length in [500, 125, 31, 7, 1] {
        assert_eq!((lease(&first, 500), first.attempts()), ((0..length).collect(), 0));
        if length > 1 {
            assert_eq!(first.split(1), Some((length as usize, length as usize / 4)));
        }
    }
    assert_eq!(fail(&partition, &first, None, true, None), retried(1));
    assert_eq!((lease(&first, 500), first.attempts()), (vec![0], 1), "it holds up the others");
    first.succeed(1);
    assert_eq!(lease(&first, 500), [1, 2, 3, 4]);
    first.succeed(1);
    assert_eq!(lease(&first, 500), (5..21).collect::<Vec<_>>());
}

#[test]
fn without_an_order_a_failed_item_waits_behind_the_others() {
    let partition = partition_with_outcomes();
    partition.set_order(false);
    (0..4).for_each(|item| push(&partition, item).unwrap());
    let first = flush(&partition).unwrap();
    push(&partition, 4).unwrap();
    assert_eq!(lease(&first, 1), [0]);
    assert_eq!(fail(&partition, &first, None, true, None), retried(1));
    assert_eq!((partition.len(ONE), partition.info().retried), (Ok(2), 1));
    for item in 1..4 {
        assert_eq!(read(&first, 1, 1, content).unwrap(), [item]);
        assert!(first.lease(1, 0));
        first.succeed(1);
    }
    let second = flush(&partition).unwrap();
    assert_eq!((lease(&second, 9), second.attempts()), (vec![4, 0], 1));
}

#[test]
fn items_that_are_not_counted_come_again_in_a_batch_of_the_same_length() {
    let (partition, first) = start_in_flight(5);
    for _ in 0..3 {
        assert_eq!((lease(&first, 3), first.attempts()), (vec![0, 1, 2], 0));
        assert_eq!(fail(&partition, &first, None, false, Some(1)), retried(3));
    }
    assert_eq!(lease(&first, 5), [0, 1, 2, 3, 4]);
}

#[test]
fn items_that_are_given_up_are_the_batch_until_the_end() {
    let (partition, first) = start_in_flight(6);
    assert_eq!(lease(&first, 4), [0, 1, 2, 3]);
    fail(&partition, &first, Some(&[0, 1]), true, Some(2));
    assert_eq!(lease(&first, 16), [0, 1, 4, 5]);
    let given_back = fail(&partition, &first, Some(&[0, 1, 3]), true, Some(2));
    assert_eq!(given_back, GivenBack { retried: 1, superseded: 0, given_up: 2 });
    assert_eq!((first.inherit(1, None), partition.held()), (Some((BatchState::GivenUp, 2)), 3));
    assert_eq!(batch(&first, content), [0, 1]);
    assert_eq!(read(&first, 2, 1, content), None);
    first.succeed(1);
    assert_eq!((partition.held(), claim(&first, 9)), (1, vec![5]));
    assert!(flush(&partition).is_none());
}

#[test]
fn a_batch_of_retried_and_other_items_comes_again_if_its_reader_dies() {
    let (partition, first) = start_in_flight(5);
    assert_eq!(lease(&first, 2), [0, 1]);
    // Not counted, so these have failed as seldom as those behind them.
    assert_eq!(fail(&partition, &first, None, false, None), retried(2));
    assert_eq!(read(&first, 2, 4, content).unwrap(), [0, 1, 2, 3]);
    assert_eq!(claim(&first, usize::MAX), [0, 1, 2, 3, 4]);
}

#[test]
fn items_succeed_once_and_in_order_though_batches_fail() {
    const THREADS: i64 = 3;
    const ITEMS: i64 = 10_000;
    let partition = partition_with_outcomes();
    let mut random = Random(1);
    let mut sink: Vec<i64> = Vec::new();
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let partition = &partition;
            scope.spawn(move || (0..ITEMS).for_each(|item| push(partition, thread * ITEMS + item).unwrap()));
        }
        while sink.len() < (THREADS * ITEMS) as usize {
            let Some(flush) = flush(&partition) else {
                thread::yield_now();
                continue;
            };
            let batch = lease(&flush, 1 + random.below(60) as usize);
            if random.below(2) == 0 {
                assert_eq!(fail(&partition, &flush, None, true, None), retried(batch.len()));
            } else {
                sink.extend(batch);
                flush.succeed(1);
                partition.settle(&flush);
            }
        }
    });
    for thread in 0..THREADS {
        let own = sink.iter().copied().filter(|item| item / ITEMS == thread);
        assert!(own.eq(thread * ITEMS..(thread + 1) * ITEMS), "thread {thread}");
    }
    assert_eq!(partition.held(), 0);
}
