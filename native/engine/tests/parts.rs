//! The memory of a flush comes back as readers progress, in eighths at least.
#![allow(missing_docs, clippy::missing_docs_in_private_items, clippy::unwrap_used)]

mod common;

use common::counter::Counter;
use common::map::{entry, Map};
use common::reading::{all_of, batch, contents, flush, give_back, read};
use common::{queue, TestTerm, LARGE};
use partitioned_buffer_engine::{reclaim, Flush, GiveBack, Partition, Store};

/// The entries of each test: several segments, and all terms are large.
const COUNT: i64 = 240;

/// The number of entries in a batch.
const SIZE: usize = 10;

fn bytes<S: Store, const SHARDS: usize>(partition: &Partition<S, SHARDS>) -> usize {
    reclaim::settle();
    partition.info().bytes
}

/// Processes all entries of a partition, each batch by `settle`. After each of them the terms of the
/// others live, and at most an eighth of all besides.
fn assert_terms_leave<S: Store, const SHARDS: usize>(
    partition: &Partition<S, SHARDS>,
    term: fn(S::Record) -> TestTerm,
    settle: impl Fn(&Flush<S>),
) {
    let flush = flush(partition).unwrap();
    let terms = contents(&flush.entries().unwrap(), term);
    for left in (0..COUNT as usize / SIZE).rev() {
        assert_eq!(read(&flush, 1, SIZE, |_| ()).unwrap().len(), SIZE);
        settle(&flush);
        partition.settle(&flush);
        reclaim::settle();
        let live = terms.iter().filter(|term| term.is_live()).count();
        let needed = left * SIZE;
        assert!((needed..=needed + COUNT as usize / 8).contains(&live), "{needed} are needed, and {live} live");
    }
    assert_eq!(partition.info().bytes, 0);
}

fn filled_map(has_outcomes: bool) -> Map {
    let map = Map::start();
    map.partition.close();
    map.partition.set_outcomes(has_outcomes);
    map.partition.open(1);
    (0..COUNT).for_each(|key| map.put(key, LARGE + key));
    map
}

fn succeed<S: Store>(flush: &Flush<S>) {
    assert!(flush.lease(1, 0));
    flush.succeed(1);
}

#[test]
fn the_memory_of_a_map_comes_back_in_eighths() {
    assert_terms_leave(&filled_map(false).partition, |record| record.value.term, |flush| assert!(flush.claim(1, 0)));
    assert_terms_leave(&filled_map(true).partition, |record| record.value.term, succeed);
}

#[test]
fn the_memory_of_a_counter_comes_back_in_eighths() {
    let counter = Counter::start();
    (0..COUNT).for_each(|key| counter.add(LARGE + key, 1));
    assert_terms_leave(&counter.partition, |record| record.key.term, succeed);
}

#[test]
fn the_memory_of_a_queue_comes_back_in_eighths() {
    for claims in [false, true] {
        let queue = queue::start();
        queue::push_all(&queue, LARGE..LARGE + COUNT);
        assert_terms_leave(
            &queue,
            |item| item.term,
            |flush| if claims { assert!(flush.claim(1, 0)) } else { succeed(flush) },
        );
    }
}

#[test]
fn the_memory_of_small_items_comes_back_with_their_segments() {
    let queue = queue::start();
    queue::push_all(&queue, 0..10_000);
    let full = bytes(&queue);
    let flush = flush(&queue).unwrap();
    assert_eq!(read(&flush, 1, 5_000, |_| ()).unwrap().len(), 5_000);
    succeed(&flush);
    let now = bytes(&queue);
    assert!(now < full * 5 / 8, "half of the items is left, and {now} of {full} bytes");
}

#[test]
fn a_retried_item_stays_and_so_do_those_behind_it() {
    let queue = queue::start();
    queue::push_all(&queue, LARGE..LARGE + COUNT);
    let (flush, first) = queue::lease(&queue, 120);
    let failed = [100];
    give_back(&queue, &flush, GiveBack { failed: Some(&failed), ..all_of(1) });
    reclaim::settle();
    let rest = contents(&flush.entries().unwrap(), queue::item);
    assert!(rest.len() < 240 - 80, "most of the items before it are free");
    assert!(rest.contains(&first[100]));
    assert_eq!(read(&flush, 1, 1, queue::item).unwrap(), [first[100]]);
}

#[test]
fn a_deferred_entry_stays_alone() {
    for keeps_order in [false, true] {
        let queue = queue::closed();
        queue.set_order(keeps_order);
        queue::open(&queue);
        queue::push_all(&queue, LARGE..LARGE + COUNT);
        let (flush, first) = queue::lease(&queue, 1);
        flush.defer();
        assert_eq!(flush.split(1), Some((1, 1)));
        let mut read_items = Vec::new();
        while let Some(items) = read(&flush, 1, 10, queue::item).filter(|items| !items.is_empty()) {
            read_items.extend(items);
            succeed(&flush);
            queue.settle(&flush);
        }
        assert_eq!(read_items.len(), COUNT as usize);
        assert!(read_items.contains(&first[0]));
        assert_eq!(bytes(&queue), 0);
    }
    let map = filled_map(true);
    let flush = map.flush().unwrap();
    let bad = map.lease(&flush, 1)[0];
    map.fail(&flush, None, None);
    let again = map.partition.in_flight().unwrap();
    assert!(std::sync::Arc::ptr_eq(&again, &flush));
    while !map.lease(&flush, 10).is_empty() {
        map.succeed(&flush);
        if flush.entries().is_none() {
            break;
        }
    }
    assert_eq!(map.get(bad.key), Some(bad.value), "it waits");
    assert_eq!(map.succeed_with_all(), [bad]);
}

#[test]
fn deferred_items_stay_though_they_fill_a_chunk() {
    const CHUNK: usize = 1024;
    let queue = queue::closed();
    queue.set_order(false);
    queue::open(&queue);
    queue::push_all(&queue, 0..2 * CHUNK as i64);
    let (first, failed) = queue::lease(&queue, CHUNK);
    give_back(&queue, &first, all_of(1));
    while read(&first, 1, 100, queue::item).is_some_and(|items| !items.is_empty()) {
        succeed(&first);
        queue.settle(&first);
    }
    // The failed items come first in the next flush, and wait there for the others.
    queue::push_all(&queue, 10_000..10_000 + 2 * CHUNK as i64);
    let flush = flush(&queue).unwrap();
    flush.defer();
    let mut items = Vec::new();
    while let Some(batch) = read(&flush, 1, 100, queue::item).filter(|batch| !batch.is_empty()) {
        items.extend(batch);
        succeed(&flush);
        queue.settle(&flush);
        reclaim::settle();
    }
    assert_eq!(items.len(), 3 * CHUNK);
    assert_eq!(items[2 * CHUNK..], failed);
}

#[test]
fn entries_given_up_stay_until_they_are_buried() {
    let map = filled_map(true);
    let flush = map.flush().unwrap();
    for _ in 0..20 {
        map.lease(&flush, SIZE);
        map.succeed(&flush);
    }
    let bad = map.lease(&flush, SIZE);
    map.fail(&flush, None, Some(1));
    reclaim::settle();
    assert_eq!(batch(&flush, entry), bad, "the function for dead letters gets them");
    assert!(contents(&flush.entries().unwrap(), entry).len() < 60);
    map.succeed(&flush);
    assert_eq!(map.lease(&flush, 100).len(), 30);
}
