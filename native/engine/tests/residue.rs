//! The last outcome of a flush frees its memory, whoever still refers to the flush. This process
//! has only one test, since it counts all heaps of the process.
#![allow(missing_docs, clippy::missing_docs_in_private_items, clippy::unwrap_used)]

mod common;

use common::map::{entry, Map};
use common::reading::{self, all_of, flush, give_back, read};
use common::{heaps, TestHeap, LARGE, ONE};
use partitioned_buffer_engine::reclaim;
use partitioned_buffer_engine::{Hasher, Heap, QueuePartition};

fn heaps_left() -> usize {
    reclaim::settle();
    heaps()
}

/// A map of small and of large entries, with versions that need a heap and without.
fn start() -> Map {
    let map = Map::start();
    for key in 0..100 {
        let value = if key % 2 == 0 { LARGE + key } else { key };
        if key % 3 == 0 {
            map.put(key, value);
        } else {
            assert!(map.put_newer(key, value, 100 * (key - 50)));
        }
    }
    map
}

#[test]
fn the_last_outcome_frees_the_memory_though_the_flush_is_held() {
    let map = start();
    let flush_of_all = map.flush().unwrap();
    // Successes, batch by batch.
    while flush_of_all.seen().left > 0 {
        assert!(heaps_left() > 0);
        assert!(!map.lease(&flush_of_all, 30).is_empty());
        map.succeed(&flush_of_all);
    }
    assert_eq!(heaps_left(), 0, "successes");

    // Claims.
    let map = start();
    let claimed = map.flush().unwrap();
    read(&claimed, 1, 1_000, entry).unwrap();
    assert!(claimed.claim(1, 0));
    map.partition.settle(&claimed);
    assert_eq!(heaps_left(), 0, "claims");

    // Failures that are superseded, deleted, retried, given up.
    let map = start();
    let (failed, batch) = map.lease_all();
    (0..50).for_each(|key| map.delete(key));
    (50..60).for_each(|key| map.put(key, LARGE + key));
    let given_back = map.fail(&failed, None, None);
    assert_eq!((given_back.retried, given_back.superseded), (batch.len() - 60, 60));
    let (given_up, batch) = map.lease_all();
    assert_eq!((batch.len(), map.fail(&given_up, None, Some(1)).given_up), (50, 50));
    assert!(heaps_left() > 0, "they are still to be read");
    let dead = reading::batch(&given_up, entry);
    assert!(dead.len() == 50 && dead.iter().all(|entry| entry.key >= 50));
    map.succeed(&given_up);
    assert_eq!(heaps_left(), 0, "failures");

    // All that is left was deleted, or is superseded.
    let map = start();
    let deleted = map.flush().unwrap();
    (0..99).for_each(|key| map.delete(key));
    map.put(99, 1);
    assert_eq!(map.lease_resumed(&deleted, 10), []);
    map.delete(99);
    assert!(map.flush().is_none());
    assert_eq!(heaps_left(), 0, "deletes");

    // An evicted map: the evicted entries are copied, and large values share their heap.
    let map = start();
    let (_in_flight, batch) = map.lease_all();
    map.put(0, LARGE);
    let evicted = map.partition.evict();
    let new = Map::new(&map.hasher);
    evicted.entries().for_each(|leftover| new.partition.take_in(&leftover));
    let both = heaps_left();
    drop(evicted);
    assert!((1..both).contains(&heaps_left()), "the evicted stores are freed");
    new.open(1);
    assert_eq!(new.succeed_with_all().len(), batch.len());
    assert_eq!(heaps_left(), 0, "a restart");

    // Items of a queue.
    let queue = QueuePartition::new(&Hasher::new());
    queue.set_outcomes(true);
    queue.open(1);
    (0..100).for_each(|item| {
        let mut caller = TestHeap::new();
        queue.push(ONE, &caller.boxed(if item % 2 == 0 { LARGE } else { item }).parcel()).unwrap();
    });
    let items = flush(&queue).unwrap();
    for _ in 0..3 {
        read(&items, 1, 100, |_| ()).unwrap();
        assert!(items.lease(1, 0));
        give_back(&queue, &items, all_of(1));
        assert!(heaps_left() > 0);
    }
    while items.seen().left > 0 {
        read(&items, 1, 100, |_| ()).unwrap();
        assert!(items.lease(1, 0));
        items.succeed(1);
        queue.settle(&items);
    }
    assert_eq!(heaps_left(), 0, "a queue");
}
